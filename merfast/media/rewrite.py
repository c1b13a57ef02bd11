"""Writing a video file anew: its pictures upright and drawn on, its sound as it is, every timestamp kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import Interpolation, VideoReformatter

from merfast.errors import ConfigError, MediaError
from merfast.media.decode_pyav import PyAVMedia
from merfast.media.frames import FULL_RANGE, MATRICES, Geometry, geometry_of
from merfast.media.planes import Coding, Picture
from merfast.types import ByteArray

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Suffix of a file -> FFmpeg's name of its container."""

COPIED = {
    "mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus"},
    "mov": {"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s24le"},
    "matroska": {"aac", "mp3", "mp2", "ac3", "eac3", "alac", "opus", "vorbis", "flac", "dts", "pcm_s16le", "pcm_s24le"},
}
"""Container -> sound that players take in it; any other becomes AAC."""

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_HIGH = 720  # rows from which a picture that does not say counts as BT.709
_RGB = 0  # AVColorSpace of pictures that are no YUV

Paint = Callable[[Picture, float], None]


def rewrite(source: Path, target: Path, paint: Paint, *, threads: int, progress: Callable[[float], None]) -> int:
    """Write a file with each of its pictures drawn on; what has the target's name is replaced when all is done.

    Pictures become H.264 (MPEG-4 where FFmpeg has no x264), 8-bit 4:2:0, upright, with square pixels, and even in width
    and height by a repeated column or row. Of several sound tracks the best is kept.

    Args:
        source: the file to read.
        target: the file to write, of one of `FORMATS`.
        paint: draws on a picture in place; called with each, and its seconds from the start of the media.
        threads: for decoding.
        progress: called now and then with the seconds that are done.

    Returns:
        The number of pictures.

    Raises:
        ConfigError: the target cannot be written.
        MediaError: the source cannot be read, or holds no pictures.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    media = _Rewriter(source, threads)
    try:
        count = media.write(part, FORMATS[target.suffix.lower()], paint, progress)
        part.replace(target)
    except OSError as error:
        if isinstance(error, av.FFmpegError) and str(error.filename) == str(source):
            raise MediaError(str(source), f"cannot be read ({error.strerror})") from error
        raise ConfigError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        media.close()
        part.unlink(missing_ok=True)
    return count


class _Rewriter(PyAVMedia):
    """Reads as the engine does, so that times are the same, but all pictures, and sound without decoding it."""

    def __init__(self, source: Path, threads: int) -> None:
        super().__init__(os.path.abspath(source), str(source), frame_rate=1.0, want_video=True, threads=threads)
        if self._video is None:
            why = self.info.unreadable.get("video", "no video track")
            raise MediaError(str(source), f"holds no pictures to draw on ({why})")

    def write(self, file: Path, container: str, paint: Paint, progress: Callable[[float], None]) -> int:
        options = {"movflags": "+faststart"} if container in ("mp4", "mov") else {}
        with av.open(str(file), "w", format=container, options=options) as out:
            # The header is written with the first packet, and names all tracks.
            sound = None if self._audio is None else self._sound_track(out, container)
            pictures: _PictureTrack | None = None
            waiting: list[av.Packet[Any]] = []
            for packet in self._packets():
                if sound is not None and packet.stream is self._audio:
                    waiting.append(packet)
                else:
                    for frame, time in self._pictures(packet):
                        if pictures is None:
                            pictures = _PictureTrack(out, self._video, frame, self.aspect)
                        pictures.add(frame, time, paint)
                        progress(time)
                if pictures is not None and sound is not None:
                    for one in waiting:
                        sound.add(one)
                    waiting.clear()
            if pictures is None:
                raise MediaError(self.info.name, "holds no pictures to draw on (none can be decoded)")
            if sound is not None:
                sound.end()
            pictures.end()
            return pictures.count

    def _pictures(self, packet: av.Packet[Any]) -> list[tuple[av.VideoFrame, float]]:
        try:
            frames = list(packet.decode())
        except av.FFmpegError:
            return []  # damaged, as the engine has said already
        return [(frame, self._time_of(frame)) for frame in frames]

    def _time_of(self, frame: av.VideoFrame) -> float:
        step = float(1 / (self._video.average_rate or 25))
        stamp = self._clock(frame, 0, step)
        self._time = max(self._time + step * bool(self._frames) if stamp is None else stamp, self._time, 0.0)
        self._frames += 1
        return self._time

    def _sound_track(self, out: OutputContainer, container: str) -> _Sound:
        codec = self._audio.codec_context
        kind: type[_Sound] = _Copied if codec.codec.canonical_name in COPIED[container] else _Encoded
        return kind(out, self._audio, self._shifted)

    def _shifted(self, ticks: int, base: Fraction, length: float) -> int:
        """A timestamp of the sound, from the start of the media, and with jumps closed."""
        time = float(ticks * base) - self._start
        return ticks + round((self._continuity.shift(1, time, length) - self._start) / base)


class _PictureTrack:
    """Encodes pictures of the size that the first one has when it is upright."""

    def __init__(self, out: OutputContainer, source: Any, first: av.VideoFrame, aspect: float) -> None:
        self.count = 0
        self._out, self._aspect = out, aspect
        self._scaler = VideoReformatter()
        self._base = Fraction(source.time_base)
        self._last = -1
        wide, high = geometry_of(first, aspect).upright
        self._size = wide + wide % 2, high + high % 2
        h264 = "libx264" in av.codecs_available
        self._stream: Any = out.add_stream("libx264" if h264 else "mpeg4", rate=source.average_rate or 25)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        codec = self._stream.codec_context
        codec.time_base = self._stream.time_base = self._base
        if h264:
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            self._stream.bit_rate = 4 * self._size[0] * self._size[1]
        self._full = first.format.name.startswith("yuvj") or (first.color_range == FULL_RANGE and _is_plain(first))
        self._space = 1 if first.colorspace == _RGB else first.colorspace
        codec.color_range = FULL_RANGE if self._full else 1
        codec.colorspace, codec.color_primaries, codec.color_trc = self._space, first.color_primaries, first.color_trc
        unsaid = "bt709" if min(self._size) >= _HIGH else "bt601"
        self._coding = Coding(MATRICES.get(self._space, unsaid) if self._space != 2 else unsaid, self._full)
        self._lengths: dict[int, int] = {}

    def add(self, frame: av.VideoFrame, time: float, paint: Paint) -> None:
        painted = av.VideoFrame(*self._size, "yuv420p")
        picture = Picture(_views(painted), self._coding)
        for plane, own in zip(picture.planes, self._upright(frame), strict=True):
            high, wide = own.shape
            if (high + high % 2, wide + wide % 2) != plane.shape and (high, wide) != plane.shape:
                own = np.asarray(cv2.resize(own, plane.shape[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)
                high, wide = own.shape
            plane[:high, :wide] = own
            plane[high:, :wide] = own[-1:]
            plane[:, wide:] = plane[:, wide - 1 : wide]
        paint(picture, time)
        painted.time_base = self._base
        painted.pts = self._last = max(self._last + 1, round(time / self._base))
        length = round(frame.duration * frame.time_base / self._base) if frame.duration and frame.time_base else 0
        self._lengths[painted.pts] = length or round(1 / (self._stream.average_rate or 25) / self._base)
        self._mux(painted)
        self.count += 1

    def end(self) -> None:
        self._mux(None)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._lengths.pop(packet.pts, packet.duration)
            self._out.mux(packet)

    def _upright(self, frame: av.VideoFrame) -> list[ByteArray]:
        geometry: Geometry = geometry_of(frame, self._aspect)
        wide, high = geometry.square
        if not _is_plain(frame) or wide != frame.width:
            changes: dict[str, Any] = {}
            if not self._full and not _is_plain(frame):
                changes["dst_color_range"] = "MPEG"
            if frame.colorspace == _RGB:
                changes["dst_colorspace"] = "ITU709"
            form = "yuvj420p" if self._full else "yuv420p"
            frame = self._scaler.reformat(frame, wide, high, form, interpolation=Interpolation.BICUBIC, **changes)
        return [np.rot90(plane, geometry.turn // 90) for plane in _views(frame)]


def _is_plain(frame: av.VideoFrame) -> bool:
    return frame.format.name in ("yuv420p", "yuvj420p")


def _views(frame: av.VideoFrame) -> tuple[ByteArray, ByteArray, ByteArray]:
    """The three planes, in the frame's own memory."""
    y, u, v = (
        np.frombuffer(cast("memoryview", p), dtype=np.uint8).reshape(-1, p.line_size)[: p.height, : p.width]
        for p in frame.planes
    )
    return y, u, v


