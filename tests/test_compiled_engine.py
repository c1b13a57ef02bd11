"""The engine on compiled encoders: right values in every runtime and precision, whatever the neighbours and threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_bundles import clip, engine_of, entries, values_of
from tiny_checkpoints import write

from merfast import Engine, bundle
from merfast.create import create
from merfast.ops.ragged import Ragged
from merfast.runtime.openvino import OpenVINORunner
from merfast.runtime.ort import OrtRunner

for module in ("transformers", "openvino", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(module, reason="needs pip install 'merfast[transformers,onnx,openvino]'")

COMPILED = ("openvino fp32", "openvino bf16", "onnxruntime fp32", "onnxruntime int8")
RUNTIMES = (*COMPILED, "torch fp32", "torch bf16")
EXACT = 1e-5
INVARIANT = {"fp32": 1e-5, "bf16": 2e-3, "int8": 1e-6}
CLIPS = [
    clip(1.2),
    clip(0.3, face=False),
    clip(0.45),
    clip(2.7, seed=3),
    clip(1.4, voice=False),
    clip(0.0101, face=False),
    clip(1.2, seed=1),
    clip(1.1, seed=2),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    audio, video = (write(folder / name, name, num_hidden_layers=2) for name in ("hubert", "vit"))
    return create(folder / "bundle", audio=[audio], video=[video]).path


@pytest.fixture(scope="module")
def engines(made: Path) -> Callable[[str], Engine]:
    """By runtime and precision; encoders are compiled once."""

    @cache
    def engines(which: str) -> Engine:
        runtime, precision = which.split()
        return engine_of(made, runtime=runtime, precision=precision)

    return engines


def worst(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def test_auto_takes_openvino(made: Path, engines: Callable[[str], Engine]) -> None:
    engine = engine_of(made)
    assert [engine.plan.choice(f"encode {s}") for s in ("hubert", "vit")] == ["openvino fp32"] * 2
    assert all(isinstance(e._runner, OpenVINORunner) for e in engine.bundle.model.foundations.values())
    assert not any(True for e in engine.bundle.model.foundations.values() for _ in e.parameters())  # no weights here
    exact = values_of(engines("torch fp32").predict(CLIPS))
    assert worst(values_of(engine.predict(CLIPS)), exact) < EXACT
    assert worst(exact[0], exact[6]) > 1e-3  # clips do differ


@pytest.mark.parametrize("which", COMPILED)
def test_every_runtime_predicts_the_same(engines: Callable[[str], Engine], which: str) -> None:
    """Within twice the error of torch's bf16, and a floor, where numbers have fewer bits."""
    exact, rounded = (values_of(engines(f"torch {p}").predict(CLIPS)) for p in ("fp32", "bf16"))
    engine = engines(which)
    got = values_of(engine.predict(CLIPS))
    assert {engine.plan.choice(f"encode {s}") for s in ("hubert", "vit")} == {which}
    kind = OpenVINORunner if which.startswith("openvino") else OrtRunner
    assert all(isinstance(e._runner, kind) for e in engine.bundle.model.foundations.values())
    error = worst(got, exact)
    if which.endswith("fp32"):
        assert error < EXACT
    else:
        assert 1e-6 < error < 2 * worst(rounded, exact) + 1e-3


@pytest.mark.parametrize("which", RUNTIMES)
def test_neighbours_change_nothing(engines: Callable[[str], Engine], which: str) -> None:
    engine = engines(which)
    together = values_of(engine.predict(CLIPS))
    budget = INVARIANT[which.split()[1]]
    assert worst(together, np.concatenate([values_of(engine.predict([c])) for c in CLIPS])) <= budget
    assert worst(together, values_of(engine.predict(CLIPS[::-1]))[::-1]) <= budget


