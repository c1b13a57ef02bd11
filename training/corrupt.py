"""The MER-NOISE corruption: other people's speech under the voice, and blurred pictures.

MER 2023's noise track adds speech noise at 5 to 10 dB and blurs the video by 1, 2 or 4 (arXiv 2304.08981). What the
blur's numbers mean was not available to us: here they are the standard deviation of a Gaussian in pixels of a face
`BLUR_SIDE` pixels wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from merfast.types import FloatArray, Window
from training.data import DataError

BLUR_SIDE = 112
"""Width of a face in MER 2023's own preprocessing, in pixels."""

BLURS = (1.0, 2.0, 4.0)
SNR = (5.0, 10.0)  # dB


@dataclass(frozen=True)
class Corruption:
    """What may happen to a window.

    Attributes:
        snr: range of the speech-to-noise ratio in dB.
        blurs: one of these, as standard deviations at `BLUR_SIDE` pixels; 0 leaves the pictures as they are.
        audio, video: how often each modality is corrupted, in [0, 1].
    """

    snr: tuple[float, float] = SNR
    blurs: tuple[float, ...] = BLURS
    audio: float = 1.0
    video: float = 1.0

    def __post_init__(self) -> None:
        if len(self.snr) != 2 or self.snr[0] > self.snr[1] or not self.blurs or min(self.blurs) < 0:
            raise DataError(f"corruption: expected snr [low, high] in dB and blurs of 0 or more, got {self}")


def corrupt(window: Window, corruption: Corruption, noise: Sequence[FloatArray], rng: np.random.Generator) -> Window:
    """A corrupted copy of a window.

    Args:
        window: what the media path gives.
        corruption: what may be done.
        noise: speech of other people, `[N]` at 16 kHz each; without any, the sound is left alone.
        rng: all randomness comes from here.
    """
    audio, crops = window.audio, window.crops
    if len(audio) and noise and rng.random() < corruption.audio:
        audio = add_noise(audio, noise[int(rng.integers(len(noise)))], float(rng.uniform(*corruption.snr)), rng)
    if len(crops) and rng.random() < corruption.video:
        blur = corruption.blurs[int(rng.integers(len(corruption.blurs)))] * crops.shape[1] / BLUR_SIDE
        if blur > 0:
            crops = np.stack([cv2.GaussianBlur(crop, (0, 0), blur) for crop in crops])
    return replace(window, audio=audio, crops=crops)


def add_noise(audio: FloatArray, noise: FloatArray, snr: float, rng: np.random.Generator) -> FloatArray:
    """`audio` `[N]` with `noise` under it, repeated from a random place on, at `snr` dB (mean power to mean power)."""
    power = float(np.mean(np.square(noise, dtype=np.float64)))
    if power <= 0:
        return audio
    turned = np.roll(noise, -int(rng.integers(len(noise))))
    under = np.resize(turned, len(audio))
    gain = (float(np.mean(np.square(audio, dtype=np.float64))) / power / 10 ** (snr / 10)) ** 0.5
    mixed: FloatArray = audio + np.float32(gain) * under
    return mixed
