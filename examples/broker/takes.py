"""One run of one stream on its way through a session, and what must be read again after a restart."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from merfast.session import Session

from messages import Piece

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Record:
    """What the results topic says of a take: the last of its messages counts.

    Attributes:
        origin: seconds on the take's clock at which its window 0 starts; NaN if there is none.
        windows: number of the window after the last one published.
        ended: offset of the take's last message, once all of it is published.
        at: offset of this record in the results topic.
    """

    origin: float
    windows: int
    ended: int | None = None
    at: int = -1

    @classmethod
    def parse(cls, value: bytes, at: int) -> tuple[tuple[str, str], Record]:
        """The take's key and its record."""
        values = json.loads(value)
        windows = values["windows"] if "ended" in values else values["window"] + 1
        origin = math.nan if values["origin"] is None else values["origin"]
        return (values["stream"], values["take"]), cls(origin, windows, values.get("ended"), at)


class Take:
    """Feeds a session, and numbers its windows as if it had never been interrupted.

    Window k starts at `origin + k * hop`. After a restart the session starts with the last window that was published:
    what follows, and where the take ends, comes out as it would have without the restart. That window is not published
    again.

    Args:
        stream, name: of this take.
        session: a new one.
        hop: of the session, in seconds.
        record: of this take, as it was left; None for a take that is new.
    """

    def __init__(self, stream: str, name: str, session: Session, hop: float, record: Record | None) -> None:
        self.stream, self.name, self.session = stream, name, session
        self.record = record
        self.closed = self.said_ended = False
        self.last_offset = -1  # of this take's messages, in its partition of the media topic
        self.last_time = time.monotonic()
        self._hop = hop
        self._origin = record.origin if record is not None else math.nan
        self._begin = self._start(record.windows - 1) if record is not None else -math.inf
        self._given = record.windows if record is not None else 0  # windows handed on to be published
        self._begun = record is None
        self._pending: deque[tuple[int, float]] = deque()  # offset, and until when on the take's clock it is needed

    def push(self, piece: Piece, offset: int) -> None:
        """Feed the session.

        Raises:
            ValueError: the picture is none.
            MerfastError: the session does not take it.
        """
        self.last_offset, self.last_time = offset, time.monotonic()
        if piece.kind == "end":
            self._pending.append((offset, math.inf))
            self.close()
            return
        needed = piece.time
        if piece.kind == "frame":
            self._frame(_picture(piece), piece.time)
        else:
            samples = np.frombuffer(piece.payload, "<f4").astype(np.float32, copy=False)
            self._sound(samples, piece.rate, piece.time)
            needed += len(samples) / piece.rate
        # What was refused counts for neither.
        self._pending.append((offset, needed))
        if math.isnan(self._origin):
            self._origin = piece.time

    def _frame(self, picture: Picture, at: float) -> None:
        if at >= self._begin:
            # Where no picture is at hand, one without a face.
            self._start_at_begin(at, lambda: self.session.push_frame(np.zeros_like(picture), self._begin))
            self.session.push_frame(picture, at)

    def _sound(self, samples: npt.NDArray[np.float32], rate: int, at: float) -> None:
        if at < self._begin:
            early = min(len(samples), round((self._begin - at) * rate))
            samples, at = samples[early:], self._begin
        if len(samples):
            self._start_at_begin(at, lambda: self.session.push_audio(np.zeros(1, np.float32), rate, self._begin))
            self.session.push_audio(samples, rate, at)

    def _start_at_begin(self, at: float, push_nothing: Callable[[], None]) -> None:
        """The windows of a session start at the first time that it is given: let that be `_begin`, and not `at`."""
        if not self._begun and at > self._begin:
            push_nothing()
        self._begun = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.session.close()

    def next_windows(self) -> tuple[list[dict[str, Any]], bool]:
        """What is to be published now, and whether that is all there will ever be."""
        out: list[dict[str, Any]] = []
        while True:
            try:
                result = self.session.get(timeout=0)
            except TimeoutError:
                return out, False
            if result is None:
                return out, True
            assert result.start is not None
            number = round((result.start - self._origin) / self._hop)
            if number >= self._given:
                self._given = number + 1
                out.append({**self._key(), "window": number, **result.to_dict()})

    def ended(self) -> dict[str, Any]:
        """What to publish after the last window."""
        return {**self._key(), "windows": self._given, "ended": self.last_offset}

    def _key(self) -> dict[str, Any]:
        origin = None if math.isnan(self._origin) else self._origin
        return {"stream": self.stream, "take": self.name, "origin": origin}

    def published(self, record: Record) -> None:
        """The broker has it: what only earlier windows were made of is not needed again."""
        self.record = record
        needed = self._start(record.windows - 1)
        # One stays in any case, so that a restart finds the take, and ends it.
        while len(self._pending) > 1 and self._pending[0][1] < needed:
            self._pending.popleft()

    @property
    def needed_from(self) -> int:
        """The first offset to read again after a restart."""
        return self._pending[0][0] if self._pending else self.last_offset

    def _start(self, window: int) -> float:
        return self._origin + window * self._hop


def _picture(piece: Piece) -> Picture:
    data = np.frombuffer(piece.payload, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if picture is None:
        raise ValueError(f"frame: got {len(data)} bytes that are no JPEG")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
