"""Faces on a GPU: YuNet in torch by batch, against OpenCV on the CPU; crops out of surfaces; all that tracking asks.

    python -m pytest benchmarks/bench_faces_cuda.py -o python_files='bench_*.py' --benchmark-only

Times are wall clock, as a reader's thread sees them, pictures and surfaces being on the device; OpenCV has them in the
CPU's memory, and one thread. `looker` is what a tracker asks of 16 frames of 720p: thumbnails of all, faces in every
second one, a crop of each; in several threads, each with a stream of its own, the time is that of one group's share.
`onnxruntime` is there with its CUDA build, for the picture of 640 x 640 that the file is made for. With
TRITON_INTERPRET=1 the same runs on the CPU with small pictures, to see that it is right; its times mean nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("av", reason="PyAV is not installed")

import av

from benchmarks.cuda_timing import DEVICE, INTERPRETED
from benchmarks.videos import faces_of
from merfast.media.faces import Box, YuNet
from merfast.media.frames import PyAVFrame, new_scalers
from merfast.media.lookers import FrameLooker, Looker
from merfast.media.lookers_device import SurfaceLooker
from merfast.media.surfaces import SurfaceFrame
from merfast.media.yunet_torch import YuNetTorch
from merfast.ops import crop_norm_cpu, crop_norm_triton
from merfast.ops.crop_norm import CropSpec
from merfast.types import ByteArray

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("default"),
]

HIGH, WIDE = (64, 100) if INTERPRETED else (720, 1280)
FRAMES = 2 if INTERPRETED else 16
CROP = 24 if INTERPRETED else 224
BATCHES = [2] if INTERPRETED else [1, 8, 16, 64]
THREADS = [1] if INTERPRETED else [1, 4, 8]  # the interpreter runs in one
ROUNDS = 1 if INTERPRETED else 20


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def model(yunet_model: Path | None) -> Path:
    if yunet_model is None or not yunet_model.is_file():
        pytest.skip("needs YuNet's file, in the cache or in MERFAST_DATA")
    return yunet_model


@cache
def pictures(high: int, wide: int) -> list[ByteArray]:
    """A face before a plain wall, at slightly different places."""
    data = os.environ.get("MERFAST_DATA")
    face = faces_of(Path(data) if data else None)[0]
    scale = 0.95 * high / face.shape[0]
    small = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    small = small[:, : wide * 9 // 10]
    out = []
    for i in range(64):
        picture = np.full((high, wide, 3), (60, 90, 110), dtype=np.uint8)
        left = (wide - small.shape[1]) * (i % 16 + 1) // 17
        picture[: small.shape[0], left : left + small.shape[1]] = small
        out.append(picture)
    return out


def decoded(image: ByteArray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="nv12", dst_colorspace=5)


def finish() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.current_stream().synchronize()


def check(got: list[list[Box]], expected: list[list[Box]]) -> None:
    assert [len(boxes) for boxes in got] == [len(boxes) for boxes in expected]
    assert any(expected)
    pairs = [(a, b) for p, q in zip(got, expected, strict=True) for a, b in zip(p, q, strict=True)]
    assert max(np.abs(np.subtract(a, b)).max() for a, b in pairs) <= 0.5


@pytest.mark.parametrize(("batch", "last"), [(0, False), *((n, last) for n in BATCHES for last in (False, True))])
def test_detect(benchmark: Any, model: Path, batch: int, last: bool) -> None:
    """In pictures that are 480 pixels long; 0 is OpenCV, one by one."""
    high, wide = (HIGH, WIDE) if INTERPRETED else (270, 480)
    images = pictures(high, wide)[: max(1, batch)]
    theirs = YuNet(model)
    expected = [theirs.detect(image) for image in images]
    benchmark.group, benchmark.name = (
        f"YuNet in {wide} x {high}, one picture",
        f"torch, {batch} at a time{', channels last' * last}",
    )
    if batch:
        there = torch.from_numpy(np.stack(images)).to(DEVICE)
        ours = YuNetTorch(model, DEVICE, channels_last=last)
        check(ours.detect(there), expected)
        run = lambda: ours.detect(there)  # noqa: E731
    else:
        benchmark.name = "OpenCV on the CPU"
        run = lambda: [theirs.detect(image) for image in images]  # noqa: E731
    benchmark.extra_info["baseline"] = not batch
    shared(benchmark, run, len(images))


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_one_large_picture(benchmark: Any, model: Path, runtime: str) -> None:
    side = 640
    image = pictures(side, side)[0]
    benchmark.group, benchmark.name = f"YuNet in {side} x {side}, the network alone", runtime
    benchmark.extra_info["baseline"] = runtime == "torch"
    if runtime == "torch":
        there, ours = torch.from_numpy(image[None]).to(DEVICE), YuNetTorch(model, DEVICE)

        def run() -> object:
            with torch.inference_mode():
                cells = ours.best_cells(there)
            finish()
            return cells
    else:
        ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        wanted = "CPUExecutionProvider" if INTERPRETED else "CUDAExecutionProvider"
        if wanted not in ort.get_available_providers():
            benchmark.name = "onnxruntime on the CPU, as it has no CUDA here"
            wanted = "CPUExecutionProvider"
        session = ort.InferenceSession(str(model), providers=[wanted])
        values = {"input": image[None, ..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)}
        run = lambda: session.run(None, values)  # noqa: E731
    shared(benchmark, run, 1)


def lookers(model: Path, count: int) -> list[tuple[Looker, list[Any]]]:
    """As many lookers, each with frames of its own."""
    ours, out = YuNetTorch(model, DEVICE), []
    for i in range(count):
        images = pictures(HIGH, WIDE)[i : i + FRAMES]
        frames = [SurfaceFrame.of(decoded(image), 0.2 * k, 1.0, DEVICE) for k, image in enumerate(images)]
        out.append((SurfaceLooker(ours, crop_size=CROP, prepare=crop_norm_triton.prepare), frames))
    return out


def look(looker: Looker, frames: list[Any]) -> list[Any]:
    """What a tracker asks of a group."""
    assert len(looker.thumbnails(frames)) == len(frames)
    found = looker.detect(frames[::2])
    assert all(found)
    return list(looker.crops([(f, [found[i // 2][0].scaled(f.width)]) for i, f in enumerate(frames)]))


@pytest.mark.parametrize("threads", [0, *THREADS])
def test_look(benchmark: Any, model: Path, threads: int) -> None:
    """0 is the CPU's way, from decoded frames in its memory, in one thread."""
    benchmark.group, benchmark.name = f"looker: a frame of {HIGH}p", f"on the device, {threads} threads"
    benchmark.extra_info["baseline"] = not threads
    if not threads:
        benchmark.name = "on the CPU"
        crop = crop_norm_cpu.prepare(CropSpec(CROP))
        looker = FrameLooker(YuNet(model), crop_size=CROP, crop=crop)
        frames = [PyAVFrame(decoded(i), 0.0, 1.0, new_scalers()) for i in pictures(HIGH, WIDE)[:FRAMES]]
        shared(benchmark, lambda: look(looker, frames), FRAMES)
        return
    each = lookers(model, threads)

    def on_a_stream(own: tuple[Looker, list[Any]]) -> None:
        with torch.cuda.stream(torch.cuda.Stream()) if DEVICE.type == "cuda" else nullcontext():
            crops = look(*own)
            finish()
        assert crops[0][0].shape == (CROP, CROP, 3)

    with ThreadPoolExecutor(threads) as pool:
        shared(benchmark, lambda: list(pool.map(on_a_stream, each)), threads * FRAMES)


