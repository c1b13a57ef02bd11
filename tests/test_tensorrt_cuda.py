"""TensorRT on a GPU: the ends of each profile, threads, files that are no engines, a build that is cancelled."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from compiled_networks import AUDIO, LEAST, PROFILES, Audio, audio_inputs, valid_rows, write_onnx
from torch import Tensor

from merfast.errors import BundleError, UnavailableError
from merfast.runtime.tensorrt import TensorRTRunner, build


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the small network, built by TensorRT."""
    pytest.importorskip("tensorrt", reason="TensorRT is not installed", exc_type=ImportError)
    pytest.importorskip("onnx", reason="onnx is not installed")
    folder = tmp_path_factory.mktemp("engine")
    write_onnx(folder / "net.onnx", Audio().weight)
    told: list[float] = []
    build(folder / "net.onnx", folder / "net.engine", AUDIO, PROFILES, lambda phase, done: told.append(done))
    assert told
    assert all(0 <= done <= 1 for done in told)
    return folder / "net.engine"


def check(got: Tensor, inputs: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        expected = Audio().double()(inputs[0].double(), inputs[1])
    assert got.shape == expected.shape
    assert got.isfinite().all()
    lengths = inputs[1].tolist()
    for mine, reference in zip(valid_rows(got.cpu().double(), lengths), valid_rows(expected, lengths), strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)  # TF32 would be 1e-3 off


def test_the_network_as_onnx_is_that_in_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    write_onnx(tmp_path / "net.onnx", Audio().weight)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    inputs = audio_inputs([13, 40, 12])
    (got,) = session.run(None, {"samples": inputs[0].numpy(), "lengths": inputs[1].numpy()})
    check(torch.from_numpy(got), inputs)


@pytest.mark.cuda
def test_engine_agrees_with_torch_at_each_end_of_each_profile(real: Path) -> None:
    runner = TensorRTRunner(real, AUDIO)
    assert runner.profiles == PROFILES
    for profile in PROFILES:
        for end in range(3):
            batch, samples = profile["batch"][end], profile["samples"][end]
            for lengths in ([samples] * batch, [LEAST] * batch):
                inputs = audio_inputs(lengths, longest=samples, seed=end)
                check(runner(*(x.cuda() for x in inputs)), inputs)


@pytest.mark.cuda
def test_engine_under_threads_and_streams(real: Path) -> None:
    runner = TensorRTRunner(real, AUDIO)
    cases = [audio_inputs([12 + i % 50] + [20] * (i % 4), seed=i) for i in range(120)]

    def work(part: int) -> list[Tensor]:
        # A thread on the default stream, the others on their own.
        with torch.cuda.stream(None if part == 0 else torch.cuda.Stream()):
            results = [runner(*(x.cuda(non_blocking=True) for x in case)) * 1 for case in cases[part::4]]
            return [r.cpu() for r in results]

    with ThreadPoolExecutor(4) as pool:
        for part, results in enumerate(pool.map(work, range(4))):
            for case, got in zip(cases[part::4], results, strict=True):
                check(got, case)


@pytest.mark.cuda
def test_an_engine_that_is_not_one_is_refused_by_tensorrt(real: Path, tmp_path: Path) -> None:
    data = real.read_bytes()
    note = json.loads(real.with_name("net.engine.json").read_text())
    for broken in (data[: len(data) // 2], b"\0" * 100, b""):
        (tmp_path / "net.engine").write_bytes(broken)
        (tmp_path / "net.engine.json").write_text(json.dumps(note))
        with pytest.raises(BundleError, match="damaged"):
            TensorRTRunner(tmp_path / "net.engine", AUDIO)
    garbage = b"no engine at all" * 100
    (tmp_path / "net.engine").write_bytes(garbage)
    noted = {**note, "sha256": hashlib.sha256(garbage).hexdigest()}
    (tmp_path / "net.engine.json").write_text(json.dumps(noted))
    with pytest.raises(BundleError, match="refuses the engine, build it again"):
        TensorRTRunner(tmp_path / "net.engine", AUDIO)


@pytest.mark.cuda
def test_a_file_that_is_no_onnx_is_one_error(real: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08no onnx")
    with pytest.raises(UnavailableError, match=r"net\.onnx: TensorRT .* cannot read it"):
        build(tmp_path / "net.onnx", tmp_path / "net.engine", AUDIO, PROFILES)


@pytest.mark.cuda
def test_a_build_is_cancelled(real: Path, tmp_path: Path) -> None:
    def progress(phase: str, done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(real.with_name("net.onnx"), tmp_path / "net.engine", AUDIO, PROFILES, progress)
    assert not (tmp_path / "net.engine").exists()
