"""Threads and passes are shared fairly, and whole streams are shed where there are too many."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merfast.errors import UsageError
from merfast.fair import FairPool, FairQueue


def test_a_source_that_asks_for_much_does_not_keep_others_waiting() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.put("much", source="much")
    for _ in range(5):
        queue.put("little", source="little")
    first = [queue.take(0)[0] for _ in range(12)]
    assert Counter(first)["little"] == 5
    assert len(queue) == 93


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_sources_get_equal_shares_by_cost(costs: list[int]) -> None:
    """Each source's entries cost something else; as long as all have some, none is ahead by more than one entry."""
    queue: FairQueue[int] = FairQueue()
    for _ in range(60):
        for source, cost in enumerate(costs):
            queue.put(source, source=source, cost=cost)
    served = Counter[int]()
    for _ in range(40):
        (source,) = queue.take(0)
        served[source] += costs[source]
        shares = [served[s] for s in range(len(costs))]
        assert max(shares) - min(shares) <= 2 * max(costs)


def test_priority_goes_before_fairness_and_order_within_a_source() -> None:
    queue: FairQueue[str] = FairQueue()
    for name, priority in (("a", 0), ("b", 0), ("urgent", 5), ("c", 0)):
        queue.put(name, source="one", priority=priority)
    assert [queue.take(0)[0] for _ in range(4)] == ["urgent", "a", "b", "c"]


def test_what_is_taken_fits_by_cost() -> None:
    queue: FairQueue[int] = FairQueue()
    for i in range(6):
        queue.put(i, source=i, cost=3)
    assert queue.take(9) == [0, 1, 2]
    assert queue.take(1) == [3]  # one at least
    assert queue.take(100, wait=False) == [4, 5]
    assert queue.take(100, wait=False) == []


def test_others_are_waited_for_only_while_more_is_on_its_way() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.put(0, source=0)
    assert queue.take(9, gather=1e6, more=lambda: False) == [0]
    queue.put(1, source=0)
    late = threading.Timer(0.05, lambda: queue.put(2, source=0, cost=8))
    late.start()
    assert queue.take(9, gather=1e6) == [1, 2]  # full, so that the rest of the time is not waited
    late.join()


def test_who_is_left_with_nothing_goes_on_waiting() -> None:
    """Two threads gather; one takes all."""
    queue: FairQueue[int] = FairQueue()
    taken: list[list[int]] = []
    threads = [threading.Thread(target=lambda: taken.append(queue.take(9, gather=0.2))) for _ in range(2)]
    for thread in threads:
        thread.start()
    queue.put(1, source=0)
    threads[0].join(0.5)
    threads[1].join(0.5)
    assert taken == [[1]]
    queue.put(2, source=0)
    for thread in threads:
        thread.join(10)
    assert taken == [[1], [2]]


def test_a_full_queue_holds_up_who_puts_and_a_closed_one_lets_go() -> None:
    queue: FairQueue[int] = FairQueue(room=2.0)
    queue.put(0, source=0)
    queue.put(1, source=0)
    put = threading.Event()

    def add() -> None:
        queue.put(2, source=0)
        put.set()
        with pytest.raises(UsageError, match="is closed"):
            queue.put(3, source=0)

    thread = threading.Thread(target=add)
    thread.start()
    assert not put.wait(0.1)
    assert queue.take(0) == [0]
    assert put.wait(10)
    assert queue.close() == [1, 2]
    thread.join(10)
    assert not thread.is_alive()
    assert queue.take(5) == []


def test_sources_are_forgotten_when_they_owe_nothing() -> None:
    queue: FairQueue[int] = FairQueue()
    for i in range(5000):
        queue.put(i, source=i)
        queue.take(0)
    assert len(queue._ends) < 600


def test_a_pool_starts_threads_as_needed_survives_errors_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    pool = FairPool(3, "pool")
    assert threading.active_count() == len(threading.enumerate())
    before = threading.active_count()
    meet = threading.Barrier(3)
    done = threading.Semaphore(0)

    def task() -> None:
        meet.wait(10)
        done.release()

    for i in range(3):
        pool.submit(task, source=i)
    for _ in range(3):
        assert done.acquire(timeout=10)
    assert threading.active_count() == before + 3
    pool.submit(lambda: 1 / 0, source=0)
    pool.submit(done.release, source=0)
    assert done.acquire(timeout=10)
    while pool.pending:
        threading.Event().wait(0.01)
    assert "ZeroDivisionError" in caplog.text
    pool.close()
    pool.join(10)
    assert threading.active_count() == before
    assert pool.pending == 0
    with pytest.raises(UsageError):
        pool.submit(task, source=0)
