"""Prefetching: order, bounds, errors, and threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from merfast.pipeline import Prefetch, prefetch_each


def count(to: int, made: list[int], closed: list[str] | None = None) -> Iterator[int]:
    try:
        for i in range(to):
            made.append(i)
            yield i
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


def test_items_come_in_order_and_are_made_ahead_within_bounds() -> None:
    made: list[int] = []
    stage = Prefetch(count(100, made), 4)
    time.sleep(0.3)
    assert len(made) == 5  # four in the queue, one in hand
    assert list(stage) == list(range(100))
    stage.close()


def test_an_error_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("three")

    stage = Prefetch(broken(), 4)
    items = iter(stage)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(items)
    assert list(stage) == []
    stage.close()
    stage = Prefetch(broken(), 4)
    taken: list[int] = []
    while len(taken) < 2:
        taken += stage.take(8)
    assert taken == [1, 2]
    with pytest.raises(KeyError, match="three"):
        stage.take(8)
    assert stage.take(8) == []
    stage.close()


def test_taking_without_waiting() -> None:
    go = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        go.wait(60)
        yield 2
        raise KeyError("three")

    stage = Prefetch(slow(), 4)
    assert stage.take(8) == [1]
    assert stage.take(8, wait=False) == []
    go.set()
    assert stage.take(8) == [2]
    stage._thread.join(60)
    for _ in range(2):
        assert stage.take(8, wait=False) == []  # the error is for who waits
    with pytest.raises(KeyError, match="three"):
        stage.take(8)
    assert stage.take(8) == []


def test_closing_ends_the_thread_and_the_generator_in_it() -> None:
    closed: list[str] = []
    before = threading.active_count()
    stage = Prefetch(count(1_000_000, [], closed), 2)
    next(iter(stage))
    stage.close()
    stage.close()
    assert threading.active_count() == before
    assert closed == ["merfast-prefetch"]


def test_several_sources_run_ahead_in_order() -> None:
    started: list[int] = []

    def open_stage(source: int) -> Iterator[int]:
        started.append(source)
        return iter([source] * source)

    seen = []
    for source, items in prefetch_each(range(6), open_stage, ahead=lambda: 3, size=2):
        seen.append((source, list(items)))
        assert len(started) <= source + 3
    assert seen == [(n, [n] * n) for n in range(6)]


def test_leaving_early_ends_all_threads() -> None:
    before = threading.active_count()
    closed: list[str] = []
    stages = prefetch_each(range(5), lambda _: count(1_000_000, [], closed), ahead=lambda: 3, size=2)
    _, items = next(stages)
    next(items)
    stages.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(closed) == 3
