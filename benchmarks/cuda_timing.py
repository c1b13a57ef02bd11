"""Device time for the GPU benchmarks, and what they are compared with: the bandwidth of a copy in the same process.

A round reads a gigabyte, which empties the L2 cache of everything else and leaves no line to write back, and gives the
host a head start; then come an event, `CALLS` calls over inputs of their own, and an event. The time of a call is what
lies between the events, shared among them. A call that waits for the GPU shows what that costs.

Under TRITON_INTERPRET=1 the same code runs on CPU tensors, at toy sizes, to see that it is right. Its times mean
nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
CALLS = 2 if INTERPRETED else 4
ROUNDS = 1 if INTERPRETED else 40
WARM_SECONDS = 0.0 if INTERPRETED else 0.2
COPY_BYTES = 2**16 if INTERPRETED else 2**30
BACKEND = "eager" if INTERPRETED else "inductor"  # of torch.compile

Call = Callable[[], object]


class DeviceClock:
    """A clock that `timed` moves on by what its rounds took on the device."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


clock = DeviceClock()

on_a_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("default"),  # torch.compile warns of its own deprecations
    pytest.mark.benchmark(timer=clock, warmup=False),
]
"""Marks of the benchmarks' modules."""


@cache
def _head_start() -> torch.Tensor:
    return torch.zeros(COPY_BYTES // 4, device=DEVICE)


def timed(calls: Sequence[Call], count: int | None = None) -> Call:
    """A round of calls; `count` says how many they stand for, if not one each. It moves `clock` by one call's time."""
    count = count or len(calls)

    def on_the_gpu() -> None:
        for _ in range(2):
            _head_start().sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        clock.now += start.elapsed_time(end) / 1e3 / count

    def interpreted() -> None:
        start = time.perf_counter()
        for call in calls:
            call()
        clock.now += (time.perf_counter() - start) / count

    return interpreted if INTERPRETED else on_the_gpu


def warm(call: Call) -> None:
    """Repeat a round until the clocks have settled."""
    until = time.perf_counter() + WARM_SECONDS
    call()
    while time.perf_counter() < until:
        call()


def median_seconds(calls: Sequence[Call], rounds: int = ROUNDS) -> float:
    """Median device time of a call, outside of pytest-benchmark."""
    one_round = timed(calls)
    warm(one_round)
    seconds = []
    for _ in range(rounds):
        before = clock.now
        one_round()
        seconds.append(clock.now - before)
    return sorted(seconds)[rounds // 2]


@cache
def copy_bandwidth() -> float:
    """Bytes a second that a copy within the device's memory moves, read and written, at sizes far beyond its caches."""
    source = torch.rand(COPY_BYTES // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds([lambda: target.copy_(source)])


def copies(moved: int) -> list[Call]:
    """Calls that copy tensors of half of `moved` bytes: as much memory traffic as an op that moves so many."""

    def one() -> Call:
        source = torch.rand(max(1, moved // 8), device=DEVICE)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return [one() for _ in range(CALLS)]


def captured(calls: Sequence[Call]) -> Call:
    """The calls as one CUDA graph; interpreted, just the calls."""
    if INTERPRETED:
        return lambda: [call() for call in calls]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph.replay


def run(
    benchmark: Any, group: str, name: str, calls: Sequence[Call], *, moved: int | None = None, graph: bool = False
) -> None:
    """Time `calls` as the case `name` of `group`, whose baseline is the case "eager".

    Args:
        benchmark: pytest-benchmark's fixture.
        group, name: of the case.
        calls: the same work on different inputs.
        moved: the fewest bytes that one of them must read and write; shown against the bandwidth of a copy.
        graph: time a CUDA graph of the calls, which leaves the host out.
    """
    benchmark.group, benchmark.name = group, name
    benchmark.extra_info["baseline"] = name == "eager"
    one_round = timed([captured(calls)], len(calls)) if graph else timed(calls)
    warm(one_round)
    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
    if benchmark.stats is None or moved is None:
        return
    rate, copy = moved / benchmark.stats.stats.median, copy_bandwidth()
    benchmark.extra_info.update(bytes=moved, copy_bytes_per_second=copy, of_copy=rate / copy)
    benchmark.extra_info["note"] = f"{rate / 1e12:.2f} TB/s, {rate / copy:.0%} of a copy"


def largest_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference, as a Python number; NaN where there is one."""
    return (got.double() - exact).abs().max().item()


def check_error(got: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> None:
    """Fail where `got` is off by more than twice what eager torch is in this dtype, and a last rounding."""
    floor = max(1.0, exact.abs().max().item()) * max(torch.finfo(eager.dtype).eps, 1e-6)
    error, bound = largest_error(got, exact), 2 * largest_error(eager, exact) + floor
    assert error <= bound, f"error {error:.1e}, bound {bound:.1e}"
