"""The voice branch: LogMel, attention-guided gathering and a linear classifier, trained on acted speech."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.fusion import AFG
from merfast.models.logmel import LogMel
from merfast.models.sound import HOP
from merfast.ops.ragged import Ragged, offsets_from, set_index, take
from merfast.types import EMOTIONS, SAMPLE_RATE, FloatArray
from training.corpora import Utterance
from training.data import DataError, check_disjoint
from training.loop import Schedule, fit
from training.media import read_audio
from training.metrics import weighted_f1

ATTENTION, HEADS = 64, 4  # of the gathering
KNEE = 0.8  # part of the mel axis, from below, that is stretched as one
WAVES = 4  # cosines that a random response is made of


@dataclass(frozen=True)
class VoiceRecipe:
    """How the voice branch is trained. Ranges are drawn from evenly, one number for each utterance.

    Attributes:
        schedule: see `training.loop`; an epoch is `steps` batches.
        batch, steps: utterances in a batch, batches in an epoch.
        seconds: longest part of an utterance that is used at once.
        corpus_power: a corpus is drawn from in proportion to that power of its size; its emotions equally often.
        smoothing: of the labels.
        dropout: before the classifier; the encoder has its own.
        tempo, warp: the logarithm of the speed, and of the stretch of the mel axis, up to so much either way.
        response: deviation in nepers of a smooth random frequency response.
        noisy, snr: fraction of the utterances with noise, and its level in dB below the voice.
        babble: fraction of the noises that are another utterance of the batch; the others are coloured noise.
        low_pass: fraction of the utterances that lose the bands above a random one of the upper 38 %.
    """

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=14, lr=3e-3, warmup=0.08, weight_decay=0.05, ema=0.995, clip=2.0, precision="fp32"
        )
    )
    batch: int = 32
    steps: int = 100
    seconds: float = 2.5
    corpus_power: float = 0.5
    smoothing: float = 0.05
    dropout: float = 0.2
    tempo: float = 0.1
    warp: float = 0.08
    response: float = 0.6
    noisy: float = 0.2
    snr: tuple[float, float] = (5.0, 30.0)
    babble: float = 0.25
    low_pass: float = 0.1

    def __post_init__(self) -> None:
        if self.batch < 2 or self.steps < 1 or not self.seconds > 0.5 or not 0 <= self.smoothing < 1:
            raise DataError(f"voice: expected batch > 1, steps > 0, seconds > 0.5, smoothing in [0, 1), got {self}")
        for name in ("noisy", "babble", "low_pass", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"voice {name}: got {getattr(self, name)}, expected 0 to 1")


class VoiceBranch(nn.Module):
    """Voice encoder, attention-guided gathering of its vectors, and a linear classifier.

    Args:
        encoder: the voice encoder.
        dropout: before the classifier, while training.
    """

    def __init__(self, encoder: LogMel, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.gather = AFG(encoder.dim, ATTENTION, HEADS)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(encoder.dim, len(EMOTIONS))

    def forward(self, frames: Ragged) -> Tensor:
        """Log-mel frames `[frames, 96]`, not normalised -> logits `[B, 6]`, in float32."""
        vectors = self.encoder.encode(self.encoder.normalised(frames))
        logits: Tensor = self.classify(self.dropout(self.gather(vectors)))
        return logits.float()


@dataclass(frozen=True, eq=False)
class Spectra:
    """Utterances and their log-mel frames, which need to be computed only once.

    Attributes:
        utterances: B of them.
        frames: `[frames, 96]` log-mel, not normalised; B sets.
    """

    utterances: tuple[Utterance, ...]
    frames: Ragged

    @staticmethod
    def read(
        utterances: Sequence[Utterance], encoder: LogMel, change: Callable[[FloatArray], FloatArray] | None = None
    ) -> Spectra:
        """Read the sound of utterances, and `change` it before the spectrum is taken.

        Raises:
            MediaError: a file cannot be decoded.
        """
        parts: list[Tensor] = []
        with torch.inference_mode():
            for utterance in utterances:
                audio = read_audio(utterance.file)
                samples = torch.from_numpy(audio if change is None else change(audio))
                parts.append(encoder.log_mel(Ragged(samples, torch.tensor([0, len(samples)]))).values)
        lengths = torch.tensor([len(part) for part in parts])
        empty = encoder.filters.new_zeros(0, encoder.filters.shape[1])
        return Spectra(tuple(utterances), Ragged(torch.cat([empty, *parts]), offsets_from(lengths.long())))

    def take(self, rows: Tensor) -> Ragged:
        """The frames of the utterances `rows` `[B']`."""
        return take(self.frames, rows)

    @property
    def labels(self) -> Tensor:
        """`[B]` int64, indices into `EMOTIONS`."""
        return torch.tensor([u.emotion for u in self.utterances])

    def weights(self, power: float) -> Tensor:
        """`[B]` how often each utterance is to be drawn; see `VoiceRecipe.corpus_power`."""
        corpora = [u.corpus for u in self.utterances]
        groups = [(u.corpus, u.emotion) for u in self.utterances]
        sizes = {c: corpora.count(c) for c in set(corpora)}
        counts = {g: groups.count(g) for g in set(groups)}
        classes = {c: sum(g[0] == c for g in counts) for c in sizes}
        return torch.tensor([sizes[g[0]] ** power / classes[g[0]] / counts[g] for g in groups])


def augment(spectra: Spectra, rows: Tensor, generator: torch.Generator, recipe: VoiceRecipe) -> Ragged:
    """Utterances `rows` `[B]` as another voice, room or microphone might give them: log-mel frames `[frames, 96]`.

    A part of the utterance is played at another speed, its mel axis stretched (VTLP, Jaitly & Hinton 2013), and
    given a smooth frequency response; then noise is added to the power, and the upper bands may be lost.
    """
    count, bands = len(rows), spectra.frames.values.shape[1]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    def chosen(fraction: float) -> Tensor:
        return uniform(0, 1) < fraction

    def response(deviation: float) -> Tensor:
        waves = torch.arange(1, WAVES + 1)
        shapes = torch.cos(torch.pi * waves[:, None] * (torch.arange(bands) + 0.5) / bands)
        scales = deviation / (1 + 0.5 * (waves - 1))
        return (torch.randn(count, WAVES, generator=generator) * scales) @ shapes  # [B, bands]

    # A part of it, at another speed.
    whole = spectra.frames.lengths[rows]
    speed = (recipe.tempo * uniform(-1, 1)).exp()[:, 0]
    most = round(recipe.seconds * SAMPLE_RATE / HOP)
    lengths = (whole / speed).long().clamp(min=1, max=most)
    start = uniform(0, 1)[:, 0] * (whole - lengths * speed).clamp(min=0)
    offsets = offsets_from(lengths)
    owner = set_index(offsets)
    place = torch.arange(len(owner)) - offsets[owner]
    last = (whole - 1)[owner]
    at = (place * speed[owner] + start[owner]).minimum(last)
    before = at.long()
    first = spectra.frames.offsets[rows][owner]
    frames = spectra.frames.values
    x = frames[first + before].lerp(frames[first + (before + 1).minimum(last)], (at - before)[:, None])

    # Another vocal tract: below the knee the mel axis is stretched, above it what is left is fitted in.
    stretch = (recipe.warp * uniform(-1, 1)).exp()
    band = torch.arange(bands, dtype=torch.float32)
    knee = KNEE * bands / stretch.clamp(min=1)
    above = knee * stretch + (band - knee) * (bands - 1 - knee * stretch) / (bands - 1 - knee)
    source = torch.where(band < knee, band * stretch, above).clamp(0, bands - 1)  # [B, bands]
    low = source.long().clamp(max=bands - 2)
    x = x.gather(1, low[owner]).lerp(x.gather(1, low[owner] + 1), (source - low)[owner])

    x = x + response(recipe.response)[owner]

    # Noise, `level` is its mean power over time and bands.
    power = x.exp()
    mean = power.new_zeros(count).index_add(0, owner, power.mean(1)) / lengths
    level = mean * 10 ** (-uniform(*recipe.snr)[:, 0] / 10) * chosen(recipe.noisy)[:, 0]
    colour = (response(2.0) - uniform(0, 4) * band / bands).softmax(1) * bands
    fluctuation = -torch.rand(x.shape, generator=generator).clamp(min=1e-6).log()  # of the power of Gaussian noise
    other = torch.randperm(count, generator=generator)
    voices = power[place % lengths[other][owner] + offsets[other][owner]] * (level / mean[other])[owner, None]
    noise = torch.where(chosen(recipe.babble)[owner], voices, (colour * level[:, None])[owner] * fluctuation)
    hiss = mean * 10 ** -uniform(3, 8)[:, 0]
    x = (power + noise + hiss[owner, None]).clamp(min=1e-12).log()

    edge = torch.where(chosen(recipe.low_pass), uniform(0.62, 1) * bands, torch.inf)
    x = x - (band - edge).clamp(min=0)[owner]
    return Ragged(x, offsets)


@torch.inference_mode()
def posteriors(branch: VoiceBranch, spectra: Spectra, batch: int = 32) -> Tensor:
    """`[B, 6]` of whole utterances."""
    was_training = branch.training
    branch.eval()
    try:
        rows = torch.arange(len(spectra.utterances))
        return torch.cat([branch(spectra.take(part)).softmax(1) for part in torch.split(rows, batch)])
    finally:
        branch.train(was_training)


def corpus_scores(utterances: Sequence[Utterance], predicted: Sequence[int]) -> dict[str, float]:
    """Weighted F1 of each corpus, "wf1_" and its name, and "wf1", their mean."""
    out: dict[str, float] = {}
    for corpus in sorted({u.corpus for u in utterances}):
        rows = [i for i, u in enumerate(utterances) if u.corpus == corpus]
        out[f"wf1_{corpus}"] = weighted_f1([utterances[i].emotion for i in rows], [predicted[i] for i in rows])
    return {"wf1": sum(out.values()) / len(out)} | out


def evaluate(branch: VoiceBranch, spectra: Spectra) -> dict[str, float]:
    """Weighted F1 of each corpus, "wf1_" and its name, and "wf1", their mean."""
    return corpus_scores(spectra.utterances, posteriors(branch, spectra).argmax(1).tolist())


def noisy(audio: FloatArray) -> FloatArray:
    """Samples with white noise 10 dB below them; the same noise for the same length."""
    noise = np.random.default_rng(len(audio)).standard_normal(len(audio), dtype=np.float32)
    level = np.sqrt(np.mean(np.square(audio), dtype=np.float64) / 10).astype(np.float32)
    return np.asarray(audio + level * noise, np.float32)


def muffled(audio: FloatArray) -> FloatArray:
    """Samples without anything above 4 kHz."""
    spectrum = np.fft.rfft(audio)
    spectrum[np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE) > 4_000] = 0
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


def robustness(branch: VoiceBranch, utterances: Sequence[Utterance]) -> dict[str, float]:
    """As `evaluate`, with `noisy` and `muffled` sound; "noisy_" and "muffled_" come before the names."""
    out: dict[str, float] = {}
    for change in (noisy, muffled):
        scores = evaluate(branch, Spectra.read(utterances, branch.encoder, change))
        out |= {f"{change.__name__}_{name}": value for name, value in scores.items()}
    return out


def train_voice(
    encoder: LogMel,
    train: Sequence[Utterance],
    val: Sequence[Utterance],
    recipe: VoiceRecipe,
    *,
    folder: Path,
    seed: int,
    fingerprint: str = "",
    progress: Callable[[str], None] | None = None,
) -> VoiceBranch:
    """Train an encoder with a fresh gathering and classifier; returns a copy in evaluation mode.

    Args:
        encoder: with the weights to start from.
        train: what is learned from.
        val: what is scored after each epoch, nothing if empty; nothing is chosen by it unless the schedule has
            patience.
        recipe: see there.
        folder, seed, fingerprint, progress: as `training.loop.fit` takes them.

    Raises:
        DataError: no utterances, a speaker is in both, or as `training.loop.fit`.
        MediaError: a file cannot be decoded.
    """
    if not train:
        raise DataError("voice: got no utterances to train on")
    check_disjoint((f"speaker {u.speaker!r}", part) for part, us in (("train", train), ("val", val)) for u in us)
    spectra, held_out = Spectra.read(train, encoder), Spectra.read(val, encoder)
    labels, weights = spectra.labels, spectra.weights(recipe.corpus_power)

    def batches(epoch: int, generator: torch.Generator) -> Iterator[tuple[Ragged, Tensor]]:
        for _ in range(recipe.steps):
            rows = torch.multinomial(weights, recipe.batch, replacement=True, generator=generator)
            yield augment(spectra, rows, generator, recipe), labels[rows]

    def loss(branch: nn.Module, batch: tuple[Ragged, Tensor]) -> Tensor:
        frames, labels = batch
        return functional.cross_entropy(branch(frames), labels, label_smoothing=recipe.smoothing)

    def judge(branch: nn.Module, epoch: int) -> dict[str, float]:
        assert isinstance(branch, VoiceBranch)
        return {"score" if k == "wf1" else k: v for k, v in evaluate(branch, held_out).items()}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branch = VoiceBranch(encoder, recipe.dropout)
    return fit(
        branch,
        recipe.schedule,
        folder=folder,
        seed=seed,
        batches=batches,
        steps=recipe.steps,
        loss=loss,
        score=judge if val else None,
        fingerprint=fingerprint,
        progress=progress,
    )
