"""The one place where implementations are chosen: options and hardware in, a frozen `Plan` with reasons out."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from merfast.config import BundleConfig, EngineConfig, StreamConfig
from merfast.errors import UnavailableError

FOUNDATION = "transformers"
"""Kind of the encoders that are compiled."""

# Runtimes, the fastest first -> precisions that they have.
_CPU_RUNTIMES: dict[str, tuple[str, ...]] = {
    "openvino": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
    "torch": ("fp32", "bf16"),
}
_GPU_RUNTIMES: dict[str, tuple[str, ...]] = {"torch": ("fp32", "bf16"), "tensorrt": ("fp32", "bf16")}


@dataclass(frozen=True)
class Step:
    """One step of the way from media to prediction: what runs it, and why."""

    step: str
    implementation: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Which implementation runs each step; `print` it."""

    steps: tuple[Step, ...]
    detector_model: Path | None = None

    def choice(self, step: str) -> str:
        """The implementation of a step.

        Raises:
            KeyError: there is no such step.
        """
        for s in self.steps:
            if s.step == step:
                return s.implementation
        raise KeyError(step)

    @property
    def surfaces(self) -> str | None:
        """The device where pictures of files are looked at and cut; None: where their decoder has them, on the CPU."""
        from merfast.media.decode import ON_DEVICE

        there = self.choice("crop") == "triton" or self.choice("faces") == "yunet-torch"
        return self.choice("device") if there or self.choice("decode") in ON_DEVICE else None

    def __str__(self) -> str:
        rows = [("step", "implementation", "reason"), *((s.step, s.implementation, s.reason) for s in self.steps)]
        wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
        return "\n".join(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c}" for a, b, c in rows)


def make_plan(config: EngineConfig, bundle: BundleConfig) -> Plan:
    """Choose; an explicit option is taken or raises, "auto" falls back and says why.

    Raises:
        UnavailableError: something chosen explicitly does not exist here.
    """
    from merfast.media.decode import ON_DEVICE

    device, *more = [_device(name) for name in config.devices]
    decode = _decode(config, device.implementation)
    crop = _crop(config, device.implementation, decode.implementation)
    there = crop.implementation == "triton" or decode.implementation in ON_DEVICE
    faces, model = _faces(config, bundle, device.implementation if there else None)
    steps = (
        _together([device, *more]) if more else device,
        _precision(config, bundle),
        decode,
        faces,
        crop,
        *(_encode(config, stream, device.implementation) for stream in bundle.streams),
        _afg(config, device.implementation),
        _joint_decoding(config, device.implementation),
    )
    return Plan(steps, model)


def _together(devices: Sequence[Step]) -> Step:
    names = ", ".join(d.implementation for d in devices)
    return Step("device", names, "chosen; an item goes to the first that has room")


def _device(name: str) -> Step:
    import torch

    if name == "cpu":
        return Step("device", "cpu", "chosen")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return Step("device", "cuda:0", "a CUDA GPU is here") if count else Step("device", "cpu", "no CUDA GPU found")
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        found = f"{count} CUDA GPUs" if count else "no CUDA GPU"
        raise UnavailableError(f"device {name!r}: found {found} (torch {torch.__version__})")
    return Step("device", f"cuda:{index}", "chosen")


def _precision(config: EngineConfig, bundle: BundleConfig) -> Step:
    if config.runtime not in ("auto", "torch") and not any(s.encoder == FOUNDATION for s in bundle.streams):
        expected = "expected torch: the bundle has no foundation models, and its own encoders run in torch"
        raise UnavailableError(f"runtime: got {config.runtime!r}, {expected}")
    if config.precision in ("auto", "fp32"):
        return Step("precision", "fp32", "exact" if config.precision == "auto" else "chosen")
    if not any(s.encoder == FOUNDATION for s in bundle.streams):
        expected = "expected fp32: the bundle has no foundation models, and its own encoders run in fp32"
        raise UnavailableError(f"precision: got {config.precision!r}, {expected}")
    return Step("precision", config.precision, "chosen; of the foundation models, all else is fp32")


