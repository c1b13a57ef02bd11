"""Bundles: model directories with `config.json` and `model.safetensors`, and a folder for each foundation model.

Nothing in them is executed or unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from merfast.config import BundleConfig
from merfast.errors import BundleError
from merfast.files import check_values, listed, read_json, read_tensors, replace_file
from merfast.models import checkpoints
from merfast.models.model import FusedModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ENCODERS = "encoders"  # folder of the foundation models, one folder for each stream


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
        UnavailableError: a stream is a foundation model, and transformers is not installed.
    """
    root = packaged() if path is None else Path(path)
    if not root.is_dir():
        hub = isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path)
        hint = "; hub ids are not supported by this version" if hub else ""
        raise BundleError(f"{root}: not a directory{hint}")
    config = _read_config(root / CONFIG_FILE)
    tensors = read_tensors(root / WEIGHTS_FILE)
    streams = {s.name: s for s in config.streams if s.encoder == "transformers"}
    outlines = {name: checkpoints.outline(_folder(root, name), s.modality) for name, s in streams.items()}
    model = _skeleton(config, outlines)
    _check_tensors(root / WEIGHTS_FILE, tensors, _own(model))
    model.load_state_dict(tensors, assign=True, strict=False)  # the names have been checked
    for name, encoder in model.foundations.items():
        encoder.model = checkpoints.read(_folder(root, name), encoder.modality).model
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
    outlines = {name: encoder.checkpoint.outline() for name, encoder in model.foundations.items()}
    skeleton = _skeleton(config, outlines)
    _check_tensors(root / WEIGHTS_FILE, tensors, skeleton.state_dict())
    try:
        text = json.dumps(config.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        content = text.encode()
        BundleConfig.from_dict(json.loads(text))  # what loading would refuse is not written
    except (TypeError, ValueError) as error:
        raise BundleError(f"{root / CONFIG_FILE}: {error}") from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name, encoder in model.foundations.items():
            checkpoints.write(_folder(root, name), encoder.checkpoint)
        replace_file(root / WEIGHTS_FILE, safetensors.torch.save({name: tensors[name] for name in _own(skeleton)}))
        replace_file(root / CONFIG_FILE, content)
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{root}: cannot be written: {error}") from error


def packaged() -> Path:
    """Directory of the mini bundle that comes with merfast."""
    return Path(str(resources.files("merfast") / "assets" / "mini"))


def _read_config(file: Path) -> BundleConfig:
    data = read_json(file)
    try:
        return BundleConfig.from_dict(data)
    except BundleError as error:
        raise BundleError(f"{file}: {error}") from None


def _folder(root: Path, stream: str) -> Path:
    """Where the foundation model of a stream lies."""
    if not stream.isidentifier():
        raise BundleError(f"config stream {stream!r}: name cannot be used, expected a word like 'voice'")
    return root / ENCODERS / stream


def _own(model: FusedModel) -> dict[str, Tensor]:
    """What is in the bundle's own weights file: all but the foundation models."""
    others = tuple(f"encoders.{name}.model." for name in model.foundations)
    return {name: t for name, t in model.state_dict().items() if not name.startswith(others)}


def _skeleton(config: BundleConfig, outlines: Mapping[str, checkpoints.Checkpoint]) -> FusedModel:
    """The model without memory for its weights, and without touching the random state."""
    try:
        with torch.device("meta"):
            return FusedModel(config, outlines).float()
    except (RuntimeError, OverflowError, TypeError) as error:
        raise BundleError(f"config does not describe a model: {error}") from error


def _check_tensors(file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise BundleError(
            f"{file}: got {len(tensors)} tensors, expected {len(expected)}"
            + listed("missing", missing)
            + listed("unexpected", unexpected)
        )
    for name, tensor in tensors.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            got, want = (f"{t.dtype} {list(t.shape)}" for t in (tensor, wanted))
            raise BundleError(f"{file}: tensor {name!r}: got {got}, expected {want}")
        check_values(file, name, tensor)
