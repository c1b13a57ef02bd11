"""The mini recipe as a whole, on tiny data: branches, cross-validation, features, fusion, scores, bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch

import merfast
from merfast import bundle as bundles
from training import __main__ as everything
from training import branches, encoders
from training.corpora import read_speech
from training.data import DataError
from training.project import Project
from training.recipe import Recipe, read_recipe

MINI = Path(__file__).parent.parent / "training" / "recipes" / "mini.toml"
SPLITS = {"val_speakers": ("one_0", "two_0"), "test_speakers": ("one_1", "two_1")}


def tiny(folds: int = 2) -> Recipe:
    """The packaged recipe, but short."""
    mini = read_recipe(MINI)
    short = {"epochs": 1, "warmup": 0.0}
    return replace(
        mini,
        streams=tuple(replace(s, options={"widths": (8, 8)}) if s.name == "face" else s for s in mini.streams),
        composites=replace(mini.composites, train=24, val=12, faces_held_out=0.3, folds=folds, **SPLITS),
        face=replace(mini.face, batch=16, sizes=(48,), schedule=replace(mini.face.schedule, **short)),
        voice=replace(mini.voice, batch=4, steps=2, schedule=replace(mini.voice.schedule, **short)),
        prosody=replace(mini.prosody, batch=8, schedule=replace(mini.prosody.schedule, **short)),
        train=replace(mini.train, batch=8, schedule=replace(mini.train.schedule, epochs=2, patience=0)),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    root = tmp_path_factory.mktemp("mini")
    project = Project(tiny(), data, root / "work", workers=2)
    everything.everything(project, root / "bundle", ablations=False)
    return project, root / "bundle"


def test_the_recipe_ends_in_a_bundle_that_predicts(made: tuple[Project, Path], data: Path) -> None:
    project, out = made
    engine = merfast.Engine(out, detector="none")
    utterance = project.speech["test"][0]
    (prediction,) = engine.predict([utterance.file])
    assert prediction.modalities == ("audio",)
    composite = project.tests["test"][0].media.open()
    (prediction,) = merfast.Engine(out).predict([composite])
    assert prediction.modalities == ("audio", "video")
    card = (out / "README.md").read_text()
    for expected in ("composites", "pseudo-labels", "CC BY-NC-SA 4.0", "one_1, two_1", "prosody alone", "PublicTest"):
        assert expected in card
    assert set(json.loads((project.work / "timing.json").read_text())) >= {"encoders", "features", "train", "evaluate"}


def test_the_bundle_holds_the_branches_encoders(made: tuple[Project, Path]) -> None:
    project, out = made
    model = bundles.load(out).model
    for name in ("face", "voice", "prosody"):
        trained = branches.load(project, name).encoder.state_dict()
        for key, value in model.encoders[name].state_dict().items():
            assert torch.equal(value, trained[key]), key


def test_branches_are_scored_on_what_they_have_not_heard(made: tuple[Project, Path]) -> None:
    project, _ = made
    rows = json.loads((project.work / "report" / "scores.json").read_text())["branches"]
    by_name = {(r["branch"], r["scored on"]): r for r in rows}
    assert by_name["face", "FER2013 PublicTest, single pictures"]["n"] == 60
    assert by_name["voice", "one, unseen speakers"]["n"] == 18
    corpora = [by_name["voice", f"{c}, unseen speakers"]["weighted F1"] for c in ("one", "two")]
    assert by_name["voice", "mean over the corpora"]["weighted F1"] == pytest.approx(np.mean(corpora), abs=1e-4)
    assert by_name["face", "held-out composites"]["n"] == 60
    for k in range(2):
        train, held_out = branches.speech_of(project, f"fold{k}")
        assert not {u.speaker for u in train} & {u.speaker for u in held_out}
        assert len(train) + len(held_out) == 36


def test_one_seed_gives_one_result(made: tuple[Project, Path], data: Path, tmp_path: Path) -> None:
    project, out = made
    again = Project(tiny(), data, tmp_path / "work", workers=1)
    everything.everything(again, tmp_path / "bundle", ablations=False)
    assert (tmp_path / "bundle" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    scores = [(p.work / "report" / "scores.json").read_text() for p in (project, again)]
    assert scores[0] == scores[1]


def test_trained_branches_are_left_alone(made: tuple[Project, Path]) -> None:
    project, _ = made
    files = sorted((project.work / "encoders").glob("*.safetensors"))
    written = [f.stat().st_mtime_ns for f in files]
    for job in branches.jobs(project):
        branches.train_job(project, job)
    assert [f.stat().st_mtime_ns for f in files] == written
    assert len(files) == 1 + 2 * 3 + 1  # face, both voice branches with two folds each, statistics


def test_another_recipe_in_the_same_folder_is_refused(made: tuple[Project, Path], data: Path) -> None:
    project, _ = made
    other = replace(tiny(), seed=5)
    with pytest.raises(DataError, match="checkpoint of another run"):
        branches.train_job(Project(other, data, project.work), "face")


def test_branches_come_first(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"face\.safetensors: missing: run training\.encoders first"):
        branches.load(Project(tiny(), data, tmp_path), "face")
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "face.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged, or of another recipe"):
        branches.load(Project(tiny(), data, tmp_path), "face")


def test_encoders_are_for_composites_only(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got a recipe of kind 'manifest', expected 'composites'"):
        encoders.train_encoders(Project(replace(tiny(), kind="manifest"), data, tmp_path))


def test_unlabelled_speakers_are_refused(data: Path, tmp_path: Path) -> None:
    broken = replace(tiny(), composites=replace(tiny().composites, val_speakers=("one_1",)))
    with pytest.raises(DataError, match=r"speaker 'one_1'.*splits test, val"):
        _ = Project(broken, data, tmp_path).samples
    assert len(read_speech(data / "speech")) == 36
