"""Bundles: model directories with `config.json` and `model.safetensors`, and a folder for each foundation model.

Nothing in them is executed or unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from merfast import __version__, hub
from merfast.config import BundleConfig
from merfast.errors import BundleError, ConfigError, UnavailableError
from merfast.files import check_values, listed, new_folder, read_json, read_tensors, replace_file
from merfast.models import checkpoints
from merfast.models.model import FusedModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
ENCODERS = "encoders"  # folder of the foundation models, one folder for each stream


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle: where it is, its config, and its model in evaluation mode on the CPU."""

    path: Path
    config: BundleConfig
    model: FusedModel

    def __repr__(self) -> str:
        return f"Bundle({self.config.name!r}, trained={self.config.trained}, path={str(self.path)!r})"


def load(path: str | Path | None = None, *, described: Mapping[str, checkpoints.Checkpoint] | None = None) -> Bundle:
    """Read a bundle and check it against its config.

    The weights of foundation models stay mapped from their files: do not overwrite those in place while they are used.

    Args:
        path: a directory, or a hub id like "owner/name" or "owner/name@revision" that `pull` has put into the hub's
            local cache (the network is not used); None is the packaged mini bundle.
        described: stream -> what is known of its foundation model, whose files are then not read: it has no weights.

    Raises:
        BundleError: not a directory, a file is missing or damaged, another format version, or tensors that are not
            what the config calls for; the message says got and expected.
        ConfigError: a name in `described` is no stream of a foundation model.
        UnavailableError: a stream is a foundation model, and transformers is not installed, or a hub id is given, and
            huggingface_hub is not.
    """
    root, known = directory(path), dict(described or {})
    config = read_config(root)
    streams = {s.name: s for s in config.streams if s.encoder == "transformers"}
    if unknown := sorted(known.keys() - streams.keys()):
        expected = ", ".join(streams) or "none, the bundle has no foundation models"
        raise ConfigError(f"described: got {', '.join(unknown)}, expected of {expected}")
    tensors = read_tensors(root / WEIGHTS_FILE)
    outlines = {
        name: known.get(name) or checkpoints.outline(encoder_folder(root, name), s.modality)
        for name, s in streams.items()
    }
    model = _skeleton(config, outlines)
    _check_tensors(root / WEIGHTS_FILE, tensors, _own(model))
    model.load_state_dict(tensors, assign=True, strict=False)  # the names have been checked
    for name, encoder in model.foundations.items():
        if name not in known:
            encoder.network.model = checkpoints.read(encoder_folder(root, name), encoder.modality).model
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
    if absent := [n for n, e in model.foundations.items() if not _has_weights(e.network.model)]:
        raise BundleError(
            f"{root}: got streams without weights ({', '.join(absent)}), expected a bundle loaded as a whole"
        )
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
            checkpoints.write(encoder_folder(root, name), encoder.checkpoint)
        replace_file(root / WEIGHTS_FILE, safetensors.torch.save({name: tensors[name] for name in _own(skeleton)}))
        replace_file(root / CONFIG_FILE, content)
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{root}: cannot be written: {error}") from error


