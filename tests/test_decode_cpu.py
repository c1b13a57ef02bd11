"""The C++ joint decoding against the reference: error, invariance, threads, and what the binding refuses."""

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
from torch import Tensor
from torch.nn import functional

from merfast import _C
from merfast.errors import UnavailableError
from merfast.ops import afg_cpu, decode_cpu
from merfast.ops.decode import DecodeWeights, decode, prepare

F = np.float32
ISAS = afg_cpu.isas()
each_isa = pytest.mark.parametrize("isa", ISAS)


def make(
    structures: int, batch: int, dim: int, units: int, classes: int = 6, seed: int = 0, scale: float = 1.0
) -> tuple[Tensor, DecodeWeights, Tensor]:
    """Random fp32 z, weights and mix; logits and hidden values are of order `scale`."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    weights = DecodeWeights(
        emotion_weight=draw(structures, classes, dim) / dim**0.5,
        emotion_bias=draw(structures, classes),
        hidden_weight=draw(structures, units, dim + classes) / dim**0.5,
        hidden_bias=draw(structures, units),
        valence_weight=draw(structures, units) / units**0.5,
        valence_bias=draw(structures),
        class_valence=2 * draw(structures, classes),
    )
    return scale * draw(structures, batch, dim), weights, draw(structures).softmax(0)


def double(weights: DecodeWeights) -> DecodeWeights:
    return DecodeWeights(*(w.double() for w in weights))


def kernel_of(weights: DecodeWeights, mix: Tensor, isa: str, temperature: float = 1.0, limit: float = math.inf) -> Any:
    return _C.DecodeKernel(*(w.numpy() for w in weights), mix.numpy(), temperature, limit, isa)


def run(kernel: _C.DecodeKernel, z: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Straight through the binding, into outputs full of NaN."""
    posterior = np.full((z.shape[1], classes), np.nan, F)
    valence = np.full(z.shape[1], np.nan, F)
    kernel.run(z.numpy(), posterior, valence)
    return torch.from_numpy(posterior), torch.from_numpy(valence)


def check(isa: str, z: Tensor, weights: DecodeWeights, mix: Tensor, temperature: float, limit: float) -> None:
    """Both errors are against fp64 on the same fp32 inputs; the kernel's may be twice the eager one plus a floor."""
    exact = decode(z.double(), double(weights), mix.double(), temperature, limit)
    eager = decode(z, weights, mix, temperature, limit)
    got = run(kernel_of(weights, mix, isa, temperature, limit), z, weights.emotion_bias.shape[1])
    for name, a, e, x in zip(("posterior", "valence"), got, eager, exact, strict=True):
        assert a.shape == e.shape
        if not a.numel():
            continue
        size = max(1.0, float(x.abs().max()), float(z.abs().max()))
        error, eager_error, floor = float((a - x).abs().max()), float((e - x).abs().max()), 1e-6 * size
        assert error <= 2 * eager_error + floor, f"{name}: error {error:.2e}, eager {eager_error:.2e}"


