"""`Engine`: raw media in, predictions out."""

from __future__ import annotations

import asyncio
import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn, overload

from merfast import bundle as bundles
from merfast.arguments import check_explain, check_process, check_session, checked, joined
from merfast.clip import is_number
from merfast.config import EngineConfig
from merfast.errors import ConfigError, MerfastError, UntrainedWarning
from merfast.media.source import Source, source_name
from merfast.media.tracks import FacesAt
from merfast.media.windows import WindowSpec
from merfast.parallel import Crew
from merfast.plan import Plan, make_plan
from merfast.scheduler import Scheduler
from merfast.session import Session
from merfast.smoothing import Smoother, smoothed
from merfast.submitted import Request
from merfast.types import Failure, Prediction
from merfast.worker import Worker


class Engine:
    """Predicts emotion and valence from talking-face media; safe to use from many threads.

    On a GPU it is ready when it is made, which takes some seconds: kernels are compiled and CUDA graphs captured then.

    Args:
        bundle: a bundle directory, or a hub id that `merfast bundle pull` got; None is the packaged mini bundle.
        device: "auto", "cpu", "cuda" or "cuda:N"; or several GPUs, as in ["cuda:0", "cuda:1"] or "cuda:0,cuda:1". Each
            then has the whole model, an item goes to the first that has room for it, and a timeline to the one that has
            the least to do.
        precision: of foundation models (HuBERT, ViT, ...): "fp32", "bf16", or on the CPU "int8". "auto" is fp32. All
            else is fp32.
        runtime: what runs foundation models: "torch", "openvino" or "onnxruntime" (on the CPU), "tensorrt" (on a GPU),
            or "auto". They are compiled for it when first needed, and kept in the bundle's folder `compiled`.
        decoder: "auto" (NVDEC through PyAV where the device is a GPU that has it, else PyAV), "pyav", "nvdec",
            "pynvvideocodec", "torchcodec" or "decord".
        detector: of faces: "auto" (YuNet if its file is at hand, else Haar), "yunet", "haar", or "none" for voice only.
        detector_model: YuNet's ONNX file.
        kernels: "auto", "reference", "cpp" (the widest vectors here), "cpp-generic", "cpp-avx2",
            "cpp-avx512", or "triton" (on a GPU).
        faces: "main" predicts the main face of each item, "all" every face.
        threads: CPU threads for decoding, for kernels and for compiled encoders; None leaves it to the number of cores.
            Encoders that run in torch follow `torch.set_num_threads`, which is the caller's to set.
        batch_seconds: how many seconds of media go through the model at a time, at most (but one window at least).
        max_wait_ms: how long what is submitted or pushed waits for more to share a pass with, if more is on its way.
        latency_ms: aimed at for live windows, from their end to their result: one that would take longer is refused,
            see `session`.
        max_queue: requests of `submit` that may wait; more are refused.

    As a context manager it is closed at the end.

    Raises:
        ConfigError: an option has a value that does not exist.
        BundleError: the bundle is not one.
        UnavailableError: something chosen explicitly does not exist here.

    Warns:
        UntrainedWarning: the bundle's weights are untrained.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        *,
        device: str | Sequence[str] = "auto",
        precision: str = "auto",
        runtime: str = "auto",
        decoder: str = "auto",
        detector: str = "auto",
        detector_model: str | Path | None = None,
        kernels: str = "auto",
        faces: str = "main",
        threads: int | None = None,
        batch_seconds: float = 64.0,
        max_wait_ms: float = 40.0,
        latency_ms: float = 500.0,
        max_queue: int = 256,
    ) -> None:
        for name, value in (("bundle", bundle), ("detector_model", detector_model)):
            if not isinstance(value, (str, os.PathLike, type(None))):
                raise ConfigError(f"{name}: got {type(value).__name__}, expected a path")
        self.config = EngineConfig(
            device=joined(device),
            precision=precision,
            runtime=runtime,
            decoder=decoder,
            detector=detector,
            detector_model=None if detector_model is None else Path(detector_model),
            kernels=kernels,
            faces=faces,
            threads=threads,
            batch_seconds=batch_seconds,
            max_wait_ms=max_wait_ms,
            latency_ms=latency_ms,
            max_queue=max_queue,
        )
        check_process()
        root = bundles.directory(bundle)
        described = bundles.read_config(root)
        many = threads or len(os.sched_getaffinity(0))
        devices = self.config.devices
        self._workers = [Worker(root, described, replace(self.config, device=name), many) for name in devices]
        self._crew = Crew(self._workers, 2 * many) if len(devices) > 1 else None
        self._schedulers = [Scheduler(worker, self.config, many) for worker in self._workers]
        self._finalizer = weakref.finalize(self, _close, self._schedulers)
        self.plan: Plan = make_plan(self.config, described) if self._crew else self._workers[0].plan
        self.bundle: bundles.Bundle = self._workers[0].inference.bundle
        if not described.trained:
            message = f"bundle {described.name!r} is untrained: its predictions mean nothing"
            warnings.warn(message, UntrainedWarning, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Engine cannot be pickled: make one in each process")

    def __repr__(self) -> str:
        return f"Engine({self.bundle.config.name!r}, {self.plan.choice('device')})"

    @overload
    def predict(
        self,
        items: Iterable[Source],
        *,
        on_error: Literal["raise"] = "raise",
        faces: str | None = None,
        explain: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        items: Iterable[Source],
        *,
        on_error: Literal["return"],
        faces: str | None = None,
        explain: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction | Failure]: ...

    def predict(
        self,
        items: Iterable[Source],
        *,
        on_error: Literal["raise", "return"] = "raise",
        faces: str | None = None,
        explain: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction] | list[Prediction | Failure]:
        """Predict a batch of items; the result of one does not depend on the others.

        Args:
            items: paths, URLs, bytes, binary files, or `Clip`s; each is read once, several at a time.
            on_error: "raise" raises the first error met; "return" puts a `Failure` in its place.
            faces: "main" or "all", instead of the engine's own.
            explain: whether to fill `Prediction.attention`; all else stays as it is without.
            progress: called with the number of items done so far, from the calling thread.

        Returns:
            One `Prediction` for each item, in order. Media longer than the bundle's longest window are cut, and the
            parts' average, weighted by duration, is returned with the parts in `windows`.

        Raises:
            BundleError: the bundle's weights give NaN.
            ConfigError: items is no collection, or an option does not exist.
            MediaError: an item cannot be read, or holds neither a face nor sound (with `on_error="raise"`; the first
                error met is raised, which need not be that of the first item).
        """
        sources = checked(items, on_error)
        longest = self.bundle.config.preprocessing.max_window
        spec, go_on = WindowSpec(longest, longest, check_explain(explain)), on_error == "return"
        every = self._every_face(faces)
        if self._crew is not None:
            stream = self._crew.predict(sources, spec, every_face=every, go_on=go_on)
        else:
            (worker,) = self._workers
            stream = worker.predict(worker.readers(sources, spec, every_face=every), go_on=go_on)
        results: list[Prediction | Failure] = []
        with closing(stream):
            for result in stream:
                if isinstance(result, Failure) and not go_on:
                    raise result.error
                results.append(result)
                if progress is not None:
                    progress(len(results))
        return results

    def submit(
        self,
        item: Source,
        *,
        faces: str | None = None,
        explain: bool = False,
        priority: int = 0,
        deadline: float | None = None,
        source: Hashable = None,
    ) -> Future[Prediction]:
        """Predict one item in the engine's threads; its windows share passes with those of all other callers.

        Args:
            item: as for `predict`.
            faces, explain: as for `predict`.
            priority: of requests and live streams, those with a higher one go first.
            deadline: seconds from now. An item whose turn comes later fails; one that cannot be done by then, to judge
                by the others, is refused at once.
            source: whom this is for; sources have equal shares, however much each asks for.

        Returns:
            The future of its `Prediction`. It can be cancelled until the model begins with it.

        Raises:
            ConfigError: an option is out of range.
            OverloadedError: `max_queue` requests wait, or it would not be done in time.
            UsageError: the engine is draining or closed.

        Errors of the future are those of `predict`, and `DeadlineError`.
        """
        check_process()
        if deadline is not None and (not is_number(deadline) or not 0 < deadline < math.inf):
            raise ConfigError(f"deadline: got {deadline!r}, expected seconds above 0")
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise ConfigError(f"priority: got {priority!r}, expected a whole number")
        longest = self.bundle.config.preprocessing.max_window
        spec = WindowSpec(longest, longest, check_explain(explain))
        scheduler = self._least_busy()
        reader = scheduler.reader(item, spec, every_face=self._every_face(faces))
        request = Request(scheduler, reader, source=source, priority=priority, deadline=deadline, owner=self)
        return request.future

    async def predict_async(
        self,
        items: Iterable[Source],
        *,
        on_error: Literal["raise", "return"] = "raise",
        faces: str | None = None,
        explain: bool = False,
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[Prediction | Failure]:
        """`predict` for event loops, which can be cancelled: as many items are submitted at a time as the engine reads.

        Args:
            items, on_error, faces, explain: as for `predict`.
            priority, deadline: as for `submit`; the deadline is that of each item.

        Raises:
            MerfastError: as `predict` and `submit`.
        """
        sources = checked(items, on_error)
        self._every_face(faces)
        check_explain(explain)
        room, call = asyncio.Semaphore(sum(w.ahead for w in self._workers)), object()

        async def one(source: Source, place: int) -> Prediction | Failure:
            async with room:
                try:
                    future = self.submit(
                        source, faces=faces, explain=explain, priority=priority, deadline=deadline, source=call
                    )
                    return await asyncio.wrap_future(future)
                except MerfastError as error:
                    if on_error == "raise":
                        raise
                    return Failure(source_name(source, place), error)

        tasks = [asyncio.ensure_future(one(source, i)) for i, source in enumerate(sources)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def session(
        self,
        *,
        window: float = 4.0,
        hop: float = 1.0,
        faces: str | None = None,
        smoothing: float | None = None,
        explain: bool = False,
        name: str = "<session>",
        priority: int = 0,
        overload: Literal["reject", "wait"] = "reject",
        on_result: Callable[[Prediction | Failure], object] | None = None,
    ) -> Session:
        """A live stream whose sound and pictures the caller pushes.

        Args:
            window, hop, faces, smoothing, explain: as for `timeline`.
            name: what messages and predictions call the stream.
            priority: as for `submit`.
            overload: "reject" refuses a window that could not be predicted within `latency_ms` after its end, and then
                those of the same stream until there is room for it again; "wait" has pushing wait instead, for what
                can be held back, as a file or a pipe.
            on_result: called with each result in a thread of the engine's, which it must not hold up.

        Raises:
            ConfigError: an option is out of range.
            UsageError: the engine is draining or closed.
        """
        check_process()
        check_session(name=name, overload=overload, on_result=on_result, priority=priority)
        if smoothing is not None:
            Smoother(smoothing)
        scheduler = self._least_busy()
        scheduler.warm_up()
        return Session(
            scheduler,
            name,
            self._spec(window, hop, explain),
            every_face=self._every_face(faces),
            smoothing=smoothing,
            priority=priority,
            latency=self.config.latency_ms / 1000 if overload == "reject" else None,
            on_result=on_result,
            owner=self,
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Accept no more requests and streams, end the live streams, and wait until all that was accepted is done.

        Args:
            timeout: seconds; None waits for ever.

        Returns:
            Whether all is done.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        done = [scheduler.drain(deadline) for scheduler in self._schedulers]
        return all(done)

    def close(self) -> None:
        """Drop what was submitted or pushed and is not predicted yet, and end the threads for it; `drain` first to have
        it done. `predict` and `timeline` go on working. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def timeline(
        self,
        item: Source,
        *,
        window: float = 4.0,
        hop: float = 1.0,
        faces: str | None = None,
        smoothing: float | None = None,
        explain: bool = False,
        watch: Callable[[FacesAt], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predict windows of one item, lazily and in order; memory does not grow with its length.

        Nothing looks beyond a window's end, so that a live source's windows come at once, and are those of a recording.
        Each face crop is encoded once, however many windows share it.

        Args:
            item: as for `predict`.
            window: length of a window in seconds, up to the bundle's longest.
            hop: seconds from one window's start to the next.
            faces: "main" or "all", instead of the engine's own.
            smoothing: seconds, the time constant of an exponential average over the predictions so far; None for none.
            explain: whether to fill `Prediction.attention`, which is never smoothed.
            watch: called with the boxes and tracks of the faces in each sampled picture, in a thread of the engine's.

        Returns:
            An iterator of predictions with `start` and `end`. The last window ends with the media. A window with
            neither face nor sound has `emotion` None. A warning is on the first prediction after it arose. Closing
            the iterator stops the reading.

        Raises:
            ConfigError: window, hop or smoothing is out of range.
            MediaError: the item cannot be read (on iteration).
        """
        check_process()
        smoother = None if smoothing is None else Smoother(smoothing)
        spec, every = self._spec(window, hop, explain), self._every_face(faces)
        if self._crew is not None:
            predictions = self._crew.timeline(item, spec, every_face=every, watch=watch)
        else:
            (worker,) = self._workers
            predictions = worker.timeline(*worker.readers([item], spec, every_face=every, watch=watch))
        return predictions if smoother is None else smoothed(predictions, smoother)

    def _spec(self, window: float, hop: float, explain: bool) -> WindowSpec:
        longest = self.bundle.config.preprocessing.max_window
        if not isinstance(window, (int, float)) or not 0 < window <= longest:
            raise ConfigError(f"window: got {window!r}, expected seconds above 0 and up to the bundle's {longest:g}")
        if not isinstance(hop, (int, float)) or not 0 < hop < math.inf:
            raise ConfigError(f"hop: got {hop!r}, expected seconds above 0")
        return WindowSpec(window, hop, check_explain(explain))

    def _least_busy(self) -> Scheduler:
        return min(self._schedulers, key=lambda scheduler: scheduler.waiting)

    def _every_face(self, faces: str | None) -> bool:
        return (self.config if faces is None else replace(self.config, faces=faces)).faces == "all"


def _close(schedulers: Sequence[Scheduler]) -> None:
    for scheduler in schedulers:
        scheduler.close()
