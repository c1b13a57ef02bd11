"""HuBERT-large and ViT-large on a GPU: what research scripts do, in fp32, against `Engine.predict` in bf16.

    python -m pytest benchmarks/bench_encoders_cuda.py -o python_files='bench_*.py' --benchmark-only

Weights are random. Times are wall clock, file contents in memory to predictions on the CPU, as callers see them. With
TRITON_INTERPRET=1 the same runs on the CPU with tiny models, to see that it is right; its times mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("av", reason="PyAV is not installed")

from benchmarks.cuda_timing import DEVICE, INTERPRETED
from benchmarks.pipeline_inputs import CROPS, FACE, SIDE, VOICE, Media, random_clip
from benchmarks.pipeline_sides import Fast, Reference, Stopwatch
from merfast import bundle as bundles
from merfast import compiled
from merfast.ops.ragged import Ragged
from merfast.plan import make_plan
from merfast.runtime import onnx, tensorrt

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("default"),
]

SIZE = "tiny" if INTERPRETED else "large"
CLIPS = 3 if INTERPRETED else 32
WINDOWS = 5 if INTERPRETED else 200
BUDGET = 0.03  # of posteriors
RUNTIMES = ["torch"] if INTERPRETED else ["torch", "tensorrt"]


@pytest.fixture(scope="module")
def bundle(random_bundle: Callable[[str, str], Path]) -> Path:
    return random_bundle(SIZE, str(DEVICE))


@cache
def clips() -> list[Media]:
    return [random_clip(seed) for seed in range(CLIPS)]


@cache
def reference(root: Path) -> Reference:
    return Reference(root, str(DEVICE), Stopwatch(str(DEVICE)))


@cache
def exact(root: Path) -> Any:
    """The reference's answers."""
    return reference(root).predict(clips())


@cache
def engine(root: Path, runtime: str) -> Fast:
    if runtime == "tensorrt" and (why := tensorrt.available() or onnx.missing()):
        pytest.skip(why)
    return Fast(root, str(DEVICE), Stopwatch(str(DEVICE)), runtime=runtime, precision="bf16")


@pytest.mark.parametrize("case", ["eager fp32", *(f"{r} bf16" for r in RUNTIMES)])
def test_throughput(benchmark: Any, bundle: Path, case: str) -> None:
    runtime = case.split()[0]
    posterior, valence = exact(bundle)
    assert np.ptp(posterior, axis=0).max() > 0.2
    side: Any = reference(bundle) if runtime == "eager" else engine(bundle, runtime)
    got = side.predict(clips())
    assert np.abs(got[0] - posterior).max() <= BUDGET
    seconds = sum(c.seconds for c in clips())
    benchmark.group, benchmark.name = f"{CLIPS} clips, {SIZE} models", case
    error = float(np.abs(got[0] - posterior).max())
    benchmark.extra_info.update(baseline=runtime == "eager", posterior_difference=error)
    benchmark.extra_info["valence_difference"] = float(np.abs(got[1] - valence).max())
    benchmark.pedantic(side.predict, (clips(),), rounds=3 if runtime == "eager" else 7, warmup_rounds=1)
    if benchmark.stats is not None:
        rate = seconds / benchmark.stats.stats.median
        benchmark.extra_info["note"] = f"{rate:.0f} x real time, posteriors within {error:.0e}"
        if runtime != "eager":
            began = time.perf_counter()
            reference(bundle).predict(clips())
            slower = (time.perf_counter() - began) / benchmark.stats.stats.median
            benchmark.extra_info["headline"] = {
                "what": f"decoded clips of 2 to 8 s, 16 crops each, HuBERT-{SIZE} and ViT-{SIZE}, {case}",
                "result": f"{CLIPS / benchmark.stats.stats.median:.1f} clips/s, {rate:.0f} x real time",
                "against": f"{slower:.1f} x transformers in fp32, clip by clip; probabilities within {error:.1e}",
            }


@pytest.mark.parametrize("case", ["eager fp32", *(f"{r} bf16" for r in RUNTIMES)])
def test_latency(benchmark: Any, bundle: Path, case: str) -> None:
    """One window of 4 s, decoded, alone: the median, and the 99th percentile in the note."""
    runtime = case.split()[0]
    side: Any = reference(bundle) if runtime == "eager" else engine(bundle, runtime)
    window = [random_clip(7, 4.0)]
    for _ in range(5):
        side.predict(window)
    seconds = []
    for _ in range(WINDOWS):
        began = time.perf_counter()
        side.predict(window)
        seconds.append(time.perf_counter() - began)
    median, late = np.quantile(seconds, (0.5, 0.99))
    benchmark.group, benchmark.name = f"a window of 4 s, {SIZE} models", case
    note = f"p50 {median * 1e3:.2f} ms, p99 {late * 1e3:.2f} ms of {WINDOWS}"
    benchmark.extra_info.update(baseline=runtime == "eager", p50=median, p99=late, note=note)
    if runtime != "eager":
        what = f"latency of one decoded window of 4 s, HuBERT-{SIZE} and ViT-{SIZE}, {case}"
        result = f"median {median * 1e3:.2f} ms, 99th percentile {late * 1e3:.2f} ms"
        benchmark.extra_info["headline"] = {"what": what, "result": result, "against": f"{WINDOWS} windows"}
    benchmark.pedantic(side.predict, (window,), rounds=WINDOWS // 5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("stream", [VOICE, FACE])
def test_no_size_gives_nan(benchmark: Any, bundle: Path, stream: str, runtime: str) -> None:
    """Smallest, typical and largest batches of each profile, loud and quiet, bright and dark."""
    fast = engine(bundle, runtime).engine
    encoder = fast.bundle.model.foundations[stream]
    config = bundles.read_config(bundle)
    assert make_plan(fast.config, config).choice(f"encode {stream}") == f"{runtime} bf16"
    random = torch.Generator().manual_seed(0)
    worst = 0.0
    for profile in compiled._profiles(encoder.network, config):
        for k in range(3):
            sizes = {axis: size[k] for axis, size in profile.items()}
            if INTERPRETED:
                sizes = {axis: min(size, 20_000 if axis == "samples" else 4) for axis, size in sizes.items()}
            rows, length = sizes[next(iter(sizes))], sizes.get("samples", 1)
            if stream == VOICE:
                values = torch.randn(rows * length, generator=random)
                values[: length // 2] *= 1e-6
            else:
                values = torch.randint(0, 256, (rows, SIDE, SIDE, 3), generator=random, dtype=torch.uint8)
                values[0] = 0
                values[-1] = 255
            offsets = torch.arange(rows + 1) * length
            with torch.inference_mode():
                out = encoder(Ragged(values.to(DEVICE), offsets.to(DEVICE))).values
            assert len(out) >= rows
            assert bool(out.isfinite().all()), f"NaN at {sizes}"
            worst = max(worst, out.abs().max().item())
    benchmark.group, benchmark.name = "sizes without NaN", f"{stream} {runtime}"
    benchmark.extra_info["note"] = f"largest value {worst:.0f}"
    few = Ragged(values[: CROPS if stream == FACE else length].to(DEVICE), offsets[:2].to(DEVICE))
    few = Ragged(few.values, torch.tensor([0, len(few.values)], device=DEVICE))
    with torch.inference_mode():
        benchmark.pedantic(encoder, (few,), rounds=3)
