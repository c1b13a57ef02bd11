"""What may be wrong with what is pushed into a session: a clear error, and the stream goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import SIZE, push, same, sound

import merfast
from merfast.errors import ConfigError, MediaError, UsageError
from merfast.types import Failure


@pytest.fixture(scope="module")
def engine() -> Iterator[merfast.Engine]:
    with merfast.Engine(device="cpu", detector="haar", latency_ms=60_000) as engine:
        yield engine


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
