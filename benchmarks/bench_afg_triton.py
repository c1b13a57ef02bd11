"""AFG on a GPU: eager, compiled and Triton, beside a bare GEMM and a copy of as many bytes.

    python -m pytest benchmarks/bench_afg_triton.py --benchmark-only

`triton-graph` is a CUDA graph of the launches, without the host's part. Sets are of one length, except in `ragged`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.cuda_timing import BACKEND, CALLS, DEVICE, INTERPRETED, Call, check_error, copies, on_a_gpu, run
from merfast.ops import afg_triton
from merfast.ops.afg import AFGWeights, Gathering, afg

pytestmark = on_a_gpu


class Shape(NamedTuple):
    lengths: tuple[int, ...]
    dim: int
    width: int
    heads: int
    dtype: torch.dtype = torch.bfloat16


SHAPES = {
    "B=64 T=500 D=1024 bf16": Shape((500,) * 64, 1024, 128, 4),
    "B=64 T=8..1016 D=1024 bf16": Shape(tuple(range(8, 1024, 16)), 1024, 128, 4),
    "B=1 T=500 D=1024 bf16": Shape((500,), 1024, 128, 4),
    "B=64 T=64 D=128 fp32": Shape((64,) * 64, 128, 64, 4, torch.float32),
}
if INTERPRETED:
    SHAPES = {"toy": Shape((3, 0, 70), 32, 16, 4)}
# What takes longest to prepare comes last.
IMPLEMENTATIONS = ["floor-gemm", "floor-copy", "eager", "triton", "triton-graph", "compiled"]


@cache
def inputs(name: str) -> tuple[list[Tensor], Tensor, AFGWeights, Tensor, Tensor]:
    """Several x, offsets, weights, and for the first x the result in fp64 and eagerly."""
    shape = SHAPES[name]
    random = torch.Generator(DEVICE).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, device=DEVICE)

    weights = AFGWeights(
        draw(shape.width, shape.dim) / shape.dim**0.5,
        draw(shape.width),
        draw(shape.heads, shape.width) / shape.width**0.5,
        draw(shape.dim),
    )
    weights = AFGWeights(*(None if w is None else w.to(shape.dtype) for w in weights))  # type: ignore[arg-type]
    offsets = torch.tensor([0, *shape.lengths], device=DEVICE).cumsum(0)
    xs = [draw(sum(shape.lengths), shape.dim).to(shape.dtype) for _ in range(CALLS)]
    double = AFGWeights(*(None if w is None else w.double() for w in weights))  # type: ignore[arg-type]
    return xs, offsets, weights, afg(xs[0].double(), offsets, double), afg(xs[0], offsets, weights)


def moved_bytes(name: str) -> int:
    """x and the weights read once, z written once."""
    xs, offsets, weights, _, eager = inputs(name)
    return sum(t.nbytes for t in (xs[0], offsets, *weights, eager) if t is not None)


def calls_for(implementation: str, name: str) -> list[Call]:
    xs, offsets, weights, exact, eager = inputs(name)
    if implementation == "floor-copy":
        return copies(moved_bytes(name))
    if implementation == "floor-gemm":
        hidden = xs[0].new_empty(len(xs[0]), len(weights.weight))
        return [lambda x=x: torch.mm(x, weights.weight.T, out=hidden) for x in xs]
    gather: Callable[[Tensor], Tensor]
    if implementation.startswith("triton"):
        group = afg_triton.prepare_group([weights])

        def gather(x: Tensor) -> Tensor:
            return group([Gathering(x, offsets)])[0]
    else:
        torch.compiler.reset()
        op = torch.compile(afg, dynamic=False, backend=BACKEND) if implementation == "compiled" else afg

        def gather(x: Tensor) -> Tensor:
            with torch.inference_mode():
                return op(x, offsets, weights)

    check_error(gather(xs[0]), eager, exact)
    return [lambda x=x: gather(x) for x in xs]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_afg(benchmark: Any, name: str, implementation: str) -> None:
    moved = None if implementation == "floor-gemm" else moved_bytes(name)
    calls = calls_for(implementation, name)
    run(benchmark, f"afg {name}", implementation, calls, moved=moved, graph=implementation.endswith("graph"))
