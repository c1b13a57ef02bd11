"""`Clip.from_arrays` behind the decoding contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from merfast.clip import Clip
from merfast.media.audio import AudioTrack
from merfast.media.decode import AudioChunk, Event, Frame, FrameSampler, MediaInfo, interleave, scaled_size
from merfast.media.faces import Box, crop_square
from merfast.types import ByteArray

if TYPE_CHECKING:
    from merfast.ops.crop_norm import Crop

BLOCK = 1.0
"""Seconds of audio that are resampled at a time."""


class ArrayFrame:
    """A picture that is already an array `[H, W, 3]` RGB."""

    def __init__(self, image: ByteArray, time: float) -> None:
        self._image = image
        self.time = time
        self.height, self.width = image.shape[:2]

    def rgb(self) -> ByteArray:
        return self._image

    def small(self, longest: int) -> ByteArray:
        size = scaled_size(self.width, self.height, longest)
        if size == (self.width, self.height):
            return self._image
        return np.asarray(cv2.resize(self._image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def crops(self, boxes: Sequence[Box], size: int, crop: Crop) -> Sequence[ByteArray]:
        return [crop_square(self._image, box, size) for box in boxes]


class ArrayMedia:
    """Reads a `Clip`."""

    def __init__(self, clip: Clip, *, frame_rate: float, want_video: bool) -> None:
        self._clip = clip
        self._sampler = FrameSampler(frame_rate)
        self._video = clip.frames is not None and want_video
        self.info = MediaInfo(
            clip.name,
            has_video=clip.frames is not None and len(clip.frames) > 0,
            has_audio=clip.audio is not None and len(clip.audio) > 0,
            duration=clip.duration,
        )

    def events(self) -> Iterator[Event]:
        return interleave(self._frames(), self._sound())

    def _frames(self) -> Iterator[Frame]:
        clip = self._clip
        if self._video and clip.frames is not None:
            for image, time in zip(clip.frames, clip.times.tolist(), strict=True):
                if self._sampler.take(time):
                    yield ArrayFrame(image, time)

    def _sound(self) -> Iterator[AudioChunk]:
        clip = self._clip
        if clip.audio is None:
            return
        track = AudioTrack(clip.name)
        block = max(1, round(clip.sample_rate * BLOCK))
        for i in range(0, len(clip.audio), block):
            yield from track.push(clip.audio[i : i + block], clip.sample_rate, None)
        yield from track.flush()

    def close(self) -> None:
        pass
