"""The statistics of `merfast.models.prosody`, one set after the other: the reference of its test and benchmark."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from merfast.models.prosody import Prosody

RATE, FRAME, HOP, FFT = 16000, 800, 320, 2048
SHORTEST, LONGEST = 32, 266  # lags in samples, of 500 and 60 Hz
ACTIVE = 7.0


def functionals(encoder: Prosody, sets: list[Tensor]) -> Tensor:
    """`[B', 138]` of sets of samples `[n]`, those that are not empty."""
    return torch.stack([of_one(encoder, samples) for samples in sets if len(samples)])


def of_one(encoder: Prosody, samples: Tensor) -> Tensor:
    """`[138]` of one set `[n]`."""
    pitch, peak, power, centre, tilt, sharp, bands = measure(encoder, frames_of(samples))
    loud = power - power.max()
    active = loud > -ACTIVE
    voiced = (peak > 0.5) & active
    middle = pitch[voiced].median() if voiced.any() else torch.tensor(12 * math.log2(150.0))
    relative = pitch - middle
    spoken = ((bands - bands.mean(1, keepdim=True)) @ encoder.cosines)[active]
    steps = spoken.diff(dim=0).abs()
    envelopes = [loud, bands[:, :10].mean(1), bands[:, 10:20].mean(1), bands[:, 20:].mean(1)]
    single = [
        middle,
        voiced.float().mean(),
        voiced.float().diff().abs().sum() / max(len(voiced) - 1, 1) * RATE / HOP,
        active.float().mean(),
        torch.tensor(math.log(len(samples) / RATE)),
    ]
    parts = [
        torch.stack(single),
        statistics(relative[voiced]),
        course(relative, voiced),
        course(loud, active),
        statistics(loud[active]),
        statistics(peak[active]),
        statistics(centre[voiced]),
        statistics(tilt[voiced]),
        statistics(sharp[voiced]),
        spoken.mean(0),
        spoken.std(0, correction=0),
        steps.mean(0) if len(steps) else torch.zeros_like(spoken[0]),
        *(modulation(envelope) for envelope in envelopes),
    ]
    return torch.cat(parts)


def frames_of(samples: Tensor) -> Tensor:
    """`[T, 800]`, every 320 samples, of the set with mean 0 and peak 1; the last is filled up with zeros."""
    centred = samples - samples.double().mean().float()
    centred = centred / centred.abs().max().clamp(min=1e-20)
    count = 1 + max(0, math.ceil((len(samples) - FRAME) / HOP))
    return functional.pad(centred, (0, (count - 1) * HOP + FRAME - len(samples))).unfold(0, FRAME, HOP)


def measure(encoder: Prosody, frames: Tensor) -> tuple[Tensor, ...]:
    """Pitch (semitones), autocorrelation peak, log power, centroid (kHz), tilt, sharpness, log bands; `[T, ...]`."""
    spectrum = torch.fft.rfft(frames * encoder.window, n=FFT)
    power = spectrum.real.square() + spectrum.imag.square()
    kilohertz = torch.arange(FFT // 2 + 1) * (RATE / FFT / 1000)
    moments = torch.stack([torch.ones(len(kilohertz)), kilohertz, (kilohertz > 1).float(), (kilohertz > 3).float()], 1)
    total, weighted, over_1k, over_3k = (power @ moments).clamp(min=1e-9).unbind(1)
    lags = torch.fft.irfft(power)[:, : LONGEST + 1]
    lags = lags[:, SHORTEST:] / lags[:, :1].clamp(min=1e-9) / encoder.own
    peak = lags.amax(1)
    around = functional.max_pool1d(lags[:, None], 3, stride=1, padding=1)[:, 0]
    first = ((lags == around) & (lags >= 0.9 * peak[:, None])).float().argmax(1) + SHORTEST
    return (
        12 * (RATE / first.float()).log2(),
        peak,
        total.log(),
        weighted / total,
        (over_1k / (total - over_1k).clamp(min=1e-9)).log(),
        (over_3k / total).log(),
        (power @ encoder.filters).clamp(min=1e-9).log(),
    )


def statistics(x: Tensor) -> Tensor:
    """`[8]` of a curve `[T]`: mean, deviation, five quantiles, mean step; zeros if it has fewer than three values."""
    if len(x) < 3:
        return torch.zeros(8)
    quantiles = torch.quantile(x, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    return torch.cat([x.mean()[None], x.std(correction=0)[None], quantiles, x.diff().abs().mean()[None]])


def course(x: Tensor, mask: Tensor) -> Tensor:
    """`[2]` of a curve where `mask`: its slope from start to end (time -1 to 1), and last third less first third."""
    t = torch.linspace(-1, 1, len(x))[mask]
    x = x[mask]
    early, late = x[t < -1 / 3], x[t > 1 / 3]
    if len(x) < 4 or not len(early) or not len(late):
        return torch.zeros(2)
    t = t - t.mean()
    return torch.stack([(t * (x - x.mean())).sum() / t.square().sum(), late.mean() - early.mean()])


def modulation(curve: Tensor) -> Tensor:
    """`[6]` of a log curve `[T]`: the log of each modulation band's share of the power."""
    curve = curve.maximum(curve.max() - ACTIVE).double()
    size = max(256, 1 << (len(curve) - 1).bit_length())
    power = torch.fft.rfft(curve - curve.mean(), size).abs().square()[1:]
    hertz = torch.arange(1, size // 2 + 1) * (RATE / HOP / size)
    sums = [power[(hertz > low) & (hertz <= high)].sum() for low, high in pairwise([0, 1, 2, 4, 8, 16, 25])]
    return (torch.stack(sums) / power.sum().clamp(min=1e-9)).clamp(min=1e-6).log().float()
