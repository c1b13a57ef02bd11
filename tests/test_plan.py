"""Choosing implementations: explicit choices hold or raise, "auto" falls back and says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import merfast
from merfast import bundle
from merfast.config import EngineConfig
from merfast.media import yunet
from merfast.ops import afg_cpu
from merfast.plan import make_plan
from merfast.types import Prediction
from training import make_untrained

BUNDLE = bundle.verify()


def plan(**options: object) -> merfast.Plan:
    return make_plan(EngineConfig(**options), BUNDLE)  # type: ignore[arg-type]


def reason(of: merfast.Plan, step: str) -> str:
    return next(s.reason for s in of.steps if s.step == step)


def test_a_plan_reads_as_a_table() -> None:
    lines = str(plan()).splitlines()
    assert lines[0].split() == ["step", "implementation", "reason"]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "device",
        "precision",
        "decode",
        "faces",
        "crop",
        "encode voice",
        "encode prosody",
        "encode face",
        "afg",
        "joint decoding",
    ]
    with pytest.raises(KeyError):
        plan().choice("tea")


@pytest.mark.parametrize("isa", afg_cpu.isas())
def test_every_instruction_set_can_be_chosen(isa: str) -> None:
    assert plan(device="cpu", kernels=f"cpp-{isa}").choice("afg") == f"cpp-{isa}"
    assert plan(device="cpu", kernels="cpp").choice("afg") == f"cpp-{afg_cpu.isas()[0]}"


def test_joint_decoding_is_chosen_as_afg_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels in ("auto", "reference", "cpp", *(f"cpp-{isa}" for isa in afg_cpu.isas())):
        made = plan(device="cpu", kernels=kernels)
        assert made.choice("joint decoding") == made.choice("afg")
        assert reason(made, "joint decoding") == reason(made, "afg")


def test_a_gpu_takes_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(merfast.UnavailableError, match="kernels 'triton': run on a CUDA GPU, and the device is cpu"):
        plan(device="cpu", kernels="triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for kernels in ("cpp", f"cpp-{afg_cpu.isas()[0]}"):
        with pytest.raises(merfast.UnavailableError, match="run on the CPU, and the device is cuda"):
            plan(device="cuda", kernels=kernels)
    assert plan(device="cuda", kernels="reference").choice("afg") == "reference"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    for kernels in ("auto", "triton"):
        made = plan(device="cuda", kernels=kernels)
        assert made.choice("afg") == made.choice("joint decoding") == "triton"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    made = plan(device="cuda")
    assert made.choice("afg") == made.choice("joint decoding") == "reference"
    assert reason(made, "afg") == "Triton is not installed"
    with pytest.raises(merfast.UnavailableError, match="kernels 'triton': Triton is not installed"):
        plan(device="cuda", kernels="triton")


def test_auto_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yunet, "cached", lambda: None)

    def unbuilt() -> tuple[str, ...]:
        raise merfast.UnavailableError("not built")

    monkeypatch.setattr(afg_cpu, "isas", unbuilt)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = plan()
    assert (made.choice("faces"), made.choice("afg"), made.choice("device")) == ("haar", "reference", "cpu")
    assert "merfast fetch yunet" in reason(made, "faces")
    assert "not built" in reason(made, "afg")
    assert made.choice("joint decoding") == "reference"
    assert "not built" in reason(made, "joint decoding")
    assert "no CUDA GPU" in reason(made, "device")
    for options, message in (
        ({"detector": "yunet"}, "merfast fetch yunet"),
        ({"kernels": "cpp"}, "not built"),
        ({"kernels": "cpp-avx2"}, "not built"),
        ({"device": "cuda"}, "no CUDA GPU"),
    ):
        with pytest.raises(merfast.UnavailableError, match=message):
            plan(**options)


def test_yunet_is_taken_when_its_file_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "yunet.onnx"
    with pytest.raises(merfast.UnavailableError, match="no such file"):
        plan(detector_model=model)
    model.write_bytes(b"not a network")
    made = plan(detector_model=model)
    assert (made.choice("faces"), made.detector_model) == ("yunet", model)
    monkeypatch.setattr(yunet, "cached", lambda: model)
    assert plan().choice("faces") == "yunet"
    assert plan(detector="haar").choice("faces") == "haar"
    assert plan(detector="none").choice("faces") == "none"


def test_no_faces_are_looked_for_where_none_are_read(tmp_path: Path) -> None:
    voice = replace(BUNDLE, streams=tuple(s for s in BUNDLE.streams if s.modality == "audio"))
    for options in ({}, {"detector": "haar"}, {"detector": "yunet"}, {"detector_model": tmp_path / "none.onnx"}):
        made = make_plan(EngineConfig(**options), voice)
        assert (made.choice("faces"), reason(made, "faces")) == ("none", "the bundle reads no video")
        assert made.detector_model is None
    face = replace(BUNDLE, streams=tuple(s for s in BUNDLE.streams if s.modality == "video"))
    assert make_plan(EngineConfig(detector="haar"), face).choice("faces") == "haar"


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
def test_a_detector_that_cannot_be_loaded_is_said(tmp_path: Path, face_clip: Path) -> None:
    model = tmp_path / "yunet.onnx"
    model.write_bytes(b"not a network")
    with pytest.raises(merfast.UnavailableError, match=r"OpenCV cannot load .*yunet\.onnx"):
        merfast.Engine(detector_model=model)


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
def test_voice_alone(face_clip: Path) -> None:
    (p,) = merfast.Engine(detector="none").predict([face_clip])
    assert isinstance(p, Prediction)
    assert (p.modalities, p.missing) == (("audio",), {"video": "faces are not looked for"})


def test_an_untrained_bundle_warns(tmp_path: Path) -> None:
    make_untrained.write(tmp_path)
    with pytest.warns(merfast.UntrainedWarning, match=r"'merfast-mini' is untrained: its predictions mean nothing"):
        merfast.Engine(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"precision": "fp8"},
        {"decoder": "vlc"},
        {"detector": "eyes"},
        {"kernels": "fast"},
        {"faces": "some"},
        {"threads": 0},
        {"batch_seconds": 0},
        {"detector": "haar", "detector_model": "x.onnx"},
    ],
)
def test_bad_options_name_themselves(options: dict[str, object]) -> None:
    with pytest.raises(merfast.ConfigError, match=list(options)[-1]):
        merfast.Engine(**options)  # type: ignore[arg-type]


def test_unknown_options_raise() -> None:
    with pytest.raises(TypeError, match="presicion"):
        merfast.Engine(presicion="fp32")  # type: ignore[call-arg]
