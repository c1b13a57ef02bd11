"""The demo clip, and the helpers that write media for other tests."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import set_rotation, truncate, write_video, write_wav

from merfast import demo
from merfast.errors import ConfigError, UnavailableError
from merfast.media.faces import Haar, YuNet


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as media:
        return [f.to_ndarray(format="rgb24") for f in media.decode(video=0)]


def sound(path: Path) -> np.ndarray:
    with av.open(str(path)) as media:
        return np.concatenate([f.to_ndarray()[0] for f in media.decode(audio=0)])


def gradients(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    ramp = np.linspace(0, 200, width, dtype=np.uint8)
    return [np.broadcast_to((ramp + i)[None, :, None], (height, width, 3)) for i in range(count)]


def check_one_face_throughout(path: Path, detector: Haar | YuNet) -> None:
    for i, image in enumerate(pictures(path)):
        found = detector.detect(image)
        assert len(found) == 1, f"frame {i}: {found}"
        assert abs(found[0].x - 240) < 40
        assert 150 < found[0].side < 320


def test_clip_is_what_it_says(face_clip):
    with av.open(str(face_clip)) as media:
        video, audio = media.streams.video[0], media.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (demo.WIDTH, demo.HEIGHT, demo.FPS)
        assert video.codec_context.name == ("h264" if "libx264" in av.codecs_available else "mpeg4")
        assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", demo.RATE, 1)
        assert media.duration / av.time_base == pytest.approx(2.5, abs=0.05)
        assert video.start_time == audio.start_time == 0
    images = pictures(face_clip)
    assert len(images) == 62
    assert np.abs(images[0].astype(int) - images[-1]).mean() > 2  # it moves
    heard = sound(face_clip)
    assert len(heard) / demo.RATE == pytest.approx(2.5, abs=0.1)
    assert 0.05 < np.sqrt(np.mean(heard**2)) < 0.3


def test_haar_sees_the_face_throughout(face_clip):
    check_one_face_throughout(face_clip, Haar())


def test_yunet_sees_the_face_throughout(face_clip, yunet_model):
    check_one_face_throughout(face_clip, YuNet(yunet_model))


def test_babble_is_loud_enough_and_reproducible():
    samples = demo.babble(1.7, rate=16_000)
    assert samples.shape == (27_200,)
    assert samples.dtype == np.float32
    assert np.abs(samples).max() == pytest.approx(0.5)
    np.testing.assert_array_equal(samples, demo.babble(1.7, rate=16_000))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_seconds_out_of_range(tmp_path, seconds):
    with pytest.raises(ConfigError, match="seconds: got"):
        demo.make_clip(tmp_path / "x.mp4", seconds)


def test_shortest_clip(tmp_path, face_clip):
    assert len(pictures(demo.make_clip(tmp_path / "x.mp4", 0.2))) == 5


def test_place_that_cannot_be_written(tmp_path, face_clip):
    for place in (tmp_path / "none" / "x.mp4", tmp_path):
        with pytest.raises(ConfigError, match="cannot be written"):
            demo.make_clip(place, 0.2)


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'merfast\[demo\]'"):
        demo.make_clip(tmp_path / "x.mp4")


# The helpers of media_files.py do what the tests that use them take for granted.


def test_write_video_keeps_times(tmp_path):
    times = [0.0, 0.04, 0.2, 0.21, 0.9]
    path = write_video(tmp_path / "vfr.mp4", gradients(5), pts=times)
    with av.open(str(path)) as media:
        assert [round(f.time, 3) for f in media.decode(video=0)] == times
    path = write_video(tmp_path / "ntsc.mkv", gradients(6), fps=29.97)
    with av.open(str(path)) as media:
        assert [f.time for f in media.decode(video=0)] == pytest.approx([i / 29.97 for i in range(6)], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "audio_codec"),
    [
        ("a.mp4", "libx264", "yuv420p", "aac"),
        ("a.mkv", "libx264", "yuv444p", "pcm_s16le"),
        ("a.mpg", "mpeg2video", "yuv420p", "mp2"),
    ],
)
def test_write_video_with_sound(tmp_path, name, codec, pix_fmt, audio_codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    samples = demo.babble(1.0, rate=16_000)
    path = write_video(
        tmp_path / name, gradients(25), audio=samples, codec=codec, pix_fmt=pix_fmt, audio_codec=audio_codec
    )
    with av.open(str(path)) as media:
        assert media.streams.video[0].codec_context.pix_fmt == pix_fmt
        assert media.streams.audio[0].rate == 16_000
    assert len(pictures(path)) == 25
    assert len(sound(path)) == pytest.approx(16_000, abs=2500)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_set_rotation(tmp_path, degrees):
    path = set_rotation(write_video(tmp_path / "r.mp4", gradients(3)), degrees)
    with av.open(str(path)) as media:
        assert {f.rotation % 360 for f in media.decode(video=0)} == {degrees}


def test_write_wav(tmp_path):
    samples = np.stack([np.linspace(-1, 1, 801), np.zeros(801)], 1)
    with av.open(str(write_wav(tmp_path / "x.wav", samples, 8000))) as media:
        assert (media.streams.audio[0].rate, media.streams.audio[0].channels) == (8000, 2)
        assert sum(f.samples for f in media.decode(audio=0)) == 801


def test_truncate(tmp_path, face_clip):
    whole = len(pictures(face_clip))
    cut = truncate(Path(shutil.copy(face_clip, tmp_path / "cut.mp4")), 0.5)
    with av.open(str(cut)) as media:
        assert media.duration / av.time_base == pytest.approx(2.5, abs=0.05)  # it still says so
        got = 0
        try:
            for _ in media.decode(video=0):
                got += 1
        except av.FFmpegError:
            pass
    assert 5 < got < whole - 5

    source = write_video(tmp_path / "late.mp4", gradients(5), audio=demo.babble(2.0, rate=16_000))
    with pytest.raises(av.FFmpegError):
        av.open(str(truncate(source, 0.5, faststart=False)))
