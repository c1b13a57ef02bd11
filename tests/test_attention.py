"""`Attention`: shares, clocks, stretches, averages."""

from __future__ import annotations

import json

import numpy as np
import pytest

from merfast.attention import Attention, StreamAttention, average
from merfast.types import EMOTIONS, Prediction, combine


def stream(modality: str, start: float, step: float, *shares: float) -> StreamAttention:
    edges = start + step * np.arange(len(shares) + 1)
    return StreamAttention.of(modality, np.stack([edges[:-1], edges[1:]], 1), np.array(shares, dtype=np.float32))


def attention(start: float = 0.0) -> Attention:
    return Attention(
        {
            "voice": stream("audio", start, 0.5, 0.1, 0.2, 0.0, 0.1),
            "tone": stream("audio", start, 2.0, 0.2),
            "face": stream("video", start, 1.0, 0.3, 0.1),
        }
    )


def prediction(start: float, end: float, what: Attention | None) -> Prediction:
    values = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=np.float32)
    return Prediction("x", start, end, EMOTIONS[0], values, 0.0, ("audio", "video"), 1.0, attention=what)


def test_shares_are_parted_from_weights() -> None:
    made = attention()
    assert {n: s.share for n, s in made.streams.items()} == pytest.approx({"voice": 0.4, "tone": 0.2, "face": 0.4})
    assert made.modalities == pytest.approx({"audio": 0.6, "video": 0.4})
    np.testing.assert_allclose(made.streams["voice"].weights, [0.25, 0.5, 0, 0.25], rtol=1e-6)
    assert made.streams["voice"].weights.dtype == np.float32


def test_a_stream_that_weighs_nothing_has_weights_all_the_same() -> None:
    made = stream("audio", 0.0, 1.0, 0.0, 0.0)
    assert (made.share, made.weights.tolist()) == (0.0, [0.5, 0.5])


def test_another_clock() -> None:
    moved = attention().shifted(1.7e9)
    np.testing.assert_array_equal(moved.streams["face"].spans, [[1.7e9, 1.7e9 + 1], [1.7e9 + 1, 1.7e9 + 2]])
    np.testing.assert_array_equal(moved.streams["face"].weights, attention().streams["face"].weights)


def test_over_time() -> None:
    made = attention()
    np.testing.assert_allclose(made.over_time("video", [0, 0.5, 1, 2]), [0.15, 0.15, 0.1], atol=1e-6)
    np.testing.assert_allclose(made.over_time("audio", [0, 1, 2]), [0.3 + 0.1, 0.1 + 0.1], atol=1e-6)
    np.testing.assert_allclose(made.over_time("audio", [-5, 9]), [0.6], atol=1e-6)


def test_plain_values() -> None:
    plain = json.loads(json.dumps(attention().to_dict()))
    assert plain["face"] == {
        "modality": "video",
        "share": 0.4,
        "spans": [[0, 1], [1, 2]],
        "weights": [0.75, 0.25],
    }


def test_average_of_parts_weighs_them() -> None:
    second = Attention({"voice": stream("audio", 2.0, 1.0, 0.5, 0.5)})
    whole = average([attention(), second], [0.75, 0.25])
    assert {n: s.share for n, s in whole.streams.items()} == pytest.approx({"voice": 0.55, "tone": 0.15, "face": 0.3})
    voice = whole.streams["voice"]
    assert voice.spans[:, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
    np.testing.assert_allclose(voice.weights * voice.share, [0.075, 0.15, 0, 0.075, 0.125, 0.125], atol=1e-6)
    np.testing.assert_allclose(whole.over_time("audio", [0, 2, 4]), [0.45, 0.25], atol=1e-6)


def test_combined_predictions() -> None:
    first, second = prediction(0, 2, attention()), prediction(2, 3, attention(2.0))
    whole = combine([first, second]).attention
    assert whole is not None
    assert whole.modalities == pytest.approx({"audio": 0.6, "video": 0.4})
    np.testing.assert_allclose(whole.over_time("video", [0, 2, 4]), [0.8 / 3, 0.4 / 3], atol=1e-6)
    assert combine([first, prediction(2, 3, None)]).attention is None


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 2\] and \[3\], expected \[T, 2\] and \[T\]"):
        StreamAttention("audio", 1.0, np.zeros((2, 2)), np.zeros(3, dtype=np.float32))
