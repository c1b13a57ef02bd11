"""Who is served where not all can be."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

CALM = 0.5
"""Seconds without a window that was too late, before another stream is admitted."""

ROOM, PLENTY = 0.85, 0.5
"""Shares of the time that threads may be at work: with another stream admitted, as foreseen; and below which nothing is
foreseen, as few streams say little about many."""

CUT = 0.5
"""Seconds from one cut to the next."""

SHARE = 3
"""Of so many streams one is cut."""

JOINING = 8
"""Of so many streams, begun or whole, one may be without a result yet for another to be admitted."""

WARY = 10.0
"""Seconds after a window that was too late, in which streams are admitted one by one."""


_SMOOTH = 0.1  # weight of a new measurement


class Meter:
    """How much of the time threads are at work, and for what. Safe to use from many threads.

    Args:
        threads: number of them.

    Attributes:
        rate: seconds that a unit of work takes, as measured of late; 0 before any.
    """

    def __init__(self, threads: int) -> None:
        self.rate = 0.0
        self._threads = threads
        self._done: deque[tuple[float, float]] = deque()  # when work ended of late, and how long it took
        self._lock = threading.Lock()

    def note(self, began: float, work: float = 0.0) -> None:
        """So much work that began then, by `time.monotonic`, ends now."""
        with self._lock:
            now = self._forget()
            self._done.append((now, now - began))
            if work:
                rate = (now - began) / work
                self.rate += (rate - self.rate) * (_SMOOTH if self.rate else 1.0)

    def busy(self) -> float:
        """Share of the last second, from 0 to 1, by the work that ended in it."""
        with self._lock:
            now = self._forget()
            return min(1.0, sum(min(took, 1.0 - (now - end)) for end, took in self._done) / self._threads)

    def _forget(self) -> float:
        now = time.monotonic()
        while self._done and self._done[0][0] < now - 1.0:
            self._done.popleft()
        return now


@dataclass
class _Served:
    demand: float
    settled: bool = False


class Admission:
    """Which streams are served: all, until windows are late; then a third less, the newest first, and others one by one
    where there is room.

    A window costs little where the one before was predicted, as faces are known up to there, and several times as much
    where it was not: were all streams refused by turns, each would cost the most. So some are served, and the others
    refused at once. Safe to use from many threads.

    Args:
        looking: share of the time that threads that look at faces have been at work lately, from 0 to 1.
        passes: through the model.
    """

    def __init__(self, looking: Callable[[], float], passes: Meter) -> None:
        self._looking, self._passes = looking, passes
        # The oldest first; one that was dropped without a word does not count.
        self._served: WeakKeyDictionary[object, _Served] = WeakKeyDictionary()
        self._late = self._cut = float("-inf")
        self._lock = threading.Lock()

    def late(self, now: float, complete: float) -> None:
        """A window of a stream that is served was too late.

        Args:
            now: seconds.
            complete: when all of the window was there, on the same clock: one that was complete before the last cut
                does not ask for another.
        """
        with self._lock:
            self._late = now
            if complete > self._cut and now - self._cut > CUT:
                self._cut = now
                for _ in range(len(self._served) // SHARE):
                    self._served.popitem()

    def landed(self, stream: object) -> None:
        """A window of this stream was predicted."""
        with self._lock:
            if (served := self._served.get(stream)) is not None:
                served.settled = True

    def admits(self, stream: object, now: float, demand: float) -> bool:
        """Whether windows of this stream are to be predicted.

        Args:
            stream: any object.
            now: seconds.
            demand: work in passes that it asks for in a second, once it is served.
        """
        with self._lock:
            if stream in self._served:
                return True
            if self._served and not self._has_room(now, demand):
                return False
            self._served[stream] = _Served(demand)
            return True

    def _has_room(self, now: float, demand: float) -> bool:
        served = list(self._served.values())
        wary = now - self._late < WARY
        if wary and (now - self._late < CALM or sum(not s.settled for s in served) > len(served) // JOINING):
            return False
        looking = self._looking()
        if not wary and max(looking, self._passes.busy()) <= PLENTY:
            return True
        foreseen = self._passes.rate * (sum(s.demand for s in served) + demand)
        return max(looking * (len(served) + 1) / len(served), foreseen) <= ROOM

    def is_served(self, stream: object) -> bool:
        return stream in self._served

    def forget(self, stream: object) -> None:
        """This stream has ended."""
        with self._lock:
            self._served.pop(stream, None)
