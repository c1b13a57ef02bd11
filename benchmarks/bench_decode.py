"""Decoding: what the engine needs of a clip (5 pictures a second, 16 kHz mono sound), against getting it the plain way.

Floor: the codec itself, decoding every picture and every sample and converting nothing.
"""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soxr
from pytest_benchmark.fixture import BenchmarkFixture

from merfast.media.decode import AudioChunk, open_media

RATE = 5.0


def needed(clip: Path, decoder: str) -> tuple[int, int]:
    """Pictures as RGB and samples, through merfast."""
    media = open_media(clip, name=clip.name, decoder=decoder, frame_rate=RATE, threads=2)
    pictures = samples = 0
    for event in media.events():
        if isinstance(event, AudioChunk):
            samples += len(event.samples)
        else:
            event.rgb()
            pictures += 1
    media.close()
    return pictures, samples


def everything(clip: Path) -> tuple[int, int]:
    """Every picture to RGB with PyAV, then every sixth or so taken; sound decoded as a whole and resampled."""
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        pictures = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    taken = {int(t * RATE): p for t, p in reversed(pictures)}
    with av.open(str(clip)) as container:
        sound = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
        rate = container.streams.audio[0].rate
    return len(taken), len(soxr.resample(sound.mean(0), rate, 16_000))


def opencv(clip: Path) -> int:
    """Every picture to BGR with OpenCV; no sound, which it cannot read."""
    capture = cv2.VideoCapture(str(clip))
    count = 0
    while capture.read()[0]:
        count += 1
    return count


def codec_alone(clip: Path) -> int:
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return sum(len(p.decode()) for p in container.demux(container.streams.video[0], container.streams.audio[0]))


@pytest.mark.parametrize("case", ["everything", "opencv", "merfast-decord", "merfast-pyav", "floor-codec"])
def test_decode(benchmark: BenchmarkFixture, clip: Path, case: str) -> None:
    benchmark.group = "decode a clip"
    if case == "everything":
        benchmark.extra_info.update(baseline=True, note="convert all pictures, take some")
        assert benchmark(everything, clip)[0] > 20
    elif case == "opencv":
        benchmark.extra_info["note"] = "pictures only"
        assert benchmark(opencv, clip) > 100
    elif case == "floor-codec":
        benchmark.extra_info["note"] = "nothing converted"
        assert benchmark(codec_alone, clip) > 100
    else:
        decoder = case.removeprefix("merfast-")
        if decoder == "decord":
            pytest.importorskip("decord", reason="decord is not installed")
        assert benchmark(needed, clip, decoder)[0] > 20
