"""GroupNorm over the valid frames of padded sequences, then GELU. Contract and eager reference.

For sample b with n_b valid frames and group g of C / G channels, over the K = n_b C / G values of the group:

    m = sum x / K      v = sum (x - m)^2 / K
    y_ct = gelu((x_ct - m) / sqrt(v + eps) weight_c + bias_c) for t < n_b, else 0         gelu(x) = x Phi(x), exact

This is what `group_norm` (arXiv 1803.08494) and `gelu` give for each sample alone, without its padding. HuBERT and
wav2vec 2.0 base have it after their first convolution, with G = C; without the mask, padding changes their output.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

GroupNormGelu = Callable[[Tensor, Tensor], Tensor]
"""The op with its weights bound: (x [B, C, T], lengths [B]) -> y [B, C, T]."""


PrepareNorm = Callable[[Tensor, Tensor, int, float], GroupNormGelu]
"""An implementation of the op: binds weight, bias, groups and eps."""


def check_group_norm_gelu(x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> None:
    """Raise ValueError unless the shapes fit together and the lengths are from 0 to T.

    The values of lengths are checked on the CPU only: reading them from a GPU would wait for it.
    """
    if weight.ndim != 1 or bias.shape != weight.shape:
        got = f"weight {list(weight.shape)}, bias {list(bias.shape)}"
        raise ValueError(f"group_norm_gelu weights: got {got}, expected [C], [C]")
    channels = len(weight)
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(f"group_norm_gelu groups: got {groups}, expected a divisor of {channels} channels")
    if not 0 <= eps < math.inf:
        raise ValueError(f"group_norm_gelu eps: got {eps}, expected a finite number from 0 on")
    if x.ndim != 3 or x.shape[1] != channels:
        raise ValueError(f"group_norm_gelu x: got {list(x.shape)}, expected [B, {channels}, T]")
    if list(lengths.shape) != [len(x)] or lengths.dtype != torch.int64:
        got = f"{lengths.dtype} {list(lengths.shape)}"
        raise ValueError(f"group_norm_gelu lengths: got {got}, expected torch.int64 [{len(x)}]")
    frames = x.shape[2]
    if lengths.device.type == "cpu" and not bool(((lengths >= 0) & (lengths <= frames)).all()):
        raise ValueError(f"group_norm_gelu lengths: got {lengths.tolist()[:8]}..., expected 0 to {frames}")


def group_norm_gelu(x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """Normalise each sample's groups over its valid frames, and apply GELU.

    Args:
        x: `[B, C, T]` of any strides, fp32, bf16 or fp16 (or fp64, for tests); what is beyond a length may be anything,
            NaN too.
        lengths: `[B]` int64 valid frames of each sample, from 0 to T.
        weight, bias: `[C]`.
        groups: G, a divisor of C.
        eps: added to the variance.

    Returns:
        `[B, C, T]` in the dtype of x, computed in fp32 (mean first, then the squares of what differs from it), zero
        beyond the lengths.

    Raises:
        ValueError: shapes, lengths or options do not fit.
    """
    check_group_norm_gelu(x, lengths, weight, bias, groups, eps)
    valid = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None]  # [B, 1, T]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    normal = masked_group_norm(x.to(wide), lengths, weight.to(wide), bias.to(wide), groups, eps)
    return torch.where(valid, functional.gelu(normal), 0).to(x.dtype)


def masked_group_norm(x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """The normalisation alone, in plain torch operations that can be exported; arguments as above, unchecked.

    Returns:
        `[B, C, T]` in the dtype of x; beyond the lengths anything finite.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    valid = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None, None]  # [B, 1, 1, T]
    batch, channels, frames = x.shape
    values = torch.where(valid, x.reshape(batch, groups, channels // groups, frames).to(wide), 0)  # [B, G, C / G, T]
    count = (lengths.clamp(min=1) * (channels // groups))[:, None, None, None]
    mean = values.sum((2, 3), keepdim=True) / count
    centred = torch.where(valid, values - mean, 0)
    variance = centred.square().sum((2, 3), keepdim=True) / count
    normal = (centred * torch.rsqrt(variance + eps)).flatten(1, 2)
    return (normal * weight.to(wide)[:, None] + bias.to(wide)[:, None]).to(x.dtype)


def prepare(weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5) -> GroupNormGelu:
    """The reference as an implementation: nothing is packed."""
    return lambda x, lengths: group_norm_gelu(x, lengths, weight, bias, groups, eps)
