"""A stand-in for PyNvVideoCodec that decodes with PyAV on the CPU, and is as strict as NVDEC about what it is given.

It reads raw streams as NVDEC's parser does: H.264 and HEVC in Annex B, with the parameter sets inside. Its pictures are
NV12 `[H 3 / 2, W]`, in the order of showing, and are overwritten by the next call of `Decode`.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import torch


class cudaVideoCodec(Enum):  # noqa: N801
    MPEG1 = "mpeg1video"
    MPEG2 = "mpeg2video"
    MPEG4 = "mpeg4"
    H264 = "h264"
    HEVC = "hevc"
    VP8 = "vp8"
    VP9 = "vp9"


class PacketData:
    def __init__(self) -> None:
        self.bsl_data = self.bsl = self.pts = self.key = 0


class DecodedFrame:
    def __init__(self, samples: torch.Tensor, pts: int) -> None:
        self.samples, self._pts = samples, pts

    def getPTS(self) -> int:  # noqa: N802
        return self._pts

    def __dlpack__(self, stream: object = 0) -> Any:
        return torch.utils.dlpack.to_dlpack(self.samples)


class PyNvDecoder:
    def __init__(self, codec: cudaVideoCodec, largest: tuple[int, int]) -> None:
        self._codec, self._largest = codec, largest
        self.size: tuple[int, int] | None = None  # that of the first stream
        self.reconfigured = 0
        self._given: list[DecodedFrame] = []
        self._context: av.CodecContext | None = None

    def setReconfigParams(self, width: int = 0, height: int = 0) -> int:  # noqa: N802
        if width > self._largest[0] or height > self._largest[1]:
            raise RuntimeError("Reconfigure Not supported when width/height > maxwidth/maxheight")
        self.size, self.reconfigured = (width, height), self.reconfigured + 1
        return 1

    def Decode(self, data: PacketData) -> list[DecodedFrame]:  # noqa: N802
        for frame in self._given:
            frame.samples.fill_(0)
        packet = None
        if data.bsl:
            content = ctypes.string_at(data.bsl_data, data.bsl)
            if self._codec.name in ("H264", "HEVC") and content[:3] != b"\0\0\1" and content[:4] != b"\0\0\0\1":
                raise RuntimeError(f"no start code: {content[:8].hex()}")
            packet = av.Packet(data.bsl)  # which zeros lie behind, as FFmpeg reads beyond the end
            packet.update(content)
            if self._context is None:
                self._begin(packet)
            packet.pts = data.pts
        assert self._context is not None, "the last packet came first"
        frames = self._context.decode(packet)
        if packet is None:
            self._context = None  # ready for another stream
        self._given = [self._keep(frame) for frame in frames]
        return self._given

    def _begin(self, first: av.Packet[Any]) -> None:
        """NVDEC refuses a format with the first packet, which says what follows."""
        self._context = av.CodecContext.create(self._codec.value, "r")
        probe = av.CodecContext.create(self._codec.value, "r")
        for frame in [*probe.decode(first), *probe.decode(None)]:
            if frame.format.name not in ("yuv420p", "yuvj420p"):
                raise RuntimeError(f"format {frame.format.name} not supported on this GPU")

    def _keep(self, frame: av.VideoFrame) -> DecodedFrame:
        self.size = self.size or (frame.width, frame.height)
        if (frame.width, frame.height) != self.size:
            raise RuntimeError(f"got {frame.width} x {frame.height}, was set up for {self.size}")
        y, u, v = np.split(
            frame.to_ndarray().reshape(-1), np.cumsum([frame.height * frame.width, frame.height * frame.width // 4])
        )
        whole = np.concatenate([y, np.stack((u, v), 1).reshape(-1)]).reshape(-1, frame.width)
        return DecodedFrame(torch.from_numpy(whole.copy()), frame.pts)


def package() -> Any:
    """What `import PyNvVideoCodec` gives; `made` lists its decoders."""
    made: list[PyNvDecoder] = []

    def create(**arguments: Any) -> PyNvDecoder:
        assert sorted(arguments) == [
            *("codec", "cudacontext", "cudastream", "gpuid"),
            *("maxheight", "maxwidth", "usedevicememory"),
        ]
        made.append(PyNvDecoder(arguments["codec"], (arguments["maxwidth"], arguments["maxheight"])))
        return made[-1]

    return SimpleNamespace(cudaVideoCodec=cudaVideoCodec, PacketData=PacketData, CreateDecoder=create, made=made)
