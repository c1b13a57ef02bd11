"""Reading the files of a model directory: JSON and safetensors, with errors that name the file."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
from torch import Tensor

from merfast.errors import BundleError


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


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, by name, in memory of their own.

    Raises:
        BundleError: missing, or not safetensors.
    """
    if not file.is_file():
        raise BundleError(f"{file}: missing")
    try:
        # Cloned: a tensor mapped from the file would change with it, and need not be aligned.
        return {name: t.clone() for name, t in safetensors.torch.load_file(file).items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{file}: damaged or not safetensors: {error}") from error


def check_values(file: Path, name: str, tensor: Tensor) -> None:
    """Refuse values that no weight can have.

    Raises:
        BundleError: NaN, infinity, or a variance below 0.
    """
    if name.endswith("running_var") and (tensor < 0).any():
        raise BundleError(f"{file}: tensor {name!r}: got a negative variance, expected 0 or more")
    if not tensor.isfinite().all():
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
