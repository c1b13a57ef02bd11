"""The Triton masked GroupNorm with GELU against torch sample by sample: error in each dtype, invariance, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_group_norm_gelu import BAD, BIAS, SIZES, WEIGHT, X, arguments_of, make, one_by_one
from torch import Tensor

from merfast.errors import UnavailableError
from merfast.ops import group_norm_gelu_triton
from merfast.ops.group_norm_gelu_triton import BLOCK, LONG, LONG_BLOCK, LONGEST_ROW, launch_options

each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)


def inputs(
    lengths: list[int], frames: int, channels: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, sizes, weight, bias = make(lengths, frames, channels)
    return x.to(device, dtype), sizes.to(device), weight.to(device, dtype), bias.to(device, dtype)


def check(
    lengths: list[int], frames: int, channels: int, groups: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Errors are against fp64 on inputs already rounded; the kernel's may be twice torch's plus one last rounding."""
    x, sizes, weight, bias = inputs(lengths, frames, channels, dtype, device)
    exact = one_by_one(x.double(), sizes, weight.double(), bias.double(), groups)
    # What torch.empty hands out next is likely to be this.
    torch.full((x.numel(),), torch.nan, device=device, dtype=dtype)
    got = group_norm_gelu_triton.prepare(weight, bias, groups)(x, sizes)
    assert got.dtype == dtype
    assert got.shape == x.shape
    if not got.numel():
        return
    eager_error = (one_by_one(x, sizes, weight, bias, groups) - exact).abs().max().item()
    floor = max(1.0, exact.abs().max().item()) * max(torch.finfo(dtype).eps / 2, 1e-6)
    error = (got - exact).abs().max().item()
    assert error <= 2 * eager_error + floor, f"{dtype}: error {error:.2e}, eager {eager_error:.2e}, floor {floor:.1e}"
    beyond = torch.arange(frames, device=device) >= sizes[:, None, None]
    assert not got[beyond.expand_as(got)].any()


@each_dtype
@pytest.mark.parametrize(
    ("lengths", "frames", "channels", "groups"),
    [
        ([300, 0, 1, 299], 300, 6, 6),
        ([LONGEST_ROW + 1, BLOCK, BLOCK + 1, 5], LONGEST_ROW + 1, 2, 2),
        ([LONGEST_ROW, 17], LONGEST_ROW, 2, 2),
        ([LONG + 1, LONG_BLOCK], LONG + 1, 2, 2),
        ([90, 0, 1], 100, 12, 3),
        ([7, 3], 7, 5, 1),
        ([1], 1, 1, 1),
        ([], 8, 4, 4),
        ([0, 0], 0, 4, 4),
    ],
    ids=["rows", "blocks", "longest-row", "long", "groups", "one-group", "one", "no-samples", "no-frames"],
)
def test_error(
    dtype: torch.dtype, lengths: list[int], frames: int, channels: int, groups: int, device: torch.device
) -> None:
    check(lengths, frames, channels, groups, dtype, device)


@each_dtype
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), max_size=3),
    extra=st.integers(0, 40),
    groups=st.integers(1, 4),
    each=st.integers(1, 3),
)
def test_error_on_any_shape(
    dtype: torch.dtype, lengths: list[int], extra: int, groups: int, each: int, device: torch.device
) -> None:
    check(lengths, max(lengths, default=0) + extra, groups * each, groups, dtype, device)


def test_a_mean_far_from_zero_in_blocks(device: torch.device) -> None:
    """The first block's mean differs from the second's, and both are far from zero."""
    frames = LONGEST_ROW + 5000
    x, sizes, weight, bias = inputs([frames], frames, 2, torch.float32, device)
    x += 100.0
    x[:, :, BLOCK:] += 50.0
    exact = one_by_one(x.double(), sizes, weight.double(), bias.double(), 2)
    got = group_norm_gelu_triton.prepare(weight, bias, 2)(x, sizes)
    assert (got - exact).abs().max() < 2e-5


def test_result_does_not_depend_on_the_batch(device: torch.device) -> None:
    x, sizes, weight, bias = inputs([70, 300, 1], 300, 6, torch.float32, device)
    op = group_norm_gelu_triton.prepare(weight, bias, 6)
    together = op(x, sizes)
    for b in range(3):
        assert torch.equal(op(x[b : b + 1], sizes[b : b + 1])[0], together[b])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's inf - inf
def test_values_that_are_not_finite_stay_in_their_group(bad: float, device: torch.device) -> None:
    x, sizes, weight, bias = inputs([50, 40], 50, 6, torch.float32, device)
    op = group_norm_gelu_triton.prepare(weight, bias, 6)
    clean = op(x, sizes)
    x[1, 3, 7] = bad
    got = op(x, sizes)
    assert got[1, 3, :40].isnan().all()
    got[1, 3] = clean[1, 3]
    assert torch.equal(got, clean)


def test_views_and_autograd(device: torch.device) -> None:
    x, sizes, weight, bias = inputs([9, 4], 9, 6, torch.float32, device)
    op = group_norm_gelu_triton.prepare(weight, bias.clone().requires_grad_(), 3)
    plain = op(x, sizes)
    for other in (x.clone().requires_grad_(), x.mT.contiguous().mT):
        assert torch.equal(op(other, sizes), plain)
        assert not op(other, sizes).requires_grad
    weight.fill_(3.0)
    assert torch.equal(op(x, sizes), plain)


@pytest.mark.parametrize("case", [c for c in BAD if c not in ("lengths-over", "lengths-under")])
def test_bad_arguments_say_got_and_expected(case: str, device: torch.device) -> None:
    a, message = arguments_of(case)
    a = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in a.items()}
    with pytest.raises(ValueError, match=message):
        group_norm_gelu_triton.prepare(a["weight"], a["bias"], a["groups"], a["eps"])(a["x"], a["lengths"])


def test_other_types_and_devices_are_refused(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    op = group_norm_gelu_triton.prepare(WEIGHT.to(device), BIAS.to(device), 3)
    with pytest.raises(ValueError, match=r"group_norm_gelu x: got torch.float64 on .*, expected float32, bfloat16 or"):
        op(X.double().to(device), SIZES.to(device))
    monkeypatch.setattr(group_norm_gelu_triton, "INTERPRETED", False)
    with pytest.raises(UnavailableError, match="got weights on cpu, expected a CUDA GPU"):
        group_norm_gelu_triton.prepare(WEIGHT, BIAS, 3)


def test_launch_options() -> None:
    assert launch_options(100, 1) == {"BT": 128, "WHOLE": True, "num_warps": 1}
    assert launch_options(LONGEST_ROW, 1) == {"BT": 4096, "WHOLE": True, "num_warps": 4}
    assert launch_options(12_799, 1) == {"BT": BLOCK, "WHOLE": False, "num_warps": 4}
    assert launch_options(51_199, 1) == {"BT": LONG_BLOCK, "WHOLE": False, "num_warps": 8}
    assert launch_options(100, 2) == {"BT": 128, "WHOLE": False, "num_warps": 1}
