"""Decoding with decord: its video reader for those who have a build of it that they prefer, PyAV for the audio.

decord's own audio reader keeps every sample that it ever decoded (0.6.0), so it is not used. One reader belongs to one
thread: decord aborts the process when threads share it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from merfast.errors import MediaError, UnavailableError
from merfast.media.decode import AudioChunk, Event, Frame, FrameSampler, interleave
from merfast.media.decode_arrays import ArrayFrame
from merfast.media.decode_pyav import PyAVMedia
from merfast.media.source import Reader, is_url


class DecordMedia:
    """Reads a path or binary file; arguments and errors as for `PyAVMedia`."""

    def __init__(self, source: str | Reader, name: str, *, frame_rate: float, want_video: bool, threads: int) -> None:
        try:
            import decord
        except ImportError:
            raise UnavailableError("decoder 'decord' is not installed: pip install 'merfast[decord]'") from None
        if is_url(source):
            raise MediaError(name, "decord reads files only, not URLs: use decoder='pyav'")
        pictures: Any = source
        if isinstance(source, Reader):
            content = source.read()
            source, pictures = Reader(io.BytesIO(content), name), io.BytesIO(content)
        self._sound = PyAVMedia(source, name, frame_rate=frame_rate, want_video=False, threads=1)
        self.info = self._sound.info
        self._rate = frame_rate
        self._reader: Any = None
        self._end = 0.0
        if want_video and self.info.has_video:
            try:
                self._reader = decord.VideoReader(pictures, num_threads=threads)
            except decord.DECORDError as error:
                self._sound.close()
                raise MediaError(name, f"cannot be read by decord ({str(error).splitlines()[0][:200]})") from error

    def events(self) -> Iterator[Event]:
        sound = (e for e in self._sound.events() if isinstance(e, AudioChunk))
        yield from interleave(self._frames(), sound if self.info.has_audio else iter(()))
        self.info.duration = max(self.info.duration, self._end)

    def _frames(self) -> Iterator[Frame]:
        if self._reader is None:
            return
        import decord

        try:
            times = self._reader.get_frame_timestamp(range(len(self._reader)))  # [T, 2] start and end
            # decord counts from the stream's start, and lists frames before it that the container leaves out.
            times = times.astype(np.float64) + self._sound.video_start
            sampler = FrameSampler(self._rate)
            wanted = [i for i, t in enumerate(times[:, 0]) if t > -1e-3 and sampler.take(float(t))]
            self._end = float(times[-1, 1])
            for i in wanted:
                image = self._reader[i].asnumpy()
                if self._sound.aspect != 1:
                    image = cv2.resize(image, (max(1, round(image.shape[1] * self._sound.aspect)), image.shape[0]))
                yield ArrayFrame(image, max(0.0, float(times[i, 0])))
        except decord.DECORDError as error:
            raise MediaError(
                self.info.name, f"cannot be decoded by decord ({str(error).splitlines()[0][:200]})"
            ) from error

    def close(self) -> None:
        self._reader = None
        self._sound.close()
