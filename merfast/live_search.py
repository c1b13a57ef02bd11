"""Searching for the largest number that holds: doubling, then halving what is open, then a confirmation."""

from __future__ import annotations

_DOWN = 0.03  # share by which a number that is not confirmed is lowered, one at least


class Search:
    """Says what to try next; larger numbers are taken to hold less.

    Args:
        first: number to begin with.
        tries: how often a number must fail to count as failed: once more than chance would have it.
        most: largest number to try.

    Attributes:
        best: largest number found to hold; 0 if none does. Only confirmed when `ask` gives None.
        confirming: whether the number asked for is to be confirmed, as in a longer run.
    """

    def __init__(self, first: int, *, tries: int = 2, most: int = 4096) -> None:
        if first < 1 or tries < 1 or most < first:
            raise ValueError(f"got first={first}, tries={tries}, most={most}, expected 1 at least, and most >= first")
        self.best = 0
        self.confirming = False
        self._next: int | None = first
        self._failing: int | None = None  # smallest number that failed
        self._tries, self._left, self._most = tries, tries, most

    def ask(self) -> int | None:
        """The number to try; None when the search is over."""
        return self._next

    def tell(self, holds: bool) -> None:
        """What became of the number asked for.

        Raises:
            ValueError: the search is over.
        """
        if self._next is None:
            raise ValueError("the search is over")
        if not holds and self._left > 1:
            self._left -= 1
            return
        self._left = self._tries
        if self.confirming:
            self._confirmed(holds)
        else:
            self._narrow(self._next, holds)

    def _narrow(self, tried: int, holds: bool) -> None:
        if holds:
            self.best = tried
        else:
            self._failing = tried
        open_ended = min(2 * self.best, self._most)
        following = open_ended if self._failing is None else (self.best + self._failing) // 2
        if following == self.best:
            self.confirming, self._next = True, self.best or None
        else:
            self._next = following

    def _confirmed(self, holds: bool) -> None:
        if holds:
            self._next = None
            return
        self.best = max(0, self.best - max(1, round(self.best * _DOWN)))
        self._next = self.best or None
