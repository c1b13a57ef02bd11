"""The three fusion structures: feature sequences of every stream in, one vector for each clip out.

All are built on attention-guided feature gathering (`merfast.ops.afg`). They follow the outline of arXiv 2309.07925,
whose abstract alone was available; the inside is merfast's reconstruction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import cast

import torch
from torch import Tensor, nn

from merfast.config import FusionConfig, StreamConfig
from merfast.ops.afg import AFGWeights, GatherGroup, Gathering, Prepare, afg
from merfast.ops.ragged import Ragged, apart, offsets_from, to_rows, union

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

    @property
    def weights(self) -> AFGWeights:
        """The parameters as the op takes them."""
        return AFGWeights(self.weight, self.bias, self.score, self.absent, self.guide_weight)

    def forward(self, x: Ragged, guide: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        """Sets of rows `[N, dim]`, and `[B, guide_dim]` if guided -> `[B, dim]`, by the reference.

        Args:
            attention: `[N, heads]` fp32, written to if given.

        Raises:
            ValueError: shapes do not fit together.
        """
        return afg(x.values, x.offsets, self.weights, guide, attention)


class Structure(nn.Module, ABC):
    """A fusion structure: `forward(features)` takes stream name -> `Ragged` `[N, D_s]` and gives `[B, h]`.

    It works in stages. The gatherings of a stage do not depend on each other, so they can be one call; see `fuse`. Any
    clip may lack any stream; a clip without any gives a learned vector.
    """

    def __init__(self, streams: Sequence[StreamConfig], fusion: FusionConfig) -> None:
        super().__init__()
        self.names = {m: [s.name for s in streams if s.modality == m] for m in MODALITIES}
        self.modalities = [m for m in MODALITIES if self.names[m]]
        # Each projection's bias is its stream's embedding: it tells the streams apart in a union.
        self.project = nn.ModuleDict({s.name: nn.Linear(s.dim, fusion.dim) for s in streams})
        self.heads = fusion.heads
        self._widths = (fusion.dim, fusion.attention_dim, fusion.heads)

    @property
    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """The gatherings of each stage."""

    @abstractmethod
    def steps(self, features: Mapping[str, Ragged]) -> Generator[list[Gathering], list[Tensor], Tensor]:
        """Asks for the gatherings of one stage after another, in the order of `stages`, and returns `[B, h]`."""

    @abstractmethod
    def follow(self, features: Mapping[str, Ragged], attention: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """How much each row of each stream weighs in each head's slice of the result.

        Args:
            features: as for `forward`.
            attention: `[N, heads]` of the rows of each gathering of each stage.

        Returns:
            Stream name -> `[N_s, heads]`; a clip's rows of all streams sum to 1 for each head.
        """

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        return fuse([self], features)[0]

    def gathering(self, guided: bool = False) -> AFG:
        return AFG(*self._widths, guide_dim=self._widths[0] if guided else None)

    def frames(self, features: Mapping[str, Ragged], name: str) -> Ragged:
        """One stream's frames `[N, h]`."""
        return replace(features[name], values=self.project[name](features[name].values))


