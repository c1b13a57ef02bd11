"""Layers that see several sets in one tensor without letting them see each other.

Where the rows of sets lie is worked out on the host, from their sizes, and copied to the device in one piece: nothing
here waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from merfast.ops.ragged import moved

Indices = npt.NDArray[np.int64]


class Slots(NamedTuple):
    """Sets laid out on one axis with free places between them; all on the host."""

    starts: Indices  # [B], where each set begins
    places: Indices  # [N], where each row of the packed sets lies
    total: int  # length of the axis


def slots(sizes: Sequence[int], gap: int, align: int = 1) -> Slots:
    """Lay sets of so many rows out on one axis, at least `gap` free places after each, starts multiples of `align`.

    A convolution over the axis sees each set as it would see that set alone, padded with zeros, if the free places are
    zero and no fewer than the convolution reaches to one side.
    """
    lengths = np.array(sizes, dtype=np.int64)
    widths = (lengths + gap + align - 1) // align * align
    starts = widths.cumsum() - widths
    return Slots(starts, np.repeat(starts, lengths) + places_within(sizes), int(widths.sum()))


def spread(rows: Tensor, places: Tensor, total: int) -> Tensor:
    """`[total, ...]`: the packed rows `[N, ...]` at their places `[N]`, zeros elsewhere."""
    return rows.new_zeros(total, *rows.shape[1:]).index_copy(0, places, rows)


def owners(sizes: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """`[N]` int64: the set that each row belongs to."""
    return uploaded(np.repeat(np.arange(len(sizes)), sizes), device)


def places_within(sizes: Sequence[int]) -> Indices:
    """`[N]`: the place of each row in its set."""
    lengths = np.array(sizes, dtype=np.int64)
    return np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)


def side_by_side(starts: Indices, sizes: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """`[B, T]` int64: the rows of each set from its start on, as many as the largest set has.

    A smaller set repeats its last row, and an empty one has some row or other.
    """
    last = np.array(sizes, dtype=np.int64)[:, None] - 1
    rows = starts[:, None] + np.minimum(np.arange(max(sizes, default=0)), last)
    return uploaded(rows.clip(min=0), device)


def uploaded(array: npt.NDArray[np.generic], device: torch.device | str) -> Tensor:
    """An array as a tensor on a device, which is not waited for."""
    return moved(torch.from_numpy(array), device)


def ragged_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Sequence[int]) -> Tensor:
    """Scaled dot-product attention within each set; q, k, v and the result are `[N, H, d]`, N the sum of the sizes.

    Neighbouring sets of one size share a call.
    """
    done: list[Tensor] = []
    row = first = 0
    for after in range(1, len(sizes) + 1):
        size, sets = sizes[first], after - first
        if after < len(sizes) and sizes[after] == size:
            continue
        rows = slice(row, row + sets * size)
        if size:
            qs, ks, vs = (t[rows].view(sets, size, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))  # [sets, H, T, d]
            done.append(functional.scaled_dot_product_attention(qs, ks, vs).transpose(1, 2).flatten(0, 1))
        row, first = rows.stop, after
    return torch.cat(done) if done else v


def rotary_angles(sizes: Sequence[int], dim: int, base: float = 10_000.0, device: torch.device | str = "cpu") -> Tensor:
    """`[N, dim / 2]` angles for `rotate`, by the place of each row within its set."""
    rates = base ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    return uploaded(places_within(sizes), device)[:, None] * rates


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position (arXiv 2104.09864): turn the pairs of x `[N, H, d]` by angles `[N, d / 2]`."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
