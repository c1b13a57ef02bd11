"""The mini recipe's branches: each encoder with a classifier of its own, trained before the fusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from merfast.files import replace_file
from merfast.models.encoders import build_encoder
from merfast.models.facecnn import FaceCNN
from merfast.models.logmel import LogMel
from merfast.models.model import FusedModel
from merfast.models.prosody import Prosody
from merfast.ops.ragged import Ragged, set_index
from training import face, prosody, voice
from training.corpora import Utterance, fold_of
from training.data import DataError
from training.fusion import FeatureSet
from training.metrics import accuracy, weighted_f1
from training.project import Project
from training.store import Variant

FACE, VOICE, PROSODY = "face", "voice", "prosody"
"""Branches, and the streams that they train."""

STATISTICS = "statistics.safetensors"


def jobs(project: Project) -> list[str]:
    """What is to be trained: the longest first."""
    folds = [fold_name(k) for k in range(project.recipe.composites.folds)]
    return [FACE, VOICE, *(f"{VOICE}-{fold}" for fold in folds), PROSODY]


def fold_name(k: int) -> str:
    """Name of a fold of the voice branches' cross-validation."""
    return f"fold{k}"


def train_job(project: Project, job: str) -> None:
    """Train one of `jobs`, or nothing if that is done."""
    if job == PROSODY:
        _train_prosody(project)
    elif not _is_done(project, job):
        _save(project, job, _train_face(project) if job == FACE else _train_voice(project, job))


def _fingerprint(project: Project, job: str) -> str:
    """Hash of what a branch depends on, besides the files themselves."""
    recipe = project.recipe
    stream, _, fold = job.partition("-")
    if stream == FACE:
        settings: tuple[object, ...] = (recipe.face, recipe.composites.faces_held_out)
    else:
        heard = sorted({u.speaker for u in speech_of(project, fold or None)[0]})
        settings = (recipe.voice if stream == VOICE else recipe.prosody, heard)
    streams = [s for s in recipe.streams if s.name == stream]
    return recipe.fingerprint(settings, streams, recipe.preprocessing.crop_size)


def _is_done(project: Project, job: str) -> bool:
    try:
        with safetensors.safe_open(project.work / "encoders" / f"{job}.safetensors", "pt") as entries:
            return bool(entries.metadata()["fingerprint"] == _fingerprint(project, job))
    except (OSError, safetensors.SafetensorError, KeyError, TypeError):
        return False


def speech_of(project: Project, fold: str | None) -> tuple[list[Utterance], list[Utterance]]:
    """Utterances to train on and to score on: a fold's, or the splits' (train, val)."""
    if fold is None:
        return project.speech["train"], project.speech["val"]
    number = int(fold.removeprefix("fold"))
    folds = fold_of(project.utterances, project.recipe.composites.folds)
    return (
        [u for u in project.utterances if folds[u.speaker] != number],
        [u for u in project.utterances if folds[u.speaker] == number],
    )


def _encoder(project: Project, stream: str) -> nn.Module:
    """A stream's encoder with fresh weights."""
    config = next((s for s in project.recipe.streams if s.name == stream), None)
    if config is None:
        raise DataError(f"recipe streams: got none named {stream!r}, which the mini recipe trains")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(project.recipe.seed)
        return build_encoder(config, project.recipe.preprocessing)


def _train_face(project: Project) -> face.FaceBranch:
    encoder = _encoder(project, FACE)
    assert isinstance(encoder, FaceCNN)
    recipe = project.recipe
    return face.train_face(
        encoder,
        project.faces["train"],
        project.faces["val"],
        recipe.face,
        folder=project.work / "encoders" / FACE,
        seed=recipe.seed,
        fingerprint=_fingerprint(project, FACE),
        progress=lambda line: project.say(f"{FACE}: {line}"),
    )


