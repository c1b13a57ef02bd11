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

import merfast
from merfast.demo import make_clip
from merfast.errors import ConfigError, MediaError, OverloadedError, UnavailableError, UsageError
from merfast.session import Session
from merfast.types import Failure, Prediction

SIZE = (96, 128)


@pytest.fixture(scope="module")
def engine() -> Iterator[merfast.Engine]:
    with merfast.Engine(device="cpu", detector="haar", latency_ms=60_000) as engine:
        yield engine


@pytest.fixture(scope="module")
def demo_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return make_clip(tmp_path_factory.mktemp("live") / "face.mp4", seconds=6.0)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def recording(demo_clip: Path) -> list[tuple[float, Any, int]]:
    """Events of the demo clip: time, picture or samples, sampling rate or 0."""
    return read(demo_clip)


def read(path: Path) -> list[tuple[float, Any, int]]:
    events: list[tuple[float, Any, int]] = []
    with av.open(str(path)) as container:
        start = (container.start_time or 0) / av.time_base
        for packet in container.demux(container.streams.video[0], container.streams.audio[0]):
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    events.append((frame.time - start, frame, 0))
                else:
                    events.append((frame.time - start, frame.to_ndarray().T, frame.sample_rate))
    return sorted(events, key=lambda event: event[0])


def push(session: Session, events: list[tuple[float, Any, int]], shift: float = 0.0) -> None:
    for time, media, rate in events:
        if rate:
            session.push_audio(media, rate, time + shift)
        else:
            session.push_frame(media, time + shift)


def same(got: list[Any], expected: list[Prediction], shift: float = 0.0, most: float = 1e-4) -> None:
    """Times that are moved are rounded: where a box lies between two pixels, it may become the other one."""
    assert [type(p) for p in got] == [Prediction] * len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.start, a.end) == pytest.approx((b.start + shift, b.end + shift), abs=1e-6)
        assert np.abs(a.probabilities - b.probabilities).max() < most
        assert a.valence == pytest.approx(b.valence, abs=10 * most)
        assert (a.modalities, a.face_coverage, a.track) == (b.modalities, b.face_coverage, b.track)


def sound(seconds: float = 1.0, rate: int = 16_000, level: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(round(seconds * rate)) * level).astype(np.float32)


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


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.array([0.1, np.nan], np.float32), 16_000, "1 NaN or infinite samples of 2"),
        (np.full(4, 3e4, np.float32), 16_000, "expected a full scale of 1"),
        (np.zeros(4, np.int32), 16_000, r"sound: got int32 \[4\], expected float or int16"),
        (np.zeros((2, 2, 2)), 16_000, r"sound: got float64 \[2, 2, 2\]"),
        (np.zeros(4), 0, "a rate of 0, expected a whole number of Hz"),
        (np.zeros(4), 16_000.5, r"a rate of 16000\.5"),
        ("noise", 16_000, "sound: got <U5"),
    ],
)
def test_bad_sound_is_refused_and_changes_nothing(
    engine: merfast.Engine, samples: Any, rate: Any, message: str
) -> None:
    with engine.session(window=1.0, hop=1.0, name="mic") as session:
        with pytest.raises(MediaError, match=f"mic: .*{message}"):
            session.push_audio(samples, rate, 0.0)
        session.push_audio(sound(2.0), 16_000, 5.0)
    assert [(r.start, r.end) for r in session] == [(5.0, 6.0), (6.0, 7.0)]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"got uint8 \[4, 4\], expected uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float32), r"got float32 \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 \[0, 4, 3\]"),
        ((np.zeros((4, 4), np.uint8), np.zeros((2, 3), np.uint8)), r"got planes uint8 \[4, 4\], uint8 \[2, 3\]"),
        ((np.zeros((3, 4), np.uint8), np.zeros((1, 4), np.uint8)), r".*; H and W even"),
        (None, r"got object \[\]"),
    ],
)
def test_bad_pictures_are_refused_and_change_nothing(engine: merfast.Engine, picture: Any, message: str) -> None:
    with engine.session(window=1.0, hop=1.0, name="camera") as session:
        with pytest.raises(MediaError, match=f"camera: picture: {message}"):
            session.push_frame(picture, 0.0)
        for i in range(10):
            session.push_frame(np.zeros((*SIZE, 3), np.uint8), 5.0 + i / 10)
    assert [r.start for r in session] == [5.0]


