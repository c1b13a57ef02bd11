"""Reading media for training, through the engine's own decoder."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from merfast.errors import MediaError
from merfast.media.decode import AudioChunk, open_media
from merfast.types import FloatArray
from training.data import DataError


def file_hash(file: Path) -> str:
    """sha256 of a file's content, in hexadecimal; read again only when its size or time has changed.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        now = file.stat()
        return _hash(file, now.st_size, now.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{file}: cannot read the clip: {error.strerror or error}") from error


@lru_cache(maxsize=65536)
def _hash(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_audio(file: Path) -> FloatArray:
    """The sound of a file, `[N]` float32 mono at 16 kHz.

    Raises:
        MediaError: the file cannot be decoded, or has no sound.
    """
    media = open_media(file, name=str(file), decoder="pyav", frame_rate=1.0, want_video=False, threads=1)
    try:
        parts = [event.samples for event in media.events() if isinstance(event, AudioChunk)]
    finally:
        media.close()
    if not parts:
        raise MediaError(str(file), "holds no sound")
    return np.concatenate(parts)
