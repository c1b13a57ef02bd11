"""Bundles: model directories with `config.json` and `model.safetensors`. Nothing in them is executed or unpickled."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from merfast.config import BundleConfig
from merfast.errors import BundleError
from merfast.models.model import FusedModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle: where it is, its config, and its model in evaluation mode on the CPU."""

    path: Path
    config: BundleConfig
    model: FusedModel

    def __repr__(self) -> str:
        return f"Bundle({self.config.name!r}, trained={self.config.trained}, path={str(self.path)!r})"


def load(path: str | Path | None = None) -> Bundle:
    """Read a bundle and check it against its config; None is the packaged mini bundle.

    Raises:
        BundleError: not a directory, a file is missing or damaged, another format version, or tensors that are not
            what the config calls for; the message says got and expected.
    """
    root = packaged() if path is None else Path(path)
    if not root.is_dir():
        hub = isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path)
        hint = "; hub ids are not supported by this version" if hub else ""
        raise BundleError(f"{root}: not a directory{hint}")
    config = _read_config(root / CONFIG_FILE)
    tensors = _read_tensors(root / WEIGHTS_FILE)
    model = _skeleton(config)
    _check_tensors(root / WEIGHTS_FILE, tensors, model)
    model.load_state_dict(tensors, assign=True)
    return Bundle(root, config, model.eval())


def verify(path: str | Path | None = None) -> BundleConfig:
    """The config of a bundle that `load` would accept.

    Raises:
        BundleError: as `load`.
    """
    return load(path).config


def save(path: str | Path, config: BundleConfig, model: FusedModel) -> None:
    """Write a bundle; the directory is made if needed, and each file replaced in one step.

    The same config and weights give the same bytes.

    Raises:
        BundleError: the model does not fit the config, the config does not fit JSON, or writing fails.
    """
    root = Path(path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    _check_tensors(root / WEIGHTS_FILE, tensors, _skeleton(config))
    try:
        text = json.dumps(config.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        content = text.encode()
        BundleConfig.from_dict(json.loads(text))  # what loading would refuse is not written
    except (TypeError, ValueError) as error:
        raise BundleError(f"{root / CONFIG_FILE}: {error}") from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        _replace(root / WEIGHTS_FILE, safetensors.torch.save(tensors))
        _replace(root / CONFIG_FILE, content)
    except OSError as error:
        raise BundleError(f"{root}: cannot be written: {error}") from error


def packaged() -> Path:
    """Directory of the mini bundle that comes with merfast."""
    return Path(str(resources.files("merfast") / "assets" / "mini"))


def _read_config(file: Path) -> BundleConfig:
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
    try:
        return BundleConfig.from_dict(data)
    except BundleError as error:
        raise BundleError(f"{file}: {error}") from None


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise BundleError(f"{file}: missing")
    try:
        # Cloned: a tensor mapped from the file would change with it, and need not be aligned.
        return {name: t.clone() for name, t in safetensors.torch.load_file(file).items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{file}: damaged or not safetensors: {error}") from error


def _skeleton(config: BundleConfig) -> FusedModel:
    """The model without memory for its weights, and without touching the random state."""
    try:
        with torch.device("meta"):
            return FusedModel(config).float()
    except (RuntimeError, OverflowError, TypeError) as error:
        raise BundleError(f"config does not describe a model: {error}") from error


def _check_tensors(file: Path, tensors: Mapping[str, Tensor], model: FusedModel) -> None:
    expected: dict[str, Any] = model.state_dict()
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise BundleError(
            f"{file}: got {len(tensors)} tensors, expected {len(expected)}"
            + _listed("missing", missing)
            + _listed("unexpected", unexpected)
        )
    for name, tensor in tensors.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            got, want = (f"{t.dtype} {list(t.shape)}" for t in (tensor, wanted))
            raise BundleError(f"{file}: tensor {name!r}: got {got}, expected {want}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise BundleError(f"{file}: tensor {name!r}: got a negative variance, expected 0 or more")
        if not tensor.isfinite().all():
            raise BundleError(f"{file}: tensor {name!r}: got NaN or infinite values, expected finite ones")


def _listed(what: str, names: list[str], most: int = 4) -> str:
    if not names:
        return ""
    return f"; {what}: {', '.join(names[:most])}" + (f" and {len(names) - most} more" if len(names) > most else "")


def _replace(file: Path, data: bytes) -> None:
    """Write beside the file and rename, so that no reader sees half of it."""
    part = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with part.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
