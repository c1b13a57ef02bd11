"""AFG on the CPU: eager, compiled, and each instruction set in C++, beside two floors, at equal thread counts.

    pytest benchmarks/bench_afg.py --benchmark-only --benchmark-columns=min,median,iqr --benchmark-sort=name

`floor-gemm` is the bare x W^T in torch, `floor-copy` a copy of x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from merfast.ops import afg_cpu
from merfast.ops.afg import AFGWeights, afg


class Shape(NamedTuple):
    lengths: tuple[int, ...]
    dim: int
    width: int
    heads: int
    guide_dim: int = 0


SHAPES = {
    "mini": Shape((20, 40, 60, 80, 100, 120, 140, 160), 128, 64, 4),
    "tiny-sets": Shape((3,) * 64, 128, 64, 4, 128),
    "large": Shape((500,) * 16, 1024, 256, 4),
    "long": Shape((5000,), 512, 256, 4),
}
KERNELS = [f"cpp-{isa}" for isa in afg_cpu.isas()]
IMPLEMENTATIONS = ["floor-gemm", "floor-copy", "eager", "compiled", *KERNELS]


@cache
def inputs(name: str) -> tuple[Tensor, Tensor, AFGWeights, Tensor | None, Tensor]:
    """x, offsets, weights, guide, and the exact result, computed in fp64."""
    shape = SHAPES[name]
    random = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    x = draw(sum(shape.lengths), shape.dim)
    weights = AFGWeights(
        draw(shape.width, shape.dim) / shape.dim**0.5,
        draw(shape.width),
        draw(shape.heads, shape.width) / shape.width**0.5,
        draw(shape.dim),
        draw(shape.width, shape.guide_dim) / shape.guide_dim**0.5 if shape.guide_dim else None,
    )
    guide = draw(len(shape.lengths), shape.guide_dim) if shape.guide_dim else None
    offsets = torch.tensor([0, *shape.lengths]).cumsum(0)
    double = AFGWeights(*[w if w is None else w.double() for w in weights])
    exact = afg(x.double(), offsets, double, None if guide is None else guide.double())
    return x, offsets, weights, guide, exact


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def callable_for(implementation: str, name: str, threads: int) -> Callable[[], Tensor]:
    x, offsets, weights, guide, exact = inputs(name)
    if implementation == "floor-gemm":
        hidden = torch.empty(len(x), len(weights.weight))
        return lambda: torch.mm(x, weights.weight.T, out=hidden)
    if implementation == "floor-copy":
        target = torch.empty_like(x)
        return lambda: target.copy_(x)
    run: Callable[..., Tensor]
    if implementation == "eager":
        run = afg
    elif implementation == "compiled":
        torch.compiler.reset()
        run = torch.compile(afg, dynamic=False)
    else:
        gather = afg_cpu.prepare(weights, isa=implementation.removeprefix("cpp-"), threads=threads)

        def run(x: Tensor, offsets: Tensor, _: AFGWeights, guide: Tensor | None) -> Tensor:
            return gather(x, offsets, guide)

    def call() -> Tensor:
        with torch.inference_mode():
            return run(x, offsets, weights, guide)

    eager_error = (afg(x, offsets, weights, guide) - exact).abs().max().item()
    error = (call() - exact).abs().max().item()
    assert error <= 2 * eager_error + 1e-6, f"error {error:.1e}, eager {eager_error:.1e}"
    return call


@pytest.mark.filterwarnings("default")  # torch.compile warns of its own deprecations
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 2], indirect=True, ids=["threads=1", "threads=2"])
@pytest.mark.parametrize("name", SHAPES)
def test_afg(benchmark: Any, name: str, threads: int, implementation: str) -> None:
    call = callable_for(implementation, name, threads)
    shape = SHAPES[name]
    rows = sum(shape.lengths)
    benchmark.group = f"afg-{name} threads={threads}"
    benchmark.name = implementation
    benchmark.extra_info["baseline"] = implementation == "eager"
    benchmark.extra_info["shape"] = {**shape._asdict(), "lengths": f"{len(shape.lengths)} sets, {rows} rows"}
    benchmark.extra_info["gemm_flops"] = 2 * rows * shape.dim * shape.width
    benchmark.extra_info["x_bytes"] = 4 * rows * shape.dim
    benchmark.pedantic(call, rounds=15 if rows * shape.dim > 1_000_000 else 100, iterations=1, warmup_rounds=3)
