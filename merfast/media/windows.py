"""Cutting media into windows: stretches of audio with the face crops that belong to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from merfast.config import Preprocessing
from merfast.media.audio import AudioBuffer
from merfast.media.decode import AudioChunk, Event, MediaInfo
from merfast.media.tracks import FacesAt, FaceSource
from merfast.trace import each, spanned
from merfast.types import MODALITIES, SAMPLE_RATE, Crops, FloatArray, Known, Modality, Window

if TYPE_CHECKING:
    import torch

TAIL = 0.05
"""Seconds: a rest shorter than this does not get a window of its own."""

KEEP_MAIN = 1.5
"""How much more of a subject another face must be before it becomes the main one of the next window."""

FEWEST_CROPS = 3
"""Crops that another face than the main one needs to be reported."""

_SLACK = 1e-6


@dataclass(frozen=True)
class WindowSpec:
    """Windows of `length` seconds, one every `hop` seconds; the last one ends with the media.

    `explain` asks for the attention of their predictions.
    """

    length: float
    hop: float
    explain: bool = False

    def start(self, k: int) -> float:
        return k * self.hop

    def end(self, k: int) -> float:
        return k * self.hop + self.length

    def end_after(self, time: float) -> float:
        """The first end of a window after a time."""
        if time < self.length:
            return self.length
        k = math.floor((time - self.length) / self.hop)
        return min(e for e in (self.end(k), self.end(k + 1), self.end(k + 2)) if e > time)


class Windower:
    """Collects events of one source and cuts windows out of them.

    Args:
        info: of the source.
        faces: makes crops of frames, or None where faces are not looked for.
        spec: where to cut.
        preprocessing: of the bundle.
        every_face: whether to give windows of other faces, too.
        reads: what the bundle reads; the rest is missing from every window.
    """

    def __init__(
        self,
        info: MediaInfo,
        faces: FaceSource | None,
        spec: WindowSpec,
        preprocessing: Preprocessing,
        *,
        every_face: bool,
        reads: Sequence[Modality] = MODALITIES,
    ) -> None:
        self._info, self._faces = info, faces
        self._spec, self._preprocessing = spec, preprocessing
        self._every_face, self._reads = every_face, reads
        self._audio = AudioBuffer()
        self._seen: list[tuple[int, FacesAt]] = []  # with numbers that rise by one
        self._count = 0
        self._known: Known | None = {} if spec.hop < spec.length else None
        self._main: int | None = None
        self.next = 0
        """Number of the window that is cut next."""
        self._late = False  # whether something belonged to a window that was already cut

    def run(self, events: Iterator[Event]) -> Iterator[list[Window]]:
        """One list for each window, in order: the main face's first, then other faces', the most seen first.

        Args:
            events: all there are; then the duration in `info` is final.

        Raises:
            MediaError: as `Media.events`.
        """
        for event in each("decode", events):
            self.push(event)
            while self._complete():
                yield self.cut()
        self.end()
        if self._late:
            message = f"sound and picture lie more than {self._info.lag:.0f} s apart: some of it came too late"
            self._info.warnings.append(message)
        while self.remains(self._info.duration):
            yield self.cut(self._info.duration)

    def push(self, event: Event) -> None:
        """Add a frame or sound, each in order of time."""
        if isinstance(event, AudioChunk):
            self._late |= event.start < (self._spec.start(self.next) - self._info.lag / 2) * SAMPLE_RATE
            self._audio.push(event)
        elif self._faces is not None:
            self._see(self._faces.push(event))

    def settle(self) -> None:
        """No more frames come before the end of the next window."""
        if self._faces is not None:
            self._see(self._faces.settle(self._spec.end(self.next)))

    def end(self) -> None:
        """No more frames come."""
        if self._faces is not None:
            self._see(self._faces.flush())

    @spanned("faces")
    def _see(self, views: Iterator[FacesAt]) -> None:
        for view in views:
            self._late |= view.time < self._spec.start(self.next) - self._info.lag / 2
            self._seen.append((self._count, view))
            self._count += 1

    def _complete(self) -> bool:
        """Whether nothing more belongs to the next window: each track is past its end, or lags too far to wait."""
        end, info = self._spec.end(self.next), self._info
        seen = -math.inf if self._faces is None else self._faces.until
        heard = self._audio.end / SAMPLE_RATE
        if self._faces is not None and info.has_video and seen < end:
            if heard < end + info.lag:
                return False
            self.end()
        audio = not info.has_audio or heard >= end or seen >= end + info.lag
        return audio and max(seen, heard) >= end

    def remains(self, duration: float) -> bool:
        """Whether there is another window, of media that end then."""
        if self.next == 0:
            return True
        return self._spec.end(self.next - 1) < duration - TAIL and self._spec.start(self.next) < duration - TAIL

    def skip(self, to: int) -> None:
        """Leave out the windows before this one."""
        if to > self.next:
            self.next = to
            self._forget()

    @spanned("windows")
    def cut(self, duration: float = math.inf) -> list[Window]:
        """The next window, of what has been pushed; it ends with the media."""
        start, end = self._spec.start(self.next), min(self._spec.end(self.next), duration)
        self.next += 1
        within = [(n, v) for n, v in self._seen if start - _SLACK <= v.time < end - _SLACK]
        views = [v for _, v in within]
        audio, missing = self._hear(start, end)
        heard = self._audio.first(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) / SAMPLE_RATE - start
        tracks = self._rank(views)
        if tracks:
            self._main = tracks[0]
        else:
            missing["video"] = self._no_face(len(views))
        out = []
        either: list[int | None] = [*tracks] or [None]
        for track in either:
            of_track = [(n, v) for n, v in within if track in v.faces] if track is not None else []
            crops = [v.faces[track].crop for _, v in of_track] if track is not None else []
            packed, ready = _stacked(crops, self._preprocessing.crop_size)
            numbers = tuple(n for n, _ in of_track)
            out.append(
                Window(
                    *(start, end, audio, packed, len(views), track, missing, ready, numbers, self._known),
                    times=tuple(v.time for _, v in of_track),
                    heard=heard,
                    explain=self._spec.explain,
                )
            )
        self._forget()
        return out

    def _forget(self) -> None:
        """Let go what no later window needs."""
        following = self._spec.start(self.next)
        self._audio.forget(round(following * SAMPLE_RATE))
        self._seen = [(n, v) for n, v in self._seen if v.time >= following - _SLACK]

    def _hear(self, start: float, end: float) -> tuple[FloatArray, dict[str, str]]:
        audio = self._audio.read(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        if "audio" not in self._reads:
            return audio[:0], {"audio": "this bundle reads no audio"}
        if not self._info.has_audio:
            return audio, {"audio": "no audio track"}
        if "audio" in self._info.unreadable:
            return audio, {"audio": self._info.unreadable["audio"]}
        if not len(audio):
            return audio, {"audio": "no sound in this stretch"}
        if max(float(audio.max()), -float(audio.min())) < self._preprocessing.silence:
            return audio[:0], {"audio": "silent"}
        return audio, {}

    def _rank(self, views: list[FacesAt]) -> list[int]:
        """Tracks of this window: the main one, then the others if they are wanted."""
        weights: dict[int, float] = {}
        counts: dict[int, int] = {}
        for view in views:
            for track, face in view.faces.items():
                weights[track] = weights.get(track, 0.0) + face.weight * (KEEP_MAIN if track == self._main else 1.0)
                counts[track] = counts.get(track, 0) + 1
        if not weights:
            return []
        main = max(weights, key=lambda t: (weights[t], -t))
        if not self._every_face:
            return [main]
        others = [t for t in counts if t != main and counts[t] >= FEWEST_CROPS]
        return [main, *sorted(others, key=lambda t: (-counts[t], t))]

    def _no_face(self, sampled: int) -> str:
        if "video" not in self._reads:
            return "this bundle reads no video"
        if not self._info.has_video:
            return "no video track"
        if self._faces is None:
            return "faces are not looked for"
        if "video" in self._info.unreadable:
            return self._info.unreadable["video"]
        return "no face found" if sampled else "no frames in this stretch"


def _stacked(crops: Sequence[Crops], size: int) -> tuple[Crops, torch.cuda.Event | None]:
    """`[T, S, S, 3]` where the crops are, and on a GPU the event after which other streams may read it."""
    arrays = [c for c in crops if isinstance(c, np.ndarray)]
    if len(arrays) == len(crops):
        return np.stack(arrays) if arrays else np.zeros((0, size, size, 3), dtype=np.uint8), None
    import torch

    stacked = torch.stack([c for c in crops if not isinstance(c, np.ndarray)])
    if not stacked.is_cuda:
        return stacked, None
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record(torch.cuda.current_stream(stacked.device))
    return stacked, ready
