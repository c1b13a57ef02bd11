"""Sets of rows packed one behind the other, without padding.

Nothing here waits for a device, as long as the lengths of the sets are known on the host: see `Ragged.sizes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Ragged:
    """B sets of rows in one tensor.

    Attributes:
        values: `[N, ...]`, all rows.
        offsets: `[B + 1]` int64, from 0 to at most N; set b owns `values[offsets[b]:offsets[b + 1]]`, and may be empty.
            Rows after the last set's end belong to none.
        sizes: rows in each set, where they are known on the host; None where only the device knows.

    Raises:
        ValueError: sizes of another number of sets, or of more rows than there are.
    """

    values: Tensor
    offsets: Tensor
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.sizes is not None and (len(self.sizes) != len(self) or sum(self.sizes) > len(self.values)):
            got = f"sizes of {len(self.sizes)} sets, {sum(self.sizes)} rows in all"
            raise ValueError(f"ragged: got {got}, expected {len(self)} sets in {len(self.values)} rows")

    @classmethod
    def of(cls, values: Tensor, sizes: Sequence[int]) -> Ragged:
        """Sets of known sizes: the offsets are made on the host, and copied to where the values are."""
        offsets = torch.tensor([0, *accumulate(sizes)], dtype=torch.int64)
        return cls(values, moved(offsets, values.device), tuple(sizes))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """`[B]` int64 rows in each set, where the offsets are."""
        return self.offsets.diff()

    def host_sizes(self) -> tuple[int, ...]:
        """Rows in each set, on the host. Waits for the device only where `sizes` are not known."""
        return tuple(self.lengths.tolist()) if self.sizes is None else self.sizes

    def __repr__(self) -> str:
        return f"Ragged({len(self)} sets, values {list(self.values.shape)} {self.values.dtype})"


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; a copy from the host goes through pinned memory, and is queued and not waited for."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def offsets_from(lengths: Tensor) -> Tensor:
    """`[B + 1]` int64 offsets of sets with these lengths `[B]`."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def set_index(offsets: Tensor, rows: int | None = None) -> Tensor:
    """`[N]` int64: the set that each row belongs to, B for rows after the last set's end.

    Args:
        offsets: `[B + 1]` int64.
        rows: N; without it, rows end with the last set, and where that is, is read from the device, which waits.
    """
    if rows is None:
        return torch.repeat_interleave(offsets.diff())
    # What is left is a set of its own: so it is known how many indices there will be.
    return torch.repeat_interleave(functional.pad(offsets, (0, 1), value=rows).diff(), output_size=rows)


def to_rows(of_sets: Tensor, x: Ragged) -> Tensor:
    """`[N, D]`: for each row of x what `[B, D]` has for its set, 0 for rows that belong to none."""
    return functional.pad(of_sets, (0, 0, 0, 1))[set_index(x.offsets, len(x.values))]


def take(x: Ragged, rows: Tensor) -> Ragged:
    """The sets `rows` `[B']` of `x`, in this order. Waits for a device unless sizes are known and rows on the host."""
    sizes = None
    if x.sizes is not None and rows.device.type == "cpu":
        sizes = tuple(x.sizes[b] for b in rows.tolist())
    rows = moved(rows, x.offsets.device)
    offsets = offsets_from(x.lengths[rows])
    owner = set_index(offsets, None if sizes is None else sum(sizes))
    places = x.offsets[rows][owner] + torch.arange(len(owner), device=owner.device) - offsets[owner]
    return Ragged(x.values[places], offsets, sizes)


def apart(rows: Tensor, parts: Sequence[Ragged]) -> list[Tensor]:
    """`[N_p, ...]` of each part, out of what belongs to the rows `[sum of N_p, ...]` of the parts' `union`."""
    lengths = [len(p.values) for p in parts]
    numbers = torch.split(torch.arange(sum(lengths), device=rows.device), lengths)
    origin = union([replace(p, values=n) for p, n in zip(parts, numbers, strict=True)]).values
    return list(torch.split(torch.empty_like(rows).index_copy(0, origin, rows), lengths))


def union(parts: Sequence[Ragged]) -> Ragged:
    """Set b of the result holds the rows of set b of every part, in the order of the parts.

    Rows that belong to no set of their part belong to none of the result.
    """
    if len(parts) == 1:
        return parts[0]
    # What belongs to none is one more set of each part, the last.
    ends = [functional.pad(p.offsets, (0, 1), value=len(p.values)) for p in parts]  # P times [B + 2]
    lengths = torch.stack(ends).diff()  # [P, B + 1]
    offsets = offsets_from(lengths.sum(0))
    first = offsets[:-1] + lengths.cumsum(0) - lengths  # [P, B + 1] where each part's rows start
    shifts = first - torch.stack([p.offsets for p in parts])
    rows = torch.cat(
        [
            torch.arange(len(p.values), device=offsets.device) + shift[set_index(p.offsets, len(p.values))]
            for p, shift in zip(parts, shifts, strict=True)
        ]
    )
    values = torch.cat([p.values for p in parts])
    known = [p.sizes for p in parts if p.sizes is not None]
    sizes = tuple(map(sum, zip(*known, strict=True))) if len(known) == len(parts) else None
    return Ragged(torch.empty_like(values).index_copy(0, rows, values), offsets[:-1], sizes)
