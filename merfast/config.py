"""The engine's options and the bundle's `config.json`, as frozen dataclasses that check themselves."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from merfast.clip import is_number
from merfast.errors import BundleError, ConfigError
from merfast.types import EMOTIONS, MODALITIES, SAMPLE_RATE, Modality

FORMAT_VERSION = 1
STRUCTURES = ("flat", "hierarchical", "guided")

_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("auto", "fp32", "bf16", "int8"),
    "runtime": ("auto", "torch", "openvino", "onnxruntime", "tensorrt"),
    "decoder": ("auto", "pyav", "nvdec", "pynvvideocodec", "torchcodec", "decord"),
    "detector": ("auto", "yunet", "haar", "none"),
    "kernels": ("auto", "reference", "cpp", "cpp-generic", "cpp-avx2", "cpp-avx512", "triton"),
    "faces": ("main", "all"),
}


@dataclass(frozen=True)
class EngineConfig:
    """Options of `Engine`; see there. An explicit choice succeeds or raises, only "auto" may fall back."""

    device: str = "auto"
    precision: str = "auto"
    runtime: str = "auto"
    decoder: str = "auto"
    detector: str = "auto"
    detector_model: Path | None = None
    kernels: str = "auto"
    faces: str = "main"
    threads: int | None = None
    batch_seconds: float = 64.0
    max_wait_ms: float = 40.0
    latency_ms: float = 500.0
    max_queue: int = 256

    def __post_init__(self) -> None:
        if not isinstance(self.device, str):
            raise ConfigError(f"device: got {self.device!r}, expected a string like 'cpu'")
        if self.threads is not None and (not isinstance(self.threads, int) or isinstance(self.threads, bool)):
            raise ConfigError(f"threads: got {self.threads!r}, expected a whole number")
        if not isinstance(self.batch_seconds, (int, float)):
            raise ConfigError(f"batch_seconds: got {self.batch_seconds!r}, expected a number of seconds")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")
        self._check_devices()
        for name, value, least in (("max_wait_ms", self.max_wait_ms, 0), ("latency_ms", self.latency_ms, 1)):
            if not is_number(value) or not least <= value < math.inf:
                raise ConfigError(f"{name}: got {value!r}, expected milliseconds from {least} on")
        if not isinstance(self.max_queue, int) or isinstance(self.max_queue, bool) or self.max_queue < 1:
            raise ConfigError(f"max_queue: got {self.max_queue!r}, expected a whole number above 0")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: got {self.threads}, expected at least 1")
        if not self.batch_seconds > 0:
            raise ConfigError(f"batch_seconds: got {self.batch_seconds}, expected seconds above 0")
        if self.detector_model is not None and self.detector not in ("auto", "yunet"):
            raise ConfigError(f"detector_model: is a YuNet file, but detector is {self.detector!r}")

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices by name: one, or several that items are shared out to."""
        return tuple(name.strip() for name in self.device.split(","))

    def _check_devices(self) -> None:
        names = self.devices
        among = f", among {self.device!r}" if len(names) > 1 else ""
        for name in names:
            if name not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:[0-9]+", name):
                raise ConfigError(f"device: got {name!r}{among}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
        if len(names) == 1:
            return
        if "auto" in names:
            raise ConfigError(f"device: got 'auto'{among}, expected each device by name")
        if "cpu" in names and set(names) != {"cpu"}:
            raise ConfigError(f"device: got {self.device!r}, expected devices of one kind, for which one plan holds")
        # A second model on one GPU takes memory and gains nothing; the CPU may be named again, to try this there.
        numbers = [int(name.partition(":")[2] or 0) for name in names if name != "cpu"]
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"device: got {self.device!r}, expected each GPU once")


# Limits of what a bundle may ask for: a damaged or hostile config is refused before memory is taken for it.
_MOST = {
    "sample_rate": SAMPLE_RATE,
    "frame_rate": 120,
    "crop_size": 1024,
    "face_scale": 10,
    "max_window": 600,
    "silence": 0.5,
}
_WIDEST, _LONGEST_LIST = 8192, 64


@dataclass(frozen=True)
class Preprocessing:
    """How media becomes encoder input: rates in Hz, sizes in pixels, times in seconds."""

    sample_rate: int = SAMPLE_RATE
    frame_rate: float = 5.0  # face crops a second, at most
    crop_size: int = 64  # pixels, square
    face_scale: float = 1.0  # side of the crop over the side of the detector-independent face box
    max_window: float = 16.0  # longest stretch that one prediction is made from
    silence: float = 1e-4  # peak below which a window's audio counts as silent, full scale = 1

    def check(self) -> None:
        for f in dataclasses.fields(self):
            value, most = getattr(self, f.name), _MOST[f.name]
            if not 0 < value <= most:
                raise BundleError(f"config preprocessing.{f.name}: got {value}, expected above 0 and up to {most:g}")
        if self.sample_rate != SAMPLE_RATE:
            raise BundleError(f"config preprocessing.sample_rate: got {self.sample_rate}, expected {SAMPLE_RATE}")


