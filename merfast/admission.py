"""Who is served where not all can be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

CALM = 1.0
"""Seconds without a window that was too late, before another stream is admitted."""

STEP = 0.1
"""Seconds from one that is admitted to the next."""

ROOM = 0.9
"""Share of the time that threads may be at work for one to be admitted, beyond the first few."""

CUT = 0.5
"""Seconds from one cut to the next: what was cut takes effect only with the windows that follow."""

SHARE = 4
"""Of so many streams one is cut."""

FREE = 10.0
"""Seconds without a refusal after which streams are admitted freely again."""


class Admission:
    """How many streams are served: all, until windows are late; then a quarter less, the newest first, and one by one
    more when there is room.

    A window costs little where the one before was predicted, as faces are known up to there, and several times as much
    where it was not: were all streams refused by turns, each would cost the most. So some are served, and the others
    refused at once. Safe to use from many threads.

    Args:
        busy: share of the time that threads have been at work lately, from 0 to 1.
    """

    def __init__(self, busy: Callable[[], float]) -> None:
        self._busy = busy
        # The oldest first; one that was dropped without a word does not count.
        self._served: WeakKeyDictionary[object, None] = WeakKeyDictionary()
        self._late = self._cut = self._step = self._refused = float("-inf")
        self._lock = threading.Lock()

    def late(self, now: float) -> None:
        """A window of a stream that is served was too late; times are seconds of one clock."""
        with self._lock:
            self._late = self._refused = now
            if now - self._cut < CUT:
                return
            self._cut = now
            for _ in range(len(self._served) // SHARE):
                self._served.popitem()

    def admits(self, stream: object, now: float) -> bool:
        """Whether windows of this stream are to be predicted."""
        with self._lock:
            if stream in self._served:
                return True
            if now - self._refused < FREE and self._served:
                if now - self._late < CALM or now - self._step < STEP or self._busy() > ROOM:
                    self._refused = now
                    return False
                self._step = now
            self._served[stream] = None
            return True

    def is_served(self, stream: object) -> bool:
        return stream in self._served

    def forget(self, stream: object) -> None:
        """This stream has ended."""
        with self._lock:
            self._served.pop(stream, None)
