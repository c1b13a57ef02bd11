"""The decisive moments of a course, for a report's pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from merfast.report_series import Course, Doubles, Series
from merfast.types import EMOTIONS

SPOKEN = {"audio": "voice", "video": "face"}


def signed(value: float, digits: int) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Moment:
    """A time worth looking at: seconds, the most probable emotion there, and why."""

    time: float
    emotion: str
    why: str


def decisive_moments(course: Course, most: int = 12) -> list[Moment]:
    """Where most was decided, of the main face.

    Three curves over the windows are searched for local maxima above their mean: confidence (the largest probability),
    the change of valence from the window before, and attention (the largest in the window's cell, with explanations).
    The curves take turns, each with the highest maximum that it has left and that is far enough from those taken: half
    of an even spacing of `most` moments. Without any maximum it is the window with the highest confidence.

    Returns:
        Up to `most`, by time; none without a prediction.
    """
    main = course.series[0]
    if not main.known.any():
        return []
    queues = [iter(_maxima(curve)) for curve in _curves(course, main)]
    apart = max(course.hop, (course.end - float(course.edges[0])) / (2 * most)) - 1e-6
    chosen: dict[int, int] = {}  # window -> curve
    middles = (course.edges[1:] + course.edges[:-1]) / 2
    live = list(range(len(queues)))
    while live and len(chosen) < most:
        for kind in list(live):
            for i in queues[kind]:
                if all(abs(middles[main.first + i] - middles[main.first + j]) >= apart for j in chosen):
                    chosen[i] = kind
                    break
            else:
                live.remove(kind)
            if len(chosen) == most:
                break
    if not chosen:
        chosen[int(np.nanargmax(_confidence(main)))] = 0
    return [_moment(course, main, i, chosen[i]) for i in sorted(chosen)]


def _confidence(series: Series) -> Doubles:
    out = np.full(len(series.valence), np.nan)
    out[series.known] = series.probabilities[series.known].max(axis=1)
    return out


def _curves(course: Course, series: Series) -> Iterator[Doubles]:
    yield _confidence(series)
    yield np.abs(np.diff(series.valence, prepend=np.nan))
    if series.attention:
        best = np.max(list(series.attention.values()), axis=0)
        borders = np.searchsorted(course.edges[0] + course.bin_seconds * np.arange(len(best)), course.edges - 1e-9)
        cells = [best[a : max(b, a + 1)].max(initial=0) for a, b in pairwise(borders)]
        curve = np.array(cells)[series.first : series.first + len(series.valence)]
        yield np.where(series.known, curve, np.nan)


def _maxima(curve: Doubles) -> list[int]:
    """Numbers of the local maxima above the mean, the highest first."""
    known = np.isfinite(curve)
    if not known.any() or np.ptp(curve[known]) < 1e-9:
        return []
    low = np.concatenate([[-np.inf], np.where(known, curve, -np.inf), [-np.inf]])
    peaks = (low[1:-1] > low[:-2]) & (low[1:-1] >= low[2:]) & (low[1:-1] > curve[known].mean())
    numbers = np.flatnonzero(peaks)
    return [int(i) for i in numbers[np.argsort(-curve[numbers], kind="stable")]]


def _moment(course: Course, series: Series, i: int, kind: int) -> Moment:
    cell = course.edges[series.first + i], course.edges[series.first + i + 1]
    time = float(sum(cell) / 2)
    probabilities = series.probabilities[i]
    emotion = EMOTIONS[int(probabilities.argmax())]
    if kind == 0:
        return Moment(time, emotion, f"confidence peaks: {probabilities.max():.0%}")
    if kind == 1:
        before, now = series.valence[i - 1], series.valence[i]
        return Moment(time, emotion, f"valence {'rises' if now > before else 'falls'} to {signed(float(now), 1)}")
    centres = course.edges[0] + course.bin_seconds * (np.arange(len(next(iter(series.attention.values())))) + 0.5)
    inside = np.flatnonzero((centres >= cell[0]) & (centres < cell[1]))
    if len(inside) == 0:
        inside = np.array([np.abs(centres - time).argmin()])
    modality, k = max(
        ((m, int(inside[values[inside].argmax()])) for m, values in series.attention.items()),
        key=lambda found: series.attention[found[0]][found[1]],
    )
    time = min(max(float(centres[k]), float(cell[0])), float(np.nextafter(cell[1], 0)))
    return Moment(time, emotion, f"attention peaks, on the {SPOKEN[modality]}")
