"""`Worker`: reads items and predicts them on one device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from merfast.config import BundleConfig, EngineConfig
from merfast.inference import Inference
from merfast.media.faces import Detector, DetectorEach, make_detector
from merfast.media.source import Source, source_name
from merfast.media.tracks import Watch
from merfast.media.windows import WindowSpec
from merfast.passes import predict_items, predict_timeline
from merfast.pipeline import ItemReader, items_ahead, prefetch_each, warm_up
from merfast.plan import make_plan
from merfast.types import Failure, Prediction, Window

_QUEUED_WINDOWS = 4  # of one item, read ahead of the model


class Worker:
    """Reads items, several at a time, and predicts them on one device. Safe to use from many threads.

    Args:
        root: directory of the bundle.
        described: the bundle's config.
        config: options, with one device.
        threads: of the CPU.

    Attributes:
        plan: what runs each step.
        ahead: items that it reads at a time.
        detector: for pictures on the CPU, shared by all live streams; None where faces are not looked for.
        inference: the model on the device.

    Raises:
        BundleError: the bundle is not one.
        UnavailableError: something chosen explicitly does not exist here.
    """

    def __init__(self, root: Path, described: BundleConfig, config: EngineConfig, threads: int) -> None:
        self.plan = make_plan(config, described)
        self.detector: Detector | None = None
        if (detector := self.plan.choice("faces")) != "none":
            # A bad file is refused here, not later.
            make_detector(detector.removesuffix("-torch"), self.plan.detector_model)
            self.detector = DetectorEach(detector.removesuffix("-torch"), self.plan.detector_model)
        self._threads = threads
        self.ahead = items_ahead(self.plan, threads)
        warm_up(self.plan, described)
        self.inference = Inference(root, described, self.plan, threads=threads, batch_seconds=config.batch_seconds)

    def readers(
        self, sources: Sequence[Source], spec: WindowSpec, *, every_face: bool, watch: Watch | None = None
    ) -> list[ItemReader]:
        """What reads each item into windows; nothing is opened yet. `watch` is shown all faces."""
        threads = self._threads if len(sources) == 1 else 1
        config = self.inference.bundle.config
        more: dict[str, Any] = {"every_face": every_face, "threads": threads, "watch": watch}
        return [
            ItemReader(source, source_name(source, i), self.plan, config, spec, **more)
            for i, source in enumerate(sources)
        ]

    def predict(
        self,
        readers: Iterable[ItemReader],
        *,
        go_on: bool,
        ahead: Callable[[], int] | None = None,
        read: Callable[[ItemReader], Iterator[list[Window]]] = iter,
    ) -> Generator[Prediction | Failure]:
        """One result for each reader, in order; windows of several items share a pass through the model.

        Args:
            readers: of the items; asked for the next when fewer than `ahead()` are at work.
            go_on: whether an item that fails becomes a `Failure`, instead of an error.
            ahead: the attribute, unless given.
            read: starts a reader.

        Raises:
            BundleError: the bundle's weights give NaN.
            MerfastError: an item's, unless `go_on`.
        """
        opened = prefetch_each(readers, read, ahead=ahead or (lambda: self.ahead), size=_QUEUED_WINDOWS)
        with closing(opened):
            yield from predict_items(opened, self.inference, go_on=go_on)

    def timeline(self, reader: ItemReader) -> Iterator[Prediction]:
        """Windows of one item, in order.

        Raises:
            MerfastError: the item's, after the predictions of all windows before it.
        """
        return predict_timeline(reader, self.inference)
