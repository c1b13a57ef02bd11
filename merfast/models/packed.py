"""Layers that see several sets in one tensor without letting them see each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Slots(NamedTuple):
    """Sets laid out on one axis with free places between them."""

    starts: Tensor  # [B] int64, where each set begins
    places: Tensor  # [N] int64, where each row of the packed sets lies
    total: int  # length of the axis


def slots(lengths: Tensor, gap: int, align: int = 1) -> Slots:
    """Lay sets of `lengths` `[B]` out on one axis, at least `gap` free places after each, starts multiples of `align`.

    A convolution over the axis sees each set as it would see that set alone, padded with zeros, if the free places are
    zero and no fewer than the convolution reaches to one side.
    """
    widths = (lengths + gap + align - 1) // align * align
    starts = widths.cumsum(0) - widths
    shift = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    return Slots(starts, shift + torch.arange(len(shift), device=shift.device), int(widths.sum()))


def spread(rows: Tensor, layout: Slots) -> Tensor:
    """`[total, ...]`: the packed rows `[N, ...]` at their places, zeros elsewhere."""
    return rows.new_zeros(layout.total, *rows.shape[1:]).index_copy(0, layout.places, rows)


def ragged_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Scaled dot-product attention within each set; q, k, v and the result are `[N, H, d]`, offsets `[B + 1]`.

    Neighbouring sets of one length share a call.
    """
    lengths = offsets.diff().tolist()
    done: list[Tensor] = []
    row = first = 0
    for after in range(1, len(lengths) + 1):
        length, sets = lengths[first], after - first
        if after < len(lengths) and lengths[after] == length:
            continue
        rows = slice(row, row + sets * length)
        if length:
            qs, ks, vs = (
                t[rows].view(sets, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v)
            )  # [sets, H, T, d]
            done.append(functional.scaled_dot_product_attention(qs, ks, vs).transpose(1, 2).flatten(0, 1))
        row, first = rows.stop, after
    return torch.cat(done) if done else v


def rotary_angles(offsets: Tensor, dim: int, base: float = 10_000.0) -> Tensor:
    """`[N, dim / 2]` angles for `rotate`, by the place of each row within its set."""
    starts = offsets[:-1].repeat_interleave(offsets.diff())
    places = torch.arange(len(starts), device=offsets.device) - starts
    rates = base ** (-torch.arange(0, dim, 2, device=offsets.device, dtype=torch.float32) / dim)
    return places[:, None] * rates


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position (arXiv 2104.09864): turn the pairs of x `[N, H, d]` by angles `[N, d / 2]`."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
