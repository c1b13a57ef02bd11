"""Decoding with PyAV (FFmpeg): one pass over the packets of the best video and the best audio stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from merfast.errors import MediaError
from merfast.media.audio import AudioTrack
from merfast.media.decode import AudioChunk, Event, FrameSampler, MediaInfo, rotate, scaled_size
from merfast.media.faces import Box, crop_square, whole_pixels
from merfast.media.source import Reader, is_url
from merfast.media.timestamps import Continuity
from merfast.ops.crop_norm import Crop, Planes
from merfast.types import ByteArray

OPEN_TIMEOUT, READ_TIMEOUT = 15.0, 30.0
"""Seconds that a network source may stall, when it is opened and while it is read."""

EXACT_DURATION = {
    *("mov", "mp4", "matroska", "webm", "avi", "flv", "asf", "mxf"),
    *("wav", "w64", "flac", "aiff", "caf", "au"),
}
"""Containers whose header states the duration, instead of leaving it to be estimated."""

SLOWEST = 1000
"""Hz: a lower sampling rate is a damaged header, and would make hours of a few packets."""

LONGEST_STEP = 1.0
"""Seconds that a picture without a successor is taken to last, at most."""

LOST = 0.5
"""Seconds that may be missing at the end before a file counts as truncated (and at least 2 % of it)."""

MATRICES = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601"}
"""AVColorSpace -> matrix. What is unspecified (2) counts as BT.601, as in swscale, which makes `PyAVFrame.rgb`."""

FULL_RANGE = 2
"""AVColorRange of pictures that use 0 to 255; anything else is taken for limited, as in swscale."""

Scalers = defaultdict[tuple[int, int], VideoReformatter]
"""One for each size asked for: a scaler that alternates between sizes sets itself up anew every time."""


class PyAVFrame:
    """A decoded picture in the codec's own format."""

    def __init__(self, frame: av.VideoFrame, time: float, aspect: float, scalers: Scalers) -> None:
        self._frame = frame
        self._scalers = scalers
        self._turn = round(frame.rotation / 90) * 90
        self._stored = max(1, round(frame.width * aspect)), frame.height  # before rotation, square pixels
        self.time = time
        self.width, self.height = self._stored if self._turn % 180 == 0 else self._stored[::-1]

    def rgb(self) -> ByteArray:
        return self._convert(*self._stored)

    def small(self, longest: int) -> ByteArray:
        return self._convert(*scaled_size(*self._stored, longest))

    def crops(self, boxes: Sequence[Box], size: int, crop: Crop) -> Sequence[ByteArray]:
        if not boxes:
            return []
        planes = self.planes()
        if planes is None:
            image = self.rgb()
            return [crop_square(image, box, size) for box in boxes]
        corners = torch.tensor([self._locate(box) for box in boxes], dtype=torch.float64)
        return [rotate(image, self._turn) for image in crop(planes, corners, None).numpy()]

    def planes(self) -> Planes | None:
        """The decoder's memory, one picture before rotation; None unless it is 8-bit 4:2:0 BT.601 or BT.709."""
        frame, kind = self._frame, self._frame.format.name
        matrix, own = MATRICES.get(frame.colorspace), frame.planes
        if matrix is None or kind not in ("yuv420p", "yuvj420p", "nv12") or own[0].line_size < 0:
            return None

        def view(number: int, width: int, column: int = 1, first: int = 0) -> torch.Tensor:
            plane = own[number]
            shape, strides = (1, plane.height, width), (plane.buffer_size, plane.line_size, column)
            return torch.frombuffer(plane, dtype=torch.uint8).as_strided(shape, strides, first)

        half = (frame.width + 1) // 2
        u, v = (view(1, half, 2, 0), view(1, half, 2, 1)) if kind == "nv12" else (view(1, half), view(2, half))
        full_range = kind == "yuvj420p" or frame.color_range == FULL_RANGE
        return Planes(view(0, frame.width), u, v, matrix, full_range)

    def _locate(self, box: Box) -> tuple[float, float, float, float]:
        """A box in the pixels of the frame as it is stored, before rotation and with pixels that may not be square."""
        left, top, side = whole_pixels(box)
        right, bottom = left + side, top + side
        wide, high = self._stored
        left, top, right, bottom = {
            0: (left, top, right, bottom),
            90: (wide - bottom, left, wide - top, right),
            180: (wide - right, high - bottom, wide - left, high - top),
            270: (top, high - right, bottom, high - left),
        }[self._turn % 360]
        stretch = self._frame.width / wide
        return left * stretch, float(top), right * stretch, float(bottom)

    def _convert(self, width: int, height: int) -> ByteArray:
        frame = self._scalers[width, height].reformat(
            self._frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR
        )
        return rotate(np.asarray(frame.to_ndarray(), dtype=np.uint8), self._turn)


