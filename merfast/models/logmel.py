"""Voice encoder of the mini bundle: log-mel spectrogram, strided convolutions, a small conformer."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.packed import Slots, ragged_attention, rotary_angles, rotate, slots, spread
from merfast.ops.ragged import Ragged, offsets_from, set_index
from merfast.types import SAMPLE_RATE

MELS = 64
FRAME = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
FFT = 512
LOWEST, HIGHEST = 20.0, 7600.0  # Hz
STRIDE = 4  # log-mel frames to a feature vector
MOST_LAYERS = 64
DYNAMIC_RANGE = 8 * math.log(10)  # 80 dB below the loudest band of the set


class LogMel(nn.Module):
    """Voice encoder: 16 kHz audio to 25 vectors a second. Sets never see each other, nor any padding.

    Args:
        dim: width of the vectors.
        layers, heads, channels, kernel: of the conformer, and of the convolutions before it.
        dropout: while training.
        normalise: bring to mean 0 and deviation 1 the whole of a set's spectrogram ("utterance", which keeps its
            average spectrum) or each of its bands ("band").

    Raises:
        ValueError: an option is out of range.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        dim: int,
        *,
        layers: int = 3,
        heads: int = 4,
        channels: int = 32,
        kernel: int = 15,
        dropout: float = 0.1,
        normalise: str = "utterance",
    ) -> None:
        super().__init__()
        if normalise not in ("utterance", "band"):
            raise ValueError(f"normalise: got {normalise!r}, expected 'utterance' or 'band'")
        if layers > MOST_LAYERS:
            raise ValueError(f"layers: got {layers}, expected at most {MOST_LAYERS}")
        if min(layers, heads, channels) < 1 or dim % (2 * heads):
            raise ValueError(f"dim, heads: got {dim}, {heads}, expected dim a multiple of twice the heads, all above 0")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel: got {kernel}, expected an odd number")
        self.dim, self.reach, self.head_dim = dim, kernel // 2, dim // heads
        self.by_band = normalise == "band"
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
        self.register_buffer("window", torch.from_numpy(hann.astype(np.float32)), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters().astype(np.float32)), persistent=False)
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.project = nn.Linear(channels * MELS // STRIDE, dim)
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, kernel, dropout) for _ in range(layers))
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, x: Ragged) -> Ragged:
        """Samples `[N]` at 16 kHz -> vectors `[N', dim]`, `ceil(frames / 4)` to a set.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        return self.encode(self.spectrogram(x))

    def spectrogram(self, x: Ragged) -> Ragged:
        """Normalised log-mel frames `[frames, 64]` of samples `[N]`; a set's volume and offset do not matter.

        A set of n > 0 samples gives `1 + ceil(max(n - 400, 0) / 160)` frames: every sample is in one, and the last is
        filled up with zeros.

        Raises:
            ValueError: not a 1-D floating-point tensor.
        """
        if x.values.ndim != 1 or not x.values.is_floating_point():
            raise ValueError(f"logmel: got {x.values.dtype} {list(x.values.shape)}, expected float samples [N]")
        lengths = x.lengths
        frames = torch.where(lengths > 0, 1 + ((lengths - FRAME).clamp(min=0) + HOP - 1) // HOP, 0)
        offsets = offsets_from(frames)
        owner = set_index(offsets)
        if not len(owner):
            return Ragged(x.values.new_zeros(0, MELS), offsets)
        # Sets start at multiples of the hop, so that one strided view holds the frames of all of them.
        layout = slots(lengths, FRAME, HOP)
        first = layout.starts // HOP - offsets[:-1]
        rows = first[owner] + torch.arange(len(owner), device=owner.device)
        windows = spread(_levelled(x), layout).unfold(0, FRAME, HOP)[rows]  # [frames, FRAME]
        spectrum = torch.fft.rfft(windows * self.window, n=FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        logmel = (power @ self.filters).clamp(min=1e-10).log()
        top = logmel.new_full((len(x),), -torch.inf).scatter_reduce(0, owner, logmel.amax(1), "amax")
        logmel = logmel.maximum(top[owner, None] - DYNAMIC_RANGE)
        logmel = logmel - self._set_means(logmel, offsets, owner)[owner]
        deviation = self._set_means(logmel.square(), offsets, owner).sqrt().clamp(min=1e-2)
        return Ragged(logmel / deviation[owner], offsets)

    def _set_means(self, x: Tensor, offsets: Tensor, owner: Tensor) -> Tensor:
        """Means over each set, by band `[B, 64]` or over the bands too `[B, 1]`; summed in fp64."""
        rows = (x if self.by_band else x.mean(1, keepdim=True)).double()
        sums = rows.new_zeros(len(offsets) - 1, rows.shape[1]).index_add(0, owner, rows)
        return (sums / offsets.diff().clamp(min=1)[:, None]).to(x.dtype)

    def encode(self, frames: Ragged) -> Ragged:
        """Log-mel frames `[frames, 64]` -> vectors `[N', dim]`."""
        lengths = (frames.lengths + STRIDE - 1) // STRIDE
        offsets = offsets_from(lengths)
        if not len(frames.values):
            return Ragged(frames.values.new_zeros(0, self.dim), offsets)
        layout = slots(frames.lengths, STRIDE, STRIDE)
        axis = spread(frames.values, layout)  # [time, 64]
        valid = spread(frames.values.new_ones(len(frames.values)), layout)
        # Sets start at multiples of the stride: each place of a shorter axis is valid if the first one it is made from
        # is. A convolution spills one place over a set's end, so it is cleared after each.
        x = functional.gelu(self.conv1(axis[None, None])) * valid[::2, None]  # [1, channels, time / 2, 32]
        x = functional.gelu(self.conv2(x))[0]  # [channels, time / 4, 16]
        x = x.transpose(0, 1).flatten(1)[slots(lengths, 1).places]  # [N', channels * 16]
        x = self.norm_in(self.project(x))
        gaps = slots(lengths, self.reach)
        angles = rotary_angles(offsets, self.head_dim)
        for block in self.blocks:
            x = block(x, offsets, angles, gaps)
        return Ragged(self.norm_out(x), offsets)


def _levelled(x: Ragged) -> Tensor:
    """Samples `[N]` of each set with mean 0 and peak 1; a constant set becomes zeros."""
    owner = set_index(x.offsets)
    sums = x.values.new_zeros(len(x), dtype=torch.float64).index_add(0, owner, x.values.double())
    centred = x.values - (sums / x.lengths.clamp(min=1)).to(x.values.dtype)[owner]
    peaks = centred.new_zeros(len(x)).scatter_reduce(0, owner, centred.abs(), "amax")
    return centred / peaks.clamp(min=1e-20)[owner]


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

    def forward(self, x: Tensor, offsets: Tensor, angles: Tensor, gaps: Slots) -> Tensor:
        qkv = self.qkv(self.norm_attention(x)).unflatten(1, (3, self.heads, -1))  # [N, 3, H, d]
        q, k, v = qkv.unbind(1)
        seen = ragged_attention(rotate(q, angles), rotate(k, angles), v, offsets)
        x = x + self.dropout(self.out(seen.flatten(1)))
        axis = spread(functional.glu(self.gate(self.norm_conv(x))), gaps)  # [time, dim]
        near = self.depthwise(axis.T[None])[0].T[gaps.places]
        x = x + self.dropout(self.pointwise(functional.silu(self.norm_depthwise(near))))
        fed = self.feed_out(self.dropout(functional.gelu(self.feed_in(self.norm_feed(x)))))
        out: Tensor = x + self.dropout(fed)
        return out


def mel_filters() -> npt.NDArray[np.float64]:
    """`[257, 64]` triangles of height 1, evenly spaced on the mel scale of O'Shaughnessy (1987), as HTK computes it."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
    corners = 700 * (10 ** (np.linspace(low, high, MELS + 2) / 2595) - 1)  # Hz
    bins = np.arange(FFT // 2 + 1)[:, None] * SAMPLE_RATE / FFT
    rising = (bins - corners[:-2]) / np.diff(corners[:-1])
    falling = (corners[2:] - bins) / np.diff(corners[1:])
    triangles: npt.NDArray[np.float64] = np.minimum(rising, falling).clip(min=0)
    return triangles
