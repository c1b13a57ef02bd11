"""`Results`: what a live stream gives, for threads, event loops or a callback."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from merfast.types import Failure, Prediction

log = logging.getLogger("merfast")

Result = Prediction | Failure


class Results:
    """A queue that ends. Safe to use from many threads and event loops; each result goes to one reader.

    Args:
        name: of the stream, for messages.
        call: called with each result instead of queueing it.
    """

    def __init__(self, name: str, call: Callable[[Result], object] | None) -> None:
        self._name, self._call = name, call
        self._changed = threading.Condition()
        self._results: deque[Result] = deque()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.over = False

    def __len__(self) -> int:
        return len(self._results)

    def put(self, results: Sequence[Result]) -> None:
        """Add results, or call with them: what a callback raises is logged."""
        if self._call is None:
            with self._changed:
                self._results.extend(results)
                self._wake()
            return
        for result in results:
            try:
                self._call(result)
            except Exception:
                log.exception("%s: on_result failed", self._name)

    def end(self) -> None:
        """No more come."""
        with self._changed:
            self.over = True
            self._wake()

    def get(self, timeout: float | None) -> Result | None:
        """The next one, or None if there is none and no more come.

        Raises:
            TimeoutError: there was none within so many seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._results or self.over, timeout):
                raise TimeoutError(f"{self._name}: no result within {timeout:.3g} s")
            return self._results.popleft() if self._results else None

    def __iter__(self) -> Iterator[Result]:
        while (result := self.get(None)) is not None:
            yield result

    async def __aiter__(self) -> AsyncIterator[Result]:
        loop = asyncio.get_running_loop()
        while True:
            waiter = None
            with self._changed:
                result = self._results.popleft() if self._results else None
                if result is None:
                    if self.over:
                        return
                    waiter = loop.create_future()
                    self._waiters.append((loop, waiter))
            if result is not None:
                yield result
            elif waiter is not None:
                await waiter

    def _wake(self) -> None:
        self._changed.notify_all()
        waiters, self._waiters = self._waiters, []
        for loop, waiter in waiters:
            try:
                loop.call_soon_threadsafe(_resolve, waiter)
            except RuntimeError:  # the loop is closed
                continue


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
