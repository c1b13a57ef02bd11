"""`PushedStream`: what a live stream is made into windows by, from its beginning or last reset on."""

from __future__ import annotations

from dataclasses import replace

from merfast.errors import MediaError, MerfastError
from merfast.media.decode import AudioChunk, Frame, MediaInfo
from merfast.media.inbox import Inbox
from merfast.media.pushed import Pictures
from merfast.media.tracks import FaceTracker
from merfast.media.windows import Windower, WindowSpec
from merfast.pipeline import frame_looker
from merfast.results import Result
from merfast.smoothing import Smoother
from merfast.types import Failure, Modality, Prediction, Window
from merfast.worker import Worker

EARLY = -1
"""In place of a window that is not complete."""

Part = tuple[int | None, list[AudioChunk], list[Frame]]
"""A window, or None for the end of the stream, or `EARLY`, with what was pushed up to its end and not taken before."""


class PushedStream:
    """An inbox, and what cuts windows out of it: the one is for pushing, the other for one thread at a time.

    Attributes:
        inbox: as it is.
        pictures: checks them.
        reads: what is of use.
    """

    def __init__(
        self, worker: Worker, name: str, spec: WindowSpec, *, every_face: bool, smoothing: float | None
    ) -> None:
        self.name, self._spec = name, spec
        config, detector = worker.inference.bundle.config, worker.detector
        self.reads: list[Modality] = [m for m in config.modalities if m == "audio" or detector is not None]
        self.inbox = Inbox(name, spec, config.preprocessing.frame_rate, self.reads)
        self.pictures = Pictures(name)
        self._smoother = None if smoothing is None else Smoother(smoothing)
        self._info = MediaInfo(name, has_video=False, has_audio=False)
        self._following = 0  # the window after all that were complete
        faces = None
        if "video" in self.reads and detector is not None:
            looker = frame_looker(worker.plan, config.preprocessing.crop_size, detector)
            faces = FaceTracker(looker, face_scale=config.preprocessing.face_scale, ends=spec.end_after)
        self._windower = Windower(
            self._info, faces, spec, config.preprocessing, every_face=every_face, reads=config.modalities
        )

    @property
    def origin(self) -> float:
        """Start of the first window on the caller's clock, in seconds."""
        return self.inbox.origin or 0.0

    def take(self, most: int, *, early: bool, closed: bool) -> list[Part]:
        """What is needed for the next complete windows, and after the last one of a closed stream for its end.

        Args:
            most: windows.
            early: whether pictures may be taken for a window that is not complete, where there is none.
            closed: whether the stream has ended.
        """
        complete = self.inbox.complete
        chosen: list[int | None] = [complete.popleft()[0] for _ in range(min(most, len(complete)))]
        if closed and not complete:
            chosen.append(None)
        self._info.has_audio, self._info.has_video = self.inbox.has_audio, self.inbox.has_video
        self._info.duration, self._following = self.inbox.end, self.inbox.following
        if not chosen and early and self.inbox.ready_early:
            return [(EARLY, [], self.inbox.take_early())]
        return [(k, *self.inbox.take(k)) for k in chosen]

    def rest(self) -> list[int]:
        """The windows that are left of a stream that has ended; they are left out."""
        left = []
        self._windower.skip(self._following)
        while self._windower.remains(self._info.duration):
            left.append(self._windower.next)
            self._windower.skip(self._windower.next + 1)
        return left

    def cut(self, parts: list[Part]) -> tuple[list[list[Window]], list[Result]]:
        """Windows, one list for each as `Windower.cut` gives it, and failures in place of those that could not be cut.

        For one thread at a time; it takes most of the time that a stream takes outside the model.
        """
        groups: list[list[Window]] = []
        failed: list[Result] = []
        windower = self._windower
        for k, chunks, frames in parts:
            try:
                for chunk in chunks:
                    windower.push(chunk)
                for frame in frames:
                    windower.push(frame)
                if k == EARLY:
                    continue
                if k is not None:
                    windower.skip(k)
                    windower.settle()
                    groups.append(windower.cut())
                    continue
                windower.end()
                windower.skip(self._following)
                while windower.remains(self._info.duration):
                    groups.append(windower.cut(self._info.duration))
            except Exception as error:
                # What OpenCV or FFmpeg throws for odd pictures must not take the stream with it.
                known = (
                    error if isinstance(error, MerfastError) else MediaError(self.name, f"cannot be read ({error!r})")
                )
                if k == EARLY:
                    continue  # its window is not lost, though it knows less
                lost = windower.next if k is None else k
                failed.append(self.failure(lost, known))
                windower.skip(lost + 1)
        return groups, failed

    def failure(self, window: int, error: MerfastError) -> Failure:
        """What stands in place of a window."""
        start, end = self._spec.start(window), self._spec.end(window)
        return Failure(self.name, error, self.origin + start, self.origin + end)

    def results(self, groups: list[list[Window]], made: list[Prediction] | MerfastError) -> list[Result]:
        """Predictions of windows at their times on the caller's clock, or failures."""
        if isinstance(made, MerfastError):
            return [Failure(self.name, made, self.origin + g[0].start, self.origin + g[0].end) for g in groups]
        predictions, out = iter(made), list[Result]()
        for group in groups:
            main, *others = (next(predictions) for _ in group)
            out.append(replace(self._moved(main), others=tuple(self._moved(p) for p in others)))
        return out

    def _moved(self, p: Prediction) -> Prediction:
        attention = None if p.attention is None else p.attention.shifted(self.origin)
        return replace(p, start=p.start + self.origin, end=p.end + self.origin, attention=attention)

    def told(self, result: Result) -> Result:
        """A result as it is handed out, in order: smoothed, with what is to be said about the stream."""
        if isinstance(result, Failure):
            return result
        if self._smoother is not None:
            result = self._smoother.apply(result)
        pauses, self.inbox.pauses = self.inbox.pauses, []
        news = (f"nothing was pushed from {self.origin + a:.3f} to {self.origin + b:.3f} s" for a, b in pauses)
        return replace(result, warnings=(*result.warnings, *news)) if pauses else result