def _train_voice(project: Project, job: str) -> voice.VoiceBranch:
    encoder = _encoder(project, VOICE)
    assert isinstance(encoder, LogMel)
    fold = job.partition("-")[2] or None
    train, val = speech_of(project, fold)
    recipe = project.recipe
    return voice.train_voice(
        encoder,
        train,
        [] if fold else val,
        recipe.voice,
        folder=project.work / "encoders" / job,
        seed=recipe.seed,
        fingerprint=_fingerprint(project, job),
        progress=lambda line: project.say(f"{job}: {line}"),
    )


def _train_prosody(project: Project) -> None:
    """The prosody branch and its folds: quick, so all in one job that takes the statistics once."""
    recipe, utterances = project.recipe, project.utterances
    statistics = _statistics(project)
    folds: list[str | None] = [None, *(fold_name(k) for k in range(recipe.composites.folds))]
    for fold in folds:
        train, _ = speech_of(project, fold)
        files = {u.file for u in train}
        rows = torch.tensor([i for i, u in enumerate(utterances) if u.file in files])
        encoder = _encoder(project, PROSODY)
        assert isinstance(encoder, Prosody)
        job = f"{PROSODY}-{fold}" if fold else PROSODY
        if _is_done(project, job):
            continue
        branch = prosody.train_prosody(
            encoder,
            statistics[:, rows],
            [utterances[i] for i in rows.tolist()],
            recipe.prosody,
            folder=project.work / "encoders" / job,
            seed=recipe.seed,
            fingerprint=_fingerprint(project, job),
        )
        _save(project, job, branch)


def _statistics(project: Project) -> Tensor:
    """Statistics `[renderings, B, 138]` of all utterances, kept beside the branches."""
    file = project.work / "encoders" / STATISTICS
    fingerprint = project.recipe.fingerprint(project.recipe.prosody, [u.file.name for u in project.utterances])
    if file.exists():
        try:
            with safetensors.safe_open(file, "pt") as entries:
                if entries.metadata()["fingerprint"] == fingerprint:
                    kept: Tensor = entries.get_tensor("statistics")
                    return kept
        except (OSError, safetensors.SafetensorError, KeyError) as error:
            project.say(f"made anew: {file} is damaged ({error})")
    encoder = _encoder(project, PROSODY)
    assert isinstance(encoder, Prosody)
    statistics = prosody.statistics_of(project.utterances, encoder.eval(), project.recipe.prosody, project.recipe.seed)
    _write(file, {"statistics": statistics}, {"fingerprint": fingerprint})
    return statistics


def _save(project: Project, job: str, branch: nn.Module) -> None:
    tensors = {name: t.contiguous() for name, t in branch.state_dict().items()}
    file = project.work / "encoders" / f"{job}.safetensors"
    _write(file, tensors, {"fingerprint": _fingerprint(project, job)})


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, safetensors.torch.save(tensors, metadata))


def load(project: Project, job: str) -> Any:
    """A trained branch, in evaluation mode.

    Raises:
        DataError: it is not trained yet, its file is damaged, or of another recipe.
    """
    file = project.work / "encoders" / f"{job}.safetensors"
    stream = job.partition("-")[0]
    encoder = _encoder(project, stream)
    branch = {FACE: face.FaceBranch, VOICE: voice.VoiceBranch, PROSODY: prosody.ProsodyBranch}[stream](encoder)
    if not file.exists():
        raise DataError(f"{file}: missing: run training.encoders first")
    try:
        branch.load_state_dict(safetensors.torch.load_file(file))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise DataError(f"{file}: damaged, or of another recipe ({error}): run training.encoders again") from error
    return branch.eval()


def load_branches(project: Project, model: FusedModel) -> None:
    """Put the trained encoders into `model`.

    Raises:
        DataError: as `load`.
    """
    for name in (FACE, VOICE, PROSODY):
        model.encoders[name].load_state_dict(load(project, name).encoder.state_dict())


