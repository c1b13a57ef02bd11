"""Decoding with PyNvVideoCodec: NVDEC without FFmpeg's codecs, its sessions kept and set up anew for the next medium.

FFmpeg demultiplexes, and decodes up to the first picture, which says how pictures are stored and to be turned. If NVDEC
refuses the format it goes on by itself. Interlaced pictures are deinterlaced here, and nowhere else.
"""

from __future__ import annotations

import ctypes
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import torch

from merfast.errors import MediaError, UnavailableError
from merfast.media import nvdec
from merfast.media.decode import Frame
from merfast.media.decode_pyav import PyAVMedia
from merfast.media.frames import FULL_RANGE, MATRICES, Geometry, geometry_of
from merfast.media.source import Reader
from merfast.media.surfaces import Stored, SurfaceFrame, eight_bits

CODECS = {
    "h264": ("H264", "h264_mp4toannexb"),
    "hevc": ("HEVC", "hevc_mp4toannexb"),
    "mpeg4": ("MPEG4", "dump_extra"),
    "mpeg1video": ("MPEG1", ""),
    "mpeg2video": ("MPEG2", ""),
    "vp8": ("VP8", ""),
    "vp9": ("VP9", ""),
}
"""FFmpeg's codec -> NVDEC's, and the bitstream filter that brings packets into the form that NVDEC's parser reads."""

DEPTHS = {"yuv420p": 8, "yuvj420p": 8, "yuv420p10le": 10, "yuv420p12le": 12}
"""Formats of pictures that NVDEC is asked for -> bits of a sample."""

LARGEST = 1920
"""Pixels of a side up to which a session can be set up anew: it takes memory for pictures of its largest size."""


def load() -> Any:
    """The package.

    Raises:
        UnavailableError: it is not installed, or finds no driver.
    """
    try:
        import PyNvVideoCodec
    except ImportError as error:
        why = "is not installed, pip install 'merfast[nvdec]'" if error.name == "PyNvVideoCodec" else str(error)
    except (RuntimeError, OSError) as error:
        why = str(error).splitlines()[0][:200]
    else:
        return PyNvVideoCodec
    raise UnavailableError(f"decoder 'pynvvideocodec': {why}")


def missing(device: torch.device) -> str:
    """Why it cannot be used on a device, or nothing."""
    if why := nvdec.driver_missing(device):
        return why
    try:
        load()
    except UnavailableError as error:
        return str(error).partition(": ")[2]
    return ""


class Session:
    """A decoder on a device, for one medium at a time.

    Args:
        device: CUDA device.
        codec: name of a `cudaVideoCodec`.
        width, height: of the pictures.

    Attributes:
        stream: on which the pictures are made.
    """

    def __init__(self, device: torch.device, codec: str, width: int, height: int) -> None:
        package = load()
        self._largest = max(_coded(width), LARGEST), max(_coded(height), LARGEST)
        self.stream: torch.cuda.Stream | None = None
        context = 0
        if device.type == "cuda":
            with nvdec.primary_context(device):
                self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                context = _current_context()
        self._handle = 0 if self.stream is None else int(self.stream.cuda_stream)
        self._empty = package.PacketData
        self._decoder = package.CreateDecoder(
            gpuid=device.index or 0,
            codec=getattr(package.cudaVideoCodec, codec),
            cudacontext=context,
            cudastream=self._handle,
            usedevicememory=True,
            maxwidth=self._largest[0],
            maxheight=self._largest[1],
        )

    def reuse(self, width: int, height: int) -> bool:
        """Prepare for another medium, all pictures of the last having been fetched; False if it is too large."""
        if _coded(width) > self._largest[0] or _coded(height) > self._largest[1]:
            return False
        self._decoder.setReconfigParams(width, height)
        return True

    def decode(self, packet: av.Packet[Any] | None) -> list[Any]:
        """Pictures that came out when a packet was put in, or after the last; they hold until the next call."""
        data = self._empty()
        if packet is not None:
            data.bsl_data, data.bsl = packet.buffer_ptr, packet.buffer_size
            data.key = packet.is_keyframe
            if packet.pts is not None:
                data.pts = packet.pts
        pictures: list[Any] = self._decoder.Decode(data)
        return pictures

    def samples(self, picture: Any) -> torch.Tensor:
        """The memory of a picture, `[H 3 / 2, W]`: rows of luma, then of chroma, ordered on `stream`."""
        whole = torch.utils.dlpack.from_dlpack(picture.__dlpack__(self._handle))
        return eight_bits(whole.squeeze(-1) if whole.ndim == 3 else whole)


