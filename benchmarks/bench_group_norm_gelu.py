"""Masked GroupNorm with GELU on the CPU: eager, compiled, and each instruction set in C++, beside two floors.

    pytest benchmarks/bench_group_norm_gelu.py --benchmark-only --benchmark-columns=min,median,iqr --benchmark-sort=name

`torch-unmasked` is torch's group_norm and gelu on the whole padded batch, which gives other values: the time to beat.
`floor-copy` is a copy of x. Shapes are those behind the first convolution of HuBERT base, for a clip of 4 s and for a
batch of four of different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from merfast.ops import afg_cpu, group_norm_gelu_cpu
from merfast.ops.group_norm_gelu import group_norm_gelu

CHANNELS = 512
SHAPES = {"one": (12_799,), "four": (12_799, 9_599, 6_399, 3_199)}  # 4 s; 4, 3, 2 and 1 s
KERNELS = [f"cpp-{isa}" for isa in afg_cpu.isas()]
IMPLEMENTATIONS = ["floor-copy", "torch-unmasked", "eager", "compiled", *KERNELS]


@cache
def inputs(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, lengths, weight, bias, and the exact result, computed in fp64."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor(SHAPES[name])
    x = torch.randn(len(lengths), CHANNELS, max(SHAPES[name]), generator=random)
    weight, bias = torch.rand(CHANNELS, generator=random) + 0.5, torch.randn(CHANNELS, generator=random)
    exact = group_norm_gelu(x.double(), lengths, weight.double(), bias.double(), CHANNELS)
    return x, lengths, weight, bias, exact


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def callable_for(implementation: str, name: str, threads: int) -> Callable[[], Tensor]:
    x, lengths, weight, bias, exact = inputs(name)
    if implementation == "floor-copy":
        return x.clone
    if implementation == "torch-unmasked":

        def unmasked() -> Tensor:
            with torch.inference_mode():
                return functional.gelu(functional.group_norm(x, CHANNELS, weight, bias))

        return unmasked
    run: Callable[[Tensor, Tensor], Tensor]
    if implementation.startswith("cpp-"):
        isa = implementation.removeprefix("cpp-")
        run = group_norm_gelu_cpu.prepare(weight, bias, CHANNELS, isa=isa, threads=threads)
    else:
        torch.compiler.reset()
        op = torch.compile(group_norm_gelu, dynamic=False) if implementation == "compiled" else group_norm_gelu

        def run(x: Tensor, lengths: Tensor) -> Tensor:
            return op(x, lengths, weight, bias, CHANNELS)

    def call() -> Tensor:
        with torch.inference_mode():
            return run(x, lengths)

    eager_error = (group_norm_gelu(x, lengths, weight, bias, CHANNELS) - exact).abs().max().item()
    error = (call() - exact).abs().max().item()
    assert error <= 2 * eager_error + 1e-6, f"error {error:.1e}, eager {eager_error:.1e}"
    return call


@pytest.mark.filterwarnings("default")  # torch.compile warns of its own deprecations
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 2], indirect=True, ids=["threads=1", "threads=2"])
@pytest.mark.parametrize("name", SHAPES)
def test_group_norm_gelu(benchmark: Any, name: str, threads: int, implementation: str) -> None:
    call = callable_for(implementation, name, threads)
    benchmark.group = f"group_norm_gelu-{name} threads={threads}"
    benchmark.name = implementation
    benchmark.extra_info["baseline"] = implementation == "torch-unmasked"
    benchmark.extra_info["valid_bytes"] = 4 * CHANNELS * sum(SHAPES[name])
    benchmark.extra_info["all_bytes"] = 4 * inputs(name)[0].numel()
    benchmark.pedantic(call, rounds=15, iterations=1, warmup_rounds=2)
