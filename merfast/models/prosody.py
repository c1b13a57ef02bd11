"""Prosody encoder of the mini bundle: statistics of pitch, loudness and timbre over a set, then two small layers.

Such statistics, in the manner of the Geneva minimalistic set (Eyben et al. 2016, doi 10.1109/TAFFC.2015.2457417), carry
over to unknown speakers better than what a network finds by itself in a few hours of speech.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.logmel import mel_filters
from merfast.ops.ragged import Ragged, offsets_from
from merfast.types import SAMPLE_RATE

FRAME, HOP, FFT = 800, 320, 2048  # samples: 50 ms every 20 ms
MELS, CEPSTRA = 40, 20
LOWEST, HIGHEST = 50.0, 7000.0  # Hz, of the bands
PITCH = (60.0, 500.0)  # Hz
VOICED = 0.5  # height of the autocorrelation's peak from which a frame counts as voiced
ACTIVE = 7.0  # nepers of power below the loudest frame, down to which a frame counts as speech
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MODULATIONS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0)  # Hz, edges of the bands
SPREAD = 4.0  # deviations from the training set's mean, beyond which a statistic is cut off
CHUNK = 1024  # frames at a time
FUNCTIONALS = 138


class Prosody(nn.Module):
    """Voice encoder: one vector for each set.

    Args:
        dim: width of the vector.
        dropout: on the hidden layer and on the vector, and a fifth of it on the statistics, while training.

    The buffers `mean` and `deviation`, both `[138]`, are those of the training set's statistics.
    """

    mean: Tensor
    deviation: Tensor
    window: Tensor
    filters: Tensor
    cosines: Tensor
    own: Tensor

    def __init__(self, dim: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("mean", torch.zeros(FUNCTIONALS))
        self.register_buffer("deviation", torch.ones(FUNCTIONALS))
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
        own = np.fft.irfft(np.abs(np.fft.rfft(hann, FFT)) ** 2)[: _longest() + 1]
        cosines = np.cos(np.pi / MELS * (np.arange(MELS)[:, None] + 0.5) * np.arange(1, CEPSTRA))
        fixed = {
            "window": hann,
            "filters": mel_filters(MELS, FFT, LOWEST, HIGHEST),
            "cosines": cosines / MELS,
            "own": own / own[0],
        }
        for name, array in fixed.items():
            self.register_buffer(name, torch.from_numpy(array.astype(np.float32)), persistent=False)
        self.drop_in = nn.Dropout(dropout / 5)
        self.hidden = nn.Linear(FUNCTIONALS, dim)
        self.layer = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Ragged) -> Ragged:
        """Samples `[N]` at 16 kHz -> one vector `[dim]` for each set that is not empty.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        statistics = self.functionals(x)
        return Ragged(self.encode(statistics), offsets_from((x.lengths > 0).long()))

    def functionals(self, x: Ragged) -> Tensor:
        """Statistics `[B', 138]` of the sets that are not empty; a set's volume and offset do not matter.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        if x.values.ndim != 1 or not x.values.is_floating_point():
            raise ValueError(f"prosody: got {x.values.dtype} {list(x.values.shape)}, expected float samples [N]")
        rows = [self._of_one(part) for part in torch.split(x.values, x.lengths.tolist()) if len(part)]
        return torch.stack(rows) if rows else x.values.new_zeros(0, FUNCTIONALS)

    def encode(self, statistics: Tensor) -> Tensor:
        """Statistics `[B', 138]` -> vectors `[B', dim]`."""
        z = ((statistics - self.mean) / self.deviation).clamp(-SPREAD, SPREAD)
        hidden = self.dropout(functional.gelu(self.hidden(self.drop_in(z))))
        out: Tensor = self.dropout(functional.gelu(self.layer(hidden)))
        return out

    def _of_one(self, samples: Tensor) -> Tensor:
        """`[138]` of one set `[N]`."""
        parts = list(zip(*self._frames(samples), strict=True))
        pitch, peak, power, centre, tilt, sharp, bands = (torch.cat(p) for p in parts)
        loud = power - power.max()
        active = loud > -ACTIVE
        voiced = (peak > VOICED) & active
        middle = pitch[voiced].median() if voiced.any() else pitch.new_tensor(12 * math.log2(150.0))
        relative = pitch - middle
        cepstra = (bands - bands.mean(1, keepdim=True)) @ self.cosines
        spoken = cepstra[active]
        deltas = spoken.diff(dim=0).abs()
        third = MELS // 4
        envelopes = torch.stack([loud, bands[:, :third].mean(1), bands[:, third : 2 * third].mean(1)])
        envelopes = torch.cat([envelopes, bands[:, 2 * third :].mean(1)[None]])
        frames_a_second = SAMPLE_RATE / HOP
        single = [
            middle,
            voiced.float().mean(),
            voiced.float().diff().abs().sum() / max(len(voiced) - 1, 1) * frames_a_second,
            active.float().mean(),
            pitch.new_tensor(math.log(max(len(samples), 1) / SAMPLE_RATE)),
        ]
        return torch.cat(
            [
                torch.stack(single),
                _statistics(relative[voiced]),
                _course(relative, voiced),
                _course(loud, active),
                _statistics(loud[active]),
                _statistics(peak[active]),
                _statistics(centre[voiced]),
                _statistics(tilt[voiced]),
                _statistics(sharp[voiced]),
                spoken.mean(0),
                spoken.std(0, correction=0),
                deltas.mean(0) if len(deltas) else torch.zeros_like(spoken[0]),
                _modulation(envelopes),
            ]
        )

    def _frames(self, samples: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Pitch (semitones), autocorrelation peak, log power, centroid (kHz), tilt, sharpness, log bands; by chunks."""
        centred = samples - samples.mean()
        centred = centred / centred.abs().max().clamp(min=1e-20)
        count = 1 + max(0, -(-(len(samples) - FRAME) // HOP))
        padded = functional.pad(centred, (0, (count - 1) * HOP + FRAME - len(samples)))
        frequencies = torch.arange(FFT // 2 + 1, device=samples.device, dtype=samples.dtype) * (SAMPLE_RATE / FFT)
        shortest = math.ceil(SAMPLE_RATE / PITCH[1])
        above = (frequencies > 1000).to(samples.dtype), (frequencies > 3000).to(samples.dtype)
        moments = torch.stack([torch.ones_like(frequencies), frequencies / 1000, *above], 1)  # [1025, 4]
        for part in torch.split(padded.unfold(0, FRAME, HOP), CHUNK):
            spectrum = torch.fft.rfft(part * self.window, n=FFT)
            power = spectrum.real.square() + spectrum.imag.square()
            total, weighted, over_1k, over_3k = (power @ moments).clamp(min=1e-9).unbind(1)
            below_1k = (total - over_1k).clamp(min=1e-9)
            lags = torch.fft.irfft(power)[:, : _longest() + 1]
            lags = lags / lags[:, :1].clamp(min=1e-9) / self.own
            lags = lags[:, shortest:]
            peak = lags.amax(1)
            # The first peak that comes near the highest: multiples of the period are as high as the period itself.
            around = functional.max_pool1d(lags[:, None], 3, stride=1, padding=1)[:, 0]
            first = ((lags == around) & (lags >= 0.9 * peak[:, None])).float().argmax(1) + shortest
            yield (
                12 * (SAMPLE_RATE / first.to(samples.dtype)).log2(),
                peak,
                total.log(),
                weighted / total,
                (over_1k / below_1k).log(),
                (over_3k / total).log(),
                (power @ self.filters).clamp(min=1e-9).log(),
            )


def _longest() -> int:
    """The lag in samples of the lowest pitch."""
    return math.floor(SAMPLE_RATE / PITCH[0])


def _statistics(x: Tensor) -> Tensor:
    """`[8]` of a curve `[T]`: mean, deviation, five quantiles, mean step; zeros if it has fewer than three values."""
    if len(x) < 3:
        return x.new_zeros(8)
    quantiles = torch.quantile(x, x.new_tensor(QUANTILES))
    return torch.cat([x.mean()[None], x.std(correction=0)[None], quantiles, x.diff().abs().mean()[None]])


def _course(x: Tensor, mask: Tensor) -> Tensor:
    """`[2]` of a curve where `mask`: its slope from start to end (time -1 to 1), and last third less first third."""
    t = torch.linspace(-1, 1, len(x), device=x.device, dtype=x.dtype)[mask]
    x = x[mask]
    early, late = x[t < -1 / 3], x[t > 1 / 3]
    if len(x) < 4 or not len(early) or not len(late):
        return x.new_zeros(2)
    t = t - t.mean()
    return torch.stack([(t * (x - x.mean())).sum() / t.square().sum(), late.mean() - early.mean()])


def _modulation(curves: Tensor) -> Tensor:
    """`[C * 6]` of log curves `[C, T]`: the log of each modulation band's share of the power."""
    curves = curves.maximum(curves.amax(1, keepdim=True) - ACTIVE)
    curves = curves - curves.mean(1, keepdim=True)
    size = max(256, 1 << (curves.shape[1] - 1).bit_length())
    power = torch.fft.rfft(curves, size).abs().square()[:, 1:]
    frequencies = torch.arange(1, size // 2 + 1, device=curves.device) * (SAMPLE_RATE / HOP / size)
    shares = [power[:, (frequencies > low) & (frequencies <= high)].sum(1) for low, high in pairwise(MODULATIONS)]
    total = power.sum(1).clamp(min=1e-9)
    return torch.stack([(s / total).clamp(min=1e-6).log() for s in shares], 1).flatten()
