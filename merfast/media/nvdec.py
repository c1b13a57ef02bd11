"""NVDEC, the video decoder of NVIDIA's GPUs: whether it can be used here, and what it is opened with.

For H.264, HEVC, VP8 and VP9 the standards say what each sample of a picture is, so an intact stream of 8 bits in 4:2:0
gives what FFmpeg's own decoders give, bit for bit. Differences are those of streams that are damaged (each conceals
what is missing in its own way), of MPEG-1, 2 and 4 part 2 (whose inverse transforms are only bounded by their
standards), and of more than 8 bits, which are cut to 8 here and rounded by swscale there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

SESSIONS = 14
"""Decoders that an engine keeps open on a device: two for each of the seven NVDECs of an H100 or H200.

A session is a queue, which the driver puts on an engine that is free; with two for each, one engine's next picture is
being parsed while the other's is being decoded. More would only take memory: each holds its reference pictures.
"""

REST = "the CPU decodes AV1 and what the GPU refuses (H.264 of 10 bits or 4:2:2, some MPEG-1, odd sizes)"
"""Formats that NVDEC is not asked for or refuses, for the plan (Video Codec SDK 13.0, application note, table 1)."""


def missing(device: torch.device) -> str:
    """Why FFmpeg's NVDEC cannot be used on a device, or nothing."""
    if why := driver_missing(device):
        return why
    try:
        import av
    except ImportError:
        return "PyAV is not installed"
    configs = getattr(av.Codec("h264", "r"), "hardware_configs", ())
    if not any(c.device_type.name == "cuda" for c in configs):
        return f"the FFmpeg of PyAV {av.__version__} was built without NVDEC"
    try:
        with primary_context(device):
            hwaccel(device).create(av.Codec("h264", "r"))
    except TypeError:
        return f"PyAV {av.__version__} cannot leave pictures on the GPU, newer ones can"
    except (av.FFmpegError, NotImplementedError, RuntimeError) as error:
        return f"FFmpeg cannot open {device} ({str(error).splitlines()[0][:200]})"
    return ""


def driver_missing(device: torch.device) -> str:
    """Why no NVDEC can be reached on a device, or nothing."""
    if device.type != "cuda":
        return f"NVDEC is part of an NVIDIA GPU, and the device is {device}"
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return "the driver's libnvcuvid.so.1 is not here (containers need the driver capability 'video')"
    return ""


def hwaccel(device: torch.device) -> Any:
    """What `av.open` takes to decode on a device and to leave pictures there; make and use it in `primary_context`.

    What NVDEC refuses, FFmpeg decodes on the CPU in the same codec context.
    """
    from av.codec.hwaccel import HWAccel

    # FFmpeg's "primary_ctx" is the same context, but fails if torch made it first, as it insists on other flags.
    return HWAccel(
        device_type="cuda",
        device=str(device.index or 0),
        allow_software_fallback=True,
        options={"primary_ctx": "0", "current_ctx": "1"},
        is_hw_owned=True,
    )


@contextmanager
def primary_context(device: torch.device) -> Iterator[None]:
    """Make a device's CUDA context, the one that torch uses, that of the calling thread."""
    with torch.cuda.device(device):
        torch.zeros(1, device=device)  # a thread has no context before it has asked the device for something
        yield
