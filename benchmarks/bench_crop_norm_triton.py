"""Faces to normalised crops on a GPU: straight from NV12 planes, against converting whole pictures and cutting those.

    python -m pytest benchmarks/bench_crop_norm_triton.py --benchmark-only

A face of 224 x 224 pixels in each picture of 720p. `eager` is the op's reference, box by box; `whole-frame` converts
every picture in torch and then cuts and scales, `compiled` is that with the conversion compiled. `floor-copy` copies as
many bytes as the planes under the boxes and the result have; `triton-graph` leaves the host out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.cuda_timing import BACKEND, CALLS, DEVICE, INTERPRETED, Call, check_error, copies, on_a_gpu, run
from merfast.ops import crop_norm_triton
from merfast.ops.crop_norm import CropSpec, Planes, crop_norm, resample

pytestmark = on_a_gpu

HIGH, WIDE, SIDE, FACES = (40, 60, 20, 2) if INTERPRETED else (720, 1280, 224, 64)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [7] if INTERPRETED else [48, 224]
# What takes longest to prepare comes last.
IMPLEMENTATIONS = ["floor-copy", "eager", "whole-frame", "triton", "triton-graph", "compiled"]


@cache
def inputs() -> tuple[list[Planes], Tensor, Tensor]:
    """Several batches of pictures, boxes, and the picture that each box is in."""
    random = torch.Generator(DEVICE).manual_seed(0)

    def smooth(rows: int, columns: int, low: int, high: int, channels: int) -> Tensor:
        """Pale colours that change slowly: nothing has to be clamped."""
        coarse = torch.rand(FACES, channels, rows // 10, columns // 10, generator=random, device=DEVICE)
        fine = functional.interpolate(coarse, (rows, columns), mode="bilinear")
        return (low + (high - low) * fine).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def pictures() -> Planes:
        uv = smooth(HIGH // 2, WIDE // 2, 112, 145, 2)
        return Planes(smooth(HIGH, WIDE, 60, 200, 1)[..., 0], uv[..., 0], uv[..., 1])

    corners = torch.rand(FACES, 2, generator=random, device=DEVICE) * torch.tensor([WIDE - SIDE, HIGH - SIDE]).to(
        DEVICE
    )
    corners = corners.round()
    boxes, frame = torch.cat([corners, corners + SIDE], 1), torch.arange(FACES, device=DEVICE)
    return [pictures() for _ in range(CALLS)], boxes, frame


def moved_bytes(size: int) -> int:
    """The planes under the boxes read once, the crops written once."""
    return FACES * (SIDE * SIDE * 3 // 2 + 3 * size * size * 2)


def convert(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Whole pictures, BT.601 in limited range, to normalised RGB `[F, 3, H, W]`."""
    luma = (y.float() - 16) * (255 / 219)
    chroma = functional.interpolate(torch.stack([u, v], 1).float() - 128, scale_factor=2.0, mode="bilinear")
    p_b, p_r = (chroma * (255 / 224)).unbind(1)
    red, blue = luma + 1.402 * p_r, luma + 1.772 * p_b
    rgb = torch.stack([red, (luma - 0.299 * red - 0.114 * blue) / 0.587, blue], 1).clamp(0, 255) / 255
    mean, std = (rgb.new_tensor(value)[:, None, None] for value in (MEAN, STD))
    return (rgb - mean) / std


def whole(planes: Planes, corners: list[list[int]], size: int, conversion: Callable[..., Tensor]) -> Tensor:
    pictures = conversion(planes.y, planes.u, planes.v)
    faces = torch.stack([p[:, y : y + SIDE, x : x + SIDE] for p, (x, y) in zip(pictures, corners, strict=True)])
    if size != SIDE:
        faces = functional.interpolate(faces, (size, size), mode="bilinear", antialias=True)
    return faces.bfloat16()


def calls_for(implementation: str, size: int) -> list[Call]:
    batches, boxes, frame = inputs()
    spec = CropSpec(size, torch.bfloat16, MEAN, STD)
    if implementation == "floor-copy":
        return copies(moved_bytes(size))
    mean, std = (torch.tensor(v, dtype=torch.float64, device=DEVICE)[:, None, None] for v in (MEAN, STD))
    exact = (resample(batches[0], boxes, frame, size, torch.float64) / 255 - mean) / std
    eager = crop_norm(batches[0], boxes, frame, spec=spec)
    if implementation == "eager":
        return [lambda p=p: crop_norm(p, boxes, frame, spec=spec) for p in batches]
    if implementation.startswith("triton"):
        crop = crop_norm_triton.prepare(spec)
        check_error(crop(batches[0], boxes, frame), eager, exact)
        return [lambda p=p: crop(p, boxes, frame) for p in batches]
    torch.compiler.reset()
    compiled = implementation == "compiled"
    conversion = torch.compile(convert, dynamic=False, backend=BACKEND) if compiled else convert
    corners = [[int(x), int(y)] for x, y in boxes[:, :2].tolist()]
    # Chroma is filtered twice here, and not sited to the left: nearly the same colours.
    assert (whole(batches[0], corners, size, conversion) - exact).abs().mean() < 3 / 255 / min(STD)
    return [lambda p=p: whole(p, corners, size, conversion) for p in batches]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_crop_norm(benchmark: Any, size: int, implementation: str) -> None:
    calls = calls_for(implementation, size)
    graph = implementation.endswith("graph")
    run(benchmark, f"crop_norm {FACES} to {size} px", implementation, calls, moved=moved_bytes(size), graph=graph)