def test_int8_needs_a_pass_for_each_clip(engines: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """In eight bits the scale of all that a pass sees is one; encoders that share passes would show it."""
    engine = engines("onnxruntime int8")
    alone = np.concatenate([values_of(engine.predict([c])) for c in CLIPS])
    encoders = engine.bundle.model.foundations
    assert all(e._alone for e in encoders.values())
    for e in encoders.values():
        monkeypatch.setattr(e, "_alone", False)
    assert worst(values_of(engine.predict(CLIPS)), alone) > 1e-4
    shared = engines("openvino fp32").bundle.model.foundations
    assert not any(e._alone for e in shared.values())


def test_sets_that_do_not_share_passes(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One audio set, or crops of one set, at a time, none that is empty; the results are in order."""
    model, generator = bundle.load(made).model, torch.Generator().manual_seed(0)
    sizes = {"hubert": [500, 0, 900, 880, 41], "vit": [3, 0, 20, 2, 0]}
    inputs = {
        "hubert": torch.randn(sum(sizes["hubert"]), generator=generator),
        "vit": torch.randint(0, 256, (25, 32, 32, 3), generator=generator, dtype=torch.uint8),
    }
    for name, encoder in model.foundations.items():
        offsets = torch.tensor([0, *np.cumsum(sizes[name]).tolist()])
        x, passes = Ragged(inputs[name], offsets), []

        def run(*tensors: torch.Tensor, passes: list = passes, network: torch.nn.Module = encoder.network):
            passes.append(tuple(tensors[0].shape[:2]))
            return network(*tensors)

        with torch.inference_mode():
            expected = encoder(x)
            encoder.accelerate(run, alone=True)
            got = encoder(x)
        assert torch.equal(got.offsets, expected.offsets)
        assert torch.allclose(got.values, expected.values, rtol=0, atol=1e-5)
        if name == "hubert":
            assert sorted(passes) == [(1, 41), (1, 500), (1, 880), (1, 900)]
        else:
            counts = [n for n, _ in passes]
            assert sum(counts) == 25
            assert set(np.cumsum(counts).tolist()) >= {3, 23, 25}  # no pass goes beyond the end of a set


@pytest.mark.parametrize("which", COMPILED)
def test_threads_share_an_engine(engines: Callable[[str], Engine], which: str) -> None:
    engine = engines(which)
    alone = np.concatenate([values_of(engine.predict([c])) for c in CLIPS])
    budget = INVARIANT[which.split()[1]]
    with ThreadPoolExecutor(4) as pool:
        jobs = {pool.submit(engine.predict, CLIPS[i % 8 : i % 8 + 3]): i % 8 for i in range(16)}
        for job, i in jobs.items():
            assert worst(values_of(job.result()), alone[i : i + 3]) <= budget


def test_entries_of_all_runtimes_lie_side_by_side(engines: Callable[[str], Engine], made: Path) -> None:
    for which in COMPILED:
        engines(which)
    names = {e.name.rpartition("-")[0] for e in entries(made)}
    assert names == {f"{s}-{which.replace(' ', '-')}" for s in ("hubert", "vit") for which in COMPILED}
    files = [f for e in entries(made) for f in e.rglob("*") if f.is_file()]
    assert {oct(f.stat().st_mode & 0o444) for f in files} == {oct(0o444)}  # for whoever may read the bundle
    size = {e.name.rpartition("-")[0]: (e / "network.bin").stat().st_size for e in entries(made) if "vino" in e.name}
    assert size["vit-openvino-bf16"] < 0.6 * size["vit-openvino-fp32"]


def test_compiled_encoders_are_not_trained(made: Path, engines: Callable[[str], Engine]) -> None:
    with pytest.raises(RuntimeError, match=r"^accelerate: got an encoder without weights; merfast.bundle.load reads"):
        engines("openvino fp32").bundle.model.encoders["hubert"].accelerate(None)
    loaded = bundle.load(made).model
    x = Ragged(torch.randn(900, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 900]))
    encoder = loaded.encoders["hubert"]
    with torch.inference_mode():
        expected = encoder(x).values
        encoder.accelerate(engines("openvino fp32").bundle.model.encoders["hubert"]._runner)
        assert not torch.equal(encoder(x).values, expected)  # another implementation
        assert torch.allclose(encoder(x).values, expected, rtol=0, atol=1e-5)
    encoder.train()
    sentence = r"^encode: a compiled encoder has no gradients; call accelerate\(None\) before training$"
    with pytest.raises(RuntimeError, match=sentence):
        encoder(x)
    encoder.accelerate(None)
    encoder(x).values.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    with torch.inference_mode():
        assert torch.equal(encoder.eval()(x).values, expected)
