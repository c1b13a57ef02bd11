"""Sound of several sets at once: levelled, and cut into overlapping frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from merfast.models.packed import Indices, places_within, side_by_side, slots, uploaded
from merfast.ops.ragged import Ragged

FRAME = 800  # samples, 50 ms: long enough to part the harmonics of most voices
HOP = 320  # samples, 20 ms
# Windows at a time that are transformed: bounds memory; on a CPU the spectra of so many still fit its cache.
CPU_CHUNK, GPU_CHUNK = 64, 16_384
REACH = 3  # hops that a set has besides as many as it has frames: the last of them is silent


class Framed(NamedTuple):
    """Frames of B sets of sound."""

    windows: Tensor  # [W, 800], overlapping views of one axis; between the sets are some that belong to none
    sizes: tuple[int, ...]  # frames of each set
    starts: Indices  # [B], the window that is each set's first frame; on the host
    places: Indices  # [F], the windows that are frames; on the host

    def chunks(self) -> tuple[Tensor, ...]:
        """The windows, so many at a time as suit the device."""
        return torch.split(self.windows, CPU_CHUNK if self.windows.device.type == "cpu" else GPU_CHUNK)


def frames_in(samples: int) -> int:
    """Frames of so many samples: every sample is in one, and the last frame is filled up with zeros."""
    return 1 + max(0, -(-(samples - FRAME) // HOP)) if samples else 0


def framed(x: Ragged) -> Framed:
    """Samples `[N]` of B sets, at least one, as frames; each set is brought to mean 0 and peak 1, or to zeros if it is
    constant."""
    sizes = x.host_sizes()
    frames = tuple(frames_in(n) for n in sizes)
    # Sets start at hops, so that one strided view holds the frames of all of them.
    layout = slots(frames, REACH)
    silence = x.values.new_zeros((REACH + 1) * HOP)
    sets = zip(torch.split(x.values[: sum(sizes)], list(sizes)), frames, strict=True)
    pieces = [piece for sound, n in sets for piece in (sound, silence[: (n + REACH) * HOP - len(sound)])]
    hops = torch.cat(pieces).view(-1, HOP)
    axis = _levelled(hops, x, [n + REACH for n in frames], layout.starts).flatten()
    return Framed(axis.unfold(0, FRAME, HOP)[: layout.total - REACH], frames, layout.starts, layout.places)


def _levelled(hops: Tensor, x: Ragged, sizes: Sequence[int], starts: Indices) -> Tensor:
    """Hops `[H, 320]`, so many of each set: those that hold samples of x `[N]`, and zeros after a set's end."""
    owner = np.repeat(np.arange(len(x)), sizes)
    left = np.array(x.host_sizes())[owner] - places_within(sizes) * HOP  # samples of the set from here on
    owners, lefts = uploaded(np.array([owner, left]), hops.device)
    sets = side_by_side(starts, sizes, hops.device)  # [B, T]; what is repeated is silent
    means = hops.sum(1, dtype=torch.float64)[sets].sum(1) / x.lengths.clamp(min=1)
    hops = (hops - means.to(hops.dtype)[owners, None]) * (torch.arange(HOP, device=hops.device) < lefts[:, None])
    peaks = hops.abs().amax(1)[sets].amax(1).clamp(min=1e-20)
    return hops / peaks[owners, None]
