"""Joint decoding on a GPU: eager, compiled and Triton, beside a bare GEMM and a copy of as many bytes.

    python -m pytest benchmarks/bench_decode_triton.py --benchmark-only

`triton-graph` is a CUDA graph of the launches, without the host's part.
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
from merfast.ops import decode_triton
from merfast.ops.decode import DecodeWeights, decode

pytestmark = on_a_gpu

STRUCTURES, CLASSES = 3, 6
TEMPERATURE, LIMIT = 0.7981, 5.0


class Shape(NamedTuple):
    batch: int
    dim: int
    units: int
    dtype: torch.dtype


SHAPES = {
    "B=1 D=128 fp32": Shape(1, 128, 64, torch.float32),
    "B=64 D=128 fp32": Shape(64, 128, 64, torch.float32),
    "B=4096 D=256 bf16": Shape(4096, 256, 256, torch.bfloat16),
}
if INTERPRETED:
    SHAPES = {"toy": Shape(3, 24, 20, torch.bfloat16)}
# What takes longest to prepare comes last.
IMPLEMENTATIONS = ["floor-gemm", "floor-copy", "eager", "triton", "triton-graph", "compiled"]
Result = tuple[Tensor, Tensor]


@cache
def inputs(name: str) -> tuple[list[Tensor], DecodeWeights, Tensor, Result, Result]:
    """Several z, weights, mix, and for the first z the result in fp64 and eagerly."""
    batch, dim, units, dtype = SHAPES[name]
    random = torch.Generator(DEVICE).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, device=DEVICE)

    weights = DecodeWeights(
        draw(STRUCTURES, CLASSES, dim) / dim**0.5,
        draw(STRUCTURES, CLASSES),
        draw(STRUCTURES, units, dim + CLASSES) / dim**0.5,
        draw(STRUCTURES, units),
        draw(STRUCTURES, units) / units**0.5,
        draw(STRUCTURES),
        draw(STRUCTURES, CLASSES),
    )
    weights = DecodeWeights(*(w.to(dtype) for w in weights))
    mix = torch.full((STRUCTURES,), 1 / STRUCTURES, device=DEVICE, dtype=dtype)
    zs = [draw(STRUCTURES, batch, dim).to(dtype) for _ in range(CALLS)]
    double = DecodeWeights(*(w.double() for w in weights))
    exact = decode(zs[0].double(), double, mix.double(), TEMPERATURE, LIMIT)
    return zs, weights, mix, exact, decode(zs[0], weights, mix, TEMPERATURE, LIMIT)


def moved_bytes(name: str) -> int:
    """z and the weights read once, posterior and valence written once."""
    zs, weights, _, _, eager = inputs(name)
    return sum(t.nbytes for t in (zs[0], *weights, *eager))


def calls_for(implementation: str, name: str) -> list[Call]:
    zs, weights, mix, exact, eager = inputs(name)
    if implementation == "floor-copy":
        return copies(moved_bytes(name))
    if implementation == "floor-gemm":
        columns = torch.cat([weights.hidden_weight[:, :, : zs[0].shape[2]], weights.emotion_weight], 1).mT.contiguous()
        product = zs[0].new_empty(*zs[0].shape[:2], columns.shape[2])
        return [lambda z=z: torch.bmm(z, columns, out=product) for z in zs]
    step: Callable[[Tensor], Result]
    if implementation.startswith("triton"):
        step = decode_triton.prepare(weights, mix, TEMPERATURE, LIMIT)
    else:
        torch.compiler.reset()
        op = torch.compile(decode, dynamic=False, backend=BACKEND) if implementation == "compiled" else decode

        def step(z: Tensor) -> Result:
            with torch.inference_mode():
                return op(z, weights, mix, TEMPERATURE, LIMIT)

    for got, plain, reference in zip(step(zs[0]), eager, exact, strict=True):
        check_error(got, plain, reference)
    return [lambda z=z: step(z) for z in zs]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decode(benchmark: Any, name: str, implementation: str) -> None:
    moved = None if implementation == "floor-gemm" else moved_bytes(name)
    calls = calls_for(implementation, name)
    run(benchmark, f"decode {name}", implementation, calls, moved=moved, graph=implementation.endswith("graph"))
