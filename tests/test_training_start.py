"""Starting a training from a bundle of pretrained encoders."""

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import make, write

from merfast import bundle
from merfast.config import Preprocessing, StreamConfig
from merfast.create import create
from training.data import DataError
from training.project import Project
from training.recipe import Recipe, Source
from training.start import prepare_start

pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    audio, video = (write(folder / name, name) for name in ("hubert", "vit"))
    return create(folder / "fused", audio=[audio], video=[video], layer={"hubert": "mean"}).path


def project(work, made, **changes):
    config = bundle.verify(made)
    values = {"streams": config.streams, "preprocessing": config.preprocessing} | changes
    sources = {s.name: Source(str(made)) for s in values["streams"]}
    return Project(Recipe("mine", "manifest", encoders=sources, **values), work / "data", work / "work")


def test_the_encoders_are_those_of_the_bundle(made, tmp_path):
    start = project(tmp_path, made)
    prepare_start(start)
    loaded = bundle.load(start.start)
    assert loaded.config.streams == bundle.verify(made).streams
    for name in ("hubert", "vit"):
        ours = loaded.model.encoders[name].network.model.state_dict()
        assert all(torch.equal(ours[key], tensor) for key, tensor in make(name).state_dict().items())
    written = (start.start / "model.safetensors").stat().st_mtime_ns
    prepare_start(start)
    assert (start.start / "model.safetensors").stat().st_mtime_ns == written


def test_a_gathering_over_layers_is_that_of_the_bundle(made, tmp_path):
    source = made.parent / "hubert"
    theirs = create(tmp_path / "afg", audio=[source], layer="afg", seed=3)
    begun = project(tmp_path, theirs.path)
    prepare_start(begun)
    ours = bundle.load(begun.start).model.encoders["hubert"].network.layers
    expected = theirs.model.encoders["hubert"].network.layers.state_dict()
    assert all(torch.equal(ours.state_dict()[key], tensor) for key, tensor in expected.items())
    plain = Recipe("mine", "manifest", 5, streams=theirs.config.streams, encoders={"hubert": Source(str(source))})
    begun = Project(plain, tmp_path / "data", tmp_path / "other")
    prepare_start(begun)
    fresh = bundle.load(begun.start).model.encoders["hubert"].network.layers
    assert not torch.equal(fresh.weight, expected["weight"])


def test_other_crops_are_the_recipes_choice(made, tmp_path):
    start = project(tmp_path, made, preprocessing=Preprocessing(crop_size=48))
    prepare_start(start)
    assert bundle.load(start.start).model.encoders["vit"].crop_size == 48


def test_a_bundle_that_is_not_what_the_recipe_says(made, tmp_path):
    other = (StreamConfig("hubert", "audio", "transformers", 32),)
    with pytest.raises(
        DataError, match=r"stream 'hubert': the bundle .* has .*'mean'.*, the recipe .*: expected the same$"
    ):
        prepare_start(project(tmp_path, made, streams=other))
    unknown = (StreamConfig("wavlm", "audio", "transformers", 32),)
    (bundle.encoder_folder(made, "wavlm")).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=r"fused: got no stream 'wavlm', expected it among hubert, vit$"):
        prepare_start(project(tmp_path, made, streams=unknown))
