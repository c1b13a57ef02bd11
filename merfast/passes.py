"""Windows of items on their way through the model, pass after pass, and predictions put together again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from merfast.attention import Attention
from merfast.errors import MediaError, MerfastError
from merfast.inference import Inference, Result
from merfast.pipeline import ItemReader, Prefetch
from merfast.types import EMOTIONS, Failure, Prediction, Window, combine

TIMELINE_BATCH = 8
"""Windows that a timeline predicts at a time."""


class Flight:
    """Windows of named sources that were started; those with neither modality get NaN."""

    def __init__(self, inference: Inference, windows: Sequence[tuple[str, Window]]) -> None:
        self._windows = windows
        self._pending = inference.start([w for _, w in windows if w.modalities])

    def land(self) -> list[Prediction]:
        """Their predictions, in order.

        Raises:
            BundleError: the bundle's weights give NaN.
        """
        results = zip(self._pending.result(), self._pending.attention(), strict=True)
        nothing = (np.full(len(EMOTIONS), np.nan, dtype=np.float32), float("nan")), None
        return [_prediction(name, w, *(next(results) if w.modalities else nothing)) for name, w in self._windows]


@dataclass
class Item:
    """An item on its way: groups of predictions, one group for each window, None until predicted."""

    reader: ItemReader
    groups: list[list[Prediction | None]] = field(default_factory=list)


@dataclass
class _Load:
    """What shares a flight: windows with their item, group and place in it, and items that end with them."""

    windows: list[tuple[Item, int, int, Window]] = field(default_factory=list)
    done: list[tuple[Item, MerfastError | None]] = field(default_factory=list)
    seconds: float = 0.0


def predict_items(
    opened: Iterable[tuple[ItemReader, Iterator[list[Window]]]], inference: Inference, *, go_on: bool
) -> Iterator[Prediction | Failure]:
    """One result for each item, in order; windows of several items share a pass through the model.

    As many flights as `Inference.ahead` are under way while the next one is collected.

    Args:
        opened: items and their windows, each read to its end before the next is asked for.
        inference: of the bundle.
        go_on: whether an item that fails becomes a `Failure`, or its error is raised.

    Raises:
        BundleError: the bundle's weights give NaN.
        MerfastError: an item's, unless `go_on`.
    """
    under_way: deque[tuple[Flight, _Load]] = deque()
    load = _Load()

    def start() -> None:
        windows = [(item.reader.name, w) for item, _, _, w in load.windows]
        under_way.append((Flight(inference, windows), load))

    def land(most: int) -> Iterator[Prediction | Failure]:
        """Land flights until `most` are left."""
        while len(under_way) > most:
            flight, landed = under_way.popleft()
            for (item, g, p, _), prediction in zip(landed.windows, flight.land(), strict=True):
                item.groups[g][p] = prediction
            yield from (finish(item, error) for item, error in landed.done)

    for reader, groups in opened:
        item, error = Item(reader), None
        try:
            for group in groups:
                item.groups.append([None] * len(group))
                load.windows += [(item, len(item.groups) - 1, p, w) for p, w in enumerate(group)]
                load.seconds += sum(w.end - w.start for w in group)
                if load.seconds >= inference.pass_seconds:
                    start()
                    load = _Load()
                    yield from land(inference.ahead)
        except MerfastError as failure:
            if not go_on:
                raise
            error = failure
        load.done.append((item, error))
    start()
    yield from land(0)


def predict_timeline(reader: ItemReader, inference: Inference) -> Iterator[Prediction]:
    """Windows of one item, in order; what is ready is started before an earlier result is read, and not waited for.

    Raises:
        MerfastError: the item's, after the predictions of all windows before it.
    """
    stage = Prefetch(iter(reader), 2 * TIMELINE_BATCH)
    under_way: deque[tuple[Flight, list[list[Window]]]] = deque()
    told = 0
    try:
        while True:
            ready = stage.take(TIMELINE_BATCH, wait=not under_way)
            if ready:
                under_way.append((Flight(inference, [(reader.name, w) for group in ready for w in group]), ready))
            elif not under_way:
                return
            if ready and len(under_way) <= inference.ahead:
                continue
            flight, landed = under_way.popleft()
            predictions = iter(flight.land())
            for group in landed:
                main, *others = islice(predictions, len(group))
                news = tuple(reader.warnings[told:])
                told += len(news)
                yield replace(main, others=tuple(others), warnings=news)
    finally:
        stage.close()


def _prediction(name: str, window: Window, result: Result, attention: Attention | None) -> Prediction:
    posterior, valence = result
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
        attention=attention,
    )


def _without_frames(error: MerfastError) -> MerfastError:
    """The error without its tracebacks, whose frames would keep decoders and pictures alive as long as the error."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def finish(item: Item, error: MerfastError | None) -> Prediction | Failure:
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
