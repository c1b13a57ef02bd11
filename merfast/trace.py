"""Spans of time in all threads, under names, for whoever wants to see where the time goes; free while nobody traces."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Fact = str | int | float


class Span(NamedTuple):
    """What ran, and when.

    Attributes:
        name: of the stage.
        thread: its number in the operating system.
        start, end: nanoseconds since the Unix epoch.
        what: facts about this one, such as which item it was for.
    """

    name: str
    thread: int
    start: int
    end: int
    what: dict[str, Fact]


class Tracer:
    """Collects the spans of all threads while it is entered; one at a time in a process.

    Spans that began earlier, and those that have not ended yet, are left out.

    Args:
        around: name of a span -> what else is entered for its time.

    Attributes:
        spans: in the order in which they ended.
        threads: number of a thread -> its name, of those that have spans.
        start, end: of the collecting, nanoseconds since the Unix epoch.
    """

    def __init__(self, around: Callable[[str], AbstractContextManager[object]] | None = None) -> None:
        self.around = around
        self.spans: list[Span] = []
        self.threads: dict[int, str] = {}
        self.start = self.end = 0
        self._epoch = 0

    def __enter__(self) -> Tracer:
        """
        Raises:
            RuntimeError: another one collects now.
        """
        global _tracer
        with _change:
            if _tracer is not None:
                raise RuntimeError("trace: another tracer is collecting, expected one at a time")
            # Steady, and with the meaning of the system's clock, which torch.profiler uses too.
            self._epoch = time.time_ns() - time.perf_counter_ns()
            self.start = self.now()
            _tracer = self
        return self

    def __exit__(self, *error: object) -> None:
        global _tracer
        with _change:
            _tracer = None
        self.end = self.now()

    def now(self) -> int:
        return time.perf_counter_ns() + self._epoch

    def add(self, name: str, start: int, what: dict[str, Fact]) -> None:
        """Record a span of the present thread that ends now."""
        thread = threading.current_thread()
        number = thread.native_id or 0
        self.threads[number] = thread.name
        self.spans.append(Span(name, number, start, self.now(), what))

    def events(self) -> list[dict[str, Any]]:
        """The spans as Chrome's trace events: times in microseconds since `start`, rising within each thread."""
        process = os.getpid()
        out: list[dict[str, Any]] = [naming("process_name", process, 0, "merfast")]
        out += [naming("thread_name", process, number, name) for number, name in sorted(self.threads.items())]
        for s in sorted(self.spans, key=lambda s: (s.thread, s.start, -s.end)):
            times = {"ts": (s.start - self.start) / 1e3, "dur": (s.end - s.start) / 1e3}
            place = {"pid": process, "tid": s.thread}
            out.append({"name": s.name, "cat": "merfast", "ph": "X", **place, **times, "args": s.what})
        return out


_tracer: Tracer | None = None
_change = threading.Lock()


class _Nothing:
    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


_NOTHING = _Nothing()


class _Running:
    __slots__ = ("_around", "_name", "_start", "_tracer", "_what")

    def __init__(self, tracer: Tracer, name: str, what: dict[str, Fact]) -> None:
        self._tracer, self._name, self._what = tracer, name, what
        self._around = tracer.around(name) if tracer.around is not None else None

    def __enter__(self) -> None:
        self._start = self._tracer.now()
        if self._around is not None:
            self._around.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._around is not None:
            self._around.__exit__(*error)
        self._tracer.add(self._name, self._start, self._what)


def span(name: str, **what: Fact) -> _Nothing | _Running:
    """A context manager for the time that a stage takes: `with span("read", item="talk.mp4"):`."""
    tracer = _tracer
    return _NOTHING if tracer is None else _Running(tracer, name, what)


def spanned(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: each call of the function is a span."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name):
                return function(*args, **kwargs)

        return inside

    return decorate


def each(name: str, items: Iterator[T]) -> Iterator[T]:
    """The same items; getting the next one is a span. Whether anybody traces is looked up once, now."""
    return items if _tracer is None else _each(name, items)


def _each(name: str, items: Iterator[T]) -> Iterator[T]:
    while True:
        with span(name):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def naming(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    """The trace event that gives a process or a thread its name."""
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
