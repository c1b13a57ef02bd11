"""Stages are passive generators; `prefetch` puts a thread and a bounded queue between any two of them."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Generic, TypeVar

import torch

from merfast.clip import Clip
from merfast.config import BundleConfig
from merfast.errors import MediaError, MerfastError
from merfast.media import nvdec
from merfast.media.decode import ON_DEVICE, open_media
from merfast.media.faces import Box, Detector, make_detector
from merfast.media.interrupt import interruptible
from merfast.media.lookers import FrameLooker, Looker
from merfast.media.source import Source
from merfast.media.tracks import FaceSource, FaceTracker, GivenFaces, Watch, WatchedFaces
from merfast.media.windows import Windower, WindowSpec
from merfast.ops import crop_norm, crop_norm_cpu
from merfast.ops.crop_norm import Crop, CropSpec
from merfast.plan import Plan
from merfast.runtime.streams import on_own_stream
from merfast.trace import span, spanned
from merfast.types import Window

T = TypeVar("T")
S = TypeVar("S")


STUCK = 2.0
"""Seconds to wait for a thread that was told to end. Reading from the network is interrupted at once; one that is stuck
otherwise (a FIFO, a file object) ends when its source sends something."""


class Prefetch(Generic[T]):
    """Runs an iterator in a thread of its own, up to `size` items ahead of its reader.

    An error in the iterator is raised in the reader, after the items before it. `close` ends the thread, and closes
    the iterator if it is a generator, in the thread that ran it.

    Args:
        stage: the iterator.
        size: items ahead; 0 for any number.
        wait: what a trace calls the reader's waiting.
    """

    def __init__(self, stage: Iterator[T], size: int, wait: str = "wait for input") -> None:
        self._stage, self._wait = stage, wait
        self._queue: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(size)
        self._stop = threading.Event()
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="merfast-prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        last: tuple[bool, BaseException | None] = (False, None)
        with interruptible(self._stop.is_set):
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

    @spanned("wait for room")
    def _put(self, entry: tuple[bool, T | BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def take(self, most: int, *, wait: bool = True) -> list[T]:
        """What is ready: one item at least, and nothing when the iterator has ended; or nothing, too, without waiting.

        Raises the iterator's error once, after all items before it were taken, where it waits.
        """
        out: list[T] = []
        while len(out) < most and not self._over and not self._stop.is_set():
            try:
                with span(self._wait):
                    more, item = self._queue.get(block=wait and not out)
            except queue.Empty:
                break
            if more:
                out.append(item)  # type: ignore[arg-type]
                continue
            self._over = True
            self._error = item if isinstance(item, BaseException) else None
        if wait and not out and self._error is not None:
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
    sources: Iterable[S], open_stage: Callable[[S], Iterator[T]], *, ahead: Callable[[], int], size: int
) -> Generator[tuple[S, Iterator[T]]]:
    """Open one stage for each source and run `ahead()` of them at a time in threads; gives them in order.

    The caller iterates each stage before it asks for the next. Closing this generator ends all threads.
    """
    running: deque[tuple[S, Prefetch[T]]] = deque()
    rest = iter(sources)
    try:
        while True:
            while len(running) < ahead():
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


def items_ahead(plan: Plan, threads: int) -> int:
    """How many items to read at a time: each has a thread, which demultiplexes and decodes it.

    Two for each CPU thread, as some wait for data; on NVDEC no more than there are sessions to keep its engines busy.
    """
    return min(2 * threads, nvdec.SESSIONS) if plan.choice("decode") in ON_DEVICE else 2 * threads


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
        watch: Watch | None = None,
    ) -> None:
        self.name = name
        self._watch = watch
        self.warnings: list[str] = []
        self._source, self._plan, self._spec = source, plan, spec
        self._preprocessing, self._reads = config.preprocessing, config.modalities
        self._every_face, self._threads = every_face, threads

    def __iter__(self) -> Generator[list[Window]]:
        """Windows as `Windower.run` gives them.

        Raises:
            MediaError: whatever keeps this item from being read.
        """
        windows = self._windows()
        surfaces = self._surfaces()
        try:
            with span("read", item=self.name):
                yield from windows if surfaces is None else on_own_stream(windows, surfaces)
        except MerfastError:
            raise
        except Exception as error:
            # What a codec library throws for odd media must not take the rest of the batch with it.
            raise MediaError(self.name, f"reading failed ({type(error).__name__}: {error})") from error

    def _windows(self) -> Iterator[list[Window]]:
        detector = self._plan.choice("faces")
        given = isinstance(self._source, Clip) and self._source.faces == "given" and "video" in self._reads
        decoder = self._plan.choice("decode")
        # These decode where the model is, though their frames end in the CPU's memory.
        place = torch.device(self._plan.choice("device")) if decoder in ("torchcodec", "decord") else self._surfaces()
        media = open_media(
            self._source,
            name=self.name,
            decoder=decoder,
            frame_rate=self._preprocessing.frame_rate,
            want_video=detector != "none" or given,
            threads=self._threads,
            surfaces=place,
        )
        try:
            self.warnings = media.info.warnings
            faces = self._face_source(detector, given)
            if faces is not None and self._watch is not None:
                faces = WatchedFaces(faces, self._watch)
            windower = Windower(
                media.info, faces, self._spec, self._preprocessing, every_face=self._every_face, reads=self._reads
            )
            yield from windower.run(media.events())
        finally:
            media.close()

    def _face_source(self, detector: str, given: bool) -> FaceSource | None:
        size = self._preprocessing.crop_size
        if given:
            return GivenFaces(size)
        if detector == "none":
            return None
        surfaces = self._surfaces()
        if surfaces is None:
            found = make_detector(detector.removesuffix("-torch"), self._plan.detector_model)
            looker: Looker = frame_looker(self._plan, size, found)
        else:
            looker = _surface_looker(self._plan, size, surfaces)
        return FaceTracker(looker, face_scale=self._preprocessing.face_scale, ends=self._spec.end_after)

    def _surfaces(self) -> torch.device | None:
        """Where pictures lie, if not where their decoder or caller has them."""
        device = None if isinstance(self._source, Clip) else self._plan.surfaces
        return None if device is None else torch.device(device)


def frame_looker(plan: Plan, crop_size: int, detector: Detector) -> Looker:
    """What looks at pictures on the CPU, one by one."""
    crop = _prepare(plan.choice("crop"), on_cpu=True)(CropSpec(crop_size))
    return FrameLooker(detector, crop_size=crop_size, crop=crop)


def warm_up(plan: Plan, config: BundleConfig) -> None:
    """Compile and load what readers run on a device, before several of them would do it at the same time."""
    if plan.surfaces is None or plan.choice("faces") == "none":
        return
    import av

    from merfast.media.surfaces import SurfaceFrame

    device = torch.device(plan.surfaces)
    looker = _surface_looker(plan, config.preprocessing.crop_size, device)
    frames = [SurfaceFrame.of(av.VideoFrame(96, 64, "yuv420p"), 0.0, 1.0, device) for _ in range(2)]
    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        looker.thumbnails(frames)
        looker.detect(frames)
        looker.crops([(frame, [Box(48.0, 32.0, 40.0)]) for frame in frames])


def _surface_looker(plan: Plan, crop_size: int, device: torch.device) -> Looker:
    from merfast.media.lookers_device import BatchDetector, OnHost, SurfaceLooker
    from merfast.media.yunet_torch import yunet_on

    detector = plan.choice("faces")
    finder: BatchDetector
    if detector == "yunet-torch" and plan.detector_model is not None:
        finder = yunet_on(plan.detector_model, device)
    else:
        finder = OnHost(make_detector(detector, plan.detector_model))
    return SurfaceLooker(finder, crop_size=crop_size, prepare=_prepare(plan.choice("crop"), on_cpu=False))


def _prepare(choice: str, *, on_cpu: bool) -> Callable[[CropSpec], Crop]:
    """An implementation of crops; pictures that a caller has decoded are on the CPU, where no kernel for a GPU runs."""
    if choice == "triton" and not on_cpu:
        from merfast.ops import crop_norm_triton

        return crop_norm_triton.prepare
    if choice.startswith("cpp-"):
        return partial(crop_norm_cpu.prepare, isa=choice.removeprefix("cpp-"))
    return crop_norm.prepare
