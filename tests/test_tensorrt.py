"""TensorRT without one: engine files, and building and running with a stand-in for it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tensorrt
import pytest
import torch
from compiled_networks import AUDIO, LEAST, PICTURES, PROFILES, Audio, audio_inputs

from merfast.errors import BundleError, ConfigError, MerfastError, UnavailableError
from merfast.runtime import tensorrt, tensorrt_library
from merfast.runtime.cache import Cache
from merfast.runtime.spec import Input, Spec
from merfast.runtime.tensorrt import TensorRTRunner, available, build, engine_key, read_engine

HERE = {"tensorrt": fake_tensorrt.__version__, "gpu": "NVIDIA Test", "compute_capability": "9.0"}


def test_without_a_gpu_nothing_of_tensorrt_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tensorrt_library, "_found", lambda: pytest.fail("tensorrt was imported"))
    said = f"TensorRT needs an NVIDIA GPU: torch {torch.__version__} sees none here"
    assert available() == said
    for use in (
        lambda: engine_key(PROFILES),
        lambda: build(tmp_path / "none", tmp_path / "out", AUDIO, PROFILES),
        lambda: TensorRTRunner(tmp_path / "none", AUDIO),
    ):
        with pytest.raises(UnavailableError, match=f"^{re.escape(said)}$"):
            use()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (ModuleNotFoundError("No module named 'tensorrt'"), "TensorRT cannot be imported: No module named 'tensorrt'"),
        (ImportError("libnvinfer.so.10: cannot open"), "TensorRT cannot be imported: libnvinfer.so.10: cannot open"),
        (SimpleNamespace(__version__="8.6.1"), "TensorRT: got version 8.6.1, expected 10 or later"),
        (SimpleNamespace(), "TensorRT cannot be imported: .* no attribute '__version__'"),
        (SimpleNamespace(__version__="10.0.1"), None),
    ],
)
def test_available(monkeypatch: pytest.MonkeyPatch, module: object, said: str | None) -> None:
    def load(name: str) -> object:
        assert name == "tensorrt"
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib, "import_module", load)
    tensorrt_library._found.cache_clear()
    try:
        reason = available()
        if said is None:
            assert reason is None
        else:
            with pytest.raises(UnavailableError, match=said):
                tensorrt_library.library()
            assert isinstance(reason, str)
    finally:
        monkeypatch.undo()
        tensorrt_library._found.cache_clear()


def write_engine(file: Path, data: bytes = b"[]", **note: str) -> Path:
    file.write_bytes(data)
    noted = {**HERE, "sha256": hashlib.sha256(data).hexdigest(), **note}
    file.with_name(file.name + ".json").write_text(json.dumps(noted))
    return file


def test_an_engine_is_read_only_where_it_was_made_and_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    file = write_engine(tmp_path / "net.engine", data)
    assert read_engine(file, HERE) == data
    for at in (0, 5000, len(data) - 1):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(BundleError, match=r"net\.engine: the engine is damaged .*: build it again"):
            read_engine(file, HERE)
    for cut in (data[:-1], b"", data + b"\0"):
        file.write_bytes(cut)
        with pytest.raises(BundleError, match="damaged"):
            read_engine(file, HERE)
    for name in HERE:
        write_engine(file, data, **{name: "other"})
        with pytest.raises(BundleError, match=r"made for \{.*'other'.*\}, expected one for \{.*\}: build it again"):
            read_engine(file, HERE)


@pytest.mark.parametrize("note", [None, "", "{", "[]", "{}", '"x"'])
def test_an_engine_without_a_good_note_is_refused(tmp_path: Path, note: str | None) -> None:
    file = write_engine(tmp_path / "net.engine")
    place = tmp_path / "net.engine.json"
    if note is None:
        place.unlink()
    else:
        place.write_text(note)
    with pytest.raises(BundleError, match="build it again"):
        read_engine(file, HERE)
    with pytest.raises(BundleError, match="build it again"):
        read_engine(tmp_path / "missing.engine", HERE)


class Stream:
    """Stands for the side stream."""

    handle = 7

    def __init__(self, device: torch.device) -> None:
        self.orders = 0

    @contextlib.contextmanager
    def ordered(self) -> Iterator[None]:
        self.orders += 1
        yield


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """merfast as if there were a GPU with TensorRT: the stand-in, on the CPU."""
    monkeypatch.setattr(tensorrt, "library", lambda: fake_tensorrt)
    monkeypatch.setattr(tensorrt, "gpu_of", lambda device: torch.device("cpu"))
    monkeypatch.setattr(tensorrt, "here_of", lambda trt, gpu: HERE)
    monkeypatch.setattr(tensorrt, "SideStream", Stream)
    monkeypatch.setattr(tensorrt, "ALIGNED", fake_tensorrt.ALIGNED)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    for owner, name in (
        (fake_tensorrt.Builder, "refuses_profiles"),
        (fake_tensorrt.Builder, "fails"),
        (fake_tensorrt.Builder, "at_step"),
        (fake_tensorrt.Runtime, "change"),
    ):
        monkeypatch.setattr(owner, name, inspect.getattr_static(owner, name))
    return fake_tensorrt


@pytest.fixture
def network(tmp_path: Path) -> Path:
    file = tmp_path / "net.onnx"
    file.write_text('{"inputs": ["samples", "lengths"], "outputs": ["vectors"]}')
    return file


def test_build_tells_its_progress_and_writes_the_engine(fake: Any, network: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    out = tmp_path / "net.engine"
    build(network, out, AUDIO, PROFILES, lambda phase, done: told.append((phase, done)))
    assert told == [("Building", d) for d in (0, 0.25, 0.5, 0.75, 1, 1)]
    shapes = json.loads(read_engine(out, HERE))
    assert shapes[1] == {"samples": [[1, LEAST], [8, 16], [8, 16]], "lengths": [[1], [8], [8]]}
    assert len(shapes) == 3
    assert TensorRTRunner(out, AUDIO).profiles == PROFILES


def test_what_cannot_be_built_is_one_error(fake: Any, network: Path, tmp_path: Path) -> None:
    def building() -> None:
        build(network, tmp_path / "net.engine", AUDIO, PROFILES)

    fake.Builder.refuses_profiles = True
    with pytest.raises(UnavailableError, match=r"net\.onnx: TensorRT refuses the profile \{'batch'.*it does not say"):
        building()
    fake.Builder.refuses_profiles = False
    fake.Builder.fails = True
    said = r"net\.onnx: TensorRT 11\.4\.0 cannot compile it: Error Code 2: OutOfMemory \(no tactic\)$"
    with pytest.raises(UnavailableError, match=said):
        building()
    network.write_text("broken")
    said = r"cannot read it: no importer for Thing \(Thing node_7\); no importer for Thing \(Thing node_7\)$"
    with pytest.raises(UnavailableError, match=said):
        building()
    network.write_text('{"inputs": ["samples"], "outputs": ["vectors"]}')
    with pytest.raises(BundleError, match=r"got inputs and outputs \['samples', 'vectors'\], expected \['lengths'"):
        building()
    network.unlink()
    with pytest.raises(BundleError, match="got no file, expected an ONNX network"):
        building()
    with pytest.raises(ConfigError, match="profiles: got none"):
        build(network, tmp_path / "net.engine", AUDIO, ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [TypeError("factory function returned nullptr"), RuntimeError("no driver")])
def test_a_builder_or_runtime_that_is_not_given(fake: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def make(logger: Any) -> Any:
        raise error

    logger = tensorrt_library.logger_of(fake)
    with pytest.raises(UnavailableError, match=f"TensorRT cannot use this GPU: {error}"):
        tensorrt_library.made(make, logger)


def test_progress_that_raises_cancels_the_build(fake: Any, network: Path, tmp_path: Path) -> None:
    def progress(phase: str, done: float) -> None:
        if done == 0.5:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        build(network, tmp_path / "net.engine", AUDIO, PROFILES, progress)
    assert fake.Builder.steps_done == 2
    assert not (tmp_path / "net.engine").exists()
    build(network, tmp_path / "net.engine", AUDIO, PROFILES)


def test_an_interrupt_cancels_the_build_and_leaves_no_entry(
    fake: Any, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, stopped = threading.Event(), threading.Event()

    class Waited(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            waiting.set()
            return super().result(timeout)

    def step(number: int) -> None:
        if number == 1:
            waiting.wait(30)
            interrupted = threading.main_thread().ident
            assert interrupted is not None
            signal.pthread_kill(interrupted, signal.SIGINT)
            stopped.wait(30)

    class Monitor:
        """Tells when the build has been asked to stop."""

        def __init__(self, monitor: Any) -> None:
            self.__dict__["monitor"] = monitor

        def __getattr__(self, name: str) -> Any:
            return getattr(self.monitor, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.monitor, name, value)
            stopped.set()

    monkeypatch.setattr("concurrent.futures._base.Future", Waited)
    monkeypatch.setattr(tensorrt, "monitor_of", lambda *args: Monitor(tensorrt_library.monitor_of(*args)))
    fake.Builder.at_step = staticmethod(step)
    cache = Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        cache.get("net", {"a": 1}, lambda folder: build(network, folder / "net.engine", AUDIO, PROFILES))
    assert fake.Builder.steps_done == 2
    assert list(cache.root.iterdir()) == []


@pytest.fixture
def engine(fake: Any, network: Path, tmp_path: Path) -> Path:
    file = tmp_path / "net.engine"
    build(network, file, AUDIO, PROFILES)
    return file


@pytest.mark.parametrize(("lengths", "profile"), [([12], 0), ([64], 0), ([16, 13], 1), ([64, 12, 20, 33], 2)])
def test_runner_uses_the_profile_and_the_memory_given(engine: Path, lengths: list[int], profile: int) -> None:
    runner = TensorRTRunner(engine, AUDIO)
    inputs = audio_inputs(lengths)
    got = runner(*inputs)
    with torch.no_grad():
        torch.testing.assert_close(got, Audio()(*inputs))
    assert fake_tensorrt.Runtime.last.runs == [profile]


def test_inputs_that_tensorrt_does_not_take_are_copied(engine: Path) -> None:
    runner = TensorRTRunner(engine, AUDIO)
    samples, lengths = audio_inputs([16, 13, 12])
    one = runner(samples[1:2], lengths[1:2])  # views, at odd addresses
    apart = runner(samples.T.contiguous().T, lengths.repeat_interleave(2)[::2])  # not contiguous
    torch.testing.assert_close(one[0], apart[1])
    torch.testing.assert_close(apart, runner(samples, lengths))
    with torch.inference_mode():
        torch.testing.assert_close(runner(samples.clone(), lengths), apart)


def test_runner_refuses_what_does_not_fit(engine: Path) -> None:
    runner = TensorRTRunner(engine, AUDIO)
    samples, lengths = audio_inputs([16, 13])
    with pytest.raises(ConfigError, match="got 1 inputs, expected 2"):
        runner(samples)
    with pytest.raises(ConfigError, match="input 'lengths': got meta, expected cpu"):
        runner(samples, lengths.to("meta"))
    with pytest.raises(ConfigError, match="got sizes batch 9, samples 12, expected batch 1 to 1, samples 12 to 64; or"):
        runner(*audio_inputs([12] * 9))
    fake_tensorrt.Runtime.last.fails = True
    with pytest.raises(MerfastError, match=r"TensorRT failed at sizes \{'batch': 2, 'samples': 16\}: it does not say"):
        runner(samples, lengths)


def test_runner_under_threads(engine: Path) -> None:
    runner = TensorRTRunner(engine, AUDIO)
    cases = [audio_inputs([12 + i % 50] + [20] * (i % 4), seed=i) for i in range(80)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda inputs: runner(*inputs), cases))
    for inputs, got in zip(cases, results, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(got, Audio()(*inputs))


def no_memory(engine: fake_tensorrt.ICudaEngine) -> None:
    engine.no_memory = True


def half(engine: fake_tensorrt.ICudaEngine) -> None:
    engine.dtypes["samples"] = fake_tensorrt.DataType.HALF


def on_cpu(engine: fake_tensorrt.ICudaEngine) -> None:
    engine.lengths_at = fake_tensorrt.TensorLocation.HOST


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (no_memory, UnavailableError, r"TensorRT cannot prepare profile \{'batch': \(1, 1, 1\)"),
        (half, BundleError, "an engine with .*HALF.*, expected .*FLOAT.*: build it again"),
        (on_cpu, BundleError, "the engine wants 'lengths' on the CPU"),
    ],
)
def test_an_engine_that_does_not_fit_the_spec(
    engine: Path, change: Callable[[Any], None], error: type[Exception], said: str
) -> None:
    fake_tensorrt.Runtime.change = staticmethod(change)
    with pytest.raises(error, match=said):
        TensorRTRunner(engine, AUDIO)


def test_an_engine_of_another_network_or_that_tensorrt_refuses(engine: Path) -> None:
    samples = Input("samples", torch.float32, ("batch", 16))
    with pytest.raises(BundleError, match=r"'samples' \[-1, -1\], expected \['batch', 16\]: build it again"):
        TensorRTRunner(engine, Spec((samples, AUDIO.inputs[1]), "vectors", {"batch": 1}))
    with pytest.raises(BundleError, match=r"an engine with .*samples.*, expected .*pictures.*: build it again"):
        TensorRTRunner(engine, PICTURES)
    write_engine(engine, b"no engine")
    said = r"TensorRT 11\.4\.0 refuses the engine, build it again: Error Code 1: magicTag failed"
    with pytest.raises(BundleError, match=said):
        TensorRTRunner(engine, AUDIO)


def test_a_key_tells_engines_apart(fake: Any) -> None:
    key = engine_key(PROFILES)
    assert json.loads(json.dumps(key)) == key == {"builder": 1, **HERE, "profiles": key["profiles"]}
    assert key["profiles"][1] == {"batch": [1, 8, 8], "samples": [LEAST, 16, 16]}
    assert engine_key(PROFILES[:1]) != key
