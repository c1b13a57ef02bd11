"""Exponential smoothing of a timeline, which never looks ahead."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from merfast.errors import ConfigError
from merfast.types import EMOTIONS, Prediction

FORGET = 20.0
"""Time constants after which a face that is no longer seen is forgotten: its weight would be 2e-9 by then."""

MOST_TRACKS = 64
"""Other faces that are remembered at a time; beyond, the one that was seen the longest ago is forgotten."""


@dataclass
class _State:
    """Where a series stands: what the last window came to, and when that ended."""

    end: float
    values: npt.NDArray[np.float64]  # [7]: probabilities, then valence


class Smoother:
    """Smooths the windows of one timeline, in order: p <- p + a (new - p), where a = 1 - exp(-dt / seconds).

    dt is the time from the end of the window before, with an emotion, to the end of this one: `seconds` means the same
    whatever the hop. Probabilities and valence are smoothed, `emotion` is the most probable of what comes out, and all
    else stays. A window without an emotion passes as it is and changes nothing.

    The main series starts anew when the main face's track changes to another number, as another person's face would
    else begin with the first one's emotions; it does not when the face is gone and comes back under its number. Other
    faces (`others`) are smoothed by track. A window that ends before the last one did starts its series anew, too.

    Args:
        seconds: time constant: after it, 63 % of a sudden change are seen.

    Raises:
        ConfigError: seconds is not above 0 and finite.
    """

    def __init__(self, seconds: float) -> None:
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not number or not 0 < seconds < math.inf:
            raise ConfigError(f"smoothing: got {seconds!r}, expected seconds above 0, or None")
        self._seconds = float(seconds)
        self._main: _State | None = None
        self._track: int | None = None  # of the main face, when it last had one
        self._others: dict[int | None, _State] = {}  # the longest unseen first

    def apply(self, prediction: Prediction) -> Prediction:
        """The next window, smoothed."""
        others = tuple(self._other(p) for p in prediction.others)
        self._forget(prediction.end)
        if prediction.emotion is None:
            return replace(prediction, others=others)
        if prediction.track is not None:
            if self._track not in (None, prediction.track):
                self._main = None
            self._track = prediction.track
        self._main = self._next(self._main, prediction)
        return _with(prediction, self._main, others)

    def _other(self, prediction: Prediction) -> Prediction:
        if prediction.emotion is None:
            return prediction
        state = self._next(self._others.pop(prediction.track, None), prediction)
        self._others[prediction.track] = state
        return _with(prediction, state, prediction.others)

    def _next(self, state: _State | None, new: Prediction) -> _State:
        values = np.append(new.probabilities.astype(np.float64), new.valence)
        if state is None or new.end < state.end:
            return _State(new.end, values)
        share = -math.expm1((state.end - new.end) / self._seconds)
        return _State(new.end, state.values + share * (values - state.values))

    def _forget(self, now: float) -> None:
        known = list(self._others.items())[-MOST_TRACKS:]
        self._others = {track: state for track, state in known if now - state.end <= FORGET * self._seconds}


def _with(prediction: Prediction, state: _State, others: tuple[Prediction, ...]) -> Prediction:
    probabilities = state.values[:-1].astype(np.float32)
    return replace(
        prediction,
        emotion=EMOTIONS[int(probabilities.argmax())],
        probabilities=probabilities,
        valence=float(state.values[-1]),
        others=others,
    )


def smoothed(predictions: Iterator[Prediction], smoother: Smoother) -> Iterator[Prediction]:
    """Predictions as they come, smoothed; closing it closes them."""
    try:
        for prediction in predictions:
            yield smoother.apply(prediction)
    finally:
        if isinstance(predictions, Generator):
            predictions.close()
