"""`Session`: a live stream that is pushed, window after window predicted as it is complete."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy.typing as npt

from merfast.errors import MerfastError, OverloadedError, UsageError
from merfast.media.inbox import Inbox
from merfast.media.pushed import mono
from merfast.media.windows import WindowSpec
from merfast.passes import TIMELINE_BATCH
from merfast.pushed import PushedStream
from merfast.results import Result, Results
from merfast.scheduler import Load, Scheduler, cost_of
from merfast.types import Failure, Prediction, Window

UNREAD = 4096
"""Results that may wait to be read."""

WAITING = 16
"""Complete windows of one stream that may wait with `overload="wait"`."""


@dataclass(frozen=True)
class SessionStats:
    """What became of a live stream so far, over all resets.

    Attributes:
        windows: results handed out, or waiting to be read: predicted, refused and failed.
        refused: of them, those that could not be predicted in time.
        late_frames: pictures that came after their window was cut, and were left out.
        late_seconds: of sound that came too late.
        waiting: windows that are complete and have no result yet.
    """

    windows: int
    refused: int
    late_frames: int
    late_seconds: float
    waiting: int


class Session:
    """A live stream on an engine; `Engine.session` makes it.

    Push from one thread for each of sound and picture; read results from any. Pushing only stores: faces are looked
    for, and windows predicted, in the engine's threads. Times are seconds on a clock of the caller's, common to sound
    and picture, that starts anywhere; the first one pushed is the start of the first window.

    - A window is cut when sound and picture have both passed its end, or one is 0.5 s beyond it: the other has stalled,
      or does not exist. A stretch without anything, longer than a window, has no windows; the next prediction warns.
    - Blocks and pictures may come out of order until their window is cut; later, they are left out (`stats`).
    - Sound follows its times to 0.1 s, whatever its sampling rate really is: where it runs ahead, samples are left out,
      where it lags, there is silence. Without times it follows its own count.
    - Results are read by iteration, `async for`, or `get`, or handed to `on_result` in a thread of the engine's: one
      for each window, in order. Where a window was refused or failed it is a `Failure` with its `start` and `end`.

    As a context manager it is closed at the end, or cancelled after an error.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        name: str,
        spec: WindowSpec,
        *,
        every_face: bool,
        smoothing: float | None,
        priority: int,
        latency: float | None,
        on_result: Callable[[Result], object] | None,
        owner: object,
    ) -> None:
        self.name = name
        self._scheduler, self._owner = scheduler, owner
        self._spec, self._priority, self._latency = spec, priority, latency
        self._fresh = partial(PushedStream, scheduler.worker, name, spec, every_face=every_face, smoothing=smoothing)
        self._stream: PushedStream = self._fresh()
        self._demand = cost_of(spec.length, min(spec.length, spec.hop)) / spec.hop
        self._key = object()  # what the scheduler knows it by
        self._changed = threading.Condition()
        self._results = Results(name, on_result)
        self._guards = {"sound": threading.Lock(), "pictures": threading.Lock()}
        self._closed = False
        self._busy = False  # a task of this stream is under way
        self._after: list[Result] = []  # to be handed out when it is done
        self._windows = self._refused = self._late_frames = self._at_work = 0
        self._late_seconds = 0.0
        scheduler.add(self)

    def __repr__(self) -> str:
        state = "over" if self._results.over else "closed" if self._closed else "open"
        return f"Session({self.name!r}, {state}, {self.stats})"

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if kind is None else self.cancel()

    def push_audio(self, samples: npt.ArrayLike, rate: int, t: float | None = None) -> None:
        """Add sound.

        Args:
            samples: `[N]` float in [-1, 1] or int16, mono, or `[N, channels]`, which are averaged.
            rate: in Hz.
            t: seconds, of the first sample; None is where the last block ended.

        Raises:
            MediaError: samples are NaN, or of another shape or type, or the time lies more than 1 s back. The stream
                goes on as if this had not been pushed.
            OverloadedError: 4096 results wait to be read.
            UsageError: the session is closed, or another thread is pushing sound.
        """
        with self._pushing("sound"):
            sound = mono(self.name, samples, rate)
            self._push(lambda inbox: inbox.push_audio(sound, int(rate), t))

    def push_frame(self, frame: object, t: float) -> None:
        """Add a picture; all may be pushed, those that are needed are kept (five a second with the packaged bundle).

        Args:
            frame: `[H, W, 3]` uint8 RGB; or planes of 4:2:0 BT.601 video, uint8, `(y, u, v)` or `(y, uv)` with `uv`
                `[H / 2, W]`; or an `av.VideoFrame`, which is used as it is, with its colours and rotation. Arrays that
                are kept are copied.
            t: seconds.

        Raises:
            MediaError: no such picture, one of another size than before, or the time lies more than 1 s back. The
                stream goes on as if this had not been pushed.
            OverloadedError: 4096 results wait to be read.
            UsageError: the session is closed, or another thread is pushing pictures.
        """
        with self._pushing("pictures"):
            stream = self._stream
            make = stream.pictures.check(frame)
            if "video" in stream.reads:
                self._push(lambda inbox: inbox.push_frame(t, make))

    def reset(self) -> None:
        """Forget all that was pushed, as where a clock or a picture's size changes. Results that wait can still be
        read; windows that were not predicted yet have none.

        Raises:
            UsageError: the session is closed.
        """
        with self._changed:
            self._check_open()
            self._renew()
            self._changed.notify_all()

    def close(self) -> None:
        """The stream has ended: windows that remain are predicted, the last one ending with the stream; then iteration
        ends. Safe to call twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            if self._stream.inbox.origin is None:
                self._end()
                return
            now = time.monotonic()
            self._stream.inbox.finish(now)
            self._kick(now)

    def cancel(self) -> None:
        """Drop what waits; results that are there can still be read. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._renew()
            self._end()
            self._changed.notify_all()

    @property
    def stats(self) -> SessionStats:
        """Counts so far."""
        with self._changed:
            inbox = self._stream.inbox
            return SessionStats(
                windows=self._windows,
                refused=self._refused,
                late_frames=self._late_frames + inbox.late_frames,
                late_seconds=self._late_seconds + inbox.late_seconds,
                waiting=self._at_work + len(inbox.complete),
            )

    def get(self, timeout: float | None = None) -> Result | None:
        """The next result, or None when the session has ended and all were read.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            TimeoutError: there was none by then.
        """
        return self._results.get(timeout)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    def __aiter__(self) -> AsyncIterator[Result]:
        return aiter(self._results)

    @contextmanager
    def _pushing(self, what: str) -> Iterator[None]:
        """One thread at a time."""
        guard = self._guards[what]
        if not guard.acquire(blocking=False):
            raise UsageError(f"{self.name}: two threads push {what} at once, expected one")
        try:
            yield
        finally:
            guard.release()

    def _push(self, add: Callable[[Inbox], None]) -> None:
        with self._changed:
            if self._latency is None:
                self._changed.wait_for(lambda: self._closed or len(self._stream.inbox.complete) < WAITING)
            self._check_open()
            if len(self._results) >= UNREAD:
                raise OverloadedError(f"{self.name}: {UNREAD} results wait to be read, expected them to be taken")
            inbox, now = self._stream.inbox, time.monotonic()
            add(inbox)
            inbox.advance(now)
            if not inbox.complete:
                self._kick(now)
                return
            refused = self._refuse(now)
            if self._busy:
                self._after += refused  # behind those that are at work
            elif refused:
                self._scheduler.deliver(partial(self._hand_out, self._stream, refused))
            self._kick(now)

    # With `_changed` held.

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self.name}: is closed, and takes nothing more")

    def _renew(self) -> None:
        inbox, self._stream, self._after = self._stream.inbox, self._fresh(), []
        self._late_frames += inbox.late_frames
        self._late_seconds += inbox.late_seconds

    def _kick(self, now: float) -> None:
        """Have a task run if there is something to do."""
        inbox = self._stream.inbox
        if self._busy or self._results.over:
            return
        if not (inbox.complete or self._closed or (inbox.ready_early and self._is_served(now))):
            return
        self._busy = True
        cost = max(0.1, len(inbox.complete) * min(self._spec.hop, self._spec.length))
        task = partial(self._look, self._stream)
        try:
            self._scheduler.look(task, source=self._key, priority=self._priority, cost=cost)
        except UsageError:
            self._busy = False
            self._end()

    def _end(self) -> None:
        self._results.end()
        self._scheduler.admission.forget(self)

    def _is_served(self, now: float) -> bool:
        return self._latency is None or self._scheduler.admission.admits(self, now, self._demand)

    def _is_late(self, now: float, complete: float) -> bool:
        return self._latency is not None and complete + self._latency < now

    def _refuse(self, now: float, service: float = 0.0) -> list[Result]:
        """Give up windows that cannot be predicted in time any more, or all while the stream is shed."""
        inbox, refused = self._stream.inbox, list[Result]()
        if self._latency is None or not inbox.complete:
            return refused
        if self._is_late(now + service, inbox.complete[0][1]):
            self._scheduler.admission.late(now, inbox.complete[0][1])
        shed = not self._is_served(now)
        while inbox.complete and (shed or self._is_late(now + service, inbox.complete[0][1])):
            refused.append(self._refusal(inbox.complete.popleft()[0]))
        if refused:
            inbox.drop()
        return refused

    def _refusal(self, window: int) -> Failure:
        """In place of a window that was given up."""
        self._refused += 1
        self._scheduler.served(None)
        start, end = (self._stream.origin + t for t in (self._spec.start(window), self._spec.end(window)))
        error = OverloadedError(f"{self.name}: window {start:.3f}-{end:.3f} s {self._excuse}")
        return self._stream.failure(window, error)

    @property
    def _excuse(self) -> str:
        return f"could not be predicted within {self._latency:.3g} s, as the engine has too much to do"

    def _done(self, stream: PushedStream) -> None:
        """A task has ended; begin the next one."""
        after, self._after = self._after, []
        if after:
            self._scheduler.deliver(partial(self._hand_out, stream, after))
        self._busy, self._at_work = False, 0
        self._changed.notify_all()
        self._kick(time.monotonic())
        self._scheduler.answered()

    # In threads of the scheduler.

    def _look(self, stream: PushedStream) -> None:
        """Cut what is complete, and have it predicted; one task at a time for each session."""
        began = time.monotonic()
        with self._changed:
            if stream is not self._stream:
                self._done(stream)
                return
            refused, self._after = [*self._after, *self._refuse(began, self._scheduler.service)], []
            served, inbox = self._is_served(began), stream.inbox
            complete = inbox.complete[0][1] if inbox.complete else began
            parts = stream.take(TIMELINE_BATCH, early=served, closed=self._closed)
            last = bool(parts) and parts[-1][0] is None
            if last and not served:
                refused += [self._refusal(window) for window in stream.rest()]
                parts = []
            self._at_work = len(parts)
        groups, failed = stream.cut(parts)
        landed = partial(self._landed, stream, groups, [*refused, *failed], began if groups else None, last)
        flat = [window for group in groups for window in group]
        try:
            if flat:
                begin = partial(self._is_wanted, stream, len(groups), complete, landed)
                self._scheduler.start(Load(self.name, flat, self._key, self._priority, begin, landed))
            else:
                self._scheduler.deliver(partial(landed, []))
        except UsageError:
            with self._changed:
                self._done(stream)
                self._end()

    def _is_wanted(
        self,
        stream: PushedStream,
        windows: int,
        complete: float,
        landed: Callable[[list[Prediction] | MerfastError], None],
    ) -> bool:
        """Whether windows are to be predicted whose pass begins; else, if the stream goes on, they are refused."""
        with self._changed:
            if stream is not self._stream:
                self._done(stream)
                return False
            now = time.monotonic()
            if self._is_late(now, complete):
                self._scheduler.admission.late(now, complete)
            elif self._is_served(now):
                return True
            self._refused += windows
        self._scheduler.deliver(partial(landed, OverloadedError(f"{self.name}: {self._excuse}")))
        return False

    def _landed(
        self,
        stream: PushedStream,
        groups: list[list[Window]],
        other: list[Result],
        began: float | None,
        last: bool,
        made: list[Prediction] | MerfastError,
    ) -> None:
        """Hand out what a task has made."""
        if began is not None and not isinstance(made, MerfastError):
            self._scheduler.served(time.monotonic() - began)
            self._scheduler.admission.landed(self)
        results = [*other, *stream.results(groups, made)]
        self._hand_out(stream, sorted(results, key=lambda result: result.start or 0.0))
        with self._changed:
            if last and stream is self._stream:
                self._end()
            self._done(stream)

    def _hand_out(self, stream: PushedStream, results: list[Result]) -> None:
        with self._changed:
            if stream is not self._stream:
                return
            told = [stream.told(result) for result in results]
            self._windows += len(told)
        self._results.put(told)
