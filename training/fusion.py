"""The fused part of the model in training: data, augmentation of features, loss, and the ablations' replacements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.fusion import AFG, fuse
from merfast.models.layers import Layers
from merfast.models.model import FusedModel
from merfast.ops.decode import Decoded
from merfast.ops.ragged import Ragged, offsets_from, set_index, take
from merfast.types import EMOTIONS
from training.data import DataError, Sample
from training.recipe import TrainRecipe
from training.states import Stacks, gatherings
from training.store import Entry


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of W windows of N clips, with the clips' labels.

    Attributes:
        streams: stream name -> W sets of vectors, or of the states that the head gathers them from.
        clips: `[W]` int64, the clip that each window belongs to.
        seconds: `[W]` float64, duration of each window.
        emotions: `[N]` int64, -1 without a label.
        valences: `[N]` float32, NaN without a label.
    """

    streams: dict[str, Ragged | Stacks]
    clips: Tensor
    seconds: Tensor
    emotions: Tensor
    valences: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample], entries: Sequence[Entry]) -> FeatureSet:
        """Pack entries, one for each sample."""
        windows = [w for e in entries for w in e.windows]
        names = list(windows[0]) if windows else []
        streams = {name: _packed([w[name] for w in windows]) for name in names}
        emotions = [-1 if s.emotion is None else s.emotion for s in samples]
        valences = [float("nan") if s.valence is None else s.valence for s in samples]
        return cls(
            streams,
            torch.repeat_interleave(torch.tensor([len(e.windows) for e in entries], dtype=torch.int64)),
            torch.cat([(e.spans[:, 1] - e.spans[:, 0]) for e in entries]),
            torch.tensor(emotions, dtype=torch.int64),
            torch.tensor(valences, dtype=torch.float32),
        )

    def pick(self, rows: Tensor) -> dict[str, Ragged]:
        """The features of those windows: `[N, D]`, or `[N, L, D]` where they are states."""
        return {n: r.pick(rows) if isinstance(r, Stacks) else take(r, rows) for n, r in self.streams.items()}

    @property
    def depth(self) -> int:
        """Most vectors that are kept of one."""
        return max([r.depth for r in self.streams.values() if isinstance(r, Stacks)], default=1)

    def __len__(self) -> int:
        return len(self.clips)


def _packed(sets: Sequence[Tensor]) -> Ragged | Stacks:
    if sets[0].ndim == 3:
        return Stacks(tuple(sets))
    return Ragged(torch.cat(list(sets)), offsets_from(torch.tensor([len(s) for s in sets])))


def keep(x: Ragged, mask: Tensor) -> Ragged:
    """Only the rows where `mask` `[N]` is true."""
    counts = torch.zeros(len(x), dtype=torch.int64).index_add(0, set_index(x.offsets), mask.long())
    return Ragged(x.values[mask], offsets_from(counts))


def without(x: Ragged, absent: Tensor) -> Ragged:
    """With the sets where `absent` `[B]` is true emptied."""
    return keep(x, ~absent[set_index(x.offsets)])


