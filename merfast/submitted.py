"""What `Engine.submit` accepts: an item that is read when its turn comes, and whose windows join others' passes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable
from concurrent.futures import Future
from contextlib import closing
from functools import partial

from merfast.errors import DeadlineError, MerfastError, UsageError
from merfast.passes import Item, finish
from merfast.pipeline import ItemReader
from merfast.scheduler import Load, Scheduler
from merfast.types import Failure, Prediction, Window


class Request:
    """One item's way through a scheduler.

    Args:
        scheduler: does the work.
        reader: of the item.
        source: who asks.
        priority: higher ones go first.
        deadline: seconds from now after which nobody wants the result; None for no such limit.
        owner: kept as long as this is on its way.

    Attributes:
        future: of the prediction; it can be cancelled until the item's first windows go into a pass.

    Raises:
        OverloadedError: too many wait, or this one would not be done in time.
        UsageError: the scheduler is draining, or closed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        reader: ItemReader,
        *,
        source: Hashable,
        priority: int,
        deadline: float | None,
        owner: object,
    ) -> None:
        self.future: Future[Prediction] = Future()
        self._scheduler, self._item = scheduler, Item(reader)
        self._source, self._priority, self._owner = source, priority, owner
        self._allowed, self._deadline = deadline, math.inf if deadline is None else time.monotonic() + deadline
        self._lock = threading.Lock()
        self._flying = 0  # loads that have not landed
        self._read = False  # to its end
        self._taken: bool | None = None  # whether the future was made to run; None before that was tried
        self._over = False
        self._error: MerfastError | None = None
        scheduler.add(self)
        try:
            scheduler.read(self._run, source=source, priority=priority, deadline=deadline)
        except MerfastError:
            self._over = True
            raise
        # From then on it does not count among those that wait.
        self.future.add_done_callback(lambda future: self._end() if future.cancelled() else None)

    def close(self) -> None:
        """It ends by itself."""

    def cancel(self) -> None:
        """Drop it."""
        if not self.future.cancel():
            self._fail(UsageError(f"{self._item.reader.name}: the engine was closed before this was predicted"))

    def _run(self) -> None:
        """Read the item, in a thread of the scheduler."""
        try:
            if not self._wanted():
                return
            with closing(iter(self._item.reader)) as groups:
                for group in groups:
                    if not self._wanted():
                        return
                    self._start(group)
        except MerfastError as error:
            self._error = error
        with self._lock:
            self._read = True
        self._finish()

    def _start(self, group: list[Window]) -> None:
        name, place = self._item.reader.name, len(self._item.groups)
        self._item.groups.append([None] * len(group))
        with self._lock:
            self._flying += 1
        landed = partial(self._landed, place)
        self._scheduler.start(Load(name, group, self._source, self._priority, self._begin, landed))

    def _wanted(self) -> bool:
        """Whether somebody waits for it; one that is too late fails here."""
        if self._over or self.future.cancelled():
            return False
        if time.monotonic() <= self._deadline:
            return True
        self._fail(DeadlineError(f"{self._item.reader.name}: was not predicted within {self._allowed:.3g} s"))
        return False

    def _begin(self) -> bool:
        return self._wanted() and self._take()

    def _take(self) -> bool:
        """Have it run, so that it cannot be cancelled any more; False if it was."""
        with self._lock:
            if self._taken is None:
                self._taken = self.future.set_running_or_notify_cancel()
            return self._taken

    def _landed(self, place: int, result: list[Prediction] | MerfastError) -> None:
        if isinstance(result, MerfastError):
            self._error = self._error or result
        else:
            self._item.groups[place][:] = result
        with self._lock:
            self._flying -= 1
        self._finish()

    def _finish(self) -> None:
        """Answer, if all is there."""
        with self._lock:
            if not self._read or self._flying:
                return
        result = finish(self._item, self._error)
        if isinstance(result, Failure):
            self._fail(result.error)
        elif self._take() and self._end(predicted=True):
            self.future.set_result(result)

    def _fail(self, error: MerfastError) -> None:
        if self._take() and self._end():
            self.future.set_exception(error)

    def _end(self, *, predicted: bool = False) -> bool:
        """Whether it ends now, rather than earlier."""
        with self._lock:
            if self._over:
                return False
            self._over = True
        self._scheduler.answered(item=True, predicted=predicted)
        return True
