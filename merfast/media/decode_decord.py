"""Decoding with decord: its video reader for those who have a build of it that they prefer, PyAV for the audio.

decord's own audio reader keeps every sample that it ever decoded (0.6.0), so it is not used. One reader belongs to one
thread: decord aborts the process when threads share it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merfast.errors import UnavailableError
from merfast.media.decode import Frame, FrameSampler
from merfast.media.decode_mixed import MixedMedia


def has_nvdec() -> bool:
    """Whether decord, which is installed, was built for GPUs; PyPI's wheels are not."""
    spec = importlib.util.find_spec("decord")
    libraries = Path(spec.origin).parent.glob("libdecord*") if spec is not None and spec.origin else ()
    return any(b"cuvidCreateDecoder" in file.read_bytes() for file in libraries)


class DecordMedia(MixedMedia):
    library = "decord"

    def _open(self, pictures: Any, threads: int, device: torch.device) -> None:
        try:
            import decord
        except ImportError:
            raise UnavailableError("decoder 'decord' is not installed: pip install 'merfast[decord]'") from None
        context = decord.gpu(device.index or 0) if device.type == "cuda" and has_nvdec() else decord.cpu(0)
        try:
            self._reader = decord.VideoReader(pictures, ctx=context, num_threads=threads)
        except decord.DECORDError as error:
            raise self._failed("read", error) from error

    def _frames(self) -> Iterator[Frame]:
        import decord

        try:
            times = self._reader.get_frame_timestamp(range(len(self._reader)))  # [T, 2] start and end
            # decord counts from the stream's start, and lists frames before it that the container leaves out.
            times = times.astype(np.float64) + self._sound.video_start
            sampler = FrameSampler(self._rate)
            wanted = [i for i, t in enumerate(times[:, 0]) if t > -1e-3 and sampler.take(float(t))]
            self._end = float(times[-1, 1])
            for i in wanted:
                yield self._frame(self._reader[i].asnumpy(), float(times[i, 0]))
        except decord.DECORDError as error:
            raise self._failed("decoded", error) from error

    def close(self) -> None:
        self._reader = None
        super().close()