@dataclass(frozen=True)
class StreamConfig:
    """One encoder: its name, the modality it reads, its kind, the width of its features, and its own options."""

    name: str
    modality: str
    encoder: str
    dim: int
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if self.modality not in ("audio", "video"):
            raise BundleError(f"config stream {self.name!r}: got modality {self.modality!r}, expected audio or video")
        if not 1 <= self.dim <= _WIDEST:
            raise BundleError(f"config stream {self.name!r}: got dim {self.dim}, expected 1 to {_WIDEST}")
        for option, value in self.options.items():
            entries = value if isinstance(value, (list, tuple)) else [value]
            numbers = [v for v in entries if isinstance(v, (int, float))]
            if len(entries) > _LONGEST_LIST or any(not -_WIDEST <= v <= _WIDEST for v in numbers):
                raise BundleError(f"config stream {self.name!r}: got {option}={value!r:.60}, which is too large")


@dataclass(frozen=True)
class FusionConfig:
    """Widths of the fused model, its structures, and their weights in the average (uniform if empty).

    The average posterior is sharpened or softened by `temperature` (arXiv 1706.04599): softmax(log p / temperature).
    """

    dim: int = 128
    attention_dim: int = 64
    heads: int = 4
    valence_dim: int = 64
    structures: tuple[str, ...] = STRUCTURES
    weights: tuple[float, ...] = ()
    temperature: float = 1.0

    def check(self) -> None:
        if not 0.01 <= self.temperature <= 100:
            raise BundleError(f"config fusion.temperature: got {self.temperature}, expected 0.01 to 100")
        widths = (self.dim, self.attention_dim, self.heads, self.valence_dim)
        if min(widths) < 1 or max(widths) > _WIDEST or self.dim % self.heads:
            raise BundleError(f"config fusion: expected widths of 1 to {_WIDEST}, heads dividing dim, got {self}")
        if not self.structures or len(set(self.structures)) < len(self.structures):
            raise BundleError(f"config fusion.structures: got {self.structures}, expected distinct names")
        if unknown := [s for s in self.structures if s not in STRUCTURES]:
            raise BundleError(f"config fusion.structures: got {unknown}, expected of {', '.join(STRUCTURES)}")
        fits = len(self.weights) == len(self.structures) and all(0 <= w <= 1e6 for w in self.weights)
        if self.weights and not (fits and sum(self.weights) > 0):
            raise BundleError(f"config fusion.weights: got {self.weights}, expected one per structure, none below 0")

    @property
    def mix(self) -> tuple[float, ...]:
        """Weights of the structures in the average, summing to 1."""
        raw = self.weights or (1.0,) * len(self.structures)
        return tuple(w / sum(raw) for w in raw)


@dataclass(frozen=True)
class BundleConfig:
    """`config.json` of a bundle."""

    name: str
    trained: bool
    streams: tuple[StreamConfig, ...]
    format_version: int = FORMAT_VERSION
    labels: tuple[str, ...] = EMOTIONS
    preprocessing: Preprocessing = Preprocessing()
    fusion: FusionConfig = FusionConfig()
    licence: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels != EMOTIONS:
            raise BundleError(f"config labels: got {list(self.labels)}, expected {list(EMOTIONS)}")
        names = [s.name for s in self.streams]
        if not names or len(set(names)) < len(names):
            raise BundleError(f"config streams: got names {names}, expected at least one, all distinct")
        self.preprocessing.check()
        self.fusion.check()
        for stream in self.streams:
            stream.check()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the streams read, "audio" first."""
        read = {s.modality for s in self.streams}
        return tuple(m for m in MODALITIES if m in read)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BundleConfig:
        """Read what `to_dict` wrote.

        Raises:
            BundleError: another format version, an unknown, missing or mistyped entry.
        """
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(f"config format_version: got {version!r}, expected {FORMAT_VERSION}")
        values = dict(data)
        streams = values.pop("streams", None)
        if not isinstance(streams, list):
            raise BundleError(f"config streams: got {type(streams).__name__}, expected a list")
        values["streams"] = tuple(_build(StreamConfig, s, "stream") for s in streams)
        values["preprocessing"] = _build(Preprocessing, values.get("preprocessing", {}), "preprocessing")
        values["fusion"] = _build(FusionConfig, values.get("fusion", {}), "fusion")
        return _build(cls, values, "config")


_T = TypeVar("_T")


def _build(cls: type[_T], data: Any, where: str) -> _T:
    if not isinstance(data, Mapping):
        raise BundleError(f"config {where}: got {type(data).__name__}, expected an object")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise BundleError(f"config {where}: got unknown entries {unknown}, expected of {sorted(fields)}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        kind = str(fields[name].type)
        if isinstance(value, list):
            value = tuple(value)
        values[name] = _checked(value, kind, f"{where}.{name}")
    try:
        return cls(**values)
    except TypeError as error:
        raise BundleError(f"config {where}: {error}") from None


def _checked(value: Any, kind: str, where: str) -> Any:
    expected: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
    wanted = expected.get(kind)
    wrong = wanted is not None and (not isinstance(value, wanted) or (kind != "bool" and isinstance(value, bool)))
    if kind.startswith("tuple"):
        inner = expected.get(kind.removeprefix("tuple[").split(",")[0], object)
        wrong = not isinstance(value, tuple) or not all(isinstance(v, inner) and not isinstance(v, bool) for v in value)
    if kind.startswith("dict"):
        wrong = not isinstance(value, Mapping)
    if wrong:
        raise BundleError(f"config {where}: got {value!r:.80}, expected {kind}")
    if kind == "float":
        try:
            return float(value)
        except OverflowError:
            raise BundleError(f"config {where}: got a number that is too large, expected {kind}") from None
    return value
