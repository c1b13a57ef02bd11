"""Decoded windows of 4 s on a GPU: how many a second the packaged bundle predicts, and how soon one is predicted.

    python -m pytest benchmarks/bench_windows_cuda.py -o python_files='bench_*.py' --benchmark-only

Times are wall clock, from windows in the host's memory (or with crops on the device) to predictions in the host's.
Passes are pipelined as `Engine.predict` does: the next one is queued before a result is read.

Throughput, packaged bundle, target 2,000 windows a second. Two floors:

- Launches. Its encoders run eagerly, and a pass queues so many kernels whatever its size; each case notes how many, as
  operations of torch that are no views, counted as they are dispatched. On the meta device, which takes the same way,
  they are 115 for the log-mel encoder, 174 for prosody and 77 for each 512 crops; fusion, 409 by itself, is one graph
  and a dozen copies. At 5 us for each, what Python and the driver take at best, passes of 16 windows (the default 64 s)
  allow 8,000 windows a second, and passes of 64 windows 24,000.
- Bytes. A window is 64,000 samples in fp32 and 20 crops of 48 x 48 x 3 bytes, 394 KB: 2,000 a second are 0.8 GB/s over
  the bus, and less than that with crops on the device. It is copied twice in the host's memory, into a batch and into
  pinned memory.

So at 2,000 windows a second neither binds.

Latency, HuBERT-base and ViT-base with random weights in bf16, one window at a time: target p50 5 ms, p99 8 ms.

With TRITON_INTERPRET=1 the same runs on the CPU with tiny models, to see that it is right; its times mean nothing.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers", reason="transformers is not installed")

from benchmarks.cuda_timing import DEVICE, INTERPRETED
from benchmarks.pipeline_inputs import CROPS, random_clip
from merfast import Engine, UntrainedWarning
from merfast.inference import Inference
from merfast.runtime import onnx, tensorrt
from merfast.types import SAMPLE_RATE, Window

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("default"),
]

SECONDS = 1.0 if INTERPRETED else 4.0
EACH = 2 if INTERPRETED else 64  # different windows
PASSES = 2 if INTERPRETED else 32  # in a round
WINDOWS = 5 if INTERPRETED else 500  # one at a time
PER_PASS = (2,) if INTERPRETED else (16, 64, 256)
RUNTIMES = ("torch",) if INTERPRETED else ("torch", "tensorrt")
BUDGET = 5e-3  # of posteriors, against the CPU in fp32: convolutions may use TF32


class Launches(TorchDispatchMode):
    """Counts operations that are no views and do more than ask for memory."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not views and func.overloadpacket.__name__ not in ("empty", "empty_like", "empty_strided")
        return func(*args, **(kwargs or {}))


@cache
def inference(root: Path | None, device: str, batch_seconds: float = 64.0, **options: str) -> Inference:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedWarning)
        return (
            Engine(root, device=device, detector="none", batch_seconds=batch_seconds, **options)._workers[0].inference
        )  # type: ignore[arg-type]


@cache
def windows() -> list[Window]:
    """Speech-like noise and pictures, as the packaged bundle reads them."""
    preprocessing = inference(None, "cpu").bundle.config.preprocessing
    made = []
    for seed in range(EACH):
        random = np.random.default_rng(seed)
        audio = random.standard_normal(int(SECONDS * SAMPLE_RATE), dtype=np.float32) * 0.1
        count, size = int(SECONDS * preprocessing.frame_rate), preprocessing.crop_size
        crops = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        made.append(Window(0.0, SECONDS, audio, crops, count, 0, {}))
    return made


def on_device(window: Window) -> Window:
    crops: Any = torch.from_numpy(window.crops).to(DEVICE)
    return Window(window.start, window.end, window.audio, crops, window.sampled, window.track, {})


@pytest.mark.parametrize("per_pass", PER_PASS)
@pytest.mark.parametrize("crops", ["host", "device"])
def test_throughput(benchmark: Any, crops: str, per_pass: int) -> None:
    made = inference(None, str(DEVICE), batch_seconds=per_pass * SECONDS)
    each = windows() if crops == "host" else [on_device(w) for w in windows()]
    together = [each[i % EACH] for i in range(per_pass)]
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()  # crops on the device are there
    exact = inference(None, "cpu").start(windows()[:2]).result()
    error = max(np.abs(a[0] - b[0]).max() for a, b in zip(made.start(each[:2]).result(), exact, strict=True))
    assert error <= BUDGET

    def some_passes() -> None:
        pending = deque()
        for _ in range(PASSES):
            pending.append(made.start(together))
            if len(pending) > made.ahead:
                pending.popleft().result()
        while pending:
            pending.popleft().result()

    some_passes()
    with Launches() as launches:
        made.start(together).result()
    benchmark.group = f"windows of {SECONDS:.0f} s, packaged bundle"
    benchmark.name = f"crops on the {crops}, {per_pass} a pass"
    benchmark.extra_info.update(launches=launches.count, posterior_difference=float(error))
    benchmark.pedantic(some_passes, rounds=1 if INTERPRETED else 10)
    if benchmark.stats is not None:
        rate = PASSES * per_pass / benchmark.stats.stats.median
        benchmark.extra_info["windows_per_second"] = rate
        benchmark.extra_info["note"] = f"{rate:.0f} windows a second, {launches.count} launches a pass"
        benchmark.extra_info["headline"] = {
            "what": f"decoded windows of {SECONDS:.0f} s, packaged bundle, {benchmark.name}",
            "result": f"{rate:.0f} windows a second",
            "against": f"probabilities within {error:.1e} of the CPU's",
        }


@pytest.fixture(scope="module")
def foundation(random_bundle: Callable[[str, str], Path]) -> Path:
    return random_bundle("tiny" if INTERPRETED else "base", str(DEVICE))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_latency(benchmark: Any, foundation: Path, runtime: str) -> None:
    """Windows one at a time: the median and the 99th percentile in the note."""
    if runtime == "tensorrt" and (why := tensorrt.available() or onnx.missing()):
        pytest.skip(why)
    made = inference(foundation, str(DEVICE), runtime=runtime, precision="bf16")
    clips = [random_clip(seed, SECONDS) for seed in range(4)]
    alone = [Window(0.0, c.seconds, c.audio, c.crops, CROPS, 0, {}) for c in clips]
    together = made.start(alone).result()
    seconds = []
    for i in range(10 + WINDOWS):
        began = time.perf_counter()
        ((posterior, _),) = made.start([alone[i % 4]]).result()
        seconds.append(time.perf_counter() - began)
        assert np.abs(posterior - together[i % 4][0]).max() <= 0.03
    median, late = np.quantile(seconds[10:], (0.5, 0.99))
    size = "tiny" if INTERPRETED else "base"
    benchmark.group, benchmark.name = f"one window of {SECONDS:.0f} s, {size} models, bf16", runtime
    note = f"p50 {median * 1e3:.2f} ms, p99 {late * 1e3:.2f} ms of {WINDOWS}"
    benchmark.extra_info.update(p50=median, p99=late, note=note)
    benchmark.extra_info["headline"] = {
        "what": f"one decoded window of {SECONDS:.0f} s, HuBERT-{size} and ViT-{size}, bf16, {runtime}",
        "result": f"median {median * 1e3:.2f} ms, 99th percentile {late * 1e3:.2f} ms",
        "against": f"{WINDOWS} windows, one at a time",
    }
    benchmark.pedantic(lambda: made.start([alone[0]]).result(), rounds=max(3, WINDOWS // 5))
