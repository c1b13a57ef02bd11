"""What a report shows, as arrays over one grid of windows: a `Course` with a `Series` for each face."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from merfast.attention import Modality
from merfast.errors import ConfigError
from merfast.types import EMOTIONS, MODALITIES, Failure, FloatArray, Prediction

MOST_BINS, BINS_PER_HOP = 4000, 10
"""Bins of attention: at most so many in all, and from one window to the next."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Series:
    """One face, or the main one of each window, over the windows `first` to `first + n`.

    Attributes:
        label: what the reader sees.
        first: number of its first window.
        probabilities: `[n, 6]`; NaN where there is no prediction.
        valence: `[n]` in [-5, 5], or NaN.
        coverage: `[n]`, fraction of the sampled frames with this face.
        used: modality -> `[n]` bool.
        there: `[n]` bool: whether results have an entry for this face, be it empty.
        missing: `[n]` sentences: why a modality was not used; empty where none is missing.
        attention: modality -> `[bins]` over the whole course, 1 where attention is what it would be if it were spread
            evenly over the window; empty without attention.
    """

    label: str
    first: int
    probabilities: FloatArray
    valence: Doubles
    coverage: Doubles
    used: Mapping[Modality, npt.NDArray[np.bool_]]
    there: npt.NDArray[np.bool_]
    missing: Sequence[str]
    attention: Mapping[Modality, Doubles]

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """`[n]`: whether there is a prediction."""
        return np.isfinite(self.valence)


@dataclass(frozen=True, eq=False)
class Course:
    """Windows and the faces in them.

    A window stands for the time that is nearer to its middle than to that of another: its cell.

    Attributes:
        source: name of the item.
        starts, ends: `[N]` seconds.
        edges: `[N + 1]` seconds: borders of the cells.
        bin_seconds: width of a bin of attention, from `edges[0]` on.
        series: the main face first, then each track, that with most time first; the main one alone without others.
        warnings: of predictions, and what failed, each once.
    """

    source: str
    starts: Doubles
    ends: Doubles
    edges: Doubles
    bin_seconds: float
    series: tuple[Series, ...]
    warnings: tuple[str, ...]

    @property
    def hop(self) -> float:
        """Seconds from one window to the next, the usual ones."""
        steps = np.diff(self.starts)
        return float(np.median(steps)) if len(steps) else float(self.ends[0] - self.starts[0])

    @property
    def window(self) -> float:
        """Seconds that a window usually lasts."""
        return float(np.median(self.ends - self.starts))

    @property
    def end(self) -> float:
        return float(self.edges[-1])


def course_of(results: Iterable[Prediction | Failure], source: str | None = None) -> Course:
    """Lay results out.

    Args:
        results: windows, or whole items, whose parts are taken; windows that failed become gaps.
        source: name of the item whose results are meant, where there are several.

    Raises:
        ConfigError: there are no windows, or those of several items and none is `source`.
    """
    given = _of_one(list(results), source)
    flat, warnings = _flattened(given)
    if not flat:
        why = f": {warnings[0]}" if warnings else ""
        raise ConfigError(f"report: got no windows{why}")
    flat.sort(key=lambda p: (p.start, p.end))
    mains = [p for p in flat if isinstance(p, Prediction)]
    starts, ends = np.array([p.start for p in flat]), np.array([p.end for p in flat])
    middles = (starts + ends) / 2
    edges = np.concatenate([starts[:1], (middles[1:] + middles[:-1]) / 2, [ends.max()]])
    edges = np.maximum.accumulate(edges)
    hop = float(np.median(np.diff(starts))) if len(flat) > 1 else float(ends[0] - starts[0])
    per_hop = max(1, min(BINS_PER_HOP, int(MOST_BINS * hop / max(edges[-1] - edges[0], 1e-9))))
    width = max(hop, 1e-3) / per_hop

    tracks: dict[int, dict[int, Prediction]] = {}
    at = {p.start: i for i, p in enumerate(flat)}
    others = [p for r in given if isinstance(r, Prediction) for p in _windows_of_others(r)]
    for p in (*mains, *others):
        if p.track is not None and p.start in at:
            tracks.setdefault(p.track, {})[at[p.start]] = p
    of_main = {i: p for i, p in enumerate(flat) if isinstance(p, Prediction)}
    several = len(tracks) > 1
    label = "Main face" if several else "Face and voice"
    series = [_series(label, of_main, edges, width, len(flat))]
    if several:
        order = sorted(tracks, key=lambda t: (-len(tracks[t]), t))
        series += [_series(f"Face {track}", tracks[track], edges, width, len(flat)) for track in order]
    source_name = mains[0].source if mains else flat[0].source
    return Course(source_name, starts, ends, edges, width, tuple(series), tuple(dict.fromkeys(warnings)))


