"""Sharing threads and passes among sources: who asks for much does not keep others waiting.

Start-time fair queueing (Goyal, Vin and Cheng 1996): what a source puts in starts, on a virtual clock, where its last
entry ended, and ends by its cost later; the earliest start is served first.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from merfast.admission import Meter
from merfast.errors import UsageError

log = logging.getLogger("merfast")

T = TypeVar("T")

_REMEMBERED = 256  # sources beyond those that wait, before some are forgotten


class FairQueue(Generic[T]):
    """Entries by priority, then fairly among sources, then as they came. Safe to use from many threads.

    Args:
        room: cost from which on `put` waits.
    """

    def __init__(self, room: float = math.inf) -> None:
        self._room = room
        self._heap: list[tuple[int, float, int, float, T]] = []
        self._numbers = itertools.count()
        self._clock = 0.0
        self._ends: dict[Hashable, float] = {}  # of each source's last entry
        self._cost = 0.0
        self._since = 0.0  # when it was last empty
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, entry: T, *, source: Hashable, priority: int = 0, cost: float = 1.0) -> None:
        """Add an entry, when there is room for it.

        Args:
            source: who asks.
            priority: higher ones are served first, whatever the source.
            cost: in units of the caller's.

        Raises:
            UsageError: it is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._cost < self._room)
            if self._closed:
                raise UsageError("engine: is closed")
            if not self._heap:
                self._since = time.monotonic()
            start = max(self._clock, self._ends.get(source, 0.0))
            self._ends.pop(source, None)  # so that those that asked last are the last
            self._ends[source] = start + cost
            heapq.heappush(self._heap, (-priority, start, next(self._numbers), cost, entry))
            self._cost += cost
            if len(self._ends) > len(self._heap) + _REMEMBERED:
                owing = [(s, end) for s, end in self._ends.items() if end > self._clock]
                self._ends = dict(owing[-len(self._heap) - _REMEMBERED // 2 :])
            self._changed.notify_all()

    def take(
        self,
        most: float,
        *,
        wait: bool = True,
        gather: float = 0.0,
        more: Callable[[], bool] = lambda: True,
    ) -> list[T]:
        """The next entries: one at least; nothing if it is closed and empty, or if there is none and it may not wait.

        Args:
            most: cost of them all; one alone may cost more.
            wait: for the first one.
            gather: seconds since it was empty, for which others are waited for.
            more: whether others may come; if not, they are not waited for.
        """
        with self._changed:
            while wait and not self._closed:
                self._changed.wait_for(lambda: self._closed or self._heap)
                until = self._since + gather
                while self._heap and self._cost < most and not self._closed and more():
                    left = until - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                if self._heap:  # and no other thread has taken all meanwhile
                    break
            out: list[T] = []
            total = 0.0
            while self._heap and (not out or total + self._heap[0][3] <= most):
                _, start, _, cost, entry = heapq.heappop(self._heap)
                self._clock = max(self._clock, start)
                self._cost -= cost
                total += cost
                out.append(entry)
            if not self._heap:
                self._cost = 0.0  # no rounding errors are left
                self._clock = max([self._clock, *self._ends.values()])
                self._ends.clear()
            self._since = time.monotonic()
            self._changed.notify_all()
            return out

    def nudge(self) -> None:
        """Have those who wait for more ask again whether any may come."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> list[T]:
        """Take nothing more; returns what waits."""
        with self._changed:
            self._closed = True
            left = [entry for *_, entry in sorted(self._heap, key=lambda e: e[:3])]
            self._heap.clear()
            self._cost = 0.0
            self._changed.notify_all()
            return left


class FairPool:
    """Threads that run tasks, fairly among sources; started when they are needed.

    Args:
        threads: at most.
        name: of the threads.
        ended: called after each task.
    """

    def __init__(self, threads: int, name: str, ended: Callable[[], None] = lambda: None) -> None:
        self._most, self._name, self._ended = threads, name, ended
        self._queue: FairQueue[Callable[[], None]] = FairQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._pending = 0
        self._meter = Meter(threads)

    def busy(self) -> float:
        """Share of the last second, from 0 to 1, that the threads were at work, by the tasks that ended in it."""
        return self._meter.busy()

    @property
    def pending(self) -> int:
        """Tasks that wait or run."""
        return self._pending

    def submit(self, task: Callable[[], None], *, source: Hashable, priority: int = 0, cost: float = 1.0) -> None:
        """Run a task, which raises nothing.

        Raises:
            UsageError: the pool is closed.
        """
        with self._lock:
            self._queue.put(task, source=source, priority=priority, cost=cost)
            self._pending += 1
            if len(self._threads) < min(self._most, self._pending):
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _work(self) -> None:
        while tasks := self._queue.take(0.0):
            began = time.monotonic()
            try:
                tasks[0]()
            except Exception:
                log.exception("%s: a task failed", self._name)
            finally:
                self._meter.note(began)
                with self._lock:
                    self._pending -= 1
                self._ended()
                del tasks  # what it holds is not to wait for the next one

    def close(self) -> None:
        """Drop what waits, and end the threads when what they run is done."""
        left = self._queue.close()
        with self._lock:
            self._pending -= len(left)

    def join(self, patience: float) -> None:
        """Wait for the threads of a closed pool, so many seconds at most."""
        deadline = time.monotonic() + patience
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
