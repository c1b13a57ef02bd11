"""Real media for tests, written with PyAV: odd rates, odd timestamps, rotation metadata, damage."""

from __future__ import annotations

import math
import struct
import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICKS = 90_000
"""Ticks a second of the video's timestamps where they are given one by one."""


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float = 25,
    audio: np.ndarray | None = None,
    sample_rate: int = 16_000,
    pts: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    audio_codec: str = "aac",
    faststart: bool = False,
    pixel_aspect: tuple[int, int] = (1, 1),
) -> Path:
    """Write `[H, W, 3]` uint8 RGB frames and mono float samples `[N]` in [-1, 1]; the container follows the suffix.

    Args:
        pts: seconds of each frame, rising, instead of `fps`: variable frame rate.
        faststart: put an MP4's index first, so that a file cut short can still be opened.
        pixel_aspect: width of a pixel to its height.
    """
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as out:
        video = None
        base = Fraction(1, TICKS) if pts is not None else 1 / Fraction(fps).limit_denominator(1001)
        sound = out.add_stream(audio_codec, rate=sample_rate, layout="mono") if audio is not None else None
        for i, image in enumerate(frames):
            if video is None:
                video = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
                video.height, video.width = image.shape[:2]
                video.pix_fmt = pix_fmt
                video.codec_context.time_base = base
                video.codec_context.sample_aspect_ratio = Fraction(*pixel_aspect)
                if codec == "libx264":
                    video.options = {"crf": "20", "preset": "veryfast"}
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.time_base = base
            frame.pts = i if pts is None else round(pts[i] * TICKS)
            out.mux(video.encode(frame))
        if sound is not None:
            encode_audio(out, sound, audio, sample_rate)
        if video is not None:
            out.mux(video.encode(None))
    return path


def encode_audio(out, stream, samples: np.ndarray, rate: int) -> None:
    fmt = stream.codec_context.format.name
    resampler = av.AudioResampler(format=fmt, layout="mono", rate=rate)
    for start in range(0, len(samples), 1024):
        block = np.ascontiguousarray(samples[None, start : start + 1024], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for converted in resampler.resample(frame):
            out.mux(stream.encode(converted))
    out.mux(stream.encode(None))


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """Write float samples in [-1, 1], `[N]` or `[N, channels]`, as 16-bit PCM."""
    columns = samples[:, None] if samples.ndim == 1 else samples
    with wave.open(str(path), "wb") as out:
        out.setnchannels(columns.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.round(np.clip(columns, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def set_rotation(path: Path, degrees: int) -> Path:
    """Give an MP4's video track a display matrix, so that PyAV reports `frame.rotation == degrees` (mod 360).

    The rotation is counterclockwise, as FFmpeg counts; the pixels stay as they are.
    """
    data = bytearray(path.read_bytes())
    angle = math.radians(degrees)
    cos, sin = round(math.cos(angle) * 65536), round(math.sin(angle) * 65536)
    for at in _boxes(data, b"tkhd"):
        version = data[at]
        matrix = at + (52 if version == 1 else 40)
        width, height = struct.unpack_from(">II", data, matrix + 36)
        if width and height:  # sound has no size
            struct.pack_into(">9i", data, matrix, cos, -sin, 0, sin, cos, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def truncate(path: Path, fraction: float, faststart: bool = True) -> Path:
    """Cut an MP4 after a fraction of its bytes, in place.

    Args:
        faststart: rewrite it first with its index at the front, so that it opens, and ends too early. Otherwise the
            index is lost with the end.
    """
    if faststart:
        moved = path.with_suffix(".moved.mp4")
        with av.open(str(path)) as source, av.open(str(moved), "w", options={"movflags": "+faststart"}) as out:
            streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)
        moved.replace(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def _boxes(data: bytearray, kind: bytes, start: int = 0, end: int | None = None) -> list[int]:
    """Where the contents of all MP4 boxes of a kind begin, within moov and trak."""
    found: list[int] = []
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, name, header = struct.unpack_from(">I", data, start)[0], bytes(data[start + 4 : start + 8]), 8
        if size == 1:
            size, header = struct.unpack_from(">Q", data, start + 8)[0], 16
        size = size or end - start
        if name == kind:
            found.append(start + header)
        elif name in (b"moov", b"trak"):
            found += _boxes(data, kind, start + header, start + size)
        start += size
    return found


def repeat(path: Path, out: Path, times: int) -> Path:
    """Write a file's packets `times` over, one run after the other, without decoding them."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        packets = [p for p in source.demux() if p.dts is not None]
        # A little more than it lasts: decoding times run ahead of showing times, and must rise.
        length = 0.08 + max(float((p.pts + (p.duration or 0)) * p.time_base) for p in packets)
        stamps = [(p.dts, p.pts) for p in packets]
        for i in range(times):
            for packet, (dts, pts) in zip(packets, stamps, strict=True):
                shift = round(i * length / packet.time_base)
                packet.dts, packet.pts = dts + shift, pts + shift
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return out
