"""One rising clock out of timestamps that restart or jump, as in concatenated or damaged streams."""

from __future__ import annotations

BACK = 1.0
"""Seconds that a stream's times may fall before they count as restarted."""

AHEAD = 600.0
"""Seconds that a stream may run ahead of all that has been read before it counts as a jump, not as a pause."""


class Continuity:
    """Closes jumps in the times of several streams, so that they stay in step. Times are seconds from the start."""

    def __init__(self) -> None:
        self.jumps = 0
        self._latest = 0.0  # of all streams, after shifting
        self._last: dict[int, float] = {}  # of each stream, after shifting
        self._shift: dict[int, float] = {}
        self._newest = 0.0  # the shift made last, which streams that jump after it adopt: so they stay in step

    def shift(self, stream: int, time: float, step: float) -> float:
        """Seconds to add to the time of a stream's next frame; `step` is how far it should be from the one before."""
        shift = self._shift.get(stream, 0.0)
        last = self._last.get(stream, time + shift)
        restarted = time + shift < last - BACK
        if restarted or time + shift > self._latest + AHEAD:
            fits = min(last, self._latest) - BACK <= time + self._newest <= self._latest + AHEAD
            if self._newest == shift or not fits:
                self._newest = self._latest + step - time
                self.jumps += 1
            shift = self._newest
        self._shift[stream] = shift
        self._last[stream] = max(last, time + shift)
        self._latest = max(self._latest, time + shift)
        return shift
