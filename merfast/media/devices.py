"""Cameras and microphones as devices: opened, read one picture or block of sound at a time, and their clocks."""

from __future__ import annotations

import os
import re
import time
from typing import Any, Protocol

import av
import cv2
import numpy as np
from av.container import InputContainer

from merfast.errors import MediaError
from merfast.types import ByteArray, FloatArray

CAMERA_FORMAT = "v4l2"
"""FFmpeg's device for cameras, where PyAV was built with it; otherwise OpenCV reads them."""

BLOCK = 0.04
"""Seconds of sound that are passed on at a time, at least: a sound card may give a few samples at a time."""

_CLOSE = 1.0  # seconds that a stamp may differ from now to be of a clock
_ASTRAY = 5.0  # seconds that stamps may differ from now later on, before their clock counts as set anew


class Camera(Protocol):
    def grab(self) -> float | None:
        """Wait for the next picture: when it was taken, by any clock that keeps time, or None if that is unknown.

        Raises:
            EOFError: there are no more.
        """

    def picture(self) -> av.VideoFrame | None:
        """The picture; None if it was damaged on its way."""

    def close(self) -> None: ...


class OpenCVCamera:
    """Read by OpenCV, which decodes only what is asked for.

    Args:
        camera: path or number.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, camera: str | int) -> None:
        numbered = re.fullmatch(r"/dev/video([0-9]+)", os.path.realpath(camera)) if isinstance(camera, str) else None
        if numbered:
            self._capture = cv2.VideoCapture(int(numbered[1]), cv2.CAP_V4L2)
        else:
            self._capture = cv2.VideoCapture(camera)
        if not self._capture.isOpened():
            raise OSError("OpenCV gets no pictures from it: another program may be using it")

    def grab(self) -> float | None:
        if not self._capture.grab():
            raise EOFError
        return float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000

    def picture(self) -> av.VideoFrame | None:
        there, image = self._capture.retrieve()
        if not there:
            return None
        bgr: ByteArray = np.ascontiguousarray(image, dtype=np.uint8)
        return av.VideoFrame.from_ndarray(bgr, format="bgr24")

    def close(self) -> None:
        self._capture.release()


class PyAVCamera:
    """Read by FFmpeg; pictures that stand for themselves are decoded only if they are asked for.

    Raises:
        av.FFmpegError: it cannot be opened.
    """

    def __init__(self, camera: str) -> None:
        self._container: InputContainer = av.open(camera, format=CAMERA_FORMAT)
        self._video = self._container.streams.video[0]
        self._each = not self._video.codec_context.codec.intra_only
        self._packets = self._container.demux(self._video)
        self._held: Any = None

    def grab(self) -> float | None:
        for packet in self._packets:
            if packet.size == 0 and packet.pts is None:
                break
            self._held = held = _decoded(packet) if self._each else packet
            if held is not None:
                return None if held.pts is None else float(held.pts * held.time_base)
        raise EOFError

    def picture(self) -> av.VideoFrame | None:
        frame = self._held if self._each else _decoded(self._held)
        if not isinstance(frame, av.VideoFrame):
            return None
        # A copy: the driver's own memory goes away with the container, and raw pictures lie there.
        rgb: ByteArray = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
        return av.VideoFrame.from_ndarray(rgb, format="rgb24")

    def close(self) -> None:
        self._container.close()


def _decoded(packet: Any) -> Any:
    """The last frame that comes out of a codec when a packet is put in; None if there is none."""
    try:
        frames = packet.decode()
    except av.FFmpegError:  # webcams cut JPEGs short now and then
        return None
    return frames[-1] if frames else None


class Microphone:
    """Sound of FFmpeg's device `kind`, mixed to mono.

    Raises:
        av.FFmpegError, ValueError: it cannot be opened.
    """

    def __init__(self, kind: str, name: str) -> None:
        try:
            self._container: InputContainer = av.open(name, format=kind)
        except av.FFmpegError:
            # FFmpeg asks for two channels, and a microphone may have one.
            self._container = av.open(name, format=kind, container_options={"channels": "1"})
        sound = self._container.streams.audio[0]
        self._packets = self._container.demux(sound)
        self._mixer = av.AudioResampler(format="flt", layout="mono", rate=sound.rate)
        self.rate = int(sound.rate)

    def read(self) -> tuple[float | None, FloatArray]:
        """When samples `[N]` were taken, by any clock that keeps time, and they themselves: `BLOCK` seconds or more.

        Raises:
            EOFError: there are no more.
        """
        parts: list[FloatArray] = []
        stamp: float | None = None
        for packet in self._packets:
            if not parts and packet.pts is not None:
                stamp = float(packet.pts * packet.time_base)
            for frame in packet.decode():
                parts += [m.to_ndarray().reshape(-1).astype(np.float32) for m in self._mixer.resample(frame)]
            if sum(map(len, parts)) >= BLOCK * self.rate:
                return stamp, np.concatenate(parts)
        raise EOFError

    def close(self) -> None:
        self._container.close()


class Clock:
    """Brings the stamps of one device to this machine's monotonic clock."""

    def __init__(self) -> None:
        self._shift: float | None = None

    def at(self, stamp: float | None, length: float = 0.0) -> float:
        """When something of `length` seconds that has just arrived began."""
        now = time.monotonic() - length
        if stamp is None:
            return now
        if self._shift is None or abs(stamp + self._shift - now) > _ASTRAY:
            shifts = (0.0, time.monotonic() - time.time())
            near = [shift for shift in shifts if abs(stamp + shift - now) < _CLOSE]
            self._shift = near[0] if near else now - stamp
        return stamp + self._shift


def open_camera(camera: str | int, name: str) -> Camera:
    try:
        return PyAVCamera(camera) if isinstance(camera, str) and has_format(CAMERA_FORMAT) else OpenCVCamera(camera)
    except (av.FFmpegError, cv2.error, OSError) as error:
        raise MediaError(name, f"the camera cannot be opened ({getattr(error, 'strerror', None) or error})") from error


def open_microphone(microphone: tuple[str, str], name: str) -> Microphone:
    kind, which = microphone
    if not has_format(kind):
        raise MediaError(name, f"{kind}:{which}: this build of PyAV has no {kind}")
    try:
        return Microphone(kind, which)
    except (av.FFmpegError, OSError, ValueError) as error:
        hint = "; for PyAV's own wheel, ALSA_CONFIG_PATH must name alsa.conf" if kind == "alsa" else ""
        reason = getattr(error, "strerror", None) or error
        raise MediaError(name, f"the microphone {kind}:{which} cannot be opened ({reason}{hint})") from error


def has_format(name: str) -> bool:
    try:
        av.ContainerFormat(name, "r")
    except ValueError:
        return False
    return True
