"""The starting bundle: encoders as features are made with, fusion untrained."""

from __future__ import annotations

from pathlib import Path

import torch

from merfast import bundle as bundles
from merfast.errors import BundleError
from merfast.models.checkpoints import Checkpoint, load_pretrained
from merfast.models.model import FusedModel
from training.branches import load_branches
from training.data import DataError
from training.project import Project


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
                given.source, given.revision, modality=stream.modality, download=given.download
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
    bundles.save(project.start, config, model.eval())


def _is_there(path: Path, provenance: dict[str, object]) -> bool:
    try:
        return bundles.verify(path).provenance == provenance
    except BundleError:
        return False


def _copy(model: FusedModel, stream: str, path: Path | None) -> None:
    """The weights of that stream from another bundle."""
    other = bundles.load(path)
    if stream not in other.model.encoders:
        raise DataError(f"{other.path}: got no stream {stream!r}, expected it among {', '.join(other.model.encoders)}")
    theirs, ours = ({s.name: s for s in c.streams}[stream] for c in (other.config, model.config))
    if theirs != ours:
        raise DataError(
            f"stream {stream!r}: the bundle {other.path} has {theirs}, the recipe {ours}: expected the same"
        )
    model.encoders[stream].load_state_dict(other.model.encoders[stream].state_dict())
