"""Decoding 720p clips of 4 s in several threads: FFmpeg on the CPU against NVDEC, by every way that there is.

    python -m pytest benchmarks/bench_decode_cuda.py -o python_files='bench_*.py' --benchmark-only

All pictures are decoded, and five a second are left where the engine takes them from: in the GPU's memory, or as planes
in the CPU's for `pyav` (RGB for torchcodec). The work of a round is done when the GPU has done it. What a session costs
to open is seen in clips of 5 pictures. With TRITON_INTERPRET=1 the same runs on the CPU with tiny clips, to see that it
is right; its times mean nothing.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")

import av

from benchmarks.cuda_timing import DEVICE, INTERPRETED
from merfast.errors import UnavailableError
from merfast.media import decode_pynvvideocodec, decode_torchcodec, nvdec
from merfast.media.decode import AudioChunk, open_media
from merfast.media.surfaces import SurfaceFrame

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("default"),
]

WIDTH, HEIGHT, FPS = (160, 96, 25) if INTERPRETED else (1280, 720, 25)
SECONDS = 0.4 if INTERPRETED else 4.0
CLIPS = 2 if INTERPRETED else 64  # of a round, whatever the number of threads
RATE = 5.0
CORES = len(os.sched_getaffinity(0))
DECODERS = ["pyav", "nvdec", "pynvvideocodec", "torchcodec"]


def missing(decoder: str) -> str:
    """Why a decoder cannot be measured here, or nothing."""
    if decoder == "torchcodec":
        try:
            decode_torchcodec.load()
        except UnavailableError as error:
            return str(error)
    ways = {"nvdec": nvdec.missing, "pynvvideocodec": decode_pynvvideocodec.missing}
    return ways[decoder](DEVICE) if decoder in ways else ""


def write(path: Path, count: int) -> Path:
    """A scene that moves, with a texture that costs about what a camera's picture does."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, : WIDTH + 6 * count]
    scene = np.stack(
        [128 + 60 * np.sin(x / a) + 50 * np.cos(y / b + x / 90) for a, b in ((31, 40), (47, 29), (63, 35))]
    )
    scene = (scene.transpose(1, 2, 0) + rng.normal(0, 4, (*x.shape, 1))).clip(0, 255).astype(np.uint8)
    codecs = [c for c in ("libx264", "libopenh264", "mpeg4") if c in av.codecs_available]
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codecs[0], rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if codecs[0] == "libx264":
            stream.options = {"crf": "23", "preset": "veryfast"}
        for i in range(count):
            picture = np.ascontiguousarray(scene[:, 6 * i : 6 * i + WIDTH])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", round(SECONDS * FPS))


@pytest.fixture(scope="module")
def glimpse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clips") / "glimpse.mp4", 5)


def decode(path: Path, decoder: str, codec_threads: int) -> int:
    """Pictures of the wanted rate."""
    device = None if decoder == "pyav" else DEVICE
    media = open_media(path, name=path.name, decoder=decoder, frame_rate=RATE, threads=codec_threads, surfaces=device)
    count = 0
    for event in media.events():
        assert not isinstance(event, AudioChunk)
        assert isinstance(event, SurfaceFrame) or decoder in ("pyav", "torchcodec")
        count += 1
    media.close()
    return count


def in_threads(path: Path, decoder: str, threads: int, clips: int) -> None:
    """Decode a clip so many times, by so many threads; on the CPU all cores work, those left over within a clip."""
    codec_threads = max(1, CORES // threads)
    expected = len({int(i / FPS * RATE) for i in range(round(SECONDS * FPS))}) if path.stem == "clip" else 1
    with ThreadPoolExecutor(threads) as pool:
        for count in pool.map(lambda _: decode(path, decoder, codec_threads), range(clips)):
            assert count == expected
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("threads", [1, 4, 8, 16])
@pytest.mark.parametrize("decoder", DECODERS)
def test_clips(benchmark: Any, clip: Path, decoder: str, threads: int) -> None:
    if why := missing(decoder):
        pytest.skip(why)
    clips = max(threads, CLIPS // 4 if threads < 4 else CLIPS)
    benchmark.group, benchmark.name = f"decode 720p, {threads} at a time", decoder
    benchmark.extra_info["baseline"] = decoder == "pyav"
    benchmark.pedantic(in_threads, (clip, decoder, threads, clips), rounds=1 if INTERPRETED else 3, warmup_rounds=1)
    if benchmark.stats is not None:
        rate = clips * SECONDS * FPS / benchmark.stats.stats.median
        benchmark.extra_info.update(frames_per_second=rate, clips_per_second=rate / SECONDS / FPS)
        benchmark.extra_info["note"] = f"{rate:.0f} frames/s, {rate / SECONDS / FPS:.0f} clips/s"
        if threads == 8:
            benchmark.extra_info["headline"] = {
                "what": f"decoding 720p H.264, {threads} clips at a time, {decoder}",
                "result": f"{rate:.0f} pictures a second, {rate / SECONDS / FPS:.0f} clips of {SECONDS:.0f} s",
                "against": f"all {CORES} cores of the CPU" if decoder == "pyav" else "pyav's row",
            }


@pytest.mark.parametrize("decoder", DECODERS)
def test_session(benchmark: Any, glimpse: Path, decoder: str) -> None:
    """One clip of 5 pictures after the other: opening counts, not decoding."""
    if why := missing(decoder):
        pytest.skip(why)
    benchmark.group, benchmark.name = "open, decode 5 pictures of 720p, close", decoder
    benchmark.extra_info["baseline"] = decoder == "pyav"
    benchmark.pedantic(in_threads, (glimpse, decoder, 1, 1), rounds=2 if INTERPRETED else 30, warmup_rounds=2)
