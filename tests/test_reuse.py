"""A crop that windows share is encoded once, and predictions are those of windows alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import merfast
from merfast.clip import Clip
from merfast.media.windows import WindowSpec
from merfast.models.facecnn import FaceCNN
from merfast.types import Known, Window

SIZE = 48


@pytest.fixture(scope="module")
def engine() -> merfast.Engine:
    return merfast.Engine(device="cpu")


def windows(known: Known | None, *, tracks: tuple[int, ...] = (0,), count: int = 8) -> list[Window]:
    """Windows of 4 s, one a second, at five crops a second."""
    noise = np.random.default_rng(0)
    crops = noise.integers(0, 256, (len(tracks), 5 * (count + 3), SIZE, SIZE, 3), dtype=np.uint8)
    sound = noise.standard_normal((count + 3) * 16000).astype(np.float32) * 0.1
    return [
        Window(
            *(float(k), k + 4.0, sound[16000 * k : 16000 * (k + 4)], crops[t, 5 * k : 5 * k + 20], 20, track, {}),
            numbers=tuple(range(5 * k, 5 * k + 20)),
            known=known,
        )
        for k in range(count)
        for t, track in enumerate(tracks)
    ]


@pytest.fixture
def encoded(engine: merfast.Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of crops that went through the face encoder."""
    counts: list[int] = []
    original = FaceCNN.encode

    def counted(self: FaceCNN, luma: torch.Tensor) -> torch.Tensor:
        counts.append(len(luma))
        return original(self, luma)

    monkeypatch.setattr(FaceCNN, "encode", counted)
    return counts


@pytest.mark.parametrize("together", [1, 2, 3, 8])
@pytest.mark.parametrize("tracks", [(0,), (3, 7)])
def test_each_crop_is_encoded_once(
    engine: merfast.Engine, encoded: list[int], together: int, tracks: tuple[int, ...]
) -> None:
    inference = engine._workers[0].inference
    alone = [inference.start([w]).result()[0] for w in windows(None, tracks=tracks)]
    assert sum(encoded) == 8 * 20 * len(tracks)
    encoded.clear()
    known: Known = {}
    shared = windows(known, tracks=tracks)
    step = together * len(tracks)
    results = [r for i in range(0, len(shared), step) for r in inference.start(shared[i : i + step]).result()]
    assert sum(encoded) == 5 * 11 * len(tracks)
    for (posterior, valence), (expected, score) in zip(results, alone, strict=True):
        assert np.abs(posterior - expected).max() < 1e-5
        assert abs(valence - score) < 1e-4
    assert len(known) <= 20 * len(tracks)


def test_streams_do_not_share(engine: merfast.Engine, encoded: list[int]) -> None:
    """The same numbers in two timelines are not the same crops."""
    inference = engine._workers[0].inference
    first = windows({})[0]
    other = replace(windows({})[0], crops=255 - first.crops)
    results = inference.start([first, other]).result()
    assert sum(encoded) == 40
    alone = [inference.start([replace(w, known=None)]).result()[0] for w in (first, other)]
    for (posterior, _), (expected, _) in zip(results, alone, strict=True):
        assert np.abs(posterior - expected).max() < 1e-5
    assert np.abs(results[0][0] - results[1][0]).max() > 1e-3


def test_a_window_that_was_never_predicted_is_no_gap(engine: merfast.Engine, encoded: list[int]) -> None:
    """As where it was refused: its crops are encoded with the next window."""
    inference = engine._workers[0].inference
    shared = windows({})
    results = [inference.start([shared[k]]).result()[0] for k in (0, 3, 7)]
    assert sum(encoded) == 20 + 15 + 20
    alone = [inference.start([replace(shared[k], known=None)]).result()[0] for k in (0, 3, 7)]
    for (posterior, _), (expected, _) in zip(results, alone, strict=True):
        assert np.abs(posterior - expected).max() < 1e-5


def test_only_windows_that_overlap_remember(engine: merfast.Engine) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    clip = Clip.from_arrays(frames, fps=5, faces="given")
    worker = engine._workers[0]
    for hop, remembers in ((4.0, False), (1.0, True)):
        (reader,) = worker.readers([clip], WindowSpec(4.0, hop), every_face=False)
        groups = list(reader)
        assert {group[0].known is not None for group in groups} == {remembers}
        assert [group[0].numbers[0] for group in groups] == [round(5 * hop * k) for k in range(len(groups))]


def test_a_timeline_is_what_predict_says_of_its_windows(engine: merfast.Engine, encoded: list[int]) -> None:
    noise = np.random.default_rng(2)
    frames = noise.integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    sound = noise.standard_normal(12 * 16000).astype(np.float32) * 0.1
    clip = Clip.from_arrays(frames, fps=5, audio=sound, sample_rate=16000, faces="given")
    timeline = list(engine.timeline(clip, window=4.0, hop=1.0))
    assert sum(encoded) == 60
    pieces = [
        Clip.from_arrays(
            frames[5 * k : 5 * k + 20],
            fps=5,
            audio=sound[16000 * k : 16000 * (k + 4)],
            sample_rate=16000,
            faces="given",
        )
        for k in range(9)
    ]
    for got, expected in zip(timeline, engine.predict(pieces), strict=True):
        assert np.abs(got.probabilities - expected.probabilities).max() < 1e-5
        assert got.valence == pytest.approx(expected.valence, abs=1e-4)
