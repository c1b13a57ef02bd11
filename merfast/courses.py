"""`Course`: one face's predictions over time, as pictures show them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from merfast.errors import ConfigError
from merfast.types import EMOTIONS, MODALITIES, Failure, Prediction

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Course:
    """Windows in order of time, each with the stretch in which it is the nearest.

    Attributes:
        source: what they are of.
        windows: the predictions, K of them.
        spans: `[K, 2]` seconds: of all windows that reach a moment, it belongs to the one with the nearest centre.
        probabilities: `[K, 6]`; NaN where there was nothing to go by.
        valence: `[K]`, likewise.
        used: modality -> `[K]` bool.
    """

    source: str
    windows: tuple[Prediction, ...]
    spans: Floats
    probabilities: Floats
    valence: Floats
    used: Mapping[str, npt.NDArray[np.bool_]]

    @classmethod
    def of(cls, results: Iterable[Prediction | Failure], track: int | None = None) -> Course:
        """The course of a timeline, or of predictions with `windows`.

        Args:
            results: of one source; failures are left out.
            track: of the face, in media with several; None takes the main face of each window.

        Raises:
            ConfigError: there is none, or they are of several sources.
        """
        own = [r for r in results if isinstance(r, Prediction)]
        windows = sorted(parts_of(own, track), key=lambda p: p.start + p.end)
        if not windows:
            seen = sorted({p.track for p in everyone(own) if p.track is not None})
            wanted = "at least one" if track is None else f"one of {seen}"
            raise ConfigError(
                f"predictions to show: got none{'' if track is None else f' of track {track}'}, expected {wanted}"
            )
        if len(sources := {p.source for p in windows}) > 1:
            raise ConfigError(f"predictions to show: got those of {len(sources)} sources, expected one")
        return cls(
            windows[0].source,
            tuple(windows),
            nearest(windows),
            np.stack([p.probabilities for p in windows]).astype(np.float64),
            np.array([p.valence for p in windows], dtype=np.float64),
            {m: np.array([m in p.modalities for p in windows]) for m in MODALITIES},
        )

    def thinned(self, most: int) -> Course:
        """Neighbours averaged, so that `most` stretches are left at most; a modality counts if any used it."""
        size = -(-len(self.windows) // most)
        if size <= 1:
            return self
        starts = range(0, len(self.windows), size)
        groups = [slice(i, i + size) for i in starts]
        return Course(
            self.source,
            self.windows,
            np.stack([[self.spans[g][0, 0], self.spans[g][-1, 1]] for g in groups]),
            np.stack([_mean(self.probabilities[g]) for g in groups]),
            np.array([_mean(self.valence[g]) for g in groups]),
            {m: np.array([u[g].any() for g in groups]) for m, u in self.used.items()},
        )

    @property
    def means(self) -> Floats:
        """`[6]` probabilities over all stretches, by duration; zero where there is nothing."""
        weights = np.where(np.isfinite(self.valence), np.diff(self.spans)[:, 0], 0.0)
        if not weights.sum():
            return np.zeros(len(EMOTIONS))
        return np.asarray(weights @ np.nan_to_num(self.probabilities) / weights.sum())


def nearest(windows: Sequence[Prediction]) -> Floats:
    """`[K, 2]` seconds in which each window, in order of their centres, is the nearest of those that reach there."""
    ends = np.array([[p.start, p.end] for p in windows], dtype=np.float64)
    centres = ends.mean(axis=1)
    between = (centres[1:] + centres[:-1]) / 2
    start = np.maximum(ends[:, 0], np.concatenate([[-np.inf], between]))
    end = np.minimum(ends[:, 1], np.concatenate([between, [np.inf]]))
    return np.stack([start, np.maximum(start, end)], axis=1)


def everyone(results: Iterable[Prediction]) -> Iterator[Prediction]:
    """Each prediction, or its parts, of all faces."""
    for p in results:
        for face in (p, *p.others):
            yield from face.windows or (face,)


def parts_of(results: Iterable[Prediction], track: int | None) -> list[Prediction]:
    """The windows of one face; of the main ones for None."""
    if track is None:
        return [part for p in results for part in p.windows or (p,)]
    return [part for part in everyone(results) if part.track == track]


def _mean(values: Floats) -> Floats:
    kept = values[np.isfinite(values if values.ndim == 1 else values[:, 0])]
    return np.asarray(kept.mean(axis=0) if len(kept) else np.full(values.shape[1:], np.nan))
