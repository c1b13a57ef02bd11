"""`Engine`: raw media in, predictions out."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NoReturn, overload

import numpy as np
import torch

from merfast import bundle as bundles
from merfast import compiled
from merfast.config import EngineConfig
from merfast.errors import BundleError, ConfigError, MediaError, MerfastError, UnavailableError, UntrainedWarning
from merfast.media.faces import make_detector
from merfast.media.source import Source, is_file_object, source_name
from merfast.media.windows import WindowSpec
from merfast.models.model import inputs_of
from merfast.ops import afg_cpu, decode_cpu, group_norm_gelu_cpu
from merfast.ops.afg import Prepare
from merfast.ops.decode import PrepareDecode
from merfast.ops.group_norm_gelu import PrepareNorm
from merfast.pipeline import ItemReader, Prefetch, prefetch_each
from merfast.plan import Plan, make_plan
from merfast.types import EMOTIONS, Batch, Failure, Prediction, Window, combine

_QUEUED_WINDOWS = 4  # of one item, read ahead of the model
_TIMELINE_BATCH = 8  # windows that a timeline predicts at a time
_CPU_SECONDS = 16.0  # of media that go through foundation models at a time on the CPU: more takes memory, no less time


@dataclass
class _Item:
    """An item on its way: groups of predictions, one group for each window, None until predicted."""

    reader: ItemReader
    groups: list[list[Prediction | None]] = field(default_factory=list)


class Engine:
    """Predicts emotion and valence from talking-face media; safe to use from many threads.

    Args:
        bundle: a bundle directory, or a hub id that `merfast bundle pull` got; None is the packaged mini bundle.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: of foundation models (HuBERT, ViT, ...): "fp32", "bf16", or on the CPU "int8". "auto" is fp32. All
            else is fp32.
        runtime: what runs foundation models: "torch", "openvino" or "onnxruntime" (on the CPU), "tensorrt" (on a GPU),
            or "auto". They are compiled for it when first needed, and kept in the bundle's folder `compiled`.
        decoder: "auto", "pyav" or "decord".
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
        device: str = "auto",
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
            device=device,
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
        self.plan: Plan = make_plan(self.config, described)
        if self.plan.choice("faces") != "none":
            make_detector(self.plan.choice("faces"), self.plan.detector_model)  # a bad file is refused here, not later
        self._threads = threads or len(os.sched_getaffinity(0))
        self._device = torch.device(self.plan.choice("device"))
        targets = compiled.targets_of(described, self.plan, self._threads)
        self.bundle = compiled.load(root, described, targets, _norm_kernel(self.plan.choice("afg"), self._threads))
        if not described.trained:
            message = f"bundle {described.name!r} is untrained: its predictions mean nothing"
            warnings.warn(message, UntrainedWarning, stacklevel=2)
        self._model = self.bundle.model.to(self._device)
        slow = self._device.type == "cpu" and bool(self._model.foundations)
        self._pass_seconds = min(batch_seconds, _CPU_SECONDS) if slow else batch_seconds
        gather = _gather_kernel(self.plan.choice("afg"), self._threads)
        self._model.accelerate(gather, _decode_kernel(self.plan.choice("joint decoding")))

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
        readers = self._readers(sources, WindowSpec(longest, longest), faces)
        results: list[Prediction | Failure] = []
        for result in self._predict_readers(readers, go_on=on_error == "return"):
            if isinstance(result, Failure) and on_error == "raise":
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
        (reader,) = self._readers([item], WindowSpec(window, hop), faces)
        return self._timeline(reader)

    def _timeline(self, reader: ItemReader) -> Iterator[Prediction]:
        stage = Prefetch(iter(reader), 2 * _TIMELINE_BATCH)
        told = 0
        try:
            while ready := stage.take(_TIMELINE_BATCH):
                predictions = iter(self._predict_windows([(reader.name, w) for group in ready for w in group]))
                for group in ready:
                    main, *others = islice(predictions, len(group))
                    news = tuple(reader.warnings[told:])
                    told += len(news)
                    yield replace(main, others=tuple(others), warnings=news)
        finally:
            stage.close()

    def _readers(self, sources: Sequence[Source], spec: WindowSpec, faces: str | None) -> list[ItemReader]:
        every = replace(self.config, faces=faces).faces if faces is not None else self.config.faces
        threads = self._threads if len(sources) == 1 else 1
        return [
            ItemReader(
                source,
                source_name(source, i),
                self.plan,
                self.bundle.config,
                spec,
                every_face=every == "all",
                threads=threads,
            )
            for i, source in enumerate(sources)
        ]

    def _predict_readers(self, readers: Sequence[ItemReader], *, go_on: bool) -> Iterator[Prediction | Failure]:
        """One result for each reader, in order; windows of several items share a pass through the model."""
        done: list[tuple[_Item, MerfastError | None]] = []
        waiting: list[tuple[_Item, int, int, Window]] = []  # item, group, place in the group
        cost = 0.0

        def flush() -> Iterator[Prediction | Failure]:
            for (item, g, p, _), prediction in zip(
                waiting, self._predict_windows([(i.reader.name, w) for i, _, _, w in waiting]), strict=True
            ):
                item.groups[g][p] = prediction
            waiting.clear()
            yield from (_finish(item, error) for item, error in done)
            done.clear()

        opened = prefetch_each(readers, iter, ahead=2 * self._threads, size=_QUEUED_WINDOWS)
        try:
            for reader, groups in opened:
                item, error = _Item(reader), None
                try:
                    for group in groups:
                        item.groups.append([None] * len(group))
                        waiting += [(item, len(item.groups) - 1, p, w) for p, w in enumerate(group)]
                        cost += sum(w.end - w.start for w in group)
                        if cost >= self._pass_seconds:
                            yield from flush()
                            cost = 0.0
                except MerfastError as failure:
                    if not go_on:
                        raise
                    error = failure
                done.append((item, error))
            yield from flush()
        finally:
            opened.close()  # type: ignore[attr-defined]

    def _predict_windows(self, windows: Sequence[tuple[str, Window]]) -> list[Prediction]:
        """Predict windows of the named sources, in order; those with neither modality get NaN."""
        full = [w for _, w in windows if w.modalities]
        results: Iterator[tuple[np.ndarray, float]] = iter(self._run(full))
        nothing = np.full(len(EMOTIONS), np.nan, dtype=np.float32), float("nan")
        return [_prediction(name, w, *(next(results) if w.modalities else nothing)) for name, w in windows]

    def _run(self, windows: Sequence[Window]) -> list[tuple[np.ndarray, float]]:
        """Posterior `[6]` and valence of each window, in passes of so many seconds at most."""
        out: list[tuple[np.ndarray, float]] = []
        rest = list(windows)
        while rest:
            ends = np.cumsum([w.end - w.start for w in rest])
            count = max(1, int(np.searchsorted(ends, self._pass_seconds, side="right")))
            with torch.inference_mode():
                audio, crops = inputs_of(Batch.pack(rest[:count]), self._device)
                posterior, valence = self._model(audio, crops)
                if not bool(posterior.isfinite().all() and valence.isfinite().all()):
                    raise BundleError(f"bundle {self.bundle.config.name!r}: its weights give predictions of NaN")
                out += zip(posterior.float().cpu().numpy(), valence.float().cpu().tolist(), strict=True)
            del rest[:count]
        return out


