"""Attention of a window's prediction: what fusion makes of each feature vector, put on the clock of the media."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from merfast.attention import Attention, StreamAttention
from merfast.config import BundleConfig
from merfast.types import SAMPLE_RATE, FloatArray, Window

Spans = npt.NDArray[np.float64]


def attention_of(window: Window, weights: Mapping[str, FloatArray], config: BundleConfig) -> Attention:
    """Attention of one window.

    Args:
        window: what it was predicted from.
        weights: stream name -> `[T]`, of each feature vector; those of all streams sum to 1.
        config: of the bundle.
    """
    streams: dict[str, StreamAttention] = {}
    for stream in config.streams:
        shares = weights[stream.name]
        if not len(shares):
            continue
        if stream.modality == "audio":
            streams[stream.name] = StreamAttention.of("audio", _of_sound(window, len(shares)), shares)
        else:
            spans = _of_crops(window, 1 / config.preprocessing.frame_rate)
            streams[stream.name] = StreamAttention.of("video", spans, shares)
    return Attention(streams)


def _of_sound(window: Window, count: int) -> Spans:
    """`[count, 2]` seconds: the sound's time, divided evenly; a vector alone is for the whole window."""
    start = window.start + window.heard
    end = min(start + len(window.audio) / SAMPLE_RATE, window.end)
    edges = np.linspace(start, end, count + 1) if count > 1 else np.array([window.start, window.end])
    return np.stack([edges[:-1], edges[1:]], 1)


def _of_crops(window: Window, step: float) -> Spans:
    """`[T, 2]` seconds: from each crop's frame to where the next one is due."""
    times = np.array(window.times, dtype=np.float64)
    return np.stack([times, times + step], 1).clip(window.start, window.end)
