"""Following faces through time: detect at a low rate, match, interpolate in between.

Frames wait until the faces in them are certain. A face is certain at a frame when detections on both sides enclose it,
so boxes are interpolated, never guessed, and a face that the detector misses for a moment keeps its track. A cut of the
picture ends all tracks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from merfast.media.decode import Frame
from merfast.media.faces import DETECT_SIZE, Box, Detector, resize
from merfast.types import ByteArray

if TYPE_CHECKING:
    from merfast.ops.crop_norm import Crop

DETECT_RATE = 2.5
"""Detections a second."""

EARLY = 0.08
"""Seconds that a look may come early: sampled frames do not lie on the grid of any rate but their own."""

MISSED = 1.3
"""Seconds that a face may go unseen before its track ends."""

CUT = 0.4
"""Difference of two neighbouring thumbnails, relative to their contrast, at which the shot has changed.

On 20 real clips (frames 0.2 s apart) cuts gave 0.49 and more, hand-held and fast motion at most 0.28.
"""

_THUMBNAIL = 32
_NOISE = 4.0  # grey levels of contrast granted to any picture, so that noise in a black one is no cut
_SLACK = 1e-6


@dataclass(slots=True)
class FaceView:
    """One face in one frame."""

    crop: ByteArray  # [S, S, 3] uint8 RGB
    weight: float  # how much this face is the picture's subject: its size and centrality, in [0, 1]


@dataclass(slots=True)
class FacesAt:
    """All faces in one sampled frame, by track."""

    time: float
    faces: dict[int, FaceView] = field(default_factory=dict)


@dataclass
class _Track:
    number: int
    times: list[float]
    boxes: list[Box]  # in units of the upright picture's width
    missed: int = 0
    ended: bool = False
    confirmed: bool = False

    @property
    def sure_until(self) -> float:
        """Frames up to here (not beyond) are certain with respect to this track."""
        return self.times[-1] if self.confirmed else self.times[0] - _SLACK

    def at(self, time: float) -> Box | None:
        if not self.confirmed or not self.times[0] - _SLACK <= time <= self.times[-1] + _SLACK:
            return None
        i = min(max(bisect_right(self.times, time), 1), len(self.times) - 1)
        if i == 0:
            return self.boxes[0]
        (t0, a), (t1, b) = (self.times[i - 1], self.boxes[i - 1]), (self.times[i], self.boxes[i])
        part = min(max((time - t0) / (t1 - t0), 0.0), 1.0)
        return Box(*(p + part * (q - p) for p, q in zip(a, b, strict=True)))


@dataclass
class _Pending:
    frame: Frame
    detected: bool


class FaceSource(Protocol):
    """Turns sampled frames of one source into face crops by track."""

    def push(self, frame: Frame) -> Iterator[FacesAt]:
        """Add the next sampled frame; yields the frames that have become certain, in order."""

    def flush(self) -> Iterator[FacesAt]:
        """Yields what is still waiting."""


class GivenFaces:
    """For frames that are face crops already: one track, number 0."""

    def __init__(self, crop_size: int) -> None:
        self._crop_size = crop_size

    def push(self, frame: Frame) -> Iterator[FacesAt]:
        yield FacesAt(frame.time, {0: FaceView(resize(frame.rgb(), self._crop_size), 1.0)})

    def flush(self) -> Iterator[FacesAt]:
        return iter(())


class FaceTracker:
    """Turns sampled frames of one source into face crops by track.

    Args:
        detector: finds faces; used by this tracker alone.
        crop_size: side of the crops, in pixels.
        face_scale: side of the crop over the side of the face box.
        crop: cuts uint8 crops of that size out of planes, see `Frame.crops`.
    """

    def __init__(self, detector: Detector, *, crop_size: int, face_scale: float, crop: Crop) -> None:
        self._detector, self._cut_out = detector, crop
        self._crop_size, self._face_scale = crop_size, face_scale
        self._pending: deque[_Pending] = deque()
        self._tracks: list[_Track] = []
        self._count = 0
        self._last_detection = -math.inf
        self._thumbnail: ByteArray | None = None

    def push(self, frame: Frame) -> Iterator[FacesAt]:
        thumbnail = frame.small(_THUMBNAIL)
        if self._is_cut(thumbnail):
            yield from self.flush()
        self._thumbnail = thumbnail
        due = frame.time - self._last_detection >= 1 / DETECT_RATE - EARLY
        self._pending.append(_Pending(frame, due))
        if due:
            self._detect(frame)
            yield from self._resolve()

    def flush(self) -> Iterator[FacesAt]:
        if self._pending and not self._pending[-1].detected:
            self._pending[-1].detected = True
            self._detect(self._pending[-1].frame)
        for track in self._tracks:
            # Seen once, and never looked for again: there was no chance to confirm it.
            track.confirmed |= track.missed == 0
            track.ended = True
        yield from self._resolve()
        self._last_detection = -math.inf
        self._thumbnail = None

    def _is_cut(self, thumbnail: ByteArray) -> bool:
        last = self._thumbnail
        if last is None:
            return False
        if last.shape != thumbnail.shape:
            return True
        a, b = last.astype(np.float32), thumbnail.astype(np.float32)
        contrast = np.abs(a - a.mean()).mean() + np.abs(b - b.mean()).mean() + _NOISE
        return float(np.abs(a - b).mean() / contrast) > CUT

    def _detect(self, frame: Frame) -> None:
        image = frame.small(DETECT_SIZE)
        found = [b.scaled(1 / image.shape[1]) for b in self._detector.detect(image)]
        self._last_detection = frame.time
        for track in self._tracks:
            track.ended |= frame.time - track.times[-1] > MISSED
        live = [t for t in self._tracks if not t.ended]
        pairs = sorted(
            ((_affinity(t.boxes[-1], b), i, j) for i, t in enumerate(live) for j, b in enumerate(found)), reverse=True
        )
        matched: dict[int, int] = {}
        for affinity, i, j in pairs:
            if affinity > 0 and i not in matched and j not in matched.values():
                matched[i] = j
        for i, track in enumerate(live):
            if i in matched:
                track.times.append(frame.time)
                track.boxes.append(found[matched[i]])
                track.missed, track.confirmed = 0, True
            else:
                track.missed += 1
        for j, box in enumerate(found):
            if j not in matched.values():
                self._tracks.append(_Track(self._count, [frame.time], [box]))
                self._count += 1

    def _resolve(self) -> Iterator[FacesAt]:
        horizon = min((t.sure_until for t in self._tracks if not t.ended), default=math.inf)
        while self._pending and self._pending[0].frame.time <= min(horizon, self._last_detection):
            yield self._crop(self._pending.popleft().frame)
        oldest = self._pending[0].frame.time if self._pending else math.inf
        self._tracks = [t for t in self._tracks if not (t.ended and t.times[-1] < oldest)]
        for track in self._tracks:
            keep = max(0, bisect_right(track.times, min(oldest, track.times[-1])) - 1)
            if track.confirmed:
                del track.times[:keep], track.boxes[:keep]

    def _crop(self, frame: Frame) -> FacesAt:
        out = FacesAt(frame.time)
        boxes = {t.number: box.scaled(frame.width) for t in self._tracks if (box := t.at(frame.time)) is not None}
        framed = [box._replace(side=box.side * self._face_scale) for box in boxes.values()]
        crops = frame.crops(framed, self._crop_size, self._cut_out)
        for (number, box), crop in zip(boxes.items(), crops, strict=True):
            out.faces[number] = FaceView(crop, _subject(box, frame.width, frame.height))
        return out


def _affinity(a: Box, b: Box) -> float:
    """Above 0 if the two may be one face a moment apart: overlapping, or near and of like size."""
    ratio = min(a.side, b.side) / max(a.side, b.side)
    distance = math.hypot(a.x - b.x, a.y - b.y) / max(a.side, b.side)
    return a.overlap(b) + max(0.0, 0.75 - distance) if ratio > 0.5 and distance < 0.75 else 0.0


def _subject(box: Box, width: int, height: int) -> float:
    """Size of the face against the picture, times a factor from 1 at its centre to 0.4 in a corner."""
    area = min(1.0, box.side**2 / (width * height))
    off = math.hypot(box.x / width - 0.5, box.y / height - 0.5) / math.hypot(0.5, 0.5)
    return area * (1 - 0.6 * min(1.0, off))
