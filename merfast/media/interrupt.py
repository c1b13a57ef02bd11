"""Ending a thread that reads while its source sends nothing.

Note [Interrupting FFmpeg]
FFmpeg asks a callback, ten times a second while it waits for the network, whether it should give up; closing what
another thread reads from is not safe instead. The callback belongs to PyAV, which knows timeouts only: it compares
`time.monotonic()` with the moment at which the read began. So the module that holds it (`av.container.core`) is given a
clock that leaps ahead in threads of ours that were told to end, and is the same everywhere else. Where PyAV keeps its
clock elsewhere, reads end when their timeout does, as they do without this.

What it does not reach: a name server that does not answer, a FIFO or network drive, and other blocking reads that are
no network protocol of FFmpeg's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LEAP = 1e6  # seconds, longer than any timeout

_local = threading.local()


@contextmanager
def interruptible(told: Callable[[], bool]) -> Iterator[None]:
    """In this thread, reading from the network ends with an error soon after `told()` has become true."""
    outer = getattr(_local, "told", None)
    _local.told, _local.leaps = told, 0
    try:
        yield
    finally:
        _local.told = outer


def told_to_end() -> bool:
    """Whether this thread has been told to end, by whoever made it `interruptible`."""
    told = getattr(_local, "told", None)
    return told is not None and bool(told())


class _Clock:
    """What PyAV sees as the module `time`."""

    def monotonic(self) -> float:
        if not told_to_end():
            return time.monotonic()
        # Further each time: a read that begins now is to end as well.
        _local.leaps += 1
        return time.monotonic() + _LEAP * float(_local.leaps)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def prepare() -> None:
    """Let FFmpeg's network reads be interrupted; to be called before a container is opened. Does nothing twice."""
    from av.container import core

    if getattr(core, "time", None) is time:
        core.time = _Clock()  # type: ignore[attr-defined]
