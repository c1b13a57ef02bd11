"""Who is served where not all can be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

CALM = 1.0
"""Seconds without a window that was too late, before a stream that was shed may come back."""

STEP = 0.1
"""Seconds from one that comes back to the next."""

ROOM = 0.9
"""Share of the time that threads may be at work for one to come back."""


class Admission:
    """Sheds whole streams, one by one, and lets them come back when there is room.

    A window costs little where the one before was predicted, as faces are known up to there, and several times as much
    where it was not: were all streams refused by turns, each would cost the most. So a stream whose window was too late
    is refused at once from then on, and the others go on. Safe to use from many threads.

    Args:
        busy: share of the time that threads have been at work lately, from 0 to 1.
    """

    def __init__(self, busy: Callable[[], float]) -> None:
        self._busy = busy
        self._shed: set[Hashable] = set()
        self._late = self._back = float("-inf")
        self._lock = threading.Lock()

    def late(self, stream: Hashable, now: float) -> None:
        """A window of this stream was too late."""
        with self._lock:
            self._shed.add(stream)
            self._late = now

    def admits(self, stream: Hashable, now: float) -> bool:
        """Whether a window of this stream is to be predicted; times are seconds of one clock."""
        with self._lock:
            if stream not in self._shed:
                return True
            if now - self._late < CALM or now - self._back < STEP or self._busy() > ROOM:
                return False
            self._shed.discard(stream)
            self._back = now
            return True

    def is_shed(self, stream: Hashable) -> bool:
        return stream in self._shed

    def forget(self, stream: Hashable) -> None:
        """This stream has ended."""
        with self._lock:
            self._shed.discard(stream)
