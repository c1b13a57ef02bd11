"""Face crops as the input of a vision model, as its `preprocessor_config.json` describes it, in plain torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow's filters in the file -> torch's names."""

PROCESSORS = ("ViT", "CLIP", "Bit", "ConvNext")
"""Image processors of transformers that are understood, without `ImageProcessor` and the like."""

_CONVNEXT_WHOLE = 384  # pixels from which on ConvNext's processor no longer cuts off the rim
_LARGEST = 2048
_FIXED = 1 << 22


class Pictures(nn.Module):
    """Resize, cut out the centre, rescale, normalise: what transformers' image processors do with square RGB pictures.

    Resizing is Pillow's to the bit: antialiased, in fixed point, each of its two passes rounded to whole levels.

    Args:
        processor: content of `preprocessor_config.json`.
        crop_size: pixels, square, of the crops.

    Raises:
        ValueError: an entry is missing, unknown or out of range.
    """

    mean: Tensor
    deviation: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, processor: Mapping[str, Any], crop_size: int) -> None:
        super().__init__()
        entries = {name: value for name, value in processor.items() if value is not None}
        given = str(entries.get("image_processor_type") or entries.get("feature_extractor_type") or "ViTImageProcessor")
        kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", given)
        if kind not in PROCESSORS:
            expected = ", ".join(f"{k}ImageProcessor" for k in PROCESSORS)
            raise ValueError(f"image processor: got {given!r}, expected one of {expected}")
        if entries.get("do_pad"):
            raise ValueError("do_pad: got true, expected pictures without padding")
        self.crop_size = crop_size
        self.resize: tuple[int, int] | None = None
        self.crop: tuple[int, int] | None = None
        filter_name = "bilinear"
        if entries.get("do_resize", True):
            self.resize = _size(entries, "size")
            if entries.get("resample") not in RESAMPLE:
                raise ValueError(f"resample: got {entries.get('resample')!r}, expected 2 (bilinear) or 3 (bicubic)")
            filter_name = RESAMPLE[entries["resample"]]
            if kind == "ConvNext" and self.resize[0] < _CONVNEXT_WHOLE:
                self.crop = self.resize
                share = _number(entries, "crop_pct", 224 / 256)
                if share > 1:
                    raise ValueError(f"crop_pct: got {share:g}, expected above 0 and up to 1")
                side = int(self.resize[0] / share)
                self.resize = (side, side)
        if entries.get("do_center_crop", False):
            self.crop = _size(entries, "crop_size")
        before = self.resize or (crop_size, crop_size)
        self.size = self.crop or before
        """Height and width of what comes out, in pixels."""
        if self.size[0] > before[0] or self.size[1] > before[1]:
            raise ValueError(f"crop_size: got {self.size} of pictures of {before}, expected no more than there is")
        self.scale = _number(entries, "rescale_factor", 1 / 255) if entries.get("do_rescale", True) else 1.0
        normalise = entries.get("do_normalize", True)
        mean = _channels(entries, "image_mean") if normalise else [0.0] * 3
        deviation = _channels(entries, "image_std") if normalise else [1.0] * 3
        if min(deviation) <= 0:
            raise ValueError(f"image_std: got {deviation}, expected numbers above 0")
        # On the CPU also where the model is only outlined on the meta device.
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(3, 1, 1), persistent=False)
        # To their own size the filters give the crops themselves: all weight is on a pixel's own place.
        self._resizes = self.resize not in (None, (crop_size, crop_size))
        if self._resizes and self.resize is not None:
            for name, side in zip(("rows", "columns"), self.resize, strict=True):
                self.register_buffer(name, _weights(crop_size, side, filter_name), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        """`[N, S, S, 3]` uint8 RGB -> `[N, 3, H, W]` floating-point, of the type of `mean`."""
        x = crops.permute(0, 3, 1, 2)
        # A channel's rows side by side, as what follows reads them: conversion alone would leave the crops' order.
        x = torch.empty(x.shape, dtype=self.mean.dtype, device=x.device).copy_(x)
        if self._resizes:
            x = _levels(x.double() @ self.columns.double().T)
            x = _levels(self.rows.double() @ x).to(self.mean.dtype)
        if self.crop is not None:
            top, left = ((have - want) // 2 for have, want in zip(x.shape[2:], self.crop, strict=True))
            x = x[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        return x.mul_(self.scale).sub_(self.mean).div_(self.deviation)  # in place: memory costs more than arithmetic


def _weights(before: int, after: int, filter_name: str) -> Tensor:
    """`[after, before]` int32: Pillow's weights of an axis, in units of 2^-22 (Pillow's `Resample.c`)."""
    scale = before / after
    wide = max(scale, 1.0)
    support = (1.0 if filter_name == "bilinear" else 2.0) * wide
    centres = (np.arange(after)[:, None] + 0.5) * scale
    places = np.arange(before)[None]
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centres + support + 0.5).astype(np.int64), before)
    d = np.abs(places - centres + 0.5) * (1.0 / wide)
    if filter_name == "bilinear":
        weights = np.maximum(1 - d, 0)
    else:  # Keys' cubic with a = -1/2
        near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
        weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    weights = np.where((places >= first) & (places < end), weights, 0)
    weights = weights / weights.sum(1, keepdims=True)
    whole = np.trunc(weights * _FIXED + np.copysign(0.5, weights))
    return torch.from_numpy(whole.astype(np.int32))


def _levels(x: Tensor) -> Tensor:
    """Levels in units of 2^-22 -> whole ones of 0 to 255; halves go up."""
    return (x / _FIXED + 0.5).floor().clamp(0, 255)


def _size(entries: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Height and width; the crops are square, so that their shortest edge is both."""
    given = entries.get(name)
    sides = given
    if isinstance(given, Mapping):
        kept = {key: value for key, value in given.items() if value is not None}
        if kept.keys() == {"shortest_edge"}:
            sides = kept["shortest_edge"]
        elif kept.keys() == {"height", "width"}:
            sides = (kept["height"], kept["width"])
    pair = sides if isinstance(sides, tuple) else (sides, sides)
    if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= _LARGEST for n in pair):
        raise ValueError(
            f"{name}: got {given!r:.80}, expected pixels, shortest_edge, or height and width, up to {_LARGEST}"
        )
    return pair


def _number(entries: Mapping[str, Any], name: str, default: float) -> float:
    value = entries.get(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e6:
        raise ValueError(f"{name}: got {value!r:.80}, expected a number above 0")
    return float(value)


def _channels(entries: Mapping[str, Any], name: str) -> list[float]:
    values = entries.get(name)
    if not isinstance(values, (list, tuple)) or len(values) != 3 or any(type(v) not in (int, float) for v in values):
        raise ValueError(f"{name}: got {values!r:.80}, expected three numbers")
    return [float(v) for v in values]
