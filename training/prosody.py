"""The prosody branch: statistics of the voice and a linear classifier; trained in seconds, so all folds in one go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.prosody import Prosody
from merfast.ops.ragged import Ragged
from merfast.types import EMOTIONS, SAMPLE_RATE, FloatArray
from training.corpora import Utterance
from training.data import DataError
from training.loop import Schedule, fit
from training.media import read_audio

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ProsodyRecipe:
    """How the prosody branch is trained.

    Attributes:
        schedule: see `training.loop`.
        batch: utterances.
        renderings: of each utterance, the first as it is, the others as `varied` makes them.
        corpus_power: an utterance counts in proportion to its corpus's size to that power less one.
        smoothing: of the labels.
        shortest: the least part of an utterance that a rendering keeps.
        resampled, speed: how often it is played at another speed; the logarithm of that, up to so much either way.
        noisy, snr: how often it has noise, and its level in dB below the voice.
        low_pass: how often it loses what is above a random frequency of 3 to 7 kHz.
    """

    schedule: Schedule = field(
        default_factory=lambda: Schedule(epochs=25, lr=3e-3, warmup=0.02, weight_decay=0.1, clip=0.0, precision="fp32")
    )
    batch: int = 128
    renderings: int = 7
    corpus_power: float = 0.5
    smoothing: float = 0.1
    shortest: float = 0.7
    resampled: float = 0.6
    speed: float = 0.2
    noisy: float = 0.5
    snr: tuple[float, float] = (8.0, 30.0)
    low_pass: float = 0.2

    def __post_init__(self) -> None:
        if self.batch < 2 or self.renderings < 1 or not 0 <= self.smoothing < 1 or not 0 < self.shortest <= 1:
            raise DataError(f"prosody: expected batch > 1, renderings > 0, fractions in [0, 1], got {self}")


class ProsodyBranch(nn.Module):
    """Prosody encoder and a linear classifier of its vector."""

    def __init__(self, encoder: Prosody) -> None:
        super().__init__()
        self.encoder = encoder
        self.classify = nn.Linear(encoder.dim, len(EMOTIONS))

    def forward(self, statistics: Tensor) -> Tensor:
        """Statistics `[B, 138]` -> logits `[B, 6]`."""
        logits: Tensor = self.classify(self.encoder.encode(statistics))
        return logits


def varied(audio: FloatArray, recipe: ProsodyRecipe, rng: np.random.Generator) -> FloatArray:
    """A rendering of an utterance: a part of it, perhaps as another speaker would sound, perhaps with coloured noise,
    perhaps without its highest sounds."""
    length = max(1, int(len(audio) * rng.uniform(recipe.shortest, 1.0)))
    start = int(rng.integers(0, len(audio) - length + 1))
    part = audio[start : start + length].astype(np.float64)
    if rng.random() < recipe.resampled:
        part = faster(part, math.exp(rng.uniform(-recipe.speed, recipe.speed)))
    frequencies = np.fft.rfftfreq(len(part), 1 / SAMPLE_RATE)
    if rng.random() < recipe.noisy:
        tint = (frequencies + 50.0) ** -rng.uniform(0.0, 1.0)  # from white to pink, in power twice that
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(len(part))) * tint, len(part))
        ratio = 10 ** (rng.uniform(*recipe.snr) / 10)
        part = part + noise * np.sqrt(np.mean(part**2) / (np.mean(noise**2) + 1e-20) / ratio)
    if rng.random() < recipe.low_pass:
        part = np.fft.irfft(np.fft.rfft(part) * (frequencies < rng.uniform(3000, 7000)), len(part))
    return part.astype(np.float32)


def faster(samples: DoubleArray, speed: float) -> DoubleArray:
    """Samples played `speed` times as fast: pitch, formants and tempo change together, as on tape."""
    spectrum = np.fft.rfft(samples)
    length = max(1, round(len(samples) / speed))
    stretched = np.zeros(length // 2 + 1, spectrum.dtype)
    shared = min(len(spectrum), len(stretched))
    stretched[:shared] = spectrum[:shared]
    return np.fft.irfft(stretched, length) * (length / len(samples))


@torch.inference_mode()
def statistics_of(utterances: Sequence[Utterance], encoder: Prosody, recipe: ProsodyRecipe, seed: int) -> Tensor:
    """Statistics `[renderings, B, 138]` of utterances.

    Raises:
        MediaError: a file cannot be decoded.
    """
    rows = []
    for number, utterance in enumerate(utterances):
        audio = read_audio(utterance.file)
        rng = np.random.default_rng([seed, number])
        sounds = [audio, *(varied(audio, recipe, rng) for _ in range(recipe.renderings - 1))]
        offsets = torch.tensor(np.cumsum([0, *map(len, sounds)]))
        rows.append(encoder.functionals(Ragged(torch.from_numpy(np.concatenate(sounds)), offsets)))
    return torch.stack(rows, 1)


@torch.inference_mode()
def posteriors(branch: ProsodyBranch, statistics: Tensor) -> Tensor:
    """`[B, 6]` of statistics `[B, 138]`."""
    logits: Tensor = branch.eval()(statistics)
    return logits.softmax(1)


def train_prosody(
    encoder: Prosody,
    statistics: Tensor,
    utterances: Sequence[Utterance],
    recipe: ProsodyRecipe,
    *,
    folder: Path,
    seed: int,
    fingerprint: str = "",
    progress: Callable[[str], None] | None = None,
) -> ProsodyBranch:
    """Train an encoder with a fresh classifier; returns a copy in evaluation mode.

    Args:
        encoder: its mean and deviation are set from the first rendering.
        statistics: `[renderings, B, 138]` of the utterances.
        utterances: what is learned from.
        recipe: see there.
        folder, seed, fingerprint, progress: as `training.loop.fit` takes them.

    Raises:
        DataError: fewer utterances than a batch, or as `training.loop.fit`.
    """
    steps = len(utterances) // recipe.batch
    if not steps:
        raise DataError(f"prosody: got {len(utterances)} utterances, expected at least a batch of {recipe.batch}")
    labels = torch.tensor([u.emotion for u in utterances])
    corpora = [u.corpus for u in utterances]
    sizes = {c: corpora.count(c) for c in set(corpora)}
    weights = torch.tensor([sizes[c] ** (recipe.corpus_power - 1) for c in corpora])
    weights = weights / weights.mean()
    encoder.mean.copy_(statistics[0].mean(0))
    encoder.deviation.copy_(statistics[0].std(0).clamp(min=1e-6))

    def batches(epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.split(order[: steps * recipe.batch], recipe.batch):
            which = torch.randint(len(statistics), (len(rows),), generator=generator)
            yield statistics[which, rows], labels[rows], weights[rows]

    def loss(branch: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y, w = batch
        each = functional.cross_entropy(branch(x), y, reduction="none", label_smoothing=recipe.smoothing)
        return (each * w).mean()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branch = ProsodyBranch(encoder)
    return fit(
        branch,
        recipe.schedule,
        folder=folder,
        seed=seed,
        batches=batches,
        steps=steps,
        loss=loss,
        fingerprint=fingerprint,
        progress=progress,
    )
