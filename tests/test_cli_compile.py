"""`merfast compile`, and the other commands with encoders that are compiled: what they print, where, and when."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiled_bundles import copy_of, entries, face_bundle

from merfast import bundle, cli, compiled, config

for module in ("transformers", "openvino", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(module, reason="needs pip install 'merfast[transformers,onnx,openvino]'")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="is about the CPU")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of which nothing is compiled; do not change it."""
    return face_bundle(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def made(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that `merfast compile` has compiled in fp32 and bf16."""
    root = copy_of(empty, tmp_path_factory.mktemp("made") / "x")
    for precision in ("fp32", "bf16"):
        assert cli.main(["compile", str(root), "--precision", precision]) == 0
    return root


@pytest.fixture(autouse=True)
def no_other_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.platformdirs, "user_cache_path", lambda name: tmp_path / "user" / name)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that is said."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("merfast: ")
    return err.removeprefix("merfast: ").strip()


def note(precision: str, runtime: str = "openvino") -> str:
    return f"merfast: compiling encoder 'vit' for {runtime} in {precision}; this is done once\n"


def test_compile_prints_a_line_for_each_stream(empty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_of(empty, tmp_path / "x")
    shutil.copytree(root / "encoders" / "vit", root / "encoders" / "again")
    made = json.loads((root / "config.json").read_text())
    (stream,) = made["streams"]
    made["streams"] = [stream, stream | {"name": "again", "options": {"layer": 0}}]
    del made["fusion"]
    from merfast.models import FusedModel, checkpoints

    described = config.BundleConfig.from_dict(made | {"fusion": {"structures": ["flat"]}})
    parts = {n: checkpoints.read(root / "encoders" / n, "video") for n in ("vit", "again")}
    bundle.save(root, described, FusedModel(described, parts))
    status, out, err = run(capsys, "compile", root)
    folders = {e.name.partition("-")[0]: e for e in entries(root)}
    assert status == 0
    assert out == f"vit: {folders['vit']}\nagain: {folders['again']}\n"
    assert err == note("fp32") + note("fp32").replace("vit", "again")


def test_compiling_twice_is_compiling_once(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {f: f.stat().st_mtime_ns for f in made.rglob("*")}
    for precision in ("auto", "fp32", "bf16"):
        status, out, err = run(capsys, "compile", made, "--precision", precision)
        kind = "bf16" if precision == "bf16" else "fp32"
        (entry,) = [e for e in entries(made) if kind in e.name]
        assert (status, out, err) == (0, f"vit: {entry}\n", "")
    assert {f: f.stat().st_mtime_ns for f in made.rglob("*")} == times


@pytest.mark.parametrize(
    ("options", "runtime", "precision"),
    [(["--runtime", "onnxruntime"], "onnxruntime", "fp32"), (["--precision", "int8"], "onnxruntime", "int8")],
)
def test_compile_for_onnx_runtime(
    empty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], runtime: str, precision: str
) -> None:
    root = copy_of(empty, tmp_path / "x")
    status, out, err = run(capsys, "compile", root, *options)
    (entry,) = entries(root)
    assert entry.name.startswith(f"vit-{runtime}-{precision}-")
    assert (status, out, err) == (0, f"vit: {entry}\n", note(precision, runtime))


def test_compile_has_nothing_to_do_for_torch(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "compile", empty, "--runtime", "torch") == (
        0,
        "vit: runs in torch, which needs no compiling\n",
        "",
    )
    assert entries(empty) == []


def test_compile_says_what_is_wrong(
    empty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        ([tmp_path / "none"], f"{tmp_path / 'none'}: not a directory"),
        ([tmp_path], f"{tmp_path / 'config.json'}: missing"),
        ([bundle.packaged()], f"{bundle.packaged()}: got a bundle without foundation models, expected one"),
        ([empty, "--precision", "fp8"], "precision: got 'fp8', expected one of auto, fp32, bf16, int8"),
        ([empty, "--runtime", "tvm"], "runtime: got 'tvm', expected one of auto, torch, openvino"),
        ([empty, "--runtime", "openvino", "--precision", "int8"], "runtime 'openvino': has no int8 on cpu"),
        ([empty, "--runtime", "onnxruntime", "--precision", "bf16"], "runtime 'onnxruntime': has no bf16 on cpu"),
        ([empty, "--runtime", "tensorrt"], "runtime 'tensorrt': "),
        ([empty, "--device", "cuda"], "device 'cuda': found no CUDA GPU"),
    ):
        assert fails(capsys, "compile", *arguments).startswith(message), message
    broken = copy_of(empty, tmp_path / "broken")
    weights = broken / "encoders" / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    status, out, err = run(capsys, "compile", broken)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"merfast: {weights}: damaged or not safetensors")
    weights.unlink()
    assert fails(capsys, "compile", broken).startswith(f"{weights}: cannot be read")
    assert entries(broken) == entries(empty) == []
    monkeypatch.setitem(sys.modules, "transformers", None)
    status, out, err = run(capsys, "compile", empty)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].endswith("needs transformers, pip install 'merfast[transformers]'")


def test_a_plan_compiles_nothing(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for precision, runs in (("int8", "onnxruntime int8"), ("bf16", "openvino bf16"), ("auto", "openvino fp32")):
        status, out, err = run(capsys, "plan", "--bundle", empty, "--precision", precision)
        assert (status, err) == (0, "")
        (line,) = [line for line in out.splitlines() if line.startswith("encode vit")]
        assert line.split()[2:4] == runs.split()
    assert entries(empty) == []
    assert fails(capsys, "plan", "--bundle", empty, "--runtime", "torch", "--precision", "int8").startswith(
        "runtime 'torch': has no int8 on cpu"
    )


def test_predict_compiles_when_it_has_to(
    empty: Path, made: Path, tmp_path: Path, face_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(empty, tmp_path / "x")
    predict = ("predict", face_clip, "--json", "--detector", "haar", "--bundle")
    status, exact, err = run(capsys, *predict, root)
    assert status == 0
    assert err.startswith(note("fp32"))
    assert run(capsys, *predict, root)[1] == exact
    assert "compiling" not in run(capsys, *predict, root)[2]
    status, rounded, err = run(capsys, *predict, made, "--precision", "bf16")
    assert status == 0
    assert "compiling" not in err
    (one,), (two,) = json.loads(exact), json.loads(rounded)
    differences = [abs(one["probabilities"][e] - two["probabilities"][e]) for e in one["probabilities"]]
    assert 0 < max(differences) < 0.01
    assert two["modalities"] == ["video"]
    assert two["missing"] == {"audio": "this bundle reads no audio"}


def test_process_keeps_its_output_clean(empty: Path, tmp_path: Path, face_clip: Path) -> None:
    """In a process of its own, with all that libraries say by themselves."""
    root = copy_of(empty, tmp_path / "x")
    place = Path(cli.__file__).parents[1]
    command = [sys.executable, "-m", "merfast", "predict", face_clip, "--json", "--bundle", root, "--precision", "int8"]
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(place)},
    )
    assert json.loads(done.stdout)[0]["modalities"] == ["video"]
    lines = done.stderr.splitlines()
    assert lines[0] + "\n" == note("int8", "onnxruntime")
    assert all(line.startswith("merfast: ") for line in lines), done.stderr
    assert len(lines) <= 2  # the other one says that it is untrained
