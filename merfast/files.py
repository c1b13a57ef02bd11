"""Files of a model directory: JSON and safetensors with errors that name the file, and what is written whole or not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import torch
from torch import Tensor

from merfast.errors import BundleError, ConfigError


def read_json(file: Path) -> Mapping[str, Any]:
    """The object in a JSON file.

    Raises:
        BundleError: missing, not JSON, or another thing than an object.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        data = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise BundleError(f"{file}: missing") from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(data, Mapping):
        raise BundleError(f"{file}: got {type(data).__name__}, expected an object")
    return data


def read_tensors(file: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """The tensors in a safetensors file, by name.

    Args:
        file: to read.
        mapped: leave the values in the file, of which only what is looked at is in memory, shared by all processes that
            have it open. A tensor that is written to changes in this process alone. Replacing the file by another one
            (renaming) changes nothing either; overwriting or shortening it in place does, as with a shared library.
            False gives each tensor memory of its own.

    Raises:
        BundleError: missing, or not safetensors.
    """
    if not file.is_file():
        raise BundleError(f"{file}: missing")
    try:
        with safetensors.safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            return {name: _apart(t) if mapped else t.clone() for name, t in tensors.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{file}: damaged or not safetensors: {error}") from error


def _apart(tensor: Tensor) -> Tensor:
    """The same memory as a storage of its own, which it is not in all versions of safetensors; copied if unaligned."""
    if not tensor.numel() or tensor.data_ptr() % tensor.element_size():
        return tensor.clone()
    return torch.from_numpy(tensor.view(-1).view(torch.uint8).numpy()).view(tensor.dtype).view(tensor.shape)


def check_values(file: Path, name: str, tensor: Tensor) -> None:
    """Refuse values that no weight can have.

    Raises:
        BundleError: NaN, infinity, or a variance below 0.
    """
    if not tensor.numel():
        return
    least, most = torch.aminmax(tensor)  # both are NaN if one value is, and no copy is made
    if name.endswith("running_var") and least < 0:
        raise BundleError(f"{file}: tensor {name!r}: got a negative variance, expected 0 or more")
    if not (least.isfinite() and most.isfinite()):
        raise BundleError(f"{file}: tensor {name!r}: got NaN or infinite values, expected finite ones")


def listed(what: str, names: list[str], most: int = 4) -> str:
    """`"; what: a, b and 3 more"`, or nothing if there are no names."""
    if not names:
        return ""
    return f"; {what}: {', '.join(names[:most])}" + (f" and {len(names) - most} more" if len(names) > most else "")


def replace_file(file: Path, data: bytes) -> None:
    """Write beside the file and rename, so that no reader sees half of it.

    Raises:
        OSError: writing fails.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with part.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, which takes its name when the block ends, and is removed if that fails.

    Raises:
        ConfigError: `path` is there, and is not an empty folder.
        OSError: it cannot be written there.
    """
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise ConfigError(f"{path}: exists, expected a new or an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield part
        part.chmod(0o755)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