class PyAVMedia:
    """Reads a path, URL or binary file with FFmpeg.

    Args:
        source: path, URL, or open file (which most formats need to seek in).
        name: what messages call it.
        frame_rate: frames wanted a second, at most.
        want_video: False skips the video.
        threads: of the video codec.

    Raises:
        MediaError: FFmpeg cannot open it, or it has neither video nor audio that it can decode.
    """

    def __init__(self, source: str | Reader, name: str, *, frame_rate: float, want_video: bool, threads: int) -> None:
        timeout = (OPEN_TIMEOUT, READ_TIMEOUT) if is_url(source) else None
        try:
            self._container = av.open(source, mode="r", timeout=timeout, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(name, f"cannot be read as media ({_reason(error)})") from error
        try:
            self._choose(name, want_video, threads)
        except BaseException:
            self.close()
            raise
        self._sampler = FrameSampler(frame_rate)
        self._scalers: Scalers = defaultdict(VideoReformatter)
        self._track = AudioTrack(name)
        self._mixer: av.AudioResampler | None = None
        self._mixed: object = None
        self._time = 0.0  # of the last picture
        self._frames = 0
        self._demuxed = 0.0  # end of the last packet, seconds: a picture may be held longer than it is counted here

    def _choose(self, name: str, want_video: bool, threads: int) -> None:
        """The best stream of each kind; without a codec it counts as there, but not as readable."""
        streams = self._container.streams
        pictures = [s for s in streams.video if not s.disposition & Disposition.attached_pic]
        best = streams.best("video")
        video: Any = best if best in pictures else next(iter(pictures), None)
        audio: Any = streams.best("audio") or next(iter(streams.audio), None)
        self.info = MediaInfo(name, has_video=video is not None, has_audio=audio is not None)
        self._start = (self._container.start_time or 0) / av.time_base
        self._continuity = Continuity()
        for kind, stream in (("video", video), ("audio", audio)):
            if stream is not None and stream.codec_context is None:
                self.info.unreadable[kind] = f"FFmpeg has no decoder for the {kind} track's codec"
        self._video: Any = None if "video" in self.info.unreadable or not want_video else video
        self._audio: Any = None if "audio" in self.info.unreadable else audio
        if not self.info.has_video and not self.info.has_audio:
            raise MediaError(name, "holds neither a video nor an audio stream")
        if self._video is None and self._audio is None and self.info.unreadable:
            raise MediaError(name, "; ".join(self.info.unreadable.values()))
        first = video.start_time if video is not None else None
        # Width of a pixel to its height; seconds from the start of the media to the first frame.
        self.aspect = float((video is not None and video.sample_aspect_ratio) or 1)
        self.video_start = 0.0 if first is None else max(0.0, float(first * video.time_base) - self._start)
        if self._video is not None:
            self._video.codec_context.thread_count = threads
            self._video.thread_type = "AUTO" if threads > 1 else "SLICE"

    def events(self) -> Iterator[Event]:
        name, damaged = self.info.name, 0
        try:
            for packet in self._packets():
                try:
                    frames: Any = packet.decode()
                except av.FFmpegError as error:
                    if isinstance(error, (av.error.TimeoutError, av.error.ExitError)):
                        raise
                    damaged += 1
                    continue
                for frame in frames:
                    yield from self._picture(frame) if isinstance(frame, av.VideoFrame) else self._sound(frame)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(name, f"stops being readable after {self._end():.2f} s ({_reason(error)})") from error
        yield from self._mix(None)
        yield from self._track.flush()
        self.info.duration = self._end()
        if damaged:
            self.info.warnings.append(f"{damaged} damaged packets were skipped")
        if self._continuity.jumps:
            self.info.warnings.append(f"timestamps jump {self._continuity.jumps} times; the jumps were closed")
        self._check_whole(damaged)

    def close(self) -> None:
        self._container.close()

    def _packets(self) -> Iterator[av.Packet[Any]]:
        """Packets of the chosen streams, then one without data for each stream."""
        streams = [s for s in (self._video, self._audio) if s is not None]
        late = False
        while streams:
            try:
                for packet in self._container.demux(streams):
                    if packet.pts is not None and packet.time_base is not None:
                        end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._start
                        self._demuxed = max(self._demuxed, end)
                    yield packet
            except IndexError:
                # PyAV trips over streams that begin after the header was read; reading goes on behind that packet.
                if not late:
                    self.info.warnings.append("a track that begins late was left out")
                late = True
                continue
            return

    def _clock(self, frame: av.VideoFrame | av.AudioFrame, kind: int, step: float) -> float | None:
        """When a decoded frame is to be shown or heard, in seconds from the start of the media."""
        if frame.time is None:
            return None
        time = frame.time - self._start
        return time + self._continuity.shift(kind, time, step)

    def _picture(self, frame: av.VideoFrame) -> Iterator[PyAVFrame]:
        step = min(LONGEST_STEP, float(1 / (self._video.average_rate or 25)))
        stamp = self._clock(frame, 0, step)
        time = self._time + step * bool(self._frames) if stamp is None else stamp
        self._time = time = max(time, self._time, 0.0)  # FFmpeg may report times that fall by a rounding error
        self._frames += 1
        # With a variable rate the stated duration may be that of another frame: no more than an average one counts.
        length = min(step, float(frame.duration * frame.time_base)) if frame.duration and frame.time_base else step
        self.info.duration = max(self.info.duration, time + length)
        if self._sampler.take(time):
            yield PyAVFrame(frame, time, self.aspect, self._scalers)

    def _sound(self, frame: av.AudioFrame) -> Iterator[AudioChunk]:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._mixed:
            yield from self._mix(None)
            self._mixer = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate)
            self._mixed = shape
        yield from self._mix(frame)

    def _mix(self, frame: av.AudioFrame | None) -> Iterator[AudioChunk]:
        """Downmix one block to mono float at its own rate, or flush the mixer, and resample."""
        if self._mixer is None:
            return
        for mixed in self._mixer.resample(frame):
            if mixed.sample_rate < SLOWEST:
                message = f"audio: got a sampling rate of {mixed.sample_rate} Hz, expected {SLOWEST} or more"
                raise MediaError(self.info.name, message)
            samples = np.ascontiguousarray(mixed.to_ndarray().reshape(-1), dtype=np.float32)
            time = self._clock(mixed, 1, len(samples) / mixed.sample_rate)
            yield from self._track.push(samples, mixed.sample_rate, time)
        self.info.duration = max(self.info.duration, self._track.end)

    def _end(self) -> float:
        return max(self.info.duration, self._track.end)

    def _check_whole(self, damaged: int) -> None:
        name, end = self.info.name, self.info.duration
        if self._video is None and self.info.has_video and end <= 0.0:
            return  # the pictures may hold something; whoever left them out knows
        if end <= 0.0:
            why = f"{damaged} damaged packets" if damaged else "no frames and no samples"
            raise MediaError(name, f"nothing in it can be decoded ({why})")
        stated = self._stated_end() if EXACT_DURATION & set(self._container.format.name.split(",")) else 0.0
        # With jumps closed the file is shorter than its header says, for a reason that is given.
        if not self._continuity.jumps and stated - max(end, self._demuxed) > max(LOST, 0.02 * stated):
            raise MediaError(name, f"is truncated: its header says {stated:.2f} s, its data ends at {end:.2f} s")

    def _stated_end(self) -> float:
        """Where the header says that the streams being read end, in seconds; 0 if it says nothing of them."""
        streams = [s for s in (self._video, self._audio) if s is not None]
        ends = [float(((s.start_time or 0) + s.duration) * s.time_base) - self._start for s in streams if s.duration]
        # Matroska, AVI and others state one duration for the whole file: it may be that of a stream not read.
        unread = self.info.has_video and self._video is None
        if len(ends) < len(streams) and not unread:
            ends.append((self._container.duration or 0) / av.time_base)
        return max(ends, default=0.0)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text if text else type(error).__name__
