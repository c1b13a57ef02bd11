"""Looking at groups of pictures on the device where they lie: one pass each for small pictures, detection and crops.

All of it is queued on the caller's current stream, and it waits for the device twice a group: for the thumbnails, and
for what was detected. Crops stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from merfast.media.decode import Frame, scaled_size
from merfast.media.faces import DETECT_SIZE, Box, Detector
from merfast.media.lookers import THUMBNAIL
from merfast.media.surfaces import SurfaceFrame
from merfast.media.transfer import to_host
from merfast.ops.crop_norm import Crop, CropSpec, Planes
from merfast.ops.ragged import moved
from merfast.types import ByteArray, Crops

AHEAD = 16
"""Pictures that are looked at together: enough to fill a device, and few seconds of a medium."""

F = TypeVar("F")


class BatchDetector(Protocol):
    """Finds faces in pictures that lie on a device."""

    def detect(self, pictures: Tensor) -> list[list[Box]]:
        """Boxes of the faces in each of `[N, h, w, 3]` uint8 RGB, in its pixels, the surest first."""


class OnHost:
    """A detector that runs on the CPU, for pictures that lie elsewhere: they are brought to it."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def detect(self, pictures: Tensor) -> list[list[Box]]:
        return [self._detector.detect(picture) for picture in to_host(pictures)]


class SurfaceLooker:
    """Looks at groups of pictures on the device where they lie; crops are tensors there.

    Args:
        detector: finds faces.
        crop_size: side S of the crops, in pixels.
        prepare: `prepare` of an implementation of `merfast.ops.crop_norm` for that device.
        ahead: how many pictures the tracker is to collect; it changes no result.
    """

    def __init__(
        self, detector: BatchDetector, *, crop_size: int, prepare: Callable[[CropSpec], Crop], ahead: int = AHEAD
    ) -> None:
        self._detector, self._prepare, self.ahead = detector, prepare, ahead
        self._crop_size = crop_size
        self._crop: dict[int | tuple[int, int], Crop] = {}
        # Pictures `[h, w, 3]` in which faces are looked for, as long as their frames are waited for.
        self._small: WeakKeyDictionary[SurfaceFrame, Tensor] = WeakKeyDictionary()

    def thumbnails(self, frames: Sequence[Frame]) -> Sequence[ByteArray]:
        out: list[ByteArray] = [np.zeros((0, 0, 3), dtype=np.uint8)] * len(frames)
        for places, members in _alike(_surfaces(frames), _Surface.form):
            frame, planes = members[0]
            count, high, wide = len(members), *planes.y.shape[1:]
            whole = np.tile(np.array([0, 0, wide, high], dtype=np.float32), (count, 1))
            small = self._cut(members, whole, np.arange(count), _size(frame, DETECT_SIZE))
            self._small.update(zip((m.frame for m in members), small, strict=True))
            width, height = scaled_size(frame.width, frame.height, THUMBNAIL)
            values = small.permute(0, 3, 1, 2).float()
            values = functional.interpolate(values, (height, width), mode="bilinear", antialias=True)
            tiny = (values.clamp(0, 255) + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
            for place, thumbnail in zip(places, to_host(tiny), strict=True):
                out[place] = thumbnail
        return out

    def detect(self, frames: Sequence[Frame]) -> Sequence[list[Box]]:
        out: list[list[Box]] = [[]] * len(frames)
        small = [self._small[f] for f in frames if isinstance(f, SurfaceFrame)]
        for places, members in _alike(small, lambda picture: picture.shape):
            pictures = torch.stack(members)
            for place, boxes in zip(places, self._detector.detect(pictures), strict=True):
                out[place] = [box.scaled(1 / pictures.shape[2]) for box in boxes]
        return out

    def crops(self, wanted: Sequence[tuple[Frame, Sequence[Box]]]) -> Sequence[Sequence[Crops]]:
        out: list[Sequence[Crops]] = [()] * len(wanted)
        held = [place for place, (_, boxes) in enumerate(wanted) if boxes]
        for places, members in _alike(_surfaces(wanted[place][0] for place in held), _Surface.form):
            boxes = [wanted[held[place]][1] for place in places]
            counts = [len(b) for b in boxes]
            corners = [m.frame.locate(box) for m, some in zip(members, boxes, strict=True) for box in some]
            numbers = np.repeat(np.arange(len(members)), counts)
            cut = self._cut(members, np.array(corners, dtype=np.float32), numbers, self._crop_size)
            for place, part in zip(places, torch.split(cut, counts), strict=True):
                out[held[place]] = part.unbind()
        return out

    def _cut(
        self,
        members: Sequence[_Surface],
        corners: npt.NDArray[np.float32],
        numbers: npt.NDArray[np.int64],
        size: int | tuple[int, int],
    ) -> Tensor:
        """`[N, h, w, 3]` of boxes in pictures of one form, upright; boxes and size are those of pictures as stored."""
        if size not in self._crop:
            self._crop[size] = self._prepare(CropSpec(size))
        planes = _joined([m.planes for m in members])
        device = planes.y.device
        frame = moved(torch.from_numpy(numbers), device)
        cut = self._crop[size](planes, moved(torch.from_numpy(corners), device), frame)
        turn = members[0].frame.turn // 90
        return torch.rot90(cut, turn, (1, 2)).contiguous() if turn % 4 else cut


class _Surface(NamedTuple):
    """A picture with its planes: asking for them makes the current stream wait for it."""

    frame: SurfaceFrame
    planes: Planes

    def form(self) -> object:
        """Pictures with the same one can share a pass."""
        (frame, (y, _, _, matrix, full_range)) = self
        return y.shape, matrix, full_range, frame.turn, frame.width, frame.height


def _surfaces(frames: Iterable[Frame]) -> list[_Surface]:
    out = []
    for frame in frames:
        if not isinstance(frame, SurfaceFrame):
            raise TypeError(f"got a {type(frame).__name__}, expected a SurfaceFrame: this looks at those alone")
        out.append(_Surface(frame, frame.planes))
    return out


def _alike(frames: Sequence[F], form: Callable[[F], object]) -> Iterator[tuple[list[int], list[F]]]:
    """Places and members of the groups of one form, each in order; mostly there is one."""
    groups: dict[object, list[int]] = {}
    for place, frame in enumerate(frames):
        groups.setdefault(form(frame), []).append(place)
    for places in groups.values():
        yield places, [frames[p] for p in places]


def _joined(planes: Sequence[Planes]) -> Planes:
    """Pictures of one form behind each other."""
    if len(planes) == 1:
        return planes[0]
    y, u, v = (torch.cat(parts) for parts in ([p.y for p in planes], [p.u for p in planes], [p.v for p in planes]))
    return planes[0]._replace(y=y, u=u, v=v)


def _size(frame: SurfaceFrame, longest: int) -> tuple[int, int]:
    """(height, width) of the picture as it is stored, with square pixels, scaled down to `longest`."""
    width, height = scaled_size(frame.width, frame.height, longest)
    return (height, width) if frame.turn % 180 == 0 else (width, height)
