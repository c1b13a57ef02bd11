"""What a live stream must get back, kept beside it: from what was pushed, and by the rules that sessions document."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from merfast.errors import OverloadedError
from merfast.types import Failure, Prediction

HOLD = 0.5
"""Seconds of a stream that a window waits for the track that is behind."""

TAIL = 0.05
"""Seconds: a shorter rest at the end need not get a window of its own."""

LONGEST_STEP = 1.0
"""Seconds that the last picture may be taken to last."""

_SLACK = 1e-4


@dataclass
class Epoch:
    """A stretch of a stream between two resets.

    Attributes:
        origin: first time pushed; None before.
        newest: latest time that sound or picture have reached.
        last: number of the last window that has a result.
        pauses: begin and end, since the origin, of stretches without anything that are as long as a window at least.
    """

    origin: float | None = None
    newest: float = -math.inf
    last: int = -1
    pauses: list[tuple[float, float]] = field(default_factory=list)


class Ledger:
    """Compares the results of one stream with what was pushed. Push from one thread, results from another.

    Args:
        name: of the stream, which its results must bear.
        window, hop: of its windows, in seconds.

    Attributes:
        tally: "predicted", "refused", "failed", and "pauses" that left windows out.
        violations: what is wrong.
    """

    def __init__(self, name: str, window: float, hop: float) -> None:
        self.name, self.window, self.hop = name, window, hop
        self.tally: Counter[str] = Counter()
        self.violations: list[str] = []
        self._epochs = [Epoch()]
        self._current = 0  # epoch that the last result was of
        self._lock = threading.Lock()

    @contextmanager
    def pushing(self, start: float, end: float) -> Iterator[None]:
        """Around a push of what lasts from `start` to `end`; one that raises has not been pushed."""
        with self._lock:
            epoch = self._epochs[-1]
            before = epoch.origin, epoch.newest, len(epoch.pauses)
            if epoch.origin is None:
                epoch.origin = start
            begin, finish = start - epoch.origin, end - epoch.origin
            if begin - epoch.newest >= self.window and math.isfinite(epoch.newest):
                epoch.pauses.append((epoch.newest, begin))
            epoch.newest = max(epoch.newest, finish)
        try:
            yield
        except BaseException:
            with self._lock:
                epoch.origin, epoch.newest = before[:2]
                del epoch.pauses[before[2] :]
            raise
        with self._lock:
            self.tally["pauses"] += len(epoch.pauses) - before[2]

    def reset(self) -> None:
        """The stream was reset: what had no result until now need not get one."""
        with self._lock:
            self._epochs.append(Epoch())

    def fits(self, origin: float) -> bool:
        """Whether results of a stretch that begins there can be told from those of all before it."""
        phases = [(origin - e.origin) / self.hop for e in self._epochs if e.origin is not None]
        return all(abs(phase - round(phase)) * self.hop > 100 * _SLACK for phase in phases)

    def result(self, result: Prediction | Failure) -> int | None:
        """Take a result, in the order in which it came; the number of its window."""
        with self._lock:
            if result.source != self.name:
                self._wrong(f"a result of {result.source!r}")
            if isinstance(result, Failure):
                code = "refused" if isinstance(result.error, OverloadedError) else "failed"
                if code == "failed":
                    self.tally[f"failed: {type(result.error).__name__}"] += 1
            else:
                code = "predicted"
            self.tally[code] += 1
            if result.start is None:
                self._wrong(f"a result without a time: {result!r}")
                return None
            return self._place(result.start)

    def finish(self, *, whole: bool) -> None:
        """The stream is over, and all results are in.

        Args:
            whole: whether it was closed, so that all windows must be there; else those at the end may be missing.
        """
        with self._lock:
            epoch = self._epochs[-1]
            if not whole or epoch.origin is None:
                return
            k = self._following(epoch, epoch.last)
            # The last window ends with the stream, unless it would begin with what is too short for one.
            must = epoch.newest - TAIL - _SLACK
            while self._end(k) <= epoch.newest + _SLACK or k == 0 or (k * self.hop < must and self._end(k - 1) < must):
                self._wrong(f"window {k} was lost: {self._end(k):.2f} s of {epoch.newest:.2f} s, at the end")
                k = self._following(epoch, k)
            if epoch.last >= 0 and epoch.last * self.hop > epoch.newest + LONGEST_STEP:
                self._wrong(f"window {epoch.last} begins after the stream's end at {epoch.newest:.2f} s")

    def overdue(self) -> int:
        """Windows of the present stretch that should be complete and have no result yet."""
        with self._lock:
            epoch, count = self._epochs[-1], 0
            if epoch.origin is None:
                return 0
            k = self._following(epoch, epoch.last)
            while self._end(k) <= epoch.newest - HOLD - _SLACK:
                count += 1
                k = self._following(epoch, k)
            return count

    # With the lock held.

    def _end(self, k: int) -> float:
        return k * self.hop + self.window

    def _place(self, start: float) -> int | None:
        """Find the stretch and the window of a result, and whether it is the one to come."""
        for number in range(self._current, len(self._epochs)):
            epoch = self._epochs[number]
            if epoch.origin is None:
                continue
            k = round((start - epoch.origin) / self.hop)
            if k < 0 or abs(start - epoch.origin - k * self.hop) > _SLACK:
                continue
            self._current = number
            self._step(epoch, k)
            return k
        self._wrong(f"a result of no window, or out of order: it starts at {start:.4f} s")
        return None

    def _step(self, epoch: Epoch, k: int) -> None:
        if k <= epoch.last:
            self._wrong(f"window {k} after window {epoch.last}: doubled, or out of order")
            return
        expected = self._following(epoch, epoch.last)
        while expected < k:
            self._wrong(f"window {expected} was lost: window {k} came after window {epoch.last}")
            expected = self._following(epoch, expected)
        if expected > k:
            self._wrong(f"window {k} lies in a pause, and should not exist")
        if k * self.hop > epoch.newest + _SLACK:
            self._wrong(f"window {k} has not begun at {epoch.newest:.2f} s")
        epoch.last = k

    def _following(self, epoch: Epoch, k: int) -> int:
        """The next window in which something was pushed."""
        k += 1
        for begin, end in epoch.pauses:
            while begin - _SLACK <= k * self.hop and self._end(k) <= end + _SLACK:
                k += 1
        return k

    def _wrong(self, text: str) -> None:
        if len(self.violations) < 10:
            self.violations.append(f"{self.name}: {text}")
