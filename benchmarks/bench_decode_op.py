"""Joint decoding on the CPU: eager, compiled, and each instruction set in C++, beside two floors.

    pytest benchmarks/bench_decode_op.py --benchmark-only --benchmark-columns=min,median,iqr --benchmark-sort=name

`floor-gemm` is the bare product of z with the weights in torch, `floor-copy` a copy of the weights. C++ works on one
thread; torch on as many as the case says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from merfast.ops import afg_cpu, decode_cpu
from merfast.ops.decode import DecodeWeights, decode

STRUCTURES, CLASSES = 3, 6
WIDTHS = {"mini": (128, 64), "wide": (256, 256)}  # D and M; the first as in the packaged bundle
TEMPERATURE, LIMIT = 0.7981, 5.0
KERNELS = [f"cpp-{isa}" for isa in afg_cpu.isas()]
IMPLEMENTATIONS = ["floor-gemm", "floor-copy", "eager", "compiled", *KERNELS]


@cache
def inputs(name: str, batch: int) -> tuple[Tensor, DecodeWeights, Tensor, tuple[Tensor, Tensor]]:
    """z, weights, mix, and the exact result, computed in fp64."""
    dim, units = WIDTHS[name]
    random = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    weights = DecodeWeights(
        draw(STRUCTURES, CLASSES, dim) / dim**0.5,
        draw(STRUCTURES, CLASSES),
        draw(STRUCTURES, units, dim + CLASSES) / dim**0.5,
        draw(STRUCTURES, units),
        draw(STRUCTURES, units) / units**0.5,
        draw(STRUCTURES),
        draw(STRUCTURES, CLASSES),
    )
    z, mix = draw(STRUCTURES, batch, dim), torch.full((STRUCTURES,), 1 / STRUCTURES)
    double = DecodeWeights(*(w.double() for w in weights))
    return z, weights, mix, decode(z.double(), double, mix.double(), TEMPERATURE, LIMIT)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def largest_error(got: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    return max((a - e).abs().max().item() for a, e in zip(got, exact, strict=True))


def callable_for(implementation: str, name: str, batch: int) -> Callable[[], object]:
    z, weights, mix, exact = inputs(name, batch)
    if implementation == "floor-gemm":
        columns = torch.cat([weights.hidden_weight[:, :, : z.shape[2]], weights.emotion_weight], 1).mT.contiguous()
        product = torch.empty(STRUCTURES, batch, columns.shape[2])
        return lambda: torch.bmm(z, columns, out=product)
    if implementation == "floor-copy":
        whole = torch.cat([w.flatten() for w in weights])
        target = torch.empty_like(whole)
        return lambda: target.copy_(whole)
    run: Callable[[Tensor], tuple[Tensor, Tensor]]
    if implementation.startswith("cpp-"):
        run = decode_cpu.prepare(weights, mix, TEMPERATURE, LIMIT, isa=implementation.removeprefix("cpp-"))
    else:
        torch.compiler.reset()
        whole_step = torch.compile(decode, dynamic=False) if implementation == "compiled" else decode

        def run(z: Tensor) -> tuple[Tensor, Tensor]:
            return whole_step(z, weights, mix, TEMPERATURE, LIMIT)

    def call() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return run(z)

    eager_error = largest_error(decode(z, weights, mix, TEMPERATURE, LIMIT), exact)
    error = largest_error(call(), exact)
    assert error <= 2 * eager_error + 1e-6, f"error {error:.1e}, eager {eager_error:.1e}"
    return call


@pytest.mark.filterwarnings("default")  # torch.compile warns of its own deprecations
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 2], indirect=True, ids=["threads=1", "threads=2"])
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("name", WIDTHS)
def test_decode_op(benchmark: Any, name: str, batch: int, threads: int, implementation: str) -> None:
    call = callable_for(implementation, name, batch)
    dim, units = WIDTHS[name]
    benchmark.group = f"decode-{name} B={batch} threads={threads}"
    benchmark.name = implementation
    benchmark.extra_info["baseline"] = implementation == "eager"
    benchmark.extra_info["gemm_flops"] = 2 * batch * STRUCTURES * dim * (units + CLASSES)
    benchmark.extra_info["weight_bytes"] = 4 * sum(w.numel() for w in inputs(name, batch)[1])
    benchmark.pedantic(call, rounds=300, iterations=1, warmup_rounds=20)
