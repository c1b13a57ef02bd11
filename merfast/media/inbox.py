"""`Inbox`: sound and pictures of a live stream as they are pushed, put in order until their windows are complete."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from merfast.clip import is_number
from merfast.errors import MediaError
from merfast.media.audio import AudioTrack
from merfast.media.decode import AudioChunk, Frame
from merfast.media.windows import WindowSpec
from merfast.types import MODALITIES, SAMPLE_RATE, FloatArray, Modality

HOLD = 0.5
"""Seconds of the stream that a window waits for the track that is behind."""

REORDER = 0.25
"""Seconds of sound that a missing block is waited for."""

BACK = 1.0
"""Seconds that a time may lie behind the newest of its track: beyond, the clock has jumped."""

APART = 60.0
"""Seconds that sound and picture may lie apart when the second of them begins: beyond, they have different clocks."""

_SLACK = 1e-6
_EARLY = 1.0  # seconds of pictures that are better looked at than kept for a window's end
_JITTER = 0.005  # seconds between blocks that follow each other


@dataclass(order=True)
class _Block:
    time: float
    number: int
    samples: FloatArray = field(compare=False)
    rate: int = field(compare=False)

    @property
    def end(self) -> float:
        return self.time + len(self.samples) / self.rate


class Inbox:
    """Keeps what coming windows need. Times are seconds on the stream's own clock, which starts anywhere.

    Window k covers `[origin + k hop, origin + k hop + length)`. It is complete when each track has reached its end, or
    one is `HOLD` beyond it: a track that was waited for in vain is not waited for again until it has caught up.
    What arrives after its window was taken is late, and left out. Windows within which nothing was pushed at all, as in
    a pause longer than a window, do not exist.

    Args:
        name: of the stream, for messages.
        spec: of the windows.
        frame_rate: pictures kept a second, at most: the first in each part of a second of the stream.
        tracks: those that windows wait for.

    Attributes:
        origin: the first time pushed; None before.
        complete: numbers of the windows that are complete and not taken, with the time given to `advance` then.
        late_frames: pictures that came too late.
        late_seconds: of sound that came too late.
        pauses: pairs of times, since the origin, between which nothing was pushed and windows were left out.
    """

    def __init__(self, name: str, spec: WindowSpec, frame_rate: float, tracks: Sequence[Modality] = MODALITIES) -> None:
        self.name = name
        self._spec, self._frame_rate, self._tracks = spec, frame_rate, tracks
        self.origin: float | None = None
        self.complete: deque[tuple[int, float]] = deque()
        self.late_frames, self.late_seconds = 0, 0.0
        self._next = 0  # window that is not complete
        self._taken = -math.inf  # end of the last window taken; times from here on start at the origin
        self._track = AudioTrack(name)
        self._held: list[_Block] = []  # behind one that is missing
        self._number = 0
        self._passed: _Block | None = None  # the last one passed on
        self._pushed = -math.inf  # end of the sound pushed
        self._chunks: deque[AudioChunk] = deque()
        self._heard = -math.inf  # end of the sound that is in order
        self._frames: dict[int, tuple[float, Frame]] = {}  # by the part of a second that they are the first of
        self._last_part = -1  # that was taken
        self._seen = -math.inf  # time of the newest picture
        self._step = 0.0  # between the newest two
        self._idle: set[Modality] = set()
        self._ahead: deque[tuple[float, float]] = deque()  # pauses that windows have not come to yet
        self.pauses: list[tuple[float, float]] = []

    @property
    def has_audio(self) -> bool:
        return self._pushed > -math.inf

    @property
    def has_video(self) -> bool:
        return self._seen > -math.inf

    @property
    def end(self) -> float:
        """Where the stream ends, if nothing more comes."""
        return max(0.0, self._pushed, self._seen + min(self._step or 1 / self._frame_rate, 1.0))

    @property
    def following(self) -> int:
        """Number of the first window that is not complete."""
        return self._next

    def push_audio(self, samples: FloatArray, rate: int, time: float | None) -> None:
        """Add mono samples; None is where the last ended.

        Raises:
            MediaError: samples or time are of no use; nothing has changed then.
        """
        if time is None:
            start = self._pushed if self.has_audio else max(0.0, self._seen)
        else:
            start = self._at("sound", time, self._pushed, self._seen)
        block = _Block(start, self._number, samples, rate)
        self._number += 1
        self._note_pause(start, block.end)
        self._pushed = max(self._pushed, block.end)
        if block.end <= self._taken or (self._passed is not None and start < self._passed.time):
            self.late_seconds += len(samples) / rate
            return
        insort(self._held, block)
        self._release()

    def push_frame(self, time: float, make: Callable[[float], Frame]) -> None:
        """Add a picture.

        Args:
            time: of the picture.
            make: makes the frame at its time since the origin; called only if it is kept.

        Raises:
            MediaError: the time is of no use; or what `make` raises. Nothing has changed then.
        """
        at = self._at("picture", time, self._seen, self._pushed)
        # A hundredth of a part of slack, as `FrameSampler` has.
        part = math.floor(at * self._frame_rate + 0.01)
        if at < self._taken - _SLACK or part < self._last_part:
            self.late_frames += 1
            return
        held = self._frames.get(part)
        if part > self._last_part and (held is None or at < held[0]):
            self._frames[part] = at, make(at)
        self._note_pause(at, at)
        if at > self._seen:
            self._step = at - self._seen if self.has_video else 0.0
            self._seen = at

    def advance(self, now: float) -> None:
        """Find the windows that have become complete."""
        newest = max(self._pushed, self._seen)
        # A track that has caught up is waited for again.
        self._idle -= {kind for kind, reached in self._reached.items() if reached >= newest - HOLD}
        self._next = self._following(self._next - 1)
        while newest >= self._spec.end(self._next) - _SLACK:
            end = self._spec.end(self._next)
            behind: set[Modality] = {
                kind for kind, reached in self._reached.items() if reached < end - _SLACK and kind not in self._idle
            }
            if behind and newest < end + HOLD:
                return
            self._idle |= behind
            self.complete.append((self._next, now))
            self._next = self._following(self._next)

    def finish(self, now: float) -> None:
        """Nothing more comes: what was waited for is missing, and windows that end before the stream are complete."""
        self._release(wait=False)
        self._chunks.extend(self._track.flush())
        self._next = self._following(self._next - 1)
        while self._spec.end(self._next) <= self.end + _SLACK:
            self.complete.append((self._next, now))
            self._next = self._following(self._next)

    def take(self, window: int | None) -> tuple[list[AudioChunk], list[Frame]]:
        """Sound and pictures up to the end of a window, or all; each in order. What comes later for them is late."""
        end = math.inf if window is None else self._spec.end(window)
        self._taken = max(self._taken, min(end, self.end))
        chunks, self._chunks = list(self._chunks), deque()
        return chunks, self._take_frames(end)

    def _take_frames(self, end: float) -> list[Frame]:
        parts = sorted(part for part, (time, _) in self._frames.items() if time < end - _SLACK)
        self._last_part = max([self._last_part, *parts])
        return [self._frames.pop(part)[1] for part in parts]

    @property
    def ready_early(self) -> bool:
        """Whether so much has come that it should be looked at, though no window is complete."""
        return len(self._frames) > (_EARLY + REORDER) * self._frame_rate

    def take_early(self) -> list[Frame]:
        """Pictures of a window that is not complete, but for the last, which may be out of order."""
        return self._take_frames(min(self._seen - REORDER, self._spec.end(self._next)))

    def drop(self) -> None:
        """Let go what no window needs that is still to be taken."""
        first = self.complete[0][0] if self.complete else self._next
        start = self._spec.start(first)
        for part in [part for part, (time, _) in self._frames.items() if time < start - _SLACK]:
            del self._frames[part]
            self._last_part = max(self._last_part, part)
        while self._chunks and self._chunks[0].start + len(self._chunks[0].samples) <= start * SAMPLE_RATE:
            self._chunks.popleft()

    @property
    def _reached(self) -> dict[Modality, float]:
        reached: dict[Modality, float] = {"audio": self._heard, "video": self._seen}
        return {kind: reached[kind] for kind in self._tracks}

    def _at(self, what: str, time: float, own: float, other: float) -> float:
        """A time from the origin on, if it fits what came before."""
        if not is_number(time) or not math.isfinite(time):
            raise MediaError(self.name, f"{what}: got time {time!r}, expected seconds")
        if self.origin is None:
            self.origin = float(time)
        at = float(time) - self.origin
        if at < own - BACK:
            raise MediaError(
                self.name,
                f"{what}: got time {time:.3f} s after {own + self.origin:.3f} s, expected times that rise (reset() "
                "starts anew)",
            )
        if math.isinf(own) and math.isfinite(other) and abs(at - other) > APART:
            raise MediaError(
                self.name,
                f"{what}: begins at {time:.3f} s, while the other track is at {other + self.origin:.3f} s, expected "
                "both on one clock",
            )
        return at

    def _note_pause(self, start: float, end: float) -> None:
        """Remember stretches in which nothing was pushed, long enough to hold windows."""
        newest = max(self._pushed, self._seen)
        if math.isfinite(newest) and start - newest >= self._spec.length:
            self._ahead.append((newest, start))

    def _following(self, window: int) -> int:
        """The next window in which something was pushed."""
        after = window + 1
        while self._ahead:
            begin, end = self._ahead[0]
            if self._spec.start(after) < begin - _SLACK:
                break
            if self._spec.end(after) <= end + _SLACK:
                after += max(0, math.ceil((end - self._spec.end(after)) / self._spec.hop - _SLACK))
                after += self._spec.end(after) <= end + _SLACK
                self.pauses.append((begin, end))
            self._ahead.popleft()
        return after

    def _release(self, *, wait: bool = True) -> None:
        """Pass on sound that is in order; behind a missing block it waits."""
        while self._held:
            first = self._held[0]
            # By their own times: how far those are from the count of samples is `AudioTrack`'s to see.
            jitter = max(_JITTER, 0.5 * (first.end - first.time))
            missing = self._passed is not None and first.time - self._passed.end > jitter
            if wait and missing and self._pushed - first.time < REORDER:
                return
            self._passed = self._held.pop(0)
            chunks = self._track.push(first.samples, first.rate, first.time)
            self._chunks.extend(chunks)
            if chunks:
                self._heard = (chunks[-1].start + len(chunks[-1].samples)) / SAMPLE_RATE
