"""Compiled encoders of bundles: found again, made anew, shared, and never taken for what they are not."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from compiled_bundles import FACES, compilings, copy_of, edit_config, engine_of, entries, face_bundle, values_of
from tiny_checkpoints import write

from merfast import Engine, UnavailableError, compiled
from merfast.files import read_tensors, replace_file

for module in ("transformers", "openvino"):
    pytest.importorskip(module, reason="needs pip install 'merfast[transformers,openvino]'")

ONCE = "compiling encoder 'vit' for openvino in fp32; this is done once"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose encoder is compiled for OpenVINO; do not change it."""
    root = face_bundle(tmp_path_factory.mktemp("made"))
    engine_of(root)
    return root


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "merfast")
    return caplog


@pytest.fixture(autouse=True)
def no_other_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, in a folder of the test."""
    place = tmp_path / "user"
    monkeypatch.setattr(compiled.platformdirs, "user_cache_path", lambda name: place / name)
    return place


def predicted(root: Path, **options: object) -> np.ndarray:
    return values_of(engine_of(root, **options).predict(FACES))


def test_the_second_start_compiles_nothing(made: Path, log: pytest.LogCaptureFixture) -> None:
    times = {f: f.stat().st_mtime_ns for f in (made / "compiled").rglob("*")}
    (entry,) = entries(made)
    assert entry.name.startswith("vit-openvino-fp32-")
    assert {f.name for f in entry.iterdir()} == {"network.xml", "network.bin", "encoder.json", "key.json"}
    first = predicted(made)
    assert np.array_equal(first, predicted(made))
    assert np.abs(first - predicted(made, runtime="torch")).max() < 1e-5
    assert compilings(log) == []
    assert {f: f.stat().st_mtime_ns for f in (made / "compiled").rglob("*")} == times


FRESH = """
import sys
sys.path.insert(0, "tests")
from compiled_bundles import FACES, engine_of, values_of
for name in [n for n in sys.modules if n.partition(".")[0] == "transformers"]:
    del sys.modules[name]  # of the helpers
