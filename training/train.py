"""Train the three structures on cached features: `python -m training.train RECIPE --data FOLDER --work FOLDER`.

Killed at any time, the same command goes on from the last epoch, and ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from merfast import bundle as bundles
from merfast.config import StreamConfig
from merfast.models.model import FusedModel
from training.fusion import Batches, FeatureSet, Head, class_valences, class_weights, loss_terms, predict
from training.loop import fit
from training.metrics import DoubleArray, Scores, score
from training.project import Part, Project, arguments, project_of, run
from training.recipe import TrainRecipe
from training.store import Variant


def train_part(
    project: Project, part: Part, recipe: TrainRecipe, *, name: str = "main", modality: str | None = None
) -> tuple[FusedModel, Head]:
    """Train the fusion, and gatherings over encoders' layers, on one part, or read what was trained before.

    Args:
        project: recipe, data and folders; its features are made.
        part: what trains and what validates.
        recipe: how.
        name: of the run; runs of one name but another recipe are refused.
        modality: use its streams alone, for the ablation.

    Returns:
        The model with the starting encoders and all that was trained, and its head, both in evaluation mode.

    Raises:
        DataError: features are missing, or the folder holds another run.
    """
    start = bundles.load(project.start)
    streams = tuple(s for s in start.config.streams if modality in (None, s.modality))
    model = fresh(start.model, streams, project.recipe.seed)
    modalities = {s.name: s.modality for s in streams}
    renderings = [project.features(part.train, v)[1] for v in project.variants["train"]]
    val = project.features(part.val, Variant())[1]
    renderings, val = [only(r, modalities) for r in renderings], only(val, modalities)
    data = renderings[0]
    means = class_valences(data.emotions, data.valences)
    if means is not None:
        with torch.no_grad():
            model.decoder.class_valence.copy_(means)
    head = Head(model, recipe)
    batches = Batches(renderings, modalities, recipe)
    weights = class_weights(data.emotions, recipe.balance)

    def judge(head: torch.nn.Module, epoch: int) -> dict[str, float]:
        result, _, _ = average_scores(head, val, modalities)  # type: ignore[arg-type]
        return {"f1": result.weighted_f1, "mse": result.mse or 0.0, "score": combined(result)}

    folder = project.work / "fusion" / name / part.name
    names = [s.name for s in part.train]
    kept = fit(
        head,
        recipe.schedule,
        folder=folder,
        seed=project.recipe.seed,
        batches=batches,
        steps=len(batches),
        loss=lambda head, batch: loss_terms(head, batch, weights, recipe.smoothing),  # type: ignore[arg-type]
        score=judge,
        fingerprint=project.recipe.fingerprint(recipe, modality, start.config, names, *head.layers),
        progress=lambda line: project.say(f"{name}, {part.name}: {line}"),
    )
    head.load_state_dict(kept.state_dict())
    return model.eval(), head.eval()


def fresh(start: FusedModel, streams: Sequence[StreamConfig], seed: int) -> FusedModel:
    """A model with the encoders of `start`, of those streams, and a new fusion."""
    config = replace(start.config, streams=tuple(streams))
    names = {s.name for s in streams}
    checkpoints = {name: e.checkpoint for name, e in start.foundations.items() if name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FusedModel(config, checkpoints)
    model.encoders.load_state_dict({n: t for n, t in start.encoders.state_dict().items() if n.split(".")[0] in names})
    return model


def only(data: FeatureSet, names: Collection[str]) -> FeatureSet:
    """The features of some of the streams."""
    return replace(data, streams={n: r for n, r in data.streams.items() if n in names})


def average(head: Head, posteriors: DoubleArray, valences: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Average of the structures' posteriors `[S, N, 6]` and valences `[S, N]`."""
    mix = head.mix.double().numpy()
    return np.einsum("s,snc->nc", mix, posteriors), mix @ valences


def average_scores(
    head: Head, data: FeatureSet, modalities: Mapping[str, str], absent: Sequence[str] = ()
) -> tuple[Scores, DoubleArray, DoubleArray]:
    """Scores of the average over the labelled clips that have something left, its posteriors, and its valences."""
    posterior, valence = average(head, *predict(head, data, modalities=modalities, absent=absent))
    return scores_of(posterior, valence, data), posterior, valence


def scores_of(posterior: DoubleArray, valence: DoubleArray, data: FeatureSet) -> Scores:
    """Scores over the clips that have a prediction."""
    seen = ~np.isnan(posterior[:, 0])
    emotions, valences = data.emotions.numpy()[seen], data.valences.numpy()[seen]
    return score(posterior[seen], emotions, valence[seen], valences)


def combined(scores: Scores) -> float:
    """What early stopping goes by: MER-MULTI, or weighted F1 where there are no valence labels."""
    return scores.weighted_f1 if scores.mer_multi is None else scores.mer_multi


def train(project: Project) -> None:
    """Train all parts of the recipe."""
    for part in project.parts:
        train_part(project, part, project.recipe.train)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__).parse_args(argv)
    torch.set_num_threads(1)
    return run(lambda: train(project_of(options)))


if __name__ == "__main__":
    raise SystemExit(main())
