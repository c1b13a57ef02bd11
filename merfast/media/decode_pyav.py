"""Decoding with PyAV (FFmpeg): one pass over the packets of the best video and the best audio stream."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition

from merfast.errors import MediaError
from merfast.media import interrupt, nvdec
from merfast.media.audio import AudioTrack
from merfast.media.decode import LIVE_LAG, AudioChunk, Event, Frame, FrameSampler, MediaInfo
from merfast.media.frames import PyAVFrame, new_scalers
from merfast.media.source import Reader, is_url
from merfast.media.surfaces import SurfaceFrame, unexportable
from merfast.media.timestamps import Continuity

log = logging.getLogger("merfast")

OPEN_TIMEOUT, READ_TIMEOUT = 15.0, 30.0
"""Seconds that a network source may stall, when it is opened and while it is read."""

NETWORK_OPTIONS = {
    "analyzeduration": "2000000",  # microseconds; what is read to find out what a stream holds is not lost, only late
    "rtsp_flags": "prefer_tcp",  # over UDP, packets are lost where the network or this process is busy
}
"""Of FFmpeg, for URLs."""

_STALLED = "nothing came for {:g} s"

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


class PyAVMedia:
    """Reads a path, URL or binary file with FFmpeg.

    Args:
        source: path, URL, or open file (which most formats need to seek in).
        name: what messages call it.
        frame_rate: frames wanted a second, at most.
        want_video: False skips the video.
        threads: of the video codec on the CPU.
        surfaces: device that pictures are brought to, as `SurfaceFrame`s; None leaves them where FFmpeg puts them.
        hardware: decode by NVDEC on the device `surfaces` what it takes, and the rest on the CPU.

    Raises:
        MediaError: FFmpeg cannot open it, or it has neither video nor audio that it can decode.
    """

    def __init__(
        self,
        source: str | Reader,
        name: str,
        *,
        frame_rate: float,
        want_video: bool,
        threads: int,
        surfaces: torch.device | None = None,
        hardware: bool = False,
    ) -> None:
        self._surfaces = surfaces
        gpu = surfaces if hardware and want_video else None
        self._container = _open(source, name, gpu)
        try:
            self._live = is_url(source) and _is_endless(self._container)
            self._choose(name, want_video, threads if gpu is None else 1)
            if gpu is not None and self._has_odd_size() and _rewind(source):
                self._refused("odd size")  # what NVDEC makes of it cannot be taken over whole
                gpu = None
                self._container.close()
                self._container = _open(source, name, None)
                self._choose(name, want_video, threads)
        except BaseException:
            self.close()
            raise
        self._hoped = gpu is not None  # for pictures made by NVDEC, until the first one says
        self._sampler = FrameSampler(frame_rate)
        self._scalers = new_scalers()
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
        if self._live:
            self.info.lag = LIVE_LAG
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
        self.video_index = -1 if video is None else int(video.index)
        self.aspect = float((video is not None and video.sample_aspect_ratio) or 1)
        self.video_start = 0.0 if first is None else max(0.0, float(first * video.time_base) - self._start)
        if self._video is not None:
            self._video.codec_context.thread_count = threads
            # With a picture for each thread, one comes out only when as many more have come in: too late for live ones.
            self._video.thread_type = "AUTO" if threads > 1 and not self._live else "SLICE"

    def _has_odd_size(self) -> bool:
        codec = None if self._video is None else self._video.codec_context
        return codec is not None and bool(codec.width % 2 or codec.height % 2)

    def events(self) -> Iterator[Event]:
        name, damaged = self.info.name, 0
        try:
            for packet in self._packets():
                try:
                    frames = self._decode(packet)
                except av.FFmpegError as error:
                    if isinstance(error, (av.error.TimeoutError, av.error.ExitError)):
                        raise
                    damaged += 1
                    continue
                for frame in frames:
                    yield from self._sound(frame) if isinstance(frame, av.AudioFrame) else self._picture(frame)
        except (av.FFmpegError, OSError, ValueError) as error:
            # To FFmpeg this is how an HTTP stream of no stated length ends, be it meant or not.
            if not (self._live and isinstance(error, OSError) and error.errno == errno.EIO and self._end() > 0):
                reason = _reason(error, READ_TIMEOUT)
                raise MediaError(name, f"stops being readable after {self._end():.2f} s ({reason})") from error
            self.info.warnings.append("the connection was closed")
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
        late, began = False, time.monotonic()
        while streams:
            try:
                for packet in self._container.demux(streams):
                    if self._live and not packet.size and time.monotonic() - began >= READ_TIMEOUT:
                        raise TimeoutError(_STALLED.format(READ_TIMEOUT))  # which FFmpeg's HLS takes for the end
                    if packet.pts is not None and packet.time_base is not None:
                        end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._start
                        self._demuxed = max(self._demuxed, end)
                    yield packet
                    began = time.monotonic()
            except IndexError:
                # PyAV trips over streams that begin after the header was read; reading goes on behind that packet.
                if not late:
                    self.info.warnings.append("a track that begins late was left out")
                late = True
                continue
            return

    def _decode(self, packet: av.Packet[Any]) -> Iterable[Any]:
        """What comes out of a codec when a packet is put in."""
        return packet.decode()

    def _clock(self, frame: Any, kind: int, step: float) -> float | None:
        """When a decoded frame is to be shown or heard, in seconds from the start of the media."""
        if frame.time is None:
            return None
        time = float(frame.time) - self._start
        return time + self._continuity.shift(kind, time, step)

    def _picture(self, frame: Any) -> Iterator[Frame]:
        step = min(LONGEST_STEP, float(1 / (self._video.average_rate or 25)))
        stamp = self._clock(frame, 0, step)
        time = self._time + step * bool(self._frames) if stamp is None else stamp
        self._time = time = max(time, self._time, 0.0)  # FFmpeg may report times that fall by a rounding error
        self._frames += 1
        # With a variable rate the stated duration may be that of another frame: no more than an average one counts.
        length = min(step, float(frame.duration * frame.time_base)) if frame.duration and frame.time_base else step
        self.info.duration = max(self.info.duration, time + length)
        if self._sampler.take(time):
            yield self._show(frame, time)

    def _show(self, frame: Any, time: float) -> Frame:
        """A picture as the caller wants it."""
        if self._hoped:
            self._hoped = False
            if frame.format.name != "cuda":
                self._refused(f"NVDEC refuses {frame.format.name}")
            elif why := unexportable(frame):
                log.info("%s: NVDEC's pictures go through the CPU (%s)", self.info.name, f"each {why}")
        if self._surfaces is None:
            return PyAVFrame(frame, time, self.aspect, self._scalers)
        return SurfaceFrame.of(frame, time, self.aspect, self._surfaces, self._scalers)

    def _refused(self, why: str) -> None:
        codec = self._video.codec_context
        log.info("%s: decoded on the CPU (%s, %s %dx%d)", self.info.name, why, codec.name, codec.width, codec.height)

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


def _open(source: str | Reader, name: str, gpu: torch.device | None) -> InputContainer:
    """A container whose video is decoded on a GPU as far as it can be, or on the CPU."""
    network: dict[str, Any] = {}
    if is_url(source):
        interrupt.prepare()
        network = {"timeout": (OPEN_TIMEOUT, READ_TIMEOUT), "container_options": NETWORK_OPTIONS}
    try:
        with nullcontext() if gpu is None else nvdec.primary_context(gpu):
            accelerator = None if gpu is None else nvdec.hwaccel(gpu)
            opened: InputContainer = av.open(
                source, mode="r", metadata_errors="replace", hwaccel=accelerator, **network
            )
            return opened
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(name, f"cannot be read as media ({_reason(error, OPEN_TIMEOUT)})") from error


def _is_endless(container: InputContainer) -> bool:
    """Whether what comes over the network comes as it happens: it has no end yet, or is from a camera."""
    kind = container.format.name
    # What has a size and no duration is a file, but for lists of segments: that is the list's size.
    return kind == "rtsp" or (container.duration is None and (container.size <= 0 or kind in ("hls", "dash")))


def _rewind(source: str | Reader) -> bool:
    """Make a source ready to be opened again; False if it cannot be."""
    if isinstance(source, Reader) and hasattr(source, "seek"):
        source.seek(0)
    return not isinstance(source, Reader) or hasattr(source, "seek")


def _reason(error: Exception, patience: float) -> str:
    if isinstance(error, av.error.ExitError):  # the only exit that somebody waits for is that after a timeout
        return _STALLED.format(patience)
    text = getattr(error, "strerror", None) or str(error)
    return text if text else type(error).__name__
