"""The three fusion structures: feature sequences of every stream in, one vector for each clip out.

All are built on attention-guided feature gathering (`merfast.ops.afg`). They follow the outline of arXiv 2309.07925,
whose abstract alone was available; the inside is merfast's reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from merfast.config import FusionConfig, StreamConfig
from merfast.ops.afg import AFGWeights, Gather, Prepare, afg
from merfast.ops.ragged import Ragged, offsets_from, union

MODALITIES = ("audio", "video")


class AFG(nn.Module):
    """One gathering with its parameters; see `merfast.ops.afg` for the formula.

    Args:
        dim: width of the rows and of the result.
        attention_dim: width of the energies' hidden layer.
        heads: each with its own energies over its own slice of the rows.
        guide_dim: width of the guide vector, None without one.
    """

    def __init__(self, dim: int, attention_dim: int, heads: int, guide_dim: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(attention_dim, dim))
        self.bias = nn.Parameter(torch.zeros(attention_dim))
        self.score = nn.Parameter(torch.empty(heads, attention_dim))
        self.absent = nn.Parameter(torch.empty(dim))
        self.guide_weight = None if guide_dim is None else nn.Parameter(torch.empty(attention_dim, guide_dim))
        for matrix in (self.weight, self.score, self.guide_weight):
            if matrix is not None:
                nn.init.xavier_uniform_(matrix)
        # Not normal_: on the meta device, where bundles are checked, that makes torch import for a second.
        nn.init.uniform_(self.absent, -0.1, 0.1)
        self._gather: Gather | None = None

    @property
    def weights(self) -> AFGWeights:
        """The parameters as the op takes them."""
        return AFGWeights(self.weight, self.bias, self.score, self.absent, self.guide_weight)

    def accelerate(self, prepare: Prepare | None) -> None:
        """Run on an implementation of the op, prepared with the present weights; None returns to the reference.

        Implementations are forward only and keep the weights they were prepared with.
        """
        fixed = (None if w is None else w.detach() for w in self.weights)
        self._gather = None if prepare is None else prepare(AFGWeights(*fixed))  # type: ignore[arg-type]

    def forward(self, x: Ragged, guide: Tensor | None = None) -> Tensor:
        """Sets of rows `[N, dim]`, and `[B, guide_dim]` if guided -> `[B, dim]`.

        Raises:
            ValueError: shapes do not fit together.
            RuntimeError: in training mode after `accelerate`.
        """
        if self._gather is None:
            return afg(x.values, x.offsets, self.weights, guide)
        if self.training:
            raise RuntimeError("AFG: an accelerated gathering has no gradients; call accelerate(None) before training")
        return self._gather(x.values, x.offsets, guide)


class Structure(nn.Module):
    """A fusion structure: `forward(features)` takes stream name -> `Ragged` `[N, D_s]` and gives `[B, h]`.

    Any clip may lack any stream; a clip without any gives a learned vector.
    """

    def __init__(self, streams: Sequence[StreamConfig], fusion: FusionConfig) -> None:
        super().__init__()
        self.names = {m: [s.name for s in streams if s.modality == m] for m in MODALITIES}
        self.modalities = [m for m in MODALITIES if self.names[m]]
        # Each projection's bias is its stream's embedding: it tells the streams apart in a union.
        self.project = nn.ModuleDict({s.name: nn.Linear(s.dim, fusion.dim) for s in streams})
        self._widths = (fusion.dim, fusion.attention_dim, fusion.heads)

    def gathering(self, guided: bool = False) -> AFG:
        return AFG(*self._widths, guide_dim=self._widths[0] if guided else None)

    def frames(self, features: Mapping[str, Ragged], name: str) -> Ragged:
        """One stream's frames `[N, h]`."""
        return Ragged(self.project[name](features[name].values), features[name].offsets)


class Flat(Structure):
    """The frames of all streams as one set."""

    def __init__(self, streams: Sequence[StreamConfig], fusion: FusionConfig) -> None:
        super().__init__(streams, fusion)
        self.gather = self.gathering()

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        vector: Tensor = self.gather(union([self.frames(features, name) for name in self.project]))
        return vector


class Hierarchical(Structure):
    """The frames of each stream, then the streams of each modality, then the modalities.

    The one stream of a modality stands for it: a set of one gathers to its only element.
    """

    def __init__(self, streams: Sequence[StreamConfig], fusion: FusionConfig) -> None:
        super().__init__(streams, fusion)
        self.gather_frames = nn.ModuleDict({s.name: self.gathering() for s in streams})
        several = [m for m in self.modalities if len(self.names[m]) > 1]
        self.gather_streams = nn.ModuleDict({m: self.gathering() for m in several})
        self.gather_modalities = self.gathering()

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        vectors: list[Tensor] = []
        present: list[Tensor] = []
        for modality in self.modalities:
            names = self.names[modality]
            each = [self.gather_frames[name](self.frames(features, name)) for name in names]
            has = [features[name].lengths > 0 for name in names]
            if modality in self.gather_streams:
                each = [self.gather_streams[modality](elements(each, has))]
            vectors += each
            present.append(torch.stack(has).any(0))
        gathered: Tensor = self.gather_modalities(elements(vectors, present))
        return gathered


class Guided(Structure):
    """Each modality's frames guided by the other modality's vector, then {audio, video, audio * video}.

    The guide is an unguided gathering of the other modality, its absent vector where a clip lacks that. Without any
    stream of the other modality there is no guide.
    """

    def __init__(self, streams: Sequence[StreamConfig], fusion: FusionConfig) -> None:
        super().__init__(streams, fusion)
        both = len(self.modalities) == len(MODALITIES)
        self.gather_guide = nn.ModuleDict({m: self.gathering() for m in self.modalities if both})
        self.gather_frames = nn.ModuleDict({m: self.gathering(guided=both) for m in self.modalities})
        self.gather_elements = self.gathering()

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        sets = {m: union([self.frames(features, name) for name in self.names[m]]) for m in self.modalities}
        guides = {m: gather(sets[m]) for m, gather in self.gather_guide.items()}
        others = dict(zip(MODALITIES, reversed(MODALITIES), strict=True))
        vectors = [self.gather_frames[m](sets[m], guides.get(others[m])) for m in self.modalities]
        present = [sets[m].lengths > 0 for m in self.modalities]
        if guides:
            vectors.append(vectors[0] * vectors[1])
            present.append(present[0] & present[1])
        gathered: Tensor = self.gather_elements(elements(vectors, present))
        return gathered


STRUCTURES: dict[str, type[Structure]] = {"flat": Flat, "hierarchical": Hierarchical, "guided": Guided}


def elements(vectors: Sequence[Tensor], present: Sequence[Tensor]) -> Ragged:
    """Set b holds, in order, the b-th rows of those `vectors` `[B, h]` that are `present` `[B]` for it."""
    mask = torch.stack(list(present), 1)  # [B, K]
    return Ragged(torch.stack(list(vectors), 1)[mask], offsets_from(mask.sum(1)))
