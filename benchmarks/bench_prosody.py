"""Statistics of the voice on the CPU: one set after the other, and all sets at once.

    python -m pytest benchmarks/bench_prosody.py --benchmark-only

The table names how many operations that read or write memory a call asks for, as on a GPU, where all windows are
transformed at once: there each is a launch or a few.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from merfast.models import sound
from merfast.models.prosody import Prosody
from merfast.ops.ragged import Ragged
from tests import prosody_by_set
from tests.operations import operations

SIZES = {
    "1 window of 1 s": (16_000,),
    "1 window of 4 s": (64_000,),
    "16 windows of 4 s": (64_000,) * 16,
    "16 windows of 1 to 16 s": tuple(16_000 * n for n in range(1, 17)),
}
CASES = ["one after the other", "all at once"]


@cache
def encoder() -> Prosody:
    return Prosody(256).eval()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SIZES)
def test_statistics(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, name: str, case: str) -> None:
    random = torch.Generator().manual_seed(0)
    sets = [0.1 * torch.randn(n, generator=random) for n in SIZES[name]]
    together = Ragged.of(torch.cat(sets), SIZES[name])
    with torch.inference_mode():
        calls = {
            CASES[0]: lambda: prosody_by_set.functionals(encoder(), sets),
            CASES[1]: lambda: encoder().functionals(together),
        }
        torch.testing.assert_close(calls[CASES[1]](), calls[CASES[0]](), rtol=1e-5, atol=1e-5)
        with monkeypatch.context() as patch:
            patch.setattr(sound, "CPU_CHUNK", sound.GPU_CHUNK)
            asked = operations(calls[case]).total()
        benchmark.group = f"prosody, {name}"
        benchmark.name = case
        benchmark.extra_info.update(baseline=case == CASES[0], operations=asked, note=f"{asked} operations")
        benchmark.pedantic(calls[case], rounds=100 if len(sets) == 1 else 15, warmup_rounds=3)
