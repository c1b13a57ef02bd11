"""Looking at pictures: what a tracker asks of them, and how the CPU answers.

A tracker asks three things: a thumbnail of each picture, to see cuts; the faces in some; and crops of faces. It asks
for a group of pictures at a time, which `lookers_device.py` answers in one pass each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from merfast.media.decode import Frame
from merfast.media.faces import DETECT_SIZE, Box, Detector
from merfast.types import ByteArray, Crops

if TYPE_CHECKING:
    from merfast.ops.crop_norm import Crop

THUMBNAIL = 32
"""Pixels of a thumbnail's longer side."""


class Looker(Protocol):
    """Looks at one medium's pictures."""

    ahead: int
    """How many pictures are best looked at together."""

    def thumbnails(self, frames: Sequence[Frame]) -> Sequence[ByteArray]:
        """`[h, w, 3]` uint8 RGB of each picture, `THUMBNAIL` pixels long at most."""

    def detect(self, frames: Sequence[Frame]) -> Sequence[list[Box]]:
        """The faces in each picture, in units of its width, the surest first; pictures whose thumbnail was seen."""

    def crops(self, wanted: Sequence[tuple[Frame, Sequence[Box]]]) -> Sequence[Sequence[Crops]]:
        """`[S, S, 3]` uint8 RGB of each box of each picture, in its pixels; beyond the border the edge is repeated."""


class FrameLooker:
    """Looks at pictures one by one, on the CPU.

    Args:
        detector: finds faces; used by this looker alone.
        crop_size: side S of the crops, in pixels.
        crop: cuts uint8 crops of that size out of planes, see `Frame.crops`.
        ahead: how many pictures the tracker is to collect; it changes no result.
    """

    def __init__(self, detector: Detector, *, crop_size: int, crop: Crop, ahead: int = 1) -> None:
        self._detector, self._crop_size, self._crop, self.ahead = detector, crop_size, crop, ahead

    def thumbnails(self, frames: Sequence[Frame]) -> Sequence[ByteArray]:
        return [frame.small(THUMBNAIL) for frame in frames]

    def detect(self, frames: Sequence[Frame]) -> Sequence[list[Box]]:
        images = (frame.small(DETECT_SIZE) for frame in frames)
        return [[box.scaled(1 / image.shape[1]) for box in self._detector.detect(image)] for image in images]

    def crops(self, wanted: Sequence[tuple[Frame, Sequence[Box]]]) -> Sequence[Sequence[Crops]]:
        return [frame.crops(boxes, self._crop_size, self._crop) for frame, boxes in wanted]