@pytest.mark.parametrize("place", ["the CPU, C++", "surfaces, Triton"])
def test_crops(benchmark: Any, place: str) -> None:
    """A face of a third of the picture's height in each of the frames."""
    benchmark.group, benchmark.name = f"a crop of {CROP} px out of {HIGH}p", place
    benchmark.extra_info["baseline"] = place.startswith("the CPU")
    box = Box(WIDE / 2, HIGH / 2, HIGH / 3)
    images = pictures(HIGH, WIDE)[:FRAMES]
    crop = crop_norm_cpu.prepare(CropSpec(CROP))
    plain = [PyAVFrame(decoded(i), 0.0, 1.0, new_scalers()) for i in images]
    expected = [frame.crops([box], CROP, crop)[0] for frame in plain]
    if place.startswith("the CPU"):
        shared(benchmark, lambda: [frame.crops([box], CROP, crop) for frame in plain], FRAMES)
        return
    none = YuNetNever()
    looker = SurfaceLooker(none, crop_size=CROP, prepare=crop_norm_triton.prepare)
    wanted = [(SurfaceFrame.of(decoded(i), 0.0, 1.0, DEVICE), [box]) for i in images]
    for (got,), want in zip(looker.crops(wanted), expected, strict=True):
        assert np.abs(np.asarray(torch.as_tensor(got).cpu()).astype(int) - want).max() <= 1

    def run() -> None:
        looker.crops(wanted)
        finish()

    shared(benchmark, run, FRAMES)


class YuNetNever:
    """For lookers that are asked for crops alone."""

    def detect(self, pictures: torch.Tensor) -> list[list[Box]]:
        return [[] for _ in pictures]


def shared(benchmark: Any, run: Callable[[], object], parts: int) -> None:
    """Time `run`, and say what each of its parts takes."""
    run()
    benchmark.pedantic(run, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    if benchmark.stats is not None:
        each = benchmark.stats.stats.median / parts
        benchmark.extra_info.update(seconds_each=each, note=f"{each * 1e6:.0f} us each, {1 / each:.0f} a second")