class Head(nn.Module):
    """All of a `FusedModel` that learns, and what its loss learns: features in, what each structure says out.

    Of the encoders, these are the gatherings over their layers.

    Args:
        model: whose structures, decoder and gatherings are used, not copied.
        recipe: for the ablations.
    """

    mix: Tensor

    def __init__(self, model: FusedModel, recipe: TrainRecipe) -> None:
        super().__init__()
        self.structures, self.decoder = model.structures, model.decoder
        self.layers = nn.ModuleDict(gatherings(model))
        self.parallel = recipe.decoding == "parallel"
        if recipe.gathering == "mean":
            for parent in list(self.structures.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, AFG):
                        setattr(parent, name, Mean(child.absent))
        count = len(model.config.fusion.structures)
        self.log_variance = nn.Parameter(torch.zeros(2, count), requires_grad=recipe.weighting == "uncertainty")
        self.register_buffer("mix", model.mix.clone(), persistent=False)

    def forward(self, features: Mapping[str, Ragged]) -> Decoded:
        z = torch.stack(fuse(self.structures.values(), self.gather(features)))
        out: Decoded = self.decoder(z)
        if self.parallel:
            # The valence head sees a constant in the posterior's place: it learns nothing from the emotions' side.
            blind = torch.full_like(out.posterior, 1 / len(EMOTIONS))
            return Decoded(out.logits, out.posterior, self._valence(z, blind))
        return out

    def gather(self, features: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """States `[N, L, D]` of layers -> `[N, D]`, as the encoder does it; other features as they are."""
        out = dict(features)
        for name, layers in self.layers.items():
            states, offsets = features[name].values, features[name].offsets
            vectors = cast(Layers, layers).gather(state.float() for state in states.unbind(1))
            out[name] = Ragged(vectors, offsets)
        return out

    def _valence(self, z: Tensor, posterior: Tensor) -> Tensor:
        w = self.decoder.weights
        hidden = torch.einsum("sbj,smj->sbm", torch.cat([z, posterior], -1), w.hidden_weight) + w.hidden_bias[:, None]
        valence = torch.einsum("sbm,sm->sb", functional.gelu(hidden), w.valence_weight) + w.valence_bias[:, None]
        return valence + torch.einsum("sbc,sc->sb", posterior, w.class_valence)


class Mean(nn.Module):
    """The ablation's gathering: the plain mean of a set, `absent` where it is empty."""

    def __init__(self, absent: nn.Parameter) -> None:
        super().__init__()
        self.absent = absent

    def forward(self, x: Ragged, guide: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        owner = set_index(x.offsets, len(x.values))  # what belongs to none is one more set, which is dropped
        if attention is not None:
            shares = functional.pad(1 / x.lengths.clamp(min=1), (0, 1))  # [B + 1]
            attention.copy_(shares[owner][:, None].expand_as(attention))
        sums = x.values.new_zeros(len(x) + 1, x.values.shape[1]).index_add(0, owner, x.values)[:-1]
        mean = sums / x.lengths.clamp(min=1)[:, None]
        return torch.where((x.lengths > 0)[:, None], mean, self.absent)


@dataclass(frozen=True, eq=False)
class Example:
    """A batch of windows."""

    features: dict[str, Ragged]
    emotions: Tensor  # [B], -1 without
    valences: Tensor  # [B], NaN without


class Batches:
    """Augmented batches of a training set: a fresh order, renderings, and gaps in every epoch.

    Args:
        renderings: the same clips as they are and, perhaps, corrupted.
        modalities: stream name -> "audio" or "video".
        recipe: how.
    """

    def __init__(self, renderings: Sequence[FeatureSet], modalities: Mapping[str, str], recipe: TrainRecipe) -> None:
        if len({len(r) for r in renderings}) != 1:
            raise DataError(f"renderings: got {[len(r) for r in renderings]} windows, expected as many in each")
        self.renderings, self.modalities, self.recipe = renderings, modalities, recipe
        self.scale = {name: _scale(r) for name, r in self._first.items()}

    @property
    def _first(self) -> dict[str, Ragged | Stacks]:
        return self.renderings[0].streams

    def __len__(self) -> int:
        return max(1, len(self.renderings[0]) // self.recipe.batch)

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[Example]:
        data = self.renderings[0]
        order = torch.randperm(len(data), generator=generator)
        for b in range(len(self)):
            rows = order[b * self.recipe.batch : (b + 1) * self.recipe.batch]
            clips = data.clips[rows]
            yield Example(self._features(rows, generator), data.emotions[clips], data.valences[clips])

    def _features(self, rows: Tensor, generator: torch.Generator) -> dict[str, Ragged]:
        recipe, count = self.recipe, len(rows)

        def chance() -> Tensor:
            return torch.rand(count, generator=generator)

        noisy, dropped = chance() < recipe.noisy, chance()
        corrupted = self.renderings[-1].pick(rows)
        absent = {
            "audio": dropped < recipe.drop_audio,
            "video": dropped > 1 - recipe.drop_video,
        }
        present = {
            m: torch.stack([self._first[n].lengths[rows] > 0 for n, of in self.modalities.items() if of == m]).any(0)
            for m in set(self.modalities.values())
        }
        out = {}
        for name, clean in self.renderings[0].pick(rows).items():
            mine = self.modalities[name]
            others = [has for m, has in present.items() if m != mine]
            x = choose(clean, corrupted[name], noisy)
            # What is alone is not dropped.
            gone = absent[mine] & torch.stack(others).any(0) if others else torch.zeros(count, dtype=torch.bool)
            x = without(x, gone)
            mask = torch.rand(len(x.values), generator=generator) >= recipe.frame_dropout
            x = keep(x, mask | _firsts(x))
            noise = torch.randn(x.values.shape, generator=generator)
            out[name] = Ragged(x.values + recipe.feature_noise * self.scale[name] * noise, x.offsets)
        return out


def _scale(x: Ragged | Stacks) -> float | Tensor:
    """Standard deviation of the numbers, or of each layer's, `[L, 1]`."""
    if isinstance(x, Stacks):
        return x.std()
    return float(x.values.std()) if x.values.numel() else 1.0


def choose(a: Ragged, b: Ragged, second: Tensor) -> Ragged:
    """Set k of `b` where `second[k]`, else of `a`."""
    both = Ragged(torch.cat([a.values, b.values]), torch.cat([a.offsets, b.offsets[1:] + len(a.values)]))
    return take(both, torch.arange(len(a)) + second.long() * len(a))


def _firsts(x: Ragged) -> Tensor:
    """True for one row of each set, so that dropout never empties it."""
    mask = torch.zeros(len(x.values), dtype=torch.bool)
    mask[x.offsets[:-1][x.lengths > 0]] = True
    return mask


def class_weights(emotions: Tensor, power: float) -> Tensor:
    """`[6]` weights of the classes in the loss, of mean 1 over the labelled clips: inverse frequency to a power."""
    counts = torch.bincount(emotions[emotions >= 0], minlength=len(EMOTIONS)).float()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0.0)
    total = (weights * counts).sum()
    return weights * counts.sum() / total if total > 0 else weights


def class_valences(emotions: Tensor, valences: Tensor) -> Tensor | None:
    """`[6]` mean valence of each class, where mu starts; None without any label. A class without any gets the mean."""
    known = ~valences.isnan()
    if not known.any():
        return None
    out = torch.full((len(EMOTIONS),), float(valences[known].mean()))
    for c in range(len(EMOTIONS)):
        mine = known & (emotions == c)
        if mine.any():
            out[c] = valences[mine].mean()
    return out


def loss_terms(head: Head, batch: Example, weights: Tensor, smoothing: float) -> dict[str, Tensor]:
    """exp(-s_e) CE + 0.5 exp(-s_v) MSE + 0.5 (s_e + s_v), summed over the structures; a clip counts where labelled.

    Source: arXiv 1705.07115 for the weighting by learned uncertainty.
    """
    out: Decoded = head(batch.features)
    known, valued = batch.emotions >= 0, ~batch.valences.isnan()
    structures = len(out.logits)
    s_e, s_v = head.log_variance
    zero = out.logits.sum() * 0.0
    emotion, valence = zero.expand(structures), zero.expand(structures)
    if known.any():
        each = torch.stack(
            [
                functional.cross_entropy(
                    logits[known].float(), batch.emotions[known], weight=weights, label_smoothing=smoothing
                )
                for logits in out.logits
            ]
        )
        emotion = each
    if valued.any():
        valence = (out.valence[:, valued].float() - batch.valences[valued]).square().mean(1)
    total = (-s_e).exp() * emotion + 0.5 * (-s_v).exp() * valence + 0.5 * (s_e + s_v)
    return {"loss": total.sum(), "cross_entropy": emotion.mean(), "mse": valence.mean()}


@torch.inference_mode()
def predict(
    head: Head, data: FeatureSet, *, absent: Sequence[str] = (), modalities: Mapping[str, str], batch: int = 256
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What each structure says of each clip, windows combined by their duration as the engine does.

    Args:
        head: the model.
        data: W windows of N clips.
        absent: modalities to leave out.
        modalities: stream name -> modality.
        batch: windows at a time; fewer where the states of layers are many times as much.

    Returns:
        Posteriors `[S, N, 6]` and valences `[S, N]` in [-5, 5]; NaN for a clip that has neither modality left.
    """
    head.eval()
    posteriors, valences = [], []
    batch = max(1, batch // data.depth)
    for start in range(0, len(data), batch):
        rows = torch.arange(start, min(start + batch, len(data)))
        features = data.pick(rows)
        for name in features:
            if modalities[name] in absent:
                features[name] = without(features[name], torch.ones(len(rows), dtype=torch.bool))
        out = head(features)
        empty = torch.stack([r.lengths for r in features.values()]).sum(0) == 0
        posteriors.append(out.posterior.double().masked_fill(empty[:, None], float("nan")))
        valences.append(out.valence.double().masked_fill(empty, float("nan")))
    posterior, valence = torch.cat(posteriors, 1), torch.cat(valences, 1).clamp(-5, 5)  # [S, W, 6], [S, W]
    weight = torch.where(posterior[0, :, 0].isnan(), 0.0, data.seconds)
    total = torch.zeros(len(data.emotions), dtype=torch.float64).index_add(0, data.clips, weight)

    def combined(x: Tensor) -> npt.NDArray[np.float64]:
        flat = (x.nan_to_num() * (weight[:, None] if x.ndim == 3 else weight)).transpose(0, 1)
        sums = torch.zeros(len(total), *flat.shape[1:], dtype=torch.float64).index_add(0, data.clips, flat)
        mean = sums / torch.where(total > 0, total, torch.nan).reshape(-1, *[1] * (flat.ndim - 1))
        return mean.transpose(0, 1).numpy()

    return combined(posterior), combined(valence)
