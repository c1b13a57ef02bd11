"""Cameras and microphones: each is read in a thread of its own, and both are put on one clock.

**Clock.** Times count from what arrives first, by this machine's monotonic clock. Drivers stamp what they capture by
that clock or by the wall clock, whose difference is taken once, and again after it was set; what is stamped by any
other clock counts from its first arrival. So sound and picture agree as well as the drivers' stamps do.

**When the reader is behind** a device cannot wait. What was captured is kept for `BACKLOG` seconds; then the oldest is
left out, and a warning says so. Times stay true: a window of what was left out holds less of it, or nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import av
import cv2
import torch

from merfast.errors import MediaError
from merfast.media.audio import AudioTrack
from merfast.media.decode import LIVE_LAG, AudioChunk, Event, Frame, FrameSampler, MediaInfo
from merfast.media.devices import Camera, Clock, Microphone, open_camera, open_microphone
from merfast.media.frames import PyAVFrame, new_scalers
from merfast.media.interrupt import told_to_end
from merfast.media.source import Device
from merfast.media.surfaces import SurfaceFrame
from merfast.types import FloatArray

BACKLOG = 2.0
"""Seconds of pictures and sound that wait for the reader, at most."""

PATIENCE = 1.0
"""Seconds to wait for the threads when closing: one that waits for its driver ends when that gives up."""

MOST_WARNINGS = 100

_APART = 10.0  # seconds from one warning to the next


Sound = tuple[FloatArray, int]  # samples [N], and their rate in Hz


class _Shelf:
    """What has been captured and not been read yet: `BACKLOG` seconds of it, at most."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._entries: deque[tuple[float, av.VideoFrame | Sound]] = deque()
        self._origin: float | None = None
        self._error: BaseException | None = None
        self._lost = 0  # entries, since the last that was taken
        self.over = False

    def since(self, moment: float) -> float:
        """Seconds since the first moment that was asked for."""
        with self._change:
            self._origin = moment if self._origin is None else self._origin
            return moment - self._origin

    def put(self, at: float, what: av.VideoFrame | Sound) -> None:
        with self._change:
            self._entries.append((at, what))
            while at - self._entries[0][0] > BACKLOG:
                self._entries.popleft()
                self._lost += 1
            self._change.notify()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more is captured."""
        with self._change:
            self.over = True
            self._error = self._error or error
            self._change.notify()

    def take(self) -> tuple[float, av.VideoFrame | Sound, int]:
        """The oldest entry, and how many were lost before it.

        Raises:
            InterruptedError: this thread was told to end.
            Exception: what ended the capture, after all entries.
        """
        with self._change:
            while not self._entries:
                if told_to_end():
                    raise InterruptedError
                if self.over:
                    raise self._error or EOFError()
                self._change.wait(0.1)
            lost, self._lost = self._lost, 0
            return *self._entries.popleft(), lost


class CameraMedia:
    """Reads a camera, a microphone, or both, without end.

    Args:
        device: which.
        name: what messages call it.
        frame_rate: pictures wanted a second, at most.
        want_video: False leaves the camera alone.
        surfaces: device that pictures are brought to, as `SurfaceFrame`s; None leaves them in the CPU's memory.

    Raises:
        MediaError: a device cannot be opened, or there is none to read.
    """

    def __init__(
        self, device: Device, name: str, *, frame_rate: float, want_video: bool, surfaces: torch.device | None = None
    ) -> None:
        self.info = MediaInfo(
            name, has_video=device.camera is not None, has_audio=device.microphone is not None, lag=LIVE_LAG
        )
        self._surfaces, self._scalers = surfaces, new_scalers()
        self._track = AudioTrack(name)
        self._sampler = FrameSampler(frame_rate)
        self._shelf = _Shelf()
        self._threads: list[threading.Thread] = []
        self._warned = -math.inf  # when something was left out last, seconds
        if device.microphone is None and not want_video:
            raise MediaError(name, "faces are not looked for, and there is no microphone, as in /dev/video0+alsa:hw:0")
        camera = None if device.camera is None or not want_video else open_camera(device.camera, name)
        try:
            microphone = None if device.microphone is None else open_microphone(device.microphone, name)
        except MediaError:
            if camera is not None:
                camera.close()
            raise
        if camera is not None:
            self._start(self._film(camera), camera.close)
        if microphone is not None:
            self._start(self._listen(microphone), microphone.close)

    def events(self) -> Iterator[Event]:
        while True:
            try:
                at, what, lost = self._shelf.take()
            except InterruptedError:
                raise MediaError(self.info.name, "reading was ended") from None
            except EOFError:
                after = f"after {self.info.duration:.2f} s"
                raise MediaError(self.info.name, f"gives nothing more {after}: was it unplugged?") from None
            except (av.FFmpegError, cv2.error, OSError, ValueError) as error:
                after = f"after {self.info.duration:.2f} s"
                raise MediaError(self.info.name, f"stops being readable {after} ({error})") from error
            if lost:
                self._warn(at)
            if isinstance(what, av.VideoFrame):
                self.info.duration = max(self.info.duration, at)
                yield self._show(what, at)
            else:
                yield from self._hear(at, *what)

    def close(self) -> None:
        self._shelf.end()
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _warn(self, at: float) -> None:
        """Say that what was captured before `at` seconds was left out: once for each time, and not without end."""
        if at - self._warned > _APART and len(self.info.warnings) < MOST_WARNINGS:
            self.info.warnings.append(f"the reader was behind: some of what was captured before {at:.2f} s is left out")
        self._warned = at

    def _show(self, frame: av.VideoFrame, at: float) -> Frame:
        if self._surfaces is None:
            return PyAVFrame(frame, at, 1.0, self._scalers)
        return SurfaceFrame.of(frame, at, 1.0, self._surfaces, self._scalers)

    def _hear(self, at: float, samples: FloatArray, rate: int) -> Iterator[AudioChunk]:
        if at < 0:  # a block that began before all else had arrived
            samples, at = samples[math.ceil(-at * rate) :], 0.0
        yield from self._track.push(samples, rate, at)
        self.info.duration = max(self.info.duration, self._track.end)

    def _start(self, captured: Iterator[tuple[float, av.VideoFrame | Sound]], close: Callable[[], None]) -> None:
        def work() -> None:
            error: BaseException = EOFError()
            try:
                for at, what in captured:
                    self._shelf.put(at, what)
                    if self._shelf.over:
                        break
            except BaseException as failure:
                error = failure
            finally:
                close()
                self._shelf.end(error)

        thread = threading.Thread(target=work, name="merfast-capture", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _film(self, camera: Camera) -> Iterator[tuple[float, av.VideoFrame]]:
        clock, last = Clock(), 0.0
        while not self._shelf.over:
            at = self._shelf.since(clock.at(camera.grab()))
            at = last = max(at, last)
            if self._sampler.take(at) and (picture := camera.picture()) is not None:
                yield at, picture

    def _listen(self, microphone: Microphone) -> Iterator[tuple[float, Sound]]:
        clock = Clock()
        while not self._shelf.over:
            stamp, samples = microphone.read()
            yield self._shelf.since(clock.at(stamp, len(samples) / microphone.rate)), (samples, microphone.rate)
