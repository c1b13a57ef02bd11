"""Which runtime and precision runs an encoder fastest on this CPU: HuBERT-base on 4 s, ViT-base on 8 crops.

The baseline is transformers' own model, eager, in fp32. Weights are random, and what is given is the mean of the
layers: with such weights the last one of HuBERT hardly tells its vectors apart. Each case shows first that it computes
the same, within its precision's budget. The plan's order of runtimes on the CPU is what this measures.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")

from benchmarks.pipeline_inputs import FACE, SIDE, VOICE, make_checkpoints
from merfast import compiled
from merfast.create import create
from merfast.models.checkpoints import load_pretrained
from merfast.ops.ragged import Ragged
from merfast.runtime import onnx, openvino, ort

SIZE = "base"
SECONDS, CROPS = 4, 8
ROUNDS = 3
BUDGETS = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.2}
"""Precision -> root mean square of the error over that of the vectors' deviation, at most."""

CASES = ["transformers fp32", "torch fp32", "torch bf16", "openvino fp32", "openvino bf16"]
CASES += ["onnxruntime fp32", "onnxruntime int8"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of both models, with room for what is compiled."""
    folder = tmp_path_factory.mktemp("encoders")
    voice, face = make_checkpoints(folder / "checkpoints", SIZE)
    create(folder / "bundle", audio=[f"{VOICE}={voice}"], video=[f"{FACE}={face}"], layer="mean")
    return folder / "bundle"


@cache
def given(stream: str) -> Ragged:
    """Noise: 4 s of sound, or 8 crops."""
    random = torch.Generator().manual_seed(0)
    if stream == VOICE:
        values = 0.1 * torch.randn(SECONDS * 16_000, generator=random)
    else:
        values = torch.randint(0, 256, (CROPS, SIDE, SIDE, 3), generator=random, dtype=torch.uint8)
    return Ragged(values, torch.tensor([0, len(values)]))


_expected: dict[str, Tensor] = {}


def own(bundle: Path, stream: str) -> Callable[[], Tensor]:
    """transformers' own model on what its own processor would give."""
    model = load_pretrained(bundle / "encoders" / stream, modality="audio" if stream == VOICE else "video").model
    values = given(stream).values
    if stream == VOICE:
        inputs = ((values - values.mean()) / (values.var(correction=0) + 1e-7).sqrt())[None]
        return lambda: mean_of(model(inputs, output_hidden_states=True))[0]
    pixels = (values.permute(0, 3, 1, 2).contiguous() / 255 - 0.5) / 0.5
    return lambda: mean_of(model(pixels, output_hidden_states=True))[:, 0]


def mean_of(out: Any) -> Tensor:
    """Of what leaves the layers, the last one after its normalisation."""
    return torch.stack([*out.hidden_states[1:-1], out.last_hidden_state]).mean(0)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Give back what the case before had."""
    gc.collect()
    yield
    gc.collect()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stream", [VOICE, FACE])
def test_encoder(benchmark: BenchmarkFixture, bundle: Path, stream: str, case: str) -> None:
    runtime, precision = case.split()
    for name, module in (("openvino", openvino), ("onnxruntime", ort), ("onnxruntime", onnx)):
        if runtime == name and (why := module.missing()):
            pytest.skip(why)
    if case == "openvino bf16" and not openvino.has_bf16():
        pytest.skip("this CPU does not multiply in bf16")
    with torch.inference_mode():
        if stream not in _expected:
            _expected[stream] = own(bundle, stream)()
        if runtime == "transformers":
            call = own(bundle, stream)
        else:
            encoder = encoder_of(bundle, stream, runtime, precision)
            call = lambda: encoder(given(stream)).values  # noqa: E731
        expected = _expected[stream]
        error = (call() - expected).square().mean().sqrt() / (expected - expected.mean(0)).square().mean().sqrt()
        assert error <= BUDGETS[precision], f"error {error:.1e}, budget {BUDGETS[precision]:.1e}"
        benchmark.group = f"{'HuBERT' if stream == VOICE else 'ViT'}-{SIZE}, {describe(stream)}"
        benchmark.extra_info.update(baseline=runtime == "transformers", error=float(error), note=f"error {error:.0e}")
        benchmark.name = case
        benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=1)


def encoder_of(bundle: Path, stream: str, runtime: str, precision: str) -> torch.nn.Module:
    """One encoder of the bundle on a runtime; the other one stays in torch, unread."""
    from merfast import bundle as bundles

    threads = len(os.sched_getaffinity(0))
    config = bundles.read_config(bundle)
    targets = {s.name: compiled.Target("torch", "fp32") for s in config.streams}
    targets[stream] = compiled.Target(runtime, precision, threads=threads)
    return compiled.load(bundle, config, targets).model.foundations[stream]


def describe(stream: str) -> str:
    return f"{SECONDS} s" if stream == VOICE else f"{CROPS} crops"
