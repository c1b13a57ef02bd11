"""Bundles that read the voice alone, or the face alone: what they do not read counts as missing, and is not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import merfast
from merfast import bundle, pipeline
from merfast.clip import Clip
from merfast.config import BundleConfig, FusionConfig, Preprocessing, StreamConfig
from merfast.models import FusedModel
from merfast.types import SAMPLE_RATE, Failure, Prediction

pytestmark = pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")

STREAMS = {
    "audio": StreamConfig("mel", "audio", "logmel", 16, {"layers": 1, "heads": 2, "channels": 4}),
    "video": StreamConfig("face", "video", "facecnn", 16),
}
OTHER = {"audio": "video", "video": "audio"}
SOUND = np.random.default_rng(0).normal(size=2 * SAMPLE_RATE).astype(np.float32) * 0.1
FACES = np.random.default_rng(1).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of one small encoder, by the modality that it reads."""
    out = {}
    for modality, stream in STREAMS.items():
        fusion = FusionConfig(dim=16, attention_dim=8, heads=2, valence_dim=8)
        config = BundleConfig(modality, False, (stream,), preprocessing=Preprocessing(), fusion=fusion)
        out[modality] = tmp_path_factory.mktemp(modality)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            bundle.save(out[modality], config, FusedModel(config).eval())
    return out


def clip(modality: str, *, empty: bool = False, both: bool = False) -> Clip:
    """Sound or given faces, or both; `empty` has silence, or pictures without a face."""
    silent = np.zeros_like(SOUND) if empty else SOUND
    pictures = np.full_like(FACES, 90) if empty else FACES
    found = "detect" if empty else "given"
    if both:
        return Clip.from_arrays(pictures, fps=5, audio=silent, sample_rate=SAMPLE_RATE, faces=found)
    if modality == "audio":
        return Clip.from_arrays(audio=silent, sample_rate=SAMPLE_RATE)
    return Clip.from_arrays(pictures, fps=5, faces=found)


def test_a_config_says_what_is_read() -> None:
    mini = bundle.verify()
    assert mini.modalities == ("audio", "video")
    for modality, stream in STREAMS.items():
        assert BundleConfig("one", False, (stream,)).modalities == (modality,)
    assert BundleConfig("two", False, tuple(STREAMS.values())[::-1]).modalities == ("audio", "video")


@pytest.mark.parametrize("modality", STREAMS)
def test_what_is_not_read_is_missing(folders: dict[str, Path], modality: str) -> None:
    engine, other = merfast.Engine(folders[modality], detector="haar"), OTHER[modality]
    together, alone = engine.predict([clip(modality, both=True), clip(modality)])
    for p in (together, alone):
        assert isinstance(p, Prediction)
        assert p.modalities == (modality,)
        assert p.missing == {other: f"this bundle reads no {other}"}
    assert np.abs(together.probabilities - alone.probabilities).max() < 1e-6
    assert (together.track, together.face_coverage) == ((None, 0.0) if modality == "audio" else (0, 1.0))
    (window,) = engine.timeline(clip(modality, both=True), window=4)
    assert window.modalities == (modality,)


@pytest.mark.parametrize(("modality", "found"), [("audio", "silent"), ("video", "no face found")])
def test_a_clip_with_nothing_that_is_read(folders: dict[str, Path], modality: str, found: str) -> None:
    engine, other = merfast.Engine(folders[modality], detector="haar"), OTHER[modality]
    reasons = {modality: found, other: f"this bundle reads no {other}"}
    said = "; ".join(f"{m}: {reasons[m]}" for m in ("audio", "video"))
    silent_talk = Clip.from_arrays(FACES, fps=5, audio=np.zeros_like(SOUND), sample_rate=SAMPLE_RATE, faces="given")
    useless = silent_talk if modality == "audio" else clip(modality, empty=True, both=True)
    for item in (useless, clip(other)):
        bad, good = engine.predict([item, clip(modality)], on_error="return")
        assert isinstance(bad, Failure)
        assert isinstance(bad.error, merfast.MediaError)
        assert "holds nothing to predict from" in str(bad.error)
        assert isinstance(good, Prediction)
        if item is useless:
            assert said in str(bad.error)
    with pytest.raises(merfast.MediaError, match=f"{other}: this bundle reads no {other}"):
        engine.predict([useless])


def test_a_voice_alone_needs_no_pictures(
    folders: dict[str, Path], face_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a detector is made nor a picture decoded, whatever was chosen; the duration is that of the file."""
    asked: list[bool] = []
    opened = pipeline.open_media

    def recorded(*arguments: object, want_video: bool, **options: object) -> object:
        asked.append(want_video)
        return opened(*arguments, want_video=want_video, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "open_media", recorded)
    monkeypatch.setattr(pipeline, "make_detector", lambda *_: pytest.fail("a detector was made"))
    for options in ({}, {"detector": "haar"}, {"detector": "yunet"}, {"detector": "none"}, {"faces": "all"}):
        engine = merfast.Engine(folders["audio"], **options)
        (p,) = engine.predict([face_clip])
        assert isinstance(p, Prediction)
        assert (p.modalities, p.missing) == (("audio",), {"video": "this bundle reads no video"})
        assert p.end == pytest.approx(2.5, abs=0.1)
    engine.predict([clip("audio", both=True)])
    assert asked == [False] * 6
    merfast.Engine(folders["video"], detector="none").predict([clip("video")])
    assert asked[-1]