def test_a_picture_of_another_size(engine: merfast.Engine) -> None:
    with engine.session() as session:
        session.push_frame(np.zeros((90, 160, 3), np.uint8), 0.0)
        with pytest.raises(
            MediaError, match=r"got 80 x 45 pixels, expected 160 x 90 as before \(reset\(\) starts anew"
        ):
            session.push_frame(np.zeros((45, 80, 3), np.uint8), 0.1)
        session.push_frame(np.zeros((90, 160, 3), np.uint8), 0.2)
        session.reset()
        session.push_frame(np.zeros((45, 80, 3), np.uint8), 0.0)


def test_two_threads_may_not_push_one_track_but_each_its_own(
    engine: merfast.Engine, recording: list[tuple[float, Any, int]], demo_clip: Path
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Slow:
        """Samples that take their time to be read."""

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            inside.set()
            assert go_on.wait(30)
            return sound()

    with engine.session() as session:
        pusher = threading.Thread(target=session.push_audio, args=(Slow(), 16_000, 0.0))
        pusher.start()
        assert inside.wait(30)
        with pytest.raises(UsageError, match="two threads push sound at once, expected one"):
            session.push_audio(sound(), 16_000, 1.0)
        session.push_frame(np.zeros((*SIZE, 3), np.uint8), 0.0)  # the other track is another thread's
        go_on.set()
        pusher.join(30)
        session.push_audio(sound(), 16_000, 1.0)
    with engine.session(window=2.0, hop=1.0) as session:
        tracks = [[e for e in recording if bool(e[2]) is kept] for kept in (True, False)]
        meet = threading.Barrier(2)

        def paced(events: list[tuple[float, Any, int]]) -> None:
            for i in range(99):
                meet.wait(30)
                push(session, [e for e in events if i * 0.1 <= e[0] < (i + 1) * 0.1])

        threads = [threading.Thread(target=paced, args=(track,)) for track in tracks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    same(list(session), list(engine.timeline(demo_clip, window=2.0, hop=1.0)))


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


def test_a_window_that_cannot_be_cut_fails_alone(
    engine: merfast.Engine, recording: list[tuple[float, Any, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from merfast.media.faces import DetectorEach

    calls = 0
    original = DetectorEach.detect

    def broken(self: DetectorEach, image: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("odd picture")
        return original(self, image)

    monkeypatch.setattr(DetectorEach, "detect", broken)
    with engine.session(window=1.0, hop=1.0) as session:
        push(session, recording)
    results = list(session)
    failures = [r for r in results if isinstance(r, Failure)]
    assert len(failures) == 1
    assert "odd picture" in str(failures[0].error)
    assert failures[0].end - failures[0].start == pytest.approx(1.0)
    assert [r.start for r in results] == [float(i) for i in range(len(results))]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 99.0}, "window: got 99.0"),
        ({"hop": 0}, "hop: got 0"),
        ({"faces": "some"}, "faces: got 'some'"),
        ({"smoothing": -1.0}, "smoothing: got -1.0"),
        ({"overload": "drop"}, "overload: got 'drop', expected 'reject' or 'wait'"),
        ({"name": ""}, "name: got ''"),
        ({"on_result": 3}, "on_result: got 3"),
        ({"priority": "high"}, "priority: got 'high'"),
    ],
)
def test_bad_options(engine: merfast.Engine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.session(**options)


@pytest.mark.parametrize("option", ["max_wait_ms", "latency_ms", "max_queue"])
@pytest.mark.parametrize("value", [-1, "5", None, float("nan"), float("inf"), True])
def test_bad_limits(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option}: got "):
        merfast.Engine(device="cpu", **{option: value})


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
