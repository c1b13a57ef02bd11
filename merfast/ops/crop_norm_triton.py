"""Crops on the GPU in Triton: one launch for all boxes of all pictures. The contract is `merfast.ops.crop_norm`.

A program makes a block of one crop's pixels. It sums over the rows and columns under the filter of its widest pixel,
straight from the planes: what neighbouring pixels share comes out of the caches, and nothing is stored in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from merfast.ops.crop_norm import LUMA, Crop, CropSpec, Planes, check_crop_norm, check_spec

BLOCK = 256
"""Pixels of a program: two for each thread of four warps."""


@triton.jit
def _weight(o_source, b_centre, reach):
    """Triangle filter of samples `o_source` around centres."""
    return tl.maximum(1.0 - tl.abs(o_source.to(tl.float32) + 0.5 - b_centre) / reach, 0.0)


@triton.jit
def _axis(o_pixel, first, step):
    """(centre relative to a whole `base`, base, lowest sample, reach): whole numbers apart, fp32 keeps the fraction."""
    base = tl.floor(first)
    b_centre = (first - base) + (o_pixel.to(tl.float32) + 0.5) * step
    reach = tl.maximum(step, 1.0)
    b_low = tl.ceil(b_centre - reach - 0.5).to(tl.int32)
    return b_centre, base.to(tl.int32), b_low, reach


@triton.jit
def _sample(
    p_a, p_b, o_x, o_y, left, top, step_x, step_y, height, width, stride_row, stride_column, PAIR: tl.constexpr
):
    """Resampled values [BLOCK] of a plane, or of two that lie alike."""
    b_cx, base_x, b_low_x, reach_x = _axis(o_x, left, step_x)
    b_cy, base_y, b_low_y, reach_y = _axis(o_y, top, step_y)
    b_a = tl.zeros_like(b_cx)
    b_b = tl.zeros_like(b_cx)
    b_total = tl.zeros_like(b_cx)
    # Centres of samples that lie within `reach` of a filter's: floor(2 reach) + 1 at most.
    for j in range((2 * reach_y).to(tl.int32) + 1):
        b_wy = _weight(b_low_y + j, b_cy, reach_y)
        o_row = tl.minimum(tl.maximum(base_y + b_low_y + j, 0), height - 1).to(tl.int64) * stride_row
        for i in range((2 * reach_x).to(tl.int32) + 1):
            b_w = b_wy * _weight(b_low_x + i, b_cx, reach_x)
            o_column = tl.minimum(tl.maximum(base_x + b_low_x + i, 0), width - 1).to(tl.int64) * stride_column
            b_a += b_w * tl.load(p_a + o_row + o_column).to(tl.float32)
            if PAIR:
                b_b += b_w * tl.load(p_b + o_row + o_column).to(tl.float32)
            b_total += b_w
    return b_a / b_total, b_b / b_total


@triton.jit(
    # Pictures come in many sizes, and nothing here is the faster for knowing what they are multiples of.
    do_not_specialize=[
        *("height", "width", "stride_y_frame", "stride_y_row", "stride_c_frame", "stride_c_row", "stride_c_column"),
        *("rows", "columns"),
    ]
)
def crop_norm_kernel(
    p_y,
    p_u,
    p_v,
    p_boxes,
    p_frame,
    p_colour,
    p_out,
    height,
    width,
    stride_y_frame,
    stride_y_row,
    stride_c_frame,
    stride_c_row,
    stride_c_column,
    rows,
    columns,
    BYTES: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A crop has `rows` x `columns` pixels, which are no constants: pictures come in many sizes.

    p_colour [3, 6]: for R, G, B the factors of y, u, v, the offset, and gain and bias after clamping.
    """
    i_n = tl.program_id(0).to(tl.int64)
    o_pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_pixel = o_pixel < rows * columns
    o_x = o_pixel % columns
    o_y = o_pixel // columns
    left = tl.load(p_boxes + i_n * 4)
    top = tl.load(p_boxes + i_n * 4 + 1)
    step_x = (tl.load(p_boxes + i_n * 4 + 2) - left) / columns
    step_y = (tl.load(p_boxes + i_n * 4 + 3) - top) / rows
    i_frame = tl.load(p_frame + i_n) if FRAMES else i_n * 0
    p_y += i_frame * stride_y_frame
    p_u += i_frame * stride_c_frame
    p_v += i_frame * stride_c_frame
    b_y, _ = _sample(p_y, p_y, o_x, o_y, left, top, step_x, step_y, height, width, stride_y_row, 1, PAIR=False)
    # Chroma is sited on every second column, between two rows.
    b_u, b_v = _sample(
        p_u,
        p_v,
        o_x,
        o_y,
        left * 0.5 + 0.25,
        top * 0.5,
        step_x * 0.5,
        step_y * 0.5,
        (height + 1) // 2,
        (width + 1) // 2,
        stride_c_row,
        stride_c_column,
        PAIR=True,
    )
    for c in tl.static_range(3):
        p_c = p_colour + c * 6
        b_value = tl.load(p_c) * b_y + tl.load(p_c + 1) * b_u + tl.load(p_c + 2) * b_v + tl.load(p_c + 3)
        b_value = tl.minimum(tl.maximum(b_value, 0.0), 255.0) * tl.load(p_c + 4) + tl.load(p_c + 5)
        if BYTES:
            o_out = i_n * (3 * rows * columns) + o_pixel * 3 + c
        else:
            o_out = i_n * (3 * rows * columns) + c * (rows * columns) + o_pixel
        tl.store(p_out + o_out, b_value.to(p_out.dtype.element_ty), mask=m_pixel)


