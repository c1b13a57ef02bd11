"""The YuNet face detector's file: fetched once on request, kept in the user's cache, trusted by its checksum only."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path

import platformdirs

from merfast.errors import UnavailableError

URL = "https://huggingface.co/opencv/face_detection_yunet/resolve/main/face_detection_yunet_2023mar.onnx"
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
TIMEOUT = 30.0
"""Seconds that the server may stall."""

_FILE = "face_detection_yunet_2023mar.onnx"
_SIZE_LIMIT = 1 << 20  # bytes; the file has 232,589


def cache_file() -> Path:
    """Where the detector is kept, whether it is there or not."""
    return platformdirs.user_cache_path("merfast") / _FILE


def cached() -> Path | None:
    """The detector's file in the user's cache, or None if it is absent, unreadable or not the one expected."""
    path = cache_file()
    try:
        with path.open("rb") as file:
            content = file.read(_SIZE_LIMIT)
    except OSError:
        return None
    return path if _digest(content) == SHA256 else None


def fetch(source: Path | None = None, *, url: str = URL, timeout: float = TIMEOUT) -> Path:
    """Put the detector into the user's cache; with neither a `source` nor a need (it is there), nothing happens.

    This is the one place where merfast itself uses the network.

    Args:
        source: a copy of the file on this machine, to be used instead of the network.
        url: where to download it from.
        timeout: seconds that the server may stall.

    Returns:
        The cached file.

    Raises:
        UnavailableError: it cannot be downloaded, read or stored, or has another checksum.
    """
    if source is None and (there := cached()) is not None:
        return there
    content = _download(url, timeout) if source is None else _read(source)
    got = _digest(content)
    if got != SHA256:
        origin = url if source is None else source
        raise UnavailableError(f"{origin}: is not {_FILE}: got sha256 {got} ({len(content)} bytes), expected {SHA256}")
    path = cache_file()
    try:
        _store(path, content)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(url: str, timeout: float) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            content: bytes = answer.read(_SIZE_LIMIT)
    except (OSError, http.client.HTTPException, ValueError) as error:  # OSError: urllib's URLError and HTTPError too
        why = getattr(error, "reason", None) or error
        raise UnavailableError(
            f"YuNet cannot be downloaded from {url} ({why}); without a connection, get the file by other means and "
            "run: merfast fetch yunet --from FILE"
        ) from error
    return content


def _read(source: Path) -> bytes:
    try:
        with source.open("rb") as file:
            return file.read(_SIZE_LIMIT)
    except OSError as error:
        raise UnavailableError(f"{source}: cannot be read ({error.strerror or error})") from error


def _store(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
