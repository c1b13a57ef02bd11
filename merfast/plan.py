"""The one place where implementations are chosen: options and hardware in, a frozen `Plan` with reasons out."""

from __future__ import annotations

import importlib.util
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

    def __str__(self) -> str:
        rows = [("step", "implementation", "reason"), *((s.step, s.implementation, s.reason) for s in self.steps)]
        wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
        return "\n".join(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c}" for a, b, c in rows)


def make_plan(config: EngineConfig, bundle: BundleConfig) -> Plan:
    """Choose; an explicit option is taken or raises, "auto" falls back and says why.

    Raises:
        UnavailableError: something chosen explicitly does not exist here.
    """
    device = _device(config)
    faces, model = _faces(config, bundle)
    steps = (
        device,
        _precision(config, bundle),
        _decode(config),
        faces,
        _crop(config),
        *(_encode(config, stream, device.implementation) for stream in bundle.streams),
        _afg(config, device.implementation),
        _joint_decoding(config, device.implementation),
    )
    return Plan(steps, model)


def _device(config: EngineConfig) -> Step:
    import torch

    if config.device == "cpu":
        return Step("device", "cpu", "chosen")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "auto":
        return Step("device", "cuda:0", "a CUDA GPU is here") if count else Step("device", "cpu", "no CUDA GPU found")
    index = int(config.device.partition(":")[2] or 0)
    if index >= count:
        found = f"{count} CUDA GPUs" if count else "no CUDA GPU"
        raise UnavailableError(f"device {config.device!r}: found {found} (torch {torch.__version__})")
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


def _decode(config: EngineConfig) -> Step:
    if config.decoder == "decord":
        if importlib.util.find_spec("decord") is None:
            raise UnavailableError("decoder 'decord': is not installed, pip install 'merfast[decord]'")
        return Step("decode", "decord", "chosen; audio through PyAV")
    return Step("decode", "pyav", "chosen" if config.decoder == "pyav" else "fastest and leanest on the CPU")


def _faces(config: EngineConfig, bundle: BundleConfig) -> tuple[Step, Path | None]:
    from merfast.media import yunet

    given = config.detector_model
    if "video" not in bundle.modalities:
        return Step("faces", "none", "the bundle reads no video"), None
    if config.detector == "none":
        return Step("faces", "none", "chosen"), None
    if config.detector == "haar":
        return Step("faces", "haar", "chosen"), None
    if given is not None and not given.is_file():
        raise UnavailableError(f"detector_model: no such file: {given}")
    model = given or yunet.cached()
    if model is not None:
        return Step("faces", "yunet", "its file is given" if given else "its file is in the cache"), model
    if config.detector == "yunet":
        raise UnavailableError(
            "detector 'yunet': its file is not here; run 'merfast fetch yunet' or give detector_model="
        )
    return Step("faces", "haar", "YuNet's file is not here ('merfast fetch yunet' gets it)"), None


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


def _crop(config: EngineConfig) -> Step:
    """Pictures are decoded into the CPU's memory, whatever device the model is on."""
    implementation, reason = _kernels("auto" if config.kernels == "triton" else config.kernels)
    return Step("crop", implementation, f"{reason}; from the decoder's planes where they are 8-bit 4:2:0")


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
