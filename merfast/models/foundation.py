"""Foundation models of transformers as encoders: HuBERT, wav2vec 2.0, WavLM; ViT, CLIP vision, DINOv2, ResNet.

One set goes through the model at a time, so that its vectors are the same in any batch, to the bit. Of the layers, 0 is
what enters the first one, and L what leaves the last one, after the final normalisation where the family has one; those
between are as they leave their blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from merfast.models.checkpoints import Checkpoint
from merfast.models.pictures import Pictures
from merfast.ops.ragged import Ragged, offsets_from
from merfast.types import SAMPLE_RATE

# Crops at a time outside training: bounds memory.
CPU_CHUNK, GPU_CHUNK = 16, 256


def foundation(
    dim: int, *, checkpoint: Checkpoint | None, modality: str, crop_size: int, layer: str | int = "last"
) -> FoundationEncoder:
    """The encoder of a checkpoint; it takes the checkpoint's model over, and does not copy it.

    Args:
        dim: width of the vectors, that of the checkpoint.
        checkpoint: from `load_pretrained`.
        modality: "audio" or "video".
        crop_size: pixels, square, of the crops that a video encoder reads.
        layer: whose vectors to give: "last", a number from 0 to the number of layers L, or "mean" of the layers 1 to L.

    Raises:
        ValueError: no checkpoint, one that does not fit, or an option out of range.
    """
    if checkpoint is None:
        raise ValueError("got no checkpoint, expected one from load_pretrained")
    if checkpoint.modality != modality:
        raise ValueError(f"got modality {modality!r}, but {checkpoint.family} reads {checkpoint.modality}")
    if modality == "audio":
        return AudioFoundation(dim, checkpoint, layer)
    return VideoFoundation(dim, checkpoint, layer, crop_size)


class FoundationEncoder(nn.Module, ABC):
    """What both modalities share: the model, and the choice of the layer.

    Raises:
        ValueError: `dim` is not the checkpoint's, or there is no such layer.
    """

    def __init__(self, dim: int, checkpoint: Checkpoint, layer: str | int) -> None:
        super().__init__()
        last = len(checkpoint.widths) - 1
        number = isinstance(layer, int) and not isinstance(layer, bool)
        if layer not in ("last", "mean") and not (number and 0 <= int(layer) <= last):
            raise ValueError(f"layer: got {layer!r}, expected 'last', 'mean' or a number from 0 to {last}")
        if layer == "mean" and checkpoint.family == "resnet":
            raise ValueError("layer: got 'mean', expected another one of resnet, whose stages differ in width")
        self.layer: str | int = "last" if layer == last else layer
        width = checkpoint.widths[layer] if isinstance(layer, int) else checkpoint.dim
        if dim != width:
            raise ValueError(f"dim: got {dim}, expected {width}, the width of the checkpoint's layer {layer!r}")
        self.dim = dim
        self.modality, self.family, self.processor = checkpoint.modality, checkpoint.family, checkpoint.processor
        self.model = checkpoint.model

    @property
    def checkpoint(self) -> Checkpoint:
        """The model with its present weights, as `load_pretrained` gives it."""
        return Checkpoint(self.modality, self.model, self.processor)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.model.parameters()).dtype

    def vectors(self, x: Tensor) -> Tensor:
        """Model input `[1, N]` or `[M, 3, H, W]` -> vectors `[N', dim]` or `[M, dim]` of the chosen layer."""
        out = self.model(x, output_hidden_states=self.layer != "last", return_dict=True)
        if self.layer == "last":
            return self.last(out)
        if self.layer == "mean":
            hidden = [self.pooled(h) for h in out.hidden_states[1:-1]]
            return torch.stack([*hidden, self.last(out)]).mean(0)
        return self.pooled(out.hidden_states[self.layer])

    def last(self, out: Any) -> Tensor:
        """Vectors of the last layer, from all that the model gives."""
        return self.pooled(out.last_hidden_state)

    @abstractmethod
    def pooled(self, hidden: Tensor) -> Tensor:
        """Vectors of one hidden state."""

    def one_by_one(self, x: Ragged, encode: Callable[[Tensor], Tensor]) -> Ragged:
        """`encode` of each set `[n, ...]` that is not empty, as `[n', dim]`."""
        nothing = torch.zeros(0, self.dim, dtype=self.dtype, device=x.values.device)
        bounds = pairwise(x.offsets.tolist())
        parts = [encode(x.values[start:end]) if end > start else nothing for start, end in bounds]
        lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64, device=x.offsets.device)
        return Ragged(torch.cat([nothing, *parts]), offsets_from(lengths))


class AudioFoundation(FoundationEncoder):
    """HuBERT, wav2vec 2.0 or WavLM: 16 kHz audio to about 50 vectors a second.

    A set is brought to mean 0 and variance 1 if the checkpoint's processor says so. One that is shorter than what the
    first vector is made from (25 ms in all published models) is filled up with zeros.
    """

    def __init__(self, dim: int, checkpoint: Checkpoint, layer: str | int) -> None:
        super().__init__(dim, checkpoint, layer)
        entries = checkpoint.processor
        given = entries.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
        if given != "Wav2Vec2FeatureExtractor":
            raise ValueError(f"feature_extractor_type: got {given!r}, expected 'Wav2Vec2FeatureExtractor'")
        if (rate := entries.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            raise ValueError(f"sampling_rate: got {rate!r}, expected {SAMPLE_RATE}")
        self.normalise = entries.get("do_normalize", True)
        if not isinstance(self.normalise, bool):
            raise ValueError(f"do_normalize: got {self.normalise!r}, expected true or false")
        self.field = 1
        """Samples that the first vector is made from."""
        steps = list(zip(checkpoint.config.conv_kernel, checkpoint.config.conv_stride, strict=True))
        for kernel, stride in reversed(steps):
            self.field = (self.field - 1) * stride + kernel
        if not 1 <= self.field <= SAMPLE_RATE:
            raise ValueError(f"convolutions: a vector is made from {self.field} samples, expected 1 to {SAMPLE_RATE}")

    def forward(self, x: Ragged) -> Ragged:
        """Samples `[N]` at 16 kHz -> vectors `[N', dim]`.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        if x.values.ndim != 1 or not x.values.is_floating_point():
            raise ValueError(f"{self.family}: got {x.values.dtype} {list(x.values.shape)}, expected float samples [N]")
        return self.one_by_one(x, self.encode)

    def encode(self, samples: Tensor) -> Tensor:
        """Samples `[n]` of one set -> vectors `[n', dim]`."""
        x = samples.to(self.dtype)
        if self.normalise:
            exact = samples.double()
            x = ((exact - exact.mean()) / (exact.var(correction=0) + 1e-7).sqrt()).to(self.dtype)
        if len(x) < self.field:
            x = nn.functional.pad(x, (0, self.field - len(x)))
        return self.vectors(x[None])

    def pooled(self, hidden: Tensor) -> Tensor:
        return hidden[0]


