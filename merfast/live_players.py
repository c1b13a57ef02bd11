"""Files played as live sources: every frame decoded, pushed when it is due, over and over, with times that go on."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from merfast.errors import MediaError

AHEAD = 0.1
"""Seconds before its start at which a player opens its file."""

_HELD = 256  # events that wait for the other track, at most
_FIT = 0.1  # seconds by which sound may be longer or shorter than the picture to be made as long
_STEP = 0.04  # seconds that a frame lasts where the file does not say


@dataclass(frozen=True, slots=True)
class Due:
    """A frame or a block of sound, and when a live source would have it.

    Attributes:
        due: seconds on the player's clock: the time of a frame, the end of a block of sound.
        start: seconds on the same clock: the time of a frame, or of the first sample.
        media: a frame (`av.VideoFrame`), mono samples `[N]`, or a packet.
        rate: of the samples in Hz; 0 for pictures.
    """

    due: float
    start: float
    media: Any
    rate: int = 0


class Sink(Protocol):
    """What live media is pushed into, as a session is."""

    def push_audio(self, samples: Any, rate: int, t: float | None = None) -> None: ...

    def push_frame(self, frame: Any, t: float) -> None: ...


def pushing(sink: Sink) -> Callable[[Due], None]:
    """Pushes decoded events into a sink."""

    def push(event: Due) -> None:
        if event.rate:
            sink.push_audio(event.media, event.rate, event.start)
        else:
            sink.push_frame(event.media, event.start)

    return push


def play(
    source: str | Path, damage: Callable[[av.Packet[Any]], av.Packet[Any]] | None = None, *, rounds: int | None = None
) -> Iterator[Due]:
    """Decode a file from front to back, again and again, with times that go on.

    Args:
        source: file or URL.
        damage: changes packets before they are decoded; what cannot be decoded then is left out.
        rounds: how often; None for ever.

    Yields:
        Events in order of `due`, which begins near 0.

    Raises:
        MediaError: the file cannot be opened, or holds nothing that can be decoded.
    """
    offset = 0.0
    for _ in itertools.count() if rounds is None else range(rounds):
        one = _Round(str(source), damage)
        for event in one.events():
            yield replace(event, due=event.due + offset, start=event.start + offset)
        if not one.length > 0:
            raise MediaError(str(source), "holds no frames and no samples that can be decoded")
        offset += one.length


def replay(events: Sequence[Due], length: float) -> Iterator[Due]:
    """Events that were decoded before, `length` seconds of them, again and again."""
    for number in itertools.count():
        offset = number * length
        for event in events:
            yield replace(event, due=event.due + offset, start=event.start + offset)


class InOrder:
    """Puts the events of several tracks, each nearly in order, into the order of `due`.

    Args:
        kinds: of the tracks.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._lasts = dict.fromkeys(kinds, -math.inf)
        self._held: list[tuple[float, int, Due]] = []
        self._count = 0

    def add(self, kind: str, event: Due) -> None:
        self._count += 1
        self._lasts[kind] = max(self._lasts[kind], event.due)
        heapq.heappush(self._held, (event.due, self._count, event))

    def ready(self) -> Iterator[Due]:
        """What nothing can come before: all tracks are past it, or too much is held."""
        while self._held and (self._held[0][0] <= min(self._lasts.values()) or len(self._held) > _HELD):
            yield heapq.heappop(self._held)[2]

    def rest(self) -> Iterator[Due]:
        while self._held:
            yield heapq.heappop(self._held)[2]


