"""Decoding of real files written here: timestamps, rotation, pixel aspect, sound, every kind of source, bad input."""

from __future__ import annotations

import io
import platform
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import set_rotation, truncate, write_video, write_wav

from merfast.clip import Clip
from merfast.errors import MediaError, UnavailableError
from merfast.media import decode_torchcodec
from merfast.media.decode import AudioChunk, Frame, MediaInfo, open_media
from merfast.media.source import Source, source_name
from merfast.types import SAMPLE_RATE, ByteArray, FloatArray

DECORD = sys.platform == "linux" and platform.machine() == "x86_64"


def torchcodec_is_here() -> bool:
    try:
        decode_torchcodec.load()
    except UnavailableError:  # it needs FFmpeg's libraries too
        return False
    return True


DECODERS = [
    "pyav",
    pytest.param("decord", marks=pytest.mark.skipif(not DECORD, reason="decord has no wheel here")),
    pytest.param("torchcodec", marks=pytest.mark.skipif(not torchcodec_is_here(), reason="needs torchcodec, FFmpeg")),
]
WIDE, HIGH = 128, 96


def read(
    source: Source, decoder: str = "pyav", rate: float = 5.0, **options: bool
) -> tuple[list[Frame], FloatArray, MediaInfo, int]:
    """Frames, sound, info, and the first sample's place."""
    media = open_media(source, name=source_name(source), decoder=decoder, frame_rate=rate, **options)
    try:
        frames: list[Frame] = []
        sound: list[AudioChunk] = []
        for event in media.events():
            sound.append(event) if isinstance(event, AudioChunk) else frames.append(event)
    finally:
        media.close()
    samples = np.concatenate([c.samples for c in sound]) if sound else np.zeros(0, dtype=np.float32)
    return frames, samples, media.info, sound[0].start if sound else 0


