"""Decoding, the contract: any source becomes timed events, frames and 16 kHz mono audio, read once from front to back.

`decode_pyav.py` (default, on the CPU and by NVDEC), `decode_pynvvideocodec.py`, `decode_torchcodec.py`,
`decode_decord.py`, `decode_camera.py` and `decode_arrays.py` (for `Clip`) fulfil it. Frames are lazy: what a decoder
yields has a timestamp and a size, and is converted to pixels only where somebody asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from merfast.clip import Clip
from merfast.media.faces import Box
from merfast.media.source import Device, Source, check_source
from merfast.trace import spanned
from merfast.types import SAMPLE_RATE, ByteArray, FloatArray

if TYPE_CHECKING:
    import torch

    from merfast.ops.crop_norm import Crop


class Frame(Protocol):
    """A decoded picture, upright and with square pixels, not yet converted."""

    time: float  # seconds from the start of the media
    width: int
    height: int

    def rgb(self) -> ByteArray:
        """`[height, width, 3]` uint8 RGB."""

    def small(self, longest: int) -> ByteArray:
        """`[h, w, 3]` uint8 RGB, scaled down so that the longer side has at most `longest` pixels."""

    def crops(self, boxes: Sequence[Box], size: int, crop: Crop) -> Sequence[ByteArray]:
        """`[size, size, 3]` uint8 RGB of each box, in pixels of the picture; beyond the border the edge is repeated.

        Args:
            boxes: squares, rounded to whole pixels; where they lie does not matter.
            size: side of the crops.
            crop: cuts uint8 crops of that size out of planes, for frames that are 8-bit 4:2:0; others convert the whole
                picture to RGB and cut that.
        """


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """16 kHz mono samples; `start` counts samples from the start of the media."""

    start: int
    samples: FloatArray


Event = Frame | AudioChunk

LIVE_LAG = 2.0
"""`MediaInfo.lag` of live sources, whose windows are to come soon."""

ON_DEVICE = ("nvdec", "pynvvideocodec")
"""Decoders whose frames are `SurfaceFrame`s on a GPU."""


@dataclass
class MediaInfo:
    """What is known of an open source.

    Attributes:
        has_video, has_audio: whether there is such a track.
        unreadable: "video" or "audio" -> why that track cannot be decoded.
        duration: seconds; final when all has been read.
        warnings: what went wrong without being fatal; complete when all has been read.
        lag: seconds that one track may be behind the other, as when it has ended, before windows are cut without it.
    """

    name: str
    has_video: bool
    has_audio: bool
    unreadable: dict[str, str] = field(default_factory=dict)
    duration: float = 0.0
    warnings: list[str] = field(default_factory=list)
    lag: float = 30.0


class Media(Protocol):
    """An open source. Iterate once over `events`, then `close`."""

    info: MediaInfo

    def events(self) -> Iterator[Event]:
        """Frames (no more than the asked rate) and audio, each in order of time.

        Raises:
            MediaError: the data is damaged beyond use, or ends long before its header says.
        """

    def close(self) -> None:
        """Release files and decoders; safe to call twice."""


class FrameSampler:
    """Picks the frames to look at: the first at or after each multiple of 1 / rate seconds."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._next = 0.0

    def take(self, time: float) -> bool:
        """Whether the frame at `time` is wanted; times must not fall."""
        if time < self._next:
            return False
        # A hundredth of a step of slack, for timestamps rounded just below the grid.
        self._next = (math.floor(time * self.rate + 0.01) + 1 - 0.01) / self.rate
        return True


def interleave(frames: Iterator[Frame], sound: Iterator[AudioChunk]) -> Iterator[Event]:
    """Both in order of time: sound is never behind the frames, and a chunk ahead of them at most."""
    heard = 0.0
    for frame in frames:
        while heard <= frame.time and (chunk := next(sound, None)) is not None:
            heard = (chunk.start + len(chunk.samples)) / SAMPLE_RATE
            yield chunk
        yield frame
    yield from sound


def scaled_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) scaled down so that the longer one is at most `longest`, neither below 1."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def rotate(image: ByteArray, degrees: int) -> ByteArray:
    """Turn `[H, W, 3]` counterclockwise by a multiple of 90 degrees."""
    return np.ascontiguousarray(np.rot90(image, degrees // 90)) if degrees % 360 else image


@spanned("open")
def open_media(
    source: Source,
    *,
    name: str,
    decoder: str,
    frame_rate: float,
    want_video: bool = True,
    threads: int = 1,
    surfaces: torch.device | None = None,
) -> Media:
    """Open any source for reading.

    Args:
        source: what to read.
        name: what messages call it.
        decoder: "pyav", "nvdec", "pynvvideocodec", "torchcodec" or "decord"; none of them matters to cameras.
        frame_rate: frames wanted a second, at most.
        want_video: False skips the video, as where faces are not looked for.
        threads: for the video codec on the CPU.
        surfaces: device on which the frames of files and URLs are to lie, as `SurfaceFrame`s, with "pyav" (where it may
            be the CPU), "nvdec" and "pynvvideocodec" (which need a CUDA device). "torchcodec" and "decord" decode on
            it, and give frames in the CPU's memory.

    Raises:
        MediaError: it cannot be opened, or has neither video nor audio.
        UnavailableError: the decoder is not installed.
        ValueError: the decoder needs a CUDA device.
    """
    arguments: dict[str, Any] = {"frame_rate": frame_rate, "want_video": want_video}
    if isinstance(source, Clip):
        from merfast.media.decode_arrays import ArrayMedia

        return ArrayMedia(source, **arguments)
    arguments |= {"threads": threads, "surfaces": surfaces}
    if decoder in ON_DEVICE and (surfaces is None or surfaces.type != "cuda"):
        raise ValueError(f"decoder {decoder!r}: got surfaces={surfaces}, expected a CUDA device")
    opened = check_source(source, name)
    if isinstance(opened, Device):
        from merfast.media.decode_camera import CameraMedia

        return CameraMedia(opened, name, frame_rate=frame_rate, want_video=want_video, surfaces=surfaces)
    if decoder == "decord":
        from merfast.media.decode_decord import DecordMedia

        return DecordMedia(opened, name, **arguments)
    if decoder == "torchcodec":
        from merfast.media.decode_torchcodec import TorchCodecMedia

        return TorchCodecMedia(opened, name, **arguments)
    if decoder == "pynvvideocodec":
        from merfast.media.decode_pynvvideocodec import PyNvMedia

        return PyNvMedia(opened, name, **arguments)
    from merfast.media.decode_pyav import PyAVMedia

    return PyAVMedia(opened, name, hardware=decoder == "nvdec", **arguments)
