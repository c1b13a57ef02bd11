"""Decoded pictures that stay in a device's memory.

**Order and lifetime on a GPU.** FFmpeg's NVDEC queues its work on CUDA's default stream, and takes a surface back for
the next picture when its frame is let go of. So a picture is copied at once, on that same stream: whatever reuses the
surface is queued behind the copy. An event says when the copy is done. Whoever asks for `SurfaceFrame.planes` gets them
for the stream that is current then: it waits for the event (on the GPU, not on the CPU), and torch's allocator is told
that this stream reads the memory, so that it is not given to another before what is queued there has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import av
import torch
from torch import Tensor

from merfast.media.faces import Box
from merfast.media.frames import (
    FULL_RANGE,
    MATRICES,
    Geometry,
    PyAVFrame,
    Scalers,
    geometry_of,
    new_scalers,
    planes_of,
)
from merfast.ops.crop_norm import Crop, Planes
from merfast.types import ByteArray

_SPACES = {"bt709": 1, "bt601": 5}  # AVColorSpace
_LIMITED_RANGE = 1  # AVColorRange


class Stored(NamedTuple):
    """A picture in memory that may soon be taken back: 8-bit 4:2:0 samples, and what they mean."""

    parts: Sequence[Tensor]  # [H, W] y, then [h, w, 2] with Cb and Cr, or [h, w] of each; uint8; h = ceil(H / 2)
    geometry: Geometry
    matrix: str  # as in `Planes`
    full_range: bool


class SurfaceFrame:
    """A decoded picture as 8-bit 4:2:0 planes in a device's memory (its own copy), turned upright on use.

    Args:
        stored: what to copy; only needed until the constructor returns.
        time: seconds from the start of the media.
        device: where the copy lies.
        stream: CUDA stream on which `stored` was written and is copied; None means the device's default stream.
        scalers: of the medium that it belongs to.

    Attributes:
        time, width, height: as in `Frame`: upright, with square pixels.
        turn: degrees counterclockwise that make the planes upright: 0, 90, 180 or 270.
    """

    def __init__(
        self,
        stored: Stored,
        time: float,
        device: torch.device,
        *,
        stream: torch.cuda.Stream | None = None,
        scalers: Scalers | None = None,
    ) -> None:
        self.time, self.device = time, device
        self.geometry, self._matrix, self._full_range = stored.geometry, stored.matrix, stored.full_range
        self.width, self.height = self.geometry.upright
        self.turn = self.geometry.turn % 360
        self._interleaved = len(stored.parts) == 2
        self._scalers = new_scalers() if scalers is None else scalers
        self._on_cpu: PyAVFrame | None = None
        self._ready: torch.cuda.Event | None = None
        if device.type == "cuda":
            with torch.cuda.stream(stream or torch.cuda.default_stream(device)):
                self._memory = _copied(stored.parts, device)
                self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._ready.record()
        else:
            self._memory = _copied(stored.parts, device)

    @classmethod
    def of(
        cls, frame: av.VideoFrame, time: float, aspect: float, device: torch.device, scalers: Scalers | None = None
    ) -> SurfaceFrame:
        """A picture that FFmpeg decoded, by NVDEC or on the CPU.

        What is neither 8-bit 4:2:0 nor 4:2:0 of more bits from NVDEC, in BT.601 or BT.709, is converted by swscale in
        the CPU's memory, as are NVDEC's pictures of odd size, whose last row of chroma cannot be exported.

        Args:
            frame: with `frame.format.name == "cuda"` if NVDEC made it.
            time: seconds from the start of the media.
            aspect: width of a pixel to its height.
            device: where the copy is to lie; that of the frame, if NVDEC made it.
            scalers: of the medium, for what swscale converts; without it each picture sets its own up.
        """
        scalers = new_scalers() if scalers is None else scalers
        stored = _surface(frame, aspect) or _software(frame, aspect, scalers)
        return cls(stored, time, device, scalers=scalers)

    @property
    def planes(self) -> Planes:
        """The picture before rotation, with F = 1; on a GPU for use on the stream that is current, see above."""
        if self._ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self._ready)
            self._memory.record_stream(stream)
        return self._views(self._memory)

    def locate(self, box: Box) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels of the planes, of a box in the upright picture."""
        return self.geometry.locate(box)

    def rgb(self) -> ByteArray:
        return self._downloaded().rgb()

    def small(self, longest: int) -> ByteArray:
        return self._downloaded().small(longest)

    def crops(self, boxes: Sequence[Box], size: int, crop: Crop) -> Sequence[ByteArray]:
        return self._downloaded().crops(boxes, size, crop)

    def _views(self, memory: Tensor) -> Planes:
        columns, rows = self.geometry[:2]
        high, wide = (rows + 1) // 2, (columns + 1) // 2
        luma, chroma = memory[: rows * columns], memory[rows * columns :]
        u, v = chroma.view(1, high, wide, 2).unbind(3) if self._interleaved else chroma.view(2, 1, high, wide).unbind(0)
        return Planes(luma.view(1, rows, columns), u, v, self._matrix, self._full_range)

    def _downloaded(self) -> PyAVFrame:
        """The picture in the CPU's memory, for whoever is there; fetched once."""
        if self._on_cpu is None:
            if self._ready is not None:
                self._ready.synchronize()
            frame = av.VideoFrame(self.geometry.columns, self.geometry.rows, "yuv420p")
            frame.colorspace = _SPACES[self._matrix]
            frame.color_range = FULL_RANGE if self._full_range else _LIMITED_RANGE
            target = planes_of(frame)
            assert target is not None
            for into, plane in zip(target[:3], self._views(self._memory.cpu())[:3], strict=True):
                into.copy_(plane)
            self._on_cpu = PyAVFrame(frame, self.time, self.geometry.aspect, self._scalers, self.geometry.turn)
        return self._on_cpu


