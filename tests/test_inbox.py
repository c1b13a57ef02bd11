"""What is pushed to a live stream: order, lateness, pauses, clocks, and when windows are complete."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merfast.errors import MediaError
from merfast.media.audio import AudioBuffer
from merfast.media.decode import Frame, FrameSampler
from merfast.media.decode_arrays import ArrayFrame
from merfast.media.inbox import HOLD, Inbox
from merfast.media.windows import WindowSpec
from merfast.types import SAMPLE_RATE

PICTURE = np.zeros((2, 2, 3), np.uint8)


def inbox(length: float = 4.0, hop: float = 1.0, tracks: tuple[str, ...] = ("audio", "video")) -> Inbox:
    return Inbox("stream", WindowSpec(length, hop), 5.0, tracks)


def make(time: float) -> Frame:
    return ArrayFrame(PICTURE, time)


def ramp(start: float, seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Samples that tell their time."""
    return (np.arange(round(start * rate), round((start + seconds) * rate)) / rate / 100).astype(np.float32)


def sound(box: Inbox, start: float, seconds: float, at: float = 0.0) -> None:
    box.push_audio(ramp(start, seconds), SAMPLE_RATE, at + start)


def heard(box: Inbox, start: float, end: float) -> np.ndarray:
    buffer = AudioBuffer()
    for chunk in box.take(None)[0]:
        buffer.push(chunk)
    return buffer.read(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))


def complete(box: Inbox) -> list[int]:
    box.advance(0.0)
    return [k for k, _ in box.complete]


def test_a_window_waits_for_both_tracks() -> None:
    box = inbox()
    for i in range(50):
        box.push_frame(7.0 + i / 10, make)
    assert box.origin == 7.0
    assert complete(box) == [0]  # by the picture, as no sound came within the hold
    box = inbox()
    sound(box, 0, 3.5, at=7.0)
    for i in range(44):
        box.push_frame(7.0 + i / 10, make)
    assert complete(box) == []  # picture at 4.3, sound at 3.5
    sound(box, 3.5, 0.4, at=7.0)
    assert complete(box) == []
    sound(box, 3.9, 0.2, at=7.0)
    assert complete(box) == [0]


def test_a_track_that_stalls_is_waited_for_once() -> None:
    box = inbox()
    sound(box, 0, 2.0)
    done = []
    for i in range(91):
        box.push_frame(i / 10, make)
        done.append(len(complete(box)))
    assert [i for i in range(1, 91) if done[i] > done[i - 1]] == [45, 50, 60, 70, 80, 90]
    sound(box, 2.0, 7.05)  # it is back: from now on it is waited for again
    box.push_frame(9.1, make)
    assert len(complete(box)) == 6
    box.push_frame(10.2, make)
    assert len(complete(box)) == 6
    sound(box, 9.05, 1.0)
    assert len(complete(box)) == 7


def test_only_the_tracks_that_are_read_are_waited_for() -> None:
    box = inbox(tracks=("audio",))
    sound(box, 0, 4.0)
    assert complete(box) == [0]


@given(st.lists(st.permutations(range(4)), min_size=3, max_size=3))
def test_blocks_and_pictures_out_of_order(order: list[list[int]]) -> None:
    box = inbox(length=8.0, hop=8.0)
    box.push_frame(0.0, make)
    sound(box, 0.0, 1 / 20)
    for i in (1 + 4 * group + place for group, places in enumerate(order) for place in places):
        sound(box, i / 20, 1 / 20)
        box.push_frame(i / 20, make)
    box.finish(0.0)
    assert box.late_seconds == 0
    assert box.late_frames == 0
    frames = box._frames
    assert [frames[part][0] for part in sorted(frames)] == [0.0, 0.2, 0.4, 0.6]
    assert np.array_equal(heard(box, 0.0, 0.65), ramp(0, 0.65))


@given(st.lists(st.floats(0, 0.35), min_size=1, max_size=60))
def test_the_pictures_kept_are_those_that_a_file_gives(steps: list[float]) -> None:
    times = np.cumsum([0.0, *steps])
    sampler = FrameSampler(5.0)
    expected = [t for t in times if sampler.take(t)]
    box = inbox(length=16.0, hop=16.0)
    for t in times:
        box.push_frame(float(t), make)
    assert [t for t, _ in (box._frames[part] for part in sorted(box._frames))] == expected


def test_what_comes_after_its_window_is_late() -> None:
    box = inbox(length=1.0, hop=1.0)
    sound(box, 0, 1.5)
    for i in range(15):
        box.push_frame(i / 10, make)
    assert complete(box) == [0]
    _, frames = box.take(0)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    box.push_frame(0.7, make)
    assert (box.late_frames, box.late_seconds) == (1, 0)
    sound(box, 0.6, 0.2)
    assert box.late_seconds == pytest.approx(0.2)
    box.push_frame(1.45, make)
    _, frames = box.take(None)
    assert [frame.time for frame in frames] == pytest.approx([1.0, 1.2, 1.4])


def test_a_missing_block_of_sound_is_waited_for() -> None:
    box = inbox(tracks=("audio",), length=2.0, hop=2.0)
    sound(box, 0, 1.0)
    sound(box, 1.2, 0.1)
    assert complete(box) == []
    sound(box, 1.0, 0.2)  # here it comes
    sound(box, 1.3, 0.7)
    assert complete(box) == [0]
    assert np.array_equal(heard(box, 0, 2), ramp(0, 2))


