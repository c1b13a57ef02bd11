"""Live streams that are pushed: the windows of a recording, in any pace and order, and bad input that harms nobody."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from recordings import SIZE, push, same, sound

import merfast
from merfast.errors import MediaError, OverloadedError, UsageError
from merfast.session import Session
from merfast.types import Failure, Prediction


@pytest.fixture(scope="module")
def engine() -> Iterator[merfast.Engine]:
    with merfast.Engine(device="cpu", detector="haar", latency_ms=60_000) as engine:
        yield engine


@pytest.mark.parametrize(("window", "hop", "shift"), [(2.0, 0.5, 0.0), (1.0, 1.0, 1.7e9), (1.5, 0.4, -3.0)])
def test_windows_are_those_of_a_recording(
    engine: merfast.Engine,
    recording: list[tuple[float, Any, int]],
    demo_clip: Path,
    window: float,
    hop: float,
    shift: float,
) -> None:
    expected = list(engine.timeline(demo_clip, window=window, hop=hop))
    with engine.session(window=window, hop=hop) as session:
        push(session, recording, shift)
    same(list(session), expected, shift, 1e-4 if shift == 0 else 0.02)
    assert session.stats.windows == len(expected)
    assert (session.stats.refused, session.stats.late_frames, session.stats.waiting) == (0, 0, 0)


@pytest.mark.parametrize("form", ["rgb", "yuv", "nv12"])
def test_arrays_are_pictures_too(
    engine: merfast.Engine, recording: list[tuple[float, Any, int]], demo_clip: Path, form: str
) -> None:
    """Their buffers may be used again at once."""
    buffers: dict[int, np.ndarray] = {}

    def reused(number: int, array: np.ndarray) -> np.ndarray:
        buffer = buffers.setdefault(number, np.empty_like(array))
        buffer[...] = array
        return buffer

    def picture(frame: av.VideoFrame) -> Any:
        if form == "rgb":
            return reused(0, frame.to_ndarray(format="rgb24"))
        height, width = frame.height, frame.width
        packed = frame.to_ndarray(format="yuv420p" if form == "yuv" else "nv12")
        y, rest = reused(0, packed[:height]), packed[height:]
        if form == "nv12":
            return y, reused(1, rest)
        u, v = rest.reshape(2, height // 2, width // 2)
        return y, reused(1, u), reused(2, v)

    with engine.session(window=2.0, hop=1.0) as session:
        for time, media, rate in recording:
            if rate:
                session.push_audio(media, rate, time)
            else:
                session.push_frame(picture(media), time)
    expected = list(engine.timeline(demo_clip, window=2.0, hop=1.0))
    got = list(session)
    for a, b in zip(got, expected, strict=True):
        assert isinstance(a, Prediction)
        # Faces are looked for in pictures scaled another way, and the cascade's boxes move by pixels.
        assert np.abs(a.probabilities - b.probabilities).max() < 0.1
        assert a.face_coverage == pytest.approx(b.face_coverage, abs=0.11)


def test_a_voice_alone_a_face_alone_and_every_face(
    engine: merfast.Engine, recording: list[tuple[float, Any, int]]
) -> None:
    for kept, modality in ((True, "audio"), (False, "video")):
        with engine.session(window=2.0, hop=1.0, faces="all", smoothing=2.0) as session:
            push(session, [event for event in recording if bool(event[2]) is kept])
        results = list(session)
        assert len(results) >= 2
        assert all(r.modalities == (modality,) for r in results)
        missing = "video" if kept else "audio"
        assert {r.missing[missing] for r in results} == {f"no {missing} track"}


def test_results_by_callback_by_waiting_and_in_an_event_loop(
    engine: merfast.Engine, recording: list[tuple[float, Any, int]], demo_clip: Path
) -> None:
    expected = list(engine.timeline(demo_clip, window=2.0, hop=1.0))
    called: list[Any] = []
    done = threading.Event()

    def take(result: Any) -> None:
        called.append(result)
        if len(called) == len(expected):
            done.set()
        raise ValueError("a callback's own error")  # which is logged, and harms nothing

    with engine.session(window=2.0, hop=1.0, on_result=take) as session:
        push(session, recording)
    assert done.wait(60)
    same(called, expected)
    assert session.get(timeout=60) is None

    async def listen(session: Session) -> list[Any]:
        return [result async for result in session]

    async def several() -> list[list[Any]]:
        sessions = [engine.session(window=2.0, hop=1.0, name=f"stream {i}") for i in range(3)]
        listeners = [asyncio.ensure_future(listen(s)) for s in sessions]
        await asyncio.sleep(0)
        for s in sessions:
            await asyncio.to_thread(push, s, recording)
            s.close()
        return await asyncio.gather(*listeners)

    for i, results in enumerate(asyncio.run(several())):
        same(results, expected)
        assert {r.source for r in results} == {f"stream {i}"}


def test_waiting_for_a_result_ends_in_time(engine: merfast.Engine) -> None:
    with engine.session() as session, pytest.raises(TimeoutError, match=r"<session>: no result within 0.01 s"):
        session.get(timeout=0.01)
    assert session.get() is None
    assert list(session) == []


def test_reset_begins_anew(engine: merfast.Engine, recording: list[tuple[float, Any, int]], demo_clip: Path) -> None:
    expected = list(engine.timeline(demo_clip, window=2.0, hop=1.0))
    with engine.session(window=2.0, hop=1.0) as session:
        push(session, recording[: len(recording) // 4], 500.0)
        session.reset()
        push(session, recording, 7.0)
    same([r for r in session if r.start < 400], expected, 7.0, 0.02)


def test_cancel_drops_what_waits(engine: merfast.Engine, recording: list[tuple[float, Any, int]]) -> None:
    session = engine.session(window=2.0, hop=0.1)
    push(session, recording)
    session.cancel()
    session.cancel()
    session.close()
    assert len(list(session)) < 20
    with pytest.raises(UsageError, match=r"<session>: is closed"):
        session.push_audio(sound(), 16_000)
    session = engine.session()

    def fail() -> None:
        with session:
            session.push_audio(sound(9.0), 16_000, 0.0)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert "over" in repr(session)


def test_what_comes_out_does_not_depend_on_other_streams(
    engine: merfast.Engine, recording: list[tuple[float, Any, int]], demo_clip: Path
) -> None:
    """One stream among others, one of which sends nonsense."""
    expected = list(engine.timeline(demo_clip, window=2.0, hop=1.0))
    sessions = [engine.session(window=2.0, hop=1.0, name=str(i)) for i in range(4)]
    errors = []
    for i, event in enumerate(recording):
        for session in sessions[:3]:
            push(session, [event])
        try:
            if i % 2:
                sessions[3].push_audio(np.full(16, np.nan), 16_000, i * 1.0)
            else:
                sessions[3].push_frame(np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8), 1e3 - i)
        except MediaError as error:
            errors.append(error)
    for session in sessions:
        session.close()
    for session in sessions[:3]:
        same(list(session), expected)
    assert errors
    assert all(str(error).startswith("3: ") for error in errors)


def test_what_is_too_late_is_refused_and_the_rest_goes_on(recording: list[tuple[float, Any, int]]) -> None:
    """An engine that cannot keep up: every window has a result, and a refusal says so."""
    with merfast.Engine(device="cpu", detector="haar", latency_ms=1) as engine:
        sessions = [engine.session(window=2.0, hop=0.5, name=f"stream {i}") for i in range(6)]
        for event in recording:
            for session in sessions:
                push(session, [event])
        for session in sessions:
            session.close()
        refused = 0
        for i, session in enumerate(sessions):
            results = list(session)
            assert [r.start for r in results] == pytest.approx([0.5 * k for k in range(len(results))])
            failures = [r for r in results if isinstance(r, Failure)]
            assert all(isinstance(f.error, OverloadedError) for f in failures)
            assert all(f"stream {i}: window {f.start:.3f}-{f.end:.3f} s could not" in str(f.error) for f in failures)
            assert session.stats.refused == len(failures)
            refused += len(failures)
        assert refused > 6


def test_pictures_of_a_stream_that_is_shed_are_not_looked_at(
    recording: list[tuple[float, Any, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    with merfast.Engine(device="cpu", detector="haar") as engine:
        session = engine.session(window=2.0, hop=1.0)
        monkeypatch.setattr(session._scheduler.admission, "admits", lambda *args: False)
        detector = session._scheduler.worker.detector
        assert detector is not None
        find = detector.detect
        monkeypatch.setattr(detector, "detect", lambda image: looks.append(1) or find(image))
        push(session, recording)
        session.close()
        results = list(session)
        spans = [(r.start, r.end) for r in results]
        assert spans == [(k, k + 2.0) for k in range(len(spans))]
        assert len(spans) >= 5
        assert {type(r.error) for r in results if isinstance(r, Failure)} == {OverloadedError}
        assert session.stats.refused == session.stats.windows == len(results)
    assert not looks


def test_what_can_wait_is_held_up_instead(
    recording: list[tuple[float, Any, int]], demo_clip: Path, engine: merfast.Engine
) -> None:
    with merfast.Engine(device="cpu", detector="haar", latency_ms=1) as hurried:
        with hurried.session(window=2.0, hop=0.1, overload="wait") as session:
            push(session, recording)
        results = list(session)
    same(results, list(engine.timeline(demo_clip, window=2.0, hop=0.1)))


def test_a_warning_says_where_nothing_was_pushed(engine: merfast.Engine) -> None:
    with engine.session(window=1.0, hop=1.0) as session:
        session.push_audio(sound(3.0), 16_000, 10.0)
        session.push_audio(sound(2.0), 16_000, 100.0)
    results = list(session)
    assert [r.start for r in results] == [10.0, 11.0, 12.0, 100.0, 101.0]
    assert sum((r.warnings for r in results), ()) == ("nothing was pushed from 13.000 to 100.000 s",)


def test_closing_and_draining_an_engine(recording: list[tuple[float, Any, int]], demo_clip: Path) -> None:
    before = threading.active_count()
    engine = merfast.Engine(device="cpu", detector="haar", latency_ms=60_000)
    expected = list(engine.timeline(demo_clip, window=2.0, hop=1.0))
    session = engine.session(window=2.0, hop=1.0)
    push(session, recording)
    future = engine.submit(demo_clip)
    assert engine.drain(timeout=60)
    assert future.done()
    same(list(session), expected)  # it was ended, and none of its windows is lost
    for use in (engine.session, lambda: engine.submit(demo_clip)):
        with pytest.raises(UsageError, match="engine: is draining, and accepts nothing more"):
            use()
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="engine: is closed"):
        engine.submit(demo_clip)
    assert engine.predict([demo_clip])[0].emotion
    assert threading.active_count() == before


def test_an_engine_that_nobody_holds_ends_its_threads(recording: list[tuple[float, Any, int]]) -> None:
    before = threading.active_count()
    engine = merfast.Engine(device="cpu", detector="haar")
    session = engine.session(window=1.0, hop=1.0)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is not None  # the session is one who holds it
    push(session, recording)
    session.close()
    assert len(list(session)) > 1
    del session
    gc.collect()
    assert gone() is None
    assert threading.active_count() == before


def test_a_window_comes_before_anything_after_it(
    engine: merfast.Engine, recording: list[tuple[float, Any, int]], demo_clip: Path
) -> None:
    """Nothing beyond its end and the resampler's few milliseconds has been pushed when a window's result is there."""
    expected = list(engine.timeline(demo_clip, window=2.0, hop=1.0))
    got: list[Any] = []
    with engine.session(window=2.0, hop=1.0) as session:
        pushed = 0
        for k in range(3):
            due = [event for event in recording[pushed:] if event[0] <= 2.0 + k + 0.12]
            push(session, due)
            pushed += len(due)
            got.append(session.get(timeout=60))
    same(got, expected[:3])


def test_faces_are_looked_for_before_a_long_window_is_complete(
    engine: merfast.Engine, recording: list[tuple[float, Any, int]], demo_clip: Path
) -> None:
    with engine.session(window=6.0, hop=6.0) as session:
        push(session, recording[: len(recording) * 3 // 4])
        for _ in range(600):
            if not session._stream.inbox.ready_early:
                break
            threading.Event().wait(0.1)
        assert not session._stream.inbox.ready_early
        push(session, recording[len(recording) * 3 // 4 :])
    same(list(session), list(engine.timeline(demo_clip, window=6.0, hop=6.0)))
