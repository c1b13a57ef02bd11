"""What can be read, and what is refused before it can do harm."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from media_files import write_video, write_wav

import merfast
from merfast.clip import Clip
from merfast.media import windows
from merfast.media.decode import AudioChunk, Event, open_media
from merfast.media.source import check_source, source_name
from merfast.media.timestamps import Continuity
from merfast.types import SAMPLE_RATE, Failure, Prediction

pytestmark = pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")


@pytest.fixture(scope="module")
def engine() -> merfast.Engine:
    return merfast.Engine(detector="haar")


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE)).astype(np.float32)


@pytest.fixture
def wav(tmp_path: Path, noise: np.ndarray) -> Path:
    return write_wav(tmp_path / "a.wav", noise)


def predict(engine: merfast.Engine, *items: object) -> list[Prediction | Failure]:
    return engine.predict(items, on_error="return")  # type: ignore[arg-type]


def reason(result: Prediction | Failure) -> str:
    assert isinstance(result, Failure)
    return str(result.error)


class Greedy(io.BytesIO):
    """Gives more than it is asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(-1 if size is None or size < 0 else size + 100)


class Wordy(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return "text"  # type: ignore[return-value]


def test_file_objects_that_break_their_word_are_refused(engine: merfast.Engine, wav: Path) -> None:
    content = wav.read_bytes() * 4
    greedy, wordy = predict(engine, Greedy(content), Wordy(content))
    assert "expected no more than asked for" in reason(greedy)
    assert "gave str, expected bytes" in reason(wordy)


def test_file_objects_are_read_from_their_start(engine: merfast.Engine, wav: Path, tmp_path: Path) -> None:
    at_end = io.BytesIO(wav.read_bytes())
    at_end.seek(0, io.SEEK_END)
    packed = tmp_path / "a.wav.gz"
    packed.write_bytes(gzip.compress(wav.read_bytes()))
    with gzip.open(packed) as unpacked:
        a, b, c = predict(engine, wav, at_end, unpacked)
    assert isinstance(a, Prediction)
    for other in (b, c):
        assert isinstance(other, Prediction)
        assert np.abs(a.probabilities - other.probabilities).max() <= 1e-5


def test_one_file_object_cannot_be_two_items(engine: merfast.Engine, wav: Path) -> None:
    with wav.open("rb") as file, pytest.raises(merfast.ConfigError, match="1 is the same open file as 0"):
        engine.predict([file, file])


@pytest.mark.parametrize("kind", ["file", "bytesio", "bytearray", "array", "path-like"])
def test_a_single_item_is_not_taken_for_a_list(engine: merfast.Engine, wav: Path, kind: str) -> None:
    content = wav.read_bytes()
    item = {
        "file": io.BytesIO(content),
        "bytesio": io.BufferedReader(io.BytesIO(content)),  # type: ignore[arg-type]
        "bytearray": bytearray(content),
        "array": np.zeros((2, 4, 4, 3), np.uint8),
        "path-like": wav,
    }[kind]
    with pytest.raises(merfast.ConfigError, match="expected a list"):
        engine.predict(item)  # type: ignore[call-overload]


def test_names_that_look_like_protocols(tmp_path: Path, wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("talk:1.wav").write_bytes(wav.read_bytes())
    (p,) = merfast.Engine(detector="none").predict(["talk:1.wav"])
    assert p.source == "talk:1.wav"


def test_any_path_like_and_no_empty_path(wav: Path) -> None:
    class Place(os.PathLike[str]):
        def __fspath__(self) -> str:
            return str(wav)

    assert check_source(Place(), "x") == str(wav)
    assert source_name("") == "''"
    with pytest.raises(merfast.MediaError, match="empty path"):
        check_source("", source_name(""))
    with pytest.raises(merfast.MediaError, match="cannot be opened"):
        check_source("x" * 5000, "long")


@pytest.mark.parametrize("wrap", [str, Path.read_bytes])
def test_wav_that_is_cut_short(engine: merfast.Engine, wav: Path, wrap: object) -> None:
    wav.write_bytes(wav.read_bytes()[:60_000])
    (cut,) = predict(engine, wrap(wav))  # type: ignore[operator]
    assert "is truncated: its header says 128044 bytes, it has 60000" in reason(cut)


def test_samples_of_another_scale_are_refused(engine: merfast.Engine, noise: np.ndarray) -> None:
    with pytest.raises(merfast.MediaError, match=r"got samples up to \d+.*expected a full scale of 1"):
        Clip.from_arrays(audio=noise * 32768, sample_rate=SAMPLE_RATE)
    (p,) = engine.predict([Clip.from_arrays(audio=noise * 100, sample_rate=SAMPLE_RATE)])
    assert p.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_an_unknown_codec_leaves_the_other_track(engine: merfast.Engine, face_clip: Path) -> None:
    content = face_clip.read_bytes()
    assert b"avc1" in content
    (p,) = predict(engine, content.replace(b"avc1", b"zzz1").replace(b"avcC", b"zzzC"))
    assert isinstance(p, Prediction)
    assert (p.modalities, p.missing) == (("audio",), {"video": "FFmpeg has no decoder for the video track's codec"})


def test_failures_do_not_keep_what_failed(engine: merfast.Engine) -> None:
    (failure,) = predict(engine, b"no film at all " * 99)
    assert isinstance(failure, Failure)
    link: BaseException | None = failure.error
    while link is not None:
        assert link.__traceback__ is None
        link = link.__cause__ or link.__context__


def test_streams_that_restart_go_on(tmp_path: Path, noise: np.ndarray) -> None:
    """Two recordings one behind the other, each with clocks of its own, sound and picture still together."""
    frames = [np.full((64, 64, 3), 250 if i == 50 else 20, dtype=np.uint8) for i in range(100)]
    beep = np.zeros_like(noise)
    beep[2 * SAMPLE_RATE : 2 * SAMPLE_RATE + 800] = 0.5
    one = write_video(tmp_path / "a.ts", frames, 25, audio=beep, sample_rate=SAMPLE_RATE)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() * 2)
    media = open_media(both, name="both", decoder="pyav", frame_rate=25)
    flashes, loud = [], []
    for event in media.events():
        if isinstance(event, AudioChunk):
            loud += [(event.start + i) / SAMPLE_RATE for i in np.flatnonzero(np.abs(event.samples) > 0.2)[:1]]
        elif event.rgb().mean() > 150:
            flashes.append(event.time)
    media.close()
    assert media.info.duration == pytest.approx(8, abs=0.3)
    assert flashes == pytest.approx([2.0, 6.0], abs=0.2)
    beeps = [t for i, t in enumerate(loud) if i == 0 or t - loud[i - 1] > 1]
    assert beeps == pytest.approx(flashes, abs=0.1)
    assert media.info.warnings == ["timestamps jump 1 times; the jumps were closed"]


@pytest.mark.parametrize(("gap", "end"), [(1e6, 1.9), (120.0, 121.9)])
def test_a_far_jump_is_closed_and_a_pause_is_kept(tmp_path: Path, gap: float, end: float) -> None:
    frames = [np.full((64, 64, 3), 90, dtype=np.uint8)] * 20
    times = [i / 10 + gap * (i >= 10) for i in range(20)]
    path = write_video(tmp_path / "jump.mkv", frames, 10, pts=times)
    media = open_media(path, name="jump", decoder="pyav", frame_rate=10)
    seen = [e.time for e in media.events() if not isinstance(e, AudioChunk)]
    media.close()
    assert len(seen) == 20
    assert seen[-1] == pytest.approx(end, abs=0.2)
    assert len(media.info.warnings) == (gap > 1000)


def test_continuity_keeps_streams_in_step() -> None:
    clock = Continuity()
    for i in range(10):
        assert clock.shift(0, i * 1.0, 1.0) == 0
        assert clock.shift(1, i * 1.0, 0.98) == 0
    assert clock.shift(1, 8.5, 1.0) == 0  # late by a little
    assert clock.shift(0, 0.0, 1.0) == pytest.approx(10.0)
    assert clock.shift(1, 0.0, 0.98) == pytest.approx(10.0)  # not 9.98: the first stream's shift holds
    assert clock.shift(1, 0.9, 1.0) == pytest.approx(10.0)
    assert clock.jumps == 1
    assert clock.shift(0, 5000.0, 1.0) == pytest.approx(11.9 - 5000.0)
    assert clock.jumps == 2


def test_streams_of_unequal_length_stay_in_step_over_many_joins() -> None:
    clock = Continuity()
    for segment in range(6):
        shifts = {round(clock.shift(0, t / 10, 0.1), 6) for t in range(20)}  # 2 s of pictures
        shifts |= {round(clock.shift(1, t / 10, 0.1), 6) for t in range(36)}  # 3.6 s of sound
        assert max(abs(s - 3.6 * segment) for s in shifts) < 1e-6
    assert clock.jumps == 5


def test_a_timeline_does_not_wait_for_a_track_that_is_over(engine: merfast.Engine, noise: np.ndarray) -> None:
    """One picture, then sound alone: windows come while the sound is being read."""
    clip = Clip.from_arrays(
        np.zeros((1, 64, 64, 3), np.uint8), fps=25, audio=np.tile(noise, 15), sample_rate=SAMPLE_RATE
    )
    media = open_media(clip, name="clip", decoder="pyav", frame_rate=5)
    media.info.lag = 5.0
    spec = windows.WindowSpec(4, 4)
    from merfast.media.tracks import GivenFaces

    windower = windows.Windower(media.info, GivenFaces(64), spec, engine.bundle.config.preprocessing, every_face=False)
    heard = 0.0
    original = media.events

    def watched() -> Iterator[Event]:
        nonlocal heard
        for event in original():
            heard = (event.start + len(event.samples)) / SAMPLE_RATE if isinstance(event, AudioChunk) else heard
            yield event

    ends = [(group[0].end, heard) for group in windower.run(watched())]
    assert len(ends) == 15
    assert all(heard <= end + 5.0 + 2.0 for end, heard in ends[:-2])
    assert media.info.warnings == []
