"""Faces: one detection, and following a face through a clip, against detecting in every picture looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from merfast.media.decode import AudioChunk, Frame, open_media
from merfast.media.faces import DETECT_SIZE, make_detector
from merfast.media.lookers import FrameLooker
from merfast.media.tracks import FaceTracker
from merfast.ops import crop_norm_cpu
from merfast.ops.crop_norm import CropSpec


@pytest.fixture(scope="module")
def frames(clip: Path) -> list[Frame]:
    media = open_media(clip, name=clip.name, decoder="pyav", frame_rate=5.0, threads=2)
    return [e for e in media.events() if not isinstance(e, AudioChunk)]


def follow(frames: list[Frame], kind: str, model: Path | None) -> int:
    crop = crop_norm_cpu.prepare(CropSpec(48))
    tracker = FaceTracker(FrameLooker(make_detector(kind, model), crop_size=48, crop=crop), face_scale=1.0)
    views = [v for f in frames for v in tracker.push(f)] + list(tracker.flush())
    return sum(bool(v.faces) for v in views)


def detect_all(frames: list[Frame], kind: str, model: Path | None) -> int:
    detector = make_detector(kind, model)
    return sum(bool(detector.detect(f.small(DETECT_SIZE))) for f in frames)


@pytest.mark.parametrize("kind", ["haar", "yunet"])
def test_detect(benchmark: BenchmarkFixture, frames: list[Frame], kind: str, yunet_model: Path | None) -> None:
    if kind == "yunet" and yunet_model is None:
        pytest.skip("YuNet's file is not here")
    benchmark.group = f"detect faces in one picture, {DETECT_SIZE} px"
    detector, image = make_detector(kind, yunet_model), frames[0].small(DETECT_SIZE)
    assert benchmark(detector.detect, image)


@pytest.mark.parametrize("way", ["every-picture", "tracked"])
@pytest.mark.parametrize("kind", ["haar", "yunet"])
def test_track(benchmark: BenchmarkFixture, frames: list[Frame], kind: str, way: str, yunet_model: Path | None) -> None:
    if kind == "yunet" and yunet_model is None:
        pytest.skip("YuNet's file is not here")
    benchmark.group = f"faces of a clip ({kind}), 5 pictures a second"
    benchmark.extra_info["note"] = "boxes only" if way == "every-picture" else "boxes and crops"
    run = follow if way == "tracked" else detect_all
    assert benchmark(run, frames, kind, yunet_model) > 0.7 * len(frames)
