"""Smoothing a timeline: what it computes, that it never looks ahead, when it starts anew, and that it forgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merfast.errors import ConfigError
from merfast.smoothing import FORGET, MOST_TRACKS, Smoother
from merfast.types import EMOTIONS, Prediction

ANGRY, HAPPY = (0.1, 0.5, 0.1, 0.1, 0.1, 0.1), (0.05, 0.05, 0.8, 0.05, 0.03, 0.02)


def window(
    end: float, probabilities: Sequence[float] = ANGRY, valence: float = -1.0, track: int | None = 0, **changes
) -> Prediction:
    values = np.array(probabilities, dtype=np.float32)
    emotion = EMOTIONS[values.argmax()]
    return replace(
        Prediction("x", end - 4.0, end, emotion, values, valence, ("audio", "video"), 1.0, track=track), **changes
    )


def empty(end: float, others: tuple[Prediction, ...] = ()) -> Prediction:
    nan = np.full(6, np.nan, dtype=np.float32)
    return Prediction("x", end - 4.0, end, None, nan, math.nan, (), 0.0, {"audio": "silent"}, others=others)


def same(a: Prediction, b: Prediction) -> bool:
    """Whether they are equal to the bit."""
    numbers = np.array_equal(a.probabilities, b.probabilities, equal_nan=True)
    numbers &= np.array_equal(a.valence, b.valence, equal_nan=True)
    rest = ("source", "start", "end", "emotion", "modalities", "face_coverage", "track", "warnings")
    others = len(a.others) == len(b.others) and all(map(same, a.others, b.others))
    return bool(numbers) and others and all(getattr(a, name) == getattr(b, name) for name in rest)


@st.composite
def _posterior(draw: st.DrawFn) -> np.ndarray:
    values = np.array(draw(st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6))) + 1e-3
    return (values / values.sum()).astype(np.float32)


@st.composite
def _series(draw: st.DrawFn) -> list[Prediction]:
    """Windows in order, of several tracks, with and without other faces, some with nothing in them."""
    end, out = 4.0, []
    tracks = st.one_of(st.none(), st.integers(0, 3))
    for _ in range(draw(st.integers(1, 12))):
        end += draw(st.sampled_from([0.0, 0.25, 1.0, 3.0, 100.0]))
        numbers = draw(st.lists(st.integers(4, 8), max_size=3, unique=True))
        others = tuple(
            window(end, draw(_posterior()), draw(st.floats(-5, 5, width=32)), number) for number in sorted(numbers)
        )
        if draw(st.booleans()) or draw(st.booleans()):
            main = window(end, draw(_posterior()), draw(st.floats(-5, 5, width=32)), draw(tracks), others=others)
        else:
            main = empty(end, others)
        out.append(main)
    return out


@pytest.mark.parametrize("hop", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_a_sudden_change_is_seen_as_the_closed_form_says(hop: float, seconds: float) -> None:
    smoother = Smoother(seconds)
    smoother.apply(window(4.0, ANGRY, -2.0))
    for k in range(1, 20):
        got = smoother.apply(window(4.0 + k * hop, HAPPY, 3.0))
        left = math.exp(-k * hop / seconds)
        expected = np.array(HAPPY) + left * (np.array(ANGRY) - np.array(HAPPY))
        assert np.abs(got.probabilities - expected).max() <= 1e-6
        assert got.valence == pytest.approx(3.0 - 5.0 * left, abs=1e-6)
        assert got.emotion == EMOTIONS[int(expected.argmax())]
    assert got.probabilities.dtype == np.float32


def test_the_emotion_is_that_of_what_comes_out() -> None:
    smoother = Smoother(10.0)
    smoother.apply(window(4.0, ANGRY))
    got = smoother.apply(window(5.0, HAPPY))
    assert got.emotion == "angry" == EMOTIONS[got.probabilities.argmax()]


@given(_series(), st.floats(0.1, 50.0), st.data())
def test_a_prefix_gives_the_same_prefix(series: list[Prediction], seconds: float, data: st.DataObject) -> None:
    whole = list(map(Smoother(seconds).apply, series))
    cut = data.draw(st.integers(0, len(series)))
    part = list(map(Smoother(seconds).apply, series[:cut]))
    assert all(map(same, part, whole[:cut]))


@given(_series(), st.floats(0.1, 50.0))
def test_what_comes_out_are_probabilities_between_what_went_in(series: list[Prediction], seconds: float) -> None:
    smoother = Smoother(seconds)
    seen: list[Prediction] = []
    for prediction in series:
        got = smoother.apply(prediction)
        assert (got.emotion is None) == (prediction.emotion is None)
        assert [o.track for o in got.others] == [o.track for o in prediction.others]
        if prediction.emotion is None:
            continue
        seen.append(prediction)
        assert abs(float(got.probabilities.sum()) - 1) <= 1e-5
        low, high = (f([p.probabilities for p in seen], axis=0) for f in (np.min, np.max))
        assert (low - 1e-6 <= got.probabilities).all()
        assert (got.probabilities <= high + 1e-6).all()
        assert min(p.valence for p in seen) - 1e-6 <= got.valence <= max(p.valence for p in seen) + 1e-6


@given(_posterior(), st.floats(-5, 5, width=32), st.floats(0.01, 100.0))
def test_what_does_not_change_stays_as_it_is(posterior: np.ndarray, valence: float, seconds: float) -> None:
    smoother = Smoother(seconds)
    for k in range(6):
        other = window(4.0 + k, posterior, valence, track=7)
        prediction = window(4.0 + k, posterior, valence, others=(other,))
        assert same(smoother.apply(prediction), prediction)


def test_a_window_with_nothing_in_it_passes_and_changes_nothing() -> None:
    smoother, without = Smoother(2.0), Smoother(2.0)
    nothing = empty(5.0)
    for s in (smoother, without):
        s.apply(window(4.0, ANGRY))
    assert same(smoother.apply(nothing), nothing)
    assert same(smoother.apply(window(6.0, HAPPY)), without.apply(window(6.0, HAPPY)))


def test_another_face_starts_anew_and_one_that_comes_back_does_not() -> None:
    smoother = Smoother(10.0)
    smoother.apply(window(4.0, ANGRY, track=3))
    voice = smoother.apply(window(5.0, HAPPY, track=None))
    assert voice.emotion == "angry"  # the face is away: the series goes on
    back = smoother.apply(window(6.0, HAPPY, track=3))
    assert back.emotion == "angry"
    other = window(7.0, HAPPY, 2.0, track=4)
    assert same(smoother.apply(other), other)
    first = window(8.0, ANGRY, track=3)
    assert same(smoother.apply(first), first)


def test_a_first_face_goes_on_where_the_voice_alone_stood() -> None:
    smoother = Smoother(10.0)
    smoother.apply(window(4.0, ANGRY, track=None))
    assert smoother.apply(window(5.0, HAPPY, track=0)).emotion == "angry"


def test_a_clock_that_falls_starts_anew() -> None:
    smoother = Smoother(10.0)
    smoother.apply(window(40.0, ANGRY))
    again = window(4.0, HAPPY)
    assert same(smoother.apply(again), again)


def test_other_faces_are_smoothed_by_track() -> None:
    smoother = Smoother(3.0)
    left = math.exp(-1 / 3.0)
    smoother.apply(window(4.0, others=(window(4.0, ANGRY, track=1), window(4.0, HAPPY, track=2))))
    got = smoother.apply(window(5.0, others=(window(5.0, ANGRY, track=2), window(5.0, HAPPY, track=1)))).others
    towards_angry = np.array(ANGRY) + left * (np.array(HAPPY) - np.array(ANGRY))
    towards_happy = np.array(HAPPY) + left * (np.array(ANGRY) - np.array(HAPPY))
    assert np.abs(got[0].probabilities - towards_angry).max() <= 1e-6
    assert np.abs(got[1].probabilities - towards_happy).max() <= 1e-6
    assert [o.track for o in got] == [2, 1]


def test_other_faces_are_smoothed_beside_a_main_one_with_nothing() -> None:
    smoother = Smoother(10.0)
    smoother.apply(window(4.0, others=(window(4.0, ANGRY, track=1),)))
    assert smoother.apply(empty(5.0, (window(5.0, HAPPY, track=1),))).others[0].emotion == "angry"


@pytest.mark.parametrize("seconds", [0.5, 1e6])
def test_what_it_remembers_is_bounded(seconds: float) -> None:
    smoother = Smoother(seconds)
    for k in range(2000):
        others = tuple(window(4.0 + k, track=10 * k + i) for i in range(3))
        smoother.apply(window(4.0 + k, others=others))
        assert len(smoother._others) <= MOST_TRACKS
    if seconds < 1:
        assert len(smoother._others) <= 3 * (FORGET * seconds + 1)


def test_forgetting_a_face_does_not_show() -> None:
    away = (FORGET + 1) * 2.0
    smoother = Smoother(2.0)
    smoother.apply(window(4.0, others=(window(4.0, ANGRY, track=1),)))
    smoother.apply(window(4.0 + away))
    assert not smoother._others
    back = window(5.0 + away, HAPPY, track=1)
    kept = np.array(HAPPY) + math.exp(-(away + 1) / 2.0) * (np.array(ANGRY) - np.array(HAPPY))
    got = smoother.apply(window(5.0 + away, others=(back,))).others[0]
    assert np.abs(got.probabilities - kept).max() <= 1e-7


@pytest.mark.parametrize("seconds", [0, -1.0, math.inf, math.nan, "2", None, True])
def test_a_time_constant_must_be_seconds_above_zero(seconds: object) -> None:
    with pytest.raises(ConfigError, match=r"smoothing: got .* expected seconds above 0"):
        Smoother(seconds)  # type: ignore[arg-type]