def _encode(config: EngineConfig, stream: StreamConfig, device: str) -> Step:
    """What runs an encoder. Order of the runtimes: what was measured (`benchmarks/bench_encoders.py`)."""
    step = f"encode {stream.name}"
    if stream.encoder != FOUNDATION:
        return Step(step, "torch", f"{stream.encoder} is small")
    precision = "fp32" if config.precision == "auto" else config.precision
    offered = _CPU_RUNTIMES if device == "cpu" else _GPU_RUNTIMES
    refused: list[str] = []
    for runtime in offered if config.runtime == "auto" else (config.runtime,):
        if runtime not in offered:
            why = (runtime == "tensorrt" and _missing(runtime, precision)) or f"does not run on {device}"
        else:
            why = "" if precision in offered[runtime] else f"has no {precision} on {device}"
        if not (why := (why or _missing(runtime, precision)).removeprefix(f"{runtime} ")):
            reason = "; ".join(refused) or "the fastest" if config.runtime == "auto" else "chosen"
            return Step(step, f"{runtime} {precision}", reason)
        if config.runtime != "auto":
            raise UnavailableError(f"runtime {runtime!r}: {why}")
        refused.append(f"{runtime}: {why}")
    raise UnavailableError(f"precision {precision!r}: {'; '.join(refused)}")


def _missing(runtime: str, precision: str) -> str:
    """Why a runtime cannot be used here, or nothing."""
    from merfast.runtime import onnx, openvino, ort, tensorrt

    if runtime == "openvino":
        why = openvino.missing()
        return why or ("" if precision == "fp32" or openvino.has_bf16() else "needs a CPU that multiplies in bf16")
    if runtime == "onnxruntime":
        return ort.missing() or onnx.missing()
    if runtime == "tensorrt":
        return tensorrt.available() or onnx.missing()
    return ""


def _decode(config: EngineConfig, device: str) -> Step:
    import torch

    from merfast.media import nvdec

    wanted, on_gpu = config.decoder, device != "cpu"
    if wanted == "pyav" or (wanted == "auto" and not on_gpu):
        return Step("decode", "pyav", "chosen" if wanted == "pyav" else "fastest and leanest on the CPU")
    if wanted in ("decord", "torchcodec"):
        return _decode_mixed(wanted, on_gpu)
    if wanted == "pynvvideocodec":
        from merfast.media import decode_pynvvideocodec

        missing = decode_pynvvideocodec.missing(torch.device(device))
    else:
        missing = nvdec.missing(torch.device(device))
    if missing and wanted != "auto":
        raise UnavailableError(f"decoder {wanted!r}: {missing}")
    if missing:
        return Step("decode", "pyav", f"nvdec: {missing}")
    reason = "chosen" if wanted != "auto" else "leaves pictures on the GPU"
    return Step("decode", wanted if wanted != "auto" else "nvdec", f"{reason}; {nvdec.REST}")


def _decode_mixed(wanted: str, on_gpu: bool) -> Step:
    """Libraries whose pictures end in the CPU's memory."""
    if wanted == "torchcodec":
        from merfast.media import decode_torchcodec

        decode_torchcodec.load()
        place = "by NVDEC, pictures brought to the CPU" if on_gpu else "on the CPU"
        return Step("decode", wanted, f"chosen; {place}; audio through PyAV")
    if importlib.util.find_spec("decord") is None:
        raise UnavailableError("decoder 'decord': is not installed, pip install 'merfast[decord]'")
    from merfast.media import decode_decord

    place = ""
    if on_gpu:
        built = decode_decord.has_nvdec()
        place = "by NVDEC, pictures brought to the CPU; " if built else "on the CPU, as it was built without NVDEC; "
    return Step("decode", wanted, f"chosen; {place}audio through PyAV")


