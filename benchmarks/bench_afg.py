"""AFG on the CPU: eager, compiled, and each instruction set in C++, beside floors, at equal thread counts.

    pytest benchmarks/bench_afg.py --benchmark-only --benchmark-columns=min,median,iqr --benchmark-sort=name

`floor-gemm` is the bare x W^T in torch, `floor-onednn` the same in oneDNN, whose fp32 product torch takes on some
processors only; `floor-copy` is a copy of x. Names that end in `-bf16` do the same in bf16; the baseline is eager fp32.
"Loop" prepares each gathering of a group alone and calls one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from merfast.ops import afg_cpu
from merfast.ops.afg import AFGWeights, Gather, GatherGroup, Gathering, afg, prepare_group


class Shape(NamedTuple):
    lengths: tuple[int, ...]
    dim: int
    width: int
    heads: int
    guide_dim: int = 0


SHAPES = {
    "mini": Shape((20, 40, 60, 80, 100, 120, 140, 160), 128, 64, 4),
    "tiny-sets": Shape((3,) * 64, 128, 64, 4, 128),
    "one-clip": Shape((50,), 256, 128, 4),
    "batch": Shape((200,) * 16, 1024, 128, 4),
    "large": Shape((500,) * 16, 1024, 256, 4),
    "long": Shape((5000,), 512, 256, 4),
}
# What one batch asks for at once: frames of five streams, of which two are guided.
GROUPS = {
    f"group-{name}": [
        Shape((rows,) * sets, 128, 64, 4, guide_dim)
        for rows, guide_dim in ((60, 0), (60, 128), (40, 0), (40, 128), (9, 0))
    ]
    for name, sets in (("one-clip", 1), ("batch", 16))
}
KERNELS = [f"cpp-{isa}" for isa in afg_cpu.isas() + afg_cpu.isas(torch.bfloat16)]
FLOORS = ["floor-gemm", "floor-gemm-bf16", "floor-onednn", "floor-copy"]
IMPLEMENTATIONS = [*FLOORS, "eager", "eager-bf16", "compiled", "compiled-bf16", *KERNELS]


@cache
def inputs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, AFGWeights, Tensor | None, Tensor]:
    """x, offsets, weights, guide, and the exact result for them, computed in fp64."""
    random = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=random).to(dtype)

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


def callable_for(implementation: str, shape: Shape, threads: int) -> Callable[[], object]:
    dtype = torch.bfloat16 if implementation.endswith("bf16") else torch.float32
    x, offsets, weights, guide, exact = inputs(shape, dtype)
    if implementation.startswith("floor-gemm"):
        hidden = torch.empty(len(x), len(weights.weight), dtype=dtype)
        return lambda: torch.mm(x, weights.weight.T, out=hidden)
    if implementation == "floor-onednn":
        blocked, blocked_weight = x.to_mkldnn(), weights.weight.to_mkldnn()
        return lambda: torch.ops.aten.mkldnn_linear(blocked, blocked_weight)
    if implementation == "floor-copy":
        target = torch.empty_like(x)
        return lambda: target.copy_(x)
    run: Callable[..., Tensor]
    if implementation.startswith("eager"):
        run = afg
    elif implementation.startswith("compiled"):
        torch.compiler.reset()
        run = torch.compile(afg, dynamic=False)
    else:
        gather = afg_cpu.prepare(weights, isa=implementation.removeprefix("cpp-"), threads=threads)

        def run(x: Tensor, offsets: Tensor, _: AFGWeights, guide: Tensor | None) -> Tensor:
            return gather(x, offsets, guide)

    def call() -> Tensor:
        with torch.inference_mode():
            return run(x, offsets, weights, guide)

    check(call(), exact, afg(x, offsets, weights, guide))
    return call


def check(got: Tensor, exact: Tensor, eager: Tensor) -> None:
    eager_error = (eager - exact).abs().max().item()
    error = (got - exact).abs().max().item()
    floor = max(1e-6, torch.finfo(got.dtype).eps / 2 * exact.abs().max().item())
    assert error <= 2 * eager_error + floor, f"error {error:.1e}, eager {eager_error:.1e}"


@pytest.mark.filterwarnings("default")  # torch.compile warns of its own deprecations
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 2], indirect=True, ids=["threads=1", "threads=2"])
@pytest.mark.parametrize("name", SHAPES)
def test_afg(benchmark: Any, name: str, threads: int, implementation: str) -> None:
    shape = SHAPES[name]
    call = callable_for(implementation, shape, threads)
    rows = sum(shape.lengths)
    benchmark.group = f"afg-{name} threads={threads}"
    benchmark.name = implementation
    benchmark.extra_info["baseline"] = implementation == "eager"
    benchmark.extra_info["shape"] = {**shape._asdict(), "lengths": f"{len(shape.lengths)} sets, {rows} rows"}
    benchmark.extra_info["gemm_flops"] = 2 * rows * shape.dim * shape.width
    benchmark.extra_info["x_bytes"] = (2 if implementation.endswith("bf16") else 4) * rows * shape.dim
    benchmark.pedantic(call, rounds=15 if rows * shape.dim > 1_000_000 else 100, iterations=1, warmup_rounds=3)


@pytest.mark.parametrize("implementation", ["eager", "loop", "group"])
@pytest.mark.parametrize("threads", [1, 2], indirect=True, ids=["threads=1", "threads=2"])
@pytest.mark.parametrize("name", GROUPS)
def test_afg_group(benchmark: Any, name: str, threads: int, implementation: str) -> None:
    made = [inputs(shape, torch.float32) for shape in GROUPS[name]]
    calls = [Gathering(x, offsets, guide) for x, offsets, _, guide, _ in made]
    weights = [w for _, _, w, _, _ in made]
    group = {
        "eager": lambda: prepare_group(weights),
        "loop": lambda: in_turn([afg_cpu.prepare(w, threads=threads) for w in weights]),
        "group": lambda: afg_cpu.prepare_group(weights, threads=threads),
    }[implementation]()
    for got, eager, (*_, exact) in zip(group(calls), prepare_group(weights)(calls), made, strict=True):
        check(got, exact, eager)
    benchmark.group = f"afg-{name} threads={threads}"
    benchmark.name = implementation
    benchmark.extra_info["baseline"] = implementation == "eager"
    benchmark.pedantic(group, args=(calls,), rounds=100, iterations=1, warmup_rounds=3)


def in_turn(gathers: list[Gather]) -> GatherGroup:
    return lambda calls: [gather(*call) for gather, call in zip(gathers, calls, strict=True)]
