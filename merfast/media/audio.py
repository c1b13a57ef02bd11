"""Audio of any rate to 16 kHz mono float32 on the media's clock."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt
import soxr

from merfast.clip import check_samples
from merfast.media.decode import AudioChunk
from merfast.types import SAMPLE_RATE, FloatArray

GAP = 0.1
"""Seconds that a timestamp may run ahead of the samples counted so far before it counts as a gap in the recording."""


class AudioTrack:
    """Resamples consecutive blocks of one recording with soxr.

    Timestamps place the first sample, and the first after a gap; in between samples are counted, as the timestamps of
    compressed audio are rounded. Gaps stay out of the output: the next chunk starts later.

    Args:
        name: what messages call the source.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._rate = 0
        self._stream: soxr.ResampleStream | None = None
        self._origin = 0.0  # seconds, of the first sample of this stretch
        self._pushed = 0  # input samples of this stretch
        self._emitted = 0  # output samples of this stretch
        self.end = 0.0  # seconds, of the last sample pushed

    def push(self, samples: npt.NDArray[np.float32], rate: int, time: float | None) -> list[AudioChunk]:
        """Add mono samples `[N]` at `rate` Hz that start at `time` seconds, or where the last ended if None.

        Raises:
            MediaError: a sample is NaN, infinite or far too large.
        """
        check_samples(self._name, samples)
        out: list[AudioChunk] = []
        if time is not None and rate == self._rate and self.end - time > GAP:
            # The clock of the samples runs ahead of that of the file: what overlaps is left out.
            samples = samples[round((self.end - time) * rate) :]
            time = None
        gap = time is not None and time - self.end > GAP
        if rate != self._rate or gap:
            out += self.flush()
            self._origin = self.end if time is None or (self._rate and not gap) else time
            self._rate, self._pushed, self._emitted = rate, 0, 0
            self._stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        self._pushed += len(samples)
        self.end = self._origin + self._pushed / rate
        ready = samples if self._stream is None else self._stream.resample_chunk(samples)
        return out + self._emit(ready)

    def flush(self) -> list[AudioChunk]:
        """The samples still inside the resampler."""
        if self._stream is None:
            return []
        rest = self._stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        self._stream = None
        return self._emit(rest)

    def _emit(self, samples: FloatArray) -> list[AudioChunk]:
        if not len(samples):
            return []
        chunk = AudioChunk(round(self._origin * SAMPLE_RATE) + self._emitted, samples)
        self._emitted += len(samples)
        return [chunk]


class AudioBuffer:
    """Keeps the samples that coming windows may still need."""

    def __init__(self) -> None:
        self._chunks: deque[AudioChunk] = deque()
        self.end = 0  # samples, of the last one pushed

    def push(self, chunk: AudioChunk) -> None:
        if chunk.start + len(chunk.samples) <= 0:
            return
        self._chunks.append(chunk)
        self.end = max(self.end, chunk.start + len(chunk.samples))

    def read(self, start: int, end: int) -> FloatArray:
        """Samples from `start` to `end`, less what lies before the first or after the last; gaps read as zeros."""
        parts = self._within(start, end)
        if not parts:
            return np.zeros(0, dtype=np.float32)
        start = self.first(start, end)
        end = min(end, max(c.start + len(c.samples) for c in parts))
        out = np.zeros(end - start, dtype=np.float32)
        for c in parts:
            low, high = max(start, c.start), min(end, c.start + len(c.samples))
            out[low - start : high - start] = c.samples[low - c.start : high - c.start]
        return out

    def first(self, start: int, end: int) -> int:
        """Number of the first sample that `read` gives, `start` if it gives none."""
        return max(start, min((c.start for c in self._within(start, end)), default=start))

    def _within(self, start: int, end: int) -> list[AudioChunk]:
        return [c for c in self._chunks if c.start < end and c.start + len(c.samples) > start]

    def forget(self, before: int) -> None:
        """Drop what ends at or before this sample."""
        while self._chunks and self._chunks[0].start + len(self._chunks[0].samples) <= before:
            self._chunks.popleft()
