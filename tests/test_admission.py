"""Which streams are served where not all can be."""

from __future__ import annotations

import time

import pytest

from merfast.admission import CALM, CUT, ROOM, WARY, Admission, Meter


class Stream:
    pass


class Passes(Meter):
    """Passes that were at work as much as a test says."""

    def __init__(self, busy: float = 0.0, rate: float = 0.0) -> None:
        super().__init__(1)
        self.share, self.rate = busy, rate

    def busy(self) -> float:
        return self.share


def served(admission: Admission, streams: list[Stream]) -> list[int]:
    return [i for i, stream in enumerate(streams) if admission.is_served(stream)]


def test_streams_join_freely_until_threads_are_at_work() -> None:
    passes = Passes()
    admission, streams = Admission(lambda: 0.0, passes), [Stream() for _ in range(100)]
    passes.rate = 1.0  # far too much, which few streams say little about
    assert all(admission.admits(stream, 0.0, 1.0) for stream in streams[:50])
    passes.share = 0.6
    assert not admission.admits(streams[50], 0.0, 1.0)
    passes.rate = ROOM / 51.5
    assert admission.admits(streams[50], 0.0, 1.0)
    assert not admission.admits(streams[51], 0.0, 1.0)
    assert admission.admits(streams[51], 0.0, 0.1)  # one with a long hop
    assert all(admission.admits(stream, 0.0, 1.0) for stream in streams[:52])  # those that are served stay


def test_streams_do_not_join_where_faces_are_looked_for_all_the_time() -> None:
    looking = 0.0
    admission, streams = Admission(lambda: looking, Passes()), [Stream() for _ in range(20)]
    assert all(admission.admits(stream, 0.0, 1.0) for stream in streams[:10])
    looking = 0.7
    assert admission.admits(streams[10], 0.0, 1.0)
    looking = 0.8
    assert not admission.admits(streams[11], 0.0, 1.0)


def test_the_newest_streams_are_shed_once_for_what_was_complete_before() -> None:
    admission, streams = Admission(lambda: 0.0, Passes()), [Stream() for _ in range(9)]
    assert all(admission.admits(stream, 0.0, 1.0) for stream in streams)
    admission.late(10.0, complete=9.4)
    assert served(admission, streams) == [0, 1, 2, 3, 4, 5]
    admission.late(10.0 + 2 * CUT, complete=9.9)  # the same trouble
    admission.late(10.0 + 0.9 * CUT, complete=10.1)  # too soon to tell
    assert served(admission, streams) == [0, 1, 2, 3, 4, 5]
    admission.late(10.0 + 2 * CUT, complete=10.1)
    assert served(admission, streams) == [0, 1, 2, 3]


def test_shed_streams_come_back_one_by_one() -> None:
    admission, streams = Admission(lambda: 0.0, Passes()), [Stream() for _ in range(9)]
    assert all(admission.admits(stream, 0.0, 1.0) for stream in streams)
    for stream in streams:
        admission.landed(stream)
    admission.late(10.0, complete=9.4)
    assert not admission.admits(streams[8], 10.0 + 0.9 * CALM, 1.0)
    later = 10.0 + 1.1 * CALM
    assert admission.admits(streams[8], later, 1.0)
    assert not admission.admits(streams[7], later, 1.0)  # while the other has no result
    admission.landed(streams[8])
    assert admission.admits(streams[7], later, 1.0)
    assert all(admission.admits(Stream(), 10.1 + WARY, 1.0) for _ in range(9))  # trouble is forgotten


def test_the_last_streams_are_never_shed() -> None:
    admission, streams = Admission(lambda: 1.0, Passes(1.0, 1.0)), [Stream(), Stream()]
    assert admission.admits(streams[0], 0.0, 1.0)
    for moment in range(1, 9):
        admission.late(moment, complete=moment - 0.1)
    assert admission.admits(streams[0], 9.0, 1.0)
    assert not admission.admits(streams[1], 9.0, 1.0)


def test_streams_that_ended_or_were_dropped_without_a_word_make_room() -> None:
    admission, old, new = Admission(lambda: 1.0, Passes()), Stream(), Stream()
    assert admission.admits(old, 0.0, 1.0)
    assert not admission.admits(new, 0.0, 1.0)
    admission.forget(old)
    assert admission.admits(new, 0.0, 1.0)
    del new
    assert admission.admits(Stream(), 0.0, 1.0)


def test_a_meter_counts_the_last_second_and_what_work_takes() -> None:
    meter, now = Meter(2), time.monotonic()
    assert meter.busy() == 0.0
    meter.note(now - 0.5, work=5.0)
    meter.note(now - 30.0)  # of which only the last second counts
    assert meter.busy() == pytest.approx(0.75, abs=0.05)
    assert meter.rate == pytest.approx(0.1, abs=0.01)