class _Round:
    """One pass over a file; `length` is known when its events have been read."""

    def __init__(self, source: str, damage: Callable[[av.Packet[Any]], av.Packet[Any]] | None) -> None:
        self.length = 0.0
        self._source, self._damage = source, damage
        self._order = InOrder(())
        self._ends: dict[str, float] = {}  # by kind
        self._mixer: av.AudioResampler | None = None
        self._mixed: object = None

    def events(self) -> Iterator[Due]:
        try:
            with av.open(self._source) as container:
                streams = [*container.streams.video[:1], *container.streams.audio[:1]]
                for stream in container.streams.video[:1]:
                    stream.codec_context.thread_count = 1
                self._order = InOrder(s.type for s in streams)
                origin = (container.start_time or 0) / av.time_base
                step = float(1 / (container.streams.video[0].average_rate or 25)) if container.streams.video else _STEP
                for packet in container.demux(streams):
                    for frame in self._decode(packet):
                        self._take(frame, origin, step)
                    yield from self._order.ready()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(self._source, f"cannot be played ({error})") from error
        yield from self._fit()

    def _decode(self, packet: av.Packet[Any]) -> Iterable[Any]:
        if self._damage is not None and packet.size:
            packet = self._damage(packet)
        try:
            return packet.decode()
        except av.FFmpegError:
            return ()

    def _take(self, frame: Any, origin: float, step: float) -> None:
        if frame.time is None:
            return
        if isinstance(frame, av.VideoFrame):
            start = float(frame.time) - origin
            self._ends["video"] = max(self._ends.get("video", 0.0), start + step)
            self._order.add("video", Due(start, start, frame))
            return
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)  # which damage may change
        if self._mixer is None or shape != self._mixed:
            self._mixer = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate)
            self._mixed = shape
        for mixed in self._mixer.resample(frame):
            samples = np.ascontiguousarray(mixed.to_ndarray().reshape(-1), dtype=np.float32)
            start = float(mixed.time or 0.0) - origin
            self._ends["audio"] = end = start + len(samples) / mixed.sample_rate
            self._order.add("audio", Due(end, start, samples, mixed.sample_rate))

    def _fit(self) -> Iterator[Due]:
        """What is left, with the sound as long as the picture, so that the next round joins without a gap."""
        seen, heard = self._ends.get("video", 0.0), self._ends.get("audio", 0.0)
        self.length = max(seen, heard)
        if seen and heard and abs(seen - heard) < _FIT:
            self.length = seen
        for event in self._order.rest():
            if not event.rate:
                yield event
                continue
            samples = event.media[: max(0, round((self.length - event.start) * event.rate))]
            if event.due == heard and 0 < seen - heard < _FIT:
                samples = np.concatenate([samples, np.zeros(round((seen - heard) * event.rate), np.float32)])
            if len(samples):
                yield replace(event, media=samples, due=event.start + len(samples) / event.rate)


class Player:
    """A thread that pushes events when they are due; one that is late pushes at once, and keeps count.

    Args:
        events: in order of `due`.
        push: takes them; an error in it ends the player.
        began: moment of `clock` at which the event of time 0 is due.

    Attributes:
        origin: time of the first event that was pushed; None before.
        error: what ended it, if anything did.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(self, events: Iterator[Due], push: Callable[[Due], None], began: float) -> None:
        self.origin: float | None = None
        self.error: Exception | None = None
        self.began = began
        self._events, self._push = events, push
        self._late: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="merfast-player", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._stop.set()

    def join(self, timeout: float = 5.0) -> None:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise RuntimeError(f"a player did not stop within {timeout:g} s")

    def lateness(self) -> list[float]:
        """Seconds after its time that each event was pushed, since this was last asked."""
        taken, self._late = self._late, []
        return taken

    def _wait(self, moment: float) -> bool:
        """Whether the moment came before the end."""
        while not self._stop.is_set():
            left = moment - self.clock()
            if left <= 0:
                return True
            # A plain sleep is cheaper than waiting for the event, of which there would be many.
            time.sleep(min(left, 0.2))
        return False

    def _run(self) -> None:
        try:
            if not self._wait(self.began - AHEAD):
                return
            for event in self._events:
                moment = self.began + event.due
                if not self._wait(moment):
                    return
                self._late.append(self.clock() - moment)
                if self.origin is None:
                    self.origin = event.start
                self._push(event)
        except Exception as error:
            self.error = error
        finally:
            if isinstance(self._events, Generator):
                self._events.close()  # and with it the file
