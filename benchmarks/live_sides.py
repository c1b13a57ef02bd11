"""What a live system does without sessions: each window of each stream goes through `Engine.predict`, when it is over.

Both sides have the same players, windows, clock and logs as `merfast.live_bench`, and a pool of threads that predict.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor
from fractions import Fraction
from typing import Any

import av
import numpy as np

import merfast
from merfast.live_bench import HOPELESS, Connect, Pace, WindowLog
from merfast.live_players import Due, InOrder, Player, play, pushing
from merfast.media.decode import FrameSampler

BEHIND = 0.5
"""Seconds that one track may be behind the end of a window before it is cut without the rest, as in a session."""


class _Windows:
    """A stream whose windows are given to a pool one by one; what is hopelessly late is dropped there.

    Attributes:
        player, log: as of any stream.
    """

    player: Player

    def __init__(self, engine: merfast.Engine, pool: Executor, name: str, pace: Pace) -> None:
        self.log = WindowLog(pace.hop)
        self._engine, self._pool, self._name, self._pace = engine, pool, name, pace
        self._next = 0
        self._origin: float | None = None
        self._seen = self._heard = -np.inf
        self._closed = False

    def late(self) -> tuple[int, float]:
        return 0, 0.0

    def close(self) -> None:
        self._closed = True

    def _advance(self) -> None:
        """Hand over the windows that are over."""
        while self._origin is not None:
            start = self._origin + self._next * self._pace.hop
            end = start + self._pace.window
            if min(self._seen, self._heard) < end and max(self._seen, self._heard) < end + BEHIND:
                return
            self._next += 1
            self._pool.submit(self._predict, start, end, self._collect(start, end))
            self._forget(start + self._pace.hop)

    def _predict(self, start: float, end: float, media: Any) -> None:
        if self._closed:
            return
        due = self.player.began + end
        if self.log.now() - due > max(HOPELESS, 4 * self._pace.bound):
            self.log.note(start, "refused")
            return
        try:
            self._engine.predict([self._item(media)])
        except Exception:  # whatever it is, the window has failed
            self.log.note(start, "failed")
            return
        self.log.note(start, "done")

    def _collect(self, start: float, end: float) -> Any:
        """What a window is made from."""
        raise NotImplementedError

    def _forget(self, before: float) -> None:
        """Drop what no window needs any more."""
        raise NotImplementedError

    def _item(self, media: Any) -> Any:
        """The same for `predict`."""
        raise NotImplementedError


class ArrayWindows(_Windows):
    """Keeps the frames that a window samples, as RGB, and the sound, and predicts clips of arrays."""

    def __init__(
        self, engine: merfast.Engine, pool: Executor, source: str, name: str, began: float, pace: Pace
    ) -> None:
        super().__init__(engine, pool, name, pace)
        self._sampler = FrameSampler(engine.bundle.config.preprocessing.frame_rate)
        self._frames: deque[tuple[float, np.ndarray]] = deque()
        self._sound: deque[tuple[float, np.ndarray, int]] = deque()
        self.player = Player(play(source), pushing(self), began)

    def push_frame(self, frame: Any, t: float) -> None:
        self._origin = t if self._origin is None else self._origin
        if self._sampler.take(t - self._origin):
            self._frames.append((t, frame.to_ndarray(format="rgb24")))
        self._seen = t
        self._advance()

    def push_audio(self, samples: Any, rate: int, t: float | None = None) -> None:
        assert t is not None
        self._origin = t if self._origin is None else self._origin
        self._sound.append((t, samples, rate))
        self._heard = t + len(samples) / rate
        self._advance()

    def _collect(self, start: float, end: float) -> Any:
        frames = [(t - start, picture) for t, picture in self._frames if start - 1e-6 <= t < end - 1e-6]
        sound = [(t - start, samples, rate) for t, samples, rate in self._sound if t < end]
        return frames, sound

    def _forget(self, before: float) -> None:
        while self._frames and self._frames[0][0] < before - 1e-6:
            self._frames.popleft()
        while self._sound and self._sound[0][0] + len(self._sound[0][1]) / self._sound[0][2] <= before:
            self._sound.popleft()

    def _item(self, media: Any) -> Any:
        frames, sound = media
        options: dict[str, Any] = {}
        if frames:
            options["frames"] = np.stack([picture for _, picture in frames])
            options["times"] = [max(0.0, t) for t, _ in frames]
        if sound:
            rate = sound[0][2]
            options["audio"] = np.concatenate([samples for _, samples, _ in sound])[round(-sound[0][0] * rate) :]
            options["audio"] = options["audio"][: round(self._pace.window * rate)]
            options["sample_rate"] = rate
        return merfast.Clip.from_arrays(**options, name=self._name)


class MediaWindows(_Windows):
    """Keeps packets, and predicts files in memory that are made of them; nothing is decoded before."""

    def __init__(
        self, engine: merfast.Engine, pool: Executor, source: str, name: str, began: float, pace: Pace
    ) -> None:
        super().__init__(engine, pool, name, pace)
        self._packets: deque[Cut] = deque()
        self._templates = av.open(source)
        self.player = Player(play_packets(source), self._push, began)

    def close(self) -> None:
        super().close()
        self._templates.close()

    def _push(self, event: Due) -> None:
        cut: Cut = event.media
        self._origin = cut.start if self._origin is None else self._origin
        self._packets.append(cut)
        if cut.kind == "video":
            self._seen = max(self._seen, event.due)
        else:
            self._heard = max(self._heard, event.due)
        self._advance()

    def _collect(self, start: float, end: float) -> Any:
        first = self._keyframe(start)
        packets = [p for p in self._packets if p.start < end - 1e-6 and (p.kind == "audio" or p.number >= first)]
        return start, [p for p in packets if p.kind == "video" or p.start >= start - 1e-6]

    def _keyframe(self, time: float) -> int:
        """Number of the last keyframe that is not after a time: decoding can begin there."""
        numbers = [p.number for p in self._packets if p.key and p.start <= time + 1e-6]
        return max(numbers, default=0)

    def _forget(self, before: float) -> None:
        first = self._keyframe(before)
        while self._packets and (
            self._packets[0].number < first if self._packets[0].kind == "video" else self._packets[0].start < before - 1
        ):
            self._packets.popleft()

    def _item(self, media: Any) -> bytes:
        start, packets = media
        return remuxed(self._templates, packets, start)


class Cut:
    """A packet with its place on the player's clock.

    Attributes:
        start: seconds.
        decode: seconds, of its decoding time.
        number: of the packet within its player.
        key: whether it is a picture that decoding can begin with.
    """

    __slots__ = ("data", "decode", "duration", "key", "kind", "number", "start")

    def __init__(self, packet: Any, number: int, offset: float) -> None:
        base = packet.time_base
        self.data, self.kind, self.number = bytes(packet), packet.stream.type, number
        self.start = float(packet.pts * base) + offset
        self.decode = float((packet.pts if packet.dts is None else packet.dts) * base) + offset
        self.duration = float((packet.duration or 0) * base)
        self.key = self.kind == "video" and packet.is_keyframe


def play_packets(source: str) -> Iterator[Due]:
    """Packets of a file as a live source sends them: pictures at their decoding time, sound when it has been heard."""
    offset, number = 0.0, 0
    while True:
        end = 0.0
        with av.open(source) as container:
            streams = [*container.streams.video[:1], *container.streams.audio[:1]]
            order = InOrder(s.type for s in streams)
            base = (container.start_time or 0) / av.time_base
            for packet in container.demux(streams):
                if packet.pts is None or not packet.size:
                    continue
                cut = Cut(packet, number, offset - base)
                number += 1
                if cut.kind == "video":
                    end = max(end, cut.start + cut.duration - offset)
                due = cut.decode if cut.kind == "video" else cut.start + cut.duration
                order.add(cut.kind, Due(due, cut.start, cut))
                yield from order.ready()
        yield from order.rest()
        if not end:
            raise merfast.MediaError(source, "holds no pictures")
        offset += end


def remuxed(templates: Any, packets: list[Cut], start: float) -> bytes:
    """Packets as a Matroska file whose time 0 is `start`, if decoding can begin there."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        streams = {s.type: container.add_stream_from_template(s) for s in (*templates.streams.video[:1],)}
        if any(p.kind == "audio" for p in packets):
            streams["audio"] = container.add_stream_from_template(templates.streams.audio[0])
        base = Fraction(1, 90_000)
        for cut in sorted(packets, key=lambda p: p.decode):
            packet = av.Packet(cut.data)
            packet.stream = streams[cut.kind]
            packet.time_base = base
            packet.pts, packet.dts = round((cut.start - start) / base), round((cut.decode - start) / base)
            packet.duration = round(cut.duration / base)
            packet.is_keyframe = cut.key or cut.kind == "audio"
            container.mux(packet)
    return out.getvalue()


def arrays(engine: merfast.Engine, pool: Executor) -> Connect:
    """Connects streams of which each window is predicted as a clip of arrays."""
    return lambda source, name, began, pace: ArrayWindows(engine, pool, source, name, began, pace)


def media(engine: merfast.Engine, pool: Executor) -> Connect:
    """Connects streams of which each window is predicted as a file in memory."""
    return lambda source, name, began, pace: MediaWindows(engine, pool, source, name, began, pace)
