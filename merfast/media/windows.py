"""Cutting media into windows: stretches of audio with the face crops that belong to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from merfast.config import Preprocessing
from merfast.media.audio import AudioBuffer
from merfast.media.decode import AudioChunk, Media
from merfast.media.tracks import FacesAt, FaceSource
from merfast.trace import each, spanned
from merfast.types import MODALITIES, SAMPLE_RATE, Crops, FloatArray, Modality, Window

if TYPE_CHECKING:
    import torch

TAIL = 0.05
"""Seconds: a rest shorter than this does not get a window of its own."""

KEEP_MAIN = 1.5
"""How much more of a subject another face must be before it becomes the main one of the next window."""

LAG = 30.0
"""Seconds that one track may be behind the other, as when it has ended, before windows are cut without it."""

FEWEST_CROPS = 3
"""Crops that another face than the main one needs to be reported."""

_SLACK = 1e-6


@dataclass(frozen=True)
class WindowSpec:
    """Windows of `length` seconds, one every `hop` seconds; the last one ends with the media."""

    length: float
    hop: float

    def start(self, k: int) -> float:
        return k * self.hop

    def end(self, k: int) -> float:
        return k * self.hop + self.length


class Windower:
    """Collects events of one source and gives out windows as they are complete.

    Args:
        media: the open source, of which only `info` is used here.
        faces: makes crops of frames, or None where faces are not looked for.
        spec: where to cut.
        preprocessing: of the bundle.
        every_face: whether to give windows of other faces, too.
        reads: what the bundle reads; the rest is missing from every window.
    """

    def __init__(
        self,
        media: Media,
        faces: FaceSource | None,
        spec: WindowSpec,
        preprocessing: Preprocessing,
        *,
        every_face: bool,
        reads: Sequence[Modality] = MODALITIES,
    ) -> None:
        self._media, self._faces = media, faces
        self._spec, self._preprocessing = spec, preprocessing
        self._every_face, self._reads = every_face, reads
        self._audio = AudioBuffer()
        self._seen: list[FacesAt] = []
        self._seen_until = -math.inf
        self._main: int | None = None
        self._next = 0
        self._late = False  # whether something belonged to a window that was already cut

    def run(self) -> Iterator[list[Window]]:
        """One list for each window, in order: the main face's first, then other faces', the most seen first.

        Raises:
            MediaError: as `Media.events`.
        """
        for event in each("decode", self._media.events()):
            if isinstance(event, AudioChunk):
                self._late |= event.start < (self._spec.start(self._next) - LAG / 2) * SAMPLE_RATE
                self._audio.push(event)
            elif self._faces is not None:
                self._see(self._faces.push(event))
            while self._complete():
                yield self._cut(self._spec.end(self._next))
        if self._faces is not None:
            self._see(self._faces.flush())
        if self._late:
            message = f"sound and picture lie more than {LAG:.0f} s apart in the file: some of it came too late"
            self._media.info.warnings.append(message)
        duration = self._media.info.duration
        while self._remains(duration):
            yield self._cut(min(self._spec.end(self._next), duration))

    @spanned("faces")
    def _see(self, views: Iterator[FacesAt]) -> None:
        for view in views:
            self._late |= view.time < self._spec.start(self._next) - LAG / 2
            self._seen.append(view)
            self._seen_until = view.time

    def _complete(self) -> bool:
        """Whether nothing more belongs to the next window: each track is past its end, or lags too far to wait."""
        end, info = self._spec.end(self._next), self._media.info
        seen, heard = self._seen_until, self._audio.end / SAMPLE_RATE
        if self._faces is not None and info.has_video and seen < end:
            if heard < end + LAG:
                return False
            self._see(self._faces.flush())
        audio = not info.has_audio or heard >= end or seen >= end + LAG
        return audio and max(seen, heard) >= end

    def _remains(self, duration: float) -> bool:
        if self._next == 0:
            return True
        return self._spec.end(self._next - 1) < duration - TAIL and self._spec.start(self._next) < duration - TAIL

    @spanned("windows")
    def _cut(self, end: float) -> list[Window]:
        start = self._spec.start(self._next)
        self._next += 1
        views = [v for v in self._seen if start - _SLACK <= v.time < end - _SLACK]
        audio, missing = self._hear(start, end)
        tracks = self._rank(views)
        if tracks:
            self._main = tracks[0]
        else:
            missing["video"] = self._no_face(len(views))
        out = []
        either: list[int | None] = [*tracks] or [None]
        for track in either:
            crops = [v.faces[track].crop for v in views if track in v.faces] if track is not None else []
            size = self._preprocessing.crop_size
            packed, ready = _stacked(crops, size)
            out.append(Window(start, end, audio, packed, len(views), track, missing, ready))
        following = self._spec.start(self._next)
        self._audio.forget(round(following * SAMPLE_RATE))
        self._seen = [v for v in self._seen if v.time >= following - _SLACK]
        return out

    def _hear(self, start: float, end: float) -> tuple[FloatArray, dict[str, str]]:
        audio = self._audio.read(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        if "audio" not in self._reads:
            return audio[:0], {"audio": "this bundle reads no audio"}
        if not self._media.info.has_audio:
            return audio, {"audio": "no audio track"}
        if "audio" in self._media.info.unreadable:
            return audio, {"audio": self._media.info.unreadable["audio"]}
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
        if not self._media.info.has_video:
            return "no video track"
        if self._faces is None:
            return "faces are not looked for"
        if "video" in self._media.info.unreadable:
            return self._media.info.unreadable["video"]
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
