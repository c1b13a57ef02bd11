"""Face encoder of the mini bundle: a small residual network on the luma of each crop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.ops.ragged import Ragged

# Crops at a time outside training: bounds memory; on a CPU the activations of eight still fit its cache.
CPU_CHUNK, GPU_CHUNK = 8, 512
BT601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # how luma weighs red, green and blue


class FaceCNN(nn.Module):
    """Face encoder: one vector for each crop.

    Args:
        dim: width of the vectors, and of the last stage.
        crop_size: pixels, square.
        widths: of the other stages; each after the first halves the picture, as the last one does.
        blocks: residual blocks of each stage, the last one's too; one each if empty.
        dropout: on the vectors, while training.

    Raises:
        ValueError: an option is out of range.
    """

    luma_weights: Tensor

    def __init__(
        self,
        dim: int,
        *,
        crop_size: int,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths: got {list(widths)}, expected at least one, all above 0")
        stages = [*widths, dim]
        blocks = blocks or [1] * len(stages)
        if len(blocks) != len(stages) or min(blocks) < 1:
            raise ValueError(f"blocks: got {list(blocks)}, expected {len(stages)} numbers, all above 0")
        self.dim, self.crop_size = dim, crop_size
        half = max(widths[0] // 2, 1)
        self.stem = nn.Sequential(
            *(nn.Conv2d(1, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()),
            nn.MaxPool2d(2),
        )
        first = [Residual(widths[0], widths[0], 1), *(Residual(a, b, 2) for a, b in pairwise(stages))]
        self.stages = nn.Sequential(
            *(
                block
                for down, width, count in zip(first, stages, blocks, strict=True)
                for block in (down, *(Residual(width, width, 1) for _ in range(count - 1)))
            )
        )
        self.norm_out = nn.LayerNorm(dim)
        self.register_buffer("luma_weights", torch.from_numpy(BT601), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Ragged) -> Ragged:
        """Crops `[N, S, S, 3]` uint8 RGB -> vectors `[N, dim]`.

        Raises:
            ValueError: another shape or type.
        """
        size = self.crop_size
        if x.values.dtype != torch.uint8 or x.values.shape[1:] != (size, size, 3):
            got = f"{x.values.dtype} {list(x.values.shape)}"
            raise ValueError(f"facecnn: got {got}, expected torch.uint8 [N, {size}, {size}, 3]")
        if not len(x.values):
            return Ragged(self.norm_out.weight.new_zeros(0, self.dim), x.offsets, x.sizes)
        # In training the batch norms see all crops at once.
        chunk = CPU_CHUNK if x.values.device.type == "cpu" else GPU_CHUNK
        parts = [x.values] if self.training else torch.split(x.values, chunk)
        return Ragged(torch.cat([self.encode(self.luma(part)) for part in parts]), x.offsets, x.sizes)

    def luma(self, crops: Tensor) -> Tensor:
        """`[N, 1, S, S]` luma (ITU-R BT.601) of crops `[N, S, S, 3]`, each crop brought to mean 0 and deviation 1."""
        dtype = self.norm_out.weight.dtype
        grey = crops.to(dtype) @ self.luma_weights
        return levelled(grey)[:, None]

    def encode(self, luma: Tensor) -> Tensor:
        """Normalised luma `[N, 1, S, S]` -> vectors `[N, dim]`."""
        x = self.stem(luma.contiguous(memory_format=torch.channels_last))  # a tenth faster on the CPU
        vectors: Tensor = self.dropout(self.norm_out(self.stages(x).mean((2, 3))))
        return vectors


def levelled(grey: Tensor) -> Tensor:
    """Pictures `[..., S, S]` in 0 to 255, each brought to mean 0 and deviation 1; one that is nearly flat stays so."""
    grey = grey - grey.mean((-2, -1), keepdim=True)
    deviation = grey.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1.0)  # of 255
    return grey / deviation


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut (arXiv 1512.03385, basic block), which averages before it skips pixels
    (arXiv 1812.01187, ResNet-D)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
