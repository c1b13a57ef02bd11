"""Everything after the encoders on a GPU: fusion, joint decoding and the average, eager and with the Triton kernels.

    python -m pytest benchmarks/bench_fusion_triton.py --benchmark-only

The model has the packaged bundle's kind of streams and three structures, with fresh weights. The table names the number
of launches of a call: kernels, copies and fills, as torch's profiler sees them.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.cuda_timing import BACKEND, CALLS, DEVICE, INTERPRETED, Call, on_a_gpu, run
from merfast.config import BundleConfig, FusionConfig, StreamConfig
from merfast.models import FusedModel
from merfast.ops import afg_triton, decode_triton
from merfast.ops.ragged import Ragged

pytestmark = on_a_gpu

STREAMS = (
    StreamConfig("voice", "audio", "logmel", 32, {"layers": 2, "heads": 2, "channels": 8}),
    StreamConfig("face", "video", "facecnn", 24, {"widths": [8, 16]}),
)
BATCHES = (1,) if INTERPRETED else (1, 64)
FRAMES = (3, 2) if INTERPRETED else (200, 20)  # of a clip of 4 s: voice, face
WIDTHS = (16, 8, 2, 8) if INTERPRETED else (128, 64, 4, 64)


@cache
def model_of(implementation: str) -> FusedModel:
    torch.manual_seed(0)
    fusion = FusionConfig(**dict(zip(("dim", "attention_dim", "heads", "valence_dim"), WIDTHS, strict=True)))
    model = FusedModel(BundleConfig("benchmark", False, STREAMS, fusion=fusion)).eval().to(DEVICE)
    if implementation.startswith("triton"):
        model.accelerate(afg_triton.prepare_group, decode_triton.prepare)
    return model


@cache
def features(batch: int, seed: int) -> dict[str, Ragged]:
    """Random features of clips of one length."""
    random = torch.Generator(DEVICE).manual_seed(seed)
    out = {}
    for stream, frames in zip(STREAMS, FRAMES, strict=True):
        values = torch.randn(batch * frames, stream.dim, generator=random, device=DEVICE)
        out[stream.name] = Ragged(values, torch.arange(batch + 1, device=DEVICE) * frames)
    return out


def launches(call: Call) -> Counter[str]:
    """What a call makes the GPU do: name -> how often."""
    if INTERPRETED:
        call()
        return Counter()
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return Counter(event.name for event in seen.events() if event.device_type == DeviceType.CUDA)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("implementation", ["eager", "triton", "compiled"])  # what takes longest to prepare comes last
def test_after_the_encoders(benchmark: Any, batch: int, implementation: str) -> None:
    model, reference = model_of(implementation), model_of("eager")
    if implementation == "compiled":
        torch.compiler.reset()
        step = torch.compile(lambda given: model.average(model.fuse(given)), dynamic=False, backend=BACKEND)
    else:

        def step(given: dict[str, Ragged]) -> Any:
            return model.average(model.fuse(given))

    def call(seed: int) -> Any:
        with torch.inference_mode():
            return step(features(batch, seed))

    with torch.inference_mode():
        for got, expected in zip(call(0), reference.average(reference.fuse(features(batch, 0))), strict=True):
            assert (got - expected).abs().max() <= 2e-3
    seen = launches(lambda: call(0))
    benchmark.extra_info["launches"] = sum(seen.values())
    benchmark.extra_info["kernels"] = dict(seen)
    benchmark.extra_info["note"] = f"{sum(seen.values())} launches"
    name = f"after the encoders B={batch}"
    run(benchmark, name, implementation, [lambda s=s: call(s) for s in range(CALLS)])
