"""The fused model: encoders, fusion structures, joint decoding and the average, in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from merfast.config import BundleConfig
from merfast.errors import BundleError
from merfast.models.checkpoints import Checkpoint
from merfast.models.decoding import JointDecoder
from merfast.models.encoders import build_encoder
from merfast.models.foundation import FoundationEncoder
from merfast.models.fusion import STRUCTURES, explain, fuse, prepare_stages
from merfast.ops.afg import GatherGroup, Prepare
from merfast.ops.decode import Decode, Decoded, DecodeWeights, PrepareDecode, decode
from merfast.ops.ragged import Ragged, moved
from merfast.trace import span
from merfast.types import Batch

VALENCE_LIMIT = 5.0


class FusedModel(nn.Module):
    """Emotion and valence from ragged voice and face crops, as `config` describes it, with fresh weights.

    `forward` is `average(fuse(encode(...)))`; training keeps what `encode` gives and calls `decode` on it.

    Args:
        config: streams, fusion and preprocessing.
        checkpoints: stream name -> foundation model, for the streams of kind "transformers"; its weights are kept.

    Raises:
        BundleError: an encoder or its options are unknown, a checkpoint is missing, does not fit or belongs to no
            stream, or a stream's name cannot be used.
    """

    mix: Tensor

    def __init__(self, config: BundleConfig, checkpoints: Mapping[str, Checkpoint] | None = None) -> None:
        super().__init__()
        self.config = config
        given = dict(checkpoints or {})
        if unknown := sorted(given.keys() - {s.name for s in config.streams}):
            raise BundleError(f"got checkpoints of unknown streams {unknown}")
        for stream in config.streams:
            # Names become parts of tensor names, and must not collide with the module dictionary's own attributes.
            if not stream.name.isidentifier() or hasattr(nn.ModuleDict(), stream.name):
                raise BundleError(f"config stream {stream.name!r}: name cannot be used, expected a word like 'voice'")
        fusion, streams = config.fusion, config.streams
        self.encoders = nn.ModuleDict(
            {s.name: build_encoder(s, config.preprocessing, given.get(s.name)) for s in streams}
        )
        self.structures = nn.ModuleDict({name: STRUCTURES[name](streams, fusion) for name in fusion.structures})
        self.decoder = JointDecoder(len(fusion.structures), fusion.dim, fusion.valence_dim)
        mix = torch.from_numpy(np.array(fusion.mix, dtype=np.float32))
        self.register_buffer("mix", mix, persistent=False)
        self._gather: list[GatherGroup] | None = None
        self._decode: Decode | None = None

    def forward(self, audio: Ragged, crops: Ragged) -> tuple[Tensor, Tensor]:
        """Predict B clips; each may lack voice, face or both.

        Args:
            audio: `[N]` float32 samples at 16 kHz in B sets.
            crops: `[M, S, S, 3]` uint8 RGB in B sets.

        Returns:
            Posterior `[B, 6]`, rows summing to 1, and valence `[B]` in [-5, 5].

        Raises:
            ValueError: shapes or numbers of sets do not fit.
        """
        return self.average(self.fuse(self.encode(audio, crops)))

    def encode(self, audio: Ragged, crops: Ragged) -> dict[str, Ragged]:
        """Stream name -> feature vectors `[N', D_s]`.

        Raises:
            ValueError: shapes or numbers of sets do not fit.
        """
        if len(audio) != len(crops):
            raise ValueError(f"encode: got {len(audio)} sets of audio and {len(crops)} of crops, expected as many")
        inputs = {"audio": audio, "video": crops}
        features: dict[str, Ragged] = {}
        for s in self.config.streams:
            with span(f"encode {s.name}"):
                features[s.name] = self.encoders[s.name](inputs[s.modality])
        return features

    def fuse(self, features: Mapping[str, Ragged]) -> Tensor:
        """Feature vectors -> `[S, B, h]`, one vector of each structure for each clip.

        Raises:
            ValueError: shapes do not fit together.
            RuntimeError: in training mode after `accelerate`.
        """
        if self.training and self._gather is not None:
            raise RuntimeError("fuse: accelerated gatherings have no gradients; call accelerate(None) before training")
        return torch.stack(fuse(self.structures.values(), features, self._gather))

    def explain(self, features: Mapping[str, Ragged]) -> tuple[Tensor, dict[str, Tensor]]:
        """`fuse`, and how much each feature vector weighs in it: averaged over heads, and over structures by `mix`.

        Returns:
            `[S, B, h]` to the bit as `fuse` gives it, and stream name -> `[N]` fp32: those of a clip's vectors of all
            streams sum to 1, those of vectors that belong to no clip are 0.

        Raises:
            ValueError: shapes do not fit together.
        """
        vectors, weights = explain(self.structures.values(), features, self._gather)
        return torch.stack(vectors), {
            name: torch.stack([of[name].mean(1) for of in weights], 1) @ self.mix for name in features
        }

    def decode(self, features: Mapping[str, Ragged]) -> Decoded:
        """What each structure says, before the average and without clamping: for training."""
        decoded: Decoded = self.decoder(self.fuse(features))
        return decoded

    def average(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Structures' vectors `[S, B, h]` -> posterior `[B, 6]` and valence `[B]` in [-5, 5].

        Raises:
            ValueError: the vectors do not fit.
            RuntimeError: in training mode after `accelerate`.
        """
        if self._decode is None:
            temperature = self.config.fusion.temperature
            return decode(vectors, self.decoder.weights, self.mix, temperature, VALENCE_LIMIT)
        if self.training:
            raise RuntimeError("decode: an accelerated one has no gradients; call accelerate(None) before training")
        return self._decode(vectors)

    @property
    def foundations(self) -> dict[str, FoundationEncoder[Any]]:
        """The encoders that are foundation models, by stream; their weights have files of their own in a bundle."""
        return {name: e for name, e in self.encoders.items() if isinstance(e, FoundationEncoder)}

    def accelerate(self, prepare: Prepare | None, prepare_decode: PrepareDecode | None = None) -> None:
        """Run the gatherings, and `average`, on implementations of the ops, prepared with the present weights.

        The structures' gatherings that do not depend on each other are one call. None, also for one of the two, returns
        to the reference. Call it again after the weights change.
        """
        self._gather = None if prepare is None else prepare_stages(self.structures.values(), prepare)
        self._decode = None
        if prepare_decode is not None:
            fixed = DecodeWeights(*(w.detach() for w in self.decoder.weights))
            self._decode = prepare_decode(fixed, self.mix, self.config.fusion.temperature, VALENCE_LIMIT)


def inputs_of(batch: Batch, device: torch.device | str = "cpu") -> tuple[Ragged, Ragged]:
    """Audio and crops of a batch for `FusedModel`, sharing its memory on the CPU.

    Copies to a GPU go through pinned memory, and are queued on the current stream and not waited for.
    """

    def sets(array: np.ndarray | Tensor, offsets: np.ndarray) -> Ragged:
        if isinstance(array, np.ndarray):
            array = torch.from_numpy(array if array.flags.writeable else array.copy())
        return Ragged.of(moved(array, device), np.diff(offsets).tolist())

    return sets(batch.audio, batch.audio_offsets), sets(batch.crops, batch.crop_offsets)
