"""Crops out of 8-bit 4:2:0 pictures, straight from the decoder's planes. Contract and eager reference.

**Where samples lie.** Coordinates count luma pixels from the picture's upper left corner: luma sample j covers
[j, j + 1), its centre is j + 1/2. Chroma is sited as MPEG-2 and H.264 have it by default ("left"): on every second
luma column, between two luma rows. A place (x, y) is (x / 2 + 1/4, y / 2) in the coordinates of a chroma plane. What
lies outside of a plane is its nearest sample.

**Resampling** is separable. An axis of a box [a, b), in the plane's coordinates, becomes S samples, a crop's height or
width, by a triangle filter that widens as the picture shrinks (bilinear with antialiasing; plain bilinear where the
picture grows):

    s = (b - a) / S       c_i = a + (i + 1/2) s       r = max(s, 1)
    w_ij = max(0, 1 - |j + 1/2 - c_i| / r)            v_i = sum_j w_ij x_j / sum_j w_ij

The filter sees the picture around the box, not the box alone: a crop does not depend on where others are cut.

**Colour** is converted on the result. With K_r, K_b of the matrix (BT.601: 0.299, 0.114; BT.709: 0.2126, 0.0722):

    limited range: Y' = 255 (Y - 16) / 219, P = 255 (C - 128) / 224         full range: Y' = Y, P = C - 128
    R = Y' + 2 (1 - K_r) P_r     B = Y' + 2 (1 - K_b) P_b     G = (Y' - K_r R - K_b B) / (1 - K_r - K_b)

and clamped to [0, 255]. The weights sum to 1, so resampling commutes with this affine map of a pixel's three values:
converting every source pixel first, with chroma interpolated to it, gives the same but for two things. Chroma is
filtered once here, not twice; and there, pixels outside of the RGB cube are clamped one by one, before the average.

**Output**: uint8, the nearest integer; or (rgb / 255 - mean) / std, with nothing rounded to integers in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""K_r and K_b: the weights of red and blue in luma (ITU-R BT.601-7, BT.709-6)."""

FARTHEST = 65_536
"""Pixels that a box may reach from the picture's corner, in each direction."""

DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)


class Planes(NamedTuple):
    """F pictures of H x W pixels, 8 bit, 4:2:0: planar (I420) or with interleaved chroma (NV12).

    Rows may be farther apart than they are long. Columns of y lie next to each other. u and v have the same strides;
    their columns are 1 byte apart, or 2, as the views `uv[..., 0]` and `uv[..., 1]` of NV12's second plane are.
    """

    y: Tensor  # [F, H, W] uint8
    u: Tensor  # [F, ceil(H / 2), ceil(W / 2)] uint8, Cb
    v: Tensor  # like u, Cr
    matrix: str = "bt601"  # or "bt709"
    full_range: bool = False  # True: 0 to 255; False: 16 to 235, chroma to 240


class CropSpec(NamedTuple):
    """What crops look like: uint8 RGB `[N, height, width, 3]`, or a float type for `[N, 3, height, width]`."""

    size: int | tuple[int, int]  # side of a square in pixels, or (height, width)
    dtype: torch.dtype = torch.uint8
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of R, G, B, for float types
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width)."""
        return sides_of(self.size)


Crop = Callable[[Planes, Tensor, "Tensor | None"], Tensor]
"""An implementation with its spec bound: (planes, boxes [N, 4], frame [N] or None) -> crops."""


def sides_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size, which may be the side of a square."""
    return (size, size) if isinstance(size, int) else size