sys.modules["transformers"] = sys.modules["onnxscript"] = None
print(values_of(engine_of(sys.argv[1]).predict(FACES)).tolist())
"""

UNAIDED = """
import sys, warnings
warnings.simplefilter("ignore")
from merfast import Engine
Engine(sys.argv[1], detector="haar")
print(sorted({n.partition(".")[0] for n in sys.modules} & {"transformers", "onnx", "onnxscript", "onnxruntime"}))
"""


def test_a_compiled_bundle_needs_no_transformers(made: Path) -> None:
    root = Path(__file__).parents[1]
    for code, expected in ((FRESH, predicted(made).tolist()), (UNAIDED, [])):
        command = [sys.executable, "-c", code, str(made)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
        got = json.loads(done.stdout.replace("'", '"'))
        assert np.allclose(got, expected, rtol=0, atol=1e-6)


def test_compiling_needs_transformers(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnavailableError, match=r"needs transformers, pip install 'merfast\[transformers\]'$"):
        engine_of(copy_of(made, tmp_path / "x", compiled=False))


def test_compiled_may_be_deleted(made: Path, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    root = copy_of(made, tmp_path / "x", compiled=False)
    engine = engine_of(root)
    assert compilings(log) == [ONCE]
    assert [e.name for e in entries(root)] == [e.name for e in entries(made)]
    shutil.rmtree(root / "compiled")
    again = values_of(engine.predict(FACES))  # also while it is used
    assert np.abs(again - predicted(made)).max() < 1e-6


def other_weights(root: Path) -> None:
    folder = write(root.parent / "other", "vit", seed=5, num_hidden_layers=1)
    replace_file(root / "encoders" / "vit" / "model.safetensors", (folder / "model.safetensors").read_bytes())


def other_layer(root: Path) -> None:
    (stream,) = json.loads((root / "config.json").read_text())["streams"]
    edit_config(root, streams=[stream | {"options": {"layer": 0}}])


CHANGES: dict[str, Callable[[Path], None]] = {"weights": other_weights, "layer": other_layer}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_compiled_anew(made: Path, tmp_path: Path, log: pytest.LogCaptureFixture, change: str) -> None:
    root, before = copy_of(made, tmp_path / "x"), predicted(made)
    CHANGES[change](root)
    after = predicted(root)
    assert compilings(log) == [ONCE]
    assert len(entries(root)) == 2
    assert np.abs(after - before).max() > 1e-4
    assert np.abs(after - predicted(root, runtime="torch")).max() < 1e-5
    assert np.array_equal(predicted(root), after)
    assert compilings(log) == []


def test_what_a_key_is_made_of(made: Path, tmp_path: Path) -> None:
    """Changes that matter each give an entry of their own, and others the same; nothing is compiled for that."""
    root = copy_of(made, tmp_path / "x")

    def place(target: compiled.Target = compiled.Target("openvino", "fp32")) -> str:  # noqa: B008
        config = compiled.bundles.read_config(root)
        key = compiled._key(root, config, "vit", target)
        return compiled.Cache(root).place("vit", key).name

    def processor(**changes: object) -> None:
        file = root / "encoders" / "vit" / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    first = place()
    seen = {first}
    for target in (compiled.Target("openvino", "bf16"), compiled.Target("onnxruntime", "fp32")):
        seen.add(place(target))
    assert place(compiled.Target("openvino", "fp32", threads=7)) == first
    edit_config(root, name="renamed", trained=True)
    preprocessing = json.loads((root / "config.json").read_text())["preprocessing"]
    edit_config(root, preprocessing=preprocessing | {"frame_rate": 2.0, "max_window": 8.0})
    assert place() == first
    edit_config(root, preprocessing=preprocessing | {"crop_size": 24})
    seen.add(place())
    processor(image_mean=[0.5, 0.5, 0.5])
    seen.add(place())
    other_layer(root)
    seen.add(place())
    other_weights(root)
    seen.add(place())
    assert len(seen) == 7


def test_weights_that_gather_layers_are_part_of_it(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    root = face_bundle(tmp_path, layers=2, layer="afg")
    before = predicted(root)
    assert compilings(log) == [ONCE]
    file = root / "model.safetensors"
    tensors = read_tensors(file)
    tensors["encoders.vit.network.layers.score"] += 3
    replace_file(file, safetensors.torch.save(tensors))
    after = predicted(root)
    assert compilings(log) == [ONCE]
    assert len(entries(root)) == 2
    assert np.abs(after - before).max() > 1e-5
    assert np.abs(after - predicted(root, runtime="torch")).max() < 1e-5


def replaced(file: Path, content: bytes) -> None:
    """As a file that was never written in full; not in place, where it may be mapped."""
    file.unlink()
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights cut": lambda e: replaced(e / "network.bin", (e / "network.bin").read_bytes()[:1000]),
    "no config": lambda e: (e / "encoder.json").unlink(),
    "config cut": lambda e: replaced(e / "encoder.json", (e / "encoder.json").read_bytes()[:50]),
    "another key": lambda e: replaced(e / "key.json", b'{"format": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_again_once(
    made: Path, tmp_path: Path, log: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = predicted(made)
    gc.collect()  # a runner that is loaded already would be taken instead
    root = copy_of(made, tmp_path / "x")
    DAMAGE[damage](*entries(root))
    assert np.array_equal(predicted(root), expected)
    said = compilings(log)
    assert said.count(ONCE) == 1
    assert np.array_equal(predicted(root), expected)
    assert compilings(log) == []
    assert [e.name for e in entries(root)] == [e.name for e in entries(made)]


def test_an_entry_of_another_bundle_is_not_taken(made: Path, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Even if it has the name that this one's would have."""
    root = copy_of(made, tmp_path / "x")
    other_weights(root)
    config = compiled.bundles.read_config(root)
    key = compiled._key(root, config, "vit", compiled.Target("openvino", "fp32"))
    (stale,) = entries(root)
    stale.rename(compiled.Cache(root / "compiled").place("vit-openvino-fp32", key))
    after = predicted(root)
    assert compilings(log) == [ONCE]
    assert np.abs(after - predicted(root, runtime="torch")).max() < 1e-5
    assert np.abs(after - predicted(made)).max() > 1e-4