class VideoFoundation(FoundationEncoder):
    """ViT, CLIP vision, DINOv2 or ResNet: one vector for each crop.

    It is the CLS token (after the final normalisation, if of the last layer) of the transformers, and the average over
    the picture of ResNet.
    """

    def __init__(self, dim: int, checkpoint: Checkpoint, layer: str | int, crop_size: int) -> None:
        super().__init__(dim, checkpoint, layer)
        self.crop_size = crop_size
        self.pictures = Pictures(checkpoint.processor, crop_size)
        config, size = checkpoint.config, self.pictures.size
        if self.family in ("vit", "clip_vision_model"):
            side = config.image_size
            wanted = (side, side) if isinstance(side, int) else tuple(side)
            if size != wanted:
                raise ValueError(f"image processor: gives pictures of {size}, expected {wanted}, the model's")
        if self.family == "dinov2" and min(size) < config.patch_size:
            raise ValueError(f"image processor: gives pictures of {size}, expected a patch of {config.patch_size}")

    def forward(self, x: Ragged) -> Ragged:
        """Crops `[N, S, S, 3]` uint8 RGB -> vectors `[N, dim]`.

        Raises:
            ValueError: another shape or type.
        """
        size = self.crop_size
        if x.values.dtype != torch.uint8 or x.values.shape[1:] != (size, size, 3):
            got = f"{x.values.dtype} {list(x.values.shape)}"
            raise ValueError(f"{self.family}: got {got}, expected torch.uint8 [N, {size}, {size}, 3]")
        return self.one_by_one(x, self.encode)

    def encode(self, crops: Tensor) -> Tensor:
        """Crops `[n, S, S, 3]` of one set -> vectors `[n, dim]`."""
        chunk = CPU_CHUNK if crops.device.type == "cpu" else GPU_CHUNK
        # In training the batch norms see all crops of a set at once.
        parts = [crops] if self.training else torch.split(crops, chunk)
        return torch.cat([self.vectors(self.pictures(part).to(self.dtype)) for part in parts])

    def last(self, out: Any) -> Tensor:
        # CLIP normalises the CLS token alone, and gives it apart.
        if self.family == "clip_vision_model":
            vector: Tensor = out.pooler_output
            return vector
        return super().last(out)

    def pooled(self, hidden: Tensor) -> Tensor:
        return hidden.mean((2, 3)) if self.family == "resnet" else hidden[:, 0]
