"""The C++ masked GroupNorm with GELU against the reference: error, invariance, threads, and refusals."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_afg_cpu import before_forbidden_page
from test_group_norm_gelu import BAD, BIAS, SIZES, WEIGHT, X, arguments_of, make, one_by_one
from torch import Tensor

from merfast import _C
from merfast.errors import UnavailableError
from merfast.ops import afg_cpu, group_norm_gelu_cpu

F = np.float32
ISAS = afg_cpu.isas()
each_isa = pytest.mark.parametrize("isa", ISAS)


def single(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, lengths, weight, bias = inputs
    return x.float(), lengths, weight.float(), bias.float()


def kernel_of(weight: Tensor, bias: Tensor, groups: int, isa: str, eps: float = 1e-5) -> _C.GroupNormGeluKernel:
    return _C.GroupNormGeluKernel(weight.numpy(), bias.numpy(), groups, eps, isa)


def run(kernel: _C.GroupNormGeluKernel, x: Tensor, lengths: Tensor, threads: int = 1) -> Tensor:
    """Straight through the binding, into an output full of NaN."""
    out = np.full(x.shape, np.nan, F)
    kernel.run(x.numpy(), lengths.numpy(), out, threads)
    return torch.from_numpy(out)


def check(isa: str, inputs: tuple[Tensor, Tensor, Tensor, Tensor], groups: int, threads: int = 1) -> None:
    """Errors are against fp64 on the same fp32 inputs; the kernel's may be twice torch's plus a floor."""
    x, lengths, weight, bias = single(inputs)
    exact = one_by_one(x.double(), lengths, weight.double(), bias.double(), groups)
    got = run(kernel_of(weight, bias, groups, isa), x, lengths, threads)
    if not got.numel():
        return
    eager_error = (one_by_one(x, lengths, weight, bias, groups) - exact).abs().max().item()
    error = (got - exact).abs().max().item()
    floor = 4e-7 * max(1.0, exact.abs().max().item())
    assert error <= 2 * eager_error + floor, f"{isa}: error {error:.2e}, eager {eager_error:.2e}, floor {floor:.1e}"
    beyond = torch.arange(x.shape[2]) >= lengths[:, None, None]
    assert not got[beyond.expand_as(got)].any()


@each_isa
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 100, 2047, 2049, 4200]), max_size=5),
    extra=st.integers(0, 20),
    groups=st.integers(1, 5),
    each=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_error(isa: str, lengths: list[int], extra: int, groups: int, each: int, seed: int) -> None:
    check(isa, make(lengths, max(lengths, default=0) + extra, groups * each, seed), groups)


@each_isa
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_error_on_long_rows(isa: str, threads: int) -> None:
    check(isa, make([51_199, 12_799], 51_199, 32), 32, threads)


@each_isa
@pytest.mark.parametrize("offset", [100.0, -3000.0])
def test_a_mean_far_from_zero(isa: str, offset: float) -> None:
    x, lengths, weight, bias = make([3000, 2000], 3000, 4)
    check(isa, (x + offset, lengths, weight, bias), 4)


@each_isa
def test_result_does_not_depend_on_padding_batch_or_threads(isa: str) -> None:
    lengths = [5000, 1, 0, 4999, 33]
    x, sizes, weight, bias = single(make(lengths, 60_000, 6))
    kernel = kernel_of(weight, bias, 3, isa)
    together = run(kernel, x, sizes)
    for threads in (2, 7):
        assert torch.equal(run(kernel, x, sizes, threads), together)
    for b, length in enumerate(lengths):
        alone = run(kernel, x[b : b + 1, :, :length].contiguous(), sizes[b : b + 1])
        assert torch.equal(alone[0], together[b, :, :length]), f"sample {b} of {length} frames"


@each_isa
def test_one_kernel_in_many_threads(isa: str) -> None:
    _, _, weight, bias = single(make([1], 1, 6))
    kernel = kernel_of(weight, bias, 2, isa)
    work = [single(make([300 * seed, 70], 3000, 6, seed))[:2] for seed in range(8)]
    expected = [run(kernel, *w) for w in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda w: run(kernel, *w, threads=2), work), expected, strict=True):
                assert torch.equal(got, want)


@each_isa
@pytest.mark.parametrize("frames", [1, 3, 16, 17, 70, 129])
def test_nothing_beyond_the_ends_is_touched(isa: str, frames: int) -> None:
    x, lengths, weight, bias = single(make([frames, frames - 1], frames, 3))
    kernel = kernel_of(weight, bias, 3, isa)
    out = before_forbidden_page(torch.full(x.shape, torch.nan))
    kernel.run(before_forbidden_page(x), lengths.numpy(), out, 1)
    assert torch.equal(torch.from_numpy(out), run(kernel, x, lengths))


@each_isa
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stay_in_their_group(isa: str, bad: float) -> None:
    x, lengths, weight, bias = single(make([50, 40], 50, 6))
    kernel = kernel_of(weight, bias, 3, isa)
    clean = run(kernel, x, lengths)
    x[1, 3, 7] = bad
    got = run(kernel, x, lengths)
    assert got[1, 2:4, :40].isnan().all()
    got[1, 2:4] = clean[1, 2:4]
    assert torch.equal(got, clean)


@each_isa
def test_constant_rows_give_the_bias(isa: str) -> None:
    _, lengths, weight, bias = single(make([40, 1], 40, 6))
    got = run(kernel_of(weight, bias, 6, isa), torch.full((2, 6, 40), 0.3), lengths)
    expected = torch.nn.functional.gelu(bias)
    torch.testing.assert_close(got[0], expected[:, None].expand(-1, 40), rtol=0, atol=2e-5)
    torch.testing.assert_close(got[1, :, 0], expected, rtol=0, atol=2e-5)


def test_prepare_routes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = _C.GroupNormGeluKernel

    def record(*arguments: Any) -> _C.GroupNormGeluKernel:
        kernel = original(*arguments)
        seen.append(kernel.isa)
        return kernel

    monkeypatch.setattr(_C, "GroupNormGeluKernel", record)
    for isa in ("auto", *ISAS):
        got = group_norm_gelu_cpu.prepare(WEIGHT, BIAS, 3, isa=isa)(X, SIZES)
        assert torch.equal(got, run(original(WEIGHT.numpy(), BIAS.numpy(), 3, 1e-5, isa), X, SIZES))
    assert seen == [ISAS[0], *ISAS]


def test_prepare_takes_what_autograd_and_views_give() -> None:
    weight, bias = WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()
    op = group_norm_gelu_cpu.prepare(weight, bias, 2)
    plain = op(X, SIZES)
    for other in (X.clone().requires_grad_(), X.mT.contiguous().mT):
        assert not op(other, SIZES).requires_grad
        assert torch.equal(op(other, SIZES), plain)
    with torch.no_grad():
        weight.fill_(3.0)
        bias.fill_(3.0)
    assert torch.equal(op(X, SIZES), plain)


@pytest.mark.parametrize("case", BAD)
def test_prepare_refuses_what_the_reference_refuses(case: str) -> None:
    a, message = arguments_of(case)
    with pytest.raises(ValueError, match=message):
        group_norm_gelu_cpu.prepare(a["weight"], a["bias"], a["groups"], a["eps"])(a["x"], a["lengths"])


def test_prepare_refuses_other_types_and_kernels() -> None:
    with pytest.raises(ValueError, match=r"group_norm_gelu weight: got torch.float64 on cpu, expected torch.float32"):
        group_norm_gelu_cpu.prepare(WEIGHT.double(), BIAS, 3)
    with pytest.raises(ValueError, match=r"group_norm_gelu x: got torch.bfloat16 on cpu, expected torch.float32"):
        group_norm_gelu_cpu.prepare(WEIGHT, BIAS, 3)(X.bfloat16(), SIZES)
    with pytest.raises(ValueError, match="group_norm_gelu threads: got 0, expected at least 1"):
        group_norm_gelu_cpu.prepare(WEIGHT, BIAS, 3, threads=0)
    with pytest.raises(UnavailableError, match=r"got isa 'neon', expected auto, .*generic"):
        group_norm_gelu_cpu.prepare(WEIGHT, BIAS, 3, isa="neon")


BINDING: dict[str, tuple[dict[str, Any], str]] = {
    "x-rank": ({"x": np.zeros(4, F)}, r"x: got 1 dimensions, expected 3"),
    "x-channels": ({"x": np.zeros((2, 5, 4), F)}, r"x: got float32 \[2, 5, 4\], expected float32 \[2, 6, 4\]"),
    "x-dtype": ({"x": np.zeros((2, 6, 4))}, r"x: got float64 \[2, 6, 4\], expected float32"),
    "lengths-dtype": ({"lengths": np.zeros(2, np.int32)}, r"lengths: got int32 \[2\], expected int64 \[2\]"),
    "lengths-over": ({"lengths": np.array([1, 5])}, r"lengths: got 5, expected 0 to 4"),
    "lengths-under": ({"lengths": np.array([1, -1])}, r"lengths: got -1, expected 0 to 4"),
    "out": ({"out": np.zeros((2, 6, 3), F)}, r"out: got float32 \[2, 6, 3\], expected float32 \[2, 6, 4\]"),
    "threads": ({"threads": 0}, r"threads: got 0, expected at least 1"),
}


@pytest.mark.parametrize("case", BINDING)
def test_binding_refuses(case: str) -> None:
    change, message = BINDING[case]
    arguments: dict[str, Any] = {
        "x": np.zeros((2, 6, 4), F),
        "lengths": np.array([4, 0]),
        "out": np.zeros((2, 6, 4), F),
        "threads": 1,
    }
    kernel = kernel_of(WEIGHT, BIAS, 3, "auto")
    kernel.run(**arguments)
    with pytest.raises(ValueError, match=message):
        kernel.run(**(arguments | change))


def test_binding_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="groups: got 4, expected a divisor of 6 channels"):
        kernel_of(WEIGHT, BIAS, 4, "auto")
    with pytest.raises(ValueError, match="eps: got nan"):
        kernel_of(WEIGHT, BIAS, 3, "auto", math.nan)
    with pytest.raises(ValueError, match=r"bias: got float32 \[5\], expected float32 \[6\]"):
        kernel_of(WEIGHT, BIAS[:5], 3, "auto")
