"""Sound and pictures that are pushed: checked, and brought to the forms that the rest of merfast reads."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from merfast.clip import check_samples, is_number
from merfast.errors import MediaError
from merfast.media.decode import Frame
from merfast.media.decode_arrays import ArrayFrame
from merfast.media.frames import PyAVFrame, new_scalers
from merfast.types import FloatArray

_FULL_SCALE = 32768.0  # of int16


def mono(name: str, samples: npt.ArrayLike, rate: object) -> FloatArray:
    """Samples `[N]` or `[N, channels]`, float or int16, as `[N]` float32 of their own memory.

    Raises:
        MediaError: another shape, type or rate, or NaN.
    """
    if not is_number(rate) or not 1000 <= rate <= 1_000_000 or rate != int(rate):
        raise MediaError(name, f"sound: got a rate of {rate!r}, expected a whole number of Hz from 1000 to 1000000")
    array = np.asarray(samples)
    whole = array.dtype == np.int16
    if array.ndim not in (1, 2) or not (whole or array.dtype.kind == "f") or (array.ndim == 2 and not array.shape[1]):
        got = f"{array.dtype} {list(array.shape)}"
        raise MediaError(name, f"sound: got {got}, expected float or int16 [N] or [N, channels]")
    out = array.astype(np.float32)
    if whole:
        out /= _FULL_SCALE
    check_samples(name, out.reshape(-1))
    return out if out.ndim == 1 else out.mean(1, dtype=np.float32)


class Pictures:
    """Pictures of one stream, all of one size.

    Args:
        name: of the stream, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._size: tuple[int, int] | None = None
        self._scalers = new_scalers()

    def check(self, picture: object) -> Callable[[float], Frame]:
        """What makes a frame of the picture, at a time; only then its memory is copied.

        Raises:
            MediaError: no picture, or one of another size than before.
        """
        if isinstance(picture, av.VideoFrame):
            self._check_size(picture.width, picture.height)
            given = picture
            return lambda time: self._frame(given, time)
        if isinstance(picture, (tuple, list)) and len(picture) in (2, 3):
            planes = self._planes(picture)
            return lambda time: self._frame(_stored(planes), time)
        array = np.asarray(picture)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
            got = f"{array.dtype} {list(array.shape)}"
            raise MediaError(
                self._name,
                f"picture: got {got}, expected uint8 [H, W, 3] in RGB order, planes (y, u, v) or (y, uv), or an "
                "av.VideoFrame",
            )
        self._check_size(array.shape[1], array.shape[0])
        return lambda time: ArrayFrame(array.copy(), time)

    def _check_size(self, width: int, height: int) -> None:
        if self._size is None:
            self._size = (width, height)
        if self._size != (width, height):
            before = f"{self._size[0]} x {self._size[1]}"
            raise MediaError(
                self._name, f"picture: got {width} x {height} pixels, expected {before} as before (reset() starts anew)"
            )

    def _planes(self, picture: tuple[object, ...] | list[object]) -> list[npt.NDArray[np.uint8]]:
        planes = [np.asarray(plane) for plane in picture]
        shapes = [plane.shape for plane in planes]
        height, width = shapes[0] if len(shapes[0]) == 2 else (0, 0)
        half = (height // 2, width // 2)
        expected = [(height, width), half, half] if len(planes) == 3 else [(height, width), (half[0], width)]
        fits = shapes == expected or (len(planes) == 2 and shapes[1] == (*half, 2))
        if not fits or any(p.dtype != np.uint8 for p in planes) or height < 2 or width < 2 or height % 2 or width % 2:
            got = ", ".join(f"{p.dtype} {list(p.shape)}" for p in planes)
            raise MediaError(
                self._name,
                f"picture: got planes {got}, expected uint8 [H, W] with [H/2, W/2] twice, or with [H/2, W]; H and W "
                "even",
            )
        self._check_size(width, height)
        return planes

    def _frame(self, frame: av.VideoFrame, time: float) -> Frame:
        aspect = getattr(frame, "sample_aspect_ratio", None) or Fraction(1)
        return PyAVFrame(frame, time, float(aspect), self._scalers)


def _stored(planes: list[npt.NDArray[np.uint8]]) -> av.VideoFrame:
    width = planes[0].shape[1]
    if len(planes) == 3:
        chroma = np.concatenate([p.reshape(-1) for p in planes[1:]]).reshape(-1, width)
        return av.VideoFrame.from_ndarray(np.concatenate([planes[0], chroma]), format="yuv420p")
    return av.VideoFrame.from_ndarray(np.concatenate([planes[0], planes[1].reshape(-1, width)]), format="nv12")
