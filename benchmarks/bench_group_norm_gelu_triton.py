"""Masked GroupNorm with GELU on a GPU: eager, compiled and Triton, beside a copy of as many bytes.

    python -m pytest benchmarks/bench_group_norm_gelu_triton.py --benchmark-only

`torch-unmasked` is torch's group_norm and gelu on the whole padded batch, which gives other values. `triton-graph` is a
CUDA graph of the launches, without the host's part. Shapes are those behind the first convolution of HuBERT base.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.cuda_timing import BACKEND, CALLS, DEVICE, INTERPRETED, Call, check_error, copies, on_a_gpu, run
from merfast.ops import group_norm_gelu_triton
from merfast.ops.group_norm_gelu import group_norm_gelu

pytestmark = on_a_gpu

CHANNELS = 8 if INTERPRETED else 512
SHAPES = {
    "16 clips of 4 s, bf16": (12_799,) * 16,
    "16 clips of 1 to 4 s, bf16": (12_799, 9_599, 6_399, 3_199) * 4,
    "4 clips of 16 s, bf16": (51_199,) * 4,
}
if INTERPRETED:
    SHAPES = {"toy": (50, 7)}
# What takes longest to prepare comes last.
IMPLEMENTATIONS = ["floor-copy", "torch-unmasked", "eager", "triton", "triton-graph", "compiled"]


@cache
def inputs(name: str) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Several x, lengths, weight, bias, and for the first x the result in fp64 and eagerly."""
    random = torch.Generator(DEVICE).manual_seed(0)
    lengths = torch.tensor(SHAPES[name], device=DEVICE)
    weight = torch.rand(CHANNELS, generator=random, device=DEVICE) + 0.5
    bias = torch.randn(CHANNELS, generator=random, device=DEVICE)
    size = len(lengths), CHANNELS, max(SHAPES[name])
    xs = [torch.randn(*size, generator=random, device=DEVICE, dtype=torch.bfloat16) for _ in range(CALLS)]
    with torch.inference_mode():
        exact = group_norm_gelu(xs[0].double(), lengths, weight.double(), bias.double(), CHANNELS)
        eager = group_norm_gelu(xs[0], lengths, weight, bias, CHANNELS)
    return xs, lengths, weight, bias, exact, eager


def moved_bytes(name: str) -> int:
    """Valid frames read once, all frames written once."""
    xs, *_ = inputs(name)
    return CHANNELS * sum(SHAPES[name]) * xs[0].element_size() + xs[0].nbytes


def calls_for(implementation: str, name: str) -> list[Call]:
    xs, lengths, weight, bias, exact, eager = inputs(name)
    if implementation == "floor-copy":
        return copies(moved_bytes(name))
    if implementation == "torch-unmasked":
        narrow = weight.to(xs[0].dtype), bias.to(xs[0].dtype)
        return [lambda x=x: functional.gelu(functional.group_norm(x, CHANNELS, *narrow)) for x in xs]
    op: Callable[[Tensor, Tensor], Tensor]
    if implementation.startswith("triton"):
        op = group_norm_gelu_triton.prepare(weight, bias, CHANNELS)
    else:
        torch.compiler.reset()
        compiled = implementation == "compiled"
        plain = torch.compile(group_norm_gelu, dynamic=False, backend=BACKEND) if compiled else group_norm_gelu

        def op(x: Tensor, lengths: Tensor) -> Tensor:
            with torch.inference_mode():
                return plain(x, lengths, weight, bias, CHANNELS)

    check_error(op(xs[0], lengths), eager, exact)
    return [lambda x=x: op(x, lengths) for x in xs]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_group_norm_gelu(benchmark: Any, name: str, implementation: str) -> None:
    calls = calls_for(implementation, name)
    graph = implementation.endswith("graph")
    run(benchmark, f"group_norm_gelu {name}", implementation, calls, moved=moved_bytes(name), graph=graph)
