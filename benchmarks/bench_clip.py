"""A whole clip, file to prediction: how many times faster than real time, and what `import merfast` costs."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import merfast


def engine(**options: object) -> merfast.Engine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", merfast.UntrainedWarning)
        return merfast.Engine(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("detector", ["haar", "yunet"])
@pytest.mark.parametrize("kernels", ["reference", "cpp"])
def test_clip(benchmark: BenchmarkFixture, clip: Path, detector: str, kernels: str, yunet_model: Path | None) -> None:
    if detector == "yunet" and yunet_model is None:
        pytest.skip("YuNet's file is not here")
    model = {"detector_model": yunet_model} if detector == "yunet" else {}
    ready = engine(detector=detector, kernels=kernels, **model)
    benchmark.group = "whole clip, file to prediction"
    (prediction,) = benchmark.pedantic(ready.predict, ([clip],), warmup_rounds=1, rounds=7)
    seconds = prediction.end - prediction.start
    if benchmark.stats is not None:
        benchmark.extra_info["note"] = f"{seconds / benchmark.stats.stats.median:.0f} x real time"


@pytest.mark.parametrize("case", ["one-by-one", "batch"])
def test_batch(benchmark: BenchmarkFixture, clip: Path, case: str) -> None:
    """Eight copies of a clip: in one call media of several clips are read side by side."""
    ready = engine()
    items = [clip] * 8
    benchmark.group = "eight clips"
    run = (lambda: [ready.predict([i])[0] for i in items]) if case == "one-by-one" else (lambda: ready.predict(items))
    assert len(benchmark.pedantic(run, warmup_rounds=1, rounds=5)) == 8


@pytest.mark.parametrize("what", ["pass", "import merfast", "import merfast; merfast.Engine"])
def test_import(benchmark: BenchmarkFixture, what: str) -> None:
    benchmark.group = "import, in a fresh interpreter"
    benchmark.name = what
    benchmark.pedantic(subprocess.run, ([sys.executable, "-c", what],), {"check": True}, warmup_rounds=1, rounds=5)
