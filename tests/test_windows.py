"""Cutting into windows: extents, what is missing and why, which face is the main one, and what is kept in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from merfast.config import Preprocessing
from merfast.media.audio import AudioBuffer, AudioTrack
from merfast.media.decode import AudioChunk, Event, Frame, FrameSampler, MediaInfo
from merfast.media.decode_arrays import ArrayFrame
from merfast.media.faces import Box
from merfast.media.tracks import FacesAt, FaceView
from merfast.media.windows import Windower, WindowSpec
from merfast.types import SAMPLE_RATE, Window

PRE = Preprocessing(crop_size=8)


class Recording:
    """Media with a frame every 0.2 s and a ramp for sound, given out in blocks of 0.1 s."""

    def __init__(self, video: float, audio: float, *, level: float = 0.1) -> None:
        self.info = MediaInfo("recording", has_video=video > 0, has_audio=audio > 0)
        self.video, self.audio, self.level = video, audio, level

    def events(self) -> Iterator[Event]:
        for i in range(round(max(self.video, self.audio) * 10)):
            if i / 10 < self.audio - 1e-9:
                count = min(SAMPLE_RATE // 10, round((self.audio - i / 10) * SAMPLE_RATE))
                yield AudioChunk(i * SAMPLE_RATE // 10, np.full(count, self.level, dtype=np.float32))
            if i % 2 == 0 and i / 10 < self.video - 1e-9:
                yield ArrayFrame(np.zeros((4, 4, 3), dtype=np.uint8), i / 10)
        self.info.duration = max(self.video, self.audio)

    def close(self) -> None:
        pass


class Scripted:
    """Faces by script: (track, weight, from, to) in seconds; the crop's value is its track's number."""

    def __init__(self, *script: tuple[int, float, float, float], delay: int = 0) -> None:
        self.script, self.delay = script, delay
        self.waiting: list[Frame] = []
        self.until = -math.inf

    def view(self, frame: Frame) -> FacesAt:
        crop = {n: np.full((8, 8, 3), n, dtype=np.uint8) for n, *_ in self.script}
        seen = {n: FaceView(crop[n], w, Box(0.5, 0.5, 0.2)) for n, w, a, b in self.script if a <= frame.time < b}
        self.until = frame.time
        return FacesAt(frame.time, seen)

    def push(self, frame: Frame) -> Iterator[FacesAt]:
        self.waiting.append(frame)
        if len(self.waiting) > self.delay:
            yield self.view(self.waiting.pop(0))

    def settle(self, time: float) -> Iterator[FacesAt]:
        yield from self.flush()
        self.until = max(self.until, time)

    def flush(self) -> Iterator[FacesAt]:
        while self.waiting:
            yield self.view(self.waiting.pop(0))


def cut(
    media: Recording, length: float, hop: float, *script: tuple[int, float, float, float], every: bool = False
) -> list[list[Window]]:
    faces = Scripted(*script, delay=3)
    windower = Windower(media.info, faces, WindowSpec(length, hop), PRE, every_face=every)
    return list(windower.run(media.events()))


def spans(groups: list[list[Window]]) -> list[tuple[float, float]]:
    return [(round(g[0].start, 6), round(g[0].end, 6)) for g in groups]


@pytest.mark.parametrize(
    ("duration", "length", "hop", "expected"),
    [
        (3.0, 16, 16, [(0, 3)]),
        (8.0, 4, 4, [(0, 4), (4, 8)]),
        (9.0, 4, 4, [(0, 4), (4, 8), (8, 9)]),
        (6.0, 4, 1, [(0, 4), (1, 5), (2, 6)]),
        (6.5, 4, 1, [(0, 4), (1, 5), (2, 6), (3, 6.5)]),
        (8.04, 4, 4, [(0, 4), (4, 8)]),  # the rest is too short for a window of its own
        (9.0, 2, 4, [(0, 2), (4, 6), (8, 9)]),
        (0.1, 4, 1, [(0, 0.1)]),
    ],
)
@pytest.mark.parametrize("kinds", ["both", "audio", "video"])
def test_windows_cover_the_media(
    duration: float, length: float, hop: float, expected: list[tuple[float, float]], kinds: str
) -> None:
    media = Recording(duration if kinds != "audio" else 0, duration if kinds != "video" else 0)
    groups = cut(media, length, hop, (0, 1.0, 0, 99))
    assert spans(groups) == expected
    for (window,) in groups:
        assert len(window.audio) == (0 if kinds == "video" else round((window.end - window.start) * SAMPLE_RATE))


def test_a_window_holds_its_own_frames_and_samples() -> None:
    groups = cut(Recording(8, 8), 4, 2, (0, 1.0, 0, 3), (1, 1.0, 3, 9))
    assert [len(g[0].crops) for g in groups] == [15, 15, 20]
    assert [int(g[0].crops[0, 0, 0, 0]) for g in groups] == [0, 1, 1]
    assert [g[0].sampled for g in groups] == [20, 20, 20]


def test_windows_come_before_the_media_ends() -> None:
    """Memory stays bounded only if nothing waits for the end."""
    media = Recording(60, 60)
    windower = Windower(media.info, Scripted((0, 1.0, 0, 99)), WindowSpec(4, 4), PRE, every_face=False)
    durations = [media.info.duration for _ in windower.run(media.events())]  # known only at the end
    assert len(durations) == 15
    assert set(durations[:-1]) == {0}


def test_missing_modalities_say_why() -> None:
    (silent,) = cut(Recording(2, 2, level=0.0), 4, 4, (0, 1.0, 0, 9))
    assert (silent[0].modalities, silent[0].missing) == (("video",), {"audio": "silent"})
    (mute,) = cut(Recording(2, 0), 4, 4, (0, 1.0, 0, 9))
    assert mute[0].missing == {"audio": "no audio track"}
    (faceless,) = cut(Recording(2, 2), 4, 4)
    assert (faceless[0].modalities, faceless[0].missing) == (("audio",), {"video": "no face found"})
    (voice,) = cut(Recording(0, 2), 4, 4)
    assert voice[0].missing == {"video": "no video track"}
    first, second = cut(Recording(8, 3), 4, 4, (0, 1.0, 0, 4))
    assert (len(first[0].audio), first[0].missing) == (3 * SAMPLE_RATE, {})
    assert second[0].missing == {"audio": "no sound in this stretch", "video": "no face found"}
    assert second[0].modalities == ()


def test_main_face_is_the_larger_and_stays() -> None:
    # Track 1 is a little larger in the second window: not enough to change horses; in the third it is much larger.
    script = ((0, 0.20, 0, 99), (1, 0.10, 0, 4), (1, 0.25, 4, 8), (1, 0.50, 8, 99))
    groups = cut(Recording(12, 0), 4, 4, *script, every=True)
    assert [g[0].track for g in groups] == [0, 0, 1]
    assert [[w.track for w in g[1:]] for g in groups] == [[1], [1], [0]]


def test_other_faces_only_when_wanted_and_not_for_a_blink() -> None:
    script = ((0, 0.5, 0, 9), (1, 0.1, 0, 9), (2, 0.1, 0, 0.5), (3, 0.1, 2, 2.3))
    assert [[w.track for w in g] for g in cut(Recording(3, 0), 4, 4, *script)] == [[0]]
    assert [[w.track for w in g] for g in cut(Recording(3, 0), 4, 4, *script, every=True)] == [[0, 1, 2]]


def test_sampler_takes_the_first_frame_of_each_step() -> None:
    sampler = FrameSampler(5.0)
    thirty = [i / 30 for i in range(31)]
    assert [round(t, 4) for t in thirty if sampler.take(t)] == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    sampler = FrameSampler(5.0)
    rounded = [0.0, 0.199999, 0.4, 0.599999]  # stamps rounded just below the grid still count as on it
    assert [t for t in rounded if sampler.take(t)] == rounded
    sampler = FrameSampler(5.0)
    slides = [0.0, 3.0, 3.1, 3.25, 9.99]  # a picture held for long is looked at once
    assert [t for t in slides if sampler.take(t)] == [0.0, 3.0, 3.25, 9.99]


def test_audio_is_resampled_to_length_and_keeps_its_pitch() -> None:
    track, rate, chunks = AudioTrack("tone"), 44_100, []
    tone = np.sin(2 * np.pi * 440 * np.arange(rate * 2) / rate).astype(np.float32)
    for i in range(0, len(tone), 1024):
        chunks += track.push(tone[i : i + 1024], rate, i / rate)
    chunks += track.flush()
    assert chunks[0].start == 0
    assert [c.start for c in chunks[1:]] == [c.start + len(c.samples) for c in chunks[:-1]]
    out = np.concatenate([c.samples for c in chunks])
    assert len(out) == 2 * SAMPLE_RATE
    expected = np.sin(2 * np.pi * 440 * np.arange(len(out)) / SAMPLE_RATE)
    assert np.abs(out - expected)[400:-400].max() < 1e-3


def test_audio_gap_leaves_a_hole_and_a_rate_change_does_not() -> None:
    track = AudioTrack("gaps")
    ones = np.ones(16_000, dtype=np.float32)
    chunks = track.push(ones, 16_000, 0.5) + track.push(ones, 16_000, 1.51) + track.push(ones, 16_000, 4.0)
    assert [c.start for c in chunks] == [8_000, 24_000, 64_000]  # 10 ms late is rounding, 1.5 s is a gap
    chunks = track.push(np.ones(8_000, dtype=np.float32), 8_000, 5.0) + track.flush()
    assert chunks[0].start == 80_000
    assert sum(len(c.samples) for c in chunks) == 16_000
    assert track.end == pytest.approx(6.0)


def test_audio_buffer_reads_holes_as_zeros_and_forgets() -> None:
    buffer = AudioBuffer()
    for start in (-5, 0, 10, 30):
        buffer.push(AudioChunk(start, np.full(5, start + 1, dtype=np.float32)))
    assert buffer.read(0, 20).tolist() == [1] * 5 + [0] * 5 + [11] * 5
    assert len(buffer.read(20, 30)) == 0
    assert buffer.read(12, 33).tolist() == [11] * 3 + [0] * 15 + [31] * 3
    buffer.forget(15)
    assert len(buffer.read(0, 20)) == 0
    assert buffer.end == 35


@pytest.mark.parametrize(("video", "audio"), [(600, 600), (600, 5), (5, 600)])
def test_what_is_kept_does_not_grow(video: float, audio: float) -> None:
    media = Recording(video, audio)
    windower = Windower(media.info, Scripted((0, 1.0, 0, 999)), WindowSpec(4, 1), PRE, every_face=False)
    views = samples = 0
    for _ in windower.run(media.events()):
        views = max(views, len(windower._seen))
        samples = max(samples, sum(len(c.samples) for c in windower._audio._chunks))
    assert views <= 5 * (4 + 30 + 2)
    assert samples <= SAMPLE_RATE * (4 + 30 + 2)


def test_samples_that_run_ahead_of_their_stamps_are_held_back() -> None:
    track = AudioTrack("drift")
    for i in range(600):
        track.push(np.zeros(16_000, dtype=np.float32), 16_000, i * 0.99)
    assert track.end == pytest.approx(600 * 0.99, abs=0.12)
