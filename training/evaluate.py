"""Score what was trained: `python -m training.evaluate RECIPE --data FOLDER --work FOLDER [--ablations]`.

Writes `report/scores.json`, `report/scores.md` and pictures to the working folder, and prints the tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merfast.types import EMOTIONS
from training.ablate import ablate
from training.branches import branch_results
from training.fusion import FeatureSet, Head, predict
from training.loop import LOG
from training.metrics import (
    DoubleArray,
    apply_temperature,
    confusion,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from training.plots import plot_confusion, plot_curves, plot_reliability
from training.project import Project, arguments, project_of, run
from training.store import Variant
from training.tables import markdown
from training.train import average, scores_of, train_part

CONDITIONS: dict[str, tuple[str, ...]] = {"audio+video": (), "audio only": ("video",), "video only": ("audio",)}
"""What is left -> the modalities that are taken away."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained head, and what it needs to be used."""

    part: str
    head: Head
    val: FeatureSet


def evaluate(project: Project) -> dict[str, Any]:
    """Score every part on its validation clips and all of them on the test sets.

    With folds, validation scores are those of all folds' clips together, each predicted by the fold that had not seen
    it, and test scores are those of the folds' average.

    Returns:
        Plain values for JSON.
    """
    trained = []
    for part in project.parts:
        _, head = train_part(project, part, project.recipe.train)
        trained.append(Trained(part.name, head, project.features(part.val, Variant())[1]))
    modalities = {s.name: s.modality for s in project.recipe.streams}
    posteriors, labels = [], []
    for one in trained:
        posterior, _ = average(one.head, *predict(one.head, one.val, modalities=modalities))
        seen = ~np.isnan(posterior[:, 0]) & (one.val.emotions.numpy() >= 0)
        posteriors.append(posterior[seen])
        labels.append(one.val.emotions.numpy()[seen])
    temperature = fit_temperature(np.concatenate(posteriors), np.concatenate(labels))
    sets = {"val": [(one, one.val) for one in trained]} if len(trained) == 1 else {}
    out: dict[str, Any] = {"recipe": project.recipe.name, "seed": project.recipe.seed, "temperature": temperature}
    out["sets"] = {}
    for name, samples in project.tests.items():
        clean, noisy = (project.features(samples, v)[1] for v in project.variants[name])
        sets[name] = [(one, clean) for one in trained]
        sets[f"{name}, noise"] = [(one, noisy) for one in trained]
    for name, pairs in sets.items():
        out["sets"][name] = evaluate_set(project, name, pairs, modalities, temperature)
    if len(trained) > 1:
        out["sets"]["folds"] = _pooled(project, trained, modalities, temperature)
    for one in trained:
        plot_curves(project.work / "fusion" / "main" / one.part / LOG, _report(project) / f"curves-{one.part}.png")
    return out


def evaluate_set(
    project: Project,
    name: str,
    pairs: Sequence[tuple[Trained, FeatureSet]],
    modalities: dict[str, str],
    temperature: float,
) -> dict[str, Any]:
    """Scores of one set of clips by modality present, and of each structure; averaged over the given heads."""
    data = pairs[0][1]
    out: dict[str, Any] = {}
    for condition, absent in CONDITIONS.items():
        if absent and set(modalities.values()) <= set(absent):
            continue
        each = [predict(one.head, d, modalities=modalities, absent=absent) for one, d in pairs]
        posteriors, valences = (np.mean([e[k] for e in each], axis=0) for k in (0, 1))
        posterior, valence = average(pairs[0][0].head, posteriors, valences)
        if np.isnan(posterior).all():
            continue
        out[condition] = _scores(posterior, valence, data, temperature)
        if not absent:
            structures = list(pairs[0][0].head.structures)
            out["structures"] = {
                s: scores_of(posteriors[k], valences[k], data).to_dict() for k, s in enumerate(structures)
            }
            _pictures(project, name, posterior, data, temperature)
    return out


def _scores(posterior: DoubleArray, valence: DoubleArray, data: FeatureSet, temperature: float) -> dict[str, Any]:
    known = ~np.isnan(posterior[:, 0]) & (data.emotions.numpy() >= 0)
    calibrated = apply_temperature(posterior[known], temperature)
    after = expected_calibration_error(calibrated, data.emotions.numpy()[known])
    return scores_of(posterior, valence, data).to_dict() | {"ece_scaled": round(after, 4)}


