"""The one place where implementations are chosen: options and hardware in, a frozen `Plan` with reasons out."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from merfast.config import BundleConfig, EngineConfig
from merfast.errors import UnavailableError


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
    faces, model = _faces(config)
    encoders = [
        Step(f"encode {s.name}", "torch", f"{s.encoder}, the only runtime of this version") for s in bundle.streams
    ]
    steps = (
        device,
        Step("precision", "fp32", "chosen" if config.precision == "fp32" else "the only one of this version"),
        _decode(config),
        faces,
        _crop(config),
        *encoders,
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


def _decode(config: EngineConfig) -> Step:
    if config.decoder == "decord":
        if importlib.util.find_spec("decord") is None:
            raise UnavailableError("decoder 'decord': is not installed, pip install 'merfast[decord]'")
        return Step("decode", "decord", "chosen; audio through PyAV")
    return Step("decode", "pyav", "chosen" if config.decoder == "pyav" else "fastest and leanest on the CPU")


def _faces(config: EngineConfig) -> tuple[Step, Path | None]:
    from merfast.media import yunet

    given = config.detector_model
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
