"""Clips for the benchmarks that start from files: faces before a moving background, H.264 and AAC in MP4.

With a folder of data (`MERFAST_DATA`) the faces are stills of its clips, else the demo's portrait.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from merfast.config import BundleConfig, EngineConfig
from merfast.demo import babble, portrait
from merfast.media.windows import WindowSpec
from merfast.pipeline import ItemReader
from merfast.plan import make_plan
from merfast.types import ByteArray, FloatArray, Window

FPS = 25
RATE = 24_000
"""Sampling rate of the sound, in Hz."""

_REAL = ("talking_1.mp4", "talking_2.mp4", "talking_4.mp4", "grid_bbaf2n.mpg", "grid_lbax4n.mpg", "portrait_d10.mp4")
_YUNET = "face_detection_yunet_2023mar.onnx"
_BLOCK = 1024  # samples in a frame of AAC


def yunet_of(data: Path | None) -> Path | None:
    """YuNet's file in a folder of data, None without one."""
    file = data / "models" / _YUNET if data is not None else None
    return file if file is not None and file.is_file() else None


def faces_of(data: Path | None) -> list[ByteArray]:
    """Pictures `[H, W, 3]` with one large face each: of real clips, or the demo's portrait.

    Raises:
        UnavailableError: no data is given, and matplotlib, which brings the portrait, is not installed.
    """
    files = [data / "clips" / name for name in _REAL] if data is not None else []
    pictures = []
    for file in files:
        if file.is_file():
            with av.open(str(file)) as container:
                pictures.append(np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"), np.uint8))
    return pictures or [portrait()]


def write_videos(
    folder: Path,
    shapes: Sequence[tuple[int, int, float]],
    data: Path | None = None,
    seed: int = 0,
    *,
    keyframes: int | None = None,
) -> list[Path]:
    """Write a clip of each shape (width, height, seconds), unless it is there; no two have the same content.

    Args:
        folder: where to.
        shapes: of the clips.
        data: folder of real clips, whose faces are shown.
        seed: of the first clip; each has its own.
        keyframes: frames from one keyframe to the next, exactly; None leaves it to the encoder.

    Raises:
        UnavailableError: as `faces_of`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    longest = max((seconds for _, _, seconds in shapes), default=0.0)
    faces, sound = faces_of(data), babble(max(30.0, 1.5 * longest), RATE)

    def write(i: int) -> Path:
        width, height, seconds = shapes[i]
        suffix = f"-k{keyframes}" if keyframes else ""
        path = folder / f"{seed + i:04d}-{width}x{height}-{seconds:g}s{suffix}.mp4"
        if not path.exists():
            random = np.random.default_rng(seed + i)
            part = path.with_name(f".{path.name}")
            picture = _lit(faces[i % len(faces)], random)
            voice = _voice(sound, seconds, random)
            _encode(part, _pictures(picture, (width, height), seconds, random), voice, (width, height), keyframes)
            part.replace(path)
        return path

    with ThreadPoolExecutor(max(1, min(8, len(os.sched_getaffinity(0))))) as pool:
        return list(pool.map(write, range(len(shapes))))


def read_windows(path: Path, config: BundleConfig, data: Path | None, threads: int) -> list[Window]:
    """The windows of a file as the engine would cut them on the CPU, of the main face."""
    options = EngineConfig(device="cpu", detector_model=yunet_of(data), threads=threads)
    longest = config.preprocessing.max_window
    spec = WindowSpec(longest, longest)
    plan = make_plan(options, config)
    reader = ItemReader(path, path.name, plan, config, spec, every_face=False, threads=threads)
    return [group[0] for group in reader]


def _lit(face: ByteArray, random: np.random.Generator) -> ByteArray:
    """The picture in another light, perhaps mirrored."""
    gain, lift = random.uniform(0.75, 1.2) * random.uniform(0.92, 1.08, 3), random.uniform(-15, 25)
    lit = np.clip(face * gain + lift, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(lit[:, ::-1]) if random.random() < 0.5 else lit


def _voice(sound: FloatArray, seconds: float, random: np.random.Generator) -> FloatArray:
    """A stretch of the sound, higher or lower, with some noise."""
    speed, count = random.uniform(0.7, 1.4), round(seconds * RATE)
    start = random.uniform(0, len(sound) - speed * count - 1)
    voice = np.interp(start + speed * np.arange(count), np.arange(len(sound)), sound)
    voice *= random.uniform(0.3, 1.0)
    return np.asarray(voice + random.uniform(0.001, 0.03) * random.standard_normal(count), np.float32)


def _pictures(
    face: ByteArray, size: tuple[int, int], seconds: float, random: np.random.Generator
) -> Iterator[ByteArray]:
    """Frames: a background that drifts, the face before it, moved slowly, and the grain of a camera over all."""
    width, height = size
    texture = cv2.resize(random.integers(30, 190, (9, 16, 3), dtype=np.uint8), (width * 5 // 4, height * 5 // 4))
    grain = random.normal(0, 3, (4, height, width, 3)).astype(np.int8).astype(np.int16)
    fit = 0.9 * min(width / face.shape[1], height / face.shape[0])
    rates, phase = random.uniform(0.15, 0.4, 3), random.uniform(0, 2 * math.pi)
    for i in range(max(1, round(seconds * FPS))):
        a, b, c = (math.sin(2 * math.pi * rate * i / FPS + phase) for rate in rates)
        y, x = round((1 + a) / 2 * (height // 4 - 1)), round((1 + b) / 2 * (width // 4 - 1))
        picture = texture[y : y + height, x : x + width].copy()
        zoom = fit * (1 + 0.05 * c)
        left = (width - zoom * face.shape[1]) / 2 + 0.03 * width * a
        top = (height - zoom * face.shape[0]) / 2 + 0.02 * height * b
        motion = np.array([[zoom, 0.0, left], [0.0, zoom, top]])
        cv2.warpAffine(face, motion, size, picture, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
        yield np.clip(picture + grain[i % len(grain)], 0, 255).astype(np.uint8)


def _encode(
    path: Path,
    pictures: Iterator[ByteArray],
    sound: FloatArray,
    size: tuple[int, int],
    keyframes: int | None,
) -> None:
    options = {"crf": "23", "preset": "veryfast"}
    if keyframes:
        options["x264-params"] = f"keyint={keyframes}:min-keyint={keyframes}:scenecut=0"
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height = size
        video.pix_fmt, video.codec_context.thread_count = "yuv420p", 2
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        written = 0
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
            while written < min(len(sound), (i + 1) * RATE // FPS):
                block = av.AudioFrame.from_ndarray(sound[None, written : written + _BLOCK], "fltp", "mono")
                block.sample_rate, block.pts, block.time_base = RATE, written, Fraction(1, RATE)
                container.mux(audio.encode(block))
                written += _BLOCK
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
