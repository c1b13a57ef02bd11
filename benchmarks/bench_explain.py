"""What attention costs where it is asked for, beside the same without: gatherings, passes, and a clip from its file.

    pytest benchmarks/bench_explain.py --benchmark-only --benchmark-columns=min,median,iqr --benchmark-sort=name

"off" is what runs where nothing asks; see also `bench_afg.py`, which measures that alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import merfast
from benchmarks.bench_afg import GROUPS, SHAPES, inputs
from benchmarks.bench_clip import engine
from merfast.models import inputs_of
from merfast.ops import afg_cpu
from merfast.ops.afg import GatherGroup, Gathering, prepare_group
from merfast.types import Batch

CASES = {name: [SHAPES[name]] for name in ("mini", "batch", "long")} | GROUPS
each_way = pytest.mark.parametrize("explain", [False, True], ids=["off", "on"])


@pytest.mark.parametrize("kernels", ["reference", "cpp"])
@pytest.mark.parametrize("name", CASES)
@each_way
def test_gatherings(benchmark: BenchmarkFixture, name: str, kernels: str, explain: bool) -> None:
    made = [inputs(shape, torch.float32) for shape in CASES[name]]
    weights = [w for _, _, w, _, _ in made]
    group: GatherGroup = prepare_group(weights) if kernels == "reference" else afg_cpu.prepare_group(weights)
    plain = [Gathering(x, offsets, guide) for x, offsets, _, guide, _ in made]
    outputs = [torch.empty(len(c.x), len(w.score)) for c, w in zip(plain, weights, strict=True)]
    asking = [c._replace(attention=a) for c, a in zip(plain, outputs, strict=True)]
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(group(plain), group(asking), strict=True))
        label(benchmark, f"gatherings {name}, {kernels}", explain)
        benchmark.pedantic(group, (asking if explain else plain,), rounds=60, iterations=1, warmup_rounds=3)


@cache
def ready() -> merfast.Engine:
    return engine(device="cpu")


@pytest.mark.parametrize("count", [1, 16])
@each_way
def test_fusion(benchmark: BenchmarkFixture, count: int, explain: bool) -> None:
    """What comes after the encoders, for windows of 4 s with the packaged bundle."""
    inference = ready()._workers[0].inference
    model = inference.bundle.model
    with torch.inference_mode():
        features = model.encode(*inputs_of(Batch.pack([inference.example(4.0)] * count)))
        call = (
            (lambda: model.average(model.explain(features)[0]))
            if explain
            else lambda: model.average(model.fuse(features))
        )
        label(benchmark, f"fusion of {count} windows of 4 s", explain)
        benchmark.pedantic(call, rounds=100, warmup_rounds=3)


@each_way
def test_pass(benchmark: BenchmarkFixture, explain: bool) -> None:
    """A window of 4 s with the packaged bundle, encoders and all, to its result."""
    inference = ready()._workers[0].inference
    window = inference.example(4.0)
    window = replace(window, times=tuple(0.2 * k for k in range(len(window.crops))), explain=explain)

    def call() -> object:
        pending = inference.start([window])
        return pending.result(), pending.attention()

    label(benchmark, "pass of a window of 4 s", explain)
    benchmark.pedantic(call, rounds=40, warmup_rounds=2)


@each_way
def test_clip(benchmark: BenchmarkFixture, clip: Path, explain: bool) -> None:
    label(benchmark, "clip, file to prediction", explain)
    benchmark.pedantic(ready().predict, ([clip],), {"explain": explain}, rounds=9, warmup_rounds=1)


def label(benchmark: BenchmarkFixture, group: str, explain: bool) -> None:
    benchmark.group, benchmark.name = group, "on" if explain else "off"
    benchmark.extra_info["baseline"] = not explain