@each_isa
@settings(max_examples=80, deadline=None)
@given(
    structures=st.integers(1, 4),
    batch=st.sampled_from([0, 1, 1, 2, 5, 7, 47, 48, 49, 100]),
    dim=st.integers(1, 300),
    units=st.integers(1, 140),
    classes=st.sampled_from([1, 2, 6, 6, 7, 16, 17, 40]),
    temperature=st.sampled_from([1.0, 0.7981, 0.3, 2.5]),
    limit=st.sampled_from([math.inf, 5.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_error(
    isa: str,
    structures: int,
    batch: int,
    dim: int,
    units: int,
    classes: int,
    temperature: float,
    limit: float,
    seed: int,
) -> None:
    check(isa, *make(structures, batch, dim, units, classes, seed), temperature, limit)


@each_isa
@pytest.mark.parametrize(("dim", "units"), [(128, 64), (256, 256), (1031, 257)])
def test_error_on_shapes_of_interest(isa: str, dim: int, units: int) -> None:
    check(isa, *make(3, 200, dim, units), 0.7981, 5.0)


@each_isa
@pytest.mark.parametrize("temperature", [1.0, 0.7981, 100.0])
@pytest.mark.parametrize("gap", [20.0, 60.0, 86.0, 95.0, 102.0, 110.0, 1000.0])
def test_extreme_logits(isa: str, temperature: float, gap: float) -> None:
    """A high temperature brings back classes whose probability is subnormal; those that vanish in fp32 stay away."""
    _, weights, mix = make(2, 1, 3, 5)
    weights = weights._replace(emotion_weight=torch.zeros(2, 6, 3))
    bias = torch.tensor([0.0, -gap, 0.0, -gap / 2, -1e4, -gap])
    weights = weights._replace(emotion_bias=bias.repeat(2, 1))
    z = torch.ones(2, 3, 3)
    got, expected = run(kernel_of(weights, mix, isa, temperature), z, 6), decode(z, weights, mix, temperature)
    # Subnormal numbers have few digits: their logarithms differ by as much as half of the smallest to the number.
    tolerance = 2e-6 if temperature < 100 or gap < 86 else 5e-4
    for a, e in zip(got, expected, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance)


@each_isa
def test_result_does_not_depend_on_the_batch(isa: str) -> None:
    z, weights, mix = make(3, 131, 130, 70)
    kernel = kernel_of(weights, mix, isa, 0.8, 5.0)
    together = run(kernel, z, 6)
    for b in range(z.shape[1]):
        alone = run(kernel, z[:, b : b + 1].contiguous(), 6)
        assert all(torch.equal(a[0], t[b]) for a, t in zip(alone, together, strict=True)), f"sample {b}"
    back = run(kernel, z.flip(1), 6)
    assert all(torch.equal(a.flip(0), t) for a, t in zip(back, together, strict=True))


@each_isa
def test_one_kernel_in_many_threads(isa: str) -> None:
    _, weights, mix = make(3, 1, 96, 65)
    kernel = kernel_of(weights, mix, isa, 0.8, 5.0)
    work = [make(3, 1 + 17 * seed, 96, 65, seed=seed)[0] for seed in range(8)]
    expected = [run(kernel, z, 6) for z in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for got, want in zip(pool.map(lambda z: run(kernel, z, 6), work), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@each_isa
@pytest.mark.parametrize(("dim", "units", "classes"), [(1, 1, 1), (19, 17, 6), (64, 33, 17)])
def test_nothing_beyond_the_ends_is_touched(isa: str, dim: int, units: int, classes: int) -> None:
    z, weights, mix = make(2, 53, dim, units, classes)
    kernel = kernel_of(weights, mix, isa, 0.8)
    posterior = before_forbidden_page(torch.full((53, classes), torch.nan))
    valence = before_forbidden_page(torch.full((53,), torch.nan))
    kernel.run(before_forbidden_page(z), posterior, valence)
    expected = run(kernel, z, classes)
    assert torch.equal(torch.from_numpy(posterior), expected[0])
    assert torch.equal(torch.from_numpy(valence), expected[1])


@each_isa
@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stay_in_their_sample(isa: str, bad: float, temperature: float) -> None:
    z, weights, mix = make(3, 60, 39, 17)
    kernel = kernel_of(weights, mix, isa, temperature, 5.0)
    clean = run(kernel, z, 6)
    z[1, [7, 50], 5] = bad
    got = run(kernel, z, 6)
    keep = [b for b in range(60) if b not in (7, 50)]
    for a, c, e in zip(got, clean, decode(z, weights, mix, temperature, 5.0), strict=True):
        assert torch.equal(a[keep], c[keep])
        assert a[[7, 50]].isnan().all()
        torch.testing.assert_close(a, e, equal_nan=True, rtol=0, atol=1e-5)


@each_isa
@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_valence_that_overflows(isa: str, bad: float) -> None:
    z, weights, mix = make(2, 3, 9, 20)
    weights = weights._replace(valence_bias=torch.tensor([bad, 1.0]))
    for limit in (5.0, math.inf):
        _, valence = run(kernel_of(weights, mix, isa, limit=limit), z, 6)
        assert torch.equal(valence, decode(z, weights, mix, limit=limit)[1])


def gelu_of(isa: str, value: Tensor) -> Tensor:
    """Through a decoder of one hidden unit, whose input is z and whose output is the valence."""
    weights = DecodeWeights(
        torch.zeros(1, 1, 1),
        torch.zeros(1, 1),
        torch.tensor([[[1.0, 0.0]]]),
        torch.zeros(1, 1),
        torch.ones(1, 1),
        torch.zeros(1),
        torch.zeros(1, 1),
    )
    return run(kernel_of(weights, torch.ones(1), isa), value[None, :, None].contiguous(), 1)[1]


@each_isa
def test_gelu(isa: str) -> None:
    value = torch.cat([torch.linspace(-16, 16, 20_001), torch.logspace(-30, 30, 500), -torch.logspace(-30, 30, 500)])
    exact = functional.gelu(value.double())
    error = (gelu_of(isa, value) - exact).abs()
    near = value.abs() < 4
    assert (error[near] / exact[near].abs().clamp(min=1e-30)).max() < 2e-6
    assert (error / exact.abs().clamp(min=1.0)).max() < 2e-7
    assert torch.equal(gelu_of(isa, value[value > 8]), value[value > 8])
    assert not gelu_of(isa, value[value < -14]).any()


def test_prepare_routes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    z, weights, mix = make(3, 5, 12, 7)
    seen: list[str] = []
    original = _C.DecodeKernel

    def record(**arguments: Any) -> _C.DecodeKernel:
        kernel = original(**arguments)
        seen.append(kernel.isa)
        return kernel

    monkeypatch.setattr(_C, "DecodeKernel", record)
    for isa in ("auto", *ISAS):
        got = decode_cpu.prepare(weights, mix, 0.8, 5.0, isa=isa)(z)
        expected = run(original(*(w.numpy() for w in weights), mix.numpy(), 0.8, 5.0, isa), z, 6)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert seen == [ISAS[0], *ISAS]
    assert ISAS[-1] == "generic"


def test_prepare_takes_what_autograd_and_views_give() -> None:
    z, weights, mix = make(3, 5, 12, 7)
    run_it = decode_cpu.prepare(DecodeWeights(*(w.clone().requires_grad_() for w in weights)), mix)
    plain = run_it(z)
    for other in (z.clone().requires_grad_(), z.transpose(0, 1).contiguous().transpose(0, 1)):
        for a, b in zip(run_it(other), plain, strict=True):
            assert not a.requires_grad
            assert torch.equal(a, b)


def test_later_changes_of_the_weights_have_no_effect() -> None:
    z, weights, mix = make(3, 5, 12, 7)
    run_it = decode_cpu.prepare(weights, mix)
    before = run_it(z)
    for w in (*weights, mix):
        w.fill_(3.0)
    assert all(torch.equal(a, b) for a, b in zip(run_it(z), before, strict=True))


Z, WEIGHTS, MIX = make(3, 2, 4, 5)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "z-rank": ({"z": Z[0]}, r"decode z: got \[2, 4\], expected \[3, B, 4\]"),
    "z-structures": ({"z": Z[:2]}, r"decode z: got \[2, 2, 4\], expected \[3, B, 4\]"),
    "z-width": ({"z": Z[:, :, :3]}, r"decode z: got \[3, 2, 3\], expected \[3, B, 4\]"),
    "mix": ({"mix": MIX[:2]}, r"decode mix: got \[2\], expected \[3\]"),
    "temperature": ({"temperature": 0.0}, r"decode temperature: got 0.0, expected a finite number above 0"),
    "temperature-nan": ({"temperature": math.nan}, r"decode temperature: got nan, expected"),
    "limit": ({"limit": -1.0}, r"decode limit: got -1.0, expected a number from 0 on"),
    "rank": ({"emotion_weight": Z[0]}, r"emotion_weight and hidden_weight \[2, 4\] and \[3, 5, 10\], expected 3 dim"),
    "emotion_bias": ({"emotion_bias": Z[0]}, r"decode emotion_bias: got \[2, 4\], expected \[3, 6\]"),
    "hidden_weight": ({"hidden_weight": Z}, r"decode hidden_weight: got \[3, 2, 4\], expected \[3, 2, 10\]"),
    "valence_bias": ({"valence_bias": MIX[:1]}, r"decode valence_bias: got \[1\], expected \[3\]"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("implementation", ["reference", "cpp"])
def test_bad_arguments_say_got_and_expected(case: str, implementation: str) -> None:
    change, message = BAD[case]
    z, mix = change.get("z", Z), change.get("mix", MIX)
    weights = WEIGHTS._replace(**{k: v for k, v in change.items() if k in WEIGHTS._fields})
    options = change.get("temperature", 1.0), change.get("limit", math.inf)
    make_decode = decode_cpu.prepare if implementation == "cpp" else prepare
    with pytest.raises(ValueError, match=message):
        make_decode(weights, mix, *options)(z)


def test_prepare_refuses_other_types_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"decode emotion_weight: got torch.float64 on cpu, expected torch.float32"):
        decode_cpu.prepare(double(WEIGHTS), MIX)
    with pytest.raises(ValueError, match=r"decode mix: got torch.float64 on cpu, expected torch.float32"):
        decode_cpu.prepare(WEIGHTS, MIX.double())
    with pytest.raises(ValueError, match=r"decode z: got torch.bfloat16 on cpu, expected torch.float32"):
        decode_cpu.prepare(WEIGHTS, MIX)(Z.bfloat16())
    with pytest.raises(ValueError, match="got an empty dimension, expected at least 1 everywhere"):
        decode_cpu.prepare(DecodeWeights(*(w[:0] for w in WEIGHTS)), MIX[:0])
    with pytest.raises(UnavailableError, match=r"got isa 'neon', expected auto, .*generic"):
        decode_cpu.prepare(WEIGHTS, MIX, isa="neon")


BINDING: dict[str, tuple[dict[str, Any], str]] = {
    "z-rank": ({"z": np.zeros(4, F)}, r"z: got 1 dimensions, expected 3"),
    "z-width": ({"z": np.zeros((3, 2, 5), F)}, r"z: got float32 \[3, 2, 5\], expected float32 \[3, 2, 4\]"),
    "z-structures": ({"z": np.zeros((4, 2, 4), F)}, r"z: got float32 \[4, 2, 4\], expected float32 \[3, 2, 4\]"),
    "z-dtype": ({"z": np.zeros((3, 2, 4))}, r"z: got float64 \[3, 2, 4\], expected float32"),
    "z-strides": ({"z": np.zeros((3, 4, 2), F).transpose(0, 2, 1)}, r"z: got non-contiguous or unaligned float32"),
    "posterior": ({"posterior": np.zeros((1, 6), F)}, r"posterior: got float32 \[1, 6\], expected float32 \[2, 6\]"),
    "valence": ({"valence": np.zeros(3, F)}, r"valence: got float32 \[3\], expected float32 \[2\]"),
}


@pytest.mark.parametrize("case", BINDING)
def test_binding_refuses(case: str) -> None:
    change, message = BINDING[case]
    arguments: dict[str, Any] = {
        "z": np.zeros((3, 2, 4), F),
        "posterior": np.zeros((2, 6), F),
        "valence": np.zeros(2, F),
    }
    kernel = kernel_of(WEIGHTS, MIX, "auto")
    kernel.run(**arguments)
    with pytest.raises(ValueError, match=message):
        kernel.run(**(arguments | change))


def test_binding_refuses_a_read_only_output_and_bad_options() -> None:
    valence = np.zeros(2, F)
    valence.flags.writeable = False
    with pytest.raises(ValueError, match="valence: got a read-only array"):
        kernel_of(WEIGHTS, MIX, "auto").run(Z.numpy(), np.zeros((2, 6), F), valence)
    with pytest.raises(ValueError, match=r"isa: got 'neon', expected auto, .*generic"):
        kernel_of(WEIGHTS, MIX, "neon")
    with pytest.raises(ValueError, match=r"mix: got float32 \[2\], expected float32 \[3\]"):
        kernel_of(WEIGHTS, MIX[:2], "auto")
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"temperature: got .* expected"):
            kernel_of(WEIGHTS, MIX, "auto", temperature)
    with pytest.raises(ValueError, match="limit: got nan"):
        kernel_of(WEIGHTS, MIX, "auto", 1.0, math.nan)
