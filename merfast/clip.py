"""`Clip`: media that a caller has decoded, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from merfast.errors import MediaError
from merfast.types import ByteArray, FloatArray

LOUDEST = 100.0
"""Largest audio sample that is taken, where full scale is 1: beyond lie integers that were never scaled."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Media that the caller has already decoded; build it with `Clip.from_arrays`."""

    name: str
    frames: ByteArray | None
    times: npt.NDArray[np.float64]
    audio: FloatArray | None
    sample_rate: int
    faces: Literal["detect", "given"]
    duration: float

    @classmethod
    def from_arrays(
        cls,
        frames: npt.ArrayLike | None = None,
        *,
        fps: float | None = None,
        times: Sequence[float] | npt.NDArray[np.floating[Any]] | None = None,
        audio: npt.ArrayLike | None = None,
        sample_rate: int | None = None,
        faces: Literal["detect", "given"] = "detect",
        name: str = "<arrays>",
    ) -> Clip:
        """Wrap decoded frames and samples.

        Args:
            frames: `[T, H, W, 3]` uint8 RGB, or None for audio alone.
            fps: frames per second; needed with `frames` unless `times` is given.
            times: `[T]` timestamps of the frames in seconds, not decreasing, from 0 on.
            audio: `[N]` float samples in [-1, 1], mono, or None for video alone.
            sample_rate: of `audio`, in Hz; needed with `audio`.
            faces: "detect" finds faces in the frames; "given" says that every frame is a face crop already.
            name: what messages and predictions call this clip.

        Raises:
            MediaError: a shape, type or value is not as described; the message says got and expected.
        """
        if faces not in ("detect", "given"):
            raise MediaError(name, f"faces: got {faces!r}, expected 'detect' or 'given'")
        stamps = np.zeros(0)
        duration = 0.0
        pixels: ByteArray | None = None
        if frames is not None:
            array = np.asarray(frames)
            if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
                got = f"{array.dtype} {list(array.shape)}"
                raise MediaError(name, f"frames: got {got}, expected uint8 [T, H, W, 3] in RGB order")
            if 0 in array.shape[1:3]:
                raise MediaError(name, f"frames: got empty pictures, {list(array.shape)}")
            pixels = array
            stamps, duration = _frame_times(name, len(array), fps, times)
        samples: FloatArray | None = None
        rate = 0
        if audio is not None:
            if not is_number(sample_rate) or not 1 <= sample_rate <= 1_000_000 or sample_rate != int(sample_rate):
                got = f"sample_rate: got {sample_rate!r}"
                raise MediaError(name, f"{got}, expected a whole number of Hz from 1 to 1000000 with the audio")
            samples, rate = _mono(name, audio), int(sample_rate)
            duration = max(duration, len(samples) / rate)
        if duration <= 0.0:
            raise MediaError(name, "holds neither frames nor audio samples")
        return cls(name, pixels, stamps, samples, rate, faces, duration)

    def __repr__(self) -> str:
        frames = "no frames" if self.frames is None else f"frames {list(self.frames.shape)}"
        audio = "no audio" if self.audio is None else f"audio [{len(self.audio)}] at {self.sample_rate} Hz"
        return f"Clip({self.name!r}, {self.duration:.3f} s, {frames}, {audio}, faces={self.faces!r})"


def _frame_times(name: str, count: int, fps: float | None, times: object) -> tuple[npt.NDArray[np.float64], float]:
    if times is None:
        if not is_number(fps) or not (math.isfinite(fps) and fps > 0):
            raise MediaError(name, f"fps: got {fps!r}, expected a positive number with the frames (or times=)")
        return np.arange(count) / fps, count / fps
    try:
        stamps = np.asarray(times, dtype=np.float64)
    except (TypeError, ValueError):
        raise MediaError(name, f"times: got {times!r:.80}, expected [{count}] seconds") from None
    if stamps.shape != (count,):
        raise MediaError(name, f"times: got shape {list(stamps.shape)}, expected [{count}], one for each frame")
    if count == 0:
        return stamps, 0.0
    if stamps[0] > 86_400:
        raise MediaError(name, f"times: got a first stamp of {stamps[0]:.6g} s, expected seconds from the clip's start")
    if not np.isfinite(stamps).all() or stamps[0] < 0 or (np.diff(stamps) < 0).any():
        raise MediaError(name, "times: expected finite seconds from 0 on, not decreasing")
    step = float(np.median(np.diff(stamps))) if count > 1 else 0.0
    return stamps, float(stamps[-1]) + (step or (1 / fps if fps else 0.04))


def _mono(name: str, audio: npt.ArrayLike) -> FloatArray:
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        got = f"{samples.dtype} {list(samples.shape)}"
        raise MediaError(name, f"audio: got {got}, expected float [N], mono, in [-1, 1]")
    check_samples(name, samples)
    return samples.astype(np.float32)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number, of Python or NumPy, and not a bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_samples(name: str, samples: npt.NDArray[Any]) -> None:
    """Raise `MediaError` if any audio sample is NaN, infinite, or so large that its scale must be another one."""
    bad = len(samples) - int(np.isfinite(samples).sum())
    if bad:
        raise MediaError(name, f"audio: got {bad} NaN or infinite samples of {len(samples)}, expected finite values")
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > LOUDEST:
        raise MediaError(name, f"audio: got samples up to {peak:.6g}, expected a full scale of 1, as in [-1, 1]")
