"""Cameras and microphones: what names one, pictures and sound on one clock, readers that are behind, and closing.

There is no camera here: files stand in for it, read by the same OpenCV and FFmpeg interfaces.
"""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import write_video

import merfast
from merfast.media import decode_camera, devices, source
from merfast.media.decode import AudioChunk, open_media
from merfast.media.decode_camera import CameraMedia
from merfast.media.source import Device, check_source
from merfast.types import SAMPLE_RATE

pytestmark = pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")

TONE = ("lavfi", "sine=frequency=200:sample_rate=48000,arealtime")
"""A microphone: a tone of 200 Hz, as long as it is listened to."""


@pytest.fixture
def camera(face_clip: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file in the place of a video device, whose pictures come when they are due, by OpenCV."""
    monkeypatch.setattr(devices, "CAMERA_FORMAT", "no-such")
    monkeypatch.setattr(source, "is_camera", lambda path: path == str(face_clip))
    grab = devices.OpenCVCamera.grab
    began: list[float] = []

    def paced(self: devices.OpenCVCamera) -> float | None:
        stamp = grab(self)
        assert stamp is not None
        began[:] = began or [time.monotonic() - stamp]
        time.sleep(max(0.0, began[0] + stamp - time.monotonic()))
        return stamp

    monkeypatch.setattr(devices.OpenCVCamera, "grab", paced)
    return str(face_clip)


def media_of(camera: str | None, microphone: tuple[str, str] | None = None, rate: float = 5.0) -> CameraMedia:
    return CameraMedia(Device(camera, microphone), "cam", frame_rate=rate, want_video=True)


def handles() -> tuple[list[str], set[str]]:
    """Names of the threads, and what is open."""
    gc.collect()
    links = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            links.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # that of the listing
            continue
    return sorted(t.name for t in threading.enumerate()), links


def eventually(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# What names a device.


@pytest.mark.parametrize("name", ["/dev/video999", "camera:999", "/dev/video999+alsa:default", "/dev/v4l/by-id/no"])
def test_a_camera_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(merfast.MediaError, match="no such camera") as caught:
        check_source(name, name)
    assert str(caught.value).startswith(f"{name}: ")
    with pytest.raises(merfast.MediaError, match="no such camera"):
        list(merfast.Engine(detector="haar").timeline(name))


def test_a_device_without_a_driver_cannot_be_opened(tmp_path: Path) -> None:
    node = tmp_path / "webcam"
    try:
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(81, 63))
    except OSError:
        pytest.skip("device nodes cannot be made here")
    with pytest.raises(merfast.MediaError, match=r"webcam: the camera cannot be opened \(No such device"):
        check_source(str(node), str(node))


def test_a_microphone_may_stand_alone_or_behind_a_camera(camera: str) -> None:
    assert check_source(f"{camera}+alsa:hw:1,0", "x") == Device(camera, ("alsa", "hw:1,0"))
    assert check_source("pulse:default", "x") == Device(None, ("pulse", "default"))
    assert check_source(Path(camera), "x") == Device(camera, None)


def test_what_is_no_camera_takes_no_microphone(tmp_path: Path) -> None:
    with pytest.raises(merfast.MediaError, match=r"'a\.mp4' is no camera, expected one like /dev/video0"):
        check_source("a.mp4+alsa:default", "x")
    for other in ("/dev/null", "rtsp://host/a+b", str(tmp_path / "a+b.mp4")):
        assert not source.is_camera(other)
    (tmp_path / "alsa:x").write_bytes(b"some")
    assert check_source(f"{tmp_path}/alsa:x", "x") == f"{tmp_path}/alsa:x"


@pytest.mark.parametrize(
    ("interface", "why"), [("v4l2", "Inappropriate ioctl for device"), ("no-such", "OpenCV gets no pictures from it")]
)
def test_what_gives_no_pictures_is_named(
    interface: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if interface == "v4l2" and not devices.has_format("v4l2"):
        pytest.skip("this build of PyAV has no Video4Linux")
    broken = tmp_path / "broken"
    broken.write_bytes(b"nothing" * 100)
    monkeypatch.setattr(source, "is_camera", lambda path: True)
    monkeypatch.setattr(devices, "CAMERA_FORMAT", interface)
    with pytest.raises(merfast.MediaError, match=rf"x: the camera cannot be opened \({why}"):
        open_media(str(broken), name="x", decoder="pyav", frame_rate=5)


def test_nothing_to_read_is_refused(camera: str) -> None:
    with pytest.raises(merfast.MediaError, match="faces are not looked for, and there is no microphone"):
        open_media(camera, name="x", decoder="pyav", frame_rate=5, want_video=False)


def test_a_microphone_that_is_not_there_is_named(camera: str) -> None:
    before = handles()
    with pytest.raises(merfast.MediaError, match="cam: no-such:x: this build of PyAV has no no-such"):
        media_of(None, ("no-such", "x"))
    with pytest.raises(merfast.MediaError, match="cam: the microphone lavfi:no-such-filter cannot be opened"):
        media_of(camera, ("lavfi", "no-such-filter"))
    assert handles() == before  # the camera was let go of


# Pictures and sound.


def test_a_camera_gives_the_pictures_asked_for_at_their_times(camera: str) -> None:
    media = open_media(camera, name="cam", decoder="pyav", frame_rate=5)
    assert (media.info.has_video, media.info.has_audio) == (True, False)
    frames = []
    with pytest.raises(merfast.MediaError, match=r"cam: gives nothing more after 2\.\d+ s: was it unplugged\?"):
        frames.extend(media.events())
    media.close()
    assert [round(f.time, 2) for f in frames] == pytest.approx([0.2 * i for i in range(13)], abs=0.05)
    with av.open(camera) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    for frame in frames:
        expected = pictures[round(frame.time * 25)].astype(int)
        assert (frame.width, frame.height) == (480, 360)
        assert np.abs(frame.rgb().astype(int) - expected).mean() < 3


def test_windows_of_a_camera_are_those_of_its_recording(camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = merfast.Engine(detector="haar")
    live = []
    with pytest.raises(merfast.MediaError, match="unplugged"):
        live.extend(engine.timeline(camera, window=1.0, hop=0.5))
    monkeypatch.undo()
    recorded = list(engine.timeline(camera, window=1.0, hop=0.5))
    assert 2 <= len(live) <= len(recorded)
    for a, b in zip(live, recorded, strict=False):
        assert (a.start, a.end, a.source) == (b.start, b.end, camera)
        assert a.modalities == ("video",)
        assert a.face_coverage == b.face_coverage == 1.0
        assert a.missing == {"audio": "no audio track"}


def test_ffmpeg_reads_a_camera_where_it_can(face_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CAMERA_FORMAT", "lavfi")
    media = media_of(f"movie={face_clip},realtime")
    frames = []
    with pytest.raises(merfast.MediaError, match="gives nothing more"):
        frames.extend(media.events())
    media.close()
    assert [f.time for f in frames] == pytest.approx([0.2 * i for i in range(13)], abs=0.05)
    with av.open(str(face_clip)) as container:
        last = list(container.decode(video=0))[60]
    assert np.array_equal(frames[-1].rgb(), last.to_ndarray(format="rgb24"))


def test_ffmpeg_decodes_every_picture_where_they_need_each_other(
    face_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "CAMERA_FORMAT", "mp4")
    camera = devices.PyAVCamera(str(face_clip))
    stamps = [camera.grab() for _ in range(30)]
    picture = camera.picture()
    camera.close()
    with av.open(str(face_clip)) as container:
        expected = list(islice(container.decode(video=0), 30))
    assert picture is not None
    assert np.array_equal(picture.to_ndarray(), expected[-1].to_ndarray(format="rgb24"))
    assert stamps == [float(f.time) for f in expected]


def test_sound_and_picture_come_together(camera: str) -> None:
    media = media_of(camera, TONE)
    assert media.info.has_audio
    events = []
    with pytest.raises(merfast.MediaError, match="unplugged"):
        events.extend(media.events())
    media.close()
    chunks = [e for e in events if isinstance(e, AudioChunk)]
    frames = [e for e in events if not isinstance(e, AudioChunk)]
    assert len(frames) >= 8
    assert all(a.start + len(a.samples) <= b.start for a, b in pairwise(chunks))
    samples = np.concatenate([c.samples for c in chunks])
    assert len(samples) > SAMPLE_RATE
    spectrum = np.abs(np.fft.rfft(samples[:SAMPLE_RATE]))
    assert abs(int(spectrum.argmax()) - 200) <= 2
    assert np.abs(samples).max() > 0.05


def test_a_microphone_alone_is_a_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_MICROPHONE", source.re.compile("(?P<camera>x)?(?P<format>lavfi):(?P<name>.+)"))
    windows = merfast.Engine(detector="haar").timeline(":".join(TONE), window=0.5, hop=0.5)
    first = next(windows)
    windows.close()  # type: ignore[attr-defined]
    assert first.modalities == ("audio",)
    assert first.missing == {"video": "no video track"}
    assert (first.start, first.end) == (0.0, 0.5)


# The clock.


@pytest.mark.parametrize("start", [0.0, 1e6])
def test_stamps_of_any_clock_come_to_one(start: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + now[0])
    monotonic, wall, own, none = devices.Clock(), devices.Clock(), devices.Clock(), devices.Clock()
    for late in (0.03, 0.25, 0.01):  # what arrives late was not taken late
        taken = now[0]
        now[0] += late
        assert monotonic.at(taken) == pytest.approx(taken)
        assert wall.at(1.8e9 + taken) == pytest.approx(taken, abs=1e-5)
        assert own.at(start + taken - 5000) == pytest.approx(taken + 0.03)  # its first arrival counts
        assert none.at(None) == now[0]
        now[0] += 1.0


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_clock_that_is_set_does_not_move_what_is_captured(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now, wall = [5000.0], [1.8e9]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: wall[0] + now[0])
    clock = devices.Clock()
    assert clock.at(wall[0] + now[0]) == pytest.approx(5000.0, abs=1e-5)
    wall[0] += step
    now[0] += 1.0
    assert clock.at(wall[0] + now[0]) == pytest.approx(5001.0, abs=1e-5)


def test_a_block_of_sound_began_before_it_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 5000.0)
    assert devices.Clock().at(None, 0.5) == 4999.5
    assert devices.Clock().at(17.0, 0.5) == 4999.5


def test_sound_from_before_the_start_is_cut_off() -> None:
    media = media_of(None, TONE)
    samples = np.arange(480, dtype=np.float32) / 480
    (chunk,) = media._hear(-0.01, samples[:320], 16_000)
    media.close()
    assert chunk.start == 0
    assert np.array_equal(chunk.samples, samples[160:320])


# Readers that are behind, and closing.


def test_what_nobody_reads_in_time_is_left_out_and_said(face_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_camera, "BACKLOG", 0.5)
    monkeypatch.setattr(devices, "CAMERA_FORMAT", "mp4")
    media = media_of(str(face_clip), rate=25)  # as fast as it can be read
    assert eventually(lambda: media._shelf.over)
    frames = []
    with pytest.raises(merfast.MediaError, match="unplugged"):
        frames.extend(media.events())
    media.close()
    assert 10 <= len(frames) <= 14
    assert 1.8 <= frames[0].time <= 2.1
    assert len(media.info.warnings) == 1
    assert "the reader was behind: some of what was captured before 1." in media.info.warnings[0]


def test_warnings_do_not_grow_without_end() -> None:
    media = media_of(None, TONE)
    for k in range(2000):
        media._warn(float(k))
    assert len(media.info.warnings) == 1  # one stretch
    for k in range(2000):
        media._warn(10_000.0 + 20 * k)
    media.close()
    assert len(media.info.warnings) == decode_camera.MOST_WARNINGS


@pytest.mark.parametrize("how", ["close", "drop"])
def test_leaving_a_camera_releases_it(camera: str, how: str) -> None:
    engine = merfast.Engine(detector="haar")
    before = handles()
    windows = engine.timeline(camera, window=0.5, hop=0.5)
    next(windows)
    assert "merfast-capture" in handles()[0]
    if how == "close":
        windows.close()  # type: ignore[attr-defined]
    del windows
    assert handles() == before


class Stuck:
    """A camera that gives one picture, and then nothing."""

    def __init__(self) -> None:
        self.go, self.closed = threading.Event(), threading.Event()
        self._count = 0

    def grab(self) -> float | None:
        self._count += 1
        if self._count > 1:
            self.go.wait(60)
        return None

    def picture(self) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="bgr24")

    def close(self) -> None:
        self.closed.set()


def test_a_camera_that_hangs_is_left_to_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck()
    monkeypatch.setattr(decode_camera, "open_camera", lambda camera, name: stuck)
    monkeypatch.setattr(decode_camera, "PATIENCE", 0.05)
    media = media_of("cam")
    events = media.events()
    assert next(events).width == 64
    media.close()
    assert not stuck.closed.is_set()  # what its thread uses is not taken away from it
    stuck.go.set()
    assert stuck.closed.wait(30)
    assert eventually(lambda: "merfast-capture" not in handles()[0])


def test_a_device_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Stuck):
        def grab(self) -> float | None:
            raise OSError(19, "No such device")

    broken = Broken()
    monkeypatch.setattr(decode_camera, "open_camera", lambda camera, name: broken)
    media = media_of("cam")
    with pytest.raises(merfast.MediaError, match=r"cam: stops being readable after 0\.00 s \(.*No such device"):
        list(media.events())
    assert broken.closed.wait(30)
    media.close()


def test_pictures_that_are_damaged_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = (np.full((48, 64, 3), 20 * i, dtype=np.uint8) for i in range(10))
    clip = write_video(tmp_path / "a.avi", frames, fps=5, codec="mjpeg", pix_fmt="yuvj420p")
    data = clip.read_bytes()
    at = -1
    for _ in range(4):  # the fourth JPEG is lost
        at = data.index(b"\xff\xd8\xff", at + 1)
    end = data.index(b"\xff\xd9", at)
    clip.write_bytes(data[:at] + bytes(end - at) + data[end:])
    monkeypatch.setattr(devices, "CAMERA_FORMAT", "avi")
    media = media_of(str(clip))
    seen = []
    with pytest.raises(merfast.MediaError, match="unplugged"):
        seen.extend(media.events())
    media.close()
    assert len(seen) == 9


# ALSA itself, with a configuration of its own, in a process of its own (it reads that once).

_LISTEN = """
    import sys
    import numpy as np
    from merfast.errors import MediaError
    from merfast.media.decode import open_media
    from merfast.media.source import check_source
    media = open_media("alsa:file", name="mic", decoder="pyav", frame_rate=5)
    heard = 0.0
    for event in media.events():
        heard += float(np.abs(event.samples).sum())
        if heard > 10:
            break
    media.close()
    try:
        open_media("alsa:no-such", name="mic", decoder="pyav", frame_rate=5)
    except MediaError as error:
        print(error)
"""


@pytest.fixture
def alsa(tmp_path: Path) -> dict[str, str]:
    """An environment in which ALSA's device "file" gives a tone."""
    if not devices.has_format("alsa"):
        pytest.skip("this build of PyAV has no ALSA")
    t = np.arange(48_000 * 20) / 48_000
    tone = np.round(0.3 * 32767 * np.sin(2 * np.pi * 200 * t)).astype("<i2")
    (tmp_path / "tone.raw").write_bytes(np.stack([tone, tone], 1).tobytes())
    (tmp_path / "asound.conf").write_text(
        'pcm.null { type null }\nctl.null { type null }\npcm.file { type file\nslave.pcm "null"\nfile "/dev/null"\n'
        f'infile "{tmp_path}/tone.raw"\nformat "raw" }}\n'
    )
    return {**os.environ, "ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")}


def test_alsa_is_listened_to(alsa: dict[str, str]) -> None:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(_LISTEN)]
    done = subprocess.run(command, env=alsa, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mic: the microphone alsa:no-such cannot be opened (")
    assert "ALSA_CONFIG_PATH" in done.stdout
