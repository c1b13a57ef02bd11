"""Pictures for the tests of crops, and the formulas of the contract once more, in numpy and without tricks."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import torch
from torch import Tensor

from merfast.ops.crop_norm import Planes

LAYOUTS = ("planar", "nv12")


def make_planes(
    height: int,
    width: int,
    *,
    layout: str = "planar",
    frames: int = 1,
    spare: int = 0,
    matrix: str = "bt601",
    full_range: bool = False,
    seed: int = 0,
) -> Planes:
    """Noise; rows lie `spare` bytes farther apart than they are long."""
    rng = np.random.default_rng(seed)
    rows, columns = (height + 1) // 2, (width + 1) // 2

    def noise(high: int, wide: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, 256, (frames, high, wide + spare), dtype=np.uint8))

    y = noise(height, width)[..., :width]
    if layout == "nv12":
        uv = noise(rows, 2 * columns)
        return Planes(y, uv[..., 0 : 2 * columns : 2], uv[..., 1 : 2 * columns : 2], matrix, full_range)
    return Planes(y, noise(rows, columns)[..., :columns], noise(rows, columns)[..., :columns], matrix, full_range)


def exact_rgb(planes: Planes, box: list[float], frame: int, sides: tuple[int, int]) -> np.ndarray:
    """`[height, width, 3]` RGB in [0, 255], fp64, one output sample after the other."""
    left, top, right, bottom = box
    chroma = (left / 2 + 0.25, top / 2, right / 2 + 0.25, bottom / 2)
    y, u, v = (
        exact_scaled(plane[frame].numpy(), place, sides)
        for plane, place in ((planes.y, (left, top, right, bottom)), (planes.u, chroma), (planes.v, chroma))
    )
    k_r, k_b = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[planes.matrix]
    if not planes.full_range:
        y, u, v = (y - 16) * 255 / 219, (u - 128) * 255 / 224 + 128, (v - 128) * 255 / 224 + 128
    red = y + 2 * (1 - k_r) * (v - 128)
    blue = y + 2 * (1 - k_b) * (u - 128)
    green = (y - k_r * red - k_b * blue) / (1 - k_r - k_b)
    return np.clip(np.stack((red, green, blue), -1), 0, 255)


def exact_scaled(plane: np.ndarray, box: tuple[float, ...], sides: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    across = [exact_weights(left, right, i, sides[1], plane.shape[1]) for i in range(sides[1])]
    lines = np.stack([plane.astype(np.float64) @ w for w in across], 1)
    return np.stack([exact_weights(top, bottom, i, sides[0], plane.shape[0]) @ lines for i in range(sides[0])])


def exact_weights(first: float, last: float, i: int, size: int, extent: int) -> np.ndarray:
    step = (last - first) / size
    centre, reach = first + (i + 0.5) * step, max(step, 1.0)
    weights = np.zeros(extent)
    for j in range(int(np.floor(centre - reach)) - 2, int(np.ceil(centre + reach)) + 3):
        weights[min(max(j, 0), extent - 1)] += max(0.0, 1 - abs(j + 0.5 - centre) / reach)
    return weights / weights.sum()


def guarded(array: np.ndarray, side: str) -> np.ndarray:
    """A copy with the same shape and strides whose first or last byte lies next to a page that may not be touched."""
    page = mmap.PAGESIZE
    size = 1 + sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
    body = -(-size // page) * page
    buffer = mmap.mmap(-1, body + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    for at in (start, start + page + body):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), 0) == 0
    offset = page if side == "start" else page + body - size
    flat = np.frombuffer(buffer, np.uint8, size, offset)
    copy = np.lib.stride_tricks.as_strided(flat, array.shape, array.strides)
    copy[...] = array
    return copy
