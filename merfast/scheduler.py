"""`Scheduler`: windows of all callers and live streams share passes through one device's model."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from merfast.admission import Admission, Meter
from merfast.config import EngineConfig
from merfast.errors import MerfastError, OverloadedError, UsageError
from merfast.fair import FairPool, FairQueue
from merfast.media.faces import DETECT_SIZE
from merfast.media.source import Source
from merfast.media.windows import WindowSpec
from merfast.passes import Flight
from merfast.pipeline import STUCK, ItemReader
from merfast.trace import span
from merfast.types import SAMPLE_RATE, Prediction, Window
from merfast.worker import Worker

log = logging.getLogger("merfast")

_WARM_SECONDS, _WARM_WINDOWS, _WARM_PATIENCE = 4.0, (1, 2, 3, 4), 30.0
_MOST_SECONDS = 12.0  # of media that share a pass on the CPU: more gains little, and makes all wait for it
_SOUND = 0.2  # share of a second's cost; measured with small encoders on the CPU, and less with foundation models
_SMOOTH = 0.1  # weight of a new measurement
_FORGET = 0.98  # what is left of an estimate with each refusal, which measures nothing


def cost_of(sound: float, crops: float) -> float:
    """What seconds of sound and of crops take, where one second of both is 1."""
    return _SOUND * sound + (1 - _SOUND) * crops


@dataclass(eq=False)
class Load:
    """Windows of one source that go through the model together.

    Attributes:
        name: of the source, in predictions.
        windows: those of a timeline in order of time.
        source: who asks.
        priority: higher ones go first.
        begin: called just before their pass; False if they are no longer wanted, and `landed` is not called then.
        landed: called with their predictions, or the error that kept them from being made; may take its time.
    """

    name: str
    windows: Sequence[Window]
    source: Hashable
    priority: int
    begin: Callable[[], bool]
    landed: Callable[[list[Prediction] | MerfastError], None]

    def cost(self, frame_rate: float) -> float:
        """See `cost_of`; crops that are known cost nothing."""
        sound = sum(len(w.audio) for w in self.windows) / SAMPLE_RATE
        keys = {(n, w.track) for w in self.windows for n in w.numbers}
        crops = len(keys - (self.windows[0].known or {}).keys()) if keys else sum(len(w.crops) for w in self.windows)
        return cost_of(sound, crops / frame_rate)


class Stream(Protocol):
    """A live stream, as the scheduler ends it."""

    def close(self) -> None:
        """No more is pushed; what there is, is predicted."""

    def cancel(self) -> None:
        """Drop all that waits."""


class Scheduler:
    """Reads items, looks at faces and runs passes in threads of its own, started when first needed.

    - Readers: each reads one item, which may wait for a disk or network.
    - Lookers: find and crop faces of live streams; as many as CPU threads.
    - One thread runs passes: of what is ready it takes as much as fits into a pass, by cost, and if that is little it
      waits `max_wait_ms` for more, as long as more is on its way.
    - One thread hands results to their callers, whose callbacks therefore delay nobody's pass.

    In all of them, sources are served by priority, then fairly.

    Args:
        worker: reads and predicts.
        config: limits.
        threads: of the CPU.

    Attributes:
        worker: the same.
        admission: of live streams, where there are too many.
        service: seconds from the beginning of work on a live window to its result, as measured of late.
    """

    def __init__(self, worker: Worker, config: EngineConfig, threads: int) -> None:
        self.worker, self._config = worker, config
        self.service = 0.0
        inference = worker.inference
        self._ready: FairQueue[Load] = FairQueue(2 * inference.pass_seconds)
        self._readers = FairPool(worker.ahead, "merfast-reader", self._ready.nudge)
        self._lookers = FairPool(threads, "merfast-looker", self._ready.nudge)
        self._passes = Meter(1)
        self.admission = Admission(self._lookers.busy, self._passes)
        self._results: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._frame_rate = inference.bundle.config.preprocessing.frame_rate
        self._cores = threads
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._waiting = 0  # requests accepted and not answered
        self._interval = 0.0  # seconds between predictions of items where several wait, as measured of late
        self._answered: float | None = None  # when the last one was, if others have been waiting since
        self._items = 0
        self._draining = self._closed = self._warm = False
        self._warming = threading.Lock()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    @property
    def waiting(self) -> int:
        """Requests accepted and not answered yet."""
        return self._waiting

    # Of callers.

    def reader(self, item: Source, spec: WindowSpec, *, every_face: bool) -> ItemReader:
        (reader,) = self.worker.readers([item], spec, every_face=every_face)
        return reader

    def warm_up(self) -> None:
        """Load and prepare what live windows need, once, so that the first ones are not late."""
        with self._warming:
            if self._warm:
                return
            self._warm = True
            inference, detector = self.worker.inference, self.worker.detector
            seconds = min(_WARM_SECONDS, inference.bundle.config.preprocessing.max_window)
            for together in _WARM_WINDOWS:
                inference.start([inference.example(seconds)] * together).wait()
            if detector is None:
                return
            picture, meet = np.zeros((270, DETECT_SIZE, 3), np.uint8), threading.Barrier(self._cores + 1)

            def look() -> None:
                detector.detect(picture)
                meet.wait(_WARM_PATIENCE)  # so that each thread takes one of these tasks

            for i in range(self._cores):
                self._lookers.submit(look, source=i)
            meet.wait(_WARM_PATIENCE)

    def add(self, stream: Stream) -> None:
        """Have a live stream end when this does.

        Raises:
            UsageError: it is draining, or closed.
        """
        self._check_open()
        self._streams.add(stream)

    def read(self, task: Callable[[], None], *, source: Hashable, priority: int, deadline: float | None) -> None:
        """Accept an item's request, and run what reads it; it ends with `answered(item=True)`.

        Args:
            deadline: seconds from now that it may take, if there is such a limit.

        Raises:
            OverloadedError: there are too many, or it would not be done in time.
            UsageError: it is draining, or closed.
        """
        with self._changed:
            self._check_open()
            if self._items >= self._config.max_queue:
                most = self._config.max_queue
                raise OverloadedError(f"engine: got a request while {self._items} wait, expected fewer than {most}")
            wait = (self._items + 1) * self._interval
            if deadline is not None and wait > deadline:
                if not self._items:  # or else nothing would ever be measured again
                    self._interval *= _FORGET
                raise OverloadedError(
                    f"engine: got a request with a deadline in {deadline:.3g} s, while {self._items} others wait that "
                    f"take about {wait:.3g} s"
                )
            if not self._items:
                self._answered = None
            self._items += 1
            self._accept()
        self._readers.submit(task, source=source, priority=priority)

    def look(self, task: Callable[[], None], *, source: Hashable, priority: int, cost: float) -> None:
        """Run what prepares a live stream's windows; it ends with `answered()`.

        Raises:
            UsageError: closed.
        """
        with self._changed:
            if self._closed:
                raise UsageError("engine: is closed")
            self._accept()
        self._lookers.submit(task, source=source, priority=priority, cost=cost)

    def start(self, load: Load) -> None:
        """Queue windows for a pass; waits where far more is queued than fits into one.

        Raises:
            UsageError: closed.
        """
        cost = load.cost(self._frame_rate)
        self._ready.put(load, source=load.source, priority=load.priority, cost=cost)

    def deliver(self, call: Callable[[], None]) -> None:
        """Run a call in the thread that hands out results, after those before it."""
        self._results.put(call)

    def answered(self, *, item: bool = False, predicted: bool = False) -> None:
        """A request accepted earlier has its answer, or nobody waits for it any more.

        Args:
            item: whether it came from `read`.
            predicted: whether the answer is a prediction: others say nothing about what those take.
        """
        with self._changed:
            self._waiting -= 1
            self._items -= item
            if predicted:
                now = time.monotonic()
                if self._answered is not None:
                    passed = now - self._answered
                    self._interval += (passed - self._interval) * (_SMOOTH if self._interval else 1.0)
                self._answered = now
            self._changed.notify_all()

    def served(self, seconds: float | None) -> None:
        """How long a live window took from the beginning of work on it to its result; None: it was refused."""
        if seconds is None:
            self.service *= _FORGET
        else:
            self.service += (seconds - self.service) * _SMOOTH

    def drain(self, deadline: float) -> bool:
        """Accept nothing more, end live streams, and wait for what was accepted; whether all is done by the deadline.

        Args:
            deadline: of `time.monotonic`.
        """
        with self._changed:
            self._draining = True
        for stream in list(self._streams):
            stream.close()
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, max(0.0, min(deadline - time.monotonic(), 1e6)))

    def close(self) -> None:
        """Drop all that waits, and end the threads."""
        with self._changed:
            if self._closed:
                return
            self._closed = self._draining = True
            threads = list(self._threads)
        for stream in list(self._streams):
            stream.cancel()
        self._readers.close()
        self._lookers.close()
        self._ready.close()
        self._results.put(None)
        deadline = time.monotonic() + STUCK
        for pool in (self._readers, self._lookers):
            pool.join(deadline - time.monotonic())
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    # Of its threads.

    def _check_open(self) -> None:
        if self._draining:
            raise UsageError(f"engine: is {'closed' if self._closed else 'draining'}, and accepts nothing more")

    def _accept(self) -> None:
        self._waiting += 1
        if not self._threads:
            for work, name in ((self._run, "merfast-passes"), (self._hand_out, "merfast-results")):
                thread = threading.Thread(target=work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self) -> None:
        """Pass after pass; as many are under way as `Inference.ahead` says before the first is waited for."""
        inference, under_way = self.worker.inference, deque[tuple[Flight, list[Load]]]()
        while True:
            loads = self._next(wait=not under_way)
            if loads is None and not under_way:
                return
            began = time.monotonic()
            wanted = [load for load in loads or () if self._begins(load)]
            work = sum(load.cost(self._frame_rate) for load in wanted)  # before their crops are known
            flight = self._flight(wanted) if wanted else None
            if flight is not None:
                under_way.append((flight, wanted))
            if under_way and (flight is None or len(under_way) > inference.ahead):
                self._land(*under_way.popleft())
            self._passes.note(began, work)
            del loads, wanted, flight  # what they hold is not to wait for the next ones

    def _next(self, *, wait: bool) -> list[Load] | None:
        """What goes into the next pass; None if there will be no more, or if it may not wait."""
        inference = self.worker.inference
        most = inference.pass_seconds if inference.ahead else min(inference.pass_seconds, _MOST_SECONDS)
        gather = self._config.max_wait_ms / 1000
        with span("wait for windows"):
            return self._ready.take(most, wait=wait, gather=gather, more=self._more) or None

    def _more(self) -> bool:
        return bool(self._lookers.pending or self._readers.pending)

    def _begins(self, load: Load) -> bool:
        try:
            return load.begin()
        except Exception:
            log.exception("%s: dropped", load.name)
            return False

    def _flight(self, loads: Sequence[Load]) -> Flight | None:
        """Start a pass; if that fails, each load alone, so that only those to blame fail."""
        try:
            return Flight(self.worker.inference, [(load.name, w) for load in loads for w in load.windows])
        except Exception as error:
            if len(loads) > 1:
                for load in loads:
                    if (alone := self._flight([load])) is not None:
                        self._land(alone, [load])
            else:
                self._fail(loads[0], error)
            return None

    def _land(self, flight: Flight, loads: Sequence[Load]) -> None:
        try:
            predictions = iter(flight.land())
        except Exception as error:
            for load in loads:
                if len(loads) == 1:
                    self._fail(load, error)
                elif (alone := self._flight([load])) is not None:
                    self._land(alone, [load])
            return
        for load in loads:
            own = [next(predictions) for _ in load.windows]
            self.deliver(lambda load=load, own=own: load.landed(own))  # type: ignore[misc]

    def _fail(self, load: Load, error: Exception) -> None:
        known = error if isinstance(error, MerfastError) else MerfastError(f"{load.name}: {error!r}")
        self.deliver(lambda: load.landed(known))

    def _hand_out(self) -> None:
        while True:
            call = self._results.get()
            if call is None:
                return
            try:
                call()
            except Exception:
                log.exception("a callback failed")
            del call  # what it holds is not to wait for the next one