def _of_one(results: list[Prediction | Failure], source: str | None) -> list[Prediction | Failure]:
    names = sorted({r.source for r in results})
    if len(names) < 2:
        return results
    chosen = [r for r in results if r.source == source]
    if not chosen:
        raise ConfigError(f"results: got those of {len(names)} items ({', '.join(names[:3])}), none is {source!r}")
    return chosen


def _flattened(results: Iterable[Prediction | Failure]) -> tuple[list[Prediction | Failure], list[str]]:
    flat: list[Prediction | Failure] = []
    warnings: list[str] = []
    failed: dict[str, int] = {}
    for result in results:
        if isinstance(result, Failure):
            failed[str(result.error)] = failed.get(str(result.error), 0) + 1
            if result.start is not None and result.end is not None:
                flat.append(result)
            continue
        flat += result.windows or (result,)
        for p in (result, *result.windows, *_windows_of_others(result), *result.others):
            warnings += p.warnings
    return flat, warnings + [f"{n} failed: {why}" if n > 1 else f"failed: {why}" for why, n in failed.items()]


def _windows_of_others(p: Prediction) -> list[Prediction]:
    return [w for other in p.others for w in (other.windows or (other,))]


def _series(label: str, found: Mapping[int, Prediction], edges: Doubles, width: float, count: int) -> Series:
    first, last = (min(found), max(found)) if found else (0, count - 1)
    n = last - first + 1
    probabilities = np.full((n, len(EMOTIONS)), np.nan, dtype=np.float32)
    valence, coverage = np.full(n, np.nan), np.zeros(n)
    used: dict[Modality, npt.NDArray[np.bool_]] = {m: np.zeros(n, dtype=bool) for m in MODALITIES}
    there = np.zeros(n, dtype=bool)
    missing = [""] * n
    for i, p in found.items():
        k = i - first
        probabilities[k], valence[k], coverage[k], there[k] = p.probabilities, p.valence, p.face_coverage, True
        missing[k] = "; ".join(f"no {_SPOKEN.get(m, m)}: {why}" for m, why in p.missing.items())
        for modality in p.modalities:
            used[modality][k] = True
    attention = _attention(found.values(), edges, width)
    return Series(label, first, probabilities, valence, coverage, used, there, missing, attention)


_SPOKEN = {"audio": "voice", "video": "face"}


def _attention(predictions: Iterable[Prediction], edges: Doubles, width: float) -> dict[Modality, Doubles]:
    """Mean over the windows that hold a bin, of the attention on it relative to an even spread."""
    begin = float(edges[0])
    bins = max(1, math.ceil((edges[-1] - begin) / width - 1e-6))
    sums: dict[Modality, Doubles] = {}
    counts = np.zeros(bins)
    for p in predictions:
        if p.attention is None or p.end <= p.start:
            continue
        low = min(bins - 1, max(0, math.floor((p.start - begin) / width + 1e-6)))
        high = min(bins, max(low + 1, math.ceil((p.end - begin) / width - 1e-6)))
        marks = begin + width * np.arange(low, high + 1)
        inside = np.minimum(marks[1:], p.end) - np.maximum(marks[:-1], p.start)
        counts[low:high] += 1
        for modality in p.attention.modalities:
            shares = p.attention.over_time(modality, marks)
            total = sums.setdefault(modality, np.zeros(bins))
            total[low:high] += shares * (p.end - p.start) / np.maximum(inside, 0.1 * width)
    return {m: sums[m] / np.maximum(counts, 1) for m in MODALITIES if m in sums}
