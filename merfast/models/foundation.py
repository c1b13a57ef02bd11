"""Foundation models of transformers as encoders: HuBERT, wav2vec 2.0, WavLM; ViT, CLIP vision, DINOv2, ResNet.

Sets share passes through the network: audio sorted by length and padded, all crops in one row. What a set gives does
not depend on the others, but for the rounding of sums that are made in another order. Of the layers, 0 is what enters
the first one, and L what leaves the last one, after the final normalisation where the family has one; those between are
as they leave their blocks.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from merfast.models.checkpoints import Checkpoint
from merfast.models.layers import Layers
from merfast.models.networks import Network, ResNetNetwork, SpeechNetwork, VisionNetwork
from merfast.models.pictures import Pictures
from merfast.ops.ragged import Ragged, moved
from merfast.runtime.spec import Runner
from merfast.types import SAMPLE_RATE

# What goes through a network at a time, at most, outside training: samples, the padding included, and crops. On the
# CPU more is no faster, and takes memory.
CPU_SAMPLES, GPU_SAMPLES = 8 * SAMPLE_RATE, 128 * SAMPLE_RATE
CPU_CROPS, GPU_CROPS = 4, 256

LITTLE_SAMPLES, LITTLE_CROPS = 2 * SAMPLE_RATE, 4
"""After more than this, runtimes give back the memory of what comes between input and output."""


Takes = Callable[[int, int], bool]
"""Whether a padded batch may have so many rows of such a length."""

N = TypeVar("N", bound=Network)


def foundation(
    dim: int,
    *,
    checkpoint: Checkpoint | None,
    modality: str,
    crop_size: int,
    layer: str | int = "last",
    attention_dim: int = 64,
) -> FoundationEncoder[Any]:
    """The encoder of a checkpoint; it takes the checkpoint's model over, and does not copy it.

    Args:
        dim: width of the vectors, that of the checkpoint.
        checkpoint: from `load_pretrained`.
        modality: "audio" or "video".
        crop_size: pixels, square, of the crops that a video encoder reads.
        layer: whose vectors to give: "last", a number from 0 to the number of layers L, "mean" of the layers 1 to L, or
            "afg", their gathering by attention with weights of its own.
        attention_dim: width of the energies' hidden layer, for "afg".

    Raises:
        ValueError: no checkpoint, one that does not fit, or an option out of range.
    """
    if checkpoint is None:
        raise ValueError("got no checkpoint, expected one from load_pretrained")
    if checkpoint.modality != modality:
        raise ValueError(f"got modality {modality!r}, but {checkpoint.family} reads {checkpoint.modality}")
    layers = Layers(layer, len(checkpoint.widths) - 1, dim, attention_dim)
    if layer in ("mean", "afg") and checkpoint.family == "resnet":
        raise ValueError(f"layer: got {layer!r}, expected another one of resnet, whose stages differ in width")
    width = checkpoint.widths[layers.upto]
    if dim != width:
        raise ValueError(f"dim: got {dim}, expected {width}, the width of the checkpoint's layer {layer!r}")
    if modality == "audio":
        return AudioFoundation(dim, checkpoint, layers)
    return VideoFoundation(dim, checkpoint, layers, crop_size)


class FoundationEncoder(nn.Module, ABC, Generic[N]):
    """What both modalities share: the network, and what runs it."""

    network: N

    def __init__(self, dim: int, checkpoint: Checkpoint, network: N) -> None:
        super().__init__()
        self.dim = dim
        self.modality, self.family, self.processor = checkpoint.modality, checkpoint.family, checkpoint.processor
        self.network = network
        self._runner: Runner | None = None
        self._relax: Callable[[], None] | None = None
        self._alone = False
        self._takes: Takes | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The model with its present weights, as `load_pretrained` gives it."""
        return Checkpoint(self.modality, self.network.model, self.processor)

    def accelerate(
        self,
        runner: Runner | None,
        relax: Callable[[], None] | None = None,
        *,
        alone: bool = False,
        takes: Takes | None = None,
    ) -> None:
        """Run a compiled network, made from the present weights; None returns to the reference in torch.

        Call it again after the weights change.

        Args:
            runner: of the network.
            relax: called after much work, before others need the memory.
            alone: sets do not share passes, as for a network in eight bits, whose scales follow from all that it sees.
            takes: whether the runner takes so many rows of audio of such a length, if it does not take all.

        Raises:
            RuntimeError: None for an encoder whose weights were not read, as its network is compiled.
        """
        if runner is None and not any(True for _ in self.network.model.parameters()):
            raise RuntimeError("accelerate: got an encoder without weights; merfast.bundle.load reads them")
        self._runner, self._relax, self._alone, self._takes = runner, relax, alone, takes

    def run(self, *inputs: Tensor) -> Tensor:
        """The network's vectors.

        Raises:
            RuntimeError: in training mode after `accelerate`.
        """
        if self._runner is None:
            return self.network(*inputs)  # type: ignore[no-any-return]
        if self.training:
            raise RuntimeError("encode: a compiled encoder has no gradients; call accelerate(None) before training")
        return self._runner(*inputs)

    def relax(self, much: bool) -> None:
        """Give back the memory of intermediate results, if it is much; after a short window time counts for more."""
        if much and self._relax is not None:
            self._relax()


