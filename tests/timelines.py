"""Timelines for tests of tables and exports: windows with what is wanted of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from merfast.attention import Attention, StreamAttention
from merfast.errors import MediaError
from merfast.types import EMOTIONS, Failure, Prediction


def window(start: float, end: float, emotion: str = "happy", valence: float = 1.0, **changes) -> Prediction:
    """A window with this emotion at 82 %, of voice and face 0 unless changed."""
    values = np.full(6, 0.036, dtype=np.float32)
    values[EMOTIONS.index(emotion)] = 0.82
    p = Prediction("talk.mp4", start, end, emotion, values, valence, ("audio", "video"), 0.75, track=0)
    return replace(p, **changes)


def empty(start: float, end: float, **changes) -> Prediction:
    """A window with neither face nor sound."""
    nothing, missing = np.full(6, np.nan, dtype=np.float32), {"audio": "silent", "video": "no face found"}
    p = Prediction("talk.mp4", start, end, None, nothing, float("nan"), (), 0.0, missing)
    return replace(p, **changes)


def failed(start: float | None = None, end: float | None = None, source: str = "talk.mp4") -> Failure:
    return Failure(source, MediaError(source, "is damaged"), start, end)


def timeline(count: int, length: float = 4.0, hop: float = 1.0, duration: float | None = None) -> list[Prediction]:
    """Windows as the engine cuts them, emotions in turn and valence rising from -4; the last ends with the media."""
    ends = [min(k * hop + length, duration or np.inf) for k in range(count)]
    return [window(k * hop, end, EMOTIONS[k % 6], 8 * k / count - 4) for k, end in enumerate(ends)]


def attention(audio: float, video: float | None = None) -> Attention:
    """Of one stream of each modality that has a share."""
    streams = {}
    for name, share in (("audio", audio), ("video", video)):
        if share is not None:
            spans, weights = np.array([[0.0, 4.0]]), np.ones(1, dtype=np.float32)
            streams[name] = StreamAttention(name, share, spans, weights)
    return Attention(streams)
