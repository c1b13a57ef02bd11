"""`Attention`: which moments of voice and face a prediction was gathered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Modality = Literal["audio", "video"]


@dataclass(frozen=True, eq=False)
class StreamAttention:
    """How much each moment of one stream weighed.

    Attributes:
        modality: that the stream reads.
        share: of all attention, in [0, 1].
        spans: `[T, 2]` float64, seconds: start and end of what each feature vector was made from, on the prediction's
            clock; one that describes a whole window spans it.
        weights: `[T]` float32 that sum to 1: attention within the stream.
    """

    modality: Modality
    share: float
    spans: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls, modality: Modality, spans: npt.NDArray[np.float64], shares: npt.NDArray[np.floating[Any]]
    ) -> StreamAttention:
        """From each moment's share of all attention, `[T]` with T of at least 1."""
        total = float(shares.sum(dtype=np.float64))
        weights = shares / total if total > 0 else np.full(len(shares), 1 / len(shares))
        return cls(modality, total, spans, weights.astype(np.float32))

    def __post_init__(self) -> None:
        if self.spans.shape != (len(self.weights), 2) or self.weights.ndim != 1:
            got = f"{list(self.spans.shape)} and {list(self.weights.shape)}"
            raise ValueError(f"attention spans, weights: got {got}, expected [T, 2] and [T]")


@dataclass(frozen=True, eq=False)
class Attention:
    """The weights of the attention-guided gatherings, followed from the fused vector back to the moments.

    Averaged over heads, and over structures as their posteriors are. Weights say what was looked at, not what would
    have changed the outcome.

    Attributes:
        streams: name -> its attention, of those that were present; the shares sum to 1.
    """

    streams: Mapping[str, StreamAttention]

    @property
    def modalities(self) -> dict[Modality, float]:
        """Modality -> its share, of those that were present; they sum to 1."""
        out: dict[Modality, float] = {}
        for stream in self.streams.values():
            out[stream.modality] = out.get(stream.modality, 0.0) + stream.share
        return out

    def shifted(self, seconds: float) -> Attention:
        """The same on a clock that shows so many seconds more."""
        return Attention({name: replace(s, spans=s.spans + seconds) for name, s in self.streams.items()})

    def over_time(self, modality: Modality, edges: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Attention of a modality in each stretch between `edges`.

        Args:
            modality: of the streams.
            edges: `[K + 1]` seconds, rising.

        Returns:
            `[K]`: shares of all attention; they sum to the modality's share if the edges enclose all its moments.
        """
        marks = np.asarray(edges, dtype=np.float64)
        out = np.zeros(len(marks) - 1)
        for stream in self.streams.values():
            if stream.modality != modality or not len(stream.weights):
                continue
            start, end = stream.spans.T
            length = np.maximum(end - start, 1e-9)
            reached = np.clip((marks[:, None] - start) / length, 0.0, 1.0) @ stream.weights.astype(np.float64)
            out += stream.share * np.diff(reached)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            name: {
                "modality": s.modality,
                "share": round(s.share, 6),
                "spans": np.round(s.spans, 4).tolist(),
                "weights": np.round(s.weights.astype(np.float64), 6).tolist(),
            }
            for name, s in self.streams.items()
        }


def average(parts: Sequence[Attention], weights: Sequence[float] | npt.NDArray[np.float64]) -> Attention:
    """Attention of consecutive parts as one: each moment's, times the weight of its part; the weights sum to 1."""
    names = dict.fromkeys(name for part in parts for name in part.streams)
    streams: dict[str, StreamAttention] = {}
    for name in names:
        own = [(w, part.streams[name]) for w, part in zip(weights, parts, strict=True) if name in part.streams]
        moments = np.concatenate([w * s.share * s.weights.astype(np.float64) for w, s in own])
        spans = np.concatenate([s.spans for _, s in own])
        streams[name] = StreamAttention.of(own[0][1].modality, spans, moments)
    return Attention(streams)
