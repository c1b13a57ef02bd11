"""Voice encoder of the mini bundle: log-mel spectrogram, residual convolutions, and a small conformer if wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.packed import (
    owners,
    ragged_attention,
    rotary_angles,
    rotate,
    side_by_side,
    slots,
    spread,
    uploaded,
)
from merfast.models.sound import FRAME, framed
from merfast.ops.ragged import Ragged
from merfast.types import SAMPLE_RATE

MELS = 96
FFT = 1024
LOWEST, HIGHEST = 20.0, 7600.0  # Hz
STRIDE = 2  # log-mel frames to a feature vector
NARROWING = 16  # bands to a place at the end of the convolutions
MOST_LAYERS = 64
DYNAMIC_RANGE = 8 * math.log(10)  # 80 dB below the loudest band of the set
NORMALISATIONS = {"utterance": (False,), "band": (True,), "both": (False, True)}  # whether by band, for each channel


class LogMel(nn.Module):
    """Voice encoder: 16 kHz audio to 25 vectors a second. Sets never see each other, nor any padding.

    Args:
        dim: width of the vectors.
        channels: of the first convolutions; the last ones have four times as many.
        layers, heads, kernel: of a conformer after the convolutions; none by default.
        dropout: while training.
        normalise: bring to mean 0 and deviation 1 the whole of a set's spectrogram ("utterance", which keeps its
            average spectrum), each of its bands ("band"), or give the one beside the other ("both").

    Raises:
        ValueError: an option is out of range.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 16,
        layers: int = 0,
        heads: int = 4,
        kernel: int = 15,
        dropout: float = 0.15,
        normalise: str = "both",
    ) -> None:
        super().__init__()
        if normalise not in NORMALISATIONS:
            raise ValueError(f"normalise: got {normalise!r}, expected 'utterance', 'band' or 'both'")
        if not 0 <= layers <= MOST_LAYERS:
            raise ValueError(f"layers: got {layers}, expected 0 to {MOST_LAYERS}")
        if min(dim, heads, channels) < 1 or dim % (2 * heads):
            raise ValueError(f"dim, heads: got {dim}, {heads}, expected dim a multiple of twice the heads, all above 0")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel: got {kernel}, expected an odd number")
        self.dim, self.reach, self.head_dim = dim, kernel // 2, dim // heads
        self.by_band = NORMALISATIONS[normalise]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
        self.register_buffer("window", torch.from_numpy(hann.astype(np.float32)), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters().astype(np.float32)), persistent=False)
        widths = (channels, channels, 2 * channels, 4 * channels)
        self.stem = nn.Conv2d(len(self.by_band), channels, (5, 7), stride=(STRIDE, 4), padding=(2, 3), bias=False)
        self.norm_stem = nn.BatchNorm2d(channels)
        self.stages = nn.ModuleList(Residual(a, b, 1 if a == b else 2) for a, b in pairwise(widths))
        self.project = nn.Linear(widths[-1] * MELS // NARROWING, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, kernel, dropout) for _ in range(layers))
        self.norm_out = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Ragged) -> Ragged:
        """Samples `[N]` at 16 kHz -> vectors `[N', dim]`, `ceil(frames / 2)` to a set.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        return self.encode(self.spectrogram(x))

    def spectrogram(self, x: Ragged) -> Ragged:
        """Normalised log-mel frames `[frames, C, 96]` of samples `[N]`; a set's volume and offset do not matter.

        A set of n > 0 samples gives `1 + ceil(max(n - 800, 0) / 320)` frames: every sample is in one, and the last is
        filled up with zeros. C is 2 if normalised in both ways, the whole set first.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        return self.normalised(self.log_mel(x))

    def log_mel(self, x: Ragged) -> Ragged:
        """Log-mel frames `[frames, 96]` of samples `[N]`, each set brought to peak 1; see `spectrogram`.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        if x.values.ndim != 1 or not x.values.is_floating_point():
            raise ValueError(f"logmel: got {x.values.dtype} {list(x.values.shape)}, expected float samples [N]")
        sizes = x.host_sizes()
        if not sum(sizes):
            return Ragged.of(x.values.new_zeros(0, MELS), sizes)
        sound = framed(x)
        bands = torch.cat([self._bands(part) for part in sound.chunks()])
        return Ragged.of(bands[uploaded(sound.places, bands.device)], sound.sizes)

    def _bands(self, windows: Tensor) -> Tensor:
        """Log bands `[W, 96]` of windows `[W, 800]`."""
        spectrum = torch.fft.rfft(windows * self.window, n=FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        bands: Tensor = (power @ self.filters).clamp(min=1e-10).log()
        return bands

    def normalised(self, frames: Ragged) -> Ragged:
        """Log-mel frames `[frames, 96]` -> `[frames, C, 96]`, as `spectrogram` gives them."""
        sizes, device = frames.host_sizes(), frames.values.device
        values, starts = frames.values[: sum(sizes)], np.cumsum([0, *sizes])[:-1]
        if not len(values):
            return Ragged(values.new_zeros(0, len(self.by_band), MELS), frames.offsets, sizes)
        owner, counts = owners(sizes, device), frames.lengths.clamp(min=1)[:, None]
        top = values.amax(1)[side_by_side(starts, sizes, device)].amax(1)
        cut = values.maximum(top[owner, None] - DYNAMIC_RANGE)
        channels = [_standardised(cut, owner, counts, by_band) for by_band in self.by_band]
        return Ragged(torch.stack(channels, 1), frames.offsets, sizes)

    def encode(self, frames: Ragged) -> Ragged:
        """Normalised log-mel frames `[frames, C, 96]` -> vectors `[N', dim]`."""
        given, device = frames.host_sizes(), frames.values.device
        sizes = [(n + STRIDE - 1) // STRIDE for n in given]
        if not sum(given):
            return Ragged.of(frames.values.new_zeros(0, self.dim), sizes)
        layout = slots(given, STRIDE, STRIDE)
        axis = spread(frames.values[: sum(given)], uploaded(layout.places, device), layout.total)
        # Sets start at multiples of the stride: each place of the shorter axis is valid if the first one it is made
        # from is. A convolution spills over a set's end, so what is not valid is cleared after each.
        shorter = slots(sizes, 1)
        places = uploaded(shorter.places, device)
        valid = spread(axis.new_ones(len(places), 1), places, shorter.total)
        axis = axis.transpose(0, 1)  # [C, time, 96]
        x = functional.relu(self.norm_stem(self.stem(axis[None]))) * valid  # [1, channels, time / 2, 24]
        for stage in self.stages:
            x = stage(x, valid)
        x = x[0].transpose(0, 1).flatten(1)[places]  # [N', 4 * channels * 6]
        x = self.project(self.dropout(x))
        if self.blocks:
            gaps = slots(sizes, self.reach)
            places, angles = uploaded(gaps.places, device), rotary_angles(sizes, self.head_dim, device=device)
            for block in self.blocks:
                x = block(x, sizes, angles, places, gaps.total)
        return Ragged.of(self.norm_out(x), sizes)


def _standardised(x: Tensor, owner: Tensor, counts: Tensor, by_band: bool) -> Tensor:
    """Rows `[N, 96]` with mean 0 and deviation 1 over each set, by band or over the bands too; of `counts` `[B, 1]`."""
    x = x - _set_means(x, owner, counts, by_band)[owner]
    deviation = _set_means(x.square(), owner, counts, by_band).sqrt().clamp(min=1e-2)
    return x / deviation[owner]


def _set_means(x: Tensor, owner: Tensor, counts: Tensor, by_band: bool) -> Tensor:
    """Means over each set, by band `[B, 96]` or over the bands too `[B, 1]`; summed in fp64."""
    rows = (x if by_band else x.mean(1, keepdim=True)).double()
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add(0, owner, rows)
    return (sums / counts).to(x.dtype)


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut (arXiv 1512.03385), over time and bands; divides the bands by `stride`."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, wider, 3, stride=(1, stride), padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.shortcut = nn.Sequential(nn.Conv2d(width, wider, 1, stride=(1, stride), bias=False), nn.BatchNorm2d(wider))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """`[1, width, time, bands]` and 1 or 0 `[time, 1]` -> `[1, wider, time, bands / stride]`, 0 where not valid."""
        y = functional.relu(self.norm1(self.conv1(x))) * valid
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self.shortcut(x)) * valid


class Block(nn.Module):
    """Conformer block (arXiv 2005.08100) with one feed-forward layer: attention, convolution, feed-forward.

    The convolution is normalised by LayerNorm, not BatchNorm, so that a set is normalised alone in training too.
    """

    def __init__(self, dim: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_conv = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm_depthwise = nn.LayerNorm(dim)
        self.pointwise = nn.Linear(dim, dim)
        self.norm_feed = nn.LayerNorm(dim)
        self.feed_in = nn.Linear(dim, 4 * dim)
        self.feed_out = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, sizes: Sequence[int], angles: Tensor, places: Tensor, total: int) -> Tensor:
        qkv = self.qkv(self.norm_attention(x)).unflatten(1, (3, self.heads, -1))  # [N, 3, H, d]
        q, k, v = qkv.unbind(1)
        seen = ragged_attention(rotate(q, angles), rotate(k, angles), v, sizes)
        x = x + self.dropout(self.out(seen.flatten(1)))
        axis = spread(functional.glu(self.gate(self.norm_conv(x))), places, total)  # [time, dim]
        near = self.depthwise(axis.T[None])[0].T[places]
        x = x + self.dropout(self.pointwise(functional.silu(self.norm_depthwise(near))))
        fed = self.feed_out(self.dropout(functional.gelu(self.feed_in(self.norm_feed(x)))))
        out: Tensor = x + self.dropout(fed)
        return out


def mel_filters(
    bands: int = MELS, fft: int = FFT, lowest: float = LOWEST, highest: float = HIGHEST
) -> npt.NDArray[np.float64]:
    """`[fft / 2 + 1, bands]` triangles of height 1, evenly spaced from `lowest` to `highest` Hz on the mel scale of
    O'Shaughnessy (1987), as HTK computes it."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (lowest, highest))
    corners = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)  # Hz
    bins = np.arange(fft // 2 + 1)[:, None] * SAMPLE_RATE / fft
    rising = (bins - corners[:-2]) / np.diff(corners[:-1])
    falling = (corners[2:] - bins) / np.diff(corners[1:])
    triangles: npt.NDArray[np.float64] = np.minimum(rising, falling).clip(min=0)
    return triangles
