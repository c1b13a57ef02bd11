"""The starting bundle: encoders as features are made with, fusion untrained."""

from __future__ import annotations

from pathlib import Path

import torch

from merfast import bundle as bundles
from merfast.config import BundleConfig, StreamConfig
from merfast.errors import BundleError
from merfast.models.checkpoints import Checkpoint, load_pretrained
from merfast.models.model import FusedModel
from training.branches import load_branches
from training.data import DataError
from training.project import Project
from training.states import gatherings


def prepare_start(project: Project) -> None:
    """Write the starting bundle if it is not there: from the trained branches, or from the recipe's `encoders`.

    Raises:
        BundleError, UnavailableError: an encoder cannot be used or had.
        DataError: the branches are not trained yet, or a bundle lacks a stream.
    """
    recipe = project.recipe
    config = recipe.bundle_config(provenance={"start": recipe.fingerprint(recipe.streams, recipe.encoders)})
    if _is_there(project.start, config.provenance):
        return
    sources = recipe.encoders
    if unknown := sorted(set(sources) - {s.name for s in recipe.streams}):
        raise DataError(f"recipe encoders: got {', '.join(unknown)}, expected names of streams")
    checkpoints: dict[str, Checkpoint] = {}
    for stream in recipe.streams:
        if stream.encoder == "transformers":
            given = sources.get(stream.name)
            if given is None or not given.source:
                raise DataError(f"recipe encoders.{stream.name}.source: got none, expected a folder or a hub id")
            checkpoints[stream.name] = load_pretrained(
                _in_bundle(Path(given.source), stream) or given.source,
                given.revision,
                modality=stream.modality,
                download=given.download,
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = FusedModel(config, checkpoints)
    if recipe.kind == "composites":
        load_branches(project, model)
    else:
        for stream in recipe.streams:
            if stream.encoder != "transformers":
                given = sources.get(stream.name)
                _copy(model, stream.name, Path(given.source) if given and given.source else None)
    for name, gathering in gatherings(model).items():
        source = Path(sources[name].source)
        if bundles.encoder_folder(source, name).is_dir():
            gathering.load_state_dict(gatherings(bundles.load(source).model)[name].state_dict())
    bundles.save(project.start, config, model.eval())


def _is_there(path: Path, provenance: dict[str, object]) -> bool:
    try:
        return bundles.verify(path).provenance == provenance
    except BundleError:
        return False


def _in_bundle(path: Path, stream: StreamConfig) -> Path | None:
    """The folder of that stream's checkpoint, if `path` is a bundle that has one."""
    folder = bundles.encoder_folder(path, stream.name)
    if not folder.is_dir():
        return None
    _same(path, bundles.read_config(path), stream)
    return folder


def _copy(model: FusedModel, stream: str, path: Path | None) -> None:
    """The weights of that stream from another bundle."""
    other = bundles.load(path)
    _same(other.path, other.config, {s.name: s for s in model.config.streams}[stream])
    model.encoders[stream].load_state_dict(other.model.encoders[stream].state_dict())


def _same(path: Path, config: BundleConfig, ours: StreamConfig) -> None:
    """Refuse a bundle whose stream of that name is not what the recipe says."""
    theirs = {s.name: s for s in config.streams}
    if ours.name not in theirs:
        raise DataError(f"{path}: got no stream {ours.name!r}, expected it among {', '.join(theirs)}")
    if theirs[ours.name] != ours:
        raise DataError(
            f"stream {ours.name!r}: the bundle {path} has {theirs[ours.name]}, the recipe {ours}: expected the same"
        )
