"""Pictures from another library, sound from PyAV: what those adapters share."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch

from merfast.errors import MediaError
from merfast.media.decode import AudioChunk, Event, Frame, interleave
from merfast.media.decode_arrays import ArrayFrame
from merfast.media.decode_pyav import PyAVMedia
from merfast.media.source import Reader, is_url
from merfast.types import ByteArray


class MixedMedia(ABC):
    """Reads a path or binary file; arguments and errors as for `PyAVMedia`. Its frames lie in the CPU's memory.

    Args:
        surfaces: device to decode on, where the library can; None means the CPU.
    """

    library: str

    def __init__(
        self,
        source: str | Reader,
        name: str,
        *,
        frame_rate: float,
        want_video: bool,
        threads: int,
        surfaces: torch.device | None = None,
    ) -> None:
        if is_url(source):
            raise MediaError(name, f"{self.library} reads files only, not URLs: use decoder='pyav'")
        pictures: Any = source
        if isinstance(source, Reader):
            content = source.read()
            source, pictures = Reader(io.BytesIO(content), name), io.BytesIO(content)
        self._sound = PyAVMedia(source, name, frame_rate=frame_rate, want_video=False, threads=1)
        self.info = self._sound.info
        self._rate = frame_rate
        self._end = 0.0  # of the last picture, seconds
        self._opened = False
        if want_video and self.info.has_video:
            try:
                self._open(pictures, threads, surfaces or torch.device("cpu"))
            except BaseException:
                self._sound.close()
                raise
            self._opened = True

    def events(self) -> Iterator[Event]:
        sound = (e for e in self._sound.events() if isinstance(e, AudioChunk))
        frames = self._frames() if self._opened else iter(())
        yield from interleave(frames, sound if self.info.has_audio else iter(()))
        self.info.duration = max(self.info.duration, self._end)

    def close(self) -> None:
        self._opened = False
        self._sound.close()

    @abstractmethod
    def _open(self, pictures: Any, threads: int, device: torch.device) -> None:
        """Open the library's reader of a path or `io.BytesIO`.

        Raises:
            MediaError: it cannot.
            UnavailableError: the library is not installed.
        """

    @abstractmethod
    def _frames(self) -> Iterator[Frame]:
        """The frames of the wanted rate, in order; sets `_end`."""

    def _frame(self, image: ByteArray, time: float) -> Frame:
        """A frame of a picture `[H, W, 3]` as it is stored but for rotation, with square pixels."""
        if self._sound.aspect != 1:
            size = max(1, round(image.shape[1] * self._sound.aspect)), image.shape[0]
            image = np.asarray(cv2.resize(image, size), dtype=np.uint8)
        return ArrayFrame(image, max(0.0, time))

    def _failed(self, doing: str, error: Exception) -> MediaError:
        text = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return MediaError(self.info.name, f"cannot be {doing} by {self.library} ({text})")
