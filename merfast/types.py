"""The values that travel through merfast: `Clip` in, `Batch` inside, `Prediction` out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from merfast.attention import Attention, average
from merfast.attention import Modality as Modality
from merfast.errors import MerfastError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure, SubFigure

EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
"""The six classes in MER 2023 order."""

SAMPLE_RATE = 16_000
"""Sampling rate of all audio inside merfast, in Hz."""


FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Crops: TypeAlias = "ByteArray | torch.Tensor"
"""Face crops, uint8 RGB: an array, or a tensor where they were cut on a device."""

Known: TypeAlias = "dict[tuple[int, int | None], dict[str, torch.Tensor]]"
"""Features of one timeline's crops, so that each is encoded once: (number of the frame, track) -> stream -> `[D]`."""

MODALITIES: tuple[Modality, ...] = ("audio", "video")


@dataclass(frozen=True, eq=False)
class Window:
    """One stretch of one face's media, `[start, end)` seconds: what a prediction is made from.

    Attributes:
        start, end: seconds from the start of the media.
        audio: `[N]` float32 at 16 kHz; empty where there is none, or silence.
        crops: `[T, S, S, 3]` uint8 RGB face crops, an array or a tensor on a device; empty where there is no face.
        sampled: number of frames looked at, with a face or without.
        track: number of the face's track, None without a face.
        missing: modality -> why it is absent.
        ready: where crops are on a GPU, the event after which other streams may read them.
        numbers: of the frames that the crops are from, rising, where windows overlap.
        known: features of crops, shared by the windows of one timeline; None where windows do not overlap.
        times: `[T]` seconds from the start of the media, of the frames that the crops are from.
        heard: seconds from `start` to the first sample of `audio`.
        explain: whether the attention of its prediction is asked for.
    """

    start: float
    end: float
    audio: FloatArray
    crops: Crops
    sampled: int
    track: int | None
    missing: Mapping[str, str]
    ready: torch.cuda.Event | None = None
    numbers: tuple[int, ...] = ()
    known: Known | None = None
    times: tuple[float, ...] = ()
    heard: float = 0.0
    explain: bool = False

    @property
    def modalities(self) -> tuple[Modality, ...]:
        audio: tuple[Modality, ...] = ("audio",) if len(self.audio) else ()
        video: tuple[Modality, ...] = ("video",) if len(self.crops) else ()
        return audio + video


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows packed one behind the other, without padding.

    Attributes:
        audio: `[sum of samples]` float32 at 16 kHz.
        audio_offsets: `[B + 1]` int64; window b owns `audio[audio_offsets[b]:audio_offsets[b + 1]]`.
        crops: `[sum of crops, S, S, 3]` uint8 RGB; a tensor on a device if those of any window are, else an array.
        crop_offsets: `[B + 1]` int64.
    """

    audio: FloatArray
    audio_offsets: IntArray
    crops: Crops
    crop_offsets: IntArray

    @classmethod
    def pack(cls, windows: Sequence[Window]) -> Batch:
        """Pack windows of one crop size; at least one. On a GPU the current stream waits for crops, not the CPU."""
        return cls(
            np.concatenate([w.audio for w in windows]),
            offsets_of([len(w.audio) for w in windows]),
            _packed(windows),
            offsets_of([len(w.crops) for w in windows]),
        )

    def __len__(self) -> int:
        return len(self.audio_offsets) - 1

    def __repr__(self) -> str:
        return f"Batch({len(self)} windows, audio {list(self.audio.shape)}, crops {list(self.crops.shape)})"


def _packed(windows: Sequence[Window]) -> Crops:
    """All crops behind each other; on a device if any are there."""
    arrays = [w.crops for w in windows if isinstance(w.crops, np.ndarray)]
    if len(arrays) == len(windows):
        return np.concatenate(arrays)
    import torch

    device = next(w.crops.device for w in windows if not isinstance(w.crops, np.ndarray))
    parts = []
    for window in windows:
        if isinstance(window.crops, np.ndarray):
            host = torch.tensor(window.crops)
            parts.append((host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True))
            continue
        if window.ready is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(window.ready)
            window.crops.record_stream(stream)  # so that their memory is not used again before this stream has read it
        parts.append(window.crops)
    return torch.cat(parts)


def offsets_of(lengths: Sequence[int]) -> IntArray:
    """`[B + 1]` int64 offsets of sets that follow each other."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True, eq=False)