def corner(count: int) -> list[ByteArray]:
    """Grey pictures with a red top left corner, a little brighter with each frame."""
    out = []
    for i in range(count):
        image = np.full((HIGH, WIDE, 3), 60 + 4 * (i % 30), dtype=np.uint8)
        image[: HIGH // 3, : WIDE // 3] = (250, 20, 20)
        out.append(image)
    return out


def is_red(image: ByteArray, y: int, x: int) -> bool:
    r, g, b = (int(v) for v in image[y, x])
    return r > 180 and g < 90 and b < 90


@pytest.fixture
def tone() -> FloatArray:
    t = np.arange(48_000 * 2) / 48_000
    return (0.5 * np.sin(2 * np.pi * 330 * t)).astype(np.float32)


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_and_sound(tmp_path: Path, tone: FloatArray, decoder: str) -> None:
    path = write_video(tmp_path / "a.mp4", corner(50), 25, audio=tone, sample_rate=48_000)
    frames, sound, info, start = read(path, decoder)
    assert [f.time for f in frames] == pytest.approx([i / 5 for i in range(10)], abs=1e-5)
    assert {(f.width, f.height) for f in frames} == {(WIDE, HIGH)}
    images = [f.rgb() for f in frames]
    assert all(i.shape == (HIGH, WIDE, 3) and i.dtype == np.uint8 for i in images)
    assert is_red(images[3], 5, 5)
    # Frame 5 k is 60 + 20 k grey: the frames are those that the timestamps say.
    assert [int(i[-5, -5, 1]) for i in images[:6]] == pytest.approx([60, 80, 100, 120, 140, 160], abs=4)
    assert info.duration == pytest.approx(2.0, abs=0.06)
    assert abs(len(sound) - 2 * SAMPLE_RATE) < 0.06 * SAMPLE_RATE
    assert start == pytest.approx(0, abs=0.05 * SAMPLE_RATE)
    assert np.sqrt((sound[4000:-4000] ** 2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.05)
    assert info.warnings == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_small_keeps_proportions(tmp_path: Path, decoder: str) -> None:
    path = write_video(tmp_path / "a.mp4", corner(5), 25)
    frame = read(path, decoder)[0][0]
    assert frame.small(64).shape == (48, 64, 3)
    assert frame.small(4000).shape == (HIGH, WIDE, 3)
    assert is_red(frame.small(64), 5, 5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_variable_frame_rate_keeps_its_times(tmp_path: Path, decoder: str) -> None:
    times = [0.0, 0.04, 0.5, 0.54, 1.7, 1.74, 1.9]
    path = write_video(tmp_path / "vfr.mp4", corner(7), 25, pts=times)
    frames, _, info, _ = read(path, decoder)
    assert [f.time for f in frames] == pytest.approx([0.0, 0.5, 1.7, 1.9], abs=2e-3)
    assert 1.9 < info.duration < 2.3  # how long the last frame stays is not stored


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, decoder: str, degrees: int) -> None:
    path = write_video(tmp_path / "turned.mp4", corner(5), 25)
    set_rotation(path, degrees)  # counterclockwise, as a player must turn it
    frame = read(path, decoder)[0][0]
    image = frame.rgb()
    assert image.shape == ((HIGH, WIDE, 3) if degrees == 180 else (WIDE, HIGH, 3))
    assert (frame.height, frame.width) == image.shape[:2]
    where = {90: (-5, 5), 180: (-5, -5), 270: (5, -5)}[degrees]
    assert is_red(image, *where)
    assert frame.small(48).shape == ((36, 48, 3) if degrees == 180 else (48, 36, 3))


@pytest.mark.parametrize("decoder", DECODERS)
def test_pixels_become_square(tmp_path: Path, decoder: str) -> None:
    path = write_video(tmp_path / "wide.mp4", corner(5), 25, pixel_aspect=(4, 3))
    frame = read(path, decoder)[0][0]
    assert (frame.width, frame.height) == (round(WIDE * 4 / 3), HIGH)
    assert frame.rgb().shape == (HIGH, round(WIDE * 4 / 3), 3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_paths_bytes_and_files_give_the_same(tmp_path: Path, decoder: str) -> None:
    path = write_video(tmp_path / "a.mp4", corner(10), 25)
    content = path.read_bytes()
    expected = [f.rgb() for f in read(path, decoder)[0]]
    with path.open("rb") as file:
        for source in (str(path), content, bytearray(content), io.BytesIO(content), file):
            got = [f.rgb() for f in read(source, decoder)[0]]
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_sound_only_files(tmp_path: Path, tone: FloatArray) -> None:
    path = write_wav(tmp_path / "a.wav", tone, 48_000)
    frames, sound, info, start = read(path)
    assert (frames, start, info.has_video, info.has_audio) == ([], 0, False, True)
    assert len(sound) == 2 * SAMPLE_RATE
    assert info.duration == pytest.approx(2.0)


def test_video_can_be_left_out(tmp_path: Path, tone: FloatArray) -> None:
    path = write_video(tmp_path / "a.mp4", corner(50), 25, audio=tone, sample_rate=48_000)
    frames, sound, info, _ = read(path, want_video=False)
    assert (len(frames), info.has_video) == (0, True)
    assert len(sound) > SAMPLE_RATE


def test_clip_from_arrays_reads_like_a_file(tone: FloatArray) -> None:
    clip = Clip.from_arrays(np.stack(corner(50)), fps=25, audio=tone, sample_rate=48_000)
    frames, sound, info, _ = read(clip)
    assert [f.time for f in frames] == pytest.approx([i / 5 for i in range(10)])
    assert is_red(frames[0].rgb(), 5, 5)
    assert frames[0].small(64).shape == (48, 64, 3)
    assert (len(sound), info.duration) == (2 * SAMPLE_RATE, 2.0)


@pytest.mark.parametrize("decoder", DECODERS[1:])
def test_decoders_see_the_same_on_real_clips(data_dir: Path, decoder: str) -> None:
    for path in sorted((data_dir / "clips").iterdir()):
        (a, sound_a, info_a, start_a), (b, sound_b, info_b, start_b) = read(path, "pyav"), read(path, decoder)
        assert len(a) == len(b), path.name
        late = max(abs(x.time - y.time) for x, y in zip(a, b, strict=True))
        assert late <= 1e-4, path.name
        assert np.array_equal(sound_a, sound_b), path.name
        assert start_a == start_b
        assert info_a.duration == pytest.approx(info_b.duration, abs=0.1)


def test_names_of_sources() -> None:
    assert source_name("x/y.mp4") == "x/y.mp4"
    assert source_name(Path("x/y.mp4")) == str(Path("x/y.mp4"))
    assert source_name(b"123", 4) == "<bytes #4>"
    assert source_name(io.BytesIO(b"123"), 5) == "<stream #5>"
    assert source_name(Clip.from_arrays(audio=np.zeros(9, np.float32), sample_rate=9, name="me")) == "me"


def bad_file(folder: Path, kind: str) -> object:
    path = folder / "bad.mp4"
    whole = folder / "whole.mp4"
    match kind:
        case "missing":
            pass
        case "empty":
            path.touch()
        case "text":
            path.write_text("This is a letter, not a film.\n" * 50)
        case "noise":
            path.write_bytes(np.random.default_rng(0).bytes(20_000))
        case "folder":
            path.mkdir()
        case "index lost" | "data lost":
            write_video(whole, corner(100), 25)
            truncate(whole, 0.6, faststart=kind == "data lost").rename(path)
        case "zero bytes":
            return b""
        case "text mode":
            path.write_text("x")
            return path.open()
        case "number":
            return 17
        case "subtitles":
            path = folder / "bad.srt"
            path.write_text("1\n00:00:01,000 --> 00:00:02,000\nHello\n")
        case "unread url":
            return "http://127.0.0.1:9/x.mp4"
    return path


BAD = {
    "missing": "no such file",
    "empty": "is empty",
    "text": "cannot be read as media",
    "noise": "cannot be read as media",
    "folder": "is a directory",
    "index lost": "cannot be read as media",
    "data lost": "is truncated: its header says 4.00 s, its data ends at",
    "zero bytes": "is empty",
    "text mode": "binary mode",
    "number": "got int, expected a path",
    "subtitles": "neither a video nor an audio stream",
    "unread url": "cannot be read as media",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_sources_are_named_with_the_reason(tmp_path: Path, kind: str) -> None:
    source = bad_file(tmp_path, kind)
    with pytest.raises(MediaError) as caught:
        read(source)  # type: ignore[arg-type]
    assert BAD[kind] in str(caught.value)
    assert str(caught.value).startswith(f"{source_name(source)}: ")  # type: ignore[arg-type]
    if kind == "text mode":
        source.close()  # type: ignore[attr-defined]


def test_damage_inside_is_reported_not_fatal(tmp_path: Path) -> None:
    path = write_video(tmp_path / "hurt.mp4", corner(100), 25, faststart=True)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    frames, _, info, _ = read(bytes(content))
    assert len(frames) >= 15
    assert len(info.warnings) <= 1


NOT_A_NUMBER = np.array([0.0, np.nan, 0.1, np.inf], dtype=np.float32)


def test_samples_that_are_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"me: audio: got 2 NaN or infinite samples of 4"):
        Clip.from_arrays(audio=NOT_A_NUMBER, sample_rate=16_000, name="me")
    path = tmp_path / "nan.wav"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_f32le", rate=16_000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.tile(NOT_A_NUMBER, (1, 4000)), format="flt", layout="mono")
        block.sample_rate = 16_000
        out.mux([*stream.encode(block), *stream.encode(None)])
    with pytest.raises(MediaError, match=r"nan\.wav: audio: got \d+ NaN or infinite samples"):
        read(path)


PICTURES = np.zeros((3, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "holds neither frames nor audio"),
        ({"audio": np.zeros(0, np.float32), "sample_rate": 16_000}, "holds neither frames nor audio"),
        ({"frames": PICTURES[:0], "fps": 25}, "holds neither frames nor audio"),
        ({"frames": PICTURES}, "fps: got None"),
        ({"frames": PICTURES, "fps": 0}, "fps: got 0"),
        ({"frames": PICTURES, "fps": float("nan")}, "fps: got nan"),
        ({"frames": PICTURES.astype(np.float32), "fps": 25}, r"frames: got float32 \[3, 8, 8, 3\], expected uint8"),
        ({"frames": PICTURES[..., 0], "fps": 25}, r"frames: got uint8 \[3, 8, 8\]"),
        ({"frames": PICTURES[:, :0], "fps": 25}, "empty pictures"),
        ({"frames": PICTURES, "times": [0, 1]}, r"times: got shape \[2\], expected \[3\]"),
        ({"frames": PICTURES, "times": [0, 2, 1]}, "not decreasing"),
        ({"frames": PICTURES, "times": [0, 1, float("inf")]}, "finite"),
        ({"audio": np.zeros((9, 2), np.float32), "sample_rate": 16_000}, r"audio: got float32 \[9, 2\]"),
        ({"audio": np.zeros(9, np.int16), "sample_rate": 16_000}, r"audio: got int16 \[9\], expected float"),
        ({"audio": np.zeros(9, np.float32)}, "sample_rate: got None"),
        ({"audio": np.zeros(9, np.float32), "sample_rate": -1}, "sample_rate: got -1"),
        ({"frames": PICTURES, "fps": 25, "faces": "maybe"}, "faces: got 'maybe'"),
    ],
)
def test_bad_arrays(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(MediaError, match=message):
        Clip.from_arrays(**arguments, name="mine")  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", DECODERS[:2])  # torchcodec cannot seek in it
def test_an_audio_track_without_samples(tmp_path: Path, decoder: str) -> None:
    path = write_video(tmp_path / "mute.mkv", corner(25), 25, audio=np.zeros(0, dtype=np.float32))
    frames, sound, info, _ = read(path, decoder)
    assert (len(frames), len(sound), info.has_audio) == (5, 0, True)
    assert info.duration == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_last_picture_that_stays_is_no_truncation(tmp_path: Path, suffix: str) -> None:
    short = write_video(tmp_path / f"short{suffix}", corner(50), 25)
    path = tmp_path / f"slide{suffix}"
    with av.open(str(short)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [p for p in source.demux() if p.dts is not None]
        packets[-1].duration = round(5 / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            out.mux(packet)
    frames, _, info, _ = read(path)
    assert len(frames) == 10
    assert info.warnings == []
