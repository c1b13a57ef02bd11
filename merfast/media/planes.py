"""Drawing on decoded pictures as they are, 8-bit 4:2:0: what is not drawn on keeps its values."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from merfast.media.faces import Box
from merfast.palette import rgb
from merfast.types import ByteArray

Image = npt.NDArray[np.float32]

WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""Matrix -> what red and blue add to the luma (ITU-R BT.601, BT.709)."""

_SHIFT = 4  # bits of a pixel's fraction in OpenCV's coordinates


@dataclass(frozen=True)
class Coding:
    """How a picture's three planes stand for colours.

    Attributes:
        matrix: "bt601" or "bt709".
        full_range: whether all of 0 to 255 is used.
    """

    matrix: str
    full_range: bool

    def encode(self, image: Image) -> Image:
        """`[..., 3]` RGB in [0, 255] as Y, U, V."""
        red, blue = WEIGHTS[self.matrix]
        luma = image @ np.array([red, 1 - red - blue, blue], dtype=np.float32)
        u, v = (image[..., 2] - luma) / (2 * (1 - blue)), (image[..., 0] - luma) / (2 * (1 - red))
        if self.full_range:
            return np.stack([luma, u + 128, v + 128], axis=-1)
        return np.stack([16 + luma * 219 / 255, 128 + u * 224 / 255, 128 + v * 224 / 255], axis=-1)


@dataclass(frozen=True, eq=False)
class Sprite:
    """A small picture with transparency, ready to be laid over others; even in width and height.

    Attributes:
        planes: Y `[h, w]`, U and V `[h / 2, w / 2]`, multiplied by their opacity.
        clear: what shines through, `[h, w]` and `[h / 2, w / 2]`, in [0, 1].
    """

    planes: tuple[Image, Image, Image]
    clear: tuple[Image, Image]

    @classmethod
    def of(cls, image: ByteArray, coding: Coding) -> Sprite:
        """Of `[h, w, 4]` RGBA, not multiplied; made even by clear columns and rows."""
        even = cv2.copyMakeBorder(image, 0, image.shape[0] % 2, 0, image.shape[1] % 2, cv2.BORDER_CONSTANT, value=0)
        whole = np.asarray(even, dtype=np.float32)
        whole[..., 3] /= 255
        whole[..., :3] = coding.encode(whole[..., :3]) * whole[..., 3:]
        half = np.asarray(cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.float32)
        y, u, v = (np.ascontiguousarray(part) for part in (whole[..., 0], half[..., 1], half[..., 2]))
        return cls((y, u, v), (1 - whole[..., 3], 1 - half[..., 3]))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        height, width = self.planes[0].shape
        return width, height


class Picture:
    """The planes of one picture, to be drawn on in place.

    Args:
        planes: Y `[H, W]`, U and V `[H / 2, W / 2]` uint8, even in width and height.
        coding: of their values.
    """

    def __init__(self, planes: tuple[ByteArray, ByteArray, ByteArray], coding: Coding) -> None:
        self.planes, self.coding = planes, coding
        self.height, self.width = planes[0].shape

    def lay(self, sprite: Sprite, left: int, top: int) -> None:
        """Lay a sprite over it, on the even pixel at or before (left, top); what lies outside is cut off."""
        x, y = left - left % 2, top - top % 2
        for number, plane in enumerate(self.planes):
            by = 2 if number else 1
            over, clear = sprite.planes[number], sprite.clear[min(number, 1)]
            _mix(plane, over, clear, x // by, y // by)

    def outline(self, box: Box, colour: str, line: float, opacity: float = 1.0) -> None:
        """Draw a box with round corners, in pixels, with lines of so many pixels."""
        margin = int(line) + 2
        left, top = int(box.x - box.side / 2) - margin, int(box.y - box.side / 2) - margin
        left, top = left - left % 2, top - top % 2
        size = int(box.side) + 2 * margin + 4
        size += size % 2
        x0, y0, x1, y1 = max(0, left), max(0, top), min(self.width, left + size), min(self.height, top + size)
        if x1 <= x0 or y1 <= y0:
            return
        corner = box.x - box.side / 2 - x0, box.y - box.side / 2 - y0
        mask = _round_square((y1 - y0, x1 - x0), corner, box.side, line)
        values = self.coding.encode(np.array(rgb(colour), dtype=np.float32))
        cover = mask.astype(np.float32) * (opacity / 255)
        half = cv2.resize(cover, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for number, plane in enumerate(self.planes):
            by, part = (2, half) if number else (1, cover)
            _mix(plane, np.asarray(part * values[number]), np.asarray(1 - part), x0 // by, y0 // by)


def _mix(plane: ByteArray, over: Image, clear: Image, x: int, y: int) -> None:
    """`over + clear * plane`, where both are."""
    x0, y0 = max(0, x), max(0, y)
    x1, y1 = min(plane.shape[1], x + over.shape[1]), min(plane.shape[0], y + over.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    part = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
    region = plane[y0:y1, x0:x1]
    plane[y0:y1, x0:x1] = np.clip(region * clear[part] + over[part] + 0.5, 0, 255)


def _round_square(shape: tuple[int, int], corner: tuple[float, float], side: float, line: float) -> ByteArray:
    """`[h, w]` uint8: 255 on the line of a square whose top left is at `corner`, smooth at its edges."""
    mask = np.zeros(shape, dtype=np.uint8)
    radius = 0.12 * side
    left, top = corner
    right, bottom = left + side, top + side
    turns = np.linspace(0, np.pi / 2, 12)
    arcs = [
        np.stack([x + radius * np.cos(turns + start), y + radius * np.sin(turns + start)], axis=1)
        for x, y, start in (
            (right - radius, bottom - radius, 0.0),
            (left + radius, bottom - radius, np.pi / 2),
            (left + radius, top + radius, np.pi),
            (right - radius, top + radius, 1.5 * np.pi),
        )
    ]
    points = np.round(np.concatenate(arcs) * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(mask, [points], True, 255, max(1, round(line)), cv2.LINE_AA, _SHIFT)
    return mask