class Prediction:
    """Emotion and valence of one item, or of one window of it.

    Attributes:
        source: the item's name.
        start, end: seconds, half-open.
        emotion: the most probable of `EMOTIONS`; None where the window held neither face nor sound.
        probabilities: `[6]` float32 that sum to 1, in the order of `EMOTIONS`; NaN where `emotion` is None.
        valence: in [-5, 5], negative is unpleasant; NaN where `emotion` is None.
        modalities: which of "audio" and "video" were used.
        face_coverage: fraction of the sampled frames in which this face was seen, in [0, 1].
        missing: modality -> why it was not used.
        track: number of the face's track within the item; None without a face, and where windows have different ones.
        windows: the parts that the item was cut into; empty for a part.
        others: with `faces="all"`, the predictions of the other faces, largest share of time first. The main face is
            chosen for each window, so that in long media one may be the main face here and another there.
        warnings: what went wrong without making the result unusable (damaged packets, for instance).
        attention: which moments it was gathered from, with `explain=True`.
    """

    source: str
    start: float
    end: float
    emotion: str | None
    probabilities: FloatArray
    valence: float
    modalities: tuple[Modality, ...]
    face_coverage: float
    missing: Mapping[str, str] = field(default_factory=dict)
    track: int | None = None
    windows: tuple[Prediction, ...] = ()
    others: tuple[Prediction, ...] = ()
    warnings: tuple[str, ...] = ()
    attention: Attention | None = None

    ok = True

    def __post_init__(self) -> None:
        if self.probabilities.shape != (len(EMOTIONS),):
            got = list(self.probabilities.shape)
            raise ValueError(f"probabilities: got shape {got}, expected [{len(EMOTIONS)}]")
        self.probabilities.setflags(write=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None, `probabilities` a mapping by emotion."""
        out: dict[str, Any] = {
            "source": self.source,
            "start": round(self.start, 6),
            "end": round(self.end, 6),
            "emotion": self.emotion,
            "probabilities": {e: _number(p) for e, p in zip(EMOTIONS, self.probabilities, strict=True)},
            "valence": _number(self.valence),
            "modalities": list(self.modalities),
            "face_coverage": round(self.face_coverage, 4),
            "missing": dict(self.missing),
            "track": self.track,
        }
        if self.windows:
            out["windows"] = [w.to_dict() for w in self.windows]
        if self.others:
            out["others"] = [o.to_dict() for o in self.others]
        if self.warnings:
            out["warnings"] = list(self.warnings)
        if self.attention is not None:
            out["attention"] = self.attention.to_dict()
        return out

    def plot(self, figure: Figure | SubFigure | None = None) -> Figure | SubFigure:
        """Draw it with matplotlib: over time where it has `windows`, else a bar for each emotion and the valence.

        Args:
            figure: an empty one to draw into; None makes one.

        Returns:
            The figure; `savefig` writes it. `merfast.plots.plot_timeline` draws a whole timeline.

        Raises:
            UnavailableError: matplotlib is not installed.
        """
        from merfast.plots import plot_prediction

        return plot_prediction(self, figure)

    def __repr__(self) -> str:
        if self.emotion is None:
            what = "nothing to go by"
        else:
            what = f"{self.emotion} {self.probabilities.max():.2f}, valence {self.valence:+.2f}"
        used = "+".join(self.modalities) or "none"
        parts = f", {len(self.windows)} windows" if self.windows else ""
        others = f", {len(self.others)} other faces" if self.others else ""
        span = f"{self.start:.2f}-{self.end:.2f} s"
        return f"Prediction({self.source!r}, {span}: {what}; {used}, face {self.face_coverage:.0%}{parts}{others})"

    def _repr_html_(self) -> str:
        from merfast.notebook import prediction_html

        return prediction_html(self)


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class Failure:
    """Stands in the place of a `Prediction` for an item that failed, with `on_error="return"`, or a live window.

    Attributes:
        source: name of the item or stream.
        error: why.
        start, end: seconds, of the window; None for an item.
    """

    source: str
    error: MerfastError
    start: float | None = None
    end: float | None = None

    ok = False

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"source": self.source, "error": str(self.error), "kind": type(self.error).__name__}
        if self.start is not None and self.end is not None:
            out |= {"start": round(self.start, 6), "end": round(self.end, 6)}
        return out

    def _repr_html_(self) -> str:
        from merfast.notebook import failure_html

        return failure_html(self)


def combine(parts: Sequence[Prediction], **changes: Any) -> Prediction:
    """Average consecutive predictions of one item, weighted by duration; empty windows carry no weight.

    Raises:
        ValueError: no part has an emotion.
    """
    full = [p for p in parts if p.emotion is not None]
    if not full:
        raise ValueError("combine: no part holds a prediction")
    weights = np.array([p.end - p.start for p in full], dtype=np.float64)
    weights /= weights.sum()
    probabilities = np.sum([w * p.probabilities for w, p in zip(weights, full, strict=True)], axis=0)
    start, end = min(p.start for p in parts), max(p.end for p in parts)
    coverage = sum((p.end - p.start) * p.face_coverage for p in parts) / (end - start)
    tracks = {p.track for p in full if p.track is not None}
    used = {m for p in full for m in p.modalities}
    modalities = tuple(m for m in ("audio", "video") if m in used)
    attention = [p.attention for p in full if p.attention is not None]
    out = Prediction(
        source=full[0].source,
        start=start,
        end=end,
        emotion=EMOTIONS[int(probabilities.argmax())],
        probabilities=probabilities.astype(np.float32),
        valence=float(np.dot(weights, [p.valence for p in full])),
        modalities=modalities,
        face_coverage=coverage,
        missing={m: r for p in full for m, r in p.missing.items() if m not in used},
        track=tracks.pop() if len(tracks) == 1 else None,
        attention=average(attention, weights) if len(attention) == len(full) else None,
    )
    return replace(out, **changes)
