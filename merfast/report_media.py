"""Media for a page: what browsers play as it is, what is repacked or transcoded for them, and pictures at moments."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from merfast.errors import ConfigError, MediaError, UnavailableError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

    from merfast.types import ByteArray

MB = 1_000_000
LONGEST = 1280  # pixels of the longer side, where a video is transcoded
TICKS = 90_000  # a second, of a transcoded video's timestamps

# Codecs that Chromium, Firefox and Safari play, by container.
_MP4 = {"video": {"h264"}, "audio": {"aac", "mp3"}}
_WEBM = {"video": {"vp8", "vp9", "av1"}, "audio": {"opus", "vorbis"}}
_SOUND = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg"}
_PIXELS = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True)
class Media:
    """What a page plays.

    Attributes:
        kind: "video", "audio" for sound alone, or "none".
        mime: its type.
        content: to be embedded; None if linked.
        link: relative URL; None if embedded.
        duration: seconds, None if unknown.
        note: what a reader should know, or empty.
    """

    kind: Literal["video", "audio", "none"]
    mime: str = ""
    content: bytes | None = None
    link: str | None = None
    duration: float | None = None
    note: str = ""


def prepare(
    path: Path, page: Path, *, how: Literal["embed", "link", "none"], transcode: bool = False, limit: float = 64.0
) -> Media:
    """Media for the page at `page`.

    Args:
        path: media file.
        how: "embed" takes the file as it is if browsers play it, else its packets in an MP4, else transcodes it to
            H.264 and AAC; "link" refers to the file by a relative path; "none" takes nothing.
        transcode: when embedding, transcode in any case, to at most 1280 pixels.
        limit: MB that may be embedded.

    Raises:
        ConfigError: it is larger than the limit, or has no relative path to the page.
        MediaError: it cannot be read.
        UnavailableError: it has to be transcoded, and this FFmpeg has no x264.
    """
    if how == "none":
        return Media("none")
    import av

    try:
        with av.open(str(path)) as source:
            kind, mime, repack = _playable(source, path)
            duration = source.duration / av.time_base if source.duration else None
    except (av.FFmpegError, OSError) as error:
        raise MediaError(str(path), f"cannot be read as media ({error})") from error
    if how == "link":
        note = "" if mime else "Not every browser plays a file of this kind; an embedded video would be transcoded."
        return Media(kind, mime, link=_relative(path, page), duration=duration, note=note)
    if mime and not transcode and not repack:
        _check_size(path, path.stat().st_size, limit, "")
        content = path.read_bytes()
    else:
        made = None if transcode or not mime else _repacked(path)
        content = made or _transcoded(path, kind)
        note = "" if made else " after transcoding"
        _check_size(path, len(content), limit, note)
        mime = f"{kind}/mp4"
    return Media(kind, mime, content, duration=duration)


def _check_size(path: Path, size: int, limit: float, note: str) -> None:
    if size > limit * MB:
        expected = f"expected at most {limit:g} to embed: raise the limit, link to it, or leave it out"
        raise ConfigError(f"{path}: got {size / MB:.1f} MB{note}, {expected}" + ("" if note else ", or transcode it"))


def _relative(path: Path, page: Path) -> str:
    try:
        relative = os.path.relpath(path.resolve(), page.resolve().parent)
    except ValueError as error:  # another drive
        raise ConfigError(f"{path}: cannot be linked from {page} ({error})") from error
    return "./" + quote(os.fsencode(relative.replace(os.sep, "/")))


def _playable(source: InputContainer, path: Path) -> tuple[Literal["video", "audio"], str, bool]:
    """Kind, type (empty if it has to be transcoded), and whether the packets have to go into another container."""
    video = next((s for s in source.streams.video if not _is_cover(s)), None)
    sound = source.streams.best("audio")
    if video is None and sound is None:
        raise MediaError(str(path), "holds neither a video nor an audio stream")
    codecs = {"video": _codec(video), "audio": _codec(sound)}
    kind: Literal["video", "audio"] = "audio" if video is None else "video"
    pixels = video is None or (video.codec_context is not None and video.codec_context.pix_fmt in _PIXELS)
    name = source.format.name

    def fits(known: dict[str, set[str]]) -> bool:
        return pixels and all(codec is None or codec in known[k] for k, codec in codecs.items())

    if kind == "audio" and name in _SOUND and codecs["audio"] != "pcm_f64le":
        return kind, _SOUND[name], False
    if fits(_MP4):
        return kind, f"{kind}/mp4", not ("mp4" in name and source.metadata.get("major_brand") != "qt  ")
    if fits(_WEBM) and path.suffix.lower() == ".webm":
        return kind, f"{kind}/webm", False
    return kind, "", True


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _codec(stream: Any) -> str | None:
    if stream is None:
        return None
    return "unknown" if stream.codec_context is None else str(stream.codec.canonical_name)


def _chosen(source: InputContainer) -> tuple[Any, Any]:
    return next((s for s in source.streams.video if not _is_cover(s)), None), source.streams.best("audio")


def _repacked(path: Path) -> bytes | None:
    """The packets of the best streams in an MP4; None if they do not go there."""
    import av

    out = io.BytesIO()
    try:
        with av.open(str(path)) as source, av.open(out, "w", format="mp4") as target:
            chosen = [s for s in _chosen(source) if s is not None]
            streams = {s.index: target.add_stream_from_template(s) for s in chosen}
            start = (source.start_time or 0) / av.time_base
            for packet in _timed(source.demux(chosen)):
                shift = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    except (av.FFmpegError, ValueError):
        return None
    return out.getvalue()


def _timed(packets: Iterable[Any]) -> Iterator[Any]:
    """The packets with decoding times, which Matroska's first ones lack where pictures are reordered.

    Raises:
        ValueError: a packet has no time of its own.
    """
    waiting: dict[int, list[Any]] = {}
    for packet in packets:
        if not packet.size:
            continue
        if packet.pts is None or packet.time_base is None:
            raise ValueError("a packet without a time")
        held = waiting.setdefault(packet.stream.index, [])
        if packet.dts is None:
            held.append(packet)
            continue
        for back, early in enumerate(reversed(held), 1):
            early.dts = packet.dts - back * max(1, early.duration or 1)
        yield from held
        held.clear()
        yield packet
    if any(waiting.values()):
        raise ValueError("packets without decoding times")


def _transcoded(path: Path, kind: str) -> bytes:
    import av

    if kind == "video" and "libx264" not in av.codecs_available:
        raise UnavailableError(f"{path}: browsers do not play it, and this FFmpeg has no x264 to transcode it with")
    out = io.BytesIO()
    try:
        with av.open(str(path)) as source, av.open(out, "w", format="mp4") as target:
            video, sound = _chosen(source)
            start = (source.start_time or 0) / av.time_base
            first = None if video is None else _first_picture(path)
            pictures = None if first is None else _Pictures(target, video, start, first)
            voice = None if sound is None or sound.codec_context is None else _Sound(target, start)
            for packet in source.demux([s for s in (video, sound) if s is not None]):
                try:
                    frames = packet.decode()
                except av.FFmpegError:  # damaged: the rest goes on
                    continue
                for frame in frames:
                    if isinstance(frame, av.VideoFrame) and pictures is not None:
                        pictures.add(frame)
                    elif isinstance(frame, av.AudioFrame) and voice is not None:
                        voice.add(frame)
            for track in (pictures, voice):
                if track is not None:
                    track.finish()
    except (av.FFmpegError, OSError) as error:
        raise MediaError(str(path), f"cannot be transcoded ({error})") from error
    return out.getvalue()


class _Pictures:
    """The video track of a transcoded file: upright, with square pixels and the source's timestamps."""

    def __init__(self, target: Any, source: Any, start: float, first: av.VideoFrame) -> None:
        from merfast.media.frames import new_scalers

        self._target, self._start, self._scalers = target, start, new_scalers()
        self._aspect = float(source.sample_aspect_ratio or 1)
        self._out = target.add_stream("libx264", rate=30, options={"crf": "25", "preset": "veryfast"})
        self._out.pix_fmt = "yuv420p"
        self._out.codec_context.time_base = Fraction(1, TICKS)
        image = self._upright(first)
        self._out.height, self._out.width = image.shape[:2]
        self._last = -1

    def _upright(self, frame: av.VideoFrame) -> ByteArray:
        """Of an even size, as 4:2:0 needs it."""
        from merfast.media.frames import PyAVFrame

        image = PyAVFrame(frame, 0.0, self._aspect, self._scalers).small(LONGEST)
        height, width = (n - n % 2 for n in image.shape[:2])
        return image[:height, :width].copy()

    def add(self, frame: av.VideoFrame) -> None:
        import av

        stamp = self._last + TICKS // 25 if frame.time is None else round((frame.time - self._start) * TICKS)
        if stamp <= self._last:
            return
        made = av.VideoFrame.from_ndarray(self._upright(frame), format="rgb24")
        if (made.width, made.height) != (self._out.width, self._out.height):  # the source changes its size on the way
            made = made.reformat(width=self._out.width, height=self._out.height)
        made.pts, made.time_base, self._last = stamp, Fraction(1, TICKS), stamp
        self._target.mux(self._out.encode(made))

    def finish(self) -> None:
        if self._last >= 0:
            self._target.mux(self._out.encode(None))


