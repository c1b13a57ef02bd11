"""Following faces through time: detect at a low rate, match, interpolate in between.

Frames wait until the faces in them are certain. A face is certain at a frame when detections on both sides enclose it,
so boxes are interpolated, never guessed, and a face that the detector misses for a moment keeps its track. A cut of the
picture ends all tracks.

Nothing looks beyond the end of a window: the last frame before it is looked at, and all before it come out. So a live
source's windows need not wait, and are those of a recording of it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np

from merfast.media.decode import Frame
from merfast.media.faces import Box, resize
from merfast.media.lookers import Looker
from merfast.trace import span
from merfast.types import ByteArray, Crops

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

GROUPED = 5.0
"""Seconds that frames wait for their group to fill, at most."""

_NOISE = 4.0  # grey levels of contrast granted to any picture, so that noise in a black one is no cut
_SLACK = 1e-6


@dataclass(slots=True)
class FaceView:
    """One face in one frame."""

    crop: Crops  # [S, S, 3] uint8 RGB, on the CPU or on a device
    weight: float  # how much this face is the picture's subject: its size and centrality, in [0, 1]
    box: Box  # in units of the upright picture's width


@dataclass(slots=True)
class FacesAt:
    """All faces in one sampled frame, by track."""

    time: float
    faces: dict[int, FaceView] = field(default_factory=dict)


Watch = Callable[[FacesAt], None]


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


class FaceSource(Protocol):
    """Turns sampled frames of one source into face crops by track."""

    @property
    def until(self) -> float:
        """Seconds: all frames before this have come out."""

    def push(self, frame: Frame) -> Iterator[FacesAt]:
        """Add the next sampled frame; yields the frames that have become certain, in order."""

    def settle(self, time: float) -> Iterator[FacesAt]:
        """Yields all that was pushed, as no frame before `time` is to follow; tracks go on."""

    def flush(self) -> Iterator[FacesAt]:
        """Yields what is still waiting, and ends all tracks."""


class GivenFaces:
    """For frames that are face crops already: one track, number 0."""

    def __init__(self, crop_size: int) -> None:
        self._crop_size = crop_size
        self.until = -math.inf

    def push(self, frame: Frame) -> Iterator[FacesAt]:
        self.until = frame.time
        high = frame.height / frame.width
        whole = Box(0.5, high / 2, min(1.0, high))
        yield FacesAt(frame.time, {0: FaceView(resize(frame.rgb(), self._crop_size), 1.0, whole)})

    def settle(self, time: float) -> Iterator[FacesAt]:
        self.until = max(self.until, time)
        return iter(())

    def flush(self) -> Iterator[FacesAt]:
        return iter(())


class WatchedFaces:
    """Shows somebody what a source of faces says.

    Args:
        faces: the source.
        watch: called with each picture's faces, in order of time.
    """

    def __init__(self, faces: FaceSource, watch: Watch) -> None:
        self._faces, self._watch = faces, watch

    @property
    def until(self) -> float:
        return self._faces.until

    def push(self, frame: Frame) -> Iterator[FacesAt]:
        return self._shown(self._faces.push(frame))

    def settle(self, time: float) -> Iterator[FacesAt]:
        return self._shown(self._faces.settle(time))

    def flush(self) -> Iterator[FacesAt]:
        return self._shown(self._faces.flush())

    def _shown(self, views: Iterator[FacesAt]) -> Iterator[FacesAt]:
        for view in views:
            self._watch(view)
            yield view


class _Act(Enum):
    """What a tracker does next: frames wait, some are looked at, all come out where a window ends, and tracks end where
    the picture is cut."""

    ADD = 1
    LOOK = 2
    SETTLE = 3
    END = 4


class _Step(NamedTuple):
    act: _Act
    frame: Frame | None = None
    until: float = -math.inf  # of SETTLE


def _never(time: float) -> float:
    return math.inf


class FaceTracker:
    """Turns sampled frames of one source into face crops by track, as many at a time as its looker likes.

    How many that are changes when frames come out, and nothing else: which are looked at follows from their times, from
    the ends of windows and from cuts alone.

    Args:
        looker: looks at the frames; used by this tracker alone.
        face_scale: side of the crop over the side of the face box.
        ends: the first end of a window after a time, both in seconds; what comes before it does not depend on what
            comes after.
    """

    def __init__(self, looker: Looker, *, face_scale: float, ends: Callable[[float], float] = _never) -> None:
        self._looker, self._face_scale, self._ends = looker, face_scale, ends
        self.until = -math.inf
        self._group: list[Frame] = []  # not thought about yet
        self._pending: deque[Frame] = deque()  # not certain yet
        self._tracks: list[_Track] = []
        self._count = 0
        # Of the schedule: when the last look was due, the last frame's time, itself if it was not looked at, and its
        # thumbnail.
        self._last_look = self._last = -math.inf
        self._unseen: Frame | None = None
        self._thumbnail: ByteArray | None = None

    def push(self, frame: Frame) -> Iterator[FacesAt]:
        self._group.append(frame)
        if len(self._group) >= self._looker.ahead or frame.time - self._group[0].time >= GROUPED:
            yield from self._follow(self._schedule())

    def settle(self, time: float) -> Iterator[FacesAt]:
        yield from self._follow([*self._schedule(), *self._settling(time)])

    def flush(self) -> Iterator[FacesAt]:
        yield from self._follow([*self._schedule(), *self._ending()])

    def _schedule(self) -> list[_Step]:
        """What to do with the group."""
        group, self._group = self._group, []
        steps: list[_Step] = []
        with span("thumbnails"):
            thumbnails = self._looker.thumbnails(group) if group else ()
        for frame, thumbnail in zip(group, thumbnails, strict=True):
            if self._ends(self._last + _SLACK) <= frame.time + _SLACK:
                steps += self._settling(frame.time)
            if self._is_cut(thumbnail):
                steps += self._ending()
            self._thumbnail = thumbnail
            steps.append(_Step(_Act.ADD, frame))
            due = self._is_due(frame.time)
            if due:
                steps.append(_Step(_Act.LOOK, frame))
                self._last_look = frame.time
            self._last, self._unseen = frame.time, None if due else frame
        return steps

    def _is_due(self, time: float) -> bool:
        """Whether to look at the frame at this time, unless another one is looked at soon, at a window's end."""
        if time - self._last_look < 1 / DETECT_RATE - EARLY:
            return False
        end = self._ends(time + _SLACK)
        soon = end - time <= 1 / DETECT_RATE + _SLACK and 2 * time - self._last < end - _SLACK
        return math.isinf(self._last_look) or not soon

    def _settling(self, time: float) -> list[_Step]:
        """A look at the last frame, as no other before `time` is to follow."""
        steps = []
        if self._unseen is not None:
            steps.append(_Step(_Act.LOOK, self._unseen))
            self._last_look, self._unseen = self._unseen.time, None
        return [*steps, _Step(_Act.SETTLE, until=time)]

    def _ending(self) -> list[_Step]:
        """A last look, and the end of all tracks."""
        steps = [_Step(_Act.LOOK, self._unseen)] if self._unseen is not None else []
        self._last_look, self._unseen, self._thumbnail = -math.inf, None, None
        return [*steps, _Step(_Act.END)]

    def _follow(self, steps: Sequence[_Step]) -> Iterator[FacesAt]:
        looks = [s.frame for s in steps if s.act is _Act.LOOK and s.frame is not None]
        with span("detect"):
            found = iter(self._looker.detect(looks) if looks else ())
        certain: list[tuple[Frame, dict[int, Box]]] = []
        settled = -math.inf
        for act, frame, until in steps:
            if act is _Act.SETTLE:
                certain += self._resolve(math.inf, forced=True)
                settled = until
            elif act is _Act.END:
                for track in self._tracks:
                    # Seen once, and never looked for again: there was no chance to confirm it.
                    track.confirmed |= track.missed == 0
                    track.ended = True
                certain += self._resolve(math.inf)
            elif frame is not None and act is _Act.ADD:
                self._pending.append(frame)
            elif frame is not None:
                self._match(frame.time, next(found))
                certain += self._resolve(frame.time)
        yield from self._crop(certain)
        self.until = max(self.until, settled)

    def _is_cut(self, thumbnail: ByteArray) -> bool:
        last = self._thumbnail
        if last is None:
            return False
        if last.shape != thumbnail.shape:
            return True
        a, b = last.astype(np.float32), thumbnail.astype(np.float32)
        contrast = np.abs(a - a.mean()).mean() + np.abs(b - b.mean()).mean() + _NOISE
        return float(np.abs(a - b).mean() / contrast) > CUT

    def _match(self, time: float, found: list[Box]) -> None:
        """What was found at a time, in units of the picture's width, belongs to faces seen before, or to new ones."""
        for track in self._tracks:
            track.ended |= time - track.times[-1] > MISSED
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
                track.times.append(time)
                track.boxes.append(found[matched[i]])
                track.missed, track.confirmed = 0, True
            else:
                track.missed += 1
        for j, box in enumerate(found):
            if j not in matched.values():
                self._tracks.append(_Track(self._count, [time], [box]))
                self._count += 1

    def _resolve(self, looked_until: float, *, forced: bool = False) -> Iterator[tuple[Frame, dict[int, Box]]]:
        """The frames that have become certain, with the box of each track, in units of the picture's width.

        If forced, all: a face that is missed at the moment, or was seen just once, is not in them.
        """
        live = () if forced else self._tracks
        horizon = min((t.sure_until for t in live if not t.ended), default=math.inf)
        while self._pending and self._pending[0].time <= min(horizon, looked_until):
            frame = self._pending.popleft()
            yield frame, {t.number: box for t in self._tracks if (box := t.at(frame.time)) is not None}
        oldest = self._pending[0].time if self._pending else math.inf
        self._tracks = [t for t in self._tracks if not (t.ended and t.times[-1] < oldest)]
        for track in self._tracks:
            keep = max(0, bisect_right(track.times, min(oldest, track.times[-1])) - 1)
            if track.confirmed:
                del track.times[:keep], track.boxes[:keep]

    def _crop(self, certain: Sequence[tuple[Frame, dict[int, Box]]]) -> Iterator[FacesAt]:
        faces = [{n: box.scaled(frame.width) for n, box in boxes.items()} for frame, boxes in certain]
        wanted = [
            (frame, [box._replace(side=box.side * self._face_scale) for box in boxes.values()])
            for (frame, _), boxes in zip(certain, faces, strict=True)
        ]
        with span("crop"):
            cut = self._looker.crops(wanted)
        for (frame, _), boxes, crops in zip(certain, faces, cut, strict=True):
            views = {
                number: FaceView(crop, _subject(box, frame.width, frame.height), box.scaled(1 / frame.width))
                for (number, box), crop in zip(boxes.items(), crops, strict=True)
            }
            self.until = frame.time
            yield FacesAt(frame.time, views)


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
