"""The C++ crops against the reference: error, what they touch, threads, and what the binding refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from crop_inputs import LAYOUTS, guarded, make_planes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_crop_norm import BAD, BAD_SPECS, bad_arguments
from torch import Tensor

from merfast import _C
from merfast.errors import UnavailableError
from merfast.ops import afg_cpu, crop_norm_cpu
from merfast.ops.crop_norm import LUMA, CropSpec, Planes, crop_norm, resample, sides_of

ISAS = afg_cpu.isas()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ONES, ZEROS = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
Size = int | tuple[int, int]
each_isa = pytest.mark.parametrize("isa", ISAS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def run(
    isa: str, planes: Planes, boxes: Tensor, frame: Tensor | None, size: Size, *, whole: bool = False
) -> np.ndarray:
    """Straight through the binding, into an output full of NaN or of 0xAA."""
    sides = sides_of(size)
    shape = (len(boxes), *sides, 3) if whole else (len(boxes), 3, *sides)
    out = np.full(shape, 0xAA if whole else np.nan, np.uint8 if whole else np.float32)
    y, u, v = (p.numpy() for p in planes[:3])
    numbers = None if frame is None else frame.numpy()
    kernel = _C.CropNormKernel(*sides, whole, ZEROS, ONES, isa)
    kernel.run(y, u, v, *LUMA[planes.matrix], planes.full_range, boxes.double().numpy(), numbers, out)
    return out


def check(isa: str, planes: Planes, boxes: Tensor, frame: Tensor | None, size: Size) -> None:
    """Both errors are against fp64, as parts of 255; the kernel's may be twice the eager one plus a floor.

    The floor is that of weights rounded to fp32, times the largest factor of chroma, with as much for the sums. A
    byte is off by half, and by the same error.
    """
    exact = resample(planes, boxes, frame, size, torch.float64).numpy()
    eager = resample(planes, boxes, frame, size, torch.float32).numpy()
    got = run(isa, planes, boxes, frame, size)
    assert np.isfinite(got).all()
    limit = 2 * np.abs(eager - exact).max(initial=0) / 255 + 2 * 2.2 * 2.0**-23
    error = np.abs(got - exact / 255).max(initial=0)
    assert error <= limit, f"{isa}: error {error:.2e}, limit {limit:.2e}"
    whole = run(isa, planes, boxes, frame, size, whole=True).transpose(0, 3, 1, 2)
    assert np.abs(whole - exact).max(initial=0) <= 0.5 + 255 * limit


@each_isa
@settings(max_examples=120, deadline=None)
@given(
    height=st.sampled_from([1, 2, 3, 8, 31, 64, 97]),
    width=st.sampled_from([1, 2, 3, 5, 16, 17, 33, 70, 131]),
    layout=st.sampled_from(LAYOUTS),
    spare=st.sampled_from([0, 1, 7, 64]),
    full_range=st.booleans(),
    corners=st.lists(st.tuples(st.floats(-80, 150), st.floats(-80, 150)), max_size=3),
    sides=st.tuples(st.floats(0.01, 300), st.floats(0.01, 300)),
    size=st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 30, 48, (1, 33), (40, 3), (17, 32), (31, 50)]),
    seed=st.integers(0, 9),
)
def test_error(
    isa: str,
    height: int,
    width: int,
    layout: str,
    spare: int,
    full_range: bool,
    corners: list[tuple[float, float]],
    sides: tuple[float, float],
    size: Size,
    seed: int,
) -> None:
    planes = make_planes(height, width, layout=layout, frames=2, spare=spare, full_range=full_range, seed=seed)
    boxes = torch.tensor([[x, y, x + sides[0], y + sides[1]] for x, y in corners], dtype=torch.float64).reshape(-1, 4)
    check(isa, planes, boxes, torch.arange(len(boxes)) % 2, size)


@each_isa
@each_layout
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ([40, 30, 264, 254], 48),
        ([40, 30, 264, 254], 224),
        ([0, 0, 301, 277], 1),
        ([-60_000, -60_000, 60_000, 60_000], 7),
        ([100, 100, 101, 101], 64),
        ([33.3, 10.1, 90.9, 200.5], 112),
        ([500, -700, 520, -680], 20),
    ],
    ids=["face", "as-it-is", "picture-to-pixel", "vast", "pixel", "not-square", "outside"],
)
def test_error_on_boxes_of_interest(isa: str, layout: str, box: list[float], size: int) -> None:
    planes = make_planes(277, 301, layout=layout, spare=3, matrix="bt709")
    check(isa, planes, torch.tensor([box], dtype=torch.float64), None, size)


@each_isa
def test_a_crop_does_not_depend_on_the_others(isa: str) -> None:
    planes = make_planes(90, 120, frames=3)
    rng = np.random.default_rng(0)
    corner = rng.uniform(-20, 80, (12, 2))
    boxes = torch.from_numpy(np.concatenate((corner, corner + rng.uniform(1, 90, (12, 2))), 1))
    frame = torch.arange(12) % 3
    together = run(isa, planes, boxes, frame, 20)
    for i in range(12):
        assert np.array_equal(run(isa, planes, boxes[i : i + 1], frame[i : i + 1], 20)[0], together[i])


@each_isa
def test_layouts_agree_to_the_bit(isa: str) -> None:
    planar = make_planes(61, 83, spare=5)
    uv = torch.stack((planar.u, planar.v), -1)
    vu = torch.stack((planar.v, planar.u), -1)
    apart = [torch.stack((p, torch.zeros_like(p)), -1)[..., 0] for p in (planar.u, planar.v)]
    boxes = torch.tensor([[-5.0, 3.0, 60.0, 70.0]])
    expected = run(isa, planar, boxes, None, 19)
    for u, v in ((uv[..., 0], uv[..., 1]), (vu[..., 1], vu[..., 0]), apart):
        assert np.array_equal(run(isa, planar._replace(u=u, v=v), boxes, None, 19), expected)


@each_isa
@each_layout
@pytest.mark.parametrize("side", ["start", "end"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 16), (9, 33), (40, 150)])
def test_nothing_beyond_the_planes_is_touched(isa: str, layout: str, side: str, height: int, width: int) -> None:
    """AddressSanitizer does not see vector intrinsics of a foreign buffer; a forbidden page does."""
    planes = make_planes(height, width, layout=layout, spare=9)
    y = torch.from_numpy(guarded(planes.y.numpy(), side))
    if layout == "nv12":
        shape, strides = (*planes.u.shape, 2), (*planes.u.stride(), 1)
        uv = torch.from_numpy(guarded(planes.u.as_strided(shape, strides).numpy(), side))
        u, v = uv[..., 0], uv[..., 1]
    else:
        u, v = (torch.from_numpy(guarded(p.numpy(), side)) for p in (planes.u, planes.v))
    boxes = torch.tensor(
        [[-9.0, -9.0, width + 9.0, height + 9.0], [0.0, 0.0, width, height], [width - 1.0, height - 1.0, width, height]]
    )
    for size in (3, 20):
        expected = run(isa, planes, boxes, None, size)
        assert np.array_equal(run(isa, planes._replace(y=y, u=u, v=v), boxes, None, size), expected)


@each_isa
def test_only_what_lies_under_the_box_matters(isa: str) -> None:
    """The rest of the picture may change, but for what the filter reaches: one output pixel around the box."""
    planes = make_planes(200, 200)
    other = [torch.full_like(p, 77) for p in planes[:3]]
    other[0][:, 40:160, 40:160] = planes.y[:, 40:160, 40:160]
    for i, p in ((1, planes.u), (2, planes.v)):
        other[i][:, 20:80, 20:80] = p[:, 20:80, 20:80]
    boxes, size = torch.tensor([[60.0, 60.0, 140.0, 140.0]]), 8
    changed = planes._replace(y=other[0], u=other[1], v=other[2])
    assert np.array_equal(run(isa, changed, boxes, None, size), run(isa, planes, boxes, None, size))


@each_isa
def test_many_threads(isa: str) -> None:
    crop = crop_norm_cpu.prepare(CropSpec(33, torch.float32, MEAN, STD), isa=isa)
    work = []
    for seed in range(8):
        boxes = torch.tensor([[seed, 2.0, 60.0 + 9 * seed, 50.0], [-9.0, 4.0 * seed, 90.0, 99.0]])
        work.append((make_planes(100, 130, layout=LAYOUTS[seed % 2], seed=seed), boxes))
    expected = [crop(planes, boxes, None) for planes, boxes in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for got, want in zip(pool.map(lambda w: crop(*w, None), work), expected, strict=True):
                assert torch.equal(got, want)


@each_isa
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
def test_prepare_gives_what_the_reference_gives(isa: str, dtype: torch.dtype) -> None:
    planes = make_planes(90, 70, layout="nv12", frames=2)
    boxes, frame = torch.tensor([[3.0, 4.0, 60.0, 61.0], [-5.0, 1.0, 20.0, 30.0]]), torch.tensor([1, 0])
    spec = CropSpec(24) if dtype == torch.uint8 else CropSpec(24, dtype, MEAN, STD)
    got, expected = (
        crop_norm_cpu.prepare(spec, isa=isa)(planes, boxes, frame),
        crop_norm(planes, boxes, frame, spec=spec),
    )
    assert (got.dtype, got.shape, got.is_contiguous()) == (expected.dtype, expected.shape, True)
    step = {torch.uint8: 1.0, torch.float32: 2e-6, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}[dtype]
    assert (got.double() - expected.double()).abs().max() <= step


@each_isa
def test_no_boxes(isa: str) -> None:
    crop = crop_norm_cpu.prepare(CropSpec(24), isa=isa)
    assert crop(make_planes(9, 9), torch.zeros(0, 4), None).shape == (0, 24, 24, 3)


def test_prepare_routes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = _C.CropNormKernel

    def record(*arguments: object) -> _C.CropNormKernel:
        kernel = original(*arguments)  # type: ignore[arg-type]
        seen.append(kernel.isa)
        return kernel

    monkeypatch.setattr(_C, "CropNormKernel", record)
    for isa in ("auto", *ISAS):
        crop_norm_cpu.prepare(CropSpec(4), isa=isa)
    assert seen == [ISAS[0], *ISAS]
    assert ISAS[-1] == "generic"


@pytest.mark.parametrize("case", BAD)
def test_prepare_refuses_what_the_reference_refuses(case: str) -> None:
    with pytest.raises(ValueError, match=f"crop_norm {BAD[case][1]}"):
        crop_norm_cpu.prepare(CropSpec(2))(*bad_arguments(case))


@pytest.mark.parametrize("case", BAD_SPECS)
def test_prepare_refuses_specs(case: str) -> None:
    spec, message = BAD_SPECS[case]
    with pytest.raises(ValueError, match=f"crop_norm {message}"):
        crop_norm_cpu.prepare(spec)


def test_prepare_refuses_other_devices_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="crop_norm boxes: got meta, expected cpu"):
        crop_norm_cpu.prepare(CropSpec(2))(make_planes(4, 4), torch.zeros(1, 4, device="meta"), None)
    with pytest.raises(UnavailableError, match=r"got isa 'neon', expected auto, .*generic"):
        crop_norm_cpu.prepare(CropSpec(2), isa="neon")
    monkeypatch.setattr(afg_cpu, "_missing", ImportError("No module named 'merfast._C'"))
    with pytest.raises(UnavailableError, match=r"got No module .*, expected merfast\._C"):
        crop_norm_cpu.prepare(CropSpec(2))


B = np.uint8
READ_ONLY = np.zeros((1, 2, 2, 3), B)
READ_ONLY.flags.writeable = False
BINDING: dict[str, tuple[dict[str, Any], str]] = {
    "y-rank": ({"y": np.zeros((4, 4), B)}, r"y: got 2 dimensions, expected 3"),
    "y-dtype": ({"y": np.zeros((1, 4, 4), np.int8)}, r"y: got int8 \[1, 4, 4\], expected uint8 \[1, 4, 4\]"),
    "y-empty": ({"y": np.zeros((1, 4, 0), B)}, r"y: got \[1, 4, 0\], expected at least 1"),
    "y-columns": ({"y": np.zeros((1, 4, 8), B)[..., ::2]}, r"y: got columns 2 bytes apart, expected 1"),
    "u-shape": ({"u": np.zeros((1, 4, 4), B)}, r"u: got uint8 \[1, 4, 4\], expected uint8 \[1, 2, 2\]"),
    "v-rank": ({"v": np.zeros((2, 2), B)}, r"v: got uint8 \[2, 2\], expected uint8 \[1, 2, 2\]"),
    "v-strides": ({"v": np.zeros((1, 2, 5), B)[..., :2]}, r"u, v: got strides \[4, 2, 1\] and \[10, 5, 1\]"),
    "uv-columns": (dict.fromkeys("uv", np.zeros((1, 2, 6), B)[..., ::3]), r"u, v: got strides \[12, 6, 3\]"),
    "matrix": ({"red": 0.9, "blue": 0.2}, r"matrix: got 0.9.* and 0.2.*, expected weights of red and blue"),
    "boxes-dtype": ({"boxes": np.zeros((1, 4), np.float32)}, r"boxes: got float32 \[1, 4\], expected float64 \[1, 4\]"),
    "boxes-shape": ({"boxes": np.zeros((1, 3))}, r"boxes: got float64 \[1, 3\], expected float64 \[1, 4\]"),
    "boxes-rank": ({"boxes": np.zeros(4)}, r"boxes: got 1 dimensions, expected 2"),
    "boxes-values": ({"boxes": np.array([[0, 0, np.inf, 1]])}, r"boxes: got \[0, 0, inf, 1\] in row 0, expected left"),
    "frame-dtype": ({"frame": np.zeros(1, np.int32)}, r"frame: got int32 \[1\], expected int64 \[1\]"),
    "frame-shape": ({"frame": np.zeros(2, np.int64)}, r"frame: got int64 \[2\], expected int64 \[1\]"),
    "frame-values": ({"frame": np.array([-1])}, r"frame: got -1, expected 0 to 0"),
    "out-shape": ({"out": np.zeros((1, 3, 2, 2), B)}, r"out: got uint8 \[1, 3, 2, 2\], expected uint8 \[1, 2, 2, 3\]"),
    "out-dtype": ({"out": np.zeros((1, 2, 2, 3), np.float32)}, r"out: got float32 .*, expected uint8"),
    "out-strides": ({"out": np.zeros((1, 2, 3, 2), B).transpose(0, 1, 3, 2)}, r"out: got non-contiguous"),
    "out-read-only": ({"out": READ_ONLY}, r"out: got a read-only array, expected a writeable one"),
}


@pytest.mark.parametrize("case", BINDING)
def test_binding_refuses(case: str) -> None:
    change, message = BINDING[case]
    arguments: dict[str, Any] = {
        "y": np.zeros((1, 4, 4), B),
        "u": np.zeros((1, 2, 2), B),
        "v": np.zeros((1, 2, 2), B),
        "red": 0.299,
        "blue": 0.114,
        "full_range": False,
        "boxes": np.array([[0.0, 0, 2, 2]]),
        "frame": np.zeros(1, np.int64),
        "out": np.zeros((1, 2, 2, 3), B),
    }
    kernel = _C.CropNormKernel(2, 2, True, ZEROS, ONES, "auto")
    kernel.run(**arguments)
    with pytest.raises(ValueError, match=f"crop_norm {message}"):
        kernel.run(**(arguments | change))


@pytest.mark.parametrize(
    ("size", "mean", "std", "isa", "message"),
    [
        ((0, 2), ZEROS, ONES, "auto", r"crop_norm size: got \[0, 2\], expected 1 to 16384"),
        ((2, 20_000), ZEROS, ONES, "auto", r"crop_norm size: got \[2, 20000\], expected 1 to 16384"),
        ((2, 2), ZEROS, ZEROS, "auto", "crop_norm mean, std: got 0.* and 0.*, expected finite numbers, std above 0"),
        ((2, 2), (np.nan, 0, 0), ONES, "auto", "crop_norm mean, std: got nan"),
        ((2, 2), ZEROS, ONES, "neon", "isa: got 'neon', expected auto, .*generic"),
    ],
)
def test_binding_refuses_specs(size: tuple[int, int], mean: Any, std: Any, isa: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.CropNormKernel(*size, True, mean, std, isa)
