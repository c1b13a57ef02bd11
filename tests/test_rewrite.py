"""Videos written anew: every picture and timestamp, colours, sound, orientation, and what is drawn."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from live_servers import transport_stream
from media_files import set_rotation, write_video, write_wav

from merfast.errors import ConfigError, MediaError
from merfast.media.faces import Box
from merfast.media.planes import Coding, Picture, Sprite
from merfast.media.rewrite import rewrite

RATE = 16_000


def nothing(picture: Picture, time: float) -> None:
    return None


def write(source: Path, target: Path, paint=nothing) -> Path:
    rewrite(source, target, paint, threads=1, progress=lambda time: None)
    return target


def scene(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Pictures with a colour in each quarter, and a bar that says which one it is."""
    out = []
    for i in range(count):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        image[: height // 2, : width // 2] = 200, 40, 40
        image[: height // 2, width // 2 :] = 40, 180, 40
        image[height // 2 :, : width // 2] = 40, 40, 200
        image[height // 2 :, width // 2 :] = 210, 210, 60
        image[height // 2 - 3 : height // 2 + 3, : (i + 1) * width // count] = 255
        out.append(image)
    return out


def decoded(path: Path) -> tuple[np.ndarray, list[float]]:
    """Pictures [T, H, W, 3] RGB and their times, from the start of the file."""
    with av.open(str(path)) as media:
        start = media.start_time / av.time_base
        frames = list(media.decode(media.streams.video[0]))
        assert all(frame.rotation == 0 for frame in frames) or path.suffix == ".mov"
        return np.stack([f.to_ndarray(format="rgb24") for f in frames]), [f.time - start for f in frames]


def heard(path: Path) -> tuple[str, bytes, int]:
    """Name of the codec, all packets' bytes, and the number of samples."""
    with av.open(str(path)) as media:
        track = media.streams.audio[0]
        data = b"".join(bytes(p) for p in media.demux(track))
        name = track.codec_context.name
    with av.open(str(path)) as media:
        return name, data, sum(f.samples for f in media.decode(media.streams.audio[0]))


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def off(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_pictures_times_and_sound_stay(tmp_path: Path, suffix: str) -> None:
    source = write_video(tmp_path / "a.mp4", scene(20), fps=25, audio=tone(0.8))
    target = write(source, tmp_path / f"b{suffix}")
    (before, then), (after, now) = decoded(source), decoded(target)
    assert after.shape == before.shape
    assert now == pytest.approx(then, abs=0.0011 if suffix == ".mkv" else 1e-6)
    assert off(before, after) < 3
    (name, sound, _), (same, kept, _) = heard(source), heard(target)
    assert same == name
    assert kept == sound if suffix != ".mkv" else sound.endswith(kept) and len(kept) > 0.85 * len(sound)


def test_a_variable_rate_stays(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.05, 0.3, 0.31, 0.9, 1.0, 1.7]
    source = write_video(tmp_path / "a.mp4", scene(len(times)), pts=times)
    _, now = decoded(write(source, tmp_path / "b.mp4"))
    assert now == pytest.approx(times, abs=1e-4)


def test_late_sound_stays_late(tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as out:
        video, sound = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=RATE, layout="mono")
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for i, image in enumerate(scene(25)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(video.encode(frame))
        for start in range(0, 8192, 1024):
            block = av.AudioFrame.from_ndarray(np.full((1, 1024), 0.2, np.float32), format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE, RATE // 2 + start, Fraction(1, RATE)
            out.mux(sound.encode(block))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))
    with av.open(str(write(source, tmp_path / "b.mp4"))) as media:
        first = next(media.decode(media.streams.audio[0]))
        assert first.time == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(
    ("codec", "suffix", "kept"), [("pcm_s16le", ".mp4", "aac"), ("pcm_s16le", ".mkv", "pcm_s16le")]
)
def test_sound_that_a_container_does_not_take_becomes_aac(tmp_path: Path, codec: str, suffix: str, kept: str) -> None:
    source = write_video(tmp_path / "a.mkv", scene(25), audio=tone(1.0), audio_codec=codec)
    name, _, count = heard(write(source, tmp_path / f"b{suffix}"))
    assert name == kept
    assert count == pytest.approx(RATE, abs=1024)


def test_a_transport_stream(tmp_path: Path, face_clip: Path) -> None:
    """Its AAC has other headers than MP4's, and its clock starts anywhere."""
    source = transport_stream(face_clip, tmp_path / "a.ts")
    target = write(source, tmp_path / "b.mp4")
    (before, then), (after, now) = decoded(source), decoded(target)
    assert len(after) == len(before)
    assert np.array(now) - now[0] == pytest.approx(np.array(then) - then[0], abs=1e-4)
    assert heard(target)[2] == heard(source)[2]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_goes_into_the_pixels(tmp_path: Path, degrees: int) -> None:
    upright = scene(5)
    stored = [np.rot90(image, -degrees // 90) for image in upright]
    source = set_rotation(write_video(tmp_path / "a.mp4", stored), degrees)
    after, _ = decoded(write(source, tmp_path / "b.mp4"))
    assert after.shape[1:3] == (64, 96)
    assert off(np.stack(upright), after) < 6


@pytest.mark.parametrize(("width", "height"), [(97, 65), (33, 64), (16, 16)])
def test_odd_sizes_grow_by_one(tmp_path: Path, width: int, height: int) -> None:
    images = scene(4, width, height)
    source = write_video(tmp_path / "a.mkv", images, codec="ffv1", pix_fmt="yuv420p")
    after, _ = decoded(write(source, tmp_path / "b.mp4"))
    assert after.shape[1:3] == (height + height % 2, width + width % 2)
    assert off(np.stack(images), after[:, :height, :width]) < 10
    assert off(after[:, :, width - 1 :], after[:, :, width - 1 : width]) < 4


def test_pixels_become_square(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", scene(4), pixel_aspect=(4, 3))
    after, _ = decoded(write(source, tmp_path / "b.mp4"))
    assert after.shape[1:3] == (64, 128)


@pytest.mark.parametrize("form", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "bgr0"])
def test_colours_of_any_format(tmp_path: Path, form: str) -> None:
    images = scene(4)
    source = write_video(tmp_path / "a.mkv", images, codec="mjpeg" if form == "yuvj420p" else "ffv1", pix_fmt=form)
    before, _ = decoded(source)
    after, _ = decoded(write(source, tmp_path / "b.mp4"))
    flat = np.s_[:, 4:24, 6:40]  # away from edges, where colours are coarser now
    assert off(before[flat], after[flat]) < 5


def test_what_is_drawn_is_in_its_colour_where_it_belongs(tmp_path: Path) -> None:
    image = np.full((120, 160, 3), 90, dtype=np.uint8)
    source = write_video(tmp_path / "a.mp4", [image] * 3)
    after, _ = decoded(write(source, tmp_path / "b.mp4", lambda p, t: p.outline(Box(80, 60, 60), "#d08400", 6)))
    for x, y in ((80, 30), (80, 90), (50, 60), (110, 60)):
        assert off(after[1, y, x], np.array([0xD0, 0x84, 0x00])) < 20
    for x, y in ((80, 60), (30, 60), (80, 15), (140, 110)):
        assert off(after[1, y, x], image[y, x]) < 4


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("full", [False, True])
def test_a_sprite_has_its_colour(matrix: str, full: bool) -> None:
    """Against swscale's conversion of the same planes."""
    coding = Coding(matrix, full)
    planes = tuple(np.full(size, 128, np.uint8) for size in ((32, 32), (16, 16), (16, 16)))
    picture = Picture(planes, coding)
    image = np.zeros((16, 16, 4), dtype=np.uint8)
    image[...] = 30, 160, 220, 255
    picture.lay(Sprite.of(image, coding), 8, 8)
    frame = av.VideoFrame(32, 32, "yuv420p")
    for plane, values in zip(frame.planes, planes, strict=True):
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width] = values
    space = {"bt601": "ITU601", "bt709": "ITU709"}[matrix]
    out = frame.reformat(format="rgb24", src_colorspace=space, src_color_range="JPEG" if full else "MPEG").to_ndarray()
    assert off(out[16, 16], np.array([30, 160, 220])) < 3
    assert (planes[0][:8] == 128).all()
    assert (planes[0][:, 24:] == 128).all()


@pytest.mark.parametrize(("left", "top"), [(-8, -8), (28, 28), (-100, 0), (0, 50), (3, 5)])
def test_sprites_are_cut_off_at_the_edge(left: int, top: int) -> None:
    coding = Coding("bt601", False)
    picture = Picture(tuple(np.full(s, 16, np.uint8) for s in ((32, 32), (16, 16), (16, 16))), coding)
    picture.lay(Sprite.of(np.full((16, 16, 4), 255, np.uint8), coding), left, top)
    x, y = left - left % 2, top - top % 2
    lit = np.zeros((32, 32), bool)
    lit[max(0, y) : max(0, y + 16), max(0, x) : max(0, x + 16)] = True
    assert ((picture.planes[0] > 200) == lit).all()


def test_failures_leave_nothing_behind(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", scene(4))
    target = tmp_path / "b.mp4"
    target.write_bytes(b"old")

    def fail(picture: Picture, time: float) -> None:
        raise RuntimeError("no paint")

    with pytest.raises(RuntimeError, match="no paint"):
        write(source, target, fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    assert target.read_bytes() == b"old"


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", scene(4))
    with pytest.raises(ConfigError, match=r"b\.mp4: cannot be written"):
        write(source, tmp_path / "none" / "b.mp4")


def test_sound_alone_has_nothing_to_draw_on(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "a.wav", tone(1.0))
    with pytest.raises(MediaError, match=r"a\.wav: holds no pictures to draw on"):
        write(source, tmp_path / "b.mp4")
