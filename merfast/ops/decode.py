"""Joint decoding of emotion and valence, for all structures at once, and their average. Contract and reference.

For structure s with gathered vector z_s in R^D:

    p_s = softmax(W_s z_s + c_s)                                            [C] classes
    v_s = o_s . gelu(M_s [z_s; p_s] + d_s) + e_s + p_s . mu_s               valence given the posterior
    p   = sum_s w_s p_s        v = sum_s w_s v_s                            posterior averaging, sum_s w_s = 1
"""

from __future__ import annotations

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


class Decoded(NamedTuple):
    """What each structure says, before averaging."""

    logits: Tensor  # [S, B, C]
    posterior: Tensor  # [S, B, C]
    valence: Tensor  # [S, B]


def decode_structures(z: Tensor, weights: DecodeWeights) -> Decoded:
    """Decode each structure's vector; z is `[S, B, D]`.

    Raises:
        ValueError: z does not fit the weights.
    """
    structures, _, dim = weights.emotion_weight.shape
    if z.ndim != 3 or z.shape[0] != structures or z.shape[2] != dim:
        raise ValueError(f"decode z: got {list(z.shape)}, expected [{structures}, B, {dim}]")
    logits = torch.einsum("sbd,scd->sbc", z, weights.emotion_weight) + weights.emotion_bias[:, None]
    posterior = logits.softmax(-1)
    joint = torch.cat([z, posterior], -1)  # [S, B, D + C]
    hidden = torch.einsum("sbj,smj->sbm", joint, weights.hidden_weight) + weights.hidden_bias[:, None]
    valence = torch.einsum("sbm,sm->sb", functional.gelu(hidden), weights.valence_weight)
    valence = valence + weights.valence_bias[:, None]
    valence = valence + torch.einsum("sbc,sc->sb", posterior, weights.class_valence)
    return Decoded(logits, posterior, valence)


def decode(z: Tensor, weights: DecodeWeights, mix: Tensor) -> tuple[Tensor, Tensor]:
    """Decode and average: z `[S, B, D]`, mix `[S]` summing to 1 -> posterior `[B, C]`, valence `[B]`.

    Raises:
        ValueError: z or mix do not fit the weights.
    """
    each = decode_structures(z, weights)
    if mix.shape != z.shape[:1]:
        raise ValueError(f"decode mix: got {list(mix.shape)}, expected [{z.shape[0]}]")
    return torch.einsum("s,sbc->bc", mix, each.posterior), mix @ each.valence
