"""Faces to normalised crops: straight from the planes, against converting whole frames and cutting those.

Sixteen faces of 224 x 224 pixels in 720p pictures, in a picture each or all in one, to fp32 [16, 3, S, S]. One thread
everywhere. The floor copies what has to be touched: the planes under the boxes, and as many bytes as the result has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from pytest_benchmark.fixture import BenchmarkFixture

from merfast.media.decode_pyav import PyAVFrame
from merfast.ops import afg_cpu, crop_norm_cpu
from merfast.ops.crop_norm import CropSpec

HIGH, WIDE, SIDE, FACES = 720, 1280, 224, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GAIN, BIAS = (
    torch.tensor(v)[:, None, None]
    for v in ([1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)])
)

Pictures = list[tuple[np.ndarray, av.VideoFrame, list[tuple[int, int]]]]
"""I420 array [HIGH * 3 / 2, WIDE], the same as a frame, and the left upper corners of its faces."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture(scope="module", params=["16 pictures", "one picture"])
def pictures(request: pytest.FixtureRequest) -> Pictures:
    rng = np.random.default_rng(0)
    count = FACES if request.param == "16 pictures" else 1
    out: Pictures = []
    for _ in range(count):
        # Pale colours: nothing has to be clamped, and all ways agree.
        luma, u, v = rng.integers(60, 200, (45, 80)), *rng.integers(112, 145, (2, 23, 40))
        smooth = [
            cv2.resize(plane.astype(np.uint8), (WIDE // part, HIGH // part), interpolation=cv2.INTER_CUBIC).reshape(-1)
            for plane, part in ((luma, 1), (u, 2), (v, 2))
        ]
        planes = np.concatenate(smooth).reshape(HIGH * 3 // 2, WIDE)
        corners = zip(
            rng.integers(0, WIDE - SIDE, FACES // count), rng.integers(0, HIGH - SIDE, FACES // count), strict=True
        )
        out.append(
            (planes, av.VideoFrame.from_ndarray(planes, format="yuv420p"), [(int(x), int(y)) for x, y in corners])
        )
    return out


def copied(pictures: Pictures, size: int) -> Callable[[], torch.Tensor]:
    out = np.empty((FACES, 3, size, size), np.float32)
    source = out.copy()
    half = SIDE // 2

    def run() -> torch.Tensor:
        for planes, _, corners in pictures:
            chroma = planes[HIGH:].reshape(2, HIGH // 2, WIDE // 2)
            for x, y in corners:
                planes[y : y + SIDE, x : x + SIDE].copy()
                chroma[:, y // 2 : y // 2 + half, x // 2 : x // 2 + half].copy()
        np.copyto(out, source)
        return torch.from_numpy(out)

    return run


def whole(
    pictures: Pictures, size: int, convert: Callable[[np.ndarray, av.VideoFrame], Any]
) -> Callable[[], torch.Tensor]:
    method = cv2.INTER_AREA if size < SIDE else cv2.INTER_LINEAR

    def run() -> torch.Tensor:
        crops = np.empty((FACES, size, size, 3), np.uint8)
        n = 0
        for planes, frame, corners in pictures:
            image = convert(planes, frame)
            for x, y in corners:
                cv2.resize(image[y : y + SIDE, x : x + SIDE], (size, size), crops[n], interpolation=method)
                n += 1
        return (
            torch.from_numpy(crops)
            .permute(0, 3, 1, 2)
            .to(torch.float32, memory_format=torch.contiguous_format)
            .mul_(GAIN)
            .add_(BIAS)
        )

    return run


def with_swscale(pictures: Pictures, size: int) -> Callable[[], torch.Tensor]:
    scaler = VideoReformatter()
    options: dict[str, Any] = {"format": "rgb24", "interpolation": Interpolation.BILINEAR, "threads": 1}
    return whole(pictures, size, lambda planes, frame: scaler.reformat(frame, **options).to_ndarray())


def with_opencv(pictures: Pictures, size: int) -> Callable[[], torch.Tensor]:
    image = np.empty((HIGH, WIDE, 3), np.uint8)
    return whole(pictures, size, lambda planes, frame: cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420, image))


def from_planes(pictures: Pictures, size: int, isa: str) -> Callable[[], torch.Tensor]:
    crop = crop_norm_cpu.prepare(CropSpec(size, torch.float32, MEAN, STD), isa=isa)

    def run() -> torch.Tensor:
        parts = []
        for _, frame, corners in pictures:
            planes = PyAVFrame(frame, 0.0, 1.0, {}).planes()  # type: ignore[arg-type]
            assert planes is not None
            boxes = torch.tensor([[x, y, x + SIDE, y + SIDE] for x, y in corners], dtype=torch.float64)
            parts.append(crop(planes, boxes, None))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return run


WAYS: dict[str, Callable[[Pictures, int], Callable[[], torch.Tensor]]] = {
    "floor-copy": copied,
    "whole-frame-swscale": with_swscale,
    "whole-frame-opencv": with_opencv,
    **{f"planes-{isa}": lambda p, s, isa=isa: from_planes(p, s, isa) for isa in afg_cpu.isas()},  # type: ignore[misc]
}


@pytest.mark.parametrize("size", [48, 224])
@pytest.mark.parametrize("way", WAYS)
def test_crops(benchmark: BenchmarkFixture, pictures: Pictures, way: str, size: int) -> None:
    benchmark.group = (
        f"{FACES} crops of {size} x {size} out of {'one picture' if len(pictures) == 1 else '16 pictures'}"
    )
    benchmark.extra_info["baseline"] = way == "whole-frame-swscale"
    run = WAYS[way](pictures, size)
    got = benchmark(run)
    assert got.shape == (FACES, 3, size, size)
    if way != "floor-copy":
        expected = from_planes(pictures, size, "generic")()
        assert (got - expected).abs().mean() < 3 / 255 / min(STD)
