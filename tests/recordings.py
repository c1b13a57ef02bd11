"""Recordings as events of a live stream, for tests of sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from merfast.session import Session
from merfast.types import Prediction

SIZE = (96, 128)


def read(path: Path) -> list[tuple[float, Any, int]]:
    events: list[tuple[float, Any, int]] = []
    with av.open(str(path)) as container:
        start = (container.start_time or 0) / av.time_base
        for packet in container.demux(container.streams.video[0], container.streams.audio[0]):
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    events.append((frame.time - start, frame, 0))
                else:
                    events.append((frame.time - start, frame.to_ndarray().T, frame.sample_rate))
    return sorted(events, key=lambda event: event[0])


def push(session: Session, events: list[tuple[float, Any, int]], shift: float = 0.0) -> None:
    for time, media, rate in events:
        if rate:
            session.push_audio(media, rate, time + shift)
        else:
            session.push_frame(media, time + shift)


def same(got: list[Any], expected: list[Prediction], shift: float = 0.0, most: float = 1e-4) -> None:
    """Times that are moved are rounded: where a box lies between two pixels, it may become the other one."""
    assert [type(p) for p in got] == [Prediction] * len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.start, a.end) == pytest.approx((b.start + shift, b.end + shift), abs=1e-6)
        assert np.abs(a.probabilities - b.probabilities).max() < most
        assert a.valence == pytest.approx(b.valence, abs=10 * most)
        assert (a.modalities, a.face_coverage, a.track) == (b.modalities, b.face_coverage, b.track)


def sound(seconds: float = 1.0, rate: int = 16_000, level: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(round(seconds * rate)) * level).astype(np.float32)
