"""The networks of foundation models over padded batches: tensors in, vectors out, and no neighbour is seen.

They use the weights and the layers of a model of transformers, and differ from its own `forward` in this: the states
of the layers are not kept, nothing is computed that no vector depends on, and in a padded batch each row's result is
what the row alone would give. They compute as in evaluation, without dropout; only batch norms heed training mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.layers import Layers
from merfast.ops.group_norm_gelu import GroupNormGelu, PrepareNorm, masked_group_norm
from merfast.runtime.spec import Input, Spec


class Attention:
    """Projections of an attention layer, by any of the names that versions of transformers give them."""

    def __init__(self, layer: nn.Module) -> None:
        names = [("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")]
        self.query, self.key, self.value = (_part(layer, *pair) for pair in names)
        self.out = _part(layer, "out_proj", "o_proj", "output.dense")

    def __call__(self, x: Tensor, source: Tensor, width: int, mask: Tensor | None = None) -> Tensor:
        """Rows x `[B, Q, D]` look at `source` `[B, T, D]`, heads `width` wide; mask is bool or added."""
        q, k, v = (_heads(p(rows), width) for p, rows in ((self.query, x), (self.key, source), (self.value, source)))
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        rows = seen.transpose(1, 2)  # [B, Q, H, d]
        if torch.compiler.is_exporting():  # how attention lays out what it gives is not what a graph may rely on
            rows = rows.clone(memory_format=torch.contiguous_format)
        return cast(Tensor, self.out(rows.flatten(2)))


class Network(nn.Module, ABC):
    """A model's layers, and the choice among its states. The model's modules are shared, not copied."""

    def __init__(self, model: nn.Module, layers: Layers) -> None:
        super().__init__()
        self.model, self.layers = cast(Any, model), layers
        self.config: Any = self.model.config
        self.heads_width = 1 if self.config.model_type == "resnet" else _heads_width(self.config)

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """What goes in and out."""


class SpeechNetwork(Network):
    """HuBERT, wav2vec 2.0 or WavLM.

    Args:
        model: of transformers.
        layers: which of its states are given.
    """

    def __init__(self, model: nn.Module, layers: Layers) -> None:
        super().__init__(model, layers)
        self._norm_gelu: GroupNormGelu | None = None

    def accelerate(self, prepare: PrepareNorm) -> None:
        """Run the masked GroupNorm and GELU, of the models that have them, on an implementation without gradients."""
        first = self.model.feature_extractor.conv_layers[0]
        norm = getattr(first, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm) and self.config.feat_extract_activation == "gelu":
            self._norm_gelu = prepare(norm.weight, norm.bias, norm.num_groups, norm.eps)

    @property
    def spec(self) -> Spec:
        samples = Input("samples", torch.float32, ("batch", "samples"))
        lengths = Input("lengths", torch.int64, ("batch",))
        return Spec((samples, lengths), "vectors", {"batch": 1, "samples": self.field})

    @property
    def field(self) -> int:
        """Samples that the first vector is made from."""
        field = 1
        for kernel, stride in reversed(list(zip(self.config.conv_kernel, self.config.conv_stride, strict=True))):
            field = (field - 1) * stride + kernel
        return field

    def frames(self, samples: int) -> int:
        """Number of vectors from so many samples, which are at least `field`."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def forward(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """Samples `[B, N]`, of which row b has `lengths[b]`, from `field` to N -> vectors `[B, T, D]`, fp32.

        What is beyond a row's length may be any number, and what is beyond `frames` of it in the result is of no use.
        """
        return cast(Tensor, self.layers(self.states(samples, lengths))).float()

    def states(self, samples: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """Hidden states 0 to L, `[B, T, D]` each."""
        x, frames = self.features(samples, lengths)
        valid = torch.arange(x.shape[1], device=x.device) < frames[:, None]  # [B, T]
        x = torch.where(valid[..., None], x, 0)
        encoder, stable = self.model.encoder, self.config.do_stable_layer_norm
        x = x + self.position(x, valid)
        if not stable:
            x = encoder.layer_norm(x)
        yield x
        mask, bias = valid[:, None, None], None  # [B, 1, 1, T]
        if self.config.model_type == "wavlm":
            bias = encoder.layers[0].attention.compute_bias(x.shape[1], x.shape[1])  # [H, T, T]
        for i, layer in enumerate(encoder.layers, 1):
            if stable:
                x = x + self.attend(layer.attention, layer.layer_norm(x), mask, bias)
                x = x + layer.feed_forward(layer.final_layer_norm(x))
            else:
                x = layer.layer_norm(x + self.attend(layer.attention, x, mask, bias))
                x = layer.final_layer_norm(x + layer.feed_forward(x))
            yield encoder.layer_norm(x) if stable and i == len(encoder.layers) else x

    def features(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the convolutions make of the samples, `[B, T, D]`, and each row's frames `[B]`."""
        x, frames = samples.to(self.model.dtype)[:, None], lengths
        for layer in self.model.feature_extractor.conv_layers:
            conv, norm = layer.conv, getattr(layer, "layer_norm", None)
            frames = (frames - conv.kernel_size[0]) // conv.stride[0] + 1
            if not isinstance(norm, nn.GroupNorm):
                x = layer(x)
            elif self._norm_gelu is not None:
                x = self._norm_gelu(conv(x), frames)
            else:
                x = layer.activation(
                    masked_group_norm(conv(x), frames, norm.weight, norm.bias, norm.num_groups, norm.eps)
                )
        projected = self.model.feature_projection(x.transpose(1, 2))
        # wav2vec 2.0 gives what it normalised, too.
        return (projected[0] if isinstance(projected, tuple) else projected), frames

    def position(self, x: Tensor, valid: Tensor) -> Tensor:
        """The convolution that tells the places apart; it sees zeros before and after each row's frames."""
        embed = self.model.encoder.pos_conv_embed
        y = x.transpose(1, 2)
        if getattr(embed, "batch_norm", None) is not None:
            y = torch.where(valid[:, None], embed.batch_norm(y), 0)
        y = embed.activation(embed.padding(embed.conv(y)))
        return cast(Tensor, y.transpose(1, 2))

    def attend(self, attention: nn.Module, x: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of all rows to the valid ones; WavLM's has a bias `[H, T, T]`, gated by what it looks from."""
        width = self.heads_width
        if bias is None:
            return Attention(attention)(x, x, width, mask)
        part = cast(Any, attention)
        gates = part.gru_rel_pos_linear(_heads(x, width))  # [B, H, T, 8]
        a, b = gates.view(*gates.shape[:-1], 2, 4).sum(-1).sigmoid().split(1, -1)  # [B, H, T, 1]
        gate = a * (b * part.gru_rel_pos_const - 1) + 2
        return Attention(attention)(x, x, width, torch.where(mask, gate * bias, -torch.inf))


class VisionNetwork(Network):
    """ViT, CLIP vision or DINOv2: the CLS token of each picture.

    Of the last layer that is needed, only what the CLS token depends on is computed.

    Args:
        model: of transformers.
        layers: which of its states are given.
        size: height and width of the pictures in pixels.
    """

    def __init__(self, model: nn.Module, layers: Layers, size: tuple[int, int]) -> None:
        super().__init__(model, layers)
        self.size = size

    @property
    def spec(self) -> Spec:
        return Spec((Input("pixels", torch.float32, ("pictures", 3, *self.size)),), "vectors", {"pictures": 1})

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures `[M, 3, H, W]`, normalised -> vectors `[M, D]`, fp32."""
        return cast(Tensor, self.layers(self.states(pixels.to(self.model.dtype)))).float()

    def states(self, pixels: Tensor) -> Iterator[Tensor]:
        """Hidden states 0 to L of the CLS token, `[M, D]` each."""
        x = self.model.embeddings(pixels)
        if self.config.model_type == "clip_vision_model":
            x = self.model.pre_layrnorm(x)
        yield x[:, 0]
        blocks = [Block(block) for block in self.blocks]
        for i, block in enumerate(blocks, 1):
            x = block(x, self.heads_width, first=i == self.layers.upto)
            yield x[:, 0] if i < len(blocks) else _part(self.model, "post_layernorm", "layernorm")(x[:, 0])

    @property
    def blocks(self) -> Any:
        """The layers, one after another."""
        return _part(self.model, "layers", "encoder.layers", "encoder.layer")


class Block:
    """A layer of a vision transformer, which normalises before attention and before its MLP."""

    def __init__(self, block: nn.Module) -> None:
        self.attention = Attention(_part(block, "self_attn", "attention"))
        self.norms = (
            _part(block, "layernorm_before", "layer_norm1", "norm1"),
            _part(block, "layernorm_after", "layer_norm2", "norm2"),
        )
        self.mlp = _part(block, "mlp")
        self.scales = getattr(block, "layer_scale1", None), getattr(block, "layer_scale2", None)

    def __call__(self, x: Tensor, width: int, *, first: bool) -> Tensor:
        """x `[M, T, D]` -> `[M, T, D]`, or `[M, 1, D]`, if only the first row is wanted."""
        source = self.norms[0](x)
        kept = slice(0, 1) if first else slice(None)
        seen = self.attention(source[:, kept], source, width)
        x = x[:, kept] + (seen if self.scales[0] is None else self.scales[0](seen))
        more = self.mlp(self.norms[1](x))
        return cast(Tensor, x + (more if self.scales[1] is None else self.scales[1](more)))


class ResNetNetwork(VisionNetwork):
    """ResNet: each picture's average over its places."""

    def states(self, pixels: Tensor) -> Iterator[Tensor]:
        x = self.model.embedder(pixels)
        yield x.mean((2, 3))
        for stage in self.model.encoder.stages:
            x = stage(x)
            yield x.mean((2, 3))


def _part(module: nn.Module, *paths: str) -> Any:
    """The submodule at the first of these paths that there is."""
    for path in paths:
        part: Any = module
        for name in path.split("."):
            part = getattr(part, name, None)
        if part is not None:
            return part
    raise AttributeError(
        f"{type(module).__name__}: got no {' or '.join(paths)}, expected one: is transformers too new?"
    )


def _heads(x: Tensor, width: int) -> Tensor:
    """`[B, T, H d]` -> `[B, H, T, d]`."""
    return x.view(*x.shape[:2], -1, width).transpose(1, 2)


def _heads_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
