"""The Triton crop kernel against the reference: error, layouts, types, frames, what it refuses."""

from __future__ import annotations

import pytest
import torch
from crop_inputs import LAYOUTS, make_planes
from torch import Tensor

from merfast.ops import crop_norm_triton
from merfast.ops.crop_norm import CropSpec, Planes, crop_norm, resample, sides_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

# Size of the crops, and boxes in a picture of 51 x 73. The interpreter takes a millisecond for each tap.
CASES: dict[str, tuple[int | tuple[int, int], list[list[float]]]] = {
    "shrunk": (13, [[10.0, 5.0, 50.0, 45.0], [3.25, 7.5, 40.75, 30.125]]),
    "grown": (24, [[20.0, 20.0, 25.0, 25.0], [31.3, 40.9, 32.1, 42.2]]),
    "outside": (13, [[-20.0, -10.0, 20.0, 30.0], [60.0, 40.0, 90.0, 70.0], [-90.0, 200.0, -50.0, 240.0]]),
    "around": (30, [[-60.0, -70.0, 150.0, 120.0]]),
    "wide": ((5, 21), [[0.0, 0.0, 73.0, 51.0], [10.0, 5.0, 50.0, 12.5]]),
    "one": (1, [[7.0, 6.0, 13.0, 11.0], [72.0, 50.0, 73.0, 51.0]]),
}


def on(planes: Planes, device: torch.device) -> Planes:
    """The same strides on a device."""
    if planes.u.stride(2) == 2:
        rows, columns = planes.u.shape[1:]
        strides = (planes.u.stride(0), planes.u.stride(1), 2, 1)
        uv = planes.u.as_strided((len(planes.u), rows, columns, 2), strides).to(device)
        return planes._replace(y=planes.y.to(device), u=uv[..., 0], v=uv[..., 1])
    return planes._replace(y=planes.y.to(device), u=planes.u.to(device), v=planes.v.to(device))


def run(planes: Planes, boxes: Tensor, frame: Tensor | None, spec: CropSpec, device: torch.device) -> Tensor:
    moved = None if frame is None else frame.to(device)
    return crop_norm_triton.prepare(spec)(on(planes, device), boxes.to(device), moved).cpu()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_error(case: str, layout: str, device: torch.device) -> None:
    """Against fp64. In fp32 a place is off by 2^-24 of its distance from the box's corner, a few times over, and a
    value by as many parts of 1 between neighbours that differ as much as can be; chroma's factors are up to 2."""
    size, corners = CASES[case]
    boxes, planes = torch.tensor(corners), make_planes(51, 73, layout=layout, spare=5, matrix="bt709")
    exact = resample(planes, boxes, None, size, torch.float64)
    got = run(planes, boxes, None, CropSpec(size, torch.float32), device)
    side = float((boxes[:, 2:] - boxes[:, :2]).max())
    assert got.shape == (len(boxes), 3, *sides_of(size))
    assert (got - exact / 255).abs().max() <= 4 * 2.0**-23 * (side + 4)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("full_range", [False, True])
def test_normalised_types_and_many_frames(dtype: torch.dtype, full_range: bool, device: torch.device) -> None:
    planes = make_planes(50, 61, layout="nv12", frames=3, full_range=full_range)
    boxes = torch.tensor([[5.0, 5.0, 45.0, 45.0], [0.0, 0.0, 20.0, 20.0], [-3.0, 2.0, 30.0, 33.0]])
    frame = torch.tensor([2, 0, 1])
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    exact = (resample(planes, boxes, frame, 17, torch.float64) / 255 - mean) / std
    got = run(planes, boxes, frame, CropSpec(17, dtype, MEAN, STD), device)
    assert got.dtype == dtype
    truncated = device.type == "cpu" and dtype == torch.bfloat16  # the interpreter does not round to bf16
    limit = (1 + truncated) * ROUNDING[dtype] * exact.abs() + 4 * 2.0**-23 * 44 / min(STD)
    assert ((got - exact).abs() <= limit).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes(layout: str, device: torch.device) -> None:
    planes, boxes = make_planes(64, 64, layout=layout), torch.tensor([[4.0, 6.0, 60.0, 62.0], [1.0, 2.0, 9.0, 10.0]])
    exact = resample(planes, boxes, None, 16, torch.float64).permute(0, 2, 3, 1)
    got = run(planes, boxes, None, CropSpec(16), device)
    assert (got.dtype, got.shape) == (torch.uint8, (2, 16, 16, 3))
    assert (got - exact).abs().max() <= 0.5 + 1e-2
    wide = run(planes, boxes, None, CropSpec((3, 16)), device)
    assert (wide.permute(0, 3, 1, 2) - resample(planes, boxes, None, (3, 16), torch.float64)).abs().max() <= 0.5 + 1e-2


def test_no_boxes(device: torch.device) -> None:
    assert run(make_planes(8, 8), torch.zeros(0, 4), None, CropSpec(4), device).shape == (0, 4, 4, 3)


def test_the_kernel_ran(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """`prepare` launches the kernel and does not fall back to the reference."""
    launches: list[tuple[int, ...]] = []
    kernel = crop_norm_triton.crop_norm_kernel

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(crop_norm_triton, "crop_norm_kernel", Recorder())
    planes, boxes = make_planes(40, 40), torch.tensor([[4.0, 6.0, 30.0, 32.0]] * 3)
    got = run(planes, boxes, None, CropSpec(20), device)
    assert launches == [(3, 2)]
    assert (got.int() - crop_norm(planes, boxes, spec=CropSpec(20)).int()).abs().max() <= 1


def test_refuses(device: torch.device) -> None:
    crop, planes = crop_norm_triton.prepare(CropSpec(4)), on(make_planes(8, 8), device)
    with pytest.raises(ValueError, match=r"crop_norm boxes: got torch.int64 \[1, 4\], expected"):
        crop(planes, torch.zeros(1, 4, dtype=torch.int64, device=device), None)
    with pytest.raises(ValueError, match=r"crop_norm boxes: got meta, expected"):
        crop(planes, torch.zeros(1, 4, device="meta"), None)
