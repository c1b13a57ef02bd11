"""`Engine`: raw media in, predictions out."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn, overload

import numpy as np

from merfast import bundle as bundles
from merfast.config import EngineConfig
from merfast.errors import ConfigError, UnavailableError, UntrainedWarning
from merfast.media.source import Source, is_file_object
from merfast.media.windows import WindowSpec
from merfast.parallel import Crew
from merfast.plan import Plan, make_plan
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
    ) -> None:
        for name, value in (("bundle", bundle), ("detector_model", detector_model)):
            if not isinstance(value, (str, os.PathLike, type(None))):
                raise ConfigError(f"{name}: got {type(value).__name__}, expected a path")
        self.config = EngineConfig(
            device=_joined(device),
            precision=precision,
            runtime=runtime,
            decoder=decoder,
            detector=detector,
            detector_model=None if detector_model is None else Path(detector_model),
            kernels=kernels,
            faces=faces,
            threads=threads,
            batch_seconds=batch_seconds,
        )
        _check_process()
        root = bundles.directory(bundle)
        described = bundles.read_config(root)
        many = threads or len(os.sched_getaffinity(0))
        devices = self.config.devices
        self._workers = [Worker(root, described, replace(self.config, device=name), many) for name in devices]
        self._crew = Crew(self._workers, 2 * many) if len(devices) > 1 else None
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
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        items: Iterable[Source],
        *,
        on_error: Literal["return"],
        faces: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction | Failure]: ...

    def predict(
        self,
        items: Iterable[Source],
        *,
        on_error: Literal["raise", "return"] = "raise",
        faces: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction] | list[Prediction | Failure]:
        """Predict a batch of items; the result of one does not depend on the others.

        Args:
            items: paths, URLs, bytes, binary files, or `Clip`s; each is read once, several at a time.
            on_error: "raise" raises the first error met; "return" puts a `Failure` in its place.
            faces: "main" or "all", instead of the engine's own.
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
        single = isinstance(items, (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray)) or is_file_object(
            items
        )
        if single or not isinstance(items, Iterable):
            raise ConfigError(f"items: got {type(items).__name__}, expected a list, as in predict([item])")
        _check_process()
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error: got {on_error!r}, expected 'raise' or 'return'")
        sources = list(items)
        _check_distinct(sources)
        longest = self.bundle.config.preprocessing.max_window
        spec, go_on, every = WindowSpec(longest, longest), on_error == "return", self._every_face(faces)
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

    def timeline(
        self, item: Source, *, window: float = 4.0, hop: float = 1.0, faces: str | None = None
    ) -> Iterator[Prediction]:
        """Predict windows of one item, lazily and in order; memory does not grow with its length.

        Args:
            item: as for `predict`.
            window: length of a window in seconds, up to the bundle's longest.
            hop: seconds from one window's start to the next.
            faces: "main" or "all", instead of the engine's own.

        Returns:
            An iterator of predictions with `start` and `end`. The last window ends with the media. A window with
            neither face nor sound has `emotion` None. A warning is on the first prediction after it arose. Closing
            the iterator stops the reading.

        Raises:
            ConfigError: window or hop is out of range.
            MediaError: the item cannot be read (on iteration).
        """
        _check_process()
        longest = self.bundle.config.preprocessing.max_window
        if not isinstance(window, (int, float)) or not 0 < window <= longest:
            raise ConfigError(f"window: got {window!r}, expected seconds above 0 and up to the bundle's {longest:g}")
        if not isinstance(hop, (int, float)) or not 0 < hop < math.inf:
            raise ConfigError(f"hop: got {hop!r}, expected seconds above 0")
        spec, every = WindowSpec(window, hop), self._every_face(faces)
        if self._crew is not None:
            return self._crew.timeline(item, spec, every_face=every)
        (worker,) = self._workers
        return worker.timeline(*worker.readers([item], spec, every_face=every))

    def _every_face(self, faces: str | None) -> bool:
        return (self.config if faces is None else replace(self.config, faces=faces)).faces == "all"


def _joined(device: str | Sequence[str]) -> str:
    """Several devices in one string, as on the command line; what is neither is left to the config to refuse."""
    several = isinstance(device, (list, tuple)) and all(isinstance(name, str) for name in device)
    return ",".join(device) if several else device  # type: ignore[return-value]


_process: int | None = None


def _check_process() -> None:
    """torch's thread pools do not survive a fork: what needs them would wait for ever."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise UnavailableError(
            "this process was forked from one with an Engine, where torch's threads hang: start processes with "
            "multiprocessing's 'spawn' or 'forkserver' method, and make an Engine in each"
        )


def _check_distinct(sources: Sequence[Source]) -> None:
    seen: dict[int, int] = {}
    for i, source in enumerate(sources):
        first = seen.setdefault(id(source), i) if is_file_object(source) else i
        if first != i:
            raise ConfigError(f"items: {i} is the same open file as {first}, expected each to be read once")