class _Sound:
    """Writes a track of sound.

    Args:
        out: where to.
        source: the track to read.
        shifted: makes a timestamp of the source one from the start of the media.
    """

    def __init__(self, out: OutputContainer, source: Any, shifted: Callable[[int, Fraction, float], int]) -> None:
        self._out, self._source, self._shifted = out, source, shifted

    def add(self, packet: av.Packet[Any]) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """No more packets come."""


class _Copied(_Sound):
    def __init__(self, out: OutputContainer, source: Any, shifted: Callable[[int, Fraction, float], int]) -> None:
        super().__init__(out, source, shifted)
        self._stream = out.add_stream_from_template(source)
        # What a decoder only warms up on lies before 0, where Matroska has no times: all else would be moved for it.
        self._early = out.format.name != "matroska"
        self._last: int | None = None

    def add(self, packet: av.Packet[Any]) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or not packet.size:
            return
        base = Fraction(packet.time_base or self._source.time_base)
        stamp = self._shifted(stamp, base, float((packet.duration or 0) * base))
        if not self._early and stamp < 0:
            if stamp + (packet.duration or 0) <= 0:
                return
            stamp = 0
        if self._last is not None:
            stamp = max(stamp, self._last + 1)
        packet.pts = packet.dts = self._last = stamp
        packet.stream = self._stream
        self._out.mux(packet)