class AudioFoundation(FoundationEncoder[SpeechNetwork]):
    """HuBERT, wav2vec 2.0 or WavLM: 16 kHz audio to about 50 vectors a second.

    A set is brought to mean 0 and variance 1 if the checkpoint's processor says so. One that is shorter than what the
    first vector is made from (25 ms in all published models) is filled up with zeros.
    """

    def __init__(self, dim: int, checkpoint: Checkpoint, layers: Layers) -> None:
        super().__init__(dim, checkpoint, SpeechNetwork(checkpoint.model, layers))
        entries = checkpoint.processor
        given = entries.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
        if given != "Wav2Vec2FeatureExtractor":
            raise ValueError(f"feature_extractor_type: got {given!r}, expected 'Wav2Vec2FeatureExtractor'")
        if (rate := entries.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            raise ValueError(f"sampling_rate: got {rate!r}, expected {SAMPLE_RATE}")
        self.normalise = entries.get("do_normalize", True)
        if not isinstance(self.normalise, bool):
            raise ValueError(f"do_normalize: got {self.normalise!r}, expected true or false")
        self.field = self.network.field
        if not 1 <= self.field <= SAMPLE_RATE:
            raise ValueError(f"convolutions: a vector is made from {self.field} samples, expected 1 to {SAMPLE_RATE}")

    def forward(self, x: Ragged) -> Ragged:
        """Samples `[N]` at 16 kHz -> vectors `[N', dim]`.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        if x.values.ndim != 1 or not x.values.is_floating_point():
            raise ValueError(f"{self.family}: got {x.values.dtype} {list(x.values.shape)}, expected float samples [N]")
        sizes = x.host_sizes()
        starts = list(accumulate(sizes, initial=0))
        filled = [max(n, self.field) if n else 0 for n in sizes]
        frames = [self.network.frames(n) if n else 0 for n in filled]
        parts: list[tuple[int, Tensor]] = []
        budget = CPU_SAMPLES if x.values.device.type == "cpu" else GPU_SAMPLES
        if self._alone:
            budget = 0

        def fits(rows: int, longest: int) -> bool:
            return rows * longest <= budget and (self._takes is None or self._takes(rows, longest))

        for rows in packs(filled, fits):
            vectors = self.run(*self.batch(x.values, [(starts[b], sizes[b]) for b in rows]))
            parts += [(b, vectors[i, : frames[b]]) for i, b in enumerate(rows)]
        self.relax(sum(sizes) > LITTLE_SAMPLES)
        parts.sort(key=lambda part: part[0])
        nothing = torch.zeros(0, *self.network.layers.shape, device=x.values.device)
        return Ragged.of(torch.cat([nothing, *(vectors for _, vectors in parts)]), frames)

    def batch(self, samples: Tensor, sets: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Starts and sizes of sets in `samples` `[N]`, none empty -> `[B, N']` fp32, normalised, zeros after the end,
        and lengths `[B]`."""
        lengths = [max(size, self.field) for _, size in sets]
        table = [*zip(*sets, strict=True), lengths]
        starts, sizes, filled = moved(torch.tensor(table, dtype=torch.int64), samples.device).unbind()
        places = torch.arange(max(lengths), device=samples.device)
        inside = places < sizes[:, None]  # [B, N']
        rows = torch.where(inside, samples[(starts[:, None] + places).clamp(max=len(samples) - 1)], 0)
        if self.normalise:
            exact, sizes = rows.double(), sizes[:, None]
            centred = torch.where(inside, exact - exact.sum(1, keepdim=True) / sizes, 0)
            variance = centred.square().sum(1, keepdim=True) / sizes
            rows = centred / (variance + 1e-7).sqrt()
        return rows.float(), filled


class VideoFoundation(FoundationEncoder[VisionNetwork]):
    """ViT, CLIP vision, DINOv2 or ResNet: one vector for each crop.

    It is the CLS token (after the final normalisation, if of the last layer) of the transformers, and the average over
    the picture of ResNet.
    """

    def __init__(self, dim: int, checkpoint: Checkpoint, layers: Layers, crop_size: int) -> None:
        pictures = Pictures(checkpoint.processor, crop_size)
        network = ResNetNetwork if checkpoint.family == "resnet" else VisionNetwork
        super().__init__(dim, checkpoint, network(checkpoint.model, layers, pictures.size))
        self.crop_size, self.pictures = crop_size, pictures
        config, size = checkpoint.config, pictures.size
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
        budget = CPU_CROPS if x.values.device.type == "cpu" else GPU_CROPS
        # In training the batch norms see all crops at once.
        shared = torch.split(x.values, list(x.host_sizes())) if self._alone else [x.values]
        chunks = shared if self.training else [chunk for rows in shared for chunk in torch.split(rows, budget)]
        nothing = torch.zeros(0, *self.network.layers.shape, device=x.values.device)
        parts = [self.run(self.pictures(chunk).float()) for chunk in chunks if len(chunk)]
        self.relax(len(x.values) > LITTLE_CROPS)
        return Ragged(torch.cat([nothing, *parts]), x.offsets, x.sizes)


def packs(sizes: Sequence[int], fits: Takes) -> Iterator[list[int]]:
    """Sets that share a padded batch: from the longest on, as many as fit, one at least; none that is empty.

    A batch ends, too, where a set is shorter than three quarters of the batch's longest: no more than a quarter of what
    is computed is padding.

    Args:
        sizes: of the sets.
        fits: whether a batch may have so many rows of such a length.
    """
    pack: list[int] = []
    for b in sorted((b for b, size in enumerate(sizes) if size), key=lambda b: -sizes[b]):
        if pack and (not fits(len(pack) + 1, sizes[pack[0]]) or 4 * sizes[b] < 3 * sizes[pack[0]]):
            yield pack
            pack = []
        pack.append(b)
    if pack:
        yield pack
