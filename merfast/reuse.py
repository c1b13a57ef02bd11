"""Each face crop of a timeline is encoded once, however many windows share it.

That is exact because a video encoder makes a crop's vector from that crop alone (see `models/encoders.py`). The audio
encoders do not allow it: they normalise over the whole window, or attend to all of it, and are run anew for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from merfast.ops.ragged import Ragged
from merfast.types import Known, Window


class Reuse:
    """What one pass takes over from earlier ones, and leaves to later ones.

    Args:
        windows: of the pass; those of one timeline in order of time.

    Attributes:
        windows: the same, with the crops only that have to be encoded.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self._whole = windows
        self._first: list[int] = []  # crop of each window from which on they are encoded
        asked: set[tuple[int, tuple[int, int | None]]] = set()
        for window in windows:
            keys, known, first = _keys(window), window.known, 0
            if known is not None:
                unknown = (i for i, key in enumerate(keys) if key not in known and (id(known), key) not in asked)
                first = next(unknown, len(keys))
                asked.update((id(known), key) for key in keys[first:])
            self._first.append(first)
        self.windows = [
            replace(w, crops=w.crops[first:]) if first else w for w, first in zip(windows, self._first, strict=True)
        ]

    def complete(self, features: Mapping[str, Ragged], streams: Sequence[str]) -> dict[str, Ragged]:
        """Features of all crops, out of those of the encoded ones.

        Args:
            features: stream name -> vectors of `windows`.
            streams: those that read crops.
        """
        out = dict(features)
        for stream in streams:
            out[stream] = self._completed(stream, features[stream])
        for window in self._whole:
            if window.known is not None and window.numbers:
                _forget(window.known, min(w.numbers[0] for w in self._whole if _same_place(w, window)))
        return out

    def _completed(self, stream: str, encoded: Ragged) -> Ragged:
        sizes = encoded.host_sizes()
        parts = []
        for window, first, rows in zip(
            self._whole, self._first, torch.split(encoded.values[: sum(sizes)], list(sizes)), strict=True
        ):
            known, keys = window.known, _keys(window)
            if known is not None:
                parts += [known[key][stream][None] for key in keys[:first]]
                for key, row in zip(keys[first:], rows, strict=True):
                    known.setdefault(key, {})[stream] = row
            parts.append(rows)
        if not any(self._first):
            return encoded
        return Ragged.of(torch.cat(parts), [n + first for n, first in zip(sizes, self._first, strict=True)])


def _keys(window: Window) -> list[tuple[int, int | None]]:
    return [(number, window.track) for number in window.numbers]


def _same_place(a: Window, b: Window) -> bool:
    return a.known is b.known and a.start == b.start and bool(a.numbers)


def _forget(known: Known, before: int) -> None:
    """Let go the crops of frames that no later window holds."""
    for key in [key for key in known if key[0] < before]:
        del known[key]