def push(
    path: str | Path,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Put a bundle on the hub, as one commit, after checking it; only the files of `bundle_files` go there.

    Args:
        path: directory of the bundle.
        name: "owner/name"; the repository is made if it is not there.
        private: whether only its owner may see it.
        revision: branch, made if it is not there; None is the main one.
        endpoint: address of the hub, if another one.
        token: to log in with, if not the one that `hf auth login` saved.

    Returns:
        The commit's address.

    Raises:
        BundleError: as `load`.
        ConfigError: not such a name, or a public repository that is to be private.
        UnavailableError: huggingface_hub is not installed, it is not allowed, or the hub cannot be reached.
    """
    repo = hub.named(name, revision)
    root = Path(path)
    if not root.is_dir():
        raise BundleError(f"{root}: not a directory")
    files = {f: root / f for f in bundle_files(verify(root)) if (root / f).is_file()}
    message = f"Bundle of merfast {__version__}"
    return hub.upload(repo, files, private=private, message=message, endpoint=endpoint, token=token)


def pull(
    name: str,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Path:
    """Get a bundle from the hub and check it; nothing but the files of `bundle_files` is taken.

    Args:
        name: "owner/name" or "owner/name@revision".
        out: a new directory to copy it to, which is there if all is well; None leaves it in the hub's local cache,
            where `load(name)` finds it.
        revision: branch, tag or commit; None is the main branch.
        endpoint: address of the hub, if another one.
        token: to log in with, if not the one that `hf auth login` saved.

    Returns:
        The directory.

    Raises:
        BundleError: what is there is no bundle, or a damaged one; `load(name)` then finds what it found before.
        ConfigError: not such a name, or `out` is there and not empty.
        UnavailableError: huggingface_hub is not installed, there is no such repository or revision, it may not be seen,
            or the hub cannot be reached.
    """
    repo = hub.named(name, revision)
    with ExitStack() as stack:
        part = None if out is None else stack.enter_context(new_folder(Path(out)))
        there = hub.look(repo, endpoint=endpoint, token=token)
        if CONFIG_FILE not in there.files:
            raise BundleError(f"{repo}: got no {CONFIG_FILE} on the hub, expected a bundle")
        exact = hub.Repository(repo.name, there.commit)
        folder = hub.fetch(exact, [CONFIG_FILE], endpoint=endpoint, token=token)
        try:
            files = bundle_files(read_config(folder))
            hub.fetch(exact, files, endpoint=endpoint, token=token)
            verify(folder)
        except BundleError as error:
            raise BundleError(f"{repo}: {str(error).replace(f'{folder}/', '')}") from error
        if part is not None:
            for file in (f for f in files if (folder / f).is_file()):
                (part / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, part / file)
            verify(part)  # a disk may be full
            return Path(str(out))
    # Only now the cache learns that the revision is this commit.
    if hub.fetch(repo, [CONFIG_FILE], endpoint=endpoint, token=token) != folder:
        raise UnavailableError(f"{repo}: changed on the hub meanwhile: pull it again")
    return folder


def bundle_files(config: BundleConfig) -> list[str]:
    """Paths of all files that a bundle with this config may have, `README.md` included; they travel, and no others."""
    foundations = [s.name for s in config.streams if s.encoder == "transformers"]
    parts = (checkpoints.CONFIG_FILE, checkpoints.PROCESSOR_FILE, checkpoints.WEIGHTS_FILE)
    folders = [encoder_folder(Path(), name).as_posix() for name in foundations]
    return [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, *(f"{folder}/{part}" for folder in folders for part in parts)]


def read_config(root: Path) -> BundleConfig:
    """The config in a bundle's directory; what else is there is not looked at.

    Raises:
        BundleError: missing, damaged, or not one.
    """
    file = root / CONFIG_FILE
    data = read_json(file)
    try:
        return BundleConfig.from_dict(data)
    except BundleError as error:
        raise BundleError(f"{file}: {error}") from None


def encoder_folder(root: Path, stream: str) -> Path:
    """Where a bundle in `root` has the foundation model of a stream.

    Raises:
        BundleError: no stream can have that name.
    """
    if not stream.isidentifier():
        raise BundleError(f"config stream {stream!r}: name cannot be used, expected a word like 'voice'")
    return root / ENCODERS / stream


def packaged() -> Path:
    """Directory of the mini bundle that comes with merfast."""
    return Path(str(resources.files("merfast") / "assets" / "mini"))


def directory(path: str | Path | None) -> Path:
    """The directory of a bundle, as `load` takes it.

    Raises:
        BundleError: there is none.
        UnavailableError: a hub id is given, and huggingface_hub is not installed.
    """
    root = packaged() if path is None else Path(path)
    if root.is_dir():
        return root
    if path is None or (repo := hub.repository(path)) is None:
        raise BundleError(f"{root}: not a directory")
    if (there := hub.cached(repo)) is None:
        revision = f" --revision {repo.revision}" if repo.revision else ""
        raise BundleError(
            f"{repo}: not a directory, and not in the hub's local cache: merfast bundle pull {repo.name}{revision}"
        )
    return there


def _has_weights(model: nn.Module) -> bool:
    return any(True for _ in model.parameters()) and not any(p.is_meta for p in model.parameters())


def _own(model: FusedModel) -> dict[str, Tensor]:
    """What is in the bundle's own weights file: all but the foundation models."""
    others = tuple(f"encoders.{name}.network.model." for name in model.foundations)
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
