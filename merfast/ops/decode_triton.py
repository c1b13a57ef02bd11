"""Joint decoding in Triton: all structures, their average, temperature and limit in one launch, forward only.

The contract is `merfast.ops.decode`. A program decodes 16 samples, structure by structure; it reads every weight once,
and nothing between z and the result goes through memory.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from merfast.errors import UnavailableError
from merfast.ops.decode import Decode, DecodeWeights, check_average, check_decode

ROWS = 16  # samples of a program: the least that tensor cores take
DEPTH = 64  # numbers of z multiplied at a time
HIDDEN = 64  # hidden units at a time
WARPS = {torch.float32: 8, torch.bfloat16: 4, torch.float16: 4}  # with the other number, registers spill


@triton.jit
def _product(p_x, p_w, o_x, m_x, o_w, m_w, D, ROWS: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, F32: tl.constexpr):
    """x [ROWS, D] times w [N, D] transposed, from row offsets and masks; fp32. F32 widens the operands first."""
    b_sum = tl.zeros((ROWS, N), tl.float32)
    for i in range(0, D, BD):
        o_d = i + tl.arange(0, BD)
        m_d = o_d < D
        b_x = tl.load(p_x + o_x[:, None] + o_d[None, :], mask=m_x[:, None] & m_d[None, :], other=0.0)  # [ROWS, BD]
        b_w = tl.load(p_w + o_w[None, :] + o_d[:, None], mask=m_w[None, :] & m_d[:, None], other=0.0)  # [BD, N]
        if F32:
            b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
        b_sum = tl.dot(b_x, b_w, b_sum, input_precision="ieee")
    return b_sum


@triton.jit
def decode_kernel(
    z,  # [S, B, D]
    emotion,  # [S, C, D]
    hidden,  # [S, M, D]
    given,  # [S, C, M], hidden weights of the posterior
    units,  # [S, 2, M] fp32: hidden bias, valence weight
    classes,  # [S, 2, C] fp32: emotion bias, mu
    scalars,  # [S, 2] fp32: valence bias, mix
    posterior,  # [B, C]
    valence,  # [B]
    B,
    D,
    M,
    C,
    S,
    temperature,
    limit,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    SCALED: tl.constexpr,  # temperature is not 1
    F32: tl.constexpr,
):
    o_b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_b = o_b < B
    o_c = tl.arange(0, BC)
    m_c = o_c < C
    b_posterior = tl.zeros((ROWS, BC), tl.float32)
    b_valence = tl.zeros((ROWS,), tl.float32)
    for s in range(S):
        o_z = (s * B + o_b) * D
        b_logits = _product(z, emotion, o_z, m_b, (s * C + o_c) * D, m_c, D, ROWS, BC, BD, F32)
        b_logits += tl.load(classes + s * 2 * C + o_c, mask=m_c, other=0.0)[None, :]
        b_logits = tl.where(m_c[None, :], b_logits, -float("inf"))
        b_raised = tl.exp(b_logits - tl.max(b_logits, 1)[:, None])
        b_p = b_raised / tl.sum(b_raised, 1)[:, None]  # [ROWS, BC]
        b_mu = tl.load(classes + (s * 2 + 1) * C + o_c, mask=m_c, other=0.0)
        b_v = tl.sum(tl.where(m_c[None, :], b_p * b_mu[None, :], 0.0), 1) + tl.load(scalars + s * 2)
        for i in range(0, M, BM):
            o_m = i + tl.arange(0, BM)
            m_m = o_m < M
            b_h = _product(z, hidden, o_z, m_b, (s * M + o_m) * D, m_m, D, ROWS, BM, BD, F32)
            p_given = given + (s * C + o_c)[:, None] * M + o_m[None, :]
            b_given = tl.load(p_given, mask=m_c[:, None] & m_m[None, :], other=0.0).to(tl.float32)  # [BC, BM]
            b_h = tl.dot(b_p, b_given, b_h, input_precision="ieee")
            b_h += tl.load(units + s * 2 * M + o_m, mask=m_m, other=0.0)[None, :]
            b_h = 0.5 * b_h * (1.0 + tl.erf(b_h * 0.7071067811865476))  # [ROWS, BM]
            b_out = tl.load(units + (s * 2 + 1) * M + o_m, mask=m_m, other=0.0)
            b_v += tl.sum(b_h * b_out[None, :], 1)
        b_mix = tl.load(scalars + s * 2 + 1)
        b_posterior += b_mix * b_p
        b_valence += b_mix * b_v
    if SCALED:
        b_log = tl.where(m_c[None, :], tl.log(b_posterior) / temperature, -float("inf"))
        b_raised = tl.exp(b_log - tl.max(b_log, 1)[:, None])
        b_posterior = b_raised / tl.sum(b_raised, 1)[:, None]
    # Written out, not min and max, which lose a NaN.
    b_valence = tl.where(b_valence > limit, limit, tl.where(b_valence < -limit, -limit, b_valence))
    p_posterior = posterior + o_b[:, None] * C + o_c[None, :]
    tl.store(p_posterior, b_posterior.to(posterior.dtype.element_ty), mask=m_b[:, None] & m_c[None, :])
    tl.store(valence + o_b, b_valence.to(valence.dtype.element_ty), mask=m_b)


INTERPRETED = not isinstance(decode_kernel, triton.runtime.JITFunction)


def prepare(weights: DecodeWeights, mix: Tensor, temperature: float = 1.0, limit: float = math.inf) -> Decode:
    """Pack the weights. They are copied: later changes to them have no effect.

    The decoding takes z in the dtype and on the device of the weights and gives detached tensors of that dtype. Sums
    are fp32, and fp32 operands are multiplied as such (no TF32). A sample's result does not depend on the others.

    Args:
        weights: all fp32, all bf16 or all fp16, on one GPU (on the CPU under TRITON_INTERPRET=1).
        mix, temperature, limit: see `merfast.ops.decode.decode`; mix may have another floating-point type.

    Raises:
        UnavailableError: the weights are not on a CUDA GPU.
        ValueError: weights, mix, temperature, limit or, on a call, z that the reference refuses or that are of another
            dtype or device.
    """
    weights = DecodeWeights(*(w.detach() for w in weights))
    first = weights.emotion_weight
    structures, classes, dim = first.shape if first.ndim == 3 else (0, 0, 0)
    check_decode(first.new_empty(structures, 0, dim), weights)
    check_average(mix, structures, temperature, limit)
    if first.dtype not in WARPS:
        raise ValueError(f"decode emotion_weight: got {first.dtype}, expected float32, bfloat16 or float16")
    if first.device.type != "cuda" and not INTERPRETED:
        raise UnavailableError(f"Triton kernels: got weights on {first.device}, expected a CUDA GPU")
    for name, value in zip(DecodeWeights._fields, weights, strict=True):
        _check(name, value, first)
    units = weights.hidden_weight.shape[1]
    if min(structures, classes, dim, units) < 1:
        raise ValueError("decode weights: got an empty dimension, expected at least 1 everywhere")
    packed = (
        first.clone(memory_format=torch.contiguous_format),
        weights.hidden_weight[:, :, :dim].clone(memory_format=torch.contiguous_format),
        weights.hidden_weight[:, :, dim:].mT.clone(memory_format=torch.contiguous_format),
        torch.stack([weights.hidden_bias, weights.valence_weight], 1).float(),
        torch.stack([weights.emotion_bias, weights.class_valence], 1).float(),
        torch.stack([weights.valence_bias.float(), mix.detach().to(first.device, torch.float32)], 1),
    )
    blocks = {
        "ROWS": ROWS,
        "BD": min(DEPTH, max(16, triton.next_power_of_2(dim))),
        "BM": min(HIDDEN, max(16, triton.next_power_of_2(units))),
        "BC": max(16, triton.next_power_of_2(classes)),
    }

    def decode(z: Tensor) -> tuple[Tensor, Tensor]:
        check_decode(z, weights)
        _check("z", z, first)
        batch = z.shape[1]
        posterior, valence = z.new_empty(batch, classes), z.new_empty(batch)
        if batch:
            decode_kernel[(triton.cdiv(batch, ROWS),)](
                z.detach().contiguous(),
                *packed,
                posterior,
                valence,
                batch,
                dim,
                units,
                classes,
                structures,
                float(temperature),
                float(limit),
                **blocks,
                SCALED=temperature != 1.0,
                F32=INTERPRETED or z.dtype == torch.float32,
                num_warps=WARPS[z.dtype],
            )
        return posterior.detach(), valence.detach()

    return decode


def _check(name: str, value: Tensor, like: Tensor) -> None:
    if value.dtype != like.dtype or value.device != like.device:
        raise ValueError(f"decode {name}: got {value.dtype} on {value.device}, expected {like.dtype} on {like.device}")
