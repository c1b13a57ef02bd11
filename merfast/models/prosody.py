"""Prosody encoder of the mini bundle: statistics of pitch, loudness and timbre over a set, then two small layers.

Such statistics, in the manner of the Geneva minimalistic set (Eyben et al. 2016, doi 10.1109/TAFFC.2015.2457417), carry
over to unknown speakers better than what a network finds by itself in a few hours of speech.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.logmel import mel_filters
from merfast.models.packed import Indices, side_by_side, uploaded
from merfast.models.sound import FRAME, HOP, framed
from merfast.ops.ragged import Ragged
from merfast.types import SAMPLE_RATE

FFT = 2048
MELS, CEPSTRA = 40, 20
LOWEST, HIGHEST = 50.0, 7000.0  # Hz, of the bands
PITCH = (60.0, 500.0)  # Hz
UNVOICED = 150.0  # Hz, the median pitch of a set without a voiced frame
VOICED = 0.5  # height of the autocorrelation's peak from which a frame counts as voiced
ACTIVE = 7.0  # nepers of power below the loudest frame, down to which a frame counts as speech
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MODULATIONS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0)  # Hz, edges of the bands
SHORTEST = 256  # frames that a modulation spectrum is taken of, at least
SPREAD = 4.0  # deviations from the training set's mean, beyond which a statistic is cut off
FUNCTIONALS = 138

# What is measured of a frame, in this order: six curves that eight statistics each are taken of, 19 coefficients of the
# cepstrum, and the mean log power of the first quarter, the second quarter and the upper half of the bands.
PITCHES, LOUDNESS, PEAK, CENTRE, TILT, SHARPNESS = range(6)
CURVES = 6
COURSES = 2  # the first two curves, whose course over time is described too
DESCRIBED = CURVES + CEPSTRA - 1
OF_VOICED = (PITCHES, CENTRE, TILT, SHARPNESS)  # described by the voiced frames, all else by the active ones


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
    moments: Tensor
    filters: Tensor
    own: Tensor
    pitches: Tensor
    cosines: Tensor
    quantiles: Tensor
    masks: Tensor

    def __init__(self, dim: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("mean", torch.zeros(FUNCTIONALS))
        self.register_buffer("deviation", torch.ones(FUNCTIONALS))
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
        own = np.fft.irfft(np.abs(np.fft.rfft(hann, FFT)) ** 2)
        fixed = {
            "window": hann,
            "moments": _moments(),
            "filters": mel_filters(MELS, FFT, LOWEST, HIGHEST),
            "own": own[_lags()] / own[0],
            "pitches": 12 * np.log2(SAMPLE_RATE / np.arange(FFT)[_lags()]),  # of the lags, in semitones
            "cosines": np.cos(np.pi / MELS * (np.arange(MELS)[:, None] + 0.5) * np.arange(1, CEPSTRA)) / MELS,
            "quantiles": np.array(QUANTILES),
        }
        for name, array in fixed.items():
            self.register_buffer(name, torch.from_numpy(array.astype(np.float32)), persistent=False)
        masks = np.array([0 if column in OF_VOICED else 1 for column in range(DESCRIBED)])
        self.register_buffer("masks", torch.from_numpy(masks), persistent=False)
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
        return Ragged.of(self.encode(statistics), [min(n, 1) for n in x.host_sizes()])

    def functionals(self, x: Ragged) -> Tensor:
        """Statistics `[B', 138]` of the sets that are not empty; a set's volume and offset do not matter.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        if x.values.ndim != 1 or not x.values.is_floating_point():
            raise ValueError(f"prosody: got {x.values.dtype} {list(x.values.shape)}, expected float samples [N]")
        sizes = x.host_sizes()
        full = [b for b, n in enumerate(sizes) if n]
        if not full:
            return x.values.new_zeros(0, FUNCTIONALS)
        sound = framed(x)
        table = torch.cat([self._measured(part) for part in sound.chunks()])  # [W, 28]
        device, counts = table.device, np.array(sound.sizes)[full]
        curves = table.T[:, side_by_side(sound.starts[full], counts.tolist(), device)]  # [28, B', T]
        log_seconds = np.log(np.array(sizes)[full] / SAMPLE_RATE)
        seconds_between = np.maximum(counts - 1, 1) * (HOP / SAMPLE_RATE)
        known = np.array([log_seconds, seconds_between, counts], dtype=np.float32)
        length, between, frames = uploaded(known, device)  # [B'] each

        curves[LOUDNESS].sub_(curves[LOUDNESS].amax(1, keepdim=True))
        there = uploaded(np.arange(curves.shape[2]) < counts[:, None], device)  # [B', T]
        active = there & (curves[LOUDNESS] > -ACTIVE)
        voiced = active & (curves[PEAK] > VOICED)
        masks = torch.stack([voiced, active])
        kept = masks.sum(2)  # [2, B']
        middle, statistics, courses, cepstra = self._described(curves[:DESCRIBED], masks, kept, counts)
        shares = kept / frames
        changes = ((voiced[:, 1:] != voiced[:, :-1]) & there[:, 1:]).sum(1) / between
        envelopes = torch.cat([curves[LOUDNESS, None], curves[DESCRIBED:]])
        rows = [
            torch.stack([middle, shares[0], changes, shares[1], length], 1),
            statistics[:, PITCHES],
            courses.flatten(1),
            statistics[:, PITCHES + 1 :].flatten(1),
            cepstra.flatten(1),
            _modulation(envelopes, there, frames, counts).flatten(1),
        ]
        return torch.cat(rows, 1)

    def encode(self, statistics: Tensor) -> Tensor:
        """Statistics `[B', 138]` -> vectors `[B', dim]`."""
        z = ((statistics - self.mean) / self.deviation).clamp(-SPREAD, SPREAD)
        hidden = self.dropout(functional.gelu(self.hidden(self.drop_in(z))))
        out: Tensor = self.dropout(functional.gelu(self.layer(hidden)))
        return out

    def _measured(self, windows: Tensor) -> Tensor:
        """`[W, 28]` of windows `[W, 800]`: pitch (semitones), log power, autocorrelation peak, centroid (kHz), tilt,
        sharpness, 19 of the cepstrum, and means of the lower, middle and upper log bands."""
        spectrum = torch.fft.rfft(windows * self.window, n=FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        total, weighted, over_1k, over_3k = (power @ self.moments).clamp(min=1e-9).unbind(1)
        ratios = torch.stack([over_1k / (total - over_1k).clamp(min=1e-9), over_3k / total, total], 1)
        tilt, sharpness, loudness = ratios.log().unbind(1)
        lags = torch.fft.irfft(power)
        lags = lags[:, _lags()] / lags[:, :1].clamp(min=1e-9) / self.own
        peak = lags.amax(1)
        # The first peak that comes near the highest: multiples of the period are as high as the period itself.
        around = functional.max_pool1d(lags[:, None], 3, stride=1, padding=1)[:, 0]
        peaks = lags >= around.maximum(0.9 * peak[:, None])
        pitch = self.pitches[peaks.view(torch.uint8).argmax(1)]
        bands = (power @ self.filters).clamp(min=1e-9).log()
        parts = (part.mean(1) for part in bands.tensor_split((MELS // 4, MELS // 2), 1))
        columns = torch.stack([pitch, loudness, peak, weighted / total, tilt, sharpness, *parts], 1)
        return torch.cat([columns[:, :CURVES], bands @ self.cosines, columns[:, CURVES:]], 1)

    def _described(
        self, x: Tensor, masks: Tensor, counts: Tensor, frames: Indices
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Describe curves by the frames that are voiced, or active.

        Args:
            x: `[25, B, T]` curves.
            masks: `[2, B, T]` where they are voiced, and where active.
            counts: `[2, B]` in how many frames,
            frames: `[B]` of so many; on the host.

        Returns:
            The median pitch `[B]`; eight statistics of each of the first curves `[B, 6, 8]`, the pitch relative to its
            median; the courses of pitch and loudness `[B, 2, 2]`; the cepstrum's means, deviations and mean steps
            `[B, 3, 19]`.
        """
        span = x.shape[2]
        order = masks.view(torch.uint8).sort(dim=2, descending=True, stable=True).indices  # those kept come first
        n = counts[self.masks]  # [25, B]
        kept = torch.arange(span, device=x.device) < n[..., None]
        steps = (n - 1).clamp(min=1)
        x = x.gather(2, order[self.masks])
        ranked = torch.where(kept[:CURVES], x[:CURVES], torch.inf).sort(2).values
        # The lower of the middle two if they are even, as torch has it; infinity if there is none.
        middle = ranked[PITCHES].gather(1, steps[PITCHES, :, None] // 2)
        middle = middle.nan_to_num(nan=torch.nan, posinf=12 * math.log2(UNVOICED))
        x[PITCHES].sub_(middle)
        ranked[PITCHES].sub_(middle)

        x = x * kept
        mean = x.sum(2) / n
        centred = (x - mean[..., None]) * kept
        deviation = (centred.square().sum(2) / n).sqrt()
        step = (x.diff(dim=2).abs() * kept[..., 1:]).sum(2) / steps
        every = torch.stack([mean, deviation, step], 2)  # [25, B, 3]
        place = steps[:CURVES, :, None] * self.quantiles  # [6, B, 5]
        lower = place.long()
        below, above = ranked.gather(2, lower), ranked.gather(2, (lower + 1).clamp(max=span - 1))
        described = [every[:CURVES, :, :2], below.lerp(above, place.frac()), every[:CURVES, :, 2:]]
        statistics = torch.cat(described, 2).masked_fill_((n[:CURVES] < 3)[..., None], 0.0)  # [6, B, 8]
        courses = _courses(centred[:COURSES], kept[:COURSES], order, counts, frames)
        return middle[:, 0], statistics.transpose(0, 1), courses, every[CURVES:].permute(1, 2, 0)


def _courses(centred: Tensor, kept: Tensor, order: Tensor, counts: Tensor, frames: Indices) -> Tensor:
    """`[B, C, 2]`: slope from a set's start to its end (time -1 to 1), and its last third less its first.

    Args:
        centred: `[C, B, T]` the frames that are kept, less their mean, then zeros.
        kept: `[C, B, T]` bool, where they are.
        order: `[C, B, T]` which frames they are.
        counts: `[C, B]` how many.
        frames: `[B]` how many there are; on the host.
    """
    known = [(*_thirds(n), max(n - 1, 1) / 2) for n in frames.tolist()]
    first_end, last_start, half = uploaded(np.array(known, dtype=np.float32).T[..., None], order.device)  # [B, 1] each
    time = (order / half - 1) * kept
    time = (time - time.sum(2, keepdim=True) / counts[..., None]) * kept
    slope = (time * centred).sum(2) / time.square().sum(2)
    parts = torch.stack([order < first_end, order >= last_start]) & kept  # [2, C, B, T]
    some = parts.sum(3)
    early, late = ((centred * parts).sum(3) / some).unbind(0)
    few = (counts < 4) | (some.amin(0) == 0)
    return torch.stack([slope, late - early], 2).masked_fill_(few[..., None], 0.0).transpose(0, 1)


@cache
def _thirds(frames: int) -> tuple[int, int]:
    """Where the first third of so many frames ends, and where the last one starts.

    By times from -1 to 1 in fp32, whose rounding lets a frame on the border count at a few lengths, as in training.
    """
    time = torch.linspace(-1, 1, frames, dtype=torch.float32, device="cpu")
    return int((time < -1 / 3).sum()), int((time <= 1 / 3).sum())


def _modulation(curves: Tensor, there: Tensor, frames: Tensor, counts: Indices) -> Tensor:
    """`[B, C, 6]` of log curves `[C, B, T]`: the log of each modulation band's share of the power.

    Args:
        curves: after a set's end, something no larger than before.
        there: `[B, T]` bool, up to a set's end.
        frames: `[B]` how many there are,
        counts: `[B]` the same; on the host.
    """
    sizes = np.array([max(SHORTEST, 1 << (n - 1).bit_length()) for n in counts.tolist()])
    size = int(sizes.max())
    # In double precision, so that nothing is left of a curve that is constant.
    levels = curves.maximum(curves.amax(2, keepdim=True) - ACTIVE).double() * there
    levels = (levels - levels.sum(2, keepdim=True) / frames[:, None]) * there
    power = torch.fft.rfft(levels, size).abs().square()[..., 1:]  # [C, B, size / 2]
    # The spectrum of a set that has a smaller size of its own consists of every so manyth of these.
    bins = np.arange(1, size // 2 + 1)
    own = uploaded(bins % (size // sizes[:, None]) == 0, curves.device)
    bands = np.digitize(bins * (SAMPLE_RATE / HOP / size), MODULATIONS, right=True)[:, None]  # from 1
    each = uploaded((bands == np.arange(1, len(MODULATIONS))).astype(np.float64), curves.device)
    sums = (power * own) @ each
    shares: Tensor = sums / sums.sum(2, keepdim=True).clamp(min=1e-9)
    return shares.clamp(min=1e-6).log().transpose(0, 1).to(curves.dtype)


def _lags() -> slice:
    """The lags in samples from the highest pitch to the lowest."""
    return slice(math.ceil(SAMPLE_RATE / PITCH[1]), math.floor(SAMPLE_RATE / PITCH[0]) + 1)


def _moments() -> npt.NDArray[np.float64]:
    """`[1025, 4]`: what makes of a power spectrum its sum, its sum weighted by kHz, and those above 1 and 3 kHz."""
    frequencies = np.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT)
    return np.stack([np.ones_like(frequencies), frequencies / 1000, frequencies > 1000, frequencies > 3000], 1)
