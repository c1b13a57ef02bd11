"""Joint decoding of emotion and valence, for all structures at once, and their average. Contract and reference.

For structure s with gathered vector z_s in R^D:

    p_s = softmax(W_s z_s + c_s)                                            [C] classes
    v_s = o_s . gelu(M_s [z_s; p_s] + d_s) + e_s + p_s . mu_s               valence given the posterior
    p   = sum_s w_s p_s        v = sum_s w_s v_s                            posterior averaging, sum_s w_s = 1
    p   = softmax(log p / T)   v = min(max(v, -L), L)                       temperature T, limit L

arXiv 1706.04599 has the temperature; with T = 1 the average posterior is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class DecodeWeights(NamedTuple):
    """Parameters of S structures: width D, C classes, M hidden units of the valence head."""

    emotion_weight: Tensor  # [S, C, D]
    emotion_bias: Tensor  # [S, C]
    hidden_weight: Tensor  # [S, M, D + C]
    hidden_bias: Tensor  # [S, M]
    valence_weight: Tensor  # [S, M]
    valence_bias: Tensor  # [S]
    class_valence: Tensor  # [S, C], mu


Decode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Decoding with its weights bound: z [S, B, D] -> posterior [B, C], valence [B]."""

PrepareDecode = Callable[[DecodeWeights, Tensor, float, float], Decode]
"""An implementation of the op: binds weights, mix [S], temperature and limit, packing them as it likes."""


class Decoded(NamedTuple):
    """What each structure says, before averaging."""

    logits: Tensor  # [S, B, C]
    posterior: Tensor  # [S, B, C]
    valence: Tensor  # [S, B]


def check_decode(z: Tensor, weights: DecodeWeights) -> None:
    """Raise ValueError unless z fits the weights, and they each other."""
    if weights.emotion_weight.ndim != 3 or weights.hidden_weight.ndim != 3:
        got = f"{list(weights.emotion_weight.shape)} and {list(weights.hidden_weight.shape)}"
        raise ValueError(f"decode weights: got emotion_weight and hidden_weight {got}, expected 3 dimensions each")
    (structures, classes, dim), hidden = weights.emotion_weight.shape, weights.hidden_weight.shape[1]
    expected = (
        DecodeWeights._fields,
        (
            [structures, classes, dim],
            [structures, classes],
            [structures, hidden, dim + classes],
            [structures, hidden],
            [structures, hidden],
            [structures],
            [structures, classes],
        ),
    )
    for name, shape in zip(*expected, strict=True):
        if list(getattr(weights, name).shape) != shape:
            raise ValueError(f"decode {name}: got {list(getattr(weights, name).shape)}, expected {shape}")
    if z.ndim != 3 or z.shape[0] != structures or z.shape[2] != dim:
        raise ValueError(f"decode z: got {list(z.shape)}, expected [{structures}, B, {dim}]")


def check_average(mix: Tensor, structures: int, temperature: float, limit: float) -> None:
    """Raise ValueError unless mix is `[S]`, the temperature above 0 and finite, and the limit not negative."""
    if list(mix.shape) != [structures]:
        raise ValueError(f"decode mix: got {list(mix.shape)}, expected [{structures}]")
    if not 0 < temperature < math.inf:
        raise ValueError(f"decode temperature: got {temperature}, expected a finite number above 0")
    if not limit >= 0:
        raise ValueError(f"decode limit: got {limit}, expected a number from 0 on")


def decode_structures(z: Tensor, weights: DecodeWeights) -> Decoded:
    """Decode each structure's vector; z is `[S, B, D]`.

    Raises:
        ValueError: z does not fit the weights.
    """
    check_decode(z, weights)
    logits = torch.einsum("sbd,scd->sbc", z, weights.emotion_weight) + weights.emotion_bias[:, None]
    posterior = logits.softmax(-1)
    joint = torch.cat([z, posterior], -1)  # [S, B, D + C]
    hidden = torch.einsum("sbj,smj->sbm", joint, weights.hidden_weight) + weights.hidden_bias[:, None]
    valence = torch.einsum("sbm,sm->sb", functional.gelu(hidden), weights.valence_weight)
    valence = valence + weights.valence_bias[:, None]
    valence = valence + torch.einsum("sbc,sc->sb", posterior, weights.class_valence)
    return Decoded(logits, posterior, valence)


def decode(
    z: Tensor, weights: DecodeWeights, mix: Tensor, temperature: float = 1.0, limit: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Decode, average, and bring the average to its temperature and range.

    Args:
        z: `[S, B, D]` vectors of the structures, fp32, bf16 or fp16 (or fp64, for tests).
        weights: see `DecodeWeights`, in the dtype of z.
        mix: `[S]` weights of the structures, summing to 1.
        temperature: above 0; more than 1 softens the posterior, less sharpens it.
        limit: valence is clamped to [-limit, limit].

    Returns:
        Posterior `[B, C]`, rows summing to 1, and valence `[B]`, in the dtype of z.

    Raises:
        ValueError: z or mix do not fit the weights, or temperature or limit are out of range.
    """
    each = decode_structures(z, weights)
    check_average(mix, len(z), temperature, limit)
    posterior, valence = torch.einsum("s,sbc->bc", mix, each.posterior), mix @ each.valence
    if temperature != 1.0:
        posterior = (posterior.log() / temperature).softmax(-1)
    return posterior, valence.clamp(-limit, limit)


def prepare(weights: DecodeWeights, mix: Tensor, temperature: float = 1.0, limit: float = math.inf) -> Decode:
    """The reference as an implementation: nothing is packed."""
    return lambda z: decode(z, weights, mix, temperature, limit)
