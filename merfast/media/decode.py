"""Decoding, the contract: any source becomes timed events, frames and 16 kHz mono audio, read once from front to back.

`decode_pyav.py` (default), `decode_decord.py` and `decode_arrays.py` (for `Clip`) fulfil it. Frames are lazy: what a
decoder yields has a timestamp and a size, and is converted to pixels only where somebody asks for them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np

from merfast.errors import MediaError
from merfast.types import ByteArray, Clip, FloatArray

Source = str | Path | bytes | bytearray | memoryview | IO[bytes] | Clip
"""What can be predicted: a path, a URL that FFmpeg opens, a file's content, an open binary file, or decoded arrays."""


class Frame(Protocol):
    """A decoded picture, upright and with square pixels, not yet converted."""

    time: float  # seconds from the start of the media
    width: int
    height: int

    def rgb(self) -> ByteArray:
        """`[height, width, 3]` uint8 RGB."""

    def small(self, longest: int) -> ByteArray:
        """`[h, w, 3]` uint8 RGB, scaled down so that the longer side has at most `longest` pixels."""


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """16 kHz mono samples; `start` counts samples from the start of the media."""

    start: int
    samples: FloatArray


Event = Frame | AudioChunk


@dataclass
class MediaInfo:
    """What is known of an open source; `duration` is final, and `warnings` complete, when it has been read."""

    name: str
    has_video: bool
    has_audio: bool
    duration: float = 0.0
    warnings: list[str] = field(default_factory=list)


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


def scaled_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) scaled down so that the longer one is at most `longest`, neither below 1."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def rotate(image: ByteArray, degrees: int) -> ByteArray:
    """Turn `[H, W, 3]` counterclockwise by a multiple of 90 degrees."""
    return np.ascontiguousarray(np.rot90(image, degrees // 90)) if degrees % 360 else image


def source_name(source: Source, index: int = 0) -> str:
    """What messages call a source; `index` is its place in the batch."""
    if isinstance(source, Clip):
        return source.name
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<bytes #{index}>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<stream #{index}>"


def is_url(source: object) -> bool:
    return isinstance(source, str) and "://" in source


def check_source(source: Any, name: str) -> str | IO[bytes]:
    """The source as a path, URL or binary file object.

    Raises:
        MediaError: it does not exist, is empty, or is of a kind that cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise MediaError(name, "is empty (0 bytes)")
        return io.BytesIO(source)
    if isinstance(source, str) and is_url(source):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            raise MediaError(name, "is a directory, expected a media file")
        if not path.exists():
            raise MediaError(name, "no such file")
        if path.is_file() and not path.stat().st_size:
            raise MediaError(name, "is empty (0 bytes)")
        return str(path)
    if isinstance(source, io.TextIOBase):
        raise MediaError(name, "is open as text, expected binary mode ('rb')")
    if hasattr(source, "read"):
        return cast("IO[bytes]", source)
    kind = type(source).__name__
    raise MediaError(name, f"got {kind}, expected a path, URL, bytes, binary file or Clip.from_arrays(...)")


def open_media(
    source: Source, *, name: str, decoder: str, frame_rate: float, want_video: bool = True, threads: int = 1
) -> Media:
    """Open any source for reading.

    Args:
        source: what to read.
        name: what messages call it.
        decoder: "pyav" or "decord".
        frame_rate: frames wanted a second, at most.
        want_video: False skips the video, as where faces are not looked for.
        threads: for the video codec.

    Raises:
        MediaError: it cannot be opened, or has neither video nor audio.
    """
    arguments: dict[str, Any] = {"frame_rate": frame_rate, "want_video": want_video}
    if isinstance(source, Clip):
        from merfast.media.decode_arrays import ArrayMedia

        return ArrayMedia(source, **arguments)
    opened = check_source(source, name)
    if decoder == "decord":
        from merfast.media.decode_decord import DecordMedia

        return DecordMedia(opened, name, threads=threads, **arguments)
    from merfast.media.decode_pyav import PyAVMedia

    return PyAVMedia(opened, name, threads=threads, **arguments)