@contextlib.contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Below this folder nothing can be written: it is another user's for root, who may write anywhere."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_bundle_that_cannot_be_written_to(
    made: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        root, user = copy_of(made, Path(open_to_all) / "x", compiled=False), Path(open_to_all) / "user"
        user.mkdir()
        user.chmod(0o777)
        monkeypatch.setattr(compiled.platformdirs, "user_cache_path", lambda name: user / name)
        for said in ([ONCE], []):
            with nobody(root):
                with pytest.raises(OSError, match="denied"):
                    (root / "x").mkdir()
                values = predicted(root)
            assert compilings(log) == said
            (entry,) = (user / "merfast" / "compiled").iterdir()
            assert entry.name == entries(made)[0].name
            assert entries(root) == []
        assert np.abs(values - predicted(made)).max() < 1e-6


# In memory.


def runner_of(engine: Engine) -> object:
    return engine.bundle.model.foundations["vit"]._runner


def test_the_same_network_is_loaded_once(made: Path, tmp_path: Path) -> None:
    one, two = engine_of(made), engine_of(copy_of(made, tmp_path / "copy"))
    assert runner_of(one) is runner_of(two)
    assert runner_of(engine_of(made, threads=1)) is not runner_of(one)
    alive = weakref.ref(runner_of(one))
    expected = values_of(one.predict(FACES))
    del one
    gc.collect()
    assert alive() is runner_of(two)
    assert np.array_equal(values_of(two.predict(FACES)), expected)
    del two
    gc.collect()
    assert alive() is None


def test_another_network_is_not_shared(made: Path, tmp_path: Path) -> None:
    root = copy_of(made, tmp_path / "x")
    other_layer(root)
    one, two = engine_of(made), engine_of(root)
    assert runner_of(one) is not runner_of(two)
    assert np.abs(values_of(one.predict(FACES)) - values_of(two.predict(FACES))).max() > 1e-4


# Several threads and processes.


# What one thread ignores, as `quietly` and `engine_of` do, another one sets back.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::merfast.UntrainedWarning")
def test_threads_that_start_at_once(made: Path, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """One of them compiles, and an engine that is at work is not disturbed; torch traces one network at a time."""
    engine, expected = engine_of(made, runtime="torch"), predicted(made)
    roots = [copy_of(made, tmp_path / name, compiled=False) for name in ("one", "two")]
    with ThreadPoolExecutor(4) as pool:
        starts = [pool.submit(predicted, roots[i // 2]) for i in range(4)]
        while not all(s.done() for s in starts):
            assert np.abs(values_of(engine.predict(FACES)) - expected).max() < 1e-5
        assert all(np.abs(s.result() - expected).max() < 1e-6 for s in starts)
    assert compilings(log) == [ONCE] * 2


def _start(root: Path, cache: Path, barrier: Barrier, out: Path) -> None:
    compiled.platformdirs.user_cache_path = lambda name: cache / name  # type: ignore[assignment]
    make, first = compiled._compile, []

    def together(*arguments: object) -> None:
        if not first:
            first.append(barrier.wait(120))  # none has found what another one made
        make(*arguments)  # type: ignore[arg-type]

    compiled._compile = together  # type: ignore[assignment]
    np.save(out, predicted(root))


def test_two_processes_at_once(made: Path, tmp_path: Path) -> None:
    root = copy_of(made, tmp_path / "x", compiled=False)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    outs = [tmp_path / f"{i}.npy" for i in range(2)]
    processes = [context.Process(target=_start, args=(root, tmp_path / "user", barrier, out)) for out in outs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [p.exitcode for p in processes] == [0, 0]
    assert np.array_equal(np.load(outs[0]), np.load(outs[1]))
    assert np.abs(np.load(outs[0]) - predicted(made)).max() < 1e-6
    assert [e.name for e in (root / "compiled").iterdir()] == [e.name for e in entries(made)]