def prepare(spec: CropSpec) -> Crop:
    """The kernel with its spec bound. Boxes are taken in fp32; arithmetic is fp32, cast once to the spec's type.

    All tensors of a call are on one GPU. The values of boxes and frame are not checked there: boxes must not be empty
    or not finite, and frame numbers must be in range.

    Raises:
        ValueError: the spec or, on a call, arguments that `check_crop_norm` refuses or that are on different devices.
    """
    check_spec(spec)
    (rows, columns), whole = spec.sides, spec.dtype == torch.uint8
    shape = (rows, columns, 3) if whole else (3, rows, columns)
    colours: dict[tuple[str, bool, torch.device], Tensor] = {}

    def crop(planes: Planes, boxes: Tensor, frame: Tensor | None = None) -> Tensor:
        check_crop_norm(planes, boxes, frame)
        device = planes.y.device
        for name, value in (("u", planes.u), ("v", planes.v), ("boxes", boxes), ("frame", frame)):
            if value is not None and value.device != device:
                raise ValueError(f"crop_norm {name}: got {value.device}, expected {device}, where y is")
        key = (planes.matrix, planes.full_range, device)
        if key not in colours:
            colours[key] = _colour(planes, spec).to(device)
        out = torch.empty(len(boxes), *shape, dtype=spec.dtype, device=device)
        if not len(boxes):
            return out
        crop_norm_kernel[(len(boxes), triton.cdiv(rows * columns, BLOCK))](
            planes.y,
            planes.u,
            planes.v,
            boxes.to(torch.float32).contiguous(),
            boxes if frame is None else frame.contiguous(),
            colours[key],
            out,
            planes.y.shape[1],
            planes.y.shape[2],
            planes.y.stride(0),
            planes.y.stride(1),
            planes.u.stride(0),
            planes.u.stride(1),
            planes.u.stride(2),
            rows,
            columns,
            BYTES=whole,
            FRAMES=frame is not None,
            BLOCK=BLOCK,
            num_warps=4,
        )
        return out

    return crop


def _colour(planes: Planes, spec: CropSpec) -> Tensor:
    """`[3, 6]` fp32, see `crop_norm_kernel`."""
    k_r, k_b = LUMA[planes.matrix]
    luma, chroma, black = (1.0, 1.0, 0.0) if planes.full_range else (255 / 219, 255 / 224, 16.0)
    from_u, from_v, k_g = 2 * (1 - k_b) * chroma, 2 * (1 - k_r) * chroma, 1 - k_r - k_b
    rows = []
    for c, (u, v) in enumerate(((0.0, from_v), (-k_b * from_u / k_g, -k_r * from_v / k_g), (from_u, 0.0))):
        # A byte is the nearest integer once the fraction is cut off.
        gain, bias = (1.0, 0.5) if spec.dtype == torch.uint8 else (1 / (255 * spec.std[c]), -spec.mean[c] / spec.std[c])
        rows.append([luma, u, v, -luma * black - 128 * (u + v), gain, bias])
    return torch.tensor(rows, dtype=torch.float32)
