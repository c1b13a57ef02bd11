"""AFG on a GPU in Triton: fp32, bf16 or fp16 rows, fp32 accumulation, forward only. The contract is `merfast.ops.afg`.

One launch gathers all sets of all gatherings in a group. A program takes every k-th chunk of a set's rows: it projects
the chunk on the tensor cores, keeps the running maximum and sum of each head's softmax, and adds up the weighted rows,
which are still in L2 from the projection: x comes from memory once. Where a set is shared by several programs, the one
that finishes last merges their sums, in a fixed order. Where attention is asked for, energies are stored on the way,
and become attention when the set's sums are known; where it is not, the kernel is one without that.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from merfast.errors import UnavailableError
from merfast.ops.afg import AFGWeights, Gather, GatherGroup, Gathering, check_afg

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = bool(getattr(triton.knobs.runtime, "interpret", False))

ROWS = {torch.float32: 32, torch.bfloat16: 64, torch.float16: 64}
"""Rows of a chunk. 64 is the least that a wgmma instruction takes; fp32 multiplies without tensor cores."""

DEPTH = 64
"""Columns of x that are multiplied, and added up, at a time."""

PROGRAMS_A_PROCESSOR = 2


@triton.jit
def _tanh(x):
    # 1 - 2 / (exp(2|x|) + 1): no overflow, and NaN stays NaN. The absolute error is that of fp32 around 1.
    t = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(x < 0, -t, t)


@triton.jit
def gather_kernel(
    xs,  # P pointers to [N_p, D]
    offsets,  # P pointers to [B + 1] int64
    guides,  # P pointers to [B, G]; any pointer for a gathering without
    weight,  # [P, A, D]
    guide_weight,  # [P, A, G]; any pointer if there is no guide at all
    bias,  # [P, A] fp32
    score,  # [P, H, A] fp32
    absent,  # [P, D] fp32
    out,  # [P, B, D]
    partial,  # [P, B, splits, D] fp32
    state,  # [P, B, splits, H, 2] fp32: maximum and sum
    done,  # [P, B] int32, zeros before and after
    attentions,  # P pointers to [N_p, H] fp32, zeros before, or None
    sets,
    splits,
    P: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    GUIDED: tl.constexpr,  # bit p: gathering p has a guide
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_S: tl.constexpr,  # columns of a head added up at a time
    SPLIT: tl.constexpr,  # whether splits > 1
    UPCAST: tl.constexpr,  # multiply in fp32, for the interpreter
):
    b = tl.program_id(0)
    split = tl.program_id(1)
    p = tl.program_id(2)
    x, offset, guide = xs[0], offsets[0], guides[0]
    for q in tl.static_range(1, P):
        if p == q:
            x, offset, guide = xs[q], offsets[q], guides[q]
    if attentions is not None:
        attention = attentions[0]
        for q in tl.static_range(1, P):
            if p == q:
                attention = attentions[q]
    DH: tl.constexpr = D // H
    begin = tl.load(offset + b)
    end = tl.load(offset + b + 1)
    row = p * sets + b
    place = row.to(tl.int64) * splits + split
    columns_a = tl.arange(0, BLOCK_A)
    real_a = columns_a < A
    columns_s = tl.arange(0, BLOCK_S)
    BLOCK_H: tl.constexpr = triton.next_power_of_2(H)
    SLICES: tl.constexpr = (DH + BLOCK_S - 1) // BLOCK_S  # of a head
    heads = tl.arange(0, BLOCK_H)
    rows_t = tl.arange(0, BLOCK_T)

    if begin == end:
        if split == 0:
            for d in tl.static_range(0, D, BLOCK_D):
                columns = d + tl.arange(0, BLOCK_D)
                value = tl.load(absent + p * D + columns, mask=columns < D, other=0.0)
                tl.store(out + row.to(tl.int64) * D + columns, value.to(out.dtype.element_ty), mask=columns < D)
        return

    start = tl.load(bias + p * A + columns_a, mask=real_a, other=0.0)
    if (GUIDED >> p) & 1:
        for g in range(0, G, 16):
            columns = g + tl.arange(0, 16)
            vector = tl.load(guide + b.to(tl.int64) * G + columns, mask=columns < G, other=0.0).to(tl.float32)
            at = guide_weight + (p * A + columns_a[:, None]) * G + columns[None, :]
            matrix = tl.load(at, mask=real_a[:, None] & (columns < G)[None, :], other=0.0).to(tl.float32)
            start += tl.sum(matrix * vector[None, :], 1)

    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    for t in range(begin + split * BLOCK_T, end, splits * BLOCK_T):
        started = t >= begin + splits * BLOCK_T
        at_row = t + rows_t
        real_t = at_row < end
        hidden = tl.zeros([BLOCK_T, BLOCK_A], tl.float32)
        for d in range(0, D, BLOCK_D):
            columns = d + tl.arange(0, BLOCK_D)
            if D % BLOCK_D == 0:
                tile = tl.load(x + at_row[:, None] * D + columns[None, :], mask=real_t[:, None], other=0.0)
                at = weight + (p * A + columns_a[None, :]) * D + columns[:, None]
                w = tl.load(at, mask=real_a[None, :], other=0.0)
            else:
                real_d = columns < D
                mask = real_t[:, None] & real_d[None, :]
                tile = tl.load(x + at_row[:, None] * D + columns[None, :], mask=mask, other=0.0)
                at = weight + (p * A + columns_a[None, :]) * D + columns[:, None]
                w = tl.load(at, mask=real_d[:, None] & real_a[None, :], other=0.0)
            if UPCAST:
                tile = tile.to(tl.float32)
                w = w.to(tl.float32)
            hidden = tl.dot(tile, w, hidden, input_precision="ieee")
        # Columns beyond A are cleared: an infinite x makes their 0 * x a NaN.
        active = tl.where(real_a[None, :], _tanh(hidden + start[None, :]), 0.0)
        energy = tl.full([BLOCK_T, BLOCK_H], float("-inf"), tl.float32)
        for h in tl.static_range(H):
            u = tl.load(score + (p * H + h) * A + columns_a, mask=real_a, other=0.0)
            energy = tl.where(real_t[:, None] & (heads == h)[None, :], tl.sum(active * u[None, :], 1)[:, None], energy)
            if attentions is not None:  # head by head: stored all at once they spill elsewhere
                tl.store(attention + at_row * H + h, tl.sum(active * u[None, :], 1), mask=real_t)
        # A NaN energy need not reach the maximum: its weight is NaN, and so are the sums from there on.
        after = tl.maximum(top, tl.max(energy, 0))
        shares = tl.exp(energy - after[None, :])
        scales = tl.exp(top - after)
        top = after
        total = total * scales + tl.sum(shares, 0)
        for step in range(H * SLICES):
            head = step // SLICES
            s = step % SLICES * BLOCK_S + columns_s
            share = tl.sum(tl.where((heads == head)[None, :], shares, 0.0), 1)
            scale = tl.sum(tl.where(heads == head, scales, 0.0), 0)
            columns = head * DH + s
            mask = real_t[:, None] & (s < DH)[None, :]
            tile = tl.load(x + at_row[:, None] * D + columns[None, :], mask=mask, other=0.0)
            gathered = tl.sum(share[:, None] * tile.to(tl.float32), 0)
            at = partial + place * D + columns
            gathered += tl.load(at, mask=(s < DH) & started, other=0.0) * scale
            tl.store(at, gathered, mask=s < DH)

    real_h = heads < H
    tl.store(state + (place * H + heads) * 2, top, mask=real_h)
    tl.store(state + (place * H + heads) * 2 + 1, total, mask=real_h)
    last = True
    if SPLIT:
        tl.debug_barrier()
        last = tl.atomic_add(done + row, 1, sem="acq_rel") == splits - 1
        tl.debug_barrier()
    else:
        tl.debug_barrier()
    if last:
        base = row.to(tl.int64) * splits
        for h in tl.static_range(H):
            highest = tl.load(state + (base * H + h) * 2)
            for k in range(1, splits):
                highest = tl.maximum(highest, tl.load(state + ((base + k) * H + h) * 2))
            for s in range(0, DH, BLOCK_S):
                inside = s + columns_s < DH
                columns = h * DH + s + columns_s
                z = tl.zeros([BLOCK_S], tl.float32)
                weights = 0.0
                for k in range(splits):
                    peak = tl.load(state + ((base + k) * H + h) * 2)
                    amount = tl.load(state + ((base + k) * H + h) * 2 + 1)
                    scale = tl.exp(peak - highest)
                    stored = begin + k * BLOCK_T < end  # a program without a chunk of this set has no sums
                    part = tl.load(partial + (base + k) * D + columns, mask=inside & stored, other=0.0)
                    z += part * scale
                    weights += amount * scale
                value = (z / weights).to(out.dtype.element_ty)
                tl.store(out + row.to(tl.int64) * D + columns, value, mask=inside)
        if attentions is not None:
            peaks = tl.full([BLOCK_H], float("-inf"), tl.float32)
            for k in range(splits):
                peaks = tl.maximum(peaks, tl.load(state + ((base + k) * H + heads) * 2, mask=real_h, other=0.0))
            amounts = tl.zeros([BLOCK_H], tl.float32)
            for k in range(splits):
                of_split = state + ((base + k) * H + heads) * 2
                scale_h = tl.exp(tl.load(of_split, mask=real_h, other=0.0) - peaks)
                amounts += tl.load(of_split + 1, mask=real_h, other=1.0) * scale_h
            for t_again in range(begin, end, BLOCK_T):
                kept_row = t_again + rows_t
                stored_at = attention + kept_row[:, None] * H + heads[None, :]
                is_real = (kept_row < end)[:, None] & real_h[None, :]
                weight_h = tl.exp(tl.load(stored_at, mask=is_real, other=0.0) - peaks[None, :]) / amounts[None, :]
                tl.store(stored_at, weight_h, mask=is_real)
        if SPLIT:
            tl.store(done + row, 0)


def prepare_group(weights: Sequence[AFGWeights]) -> GatherGroup:
    """Stack the weights of gatherings that run side by side: one launch serves all of their sets.

    The gatherings take tensors on the GPU of the weights (on the CPU under Triton's interpreter) in the weights' dtype,
    and give detached ones. They may be called from many threads. The weights are copied: later changes to them have no
    effect. Sums are in fp32; a result depends on the other sets only through the number of programs that share a set,
    which changes the order of the sums.

    Args:
        weights: of each gathering; one device, dtype (fp32, bf16 or fp16) and shape, guided ones beside unguided.

    Raises:
        UnavailableError: the weights are not on a GPU, and Triton does not interpret.
        ValueError: weights or, on a call, arguments that `check_afg` refuses, or that differ within the group.
    """
    if not weights:
        raise ValueError("afg weights: got none, expected those of at least one gathering")
    first = weights[0]
    device, dtype = first.weight.device, first.weight.dtype
    if dtype not in DTYPES:
        raise ValueError(f"afg weight: got {dtype}, expected {', '.join(map(str, DTYPES))}")
    if device.type != "cuda" and not INTERPRETED:
        raise UnavailableError(f"Triton kernels: got weights on {device}, expected a CUDA GPU")
    guide_dims = {w.guide_weight.shape[-1] for w in weights if w.guide_weight is not None}
    kinds = {(w.weight.shape, w.score.shape, w.weight.dtype, w.weight.device) for w in weights}
    if len(kinds) > 1 or len(guide_dims) > 1:
        raise ValueError(f"afg weights: got gatherings of {len(kinds)} kinds, expected one shape, dtype and device")
    width, dim = first.weight.shape
    guide_dim = guide_dims.pop() if guide_dims else 0
    no_sets = torch.zeros(1, dtype=torch.int64)
    for w in weights:
        check_afg(torch.empty(0, dim), no_sets, w, None if w.guide_weight is None else torch.empty(0, guide_dim))
    with torch.no_grad():
        empty = torch.zeros(width, guide_dim, device=device, dtype=dtype)
        stacked = [torch.stack([w.weight for w in weights]).contiguous()]
        stacked.append(torch.stack([empty if w.guide_weight is None else w.guide_weight.to(dtype) for w in weights]))
        stacked += [torch.stack([getattr(w, name) for w in weights]).float() for name in ("bias", "score", "absent")]
    counters = _Counters(device)
    options = launch_options(dim, width, first.score.shape[0], dtype)
    guided = sum((w.guide_weight is not None) << p for p, w in enumerate(weights))

    @torch.inference_mode()
    def gather(calls: Sequence[Gathering]) -> list[Tensor]:
        if len(calls) != len(weights):
            raise ValueError(f"afg: got {len(calls)} gatherings, expected {len(weights)}")
        sets = len(calls[0].offsets) - 1
        for call, w in zip(calls, weights, strict=True):
            check_afg(call.x, call.offsets, w, call.guide, call.attention)
            for name, value in (("x", call.x), ("guide", call.guide)):
                if value is not None and (value.dtype != dtype or value.device != device):
                    raise ValueError(f"afg {name}: got {value.dtype} on {value.device}, expected {dtype} on {device}")
            if call.offsets.device != device or len(call.offsets) != sets + 1:
                got = f"{len(call.offsets) - 1} sets on {call.offsets.device}"
                raise ValueError(f"afg offsets: got {got}, expected {sets} sets on {device}")
        out = torch.empty(len(calls), sets, dim, dtype=dtype, device=device)
        attentions = _cleared(calls, first.score.shape[0])
        if not sets:
            return list(out)
        longest = max(len(call.x) for call in calls)
        splits = split_count(longest, sets * len(calls), sets, options["BLOCK_T"], _processors(device))
        sums = torch.empty(len(calls), sets, splits, dim, dtype=torch.float32, device=device)
        state = torch.empty(len(calls), sets, splits, first.score.shape[0], 2, dtype=torch.float32, device=device)
        xs = tuple(call.x.contiguous() for call in calls)
        guides = tuple(x if c.guide is None else c.guide.contiguous() for x, c in zip(xs, calls, strict=True))
        gather_kernel[(sets, splits, len(calls))](
            xs,
            tuple(call.offsets.contiguous() for call in calls),
            guides,
            *stacked,
            out,
            sums,
            state,
            counters.zeros(len(calls) * sets),
            attentions,
            sets,
            splits,
            P=len(calls),
            D=dim,
            A=width,
            H=first.score.shape[0],
            G=guide_dim,
            GUIDED=guided,
            SPLIT=splits > 1,
            UPCAST=INTERPRETED,
            **options,
        )
        return list(out)

    return gather


def prepare(weights: AFGWeights) -> Gather:
    """One gathering alone; see `prepare_group`."""
    group = prepare_group([weights])

    def gather(x: Tensor, offsets: Tensor, guide: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        return group([Gathering(x, offsets, guide, attention)])[0]

    return gather


def _cleared(calls: Sequence[Gathering], heads: int) -> tuple[Tensor, ...] | None:
    """What the kernel writes attention to, all zeros, with scratch for gatherings that ask for none; None if all do."""
    if all(call.attention is None for call in calls):
        return None
    outputs = [
        call.x.new_empty(len(call.x), heads, dtype=torch.float32) if call.attention is None else call.attention
        for call in calls
    ]
    return tuple(each.zero_() for each in outputs)


def launch_options(dim: int, width: int, heads: int, dtype: torch.dtype) -> dict[str, Any]:
    """Block sizes and warps, by formula."""
    wide = max(16, triton.next_power_of_2(width))
    return {
        "BLOCK_T": ROWS[dtype],
        "BLOCK_D": max(16, min(DEPTH, triton.next_power_of_2(dim))),
        "BLOCK_A": wide,
        # Slices of 64 spill elsewhere.
        "BLOCK_S": min(
            64 if wide <= 128 and dim % DEPTH == 0 and dtype != torch.float32 else 32,
            triton.next_power_of_2(dim // heads),
        ),
        "num_warps": 8 if wide >= 128 else 4,
        "num_stages": 3,
    }


def split_count(rows: int, programs: int, sets: int, block: int, processors: int) -> int:
    """Programs for each set: enough to fill the GPU's processors, at most one for each chunk of an average set."""
    chunks = max(1, -(-rows // (sets * block)))
    wanted = max(1, PROGRAMS_A_PROCESSOR * processors // programs)
    each = -(-chunks // min(chunks, wanted))  # chunks of a program, spread evenly
    return -(-chunks // each)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


class _Counters:
    """Zeros that kernels count in and leave as zeros; each stream has its own, on which calls follow one another.

    None is given back: a captured graph goes on counting where it was captured. Each new one is twice what was asked.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._kept: dict[int, list[Tensor]] = {}

    def zeros(self, count: int) -> Tensor:
        """`[count]` int32 or more."""
        if self._device.type != "cuda":
            return torch.zeros(count, dtype=torch.int32)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        with self._lock:
            kept = self._kept.setdefault(stream, [])
            if not kept or len(kept[-1]) < count:
                kept.append(torch.zeros(2 * count, dtype=torch.int32, device=self._device))
            return kept[-1]