def _prediction(name: str, window: Window, posterior: np.ndarray, valence: float) -> Prediction:
    return Prediction(
        source=name,
        start=window.start,
        end=window.end,
        emotion=EMOTIONS[int(posterior.argmax())] if window.modalities else None,
        probabilities=posterior.copy(),
        valence=valence,
        modalities=window.modalities,
        face_coverage=len(window.crops) / window.sampled if window.sampled else 0.0,
        missing=window.missing,
        track=window.track,
    )


_process: int | None = None


def _gather_kernel(choice: str, threads: int) -> Prepare | None:
    """What the gatherings run on, None for the reference."""
    if choice == "triton":
        from merfast.ops import afg_triton

        return afg_triton.prepare_group
    if choice.startswith("cpp-"):
        return partial(afg_cpu.prepare_group, isa=choice.removeprefix("cpp-"), threads=threads)
    return None


def _decode_kernel(choice: str) -> PrepareDecode | None:
    """What joint decoding runs on, None for the reference."""
    if choice == "triton":
        from merfast.ops import decode_triton

        return decode_triton.prepare
    return partial(decode_cpu.prepare, isa=choice.removeprefix("cpp-")) if choice.startswith("cpp-") else None


def _norm_kernel(choice: str, threads: int) -> PrepareNorm | None:
    """What the masked GroupNorm of speech models runs on, None for the reference."""
    if choice == "triton":
        from merfast.ops import group_norm_gelu_triton

        return group_norm_gelu_triton.prepare
    if choice.startswith("cpp-"):
        return partial(group_norm_gelu_cpu.prepare, isa=choice.removeprefix("cpp-"), threads=threads)
    return None


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


def _without_frames(error: MerfastError) -> MerfastError:
    """The error without its tracebacks, whose frames would keep decoders and pictures alive as long as the error."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _finish(item: _Item, error: MerfastError | None) -> Prediction | Failure:
    """An item's windows as one prediction."""
    name = item.reader.name
    if error is not None:
        return Failure(name, _without_frames(error))
    groups = [[p for p in group if p is not None] for group in item.groups]
    mains = [group[0] for group in groups]
    if all(p.emotion is None for p in mains):
        why = "; ".join(sorted({f"{m}: {reason}" for p in mains for m, reason in p.missing.items()}))
        return Failure(name, MediaError(name, f"holds nothing to predict from ({why})"))
    tracks: dict[int | None, list[Prediction]] = {}
    for group in groups:
        for other in group[1:]:
            tracks.setdefault(other.track, []).append(other)
    others = [combine(parts) if len(parts) > 1 else parts[0] for parts in tracks.values()]
    others.sort(key=lambda p: -p.face_coverage * (p.end - p.start))
    whole = mains[0] if len(mains) == 1 else combine(mains, windows=tuple(mains))
    return replace(whole, others=tuple(others), warnings=tuple(item.reader.warnings))
