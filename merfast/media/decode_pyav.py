"""Decoding with PyAV (FFmpeg): one pass over the packets of the best video and the best audio stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import IO, Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from merfast.errors import MediaError
from merfast.media.audio import AudioTrack
from merfast.media.decode import AudioChunk, Event, FrameSampler, MediaInfo, rotate, scaled_size
from merfast.types import ByteArray

OPEN_TIMEOUT, READ_TIMEOUT = 15.0, 30.0
"""Seconds that a network source may stall, when it is opened and while it is read."""

EXACT_DURATION = {"mov", "mp4", "matroska", "webm"}
"""Containers whose header states the duration, instead of leaving it to be estimated."""

LOST = 0.5
"""Seconds that may be missing at the end before a file counts as truncated (and at least 2 % of it)."""


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

    def _convert(self, width: int, height: int) -> ByteArray:
        frame = self._scalers[width, height].reformat(
            self._frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR
        )
        return rotate(np.asarray(frame.to_ndarray(), dtype=np.uint8), self._turn)


class PyAVMedia:
    """Reads a path, URL or binary file with FFmpeg.

    Args:
        source: path, URL, or an object with `read` (and `seek`, which most formats need).
        name: what messages call it.
        frame_rate: frames wanted a second, at most.
        want_video: False skips the video.
        threads: of the video codec.

    Raises:
        MediaError: FFmpeg cannot open it, or it has neither video nor audio.
    """

    def __init__(
        self, source: str | IO[bytes], name: str, *, frame_rate: float, want_video: bool, threads: int
    ) -> None:
        timeout = (OPEN_TIMEOUT, READ_TIMEOUT) if isinstance(source, str) and "://" in source else None
        try:
            self._container = av.open(source, mode="r", timeout=timeout, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(name, f"cannot be read as media ({_reason(error)})") from error
        video = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        best_video, best_audio = self._container.streams.best("video"), self._container.streams.best("audio")
        chosen: Any = best_video if best_video in video else next(iter(video), None)
        self._video = chosen
        self._audio: Any = best_audio
        self.info = MediaInfo(name, has_video=self._video is not None, has_audio=self._audio is not None)
        if not self.info.has_video and not self.info.has_audio:
            self.close()
            raise MediaError(name, "holds neither a video nor an audio stream")
        self._start = (self._container.start_time or 0) / av.time_base
        self.video_start = 0.0  # seconds from the start of the media to the first frame
        first = self._video.start_time if self._video is not None else None
        if first is not None:
            self.video_start = max(0.0, float(first * self._video.time_base) - self._start)
        if not want_video:
            self._video = None
        if self._video is not None:
            self._video.codec_context.thread_count = threads
            self._video.thread_type = "AUTO" if threads > 1 else "SLICE"
        self._sampler = FrameSampler(frame_rate)
        self._scalers: Scalers = defaultdict(VideoReformatter)
        self._track = AudioTrack(name)
        self._mixer: av.AudioResampler | None = None
        self._mixed: object = None
        self._time = 0.0  # of the last picture
        self._frames = 0

    def events(self) -> Iterator[Event]:
        name, damaged = self.info.name, 0
        streams = [s for s in (self._video, self._audio) if s is not None]
        try:
            for packet in self._container.demux(streams) if streams else ():
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
        self._check_whole(damaged)

    def close(self) -> None:
        self._container.close()

    def _picture(self, frame: av.VideoFrame) -> Iterator[PyAVFrame]:
        step = float(1 / (self._video.average_rate or 25))
        time = self._time + step * bool(self._frames) if frame.time is None else frame.time - self._start
        self._time = time = max(time, self._time, 0.0)  # FFmpeg may report times that fall by a rounding error
        self._frames += 1
        # With a variable rate the stated duration may be that of another frame: no more than an average one counts.
        length = min(step, float(frame.duration * frame.time_base)) if frame.duration and frame.time_base else step
        self.info.duration = max(self.info.duration, time + length)
        if self._sampler.take(time):
            aspect = float(self._video.sample_aspect_ratio or 1) or 1.0
            yield PyAVFrame(frame, time, aspect, self._scalers)

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
            samples = np.ascontiguousarray(mixed.to_ndarray().reshape(-1), dtype=np.float32)
            time = None if mixed.time is None else mixed.time - self._start
            yield from self._track.push(samples, mixed.sample_rate, time)
        self.info.duration = max(self.info.duration, self._track.end)

    def _end(self) -> float:
        return max(self.info.duration, self._track.end)

    def _check_whole(self, damaged: int) -> None:
        name, end = self.info.name, self.info.duration
        if self._video is None and self._audio is None:
            return
        if end <= 0.0:
            why = f"{damaged} damaged packets" if damaged else "no frames and no samples"
            raise MediaError(name, f"nothing in it can be decoded ({why})")
        formats = set(self._container.format.name.split(","))
        stated = (self._container.duration or 0) / av.time_base
        if formats & EXACT_DURATION and self._video is not None and stated - end > max(LOST, 0.02 * stated):
            raise MediaError(name, f"is truncated: its header says {stated:.2f} s, its data ends at {end:.2f} s")


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text if text else type(error).__name__
