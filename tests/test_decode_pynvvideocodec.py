"""The PyNvVideoCodec adapter against a stand-in that decodes what it is given, and what it uses of the package."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pynv_standin
import pytest
import torch
from media_files import set_rotation, truncate, write_video
from test_surfaces import colours

from merfast.errors import MediaError, UnavailableError
from merfast.media import decode_pynvvideocodec, nvdec
from merfast.media.decode import AudioChunk, Event
from merfast.media.decode_pyav import PyAVMedia
from merfast.media.decode_pynvvideocodec import PyNvMedia, Sessions
from merfast.media.surfaces import SurfaceFrame

CPU = torch.device("cpu")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    standin = pynv_standin.package()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", standin)
    monkeypatch.setattr(decode_pynvvideocodec, "sessions", Sessions())
    return standin


def moving(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """Pictures that slide, so that each is another."""
    wide = colours(height, width + 4 * count)
    return [np.ascontiguousarray(wide[:, 4 * i : 4 * i + width]) for i in range(count)]


def read(kind: Any, path: Path, rate: float = 100.0) -> tuple[list[Event], list[str], float]:
    media = kind(str(path), path.name, frame_rate=rate, want_video=True, threads=1, surfaces=CPU)
    try:
        return list(media.events()), media.info.warnings, media.info.duration
    finally:
        media.close()


def pictures(events: list[Event]) -> list[SurfaceFrame]:
    assert all(isinstance(e, (AudioChunk, SurfaceFrame)) for e in events)
    return [e for e in events if isinstance(e, SurfaceFrame)]


def assert_same(path: Path, rate: float = 100.0) -> list[SurfaceFrame]:
    """Every event is that of FFmpeg's own decoder, bit for bit."""
    (want, warnings, duration), (got, warned, lasted) = read(PyAVMedia, path, rate), read(PyNvMedia, path, rate)
    assert len(got) == len(want)
    assert (warned, lasted) == (warnings, duration)
    for a, b in zip(got, want, strict=True):
        assert type(a) is type(b)
        if isinstance(a, AudioChunk) and isinstance(b, AudioChunk):
            assert a.start == b.start
            assert np.array_equal(a.samples, b.samples)
    for a, b in zip(pictures(got), pictures(want), strict=True):
        assert (a.time, a.width, a.height, a.turn) == (b.time, b.width, b.height, b.turn)
        assert a.planes[3:] == b.planes[3:]
        assert all(torch.equal(x, y) for x, y in zip(a.planes[:3], b.planes[:3], strict=True))  # type: ignore[arg-type]
    return pictures(got)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),  # with pictures out of order
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),  # Annex B already
        ("a.mp4", "libx265"),
        ("a.mp4", "mpeg4"),
        ("a.ts", "mpeg2video"),
        ("a.webm", "libvpx"),
        ("a.webm", "libvpx-vp9"),
    ],
)
def test_every_codec(name: str, codec: str, tmp_path: Path, package: Any) -> None:
    tone = (0.3 * np.sin(np.arange(32_000) / 9)).astype(np.float32)
    sound = {"audio_codec": "libopus", "sample_rate": 48_000} if name == "a.webm" else {}
    path = write_video(tmp_path / name, moving(40), audio=tone, codec=codec, **sound)  # type: ignore[arg-type]
    frames = assert_same(path)
    assert len(frames) == 40
    assert len(package.made) == 1
    if codec == "libx264":
        with av.open(str(path)) as container:
            order = [p.pts for p in container.demux(video=0) if p.pts is not None]
        assert order != sorted(order)


