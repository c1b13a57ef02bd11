"""Several workers as one: each has a device of its own, and takes the next item when it has room for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

from merfast.media.source import Source
from merfast.media.tracks import Watch
from merfast.media.windows import WindowSpec
from merfast.pipeline import STUCK, ItemReader, Prefetch
from merfast.trace import span
from merfast.types import Failure, Prediction, Window
from merfast.worker import Worker

Result = Prediction | Failure

_WAIT = "wait for results"


class Crew:
    """Hands items to workers, and gives back their results in order. Safe under several threads.

    Args:
        workers: one for each device.
        ahead: items that they may read at a time, all of them together; none reads more than it would alone.
    """

    def __init__(self, workers: Sequence[Worker], ahead: int) -> None:
        self._workers = workers
        self._most = max(1, min(ahead // len(workers), *(w.ahead for w in workers)))
        self._lock = threading.RLock()  # again in one thread, where a generator is collected inside
        self._calls: list[list[int]] = []  # under way: how many of its items each worker has in hand

    @contextmanager
    def _call(self) -> Iterator[list[int]]:
        in_hand = [0] * len(self._workers)
        with self._lock:
            self._calls.append(in_hand)
        try:
            yield in_hand
        finally:
            with self._lock:
                self._calls = [c for c in self._calls if c is not in_hand]

    def predict(
        self, sources: Sequence[Source], spec: WindowSpec, *, every_face: bool, go_on: bool
    ) -> Generator[Result]:
        """One result for each item, in order, as workers give them; closing this ends all threads."""
        readers = [worker.readers(sources, spec, every_face=every_face) for worker in self._workers]
        count, workers = len(sources), len(self._workers)
        owners: queue.SimpleQueue[int] = queue.SimpleQueue()  # who took the first item, the second, ...
        given, stopped = 0, False

        def take(worker: int, in_hand: list[int]) -> Iterator[ItemReader]:
            nonlocal given
            while True:
                with self._lock:
                    if stopped or given == count:
                        return
                    item = given
                    given += 1
                    in_hand[worker] += 1
                    owners.put(worker)
                yield readers[worker][item]

        def ahead() -> int:
            # Fewer towards the end, so that the last items go to whoever is done first.
            least = max(1, min(self._most // 4, count // workers))
            return max(least, min(self._most, (count - given) // workers))

        def read(reader: ItemReader) -> Iterator[list[Window]]:
            for group in reader:
                if stopped:
                    raise _StoppedError
                yield group

        streams: list[Prefetch[Result]] = []
        try:
            with self._call() as in_hand:
                for k, worker in enumerate(self._workers[:count]):
                    results = worker.predict(take(k, in_hand), go_on=go_on, ahead=ahead, read=read)
                    streams.append(Prefetch(results, 0, _WAIT))
                for _ in range(count):
                    with span(_WAIT):
                        owner = owners.get()
                    (result,) = streams[owner].take(1)  # an engine's come in the order in which it took the items
                    with self._lock:
                        in_hand[owner] -= 1
                    yield result
        finally:
            stopped = True
            for stream in streams:
                stream.stop()
            deadline = time.monotonic() + STUCK
            for stream in streams:
                stream.close(max(0.0, deadline - time.monotonic()))

    def timeline(
        self, item: Source, spec: WindowSpec, *, every_face: bool, watch: Watch | None = None
    ) -> Iterator[Prediction]:
        """The windows of one item, on the worker that has the fewest items in hand when the first is asked for."""
        readers = (worker.readers([item], spec, every_face=every_face, watch=watch) for worker in self._workers)
        return self._timeline([reader for each in readers for reader in each])

    def _timeline(self, readers: Sequence[ItemReader]) -> Iterator[Prediction]:
        with self._call() as in_hand:
            with self._lock:
                busy = [sum(of_one) for of_one in zip(*self._calls, strict=True)]
                worker = busy.index(min(busy))
                in_hand[worker] = 1
            yield from self._workers[worker].timeline(readers[worker])


class _StoppedError(Exception):
    """Ends a worker's work on items that nobody waits for any more."""