def _pictures(project: Project, name: str, posterior: DoubleArray, data: FeatureSet, temperature: float) -> None:
    known = ~np.isnan(posterior[:, 0]) & (data.emotions.numpy() >= 0)
    rows, labels = posterior[known], data.emotions.numpy()[known]
    stem = name.replace(", ", "-").replace(" ", "-")
    folder = _report(project)
    plot_confusion(
        confusion(labels, rows.argmax(1)), folder / f"confusion-{stem}.png", f"{project.recipe.name}: {name}"
    )
    plot_reliability(
        reliability(rows, labels),
        reliability(apply_temperature(rows, temperature), labels),
        folder / f"reliability-{stem}.png",
    )


def _pooled(
    project: Project, trained: Sequence[Trained], modalities: dict[str, str], temperature: float
) -> dict[str, Any]:
    """Scores of all folds' validation clips together, each from its own fold's head."""
    out: dict[str, Any] = {}
    emotions = torch.cat([one.val.emotions for one in trained])
    valences = torch.cat([one.val.valences for one in trained])
    labels = FeatureSet({}, torch.arange(len(emotions)), torch.ones(len(emotions)), emotions, valences)
    for condition, absent in CONDITIONS.items():
        if absent and set(modalities.values()) <= set(absent):
            continue
        each = [average(o.head, *predict(o.head, o.val, modalities=modalities, absent=absent)) for o in trained]
        posterior, valence = (np.concatenate([e[k] for e in each]) for k in (0, 1))
        if np.isnan(posterior).all():
            continue
        out[condition] = _scores(posterior, valence, labels, temperature)
    return out


def _report(project: Project) -> Path:
    folder = project.work / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    columns = ("set", "given", "weighted F1", "accuracy", "MSE", "MER-MULTI", "ECE", "ECE scaled", "clips")
    rows, classes, structures = [], [], []
    for name, result in results["sets"].items():
        for condition, s in result.items():
            if condition == "structures":
                structures += [_row({"set": name, "given": k}, v) for k, v in s.items()]
                continue
            rows.append(_row({"set": name, "given": condition}, s))
            classes.append({"set": name, "given": condition} | s["class_f1"])
    parts = [
        "Scores of the average of the structures\n\n" + markdown(rows, columns),
        "F1 by class\n\n" + markdown(classes, ("set", "given", *EMOTIONS)),
        "Each structure\n\n" + markdown(structures, columns[:6]),
    ]
    if branches := results.get("branches"):
        parts.append("Branches alone\n\n" + markdown(branches, ("branch", "scored on", "weighted F1", "accuracy", "n")))
    if ablations := results.get("ablations"):
        shown = ("variant", "weighted F1", "MSE", "MER-MULTI", "noisy weighted F1", "noisy MER-MULTI")
        parts.append("Ablations\n\n" + markdown(ablations, shown))
    return "\n\n".join(parts) + "\n"


def _row(head: dict[str, object], scores: dict[str, Any]) -> dict[str, object]:
    names = {
        "weighted_f1": "weighted F1",
        "accuracy": "accuracy",
        "mse": "MSE",
        "mer_multi": "MER-MULTI",
        "ece": "ECE",
        "ece_scaled": "ECE scaled",
        "n": "clips",
    }
    return head | {names[k]: scores.get(k) for k in names}


def write_scores(project: Project, *, ablations: bool = False) -> None:
    """Score everything, write it to the report, and print the tables."""
    results = evaluate(project)
    if project.recipe.kind == "composites":
        results["branches"] = branch_results(project)
    if ablations:
        results["ablations"] = ablate(project)
    folder = _report(project)
    (folder / "scores.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = tables(results)
    (folder / "scores.md").write_text(text, encoding="utf-8")
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    extra = [("--ablations", {"action": "store_true", "help": "train and score the ablations too"})]
    options = arguments(__doc__, extra).parse_args(argv)  # type: ignore[arg-type]
    torch.set_num_threads(1)

    return run(lambda: write_scores(project_of(options), ablations=options.ablations))


if __name__ == "__main__":
    raise SystemExit(main())
