"""The ablation table: one run of training for each thing taken away."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from training.fusion import predict
from training.metrics import Scores
from training.project import Part, Project
from training.recipe import TrainRecipe
from training.store import Variant
from training.train import average, only, scores_of, train_part

VARIANTS: dict[str, tuple[dict[str, str], str | None]] = {
    "average of three (joint, uncertainty, AFG)": ({}, None),
    "parallel decoding": ({"decoding": "parallel"}, None),
    "fixed weights of the losses": ({"weighting": "fixed"}, None),
    "mean pooling instead of AFG": ({"gathering": "mean"}, None),
    "audio streams alone": ({}, "audio"),
    "video streams alone": ({}, "video"),
}
"""Name -> changes of the training recipe, and the only modality."""


def ablate(project: Project) -> list[dict[str, Any]]:
    """One row for each structure of the full model and for each variant, scored on the first test set.

    Variants are trained side by side; those of a former call are read.
    """
    modalities = {s.modality for s in project.recipe.streams}
    names = [n for n, (_, only_one) in VARIANTS.items() if only_one is None or len(modalities) > 1]
    jobs = [(project.recipe, project.data, project.work, project.detector_model, name) for name in names]
    if project.workers == 1:
        return [row for job in jobs for row in _variant(job)]
    with ProcessPoolExecutor(project.workers, mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(_variant, jobs) for row in rows]


def _variant(job: tuple[Any, ...]) -> list[dict[str, Any]]:
    recipe, data, work, detector_model, name = job
    torch.set_num_threads(1)
    project = Project(recipe, data, work, detector_model=detector_model)
    changes, modality = VARIANTS[name]
    train: TrainRecipe = replace(recipe.train, **changes)
    part = project.parts[0]
    full = not changes and modality is None
    if modality is not None and not _has(project, part, modality):
        return []
    folder = "main" if full else name.replace(" ", "-")
    _, head = train_part(project, part, train, name=folder, modality=modality)
    test, samples = next(iter(project.tests.items()))
    modalities = {s.name: s.modality for s in recipe.streams if modality in (None, s.modality)}
    results: dict[tuple[str, str], Scores] = {}
    for variant in project.variants[test]:
        features = only(project.features(samples, variant)[1], modalities)
        posteriors, valences = predict(head, features, modalities=modalities)
        results[variant.name, "average"] = scores_of(*average(head, posteriors, valences), features)
        for k, structure in enumerate(head.structures):
            results[variant.name, structure] = scores_of(posteriors[k], valences[k], features)
    rows = [_row(name, results, "average")]
    if full:
        rows = [_row(f"structure: {s}", results, s) for s in head.structures] + rows
    return rows


def _has(project: Project, part: Part, modality: str) -> bool:
    """Whether clips of both training and validation have that modality."""
    names = [s.name for s in project.recipe.streams if s.modality == modality]
    each = [project.features(samples, Variant())[1] for samples in (part.train, part.val)]
    return all(any(data.streams[name].lengths.any() for name in names) for data in each)


def _row(name: str, results: Mapping[tuple[str, str], Scores], which: str) -> dict[str, Any]:
    clean, noise = results["clean", which], results["noise", which]
    values = {
        "weighted F1": clean.weighted_f1,
        "MSE": clean.mse,
        "MER-MULTI": clean.mer_multi,
        "noisy weighted F1": noise.weighted_f1,
        "noisy MER-MULTI": noise.mer_multi,
    }
    return {"variant": name} | {k: None if v is None else round(float(np.float64(v)), 4) for k, v in values.items()}
