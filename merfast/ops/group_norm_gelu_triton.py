"""Masked GroupNorm and GELU in Triton, forward only. The contract is `merfast.ops.group_norm_gelu`.

A program has one group of one sample. A row of up to 4096 frames, alone in its group, stays in registers. Longer ones
are read twice, for the statistics and for the result; the second time from L2, as far as the rows at work fit there:
by their registers eight on a processor up to 16384 frames (5 s behind HuBERT's first convolution), two beyond. Then
memory sees the valid frames once and the result once, B C (valid + T) numbers in all: the bytes of a masked copy.

Statistics are fp32. A row's deviations are taken from the mean of its first block, n of its N frames; that mean lies
within sqrt(N / n) standard deviations of the row's, which bounds what cancels. Rows of a group are merged exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from merfast.errors import UnavailableError
from merfast.ops.group_norm_gelu import GroupNormGelu, check_group_norm_gelu

LONGEST_ROW = 4096  # frames in registers, 32 for each thread
BLOCK, LONG_BLOCK, LONG = 2048, 4096, 16384  # frames at a time, 16 for each thread; the larger for rows above LONG
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _result(b_x, mean, scale, shift):
    b_y = (b_x - mean) * scale + shift
    return 0.5 * b_y * (1.0 + tl.erf(b_y * 0.7071067811865476))


@triton.jit
def group_norm_gelu_kernel(
    x,  # [B, C, T]
    lengths,  # [B] int64
    weight,  # [C] fp32
    bias,  # [C] fp32
    out,  # [B, C, T]
    T,
    G,
    K,  # channels of a group
    eps,
    BT: tl.constexpr,
    WHOLE: tl.constexpr,  # K == 1 and T <= BT
):
    i_row = tl.program_id(0)
    i_g = i_row % G
    length = tl.load(lengths + i_row // G).to(tl.int32)
    p_x = x + i_row.to(tl.int64) * K * T
    p_out = out + i_row.to(tl.int64) * K * T
    o_t = tl.arange(0, BT)
    if WHOLE:
        m_t = o_t < length
        b_x = tl.load(p_x + o_t, mask=m_t, other=0.0).to(tl.float32)  # [BT]
        count = tl.maximum(length, 1).to(tl.float32)
        mean = tl.sum(b_x, 0) / count
        b_d = tl.where(m_t, b_x - mean, 0.0)
        scale = tl.load(weight + i_g) / tl.sqrt(tl.sum(b_d * b_d, 0) / count + eps)
        b_y = tl.where(m_t, _result(b_x, mean, scale, tl.load(bias + i_g)), 0.0)
        tl.store(p_out + o_t, b_y.to(out.dtype.element_ty), mask=o_t < T)
    else:
        count, mean, squares = 0.0, 0.0, 0.0
        size = tl.maximum(length, 1).to(tl.float32)
        for c in range(K):
            p_c = p_x + c * T
            b_x = tl.load(p_c + o_t, mask=o_t < length, other=0.0).to(tl.float32)
            near = tl.sum(b_x, 0) / tl.minimum(size, BT)
            b_sum = tl.zeros((BT,), tl.float32)
            b_squares = tl.zeros((BT,), tl.float32)
            for t in range(0, length, BT):
                m_t = t + o_t < length
                b_x = tl.load(p_c + t + o_t, mask=m_t, other=0.0).to(tl.float32)
                b_d = tl.where(m_t, b_x - near, 0.0)
                b_sum += b_d
                b_squares += b_d * b_d
            moved = tl.sum(b_sum, 0) / size
            away = near + moved - mean
            total = count + size
            squares += tl.sum(b_squares, 0) - moved * moved * size + away * away * (count * size / total)
            mean += away * (size / total)
            count = total
        inverse = 1.0 / tl.sqrt(tl.maximum(squares, 0.0) / count + eps)
        for c in range(K):
            scale = tl.load(weight + i_g * K + c) * inverse
            shift = tl.load(bias + i_g * K + c)
            for t in range(0, T, BT):
                m_t = t + o_t < length
                at = c * T + t + o_t
                b_x = tl.load(p_x + at, mask=m_t, other=0.0).to(tl.float32)
                b_y = tl.where(m_t, _result(b_x, mean, scale, shift), 0.0)
                tl.store(p_out + at, b_y.to(out.dtype.element_ty), mask=t + o_t < T)


INTERPRETED = not isinstance(group_norm_gelu_kernel, triton.runtime.JITFunction)


def launch_options(frames: int, channels: int) -> dict[str, int]:
    """Block size and warps for rows of `frames` in groups of `channels`."""
    whole = channels == 1 and frames <= LONGEST_ROW
    most = LONGEST_ROW if whole else BLOCK if frames <= LONG else LONG_BLOCK
    block = min(most, max(128, triton.next_power_of_2(frames)))
    return {"BT": block, "WHOLE": whole, "num_warps": max(1, block // (1024 if whole else 512))}


def prepare(weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5) -> GroupNormGelu:
    """Bind the weights, which are copied: later changes to them have no effect.

    The op takes x in fp32, bf16 or fp16 on the device of the weights and gives a detached contiguous tensor of that
    dtype; x that is not contiguous is copied first. A sample's result does not depend on its padding or on the others,
    except that T decides which of two kernels runs.

    Args:
        weight, bias, groups, eps: see `merfast.ops.group_norm_gelu.group_norm_gelu`; on one GPU (on the CPU under
            TRITON_INTERPRET=1).

    Raises:
        UnavailableError: the weights are not on a CUDA GPU.
        ValueError: weights, options or, on a call, arguments that the reference refuses or that are of another dtype or
            device.
    """
    device = weight.device
    if device.type != "cuda" and not INTERPRETED:
        raise UnavailableError(f"Triton kernels: got weights on {device}, expected a CUDA GPU")
    weight, bias = (w.detach().to(torch.float32, copy=True) for w in (weight, bias))
    check_group_norm_gelu(torch.empty(0, weight.numel(), 0), torch.zeros(0).long(), weight, bias, groups, eps)
    if bias.device != device:
        raise ValueError(f"group_norm_gelu bias: got {bias.device}, expected {device}")

    def group_norm_gelu(x: Tensor, lengths: Tensor) -> Tensor:
        check_group_norm_gelu(x, lengths, weight, bias, groups, eps)
        if x.dtype not in DTYPES or x.device != device:
            expected = f"float32, bfloat16 or float16 on {device}"
            raise ValueError(f"group_norm_gelu x: got {x.dtype} on {x.device}, expected {expected}")
        if lengths.device != device:
            raise ValueError(f"group_norm_gelu lengths: got {lengths.device}, expected {device}")
        x = x.detach().contiguous()
        out = torch.empty_like(x)
        frames, each = x.shape[2], x.shape[1] // groups
        if x.numel():
            group_norm_gelu_kernel[(len(x) * groups,)](
                x,
                lengths.contiguous(),
                weight,
                bias,
                out,
                frames,
                groups,
                each,
                float(eps),
                **launch_options(frames, each),
            )
        return out

    return group_norm_gelu
