"""A folder of compiled files, each in a folder of its own with the key that it was made for; safe to delete.

An entry appears whole or not at all, also when several processes make it at once. One that was made for another key (an
older checkpoint, another GPU) is never taken, nor one whose files are not as long as they were: key and lengths are
compared, not names alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from merfast.errors import BundleError

KEY_FILE = "key.json"

Key = Mapping[str, Any]
"""Everything that what is compiled depends on, as JSON has it."""


def digest_of(key: Key) -> str:
    """16 hexadecimal digits that stand for a key."""
    return hashlib.sha256(_text(key).encode()).hexdigest()[:16]


def file_digest(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error}") from error


class Cache:
    """Compiled files below `root`, which is made when something is put there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, name: str, key: Key) -> Path:
        """Folder of an entry, whether it is there or not."""
        return self.root / f"{name}-{digest_of(key)}"

    def find(self, name: str, key: Key) -> Path | None:
        """Folder of the entry with this key, or None if there is none, or one that is damaged: files are counted."""
        place = self.place(name, key)
        try:
            there = json.loads((place / KEY_FILE).read_text(encoding="utf-8"))
            whole = there == json.loads(_text({"key": key, "files": _files(place)}))
        except (OSError, ValueError):
            return None
        return place if whole else None

    def get(self, name: str, key: Key, make: Callable[[Path], None]) -> Path:
        """Folder of the entry with this key; if there is none, `make` fills an empty folder, which becomes it.

        Raises:
            OSError: the entry cannot be written.
            Exception: whatever `make` raises; then there is no entry.
        """
        if (there := self.find(name, key)) is not None:
            return there
        self.root.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=self.root, prefix=f".{name}-"))
        try:
            make(part)
            (part / KEY_FILE).write_text(_text({"key": key, "files": _files(part)}) + "\n", encoding="utf-8")
            for file in part.rglob("*"):
                if file.is_file():
                    shutil.copymode(part / KEY_FILE, file)  # some libraries keep their files from other users
                    with file.open("rb+") as written:
                        os.fsync(written.fileno())
            part.chmod(0o755)
            self._put(part, name, key)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return self.place(name, key)

    def _put(self, part: Path, name: str, key: Key) -> None:
        """Make a folder the entry, unless another process or thread was faster."""
        place = self.place(name, key)
        with contextlib.suppress(OSError):
            part.rename(place)  # succeeds where there is nothing
            return
        # What is there is damaged (it has the name, not the key), or whole by now. Only here is an entry taken away.
        with _alone(self.root), tempfile.TemporaryDirectory(dir=self.root, prefix=f".{name}-") as away:
            if self.find(name, key) is not None:
                return
            with contextlib.suppress(FileNotFoundError):
                place.rename(Path(away) / "damaged")
            try:
                part.rename(place)
            except OSError:
                if self.find(name, key) is None:
                    raise


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep out everyone else who asks to be alone in a folder, where its file system can do that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _files(folder: Path) -> dict[str, int]:
    """Sizes in bytes of the files below a folder, but for the key's."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.stat().st_size for name, file in sorted(files.items()) if name != KEY_FILE}


def _text(key: Key) -> str:
    return json.dumps(key, sort_keys=True, indent=1)
