"""Attention-guided feature gathering (AFG): one vector out of a set of vectors. Contract and eager reference.

For a set of rows x_t in R^D, an optional guide vector g in R^G and H heads:

    e_th = u_h . tanh(W x_t + U g + b)          W [A, D], U [A, G], b [A], u [H, A]
    a_th = softmax of e_th over the set, for each head h
    z    = concatenation over h of sum_t a_th x_t[h D/H : (h + 1) D/H]

An empty set gives the learned vector `absent`. Rows after the last set's end belong to none, and nothing depends on
them: so rows can be padded, and sets of unknown size be packed, without waiting for the device.

Where the attention a_th is asked for, it is written to a tensor that the caller gives; z is the same to the bit.

The name is that of arXiv 2309.07925, whose abstract alone was available; the formula is merfast's reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from merfast.ops.ragged import set_index


class AFGWeights(NamedTuple):
    """Parameters of one gathering: width D, attention width A, H heads, guide width G."""

    weight: Tensor  # [A, D]
    bias: Tensor  # [A]
    score: Tensor  # [H, A]
    absent: Tensor  # [D]
    guide_weight: Tensor | None = None  # [A, G]


Gather = Callable[..., Tensor]
"""A gathering with its weights bound: the fields of a `Gathering` -> z [B, D]."""


class Gathering(NamedTuple):
    """Arguments of one gathering."""

    x: Tensor  # [N, D]
    offsets: Tensor  # [B + 1] int64
    guide: Tensor | None = None  # [B, G]
    attention: Tensor | None = None  # [N, H] fp32, written to: a_th, and 0 for rows that belong to no set


GatherGroup = Callable[[Sequence[Gathering]], list[Tensor]]
"""Gatherings that do not depend on each other, with their weights bound: one call, and one z `[B, D]` for each."""

Prepare = Callable[[Sequence[AFGWeights]], GatherGroup]
"""An implementation of the op: binds the weights of a group, packing them as it likes."""


def check_afg(
    x: Tensor, offsets: Tensor, weights: AFGWeights, guide: Tensor | None, attention: Tensor | None = None
) -> None:
    """Raise ValueError unless the shapes fit together and the offsets run from 0 to at most N without falling.

    The values of offsets are checked on the CPU only: reading them from a GPU would wait for it.
    """
    heads, width = weights.score.shape
    dim = weights.weight.shape[1]
    if weights.weight.shape[0] != width or weights.bias.shape != (width,) or weights.absent.shape != (dim,):
        raise ValueError(
            f"afg weights: got weight {list(weights.weight.shape)}, bias {list(weights.bias.shape)}, score "
            f"{[heads, width]}, absent {list(weights.absent.shape)}, expected [A, D], [A], [H, A], [D]"
        )
    if dim % heads:
        raise ValueError(f"afg weights: got width {dim} and {heads} heads, expected a multiple")
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"afg x: got {list(x.shape)}, expected [N, {dim}]")
    if offsets.ndim != 1 or len(offsets) < 1 or offsets.dtype != torch.int64:
        raise ValueError(f"afg offsets: got {offsets.dtype} {list(offsets.shape)}, expected int64 [B + 1]")
    if (guide is None) != (weights.guide_weight is None):
        has, wants = guide is not None, weights.guide_weight is not None
        raise ValueError(f"afg guide: got guide={has} with guide_weight={wants}, expected both or neither")
    if guide is not None and weights.guide_weight is not None:
        expected = [len(offsets) - 1, weights.guide_weight.shape[1]]
        if list(guide.shape) != expected:
            raise ValueError(f"afg guide: got {list(guide.shape)}, expected {expected}")
    if attention is not None:
        wanted = [len(x), heads]
        fits = list(attention.shape) == wanted and attention.dtype == torch.float32 and attention.device == x.device
        if not fits or not attention.is_contiguous():
            strides = "" if attention.is_contiguous() else "non-contiguous "
            got = f"{strides}{attention.dtype} {list(attention.shape)} on {attention.device}"
            raise ValueError(f"afg attention: got {got}, expected torch.float32 {wanted} on {x.device}")
    if offsets.device.type == "cpu":
        rising = bool((offsets.diff() >= 0).all())
        if not rising or int(offsets[0]) != 0 or int(offsets[-1]) > len(x):
            raise ValueError(f"afg offsets: expected to rise from 0 to at most {len(x)}, got {offsets.tolist()[:8]}...")


def afg(
    x: Tensor,
    offsets: Tensor,
    weights: AFGWeights,
    guide: Tensor | None = None,
    attention: Tensor | None = None,
) -> Tensor:
    """Gather each set of rows into one vector.

    Args:
        x: `[N, D]` rows of all sets, fp32, bf16 or fp16 (or fp64, for tests).
        offsets: `[B + 1]` int64 from 0 to at most N; set b is `x[offsets[b]:offsets[b + 1]]` and may be empty.
        weights: see `AFGWeights`.
        guide: `[B, G]`, one vector for each set, if the weights have a `guide_weight`.
        attention: `[N, H]` fp32, contiguous, written to if given: a_th, and 0 for rows that belong to no set.

    Returns:
        `[B, D]` in the dtype of x.

    Raises:
        ValueError: shapes or offsets do not fit together.
    """
    check_afg(x, offsets, weights, guide, attention)
    sets, (heads, _), dim = len(offsets) - 1, weights.score.shape, x.shape[1]
    owner = set_index(offsets, len(x))  # what belongs to none is one more set, which is dropped
    hidden = x @ weights.weight.T + weights.bias  # [N, A]
    if guide is not None and weights.guide_weight is not None:
        hidden = hidden + functional.pad(guide @ weights.guide_weight.T, (0, 0, 0, 1))[owner]
    energy = torch.tanh(hidden) @ weights.score.T  # [N, H]
    top = energy.new_full((sets + 1, heads), -torch.inf)
    top = top.scatter_reduce(0, owner[:, None].expand(-1, heads), energy.detach(), "amax")
    raised = torch.exp(energy - top[owner])  # [N, H]
    total = raised.new_zeros(sets + 1, heads).index_add(0, owner, raised)
    shares = raised / total[owner]
    if attention is not None:
        attention.copy_(torch.where((owner < sets)[:, None], shares.detach(), 0.0))
    rows = (shares[:, :, None] * x.view(-1, heads, dim // heads)).flatten(1)
    gathered = x.new_zeros(sets + 1, dim).index_add(0, owner, rows)[:sets]
    return torch.where((offsets.diff() > 0)[:, None], gathered, weights.absent.to(x.dtype))


def prepare_group(weights: Sequence[AFGWeights]) -> GatherGroup:
    """The reference as an implementation: nothing is packed."""
    return lambda calls: [afg(c.x, c.offsets, w, c.guide, c.attention) for c, w in zip(calls, weights, strict=True)]
