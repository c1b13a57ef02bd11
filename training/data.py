"""Labelled clips: what every reader of a data set gives, and the checks that all of them share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from merfast.clip import Clip
from merfast.errors import MerfastError
from merfast.types import EMOTIONS

VALENCE_LIMIT = 5.0


class DataError(MerfastError):
    """Training data that cannot be used; names what and where."""


class Media(Protocol):
    """Something that the engine can read, with a key that changes when its content does."""

    def key(self) -> str:
        """Hash of the content, in hexadecimal."""
        ...

    def open(self) -> Path | Clip:
        """What `Engine.predict` takes."""
        ...


@dataclass(frozen=True)
class Sample:
    """One labelled clip.

    Attributes:
        name: unique within the data set; what messages call it.
        media: where its picture and sound come from.
        emotion: index into `EMOTIONS`, None if it has no such label.
        valence: in [-5, 5], None if it has no such label.
        speaker: who speaks, None if that is not known. A speaker may be in one split only.
        split: "train", "val", or the name of a test set.
        groups: further names that may be in one split only, such as that of a still picture.
    """

    name: str
    media: Media
    emotion: int | None
    valence: float | None
    speaker: str | None
    split: str
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.valence is not None and not -VALENCE_LIMIT <= self.valence <= VALENCE_LIMIT:
            raise DataError(f"{self.name}: valence: got {self.valence:g}, expected -5 to 5")
        if not self.split:
            raise DataError(f"{self.name}: split: got an empty name")


def emotion_index(name: str, label: str) -> int:
    """Index into `EMOTIONS` of a label of the item `name`.

    Raises:
        DataError: a label outside the six.
    """
    if label not in EMOTIONS:
        raise DataError(f"{name}: emotion: got {label!r}, expected one of {', '.join(EMOTIONS)}")
    return EMOTIONS.index(label)


def valence_number(name: str, text: str) -> float | None:
    """Valence from text; empty text is no label.

    Raises:
        DataError: not a finite number.
    """
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{name}: valence: got {text!r}, expected a number from -5 to 5")
    return value


def check(samples: Sequence[Sample]) -> None:
    """Refuse data that would train or score on the same thing twice.

    Raises:
        DataError: no samples, a name used twice, or a speaker or group in more than one split.
    """
    if not samples:
        raise DataError("got no samples")
    names: set[str] = set()
    for sample in samples:
        if sample.name in names:
            raise DataError(f"{sample.name}: got this name twice, expected unique names")
        names.add(sample.name)
    check_disjoint((f"speaker {s.speaker!r}", s.split) for s in samples if s.speaker is not None)
    check_disjoint((group, s.split) for s in samples for group in s.groups)


def check_disjoint(members: Iterable[tuple[str, str]]) -> None:
    """Raise `DataError` if anything, given with the split it is in, is in more than one."""
    where: dict[str, set[str]] = defaultdict(set)
    for who, split in members:
        where[who].add(split)
    shared = {who: splits for who, splits in where.items() if len(splits) > 1}
    if shared:
        who, splits = next(iter(sorted(shared.items())))
        more = f" ({len(shared) - 1} more like it)" if len(shared) > 1 else ""
        raise DataError(f"{who}: got it in the splits {', '.join(sorted(splits))}{more}, expected one split only")