class Flat(Structure):
    """The frames of all streams as one set."""

    def __init__(self, streams: Sequence[StreamConfig], fusion: FusionConfig) -> None:
        super().__init__(streams, fusion)
        self.gather = self.gathering()

    @property
    def stages(self) -> list[list[nn.Module]]:
        return [[self.gather]]

    def steps(self, features: Mapping[str, Ragged]) -> Generator[list[Gathering], list[Tensor], Tensor]:
        (vector,) = yield [asked(union([self.frames(features, name) for name in self.project]))]
        return vector

    def follow(self, features: Mapping[str, Ragged], attention: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        ((rows,),) = attention
        return dict(zip(self.project, apart(rows, [features[name] for name in self.project]), strict=True))


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

    @property
    def stages(self) -> list[list[nn.Module]]:
        every: list[list[nn.Module]]
        every = [list(self.gather_frames.values()), list(self.gather_streams.values()), [self.gather_modalities]]
        return [stage for stage in every if stage]

    def steps(self, features: Mapping[str, Ragged]) -> Generator[list[Gathering], list[Tensor], Tensor]:
        has = self._has(features)
        frames = yield [asked(self.frames(features, name)) for name in self.gather_frames]
        streams = dict(zip(self.gather_frames, frames, strict=True))
        vectors = {m: streams[self.names[m][0]] for m in self.modalities}
        if self.gather_streams:
            sets = [[(streams[name], has[name]) for name in self.names[m]] for m in self.gather_streams]
            gathered = yield [asked(elements(*zip(*members, strict=True))) for members in sets]
            vectors |= dict(zip(self.gather_streams, gathered, strict=True))
        (vector,) = yield [asked(elements(list(vectors.values()), self._present(has)))]
        return vector

    def follow(self, features: Mapping[str, Ragged], attention: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        frames, (modalities,) = attention[0], attention[-1]
        has = self._has(features)
        weights = dict(zip(self.modalities, of_elements(modalities, self._present(has)), strict=True))
        streams = {self.names[m][0]: weights[m] for m in self.modalities}  # of those that stand for their modality
        for m, of_streams in zip(self.gather_streams, attention[1] if self.gather_streams else (), strict=True):
            each = of_elements(of_streams, [has[name] for name in self.names[m]])
            streams |= {name: weights[m] * share for name, share in zip(self.names[m], each, strict=True)}
        return {
            name: rows * to_rows(streams[name], features[name])
            for name, rows in zip(self.gather_frames, frames, strict=True)
        }

    def _has(self, features: Mapping[str, Ragged]) -> dict[str, Tensor]:
        """Stream name -> `[B]` whether a clip has it."""
        return {name: features[name].lengths > 0 for name in self.gather_frames}

    def _present(self, has: Mapping[str, Tensor]) -> list[Tensor]:
        """`[B]` of each modality, whether a clip has any stream of it."""
        return [torch.stack([has[name] for name in self.names[m]]).any(0) for m in self.modalities]


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

    @property
    def stages(self) -> list[list[nn.Module]]:
        every: list[list[nn.Module]]
        every = [list(self.gather_guide.values()), list(self.gather_frames.values()), [self.gather_elements]]
        return [stage for stage in every if stage]

    def steps(self, features: Mapping[str, Ragged]) -> Generator[list[Gathering], list[Tensor], Tensor]:
        sets = {m: union([self.frames(features, name) for name in self.names[m]]) for m in self.modalities}
        guides: dict[str, Tensor] = {}
        if self.gather_guide:
            guiding = yield [asked(sets[m]) for m in self.gather_guide]
            guides = dict(zip(self.gather_guide, guiding, strict=True))
        others = dict(zip(MODALITIES, reversed(MODALITIES), strict=True))
        vectors = yield [asked(sets[m], guides.get(others[m])) for m in self.modalities]
        if guides:
            vectors = [*vectors, vectors[0] * vectors[1]]
        (vector,) = yield [asked(elements(vectors, self._present([sets[m].lengths for m in self.modalities])))]
        return vector

    def follow(self, features: Mapping[str, Ragged], attention: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """The product of both modalities counts as half of each; the guides do not count."""
        frames, (gathered,) = attention[-2:]
        parts = {m: [features[name] for name in self.names[m]] for m in self.modalities}
        lengths = [torch.stack([x.lengths for x in parts[m]]).sum(0) for m in self.modalities]
        weights = of_elements(gathered, self._present(lengths))
        if self.gather_guide:
            *weights, product = weights
            weights = [weight + product / 2 for weight in weights]
        out: dict[str, Tensor] = {}
        for m, rows, weight in zip(self.modalities, frames, weights, strict=True):
            for name, x, own in zip(self.names[m], parts[m], apart(rows, parts[m]), strict=True):
                out[name] = own * to_rows(weight, x)
        return out

    def _present(self, lengths: Sequence[Tensor]) -> list[Tensor]:
        """`[B]` of each element, whether a clip has it, by the rows `[B]` that it has of each modality."""
        present = [n > 0 for n in lengths]
        return [*present, present[0] & present[1]] if self.gather_guide else present


STRUCTURES: dict[str, type[Structure]] = {"flat": Flat, "hierarchical": Hierarchical, "guided": Guided}


def fuse(
    structures: Iterable[nn.Module], features: Mapping[str, Ragged], groups: Sequence[GatherGroup] | None = None
) -> list[Tensor]:
    """Run structures side by side: one vector `[B, h]` of each.

    Args:
        structures: at least one `Structure`.
        features: stream name -> `[N, D_s]`.
        groups: what `prepare_stages` gave for the same structures, None for the structures' own modules.

    Raises:
        ValueError: shapes do not fit together.
    """
    members = [cast("Structure", s) for s in structures]
    calls = [_by_modules(stage) for stage in stages_of(members)] if groups is None else groups
    runs = {k: structure.steps(features) for k, structure in enumerate(members)}
    pending = {k: next(run) for k, run in runs.items()}
    vectors: dict[int, Tensor] = {}
    for gather in calls:
        results = iter(gather([gathering for wanted in pending.values() for gathering in wanted]))
        for k, wanted in list(pending.items()):
            try:
                pending[k] = runs[k].send([next(results) for _ in wanted])
            except StopIteration as end:
                vectors[k] = end.value
                del pending[k]
    return [vectors[k] for k in range(len(members))]


def explain(
    structures: Iterable[nn.Module], features: Mapping[str, Ragged], groups: Sequence[GatherGroup] | None = None
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """`fuse`, and the attention followed back to where it came from.

    Args:
        structures, features, groups: as for `fuse`.

    Returns:
        One vector `[B, h]` of each structure, and for each: stream name -> `[N_s, heads]`, see `Structure.follow`.
    """
    members = [cast("Structure", s) for s in structures]
    stages: list[list[Tensor]] = []

    def watched(gather: GatherGroup, calls: Sequence[Gathering]) -> list[Tensor]:
        heads = members[0].heads
        stages.append([c.x.new_empty(len(c.x), heads, dtype=torch.float32) for c in calls])
        return gather([c._replace(attention=a) for c, a in zip(calls, stages[-1], strict=True)])

    if groups is None:
        groups = [_by_modules(stage) for stage in stages_of(members)]
    vectors = fuse(members, features, [partial(watched, gather) for gather in groups])
    rest = [iter(stage) for stage in stages]  # of each stage, what belongs to the structures still to come
    weights = []
    for structure in members:
        own = [[next(of) for _ in wanted] for of, wanted in zip(rest, structure.stages, strict=False)]
        weights.append(structure.follow(features, own))
    return vectors, weights


def stages_of(structures: Sequence[Structure]) -> list[list[nn.Module]]:
    """The gatherings of each stage of structures that run side by side."""
    each = zip_longest(*(structure.stages for structure in structures), fillvalue=())
    return [[gathering for stage in stages for gathering in stage] for stages in each]


def prepare_stages(structures: Iterable[nn.Module], prepare: Prepare) -> list[GatherGroup]:
    """Bind an implementation of the op to the present weights of each stage; forward only."""
    groups = []
    for stage in stages_of([cast("Structure", s) for s in structures]):
        weights = [gathering.weights for gathering in stage if isinstance(gathering, AFG)]
        groups.append(prepare([AFGWeights(*(None if w is None else w.detach() for w in of)) for of in weights]))  # type: ignore[arg-type]
    return groups


def asked(x: Ragged, guide: Tensor | None = None) -> Gathering:
    return Gathering(x.values, x.offsets, guide)


def _by_modules(stage: Sequence[nn.Module]) -> GatherGroup:
    return lambda calls: [m(Ragged(c.x, c.offsets), c.guide, c.attention) for m, c in zip(stage, calls, strict=True)]


def elements(vectors: Sequence[Tensor], present: Sequence[Tensor]) -> Ragged:
    """Set b holds, in order, the b-th rows of those `vectors` `[B, h]` that are `present` `[B]` for it.

    The other rows come after all of these and belong to no set: asking how many they are would wait for the device.
    """
    mask = torch.stack(list(present), 1)  # [B, K]
    offsets = offsets_from(mask.sum(1))
    rows, kept = torch.stack(list(vectors), 1).flatten(0, 1), mask.flatten()  # [B K, h]
    places = torch.where(kept, kept.cumsum(0), offsets[-1] + (~kept).cumsum(0)) - 1
    return Ragged(torch.empty_like(rows).index_copy(0, places, rows), offsets)


def of_elements(rows: Tensor, present: Sequence[Tensor]) -> list[Tensor]:
    """`[B, ...]` of each of the K vectors, out of what belongs to the rows `[B K, ...]` of their `elements`."""
    numbers = torch.arange(len(rows), device=rows.device).view(-1, len(present), 1)
    origin = elements(numbers.unbind(1), present).values[:, 0]
    placed = torch.empty_like(rows).index_copy(0, origin, rows)
    return [placed[k :: len(present)] for k in range(len(present))]
