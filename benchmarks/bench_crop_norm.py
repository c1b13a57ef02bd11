"""Faces to normalised crops: straight from the planes, against converting whole frames and cutting those.

Sixteen faces in 720p pictures to fp32 [16, 3, S, S]: one in each picture, with sides of 224 to 320 pixels; or sixteen
of 224 pixels in the same picture, most of which they cover, so that converting it whole, once, wastes little. One
thread everywhere. `opencv-linear` does not antialias, and so does less. The floor copies what has to be touched: the
planes under the boxes, and as many bytes as the result has. `planes-eager` is the reference in torch; torch.compile has
no graph for it, since what it reads depends on the values of the boxes.
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
from merfast.ops import afg_cpu, crop_norm, crop_norm_cpu
from merfast.ops.crop_norm import CropSpec

HIGH, WIDE, FACES = 720, 1280, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GAIN, BIAS = (
    torch.tensor(v)[:, None, None]
    for v in ([1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)])
)

Pictures = list[tuple[np.ndarray, av.VideoFrame, list[tuple[int, int, int]]]]
"""I420 array [HIGH * 3 / 2, WIDE], the same as a frame, and left, top and side of its faces."""


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
    count, largest = (FACES, 320) if request.param == "16 pictures" else (1, 224)
    out: Pictures = []
    for _ in range(count):
        # Pale colours: nothing has to be clamped, and all ways agree.
        luma, u, v = rng.integers(60, 200, (45, 80)), *rng.integers(112, 145, (2, 23, 40))
        smooth = [
            cv2.resize(plane.astype(np.uint8), (WIDE // part, HIGH // part), interpolation=cv2.INTER_CUBIC).reshape(-1)
            for plane, part in ((luma, 1), (u, 2), (v, 2))
        ]
        planes = np.concatenate(smooth).reshape(HIGH * 3 // 2, WIDE)
        sides = rng.integers(224, largest + 1, FACES // count).tolist()
        faces = [(int(rng.integers(0, WIDE - side)), int(rng.integers(0, HIGH - side)), side) for side in sides]
        out.append((planes, av.VideoFrame.from_ndarray(planes, format="yuv420p"), faces))
    return out


def copied(pictures: Pictures, size: int) -> Callable[[], torch.Tensor]:
    out = np.empty((FACES, 3, size, size), np.float32)
    source = out.copy()

    def run() -> torch.Tensor:
        for planes, _, faces in pictures:
            chroma = planes[HIGH:].reshape(2, HIGH // 2, WIDE // 2)
            for x, y, side in faces:
                half = side // 2
                planes[y : y + side, x : x + side].copy()
                chroma[:, y // 2 : y // 2 + half, x // 2 : x // 2 + half].copy()
        np.copyto(out, source)
        return torch.from_numpy(out)

    return run


def whole(
    pictures: Pictures, size: int, convert: Callable[[np.ndarray, av.VideoFrame], Any], smooth: bool = True
) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        out = torch.empty(FACES, 3, size, size)
        crops = iter(out)
        for planes, frame, faces in pictures:
            image = convert(planes, frame)
            for x, y, side in faces:
                method = cv2.INTER_AREA if smooth and size < side else cv2.INTER_LINEAR
                crop = cv2.resize(image[y : y + side, x : x + side], (size, size), interpolation=method)
                # Face by face, while it is in the cache: faster than the whole batch at once.
                torch.mul(torch.from_numpy(crop).permute(2, 0, 1), GAIN, out=next(crops)).add_(BIAS)
        return out

    return run


def with_swscale(pictures: Pictures, size: int) -> Callable[[], torch.Tensor]:
    scaler = VideoReformatter()
    options: dict[str, Any] = {"format": "rgb24", "interpolation": Interpolation.BILINEAR, "threads": 1}
    return whole(pictures, size, lambda planes, frame: scaler.reformat(frame, **options).to_ndarray())


def with_opencv(pictures: Pictures, size: int, smooth: bool = True) -> Callable[[], torch.Tensor]:
    image = np.empty((HIGH, WIDE, 3), np.uint8)
    return whole(pictures, size, lambda planes, frame: cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420, image), smooth)


def from_planes(pictures: Pictures, size: int, isa: str) -> Callable[[], torch.Tensor]:
    spec = CropSpec(size, torch.float32, MEAN, STD)
    crop = crop_norm.prepare(spec) if isa == "eager" else crop_norm_cpu.prepare(spec, isa=isa)

    def run() -> torch.Tensor:
        parts = []
        for _, frame, faces in pictures:
            planes = PyAVFrame(frame, 0.0, 1.0, {}).planes()  # type: ignore[arg-type]
            assert planes is not None
            boxes = torch.tensor([[x, y, x + side, y + side] for x, y, side in faces], dtype=torch.float64)
            parts.append(crop(planes, boxes, None))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return run


WAYS: dict[str, Callable[[Pictures, int], Callable[[], torch.Tensor]]] = {
    "floor-copy": copied,
    "whole-frame-swscale": with_swscale,
    "whole-frame-opencv": with_opencv,
    "whole-frame-opencv-linear": lambda pictures, size: with_opencv(pictures, size, smooth=False),
    **{f"planes-{isa}": lambda p, s, isa=isa: from_planes(p, s, isa) for isa in ("eager", *afg_cpu.isas())},  # type: ignore[misc]
}


@pytest.mark.parametrize("size", [48, 224])
@pytest.mark.parametrize("way", WAYS)
def test_crops(benchmark: BenchmarkFixture, pictures: Pictures, way: str, size: int) -> None:
    benchmark.group = (
        f"{FACES} crops of {size} x {size} out of {'one picture' if len(pictures) == 1 else '16 pictures'}"
    )
    benchmark.extra_info["baseline"] = way == "whole-frame-opencv"
    run = WAYS[way](pictures, size)
    got = benchmark(run)
    assert got.shape == (FACES, 3, size, size)
    if way != "floor-copy":
        expected = from_planes(pictures, size, "generic")()
        assert (got - expected).abs().mean() < 3 / 255 / min(STD)
