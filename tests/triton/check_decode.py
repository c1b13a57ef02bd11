"""The Triton joint decoding against the reference: error in each dtype, invariance, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_cpu import BAD, MIX, WEIGHTS, Z, make
from torch import Tensor

from merfast.errors import UnavailableError
from merfast.ops import decode_triton
from merfast.ops.decode import DecodeWeights, decode

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's log(0)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
Inputs = tuple[Tensor, DecodeWeights, Tensor]


def cast(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    z, weights, mix = inputs
    return z.to(device, dtype), DecodeWeights(*(w.to(device, dtype) for w in weights)), mix.to(device, dtype)


def check(inputs: Inputs, dtype: torch.dtype, device: torch.device, temperature: float, limit: float) -> None:
    """Errors are against fp64 on inputs already rounded; the kernel's may be twice eager's plus one last rounding."""
    z, weights, mix = cast(inputs, device, dtype)
    exact = decode(*cast((z, weights, mix), torch.device("cpu"), torch.float64), temperature, limit)
    eager = decode(z, weights, mix, temperature, limit)
    # What torch.empty hands out next is likely to be this.
    torch.full((8 * z[0].numel() + 4096,), torch.nan, device=device)
    got = decode_triton.prepare(weights, mix, temperature, limit)(z)
    for name, a, e, x in zip(("posterior", "valence"), got, eager, exact, strict=True):
        assert a.shape == e.shape
        assert a.dtype == dtype
        if a.numel():
            floor = max(1.0, x.abs().max().item()) * max(torch.finfo(dtype).eps / 2, 1e-6)
            bound = 2 * (e.cpu() - x).abs().max().item() + floor
            error = (a.cpu() - x).abs().max().item()
            assert error <= bound, f"{name} {dtype}: error {error:.2e}, bound {bound:.2e}"


@each_dtype
@pytest.mark.parametrize(
    ("structures", "batch", "dim", "units", "classes"),
    [(3, 1, 128, 64, 6), (3, 33, 128, 64, 6), (1, 16, 256, 256, 6), (4, 0, 8, 8, 6), (2, 17, 19, 70, 17), (1,) * 5],
    ids=["mini-1", "mini-33", "wide", "no-samples", "odd", "one"],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7981])
def test_error(
    dtype: torch.dtype,
    structures: int,
    batch: int,
    dim: int,
    units: int,
    classes: int,
    temperature: float,
    device: torch.device,
) -> None:
    check(make(structures, batch, dim, units, classes), dtype, device, temperature, 5.0)


@each_dtype
@settings(max_examples=12, deadline=None)
@given(
    structures=st.integers(1, 4),
    batch=st.integers(0, 40),
    dim=st.integers(1, 150),
    units=st.integers(1, 140),
    classes=st.integers(1, 20),
    temperature=st.sampled_from([1.0, 0.3, 2.5]),
    limit=st.sampled_from([math.inf, 5.0, 0.5]),
)
def test_error_on_any_shape(
    dtype: torch.dtype,
    structures: int,
    batch: int,
    dim: int,
    units: int,
    classes: int,
    temperature: float,
    limit: float,
    device: torch.device,
) -> None:
    check(make(structures, batch, dim, units, classes), dtype, device, temperature, limit)


@each_dtype
def test_result_does_not_depend_on_the_batch(dtype: torch.dtype, device: torch.device) -> None:
    z, weights, mix = cast(make(3, 21, 130, 70), device, dtype)
    run = decode_triton.prepare(weights, mix, 0.8, 5.0)
    together = run(z)
    # The interpreter multiplies in numpy, whose rounding depends on the row of the tile.
    tolerance = 2 * torch.finfo(dtype).eps if decode_triton.INTERPRETED else 0.0
    for b in range(z.shape[1]):
        for a, t in zip(run(z[:, b : b + 1]), together, strict=True):
            torch.testing.assert_close(a[0], t[b], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stay_in_their_sample(bad: float, temperature: float, device: torch.device) -> None:
    z, weights, mix = cast(make(3, 20, 39, 17), device, torch.float32)
    run = decode_triton.prepare(weights, mix, temperature, 5.0)
    clean = run(z)
    z[1, [7, 18], 5] = bad
    keep = [b for b in range(20) if b not in (7, 18)]
    for a, c in zip(run(z), clean, strict=True):
        assert torch.equal(a[keep], c[keep])
        assert a[[7, 18]].isnan().all()


def test_extreme_logits(device: torch.device) -> None:
    z, weights, mix = cast(make(2, 3, 9, 20), device, torch.float32)
    weights = weights._replace(emotion_bias=torch.tensor([[0.0, -40.0, 1e4, 1e4, -1e4, 9e3]] * 2, device=device))
    for temperature in (1.0, 0.8):
        got = decode_triton.prepare(weights, mix, temperature)(z)
        for a, e in zip(got, decode(z, weights, mix, temperature), strict=True):
            assert a.isfinite().all()
            torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


def test_views_autograd_and_later_changes(device: torch.device) -> None:
    z, weights, mix = cast(make(3, 5, 12, 7), device, torch.float32)
    run = decode_triton.prepare(DecodeWeights(*(w.clone().requires_grad_() for w in weights)), mix)
    plain = run(z)
    for other in (z.clone().requires_grad_(), z.transpose(0, 1).contiguous().transpose(0, 1)):
        assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(run(other), plain, strict=True))
    run = decode_triton.prepare(weights, mix)
    for w in (*weights, mix):
        w.fill_(3.0)
    assert all(torch.equal(a, b) for a, b in zip(run(z), plain, strict=True))


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_say_got_and_expected(case: str, device: torch.device) -> None:
    change, message = BAD[case]
    weights = WEIGHTS._replace(**{k: v for k, v in change.items() if k in WEIGHTS._fields})
    z, weights, mix = cast((change.get("z", Z), weights, change.get("mix", MIX)), device, torch.float32)
    with pytest.raises(ValueError, match=message):
        decode_triton.prepare(weights, mix, change.get("temperature", 1.0), change.get("limit", math.inf))(z)


def test_other_types_and_devices_are_refused(device: torch.device) -> None:
    z, weights, mix = cast((Z, WEIGHTS, MIX), device, torch.float32)
    with pytest.raises(ValueError, match=r"decode emotion_weight: got torch.float64, expected float32, bfloat16 or"):
        decode_triton.prepare(DecodeWeights(*(w.double() for w in weights)), mix)
    with pytest.raises(ValueError, match=r"decode hidden_bias: got torch.float16 on .*, expected torch.float32 on"):
        decode_triton.prepare(weights._replace(hidden_bias=weights.hidden_bias.half()), mix)
    with pytest.raises(ValueError, match=r"decode z: got torch.bfloat16 on .*, expected torch.float32 on"):
        decode_triton.prepare(weights, mix)(z.bfloat16())
    with pytest.raises(ValueError, match="got an empty dimension, expected at least 1 everywhere"):
        decode_triton.prepare(DecodeWeights(*(w[:0] for w in weights)), mix[:0])


def test_without_a_gpu_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_triton, "INTERPRETED", False)
    with pytest.raises(UnavailableError, match="got weights on cpu, expected a CUDA GPU"):
        decode_triton.prepare(WEIGHTS, MIX)
