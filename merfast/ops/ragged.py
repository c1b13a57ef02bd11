"""Sets of rows packed one behind the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ragged:
    """B sets of rows in one tensor.

    Attributes:
        values: `[N, ...]`, all rows.
        offsets: `[B + 1]` int64, from 0 to N; set b owns `values[offsets[b]:offsets[b + 1]]`, and may be empty.
    """

    values: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """`[B]` int64 rows in each set."""
        return self.offsets.diff()

    def __repr__(self) -> str:
        return f"Ragged({len(self)} sets, values {list(self.values.shape)} {self.values.dtype})"


def offsets_from(lengths: Tensor) -> Tensor:
    """`[B + 1]` int64 offsets of sets with these lengths `[B]`."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def set_index(offsets: Tensor) -> Tensor:
    """`[N]` int64: the set that each row belongs to."""
    lengths = offsets.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)


def take(x: Ragged, rows: Tensor) -> Ragged:
    """The sets `rows` `[B']` of `x`, in the order given."""
    lengths = x.lengths[rows]
    offsets = offsets_from(lengths)
    owner = set_index(offsets)
    places = x.offsets[rows][owner] + torch.arange(len(owner), device=owner.device) - offsets[owner]
    return Ragged(x.values[places], offsets)


def union(parts: Sequence[Ragged]) -> Ragged:
    """Set b of the result holds the rows of set b of every part, in the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    lengths = torch.stack([p.lengths for p in parts])  # [P, B]
    offsets = offsets_from(lengths.sum(0))
    first = offsets[:-1] + lengths.cumsum(0) - lengths  # [P, B] where each part's rows start
    rows = torch.cat(
        [
            torch.arange(len(p.values), device=offsets.device) + (f - p.offsets[:-1]).repeat_interleave(p.lengths)
            for p, f in zip(parts, first, strict=True)
        ]
    )
    values = torch.cat([p.values for p in parts])
    return Ragged(torch.empty_like(values).index_copy(0, rows, values), offsets)