def test_a_block_that_never_comes_is_silence() -> None:
    box = inbox(tracks=("audio",), length=2.0, hop=2.0)
    sound(box, 0, 1.0)
    sound(box, 1.5, 0.6)
    assert complete(box) == [0]
    got = heard(box, 0, 2)
    assert not got[SAMPLE_RATE : SAMPLE_RATE * 3 // 2].any()
    assert np.array_equal(got[SAMPLE_RATE * 3 // 2 :], ramp(1.5, 0.5))


@pytest.mark.parametrize("drift", [0.99, 1.01])
def test_sound_follows_its_times_where_its_rate_is_wrong(drift: float) -> None:
    """A clock that is one percent off, for 200 s: a sound at a known time stays where its picture is, to 0.1 s."""
    box = inbox(tracks=("audio",), length=16.0, hop=16.0)
    true_rate = SAMPLE_RATE * drift
    buffer, block = AudioBuffer(), 1600
    for i in range(int(200 * true_rate / block)):
        times = (i * block + np.arange(block)) / true_rate
        box.push_audio((times / 1000).astype(np.float32), SAMPLE_RATE, i * block / true_rate)
        for chunk in box.take(None)[0] if i % 100 == 0 else ():
            buffer.push(chunk)
    box.finish(0.0)
    for chunk in box.take(None)[0]:
        buffer.push(chunk)
    got = buffer.read(0, 199 * SAMPLE_RATE)
    said = got * 1000
    error = np.abs(said - np.arange(len(got)) / SAMPLE_RATE)[got != 0]
    assert error.max() < 0.15
    assert (got != 0).mean() > 0.98


def test_sound_without_times_follows_its_count_and_any_rate() -> None:
    box = inbox(tracks=("audio",))
    for rate in (16000, 48000, 8000, 44100):
        for _ in range(10):
            box.push_audio(np.full(rate // 10, 0.5, np.float32), rate, None)
    assert complete(box) == []  # a few milliseconds of the last second are still in the resampler
    box.finish(0.0)
    assert [k for k, _ in box.complete] == [0]
    got = heard(box, 0, 4)
    assert len(got) == 4 * SAMPLE_RATE
    assert np.abs(np.delete(got, range(60_000, 64_000)) - 0.5)[2000:14000].max() < 1e-3


def test_windows_without_anything_do_not_exist() -> None:
    box = inbox()
    sound(box, 0, 10.0)
    box.push_frame(0.0, make)
    assert complete(box) == [0, 1, 2, 3, 4, 5, 6]
    sound(box, 1000.0, 10.0)
    box.advance(0.0)
    numbers = [k for k, _ in box.complete]
    assert numbers == [*range(10), *range(997, 1007)]
    assert box.pauses == [(10.0, 1000.0)]


def test_a_pause_with_windows_apart() -> None:
    box = inbox(length=1.0, hop=5.0, tracks=("audio",))
    sound(box, 0, 6.2)
    sound(box, 20.1, 10.0)
    box.advance(0.0)
    spec = WindowSpec(1.0, 5.0)
    assert all(spec.end(k) <= 6.2 or spec.end(k) > 20.1 for k, _ in box.complete)
    assert [k for k, _ in box.complete] == [0, 1, 4, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "now", True])
def test_times_that_are_none(bad: object) -> None:
    box = inbox()
    with pytest.raises(MediaError, match=r"stream: picture: got time .*expected seconds"):
        box.push_frame(bad, make)
    assert box.origin is None


def test_times_that_go_back() -> None:
    box = inbox()
    box.push_frame(100.0, make)
    box.push_frame(110.0, make)
    with pytest.raises(MediaError, match=r"picture: got time 108.500 s after 110.000 s, expected times that rise"):
        box.push_frame(108.5, make)
    sound(box, 0, 5.0, at=105.0)
    with pytest.raises(MediaError, match=r"sound: got time 105.000 s after 110.000 s"):
        sound(box, 0, 1.0, at=105.0)
    box.push_frame(109.5, make)
    assert box._seen == 10.0


def test_two_clocks() -> None:
    box = inbox()
    sound(box, 0, 1.0)
    with pytest.raises(MediaError, match=r"picture: begins at 1700000000.000 s, while the other track is at 1.000 s"):
        box.push_frame(1.7e9, make)


def test_what_is_kept_does_not_grow_where_nothing_is_taken() -> None:
    """A stream whose windows are all refused."""
    box = inbox()
    for i in range(6000):
        box.push_frame(i / 10, make)
        sound(box, i / 10, 0.1)
        box.advance(0.0)
        while box.complete:
            box.complete.popleft()
            box.drop()
    assert len(box._frames) <= 5 * (4 + 2)
    assert sum(len(c.samples) for c in box._chunks) <= (4 + 2) * SAMPLE_RATE
    assert not box._held


def test_pictures_that_are_taken_early_leave_the_sound_alone() -> None:
    """The picture is ahead of the sound by nearly what a window waits for."""
    box, events, early = inbox(), [], 0
    for i in range(100):
        box.push_frame(i / 10 + 0.45, make)
        sound(box, i / 10, 0.1)
        box.advance(0.0)
        while box.complete:
            chunks, frames = box.take(box.complete.popleft()[0])
            events += [*chunks, *frames]
        if box.ready_early:
            frames = box.take_early()
            early += len(frames)
            events += frames
            assert not box.ready_early
    assert early > 3
    assert box.late_seconds == 0
    assert box.late_frames == 0
    times = [e.time for e in events if isinstance(e, ArrayFrame)]
    assert times == sorted(times)
    assert np.diff(times) == pytest.approx(0.2)


def test_the_end_of_a_stream() -> None:
    box = inbox()
    sound(box, 0, 6.5)
    for i in range(130):
        box.push_frame(i / 20, make)
    box.finish(0.0)
    assert [k for k, _ in box.complete] == [0, 1, 2]
    assert box.end == pytest.approx(6.5, abs=1e-6)
    assert HOLD > 0