def branch_results(project: Project) -> list[dict[str, Any]]:
    """One row for each score of a branch: pictures, the voice's cross-validation, and the held-out composites.

    Raises:
        DataError: a branch or its features are missing.
    """
    pictures = project.faces["test"]
    branch = load(project, FACE)
    predicted = face.posteriors(branch, torch.from_numpy(pictures.images)).argmax(1).numpy()
    rows = [_row("face", "FER2013 PublicTest, single pictures", pictures.labels, predicted)]
    if project.recipe.composites.folds:
        rows += _cross_validation(project)
    samples, data = project.features(project.tests["test"], Variant())
    labels = np.array([s.emotion for s in samples])
    by_modality = branch_posteriors(project, data)
    rows += [_row(name, "held-out composites", labels, posterior.argmax(1)) for name, posterior in by_modality.items()]
    return rows


def branch_posteriors(project: Project, data: FeatureSet) -> dict[str, npt.NDArray[np.float64]]:
    """Posteriors "face" and "voice" `[N, 6]` of clips of one window each, from their features.

    The face's is the mean of its log-posteriors over the pictures, the voice's that of log-mel and prosody branch.
    """
    with torch.inference_mode():
        features = data.pick(torch.arange(len(data)))
        pictures = features[FACE]
        logs = load(project, FACE).classify(pictures.values).log_softmax(-1)
        sums = logs.new_zeros(len(pictures), logs.shape[1]).index_add(0, set_index(pictures.offsets), logs)
        by_face = (sums / pictures.lengths.clamp(min=1)[:, None]).softmax(-1)
        spoken = load(project, VOICE)
        by_voice = spoken.classify(spoken.gather(features[VOICE])).softmax(-1)
        by_prosody = load(project, PROSODY).classify(_only_rows(features[PROSODY])).softmax(-1)
    heard = 0.5 * (by_voice + by_prosody)
    return {"face": by_face.double().numpy(), "voice": heard.double().numpy()}


def _only_rows(x: Ragged) -> Tensor:
    """The one row of each set, zeros for empty ones."""
    out = x.values.new_zeros(len(x), x.values.shape[1])
    out[x.lengths > 0] = x.values
    return out


def _cross_validation(project: Project) -> list[dict[str, Any]]:
    """Rows of the voice branches' cross-validation: each utterance by the fold that did not hear its speaker."""
    utterances: list[Utterance] = []
    each: dict[str, list[Tensor]] = {"voice": [], "log-mel alone": [], "prosody alone": []}
    place = {u.file: i for i, u in enumerate(project.utterances)}
    statistics = _statistics(project)[0]
    for k in range(project.recipe.composites.folds):
        fold = fold_name(k)
        _, held_out = speech_of(project, fold)
        spoken = load(project, f"{VOICE}-{fold}")
        by_voice = voice.posteriors(spoken, voice.Spectra.read(held_out, spoken.encoder))
        rows = torch.tensor([place[u.file] for u in held_out])
        by_prosody = prosody.posteriors(load(project, f"{PROSODY}-{fold}"), statistics[rows])
        utterances += held_out
        for name, p in zip(each, (0.5 * (by_voice + by_prosody), by_voice, by_prosody), strict=True):
            each[name].append(p)
    out = []
    for name, parts in each.items():
        predicted = torch.cat(parts).argmax(1).numpy()
        out += _by_corpus(name, utterances, predicted)
    return out


def _by_corpus(name: str, utterances: Sequence[Utterance], predicted: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    labels, corpora = np.array([u.emotion for u in utterances]), np.array([u.corpus for u in utterances])
    rows = [
        _row(name, f"{corpus}, unseen speakers", labels[corpora == corpus], predicted[corpora == corpus])
        for corpus in sorted(set(corpora))
    ]
    mean = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in ("weighted F1", "accuracy")}
    return [*rows, {"branch": name, "scored on": "mean over the corpora"} | mean | {"n": len(labels)}]


def _row(name: str, where: str, labels: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> dict[str, Any]:
    return {
        "branch": name,
        "scored on": where,
        "weighted F1": round(weighted_f1(labels, predicted), 4),
        "accuracy": round(accuracy(labels, predicted), 4),
        "n": len(labels),
    }