def _coded(size: int) -> int:
    """Pixels that a codec may round a side up to."""
    return -(-size // 64) * 64


class Sessions:
    """Sessions that no medium uses, by what they decode. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: defaultdict[tuple[object, ...], list[Session]] = defaultdict(list)

    def take(self, device: torch.device, codec: str, depth: int, width: int, height: int) -> Session:
        """An idle session that fits, else a new one; `depth` counts bits of a sample, which cannot be changed."""
        key = device, codec, depth
        with self._lock:
            session = self._idle[key].pop() if self._idle[key] else None
        if session is not None and session.reuse(width, height):
            return session
        return Session(device, codec, width, height)

    def give(self, session: Session, device: torch.device, codec: str, depth: int) -> None:
        """Keep a session whose pictures have all been fetched."""
        with self._lock:
            idle = self._idle[device, codec, depth]
            if len(idle) < nvdec.SESSIONS:
                idle.append(session)


sessions = Sessions()
"""Of the process: making one takes longer than decoding a short clip."""


class _Picture(NamedTuple):
    """What stands for an `av.VideoFrame` until it is known whether it is wanted."""

    surface: Any
    time: float  # seconds, as the container counts
    duration: int | None  # in units of `time_base`
    time_base: Fraction


class _Shape(NamedTuple):
    """What the first picture says of all."""

    codec: str
    depth: int
    geometry: Geometry
    matrix: str
    full_range: bool


class PyNvMedia(PyAVMedia):
    """Reads a path, URL or binary file; arguments and errors as for `PyAVMedia`, `surfaces` is a CUDA device.

    Raises:
        UnavailableError: PyNvVideoCodec is not installed.
    """

    def __init__(self, source: str | Reader, name: str, *, surfaces: torch.device, **arguments: Any) -> None:
        load()
        self._device = surfaces
        self._session: Session | None = None
        self._software = False
        self._held: list[av.Packet[Any]] = []  # until the first picture
        self._lengths: dict[int, int | None] = {}  # of pictures in NVDEC, by their times
        self._hidden: set[int] = set()  # times of pictures that an edit list leaves out
        super().__init__(source, name, surfaces=surfaces, **arguments)

    def close(self) -> None:
        self._session = None  # with pictures in it that nobody wants
        super().close()

    def _decode(self, packet: av.Packet[Any]) -> Iterable[Any]:
        if packet.stream is not self._video or self._software:
            return super()._decode(packet)
        if self._session is not None:
            return self._feed(packet)
        self._held.append(packet)
        frames = list(super()._decode(packet))
        if not frames:
            return frames
        held, self._held = self._held, []
        why, shape = self._shape(frames[0], held)
        if shape is not None:
            try:
                return self._begin(shape, held)
            except Exception as error:  # whatever the package throws for what the GPU does not decode
                why, self._session = (str(error.__cause__ or error).splitlines() or ["refuses it"])[0][:200], None
        self._software = True
        self._refused(f"NVDEC {why}")
        return frames

    def _shape(self, first: av.VideoFrame, packets: list[av.Packet[Any]]) -> tuple[str, _Shape | None]:
        """(why NVDEC is not asked, or nothing; what it is to make)."""
        codec, _ = CODECS.get(self._video.codec_context.name, ("", ""))
        depth, matrix = DEPTHS.get(first.format.name, 0), MATRICES.get(first.colorspace)
        if not codec:
            return "has no such codec", None
        if not depth or matrix is None:
            return f"has no {first.format.name} in colour space {first.colorspace}", None
        if first.width % 2 or first.height % 2:
            return "has no odd sizes", None
        if any(p.pts is None for p in packets if p.buffer_size):
            return "packets have no times", None
        full_range = first.color_range == FULL_RANGE or first.format.name == "yuvj420p"
        return "", _Shape(codec, depth, geometry_of(first, self.aspect), matrix, full_range)

    def _begin(self, shape: _Shape, packets: list[av.Packet[Any]]) -> Iterable[Any]:
        """Hand over to NVDEC, from the first packet on; the pictures of the first call that gives any."""
        self._stored = shape
        name = CODECS[self._video.codec_context.name][1]
        self._filter = av.BitStreamFilterContext(name, self._video) if name else None
        self._session = sessions.take(self._device, shape.codec, shape.depth, *shape.geometry[:2])
        # What it refuses, it refuses with the first packet, which says what follows.
        first = list(self._feed(packets[0]))
        return self._rest(first, packets[1:])

    def _rest(self, first: list[Any], packets: list[av.Packet[Any]]) -> Iterator[Any]:
        yield from first
        for packet in packets:
            yield from self._feed(packet)

    def _feed(self, packet: av.Packet[Any]) -> Iterator[_Picture]:
        """Pictures, each to be used before the next is asked for.

        Raises:
            av.FFmpegError: the packet is damaged.
        """
        last = not packet.buffer_size
        if packet.pts is not None:
            self._lengths[packet.pts] = packet.duration
            if packet.is_discard:
                self._hidden.add(packet.pts)
        filtered: list[Any] = [packet]
        if self._filter is not None:
            filtered = self._filter.filter(None if last else packet)
        elif last:
            filtered = []
        return self._pictures([*filtered, None] if last else filtered)

    def _pictures(self, packets: list[av.Packet[Any] | None]) -> Iterator[_Picture]:
        """What comes out when packets are put in, and behind the last, None."""
        session = self._session
        assert session is not None
        for part in packets:
            try:
                surfaces = session.decode(part)
            except Exception as error:
                text = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise MediaError(self.info.name, f"cannot be decoded by PyNvVideoCodec ({text})") from error
            for surface in surfaces:
                pts = surface.getPTS()
                length, base = self._lengths.pop(pts, None), self._video.time_base
                if pts not in self._hidden:
                    yield _Picture(surface, float(pts * base), length, base)
        if packets and packets[-1] is None:
            sessions.give(session, self._device, self._stored.codec, self._stored.depth)
            self._session = None
            self._software = True  # nothing comes behind the last packet

    def _show(self, frame: Any, time: float) -> Frame:
        if not isinstance(frame, _Picture):
            return super()._show(frame, time)
        session, shape = self._session, self._stored
        assert session is not None
        columns, rows = shape.geometry[:2]
        whole = session.samples(frame.surface)
        if list(whole.shape) != [rows * 3 // 2, columns]:
            got = f"got {list(whole.shape)}, expected {[rows * 3 // 2, columns]}"
            raise MediaError(self.info.name, f"its pictures change their size, which cannot be followed: {got}")
        parts = [whole[:rows], whole[rows:].reshape(rows // 2, columns // 2, 2)]
        stored = Stored(parts, shape.geometry, shape.matrix, shape.full_range)
        return SurfaceFrame(stored, time, self._device, stream=session.stream, scalers=self._scalers)


def _current_context() -> int:
    """The calling thread's CUcontext."""
    context = ctypes.c_void_p()
    status = ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context))
    if status or not context.value:
        raise RuntimeError(f"no CUDA context (status {status})")
    return context.value