def check_spec(spec: CropSpec) -> None:
    """Raise ValueError unless the size is positive, the type is one of `DTYPES`, and mean and std fit it."""
    if min(spec.sides) < 1:
        raise ValueError(f"crop_norm size: got {spec.size}, expected at least 1")
    if spec.dtype not in DTYPES:
        raise ValueError(f"crop_norm dtype: got {spec.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    plain = CropSpec(spec.size)
    if spec.dtype == torch.uint8 and (spec.mean, spec.std) != (plain.mean, plain.std):
        raise ValueError(f"crop_norm mean, std: got {spec.mean}, {spec.std} with uint8, expected a float dtype")
    finite = all(math.isfinite(v) for v in (*spec.mean, *spec.std))
    if len(spec.mean) != 3 or len(spec.std) != 3 or not finite or min(spec.std) <= 0:
        raise ValueError(
            f"crop_norm mean, std: got {spec.mean}, {spec.std}, expected three finite numbers, std above 0"
        )


def check_crop_norm(planes: Planes, boxes: Tensor, frame: Tensor | None) -> None:
    """Raise ValueError unless planes, boxes and frame numbers fit together.

    The values of boxes and frame are checked on the CPU only: reading them from a GPU would wait for it.
    """
    for name, plane in zip("yuv", planes[:3], strict=False):
        if plane.dtype != torch.uint8 or plane.ndim != 3:
            raise ValueError(
                f"crop_norm {name}: got {plane.dtype} with {plane.ndim} dimensions, expected torch.uint8 [F, H, W]"
            )
    count, height, width = planes.y.shape
    if min(count, height, width) < 1:
        raise ValueError(f"crop_norm y: got {[count, height, width]}, expected at least 1 everywhere")
    chroma = [count, (height + 1) // 2, (width + 1) // 2]
    for name, plane in (("u", planes.u), ("v", planes.v)):
        if list(plane.shape) != chroma:
            raise ValueError(f"crop_norm {name}: got {list(plane.shape)}, expected {chroma} for y of {height}x{width}")
    if planes.y.stride(2) != 1 and width > 1:
        raise ValueError(f"crop_norm y: got columns {planes.y.stride(2)} bytes apart, expected 1")
    if planes.u.stride() != planes.v.stride() or (planes.u.stride(2) not in (1, 2) and chroma[2] > 1):
        raise ValueError(
            f"crop_norm u, v: got strides {planes.u.stride()} and {planes.v.stride()}, expected the same twice, with "
            "columns 1 or 2 bytes apart"
        )
    if planes.matrix not in LUMA:
        raise ValueError(f"crop_norm matrix: got {planes.matrix!r}, expected one of {', '.join(LUMA)}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"crop_norm boxes: got {boxes.dtype} {list(boxes.shape)}, expected torch.float32 or float64 [N, 4]"
        )
    if frame is not None and (frame.dtype != torch.int64 or list(frame.shape) != [len(boxes)]):
        raise ValueError(f"crop_norm frame: got {frame.dtype} {list(frame.shape)}, expected torch.int64 {[len(boxes)]}")
    if boxes.device.type == "cpu":
        good = (boxes.abs() <= FARTHEST).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        if not bool(good.all()):
            i = int((~good).nonzero()[0])
            raise ValueError(
                f"crop_norm boxes: got {boxes[i].tolist()} in row {i}, expected left < right and top < bottom, within "
                f"{FARTHEST} pixels of the corner"
            )
    if frame is not None and frame.device.type == "cpu" and len(frame) and not 0 <= frame.min() <= frame.max() < count:
        raise ValueError(f"crop_norm frame: got {int(frame.min())} to {int(frame.max())}, expected 0 to {count - 1}")


def crop_norm(planes: Planes, boxes: Tensor, frame: Tensor | None = None, *, spec: CropSpec) -> Tensor:
    """Cut boxes out of pictures, scale them to one size, and convert them to RGB.

    Args:
        planes: the pictures.
        boxes: `[N, 4]` fp32 or fp64: left, top, right, bottom in luma pixels. They may be partly or wholly outside of
            the picture, need not be square, and reach `FARTHEST` pixels at most.
        frame: `[N]` int64, the picture that each box is cut out of; None means the first.
        spec: size, type and normalisation of the crops.

    Returns:
        `[N, height, width, 3]` uint8 RGB, or `[N, 3, height, width]` in the float type of the spec.

    Raises:
        ValueError: something in the arguments does not fit.
    """
    check_spec(spec)
    check_crop_norm(planes, boxes, frame)
    rgb = resample(planes, boxes, frame, spec.size, torch.float32)
    if spec.dtype == torch.uint8:
        return (rgb + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    mean, std = (rgb.new_tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    return ((rgb / 255 - mean) / std).to(spec.dtype)


def resample(
    planes: Planes, boxes: Tensor, frame: Tensor | None, size: int | tuple[int, int], compute: torch.dtype
) -> Tensor:
    """`[N, 3, height, width]` RGB in [0, 255], computed in fp32 or fp64; arguments as for `crop_norm`."""
    sides = sides_of(size)
    out = torch.zeros(len(boxes), 3, *sides, dtype=compute, device=planes.y.device)
    k_r, k_b = LUMA[planes.matrix]
    frames = [0] * len(boxes) if frame is None else frame.tolist()
    for n, (left, top, right, bottom) in enumerate(boxes.tolist()):
        y, u, v = (
            _scale(plane[frames[n]], box, sides, compute)
            for plane, box in zip(
                planes[:3],
                ((left, top, right, bottom), *[(left / 2 + 0.25, top / 2, right / 2 + 0.25, bottom / 2)] * 2),
                strict=False,
            )
        )
        luma = y if planes.full_range else (y - 16) * (255 / 219)
        gain = 1.0 if planes.full_range else 255 / 224
        red = luma + (v - 128) * (gain * 2 * (1 - k_r))
        blue = luma + (u - 128) * (gain * 2 * (1 - k_b))
        green = (luma - k_r * red - k_b * blue) / (1 - k_r - k_b)
        out[n] = torch.stack((red, green, blue)).clamp(0, 255)
    return out


def prepare(spec: CropSpec) -> Crop:
    """The reference as an implementation.

    Raises:
        ValueError: a spec that `check_spec` refuses.
    """
    check_spec(spec)
    return lambda planes, boxes, frame: crop_norm(planes, boxes, frame, spec=spec)


def _scale(
    plane: Tensor, box: tuple[float, float, float, float], sides: tuple[int, int], compute: torch.dtype
) -> Tensor:
    """`[height, width]` samples of a `[H, W]` plane, under a box in the plane's own coordinates."""
    left, top, right, bottom = box
    rows, down = _weights(top, bottom, sides[0], plane.shape[0])
    columns, across = _weights(left, right, sides[1], plane.shape[1])
    inside = plane[rows, columns].to(compute)
    return down.to(plane.device, compute) @ inside @ across.to(plane.device, compute).T


def _weights(first: float, last: float, size: int, extent: int) -> tuple[slice, Tensor]:
    """The samples that an axis of a box touches, and their weights `[size, touched]` in fp64."""
    step = (last - first) / size
    reach = max(step, 1.0)
    centre = first + (torch.arange(size, dtype=torch.float64) + 0.5) * step
    at = torch.arange(math.floor(float(centre[0]) - reach - 0.5), math.ceil(float(centre[-1]) + reach + 0.5) + 1)
    weight = (1 - (at + 0.5 - centre[:, None]).abs() / reach).clamp(min=0)
    used = weight.sum(0) > 0
    at, weight = at[used].clamp(0, extent - 1), weight[:, used]
    low, high = int(at[0]), int(at[-1])
    folded = weight.new_zeros(size, high - low + 1).index_add(1, at - low, weight)
    return slice(low, high + 1), folded / folded.sum(1, keepdim=True)
