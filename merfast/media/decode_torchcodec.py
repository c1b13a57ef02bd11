"""Decoding with torchcodec: its video decoder, by NVDEC where the device is a GPU, PyAV for the audio.

torchcodec gives RGB pictures on its device; those of the wanted rate are brought to the CPU.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import torch

from merfast.errors import UnavailableError
from merfast.media.decode import Frame, FrameSampler
from merfast.media.decode_mixed import MixedMedia

BLOCK = 16
"""Pictures asked for at a time: torchcodec reads each packet between them once."""

SLACK = 1e-5
"""Seconds that a picture is asked for behind its own time, which torchcodec holds in another rounding."""


class TorchCodecMedia(MixedMedia):
    library = "torchcodec"

    def _open(self, pictures: Any, threads: int, device: torch.device) -> None:
        decoder = load()
        self._start, self._step, times = _times(pictures, self._sound.video_index)
        if isinstance(pictures, io.BytesIO):
            pictures = pictures.getvalue()
        try:
            self._decoder = decoder(
                pictures,
                stream_index=self._sound.video_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=threads,
                device=device,
            )
        except (RuntimeError, ValueError) as error:
            raise self._failed("read", error) from error
        self._times = times

    def _frames(self) -> Iterator[Frame]:
        sampler = FrameSampler(self._rate)
        wanted = [t for t in self._times if sampler.take(max(0.0, t - self._start))]
        # By time, as its numbers leave out pictures without one; but a last picture of no length is at no time.
        ends = float(self._decoder.metadata.end_stream_seconds)
        try:
            for i in range(0, len(wanted), BLOCK):
                block = wanted[i : i + BLOCK]
                timed = [t + SLACK for t in block if t + SLACK < ends]
                parts = [self._decoder.get_frames_played_at(timed)] if timed else []
                parts += [self._decoder.get_frames_at([-1]) for _ in block[len(timed) :]]
                images = np.concatenate([p.data.cpu().numpy() for p in parts])
                for time, image in zip(block, images, strict=True):
                    yield self._frame(image, time - self._start)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._failed("decoded", error) from error
        if self._times:
            self._end = self._times[-1] - self._start + self._step

    def close(self) -> None:
        self._decoder = None
        super().close()


def load() -> Any:
    """torchcodec's `VideoDecoder`.

    Raises:
        UnavailableError: it is not installed, or finds no FFmpeg.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        raise UnavailableError("decoder 'torchcodec': is not installed, pip install 'merfast[torchcodec]'") from None
    except (RuntimeError, OSError) as error:
        raise UnavailableError(f"decoder 'torchcodec': {str(error).splitlines()[0][:200]}") from error
    return VideoDecoder


def _times(source: Any, index: int) -> tuple[float, float, list[float]]:
    """Seconds: where the media starts, how long a picture lasts, and when each is shown, in order."""
    with av.open(source, mode="r", metadata_errors="replace") as container:
        video: Any = container.streams[index]
        packets = (p for p in container.demux(video) if p.pts is not None and not p.is_discard)
        times = sorted(float(p.pts * video.time_base) for p in packets)
        step = float(1 / (video.average_rate or 25))
        return (container.start_time or 0) / av.time_base, step, times