def eight_bits(samples: Tensor) -> Tensor:
    """Samples of 16 bits, of which the uppermost hold the value, cut to uint8; uint8 stays as it is."""
    return samples if samples.dtype == torch.uint8 else samples.view(torch.uint8)[..., 1::2]


def unexportable(frame: av.VideoFrame) -> str:
    """Why a picture that NVDEC made must go through the CPU, or nothing."""
    kind = "" if frame.sw_format is None else frame.sw_format.name
    if kind not in ("nv12", "p010le", "p016le"):
        return f"is {kind}"
    if frame.colorspace not in MATRICES:
        return f"is in colour space {frame.colorspace}"
    return "has an odd size" if frame.width % 2 or frame.height % 2 else ""


def _surface(frame: av.VideoFrame, aspect: float) -> Stored | None:
    """NVDEC's own memory; None if the frame lies in the CPU's, or is of a kind that cannot be exported."""
    if frame.format.name != "cuda" or unexportable(frame):
        return None
    # The capsules themselves, as torch would ask for a stream, which PyAV refuses.
    parts = [eight_bits(torch.utils.dlpack.from_dlpack(p.__dlpack__())) for p in frame.planes]
    return Stored(parts, geometry_of(frame, aspect), MATRICES[frame.colorspace], frame.color_range == FULL_RANGE)


def _software(frame: av.VideoFrame, aspect: float, scalers: Scalers) -> Stored:
    planes = None if frame.format.name == "cuda" else planes_of(frame)
    plain = frame
    if planes is None:
        known = frame.colorspace in MATRICES
        plain = scalers[frame.width, frame.height, "yuv420p"].reformat(
            frame,
            format="yuv420p",
            dst_colorspace=None if known else _SPACES["bt709"],
            dst_color_range=None if known else _LIMITED_RANGE,
        )
        planes = planes_of(plain)
    assert planes is not None
    parts = [p[0] for p in planes[:3]]
    return Stored(parts, geometry_of(frame, aspect), planes.matrix, planes.full_range)


def _copied(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """All parts behind each other in new memory of a device; from the CPU to a GPU in one transfer, not waited for."""
    upload = device.type == "cuda" and parts[0].device.type == "cpu"
    count = sum(p.numel() for p in parts)
    memory = torch.empty(count, dtype=torch.uint8, device="cpu" if upload else device, pin_memory=upload)
    at = 0
    for part in parts:
        memory[at : at + part.numel()].view(part.shape).copy_(part)
        at += part.numel()
    # Pinned memory goes back to torch's pool, which keeps it until the transfer is done.
    return memory.to(device, non_blocking=True) if upload else memory
