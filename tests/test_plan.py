"""Choosing implementations: explicit choices hold or raise, "auto" falls back and says why."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import merfast
from merfast import bundle
from merfast.config import EngineConfig
from merfast.media import decode_decord, decode_pynvvideocodec, decode_torchcodec, nvdec, yunet
from merfast.ops import afg_cpu
from merfast.pipeline import items_ahead
from merfast.plan import Step, make_plan
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan sees of a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_a_gpu_decodes_where_it_can(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(nvdec, "missing", lambda device: asked.append(device) or "")
    for decoder in ("auto", "nvdec"):
        made = plan(device="cuda", decoder=decoder)
        assert made.choice("decode") == "nvdec"
        assert "H.264 of 10 bits or 4:2:2" in reason(made, "decode")
    assert asked == [torch.device("cuda:0")] * 2
    assert plan(device="cuda", decoder="pyav").choice("decode") == "pyav"
    assert plan(device="cpu").choice("decode") == "pyav"
    monkeypatch.setattr(decode_pynvvideocodec, "missing", lambda device: "")
    assert plan(device="cuda", decoder="pynvvideocodec").choice("decode") == "pynvvideocodec"
    monkeypatch.setattr(decode_torchcodec, "load", lambda: None)
    made = plan(device="cuda", decoder="torchcodec")
    assert reason(made, "decode") == "chosen; by NVDEC, pictures brought to the CPU; audio through PyAV"
    assert reason(plan(device="cpu", decoder="torchcodec"), "decode") == "chosen; on the CPU; audio through PyAV"


def test_decoding_on_a_gpu_falls_back_or_raises(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvdec, "missing", lambda device: "no such library")
    made = plan(device="cuda")
    assert (made.choice("decode"), reason(made, "decode")) == ("pyav", "nvdec: no such library")
    with pytest.raises(merfast.UnavailableError, match=r"^decoder 'nvdec': no such library$"):
        plan(device="cuda", decoder="nvdec")
    monkeypatch.setattr(decode_pynvvideocodec, "missing", lambda device: "is not installed")
    with pytest.raises(merfast.UnavailableError, match=r"^decoder 'pynvvideocodec': is not installed$"):
        plan(device="cuda", decoder="pynvvideocodec")
    pytest.importorskip("decord", reason="decord has no wheel here")
    made = plan(device="cuda", decoder="decord")
    where = "by NVDEC, pictures brought to the CPU" if decode_decord.has_nvdec() else "on the CPU, as it was built"
    assert reason(made, "decode").startswith(f"chosen; {where}")


@pytest.mark.parametrize("decoder", ["nvdec", "pynvvideocodec"])
def test_no_nvdec_without_a_gpu(decoder: str) -> None:
    with pytest.raises(
        merfast.UnavailableError, match=f"{decoder}': NVDEC is part of an NVIDIA GPU, and the device is"
    ):
        plan(device="cpu", decoder=decoder)


def test_the_driver_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_here(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", not_here)
    assert nvdec.missing(torch.device("cuda:0")).startswith("the driver's libnvcuvid.so.1 is not here")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(nvdec, "primary_context", lambda device: nullcontext())
    if not torch.cuda.is_available():
        assert nvdec.missing(torch.device("cuda:0")).startswith("FFmpeg cannot open cuda:0 (")


def test_nvdec_bounds_the_items_that_are_read_at_a_time() -> None:
    for decoder, threads, ahead in (("pyav", 2, 4), ("pyav", 64, 128), ("nvdec", 2, 4), ("pynvvideocodec", 64, 14)):
        assert items_ahead(merfast.Plan((Step("decode", decoder, ""),)), threads) == ahead


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


@pytest.fixture
def gpus(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with GPUs and Triton, as far as plans can see."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())


@pytest.mark.usefixtures("gpus")
def test_pictures_go_to_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yunet_model: Path) -> None:
    for kernels in ("auto", "triton"):
        made = plan(device="cuda:1", kernels=kernels, detector_model=yunet_model)
        assert (made.choice("crop"), made.choice("faces"), made.surfaces) == ("triton", "yunet-torch", "cuda:1")
        assert "on cuda:1" in reason(made, "faces")
        assert "whole pictures are there" in reason(made, "crop")
    monkeypatch.setattr(yunet, "cached", lambda: yunet_model)
    assert plan(device="cuda", detector="yunet").choice("faces") == "yunet-torch"
    assert plan(device="cuda", detector="none").choice("faces") == "none"
    other = tmp_path / "other.onnx"
    other.write_bytes(b"not a network")
    made = plan(device="cuda", detector_model=other)  # OpenCV may know it
    assert (made.choice("faces"), made.surfaces) == ("yunet", "cuda:0")
    assert "small pictures come from cuda:0 to the CPU: detector 'yunet': " in reason(made, "faces")


@pytest.mark.usefixtures("gpus")
def test_without_yunet_small_pictures_come_from_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yunet, "cached", lambda: None)
    for options in ({}, {"detector": "haar"}):
        made = plan(device="cuda", **options)
        assert (made.choice("faces"), made.choice("crop"), made.surfaces) == ("haar", "triton", "cuda:0")
        assert reason(made, "faces").endswith("small pictures come from cuda:0 to the CPU")
    with pytest.raises(merfast.UnavailableError, match="merfast fetch yunet"):
        plan(device="cuda", detector="yunet")


@pytest.mark.usefixtures("gpus")
def test_pictures_stay_with_the_decoder(monkeypatch: pytest.MonkeyPatch, yunet_model: Path) -> None:
    for options in ({"device": "cpu"}, {"device": "cuda", "kernels": "reference"}):
        made = plan(detector_model=yunet_model, **options)
        assert (made.choice("faces"), made.surfaces) == ("yunet", None)
        assert made.choice("crop") == ("reference" if "kernels" in options else f"cpp-{afg_cpu.isas()[0]}")
    monkeypatch.setattr("merfast.media.decode_decord.has_nvdec", lambda: False)
    made = plan(device="cuda", decoder="decord", detector_model=yunet_model)  # its frames come to the CPU
    assert (made.choice("faces"), made.surfaces) == ("yunet", None)
    assert made.choice("crop") == f"cpp-{afg_cpu.isas()[0]}"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    made = plan(device="cuda", detector_model=yunet_model)
    assert (made.choice("faces"), made.surfaces) == ("yunet", None)
    assert reason(made, "crop").startswith("Triton is not installed; ")


@pytest.mark.usefixtures("gpus")
def test_what_nvdec_decodes_is_looked_at_there(monkeypatch: pytest.MonkeyPatch, yunet_model: Path) -> None:
    monkeypatch.setattr("merfast.media.nvdec.missing", lambda device: "")
    made = plan(device="cuda", detector_model=yunet_model)
    chosen = [made.choice(step) for step in ("decode", "faces", "crop")]
    assert (chosen, made.surfaces) == (["nvdec", "yunet-torch", "triton"], "cuda:0")
    for options, why in (({"kernels": "reference"}, "chosen; pictures"), ({}, "Triton is not installed; pictures")):
        if not options:
            monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        made = plan(device="cuda", detector_model=yunet_model, **options)
        chosen = [made.choice(step) for step in ("decode", "faces", "crop")]
        assert (chosen, made.surfaces) == (["nvdec", "yunet-torch", "reference"], "cuda:0")
        assert reason(made, "crop").startswith(why)


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
