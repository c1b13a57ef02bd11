"""Pictures as FFmpeg decodes them, and how a stored picture lies in the upright one with square pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from merfast.media.decode import rotate, scaled_size
from merfast.media.faces import Box, crop_square, whole_pixels
from merfast.ops.crop_norm import Crop, Planes
from merfast.types import ByteArray

MATRICES = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601"}
"""AVColorSpace -> matrix. What is unspecified (2) counts as BT.601, as in swscale, which makes `PyAVFrame.rgb`."""

FULL_RANGE = 2
"""AVColorRange of pictures that use 0 to 255; anything else is taken for limited, as in swscale."""

Scalers = defaultdict[tuple[int, int, str], VideoReformatter]
"""One for each size and format asked for: a scaler that alternates sets itself up anew every time."""


def new_scalers() -> Scalers:
    return defaultdict(VideoReformatter)


class Geometry(NamedTuple):
    """How a picture is stored, and how it is to be shown."""

    columns: int  # pixels, as stored
    rows: int
    aspect: float  # width of a stored pixel to its height
    turn: int  # degrees counterclockwise that make it upright, a multiple of 90

    @property
    def square(self) -> tuple[int, int]:
        """(width, height) with square pixels, before rotation."""
        return max(1, round(self.columns * self.aspect)), self.rows

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) with square pixels, after rotation."""
        wide, high = self.square
        return (wide, high) if self.turn % 180 == 0 else (high, wide)

    def locate(self, box: Box) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in stored pixels, of a box that is rounded to whole pixels when upright."""
        left, top, side = whole_pixels(box)
        right, bottom = left + side, top + side
        wide, high = self.square
        left, top, right, bottom = {
            0: (left, top, right, bottom),
            90: (wide - bottom, left, wide - top, right),
            180: (wide - right, high - bottom, wide - left, high - top),
            270: (top, high - right, bottom, high - left),
        }[self.turn % 360]
        stretch = self.columns / wide
        return left * stretch, float(top), right * stretch, float(bottom)


def geometry_of(frame: av.VideoFrame, aspect: float) -> Geometry:
    return Geometry(frame.width, frame.height, aspect, round(frame.rotation / 90) * 90)


def planes_of(frame: av.VideoFrame) -> Planes | None:
    """The decoder's memory, one picture before rotation; None unless it is 8-bit 4:2:0 BT.601 or BT.709."""
    kind, matrix, own = frame.format.name, MATRICES.get(frame.colorspace), frame.planes
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


class PyAVFrame:
    """A decoded picture in the codec's own format.

    Args:
        frame: in the CPU's memory.
        time: seconds from the start of the media.
        aspect: width of a pixel to its height.
        scalers: of the medium that it belongs to.
        turn: degrees counterclockwise that make it upright; None takes the frame's own.
    """

    def __init__(
        self, frame: av.VideoFrame, time: float, aspect: float, scalers: Scalers, turn: int | None = None
    ) -> None:
        self._frame = frame
        self._scalers = scalers
        own = geometry_of(frame, aspect)
        self._geometry = own if turn is None else own._replace(turn=turn)
        self.time = time
        self.width, self.height = self._geometry.upright

    def rgb(self) -> ByteArray:
        return self._convert(*self._geometry.square)

    def small(self, longest: int) -> ByteArray:
        return self._convert(*scaled_size(*self._geometry.square, longest))

    def crops(self, boxes: Sequence[Box], size: int, crop: Crop) -> Sequence[ByteArray]:
        if not boxes:
            return []
        planes = self.planes()
        if planes is None:
            image = self.rgb()
            return [crop_square(image, box, size) for box in boxes]
        corners = torch.tensor([self._geometry.locate(box) for box in boxes], dtype=torch.float64)
        return [rotate(image, self._geometry.turn) for image in crop(planes, corners, None).numpy()]

    def planes(self) -> Planes | None:
        """The decoder's memory, one picture before rotation; None unless it is 8-bit 4:2:0 BT.601 or BT.709."""
        return planes_of(self._frame)

    def _convert(self, width: int, height: int) -> ByteArray:
        frame = self._scalers[width, height, "rgb24"].reformat(
            self._frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR
        )
        return rotate(np.asarray(frame.to_ndarray(), dtype=np.uint8), self._geometry.turn)