class _Encoded(_Sound):
    def __init__(self, out: OutputContainer, source: Any, shifted: Callable[[int, Fraction, float], int]) -> None:
        super().__init__(out, source, shifted)
        codec = source.codec_context
        rate = codec.sample_rate if codec.sample_rate in _AAC_RATES else 48_000
        layout = "mono" if codec.channels == 1 else "stereo"
        self._stream: Any = out.add_stream("aac", rate=rate, layout=layout)
        self._stream.bit_rate = 80_000 * (1 if layout == "mono" else 2)
        self._shape: object = None
        self._mixer: av.AudioResampler | None = None
        self._layout, self._rate = layout, rate

    def add(self, packet: av.Packet[Any]) -> None:
        try:
            frames = list(packet.decode())
        except av.FFmpegError:
            return
        for decoded in frames:
            frame = cast("av.AudioFrame", decoded)
            shape = (frame.format.name, frame.layout.name, frame.sample_rate)
            if shape != self._shape:
                self._mix(None)
                self._mixer, self._shape = av.AudioResampler("fltp", self._layout, self._rate), shape
            if frame.pts is not None and frame.time_base is not None:
                length = frame.samples / frame.sample_rate
                frame.pts = self._shifted(frame.pts, Fraction(frame.time_base), length)
            self._mix(frame)

    def end(self) -> None:
        self._mix(None)
        self._out.mux(self._stream.encode(None))

    def _mix(self, frame: av.AudioFrame | None) -> None:
        for mixed in self._mixer.resample(frame) if self._mixer is not None else ():
            self._out.mux(self._stream.encode(mixed))
