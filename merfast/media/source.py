"""What can be read: naming a source, refusing what is none, and guarding open files."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from merfast.clip import Clip
from merfast.errors import MediaError

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Clip
"""What can be predicted: a path, a URL that FFmpeg opens, a file's content, an open binary file, or decoded arrays; for
timelines a camera or microphone, too (see `Device`)."""

_MICROPHONE = re.compile(r"(?:(?P<camera>.+)\+)?(?P<format>alsa|oss|pulse):(?P<name>.+)", re.DOTALL)
_VIDEO4LINUX = 81  # major number of its devices


@dataclass(frozen=True)
class Device:
    """A camera, a microphone, or both, as a string names them.

    A camera is a video device (`/dev/video0`, or a link to it), or `camera:0` by its number. A microphone is a kind of
    sound system as FFmpeg calls it, a colon, and the name of the device there: `alsa:hw:0`, `pulse:default`,
    `oss:/dev/dsp`. Both together are joined by a plus: `/dev/video0+alsa:hw:0`.

    A webcam's own microphone is another device to the system, and which of several is meant cannot be told; nor is
    sound recorded unasked. So it has to be named, and in the same string, as that is what a command line and lists of
    sources can hold; a plus needs no quotes in a shell. A file whose name looks like this is read as `./alsa:x`.

    Attributes:
        camera: path, or a number where cameras have no paths.
        microphone: kind of sound system, and name of the device there.
    """

    camera: str | int | None
    microphone: tuple[str, str] | None


def source_name(source: Source, index: int = 0) -> str:
    """What messages call a source; `index` is its place in the batch."""
    if isinstance(source, Clip):
        return source.name
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) or "''"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<bytes #{index}>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else f"<stream #{index}>"


def is_url(source: object) -> bool:
    return isinstance(source, str) and "://" in source


def is_file_object(source: object) -> bool:
    return hasattr(source, "read") and not isinstance(source, os.PathLike)


def check_source(source: Any, name: str) -> str | Reader | Device:
    """The source as a URL, an absolute path, a device, or a guarded file object.

    Raises:
        MediaError: it does not exist, is empty, or is of a kind that cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise MediaError(name, "is empty (0 bytes)")
        return Reader(io.BytesIO(source), name)
    if is_url(source):
        return str(source)
    if isinstance(source, (str, os.PathLike)):
        device = _device(os.fspath(source), name)
        return device if device is not None else _check_path(os.fspath(source), name)
    if isinstance(source, io.TextIOBase):
        raise MediaError(name, "is open as text, expected binary mode ('rb')")
    if is_file_object(source):
        return Reader(source, name)
    kind = type(source).__name__
    raise MediaError(name, f"got {kind}, expected a path, URL, bytes, binary file or Clip.from_arrays(...)")


def _device(text: str, name: str) -> Device | None:
    """What a string names, if that is a device.

    Raises:
        MediaError: there is no such camera, or it cannot be opened.
    """
    found = _MICROPHONE.fullmatch(text)
    microphone = (found["format"], found["name"]) if found else None
    which = found["camera"] if found else text
    camera: str | int | None = None
    if which is not None:
        number = re.fullmatch(r"camera:([0-9]{1,3})", which)
        linux = sys.platform == "linux"
        camera = which if number is None else f"/dev/video{number[1]}" if linux else int(number[1])
        if number is None and not is_camera(which):
            if microphone is not None:
                raise MediaError(name, f"{which!r} is no camera, expected one like /dev/video0 before the '+'")
            return None
        _check_camera(camera, name)
    return Device(camera, microphone)


def is_camera(path: str) -> bool:
    """Whether a path is a video device, or would be one if it were there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return re.match(r"/dev/(video[0-9]|v4l/)", path) is not None
    return stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == _VIDEO4LINUX


def _check_camera(camera: str | int, name: str) -> None:
    if isinstance(camera, int):
        return
    try:
        os.close(os.open(camera, os.O_RDWR | os.O_NONBLOCK))
    except FileNotFoundError:
        there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise MediaError(name, f"no such camera (there is {there})") from None
    except OSError as error:
        raise MediaError(name, f"the camera cannot be opened ({error.strerror})") from error


def _check_path(text: str, name: str) -> str:
    path = Path(text)
    if not text:
        raise MediaError(name, "is an empty path")
    try:
        if path.is_dir():
            raise MediaError(name, "is a directory, expected a media file")
        if not path.exists():
            raise MediaError(name, "no such file")
        if path.is_file():
            size = path.stat().st_size
            if not size:
                raise MediaError(name, "is empty (0 bytes)")
            with path.open("rb") as file:
                _check_riff(file.read(8), size, name)
    except (OSError, ValueError) as error:
        raise MediaError(name, f"cannot be opened ({error})") from error
    # Absolute, as FFmpeg would take what stands before a colon in a bare name for a protocol.
    return os.path.abspath(text)


def _check_riff(head: bytes, size: int, name: str) -> None:
    """WAV and AVI state their length in bytes; FFmpeg reads a shorter file as if it were whole."""
    if head[:4] != b"RIFF" or size is None:
        return
    stated = int.from_bytes(head[4:8], "little") + 8
    # Recorders that could not go back leave 0 or the largest number.
    if 8 < stated < 0xFFFF_FFF0 and size < 0.98 * stated:
        raise MediaError(name, f"is truncated: its header says {stated} bytes, it has {size}")


class Reader:
    """An open binary file as FFmpeg may safely use it, from its start where it can seek.

    FFmpeg's buffers are as long as what it asks for: a file object that returns more would write past their end.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self.name = file, name
        can_seek = getattr(file, "seekable", None)
        try:
            seekable = bool(can_seek()) if callable(can_seek) else hasattr(file, "seek")
            if seekable:
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                _check_riff(file.read(8), size, name)
                file.seek(0)
        except (OSError, ValueError) as error:
            raise MediaError(name, f"cannot be read ({error})") from error
        if seekable:
            # PyAV seeks if, and only if, these are there.
            self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes.

        Raises:
            MediaError: the file object returns something else.
        """
        data = self._file.read(size)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise MediaError(self.name, f"read() gave {type(data).__name__}, expected bytes: open it in binary mode")
        if 0 <= size < len(data):
            raise MediaError(self.name, f"read({size}) gave {len(data)} bytes, expected no more than asked for")
        return bytes(data)