class _Sound:
    """The audio track of a transcoded file: AAC, 48 kHz stereo."""

    RATE = 48_000

    def __init__(self, target: Any, start: float) -> None:
        import av

        self._target, self._start = target, start
        self._out = target.add_stream("aac", rate=self.RATE, layout="stereo")
        self._resampler = av.AudioResampler(format="fltp", layout="stereo", rate=self.RATE, frame_size=1024)
        self._shape: object = None
        self._next: int | None = None

    def add(self, frame: av.AudioFrame) -> None:
        if self._next is None:
            self._next = max(0, round(((frame.time or self._start) - self._start) * self.RATE))
        frame.pts = None  # packets follow each other: small gaps and overlaps of the source's stamps are not heard
        self._write(self._resampler.resample(frame))

    def _write(self, frames: Sequence[av.AudioFrame]) -> None:
        for frame in frames:
            frame.pts, frame.time_base = self._next, Fraction(1, self.RATE)
            self._next = (self._next or 0) + frame.samples
            self._target.mux(self._out.encode(frame))

    def finish(self) -> None:
        if self._next is not None:
            self._write(self._resampler.resample(None))
            self._target.mux(self._out.encode(None))


def pictures_at(path: Path, times: Sequence[float], longest: int = 320) -> list[bytes | None]:
    """JPEG pictures of a video at times in seconds; None where there is none, for instance in damaged parts."""
    import av
    import cv2

    from merfast.media.frames import PyAVFrame, new_scalers

    out: list[bytes | None] = []
    try:
        with av.open(str(path)) as source:
            video, _ = _chosen(source)
            if video is None or video.codec_context is None:
                return [None] * len(times)
            start, aspect = (source.start_time or 0) / av.time_base, float(video.sample_aspect_ratio or 1)
            video.thread_type = "AUTO"
            for time in times:
                frame = _frame_at(source, video, start + time)
                if frame is None:
                    out.append(None)
                    continue
                image = PyAVFrame(frame, time, aspect, new_scalers()).small(longest)
                quality = [cv2.IMWRITE_JPEG_QUALITY, 78]
                good, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
                out.append(data.tobytes() if good else None)
    except (av.FFmpegError, OSError):
        pass
    return out + [None] * (len(times) - len(out))


def _first_picture(path: Path) -> av.VideoFrame | None:
    import av

    with av.open(str(path)) as source:
        video, _ = _chosen(source)
        return None if video.codec_context is None else _frame_at(source, video, 0.0)


def _frame_at(source: InputContainer, video: Any, time: float) -> av.VideoFrame | None:
    """The picture that is shown at a time: the last one that does not begin after it."""
    import av

    last: av.VideoFrame | None = None
    try:
        source.seek(int(time / video.time_base), stream=video)
        for frame in source.decode(video):
            if frame.time is not None and frame.time > time and last is not None:
                return last
            last = frame
            if frame.time is not None and frame.time > time:
                return last
    except av.FFmpegError:
        return last
    return last
