"""Stages are passive generators; `prefetch` puts a thread and a bounded queue between any two of them."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

from merfast.config import BundleConfig
from merfast.errors import MediaError, MerfastError
from merfast.media.decode import open_media
from merfast.media.faces import make_detector
from merfast.media.source import Source
from merfast.media.tracks import FaceSource, FaceTracker, GivenFaces
from merfast.media.windows import Windower, WindowSpec
from merfast.ops import crop_norm, crop_norm_cpu
from merfast.plan import Plan
from merfast.types import Clip, Window

T = TypeVar("T")
S = TypeVar("S")


STUCK = 2.0
"""Seconds to wait for a thread that was told to end; a stuck one ends when its source sends something or times out."""


class Prefetch(Generic[T]):
    """Runs an iterator in a thread of its own, up to `size` items ahead of its reader.

    An error in the iterator is raised in the reader, after the items before it. `close` ends the thread, and closes
    the iterator if it is a generator, in the thread that ran it.
    """

    def __init__(self, stage: Iterator[T], size: int) -> None:
        self._stage = stage
        self._queue: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(size)
        self._stop = threading.Event()
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="merfast-prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        last: tuple[bool, BaseException | None] = (False, None)
        try:
            for item in self._stage:
                if not self._put((True, item)):
                    break
        except BaseException as error:
            last = (False, error)
        finally:
            if isinstance(self._stage, Generator):
                self._stage.close()
        self._put(last)

    def _put(self, entry: tuple[bool, T | BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def take(self, most: int) -> list[T]:
        """What is ready, and one item at least; empty when the iterator has ended.

        Raises the iterator's error once, after all items before it were taken.
        """
        out: list[T] = []
        while len(out) < most and not self._over and not self._stop.is_set():
            try:
                more, item = self._queue.get(block=not out)
            except queue.Empty:
                break
            if more:
                out.append(item)  # type: ignore[arg-type]
                continue
            self._over = True
            self._error = item if isinstance(item, BaseException) else None
        if not out and self._error is not None:
            error, self._error = self._error, None
            raise error
        return out

    def __iter__(self) -> Iterator[T]:
        while ready := self.take(1):
            yield from ready

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._stop.set()

    def close(self, patience: float = STUCK) -> None:
        """End the thread, and wait for it unless it is stuck, as in reading from a source that sends nothing."""
        self.stop()
        self._thread.join(patience)


def prefetch_each(
    sources: Iterable[S], open_stage: Callable[[S], Iterator[T]], *, ahead: int, size: int
) -> Iterator[tuple[S, Iterator[T]]]:
    """Open one stage for each source and run `ahead` of them at a time in threads; gives them in order.

    The caller iterates each stage before it asks for the next. Closing this generator ends all threads.
    """
    running: deque[tuple[S, Prefetch[T]]] = deque()
    rest = iter(sources)
    try:
        while True:
            while len(running) < ahead:
                try:
                    source = next(rest)
                except StopIteration:
                    break
                running.append((source, Prefetch(open_stage(source), size)))
            if not running:
                return
            source, stage = running[0]
            yield source, iter(stage)
            running.popleft()[1].close()
    finally:
        for _, stage in running:
            stage.stop()
        deadline = time.monotonic() + STUCK
        for _, stage in running:
            stage.close(max(0.0, deadline - time.monotonic()))


class ItemReader:
    """Reads one item into windows; iterate once.

    Attributes:
        name: what messages call the item.
        warnings: complete after iteration.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        plan: Plan,
        config: BundleConfig,
        spec: WindowSpec,
        *,
        every_face: bool,
        threads: int,
    ) -> None:
        self.name = name
        self.warnings: list[str] = []
        self._source, self._plan, self._spec = source, plan, spec
        self._preprocessing, self._reads = config.preprocessing, config.modalities
        self._every_face, self._threads = every_face, threads

    def __iter__(self) -> Iterator[list[Window]]:
        """Windows as `Windower.run` gives them.

        Raises:
            MediaError: whatever keeps this item from being read.
        """
        try:
            yield from self._windows()
        except MerfastError:
            raise
        except Exception as error:
            # What a codec library throws for odd media must not take the rest of the batch with it.
            raise MediaError(self.name, f"reading failed ({type(error).__name__}: {error})") from error

    def _windows(self) -> Iterator[list[Window]]:
        detector = self._plan.choice("faces")
        given = isinstance(self._source, Clip) and self._source.faces == "given" and "video" in self._reads
        media = open_media(
            self._source,
            name=self.name,
            decoder=self._plan.choice("decode"),
            frame_rate=self._preprocessing.frame_rate,
            want_video=detector != "none" or given,
            threads=self._threads,
        )
        try:
            self.warnings = media.info.warnings
            faces = self._face_source(detector, given)
            windower = Windower(
                media, faces, self._spec, self._preprocessing, every_face=self._every_face, reads=self._reads
            )
            yield from windower.run()
        finally:
            media.close()

    def _face_source(self, detector: str, given: bool) -> FaceSource | None:
        size = self._preprocessing.crop_size
        if given:
            return GivenFaces(size)
        if detector == "none":
            return None
        finder = make_detector(detector, self._plan.detector_model)
        spec, kernel = crop_norm.CropSpec(size), self._plan.choice("crop")
        isa = kernel.removeprefix("cpp-")
        crop = crop_norm.prepare(spec) if kernel == "reference" else crop_norm_cpu.prepare(spec, isa=isa)
        return FaceTracker(finder, crop_size=size, face_scale=self._preprocessing.face_scale, crop=crop)