def test_only_wanted_pictures_are_copied(tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    monkeypatch.setattr(
        pynv_standin.DecodedFrame, "__dlpack__", lambda self, stream=0: copied.append(1) or _capsule(self)
    )
    assert len(assert_same(write_video(tmp_path / "a.mp4", moving(50)), rate=5.0)) == 10
    assert len(copied) == 10


def _capsule(frame: Any) -> Any:
    return torch.utils.dlpack.to_dlpack(frame.samples)


def test_a_session_serves_one_medium_after_the_other(tmp_path: Path, package: Any) -> None:
    wide = write_video(tmp_path / "wide.mp4", moving(12))
    tall = write_video(tmp_path / "tall.mp4", moving(12, 160, 90))
    again = write_video(tmp_path / "again.mp4", moving(7, 64, 64))
    other = write_video(tmp_path / "other.mp4", moving(12), codec="libx265")
    for path in (wide, tall, again, wide):
        assert_same(path)
    assert (len(package.made), package.made[0].reconfigured) == (1, 3)
    assert_same(other)
    assert len(package.made) == 2


def test_large_pictures_get_a_session_of_their_own(
    tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pynvvideocodec, "LARGEST", 128)
    for i, (height, width) in enumerate([(96, 128), (128, 96), (144, 128), (96, 128)]):
        assert_same(write_video(tmp_path / f"{i}.mp4", moving(6, height, width)))
    assert len(package.made) == 2


def test_a_session_left_early_is_not_used_again(tmp_path: Path, package: Any) -> None:
    path = write_video(tmp_path / "a.mp4", moving(40))
    media = PyNvMedia(str(path), "a", frame_rate=100.0, want_video=True, threads=1, surfaces=CPU)
    next(media.events())
    media.close()
    assert_same(path)
    assert len(package.made) == 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_short_clips(count: int, tmp_path: Path, package: Any) -> None:
    assert len(assert_same(write_video(tmp_path / "a.mp4", moving(count)))) == count
    assert len(package.made) == 1


@pytest.mark.parametrize("degrees", [90, 180])
def test_rotation_and_pixel_aspect(degrees: int, tmp_path: Path, package: Any) -> None:
    path = set_rotation(write_video(tmp_path / "a.mp4", moving(10), pixel_aspect=(4, 3)), degrees)
    frames = assert_same(path)
    assert (frames[0].turn, frames[0].width) == (degrees, 171 if degrees == 180 else 96)
    assert len(package.made) == 1


def test_an_edit_list_leaves_pictures_out(tmp_path: Path, package: Any) -> None:
    """A copy from a time between two key frames begins with pictures that others are predicted from, and no more."""
    whole, path = write_video(tmp_path / "whole.mp4", moving(30)), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                shift = round(0.4 / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                out.mux(packet)
    frames = assert_same(path)
    assert len(frames) < 30


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("a.mp4", {"pix_fmt": "yuv422p"}, "has no yuv422p"),
        ("a.mp4", {"pix_fmt": "yuv422p10le"}, "has no yuv422p10le"),
        ("a.mp4", {"pix_fmt": "yuv420p10le"}, "format yuv420p10le not supported on this GPU"),
        ("a.mkv", {"codec": "ffv1"}, "has no such codec"),
        ("a.mkv", {"codec": "libvpx-vp9", "odd": True}, "has no odd sizes"),
        ("a.h264", {}, "packets have no times"),
    ],
)
def test_the_rest_goes_to_the_cpu(
    name: str, arguments: dict[str, Any], reason: str, tmp_path: Path, package: Any, caplog: pytest.LogCaptureFixture
) -> None:
    size = (97, 129) if arguments.pop("odd", False) else (96, 128)
    path = write_video(tmp_path / name, moving(20, *size), **arguments)
    with caplog.at_level(logging.INFO, "merfast"):
        assert len(assert_same(path)) == 20
    (message,) = {r.getMessage() for r in caplog.records}
    assert message.startswith(f"{name}: decoded on the CPU (NVDEC {reason}")


def test_real_clips(data_dir: Path, package: Any) -> None:
    for name in ("grid_bbaf2n.mpg", "talking_1.mp4", "hevc_tall_demo1.mp4"):
        assert len(assert_same(data_dir / "clips" / name, rate=5.0)) > 5
    assert len(package.made) >= 2


def test_errors_name_the_item(tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, messages = truncate(write_video(tmp_path / "cut.mp4", moving(100)), 0.7), []
    for kind in (PyAVMedia, PyNvMedia):
        with pytest.raises(MediaError, match=r"^cut\.mp4: ") as caught:
            read(kind, cut)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    path, decode = write_video(tmp_path / "a.mp4", moving(40)), pynv_standin.PyNvDecoder.Decode
    seen: list[int] = []

    def fail_late(self: Any, data: Any) -> Any:
        seen.append(1)
        if len(seen) > 9:
            raise RuntimeError("the GPU is gone")
        return decode(self, data)

    monkeypatch.setattr(pynv_standin.PyNvDecoder, "Decode", fail_late)
    with pytest.raises(MediaError, match=r"^a\.mp4: cannot be decoded by PyNvVideoCodec \(the GPU is gone\)$"):
        read(PyNvMedia, path)


def test_why_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(UnavailableError, match=r"decoder 'pynvvideocodec': is not installed, pip install"):
        decode_pynvvideocodec.load()
    assert decode_pynvvideocodec.missing(CPU) == "NVDEC is part of an NVIDIA GPU, and the device is cpu"
    monkeypatch.setattr(nvdec, "driver_missing", lambda device: "")
    assert decode_pynvvideocodec.missing(torch.device("cuda:0")) == "is not installed, pip install 'merfast[nvdec]'"


def test_the_package_has_what_is_used() -> None:
    """In a process of its own: it wants the driver's libraries, and may end the process without a GPU."""
    script = """
import PyNvVideoCodec as package
data = package.PacketData()
data.bsl_data, data.bsl, data.pts, data.key = 2**40 + 3, 5, -7, True
assert (data.bsl_data, data.bsl, data.pts, data.key) == (2**40 + 3, 5, -7, 1)
for codec in ("H264", "HEVC", "MPEG4", "MPEG1", "MPEG2", "VP8", "VP9"):
    getattr(package.cudaVideoCodec, codec)
for word in ("gpuid", "codec", "cudacontext", "cudastream", "usedevicememory", "maxwidth", "maxheight"):
    assert f"{word}: " in package.CreateDecoder.__doc__, word
assert "width: int = 0, height: int = 0" in package.PyNvDecoder.setReconfigParams.__doc__
assert "PacketData) -> List[" in package.PyNvDecoder.Decode.__doc__
assert "-> int" in package.DecodedFrame.getPTS.__doc__
assert "stream: object" in package.DecodedFrame.__dlpack__.__doc__
print("whole")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if "No module named" in done.stderr or "cannot open shared object file" in done.stderr:
        pytest.skip(f"needs PyNvVideoCodec and the driver: {done.stderr.splitlines()[-1]}")
    assert done.stdout.splitlines()[-1:] == ["whole"], done.stderr