def _faces(config: EngineConfig, bundle: BundleConfig, surfaces: str | None) -> tuple[Step, Path | None]:
    """What finds faces, in pictures on the device `surfaces`, or in those of the decoder without one."""
    from merfast.media import yunet

    to_cpu = "" if surfaces is None else f"; small pictures come from {surfaces} to the CPU"

    given = config.detector_model
    if "video" not in bundle.modalities:
        return Step("faces", "none", "the bundle reads no video"), None
    if config.detector == "none":
        return Step("faces", "none", "chosen"), None
    if config.detector == "haar":
        return Step("faces", "haar", f"chosen{to_cpu}"), None
    if given is not None and not given.is_file():
        raise UnavailableError(f"detector_model: no such file: {given}")
    model = given or yunet.cached()
    if model is not None:
        return _yunet(model, "its file is given" if given else "its file is in the cache", surfaces), model
    if config.detector == "yunet":
        raise UnavailableError(
            "detector 'yunet': its file is not here; run 'merfast fetch yunet' or give detector_model="
        )
    return Step("faces", "haar", f"YuNet's file is not here ('merfast fetch yunet' gets it){to_cpu}"), None


def _yunet(model: Path, reason: str, surfaces: str | None) -> Step:
    from merfast.media import yunet_torch

    if surfaces is None:
        return Step("faces", "yunet", reason)
    if why := yunet_torch.unreadable(model):
        return Step("faces", "yunet", f"{reason}; small pictures come from {surfaces} to the CPU: {why}")
    return Step("faces", "yunet-torch", f"{reason}; several pictures at a time on {surfaces}")


def _kernels(wanted: str) -> tuple[str, str]:
    """(implementation, reason) of an op that has C++ kernels, on the CPU.

    Raises:
        UnavailableError: the kernels that were chosen are not here.
    """
    from merfast.ops import afg_cpu

    if wanted == "reference":
        return "reference", "chosen"
    missing = ""
    try:
        isas = afg_cpu.isas()
    except UnavailableError as error:
        isas, missing = (), str(error)
    if wanted in ("auto", "cpp") and isas:
        return f"cpp-{isas[0]}", "widest vectors of this CPU"
    if wanted.removeprefix("cpp-") in isas:
        return wanted, "chosen"
    if wanted != "auto":
        raise UnavailableError(f"kernels {wanted!r}: got {missing or ', '.join(isas)} on this machine")
    return "reference", missing


def _crop(config: EngineConfig, device: str, decoder: str) -> Step:
    """On a GPU, pictures are sent there even if the CPU decodes them, although that is more than crops would be.

    A picture of 720p is 1.4 MB, crops 7 to 150 KB: but finding faces in it takes the CPU far longer than sending it.
    """
    from merfast.media.decode import ON_DEVICE

    missing = ""
    if device != "cpu" and decoder not in ("torchcodec", "decord"):
        if config.kernels in ("auto", "triton"):
            if importlib.util.find_spec("triton") is not None:
                why = "chosen" if config.kernels == "triton" else "a CUDA GPU is the device"
                where = "" if decoder in ON_DEVICE else ", as the CPU takes longer to find faces in them"
                return Step("crop", "triton", f"{why}; whole pictures are there{where}")
            missing = "Triton is not installed; "
        if decoder in ON_DEVICE:
            return Step("crop", "reference", f"{missing or 'chosen; '}pictures are on {device}")
    implementation, reason = _kernels("auto" if config.kernels == "triton" else config.kernels)
    return Step("crop", implementation, f"{missing}{reason}; from the decoder's planes where they are 8-bit 4:2:0")


def _afg(config: EngineConfig, device: str) -> Step:
    wanted = config.kernels
    if wanted == "reference":
        return Step("afg", "reference", "chosen")
    if device == "cpu" and wanted == "triton":
        raise UnavailableError("kernels 'triton': run on a CUDA GPU, and the device is cpu")
    if device == "cpu":
        return Step("afg", *_kernels(wanted))
    if wanted.startswith("cpp"):
        raise UnavailableError(f"kernels {wanted!r}: run on the CPU, and the device is {device}")
    if importlib.util.find_spec("triton") is not None:
        return Step("afg", "triton", "chosen" if wanted == "triton" else "a CUDA GPU is the device")
    if wanted == "triton":
        raise UnavailableError("kernels 'triton': Triton is not installed (pip install triton)")
    return Step("afg", "reference", "Triton is not installed")


def _joint_decoding(config: EngineConfig, device: str) -> Step:
    return replace(_afg(config, device), step="joint decoding")  # they come together, so the same choice
