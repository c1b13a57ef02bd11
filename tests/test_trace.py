"""Tracing: spans of all threads, nothing when nobody traces, and every stage of the engine under its name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trace_checks import check_events

import merfast
from merfast.trace import Tracer, each, span, spanned

WAITS = ("wait for input", "wait for room")
STAGES = ("read", "open", "decode", "faces", "thumbnails", "detect", "crop", "windows", *WAITS)
PASS = ("pack", "encode voice", "encode prosody", "encode face", "fuse", "result")


@spanned("double")
def double(x: int) -> int:
    """Twice as much."""
    return 2 * x


def test_nothing_is_recorded_or_made_while_nobody_traces() -> None:
    items = iter([1, 2])
    assert each("next", items) is items
    assert span("a") is span("b", item="c")
    with Tracer() as tracer:
        pass
    with span("after"):
        assert double(2) == 4
    assert tracer.spans == []
    assert tracer.threads == {}
    assert tracer.end >= tracer.start


def test_spans_nest_and_tell_what_they_were_for() -> None:
    with Tracer() as tracer:
        with span("outer", item="a.mp4", number=3):
            assert double(4) == 8
        assert list(each("next", iter("ab"))) == ["a", "b"]
    assert [s.name for s in tracer.spans] == ["double", "outer", "next", "next", "next"]  # the end is looked for, too
    inner, outer = tracer.spans[:2]
    assert tracer.start <= outer.start <= inner.start <= inner.end <= outer.end <= tracer.end
    assert outer.what == {"item": "a.mp4", "number": 3}
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
    assert [e["name"] for e in check_events(tracer.events())] == ["outer", "double", "next", "next", "next"]


def test_errors_pass_through_and_end_their_spans() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    with Tracer() as tracer:
        with pytest.raises(ZeroDivisionError), span("outer"), span("inner"):
            _ = 1 / 0
        with pytest.raises(KeyError, match="two"):
            list(each("next", broken()))
        with span("later"):
            pass
    assert [s.name for s in tracer.spans] == ["inner", "outer", "next", "next", "later"]
    check_events(tracer.events())
    with pytest.raises(ZeroDivisionError), Tracer():
        _ = 1 / 0
    with Tracer():  # the one before has let go
        pass


def test_what_has_not_ended_or_began_before_is_left_out() -> None:
    before = span("before")
    with before:
        tracer = Tracer()
        with tracer:
            late = span("late")
            late.__enter__()
        events = tracer.events()
    late.__exit__(None, None, None)
    assert check_events(events) == []


def test_one_tracer_at_a_time() -> None:
    with Tracer() as first:
        with pytest.raises(RuntimeError, match="one at a time"), Tracer():
            pass
        with span("still"):
            pass
    assert [s.name for s in first.spans] == ["still"]


def test_threads_have_rows_and_names() -> None:
    together = threading.Barrier(3)

    def work() -> None:
        with span("work"):
            together.wait()
            for _ in range(50):
                double(1)

    with Tracer() as tracer:
        threads = [threading.Thread(target=work, name=f"worker {i}") for i in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    events = tracer.events()
    assert sum(e["name"] in ("work", "double") for e in check_events(events)) == 3 * 51
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names >= {"worker 0", "worker 1", "worker 2"}
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["merfast"]


def test_something_else_can_run_around_each_span() -> None:
    said: list[str] = []

    @contextmanager
    def around(name: str) -> Iterator[None]:
        said.append(f"+{name}")
        try:
            yield
        finally:
            said.append(f"-{name}")

    with Tracer(around) as tracer, pytest.raises(ZeroDivisionError), span("a"), span("b"):
        _ = 1 / 0
    assert said == ["+a", "+b", "-b", "-a"]
    assert [s.name for s in tracer.spans] == ["b", "a"]


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
def test_every_stage_of_the_engine_has_spans(face_clip: Path) -> None:
    engine = merfast.Engine(device="cpu", detector="haar")
    items = [face_clip, face_clip.read_bytes(), face_clip]
    with Tracer() as tracer:
        traced = engine.predict(items)
    spans = list(tracer.spans)
    assert [p.to_dict() for p in engine.predict(items)] == [p.to_dict() for p in traced]
    assert tracer.spans == spans
    check_events(tracer.events())
    names = {s.name for s in spans}
    assert names == {*STAGES, *PASS}
    assert [s.what for s in spans if s.name == "read"].count({"item": "<bytes #1>"}) == 1
    main = threading.get_native_id()
    assert {s.name for s in spans if s.thread == main} == {*PASS, "wait for input"}
    readers = {s.thread for s in spans if s.name == "read"}
    assert main not in readers
    assert {s.thread for s in spans if s.name == "detect"} == readers
    assert {name for thread, name in tracer.threads.items() if thread != main} == {"merfast-prefetch"}
