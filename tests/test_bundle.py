"""Reading and writing bundles, and what every kind of damage says."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch

import merfast
from merfast import bundle
from merfast.errors import BundleError
from merfast.models import FusedModel
from merfast.ops.ragged import Ragged
from merfast.types import EMOTIONS
from training.corpora import read_speech
from training.make_untrained import mini_config, write

INPUT = (
    Ragged(torch.linspace(-1, 1, 4_000), torch.tensor([0, 4_000])),
    Ragged(
        torch.arange(48 * 48 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 48, 48, 3),
        torch.tensor([0, 1]),
    ),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle")
    write(path, seed=3)
    return path


@pytest.fixture
def copy(written, tmp_path):
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit_config(path, **changes):
    file = path / "config.json"
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(data))


def edit_tensors(path, change):
    file = path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    file.write_bytes(safetensors.torch.save(tensors))


def test_the_packaged_bundle_predicts():
    loaded = bundle.load()
    assert loaded.path == bundle.packaged()
    assert not loaded.model.training
    assert sum(f.stat().st_size for f in loaded.path.iterdir()) < 20_000_000
    assert loaded.config.trained or "UNTRAINED" in (loaded.path / "README.md").read_text()
    assert bundle.verify() == loaded.config
    with torch.inference_mode():
        posterior, valence = loaded.model(*INPUT)
    assert posterior.sum().item() == pytest.approx(1, abs=1e-5)
    assert loaded.config.trained or posterior.max() < 0.9
    assert -5 <= valence.item() <= 5


def test_the_packaged_model_hears_an_unknown_speaker(data_dir):
    """EmoDB's speaker 11 is in the packaged recipe's test set; chance is one in six."""
    utterances = [u for u in read_speech(data_dir / "speech") if u.speaker == "emodb_11"]
    predictions = merfast.Engine(detector="none").predict([u.file for u in utterances])
    right = [p.emotion == EMOTIONS[u.emotion] for p, u in zip(predictions, utterances, strict=True)]
    assert len(right) > 40
    assert sum(right) > 0.5 * len(right)


def test_round_trip(written, tmp_path):
    first = bundle.load(str(written))
    bundle.save(tmp_path / "deep" / "copy", first.config, first.model)
    second = bundle.load(tmp_path / "deep" / "copy")
    assert second.config == first.config
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    with torch.inference_mode():
        assert torch.equal(first.model(*INPUT)[0], second.model(*INPUT)[0])
    assert sorted(f.name for f in second.path.iterdir()) == ["config.json", "model.safetensors"]
    assert repr(first).startswith("Bundle('merfast-mini', trained=False, path=")


def test_a_loaded_model_can_be_trained(written):
    model = bundle.load(written).model.train()
    model.decode(model.encode(*INPUT)).logits.sum().backward()
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    assert model.encoders["voice"].stem.weight.grad.any()


def test_the_same_seed_gives_the_same_bytes(written, tmp_path):
    write(tmp_path / "same", seed=3)
    write(tmp_path / "other", seed=4)
    weights = [(p / "model.safetensors").read_bytes() for p in (written, tmp_path / "same", tmp_path / "other")]
    assert weights[0] == weights[1] != weights[2]


def test_random_numbers_are_left_alone(written):
    state = torch.get_rng_state()
    bundle.load(written)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loaded_model_does_not_depend_on_the_file(copy):
    loaded = bundle.load(copy)
    with torch.inference_mode():
        before = loaded.model(*INPUT)[0].clone()
        (copy / "model.safetensors").write_bytes(b"")
        assert torch.equal(loaded.model(*INPUT)[0], before)


def test_saving_replaces_without_leftovers(copy):
    loaded = bundle.load(copy)
    bundle.save(copy, replace(loaded.config, name="renamed"), loaded.model)
    assert bundle.load(copy).config.name == "renamed"
    assert sorted(f.name for f in copy.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_saving_refuses_what_loading_would(tmp_path, written):
    loaded = bundle.load(written)
    narrower = replace(loaded.config, fusion=replace(loaded.config.fusion, dim=64))
    with pytest.raises(BundleError, match=r"got torch.float32 \[.*\], expected torch.float32 \["):
        bundle.save(tmp_path / "a", narrower, loaded.model)
    with pytest.raises(BundleError, match=r"config\.json: .*not JSON serializable"):
        bundle.save(tmp_path / "b", replace(loaded.config, metrics={"f1": object()}), loaded.model)
    with pytest.raises(BundleError, match=r"config\.json: "):
        bundle.save(tmp_path / "c", replace(loaded.config, metrics={"f1": float("nan")}), loaded.model)
    assert list(tmp_path.iterdir()) == []


def test_saving_where_nothing_can_be_written(tmp_path, written):
    (tmp_path / "file").write_text("")
    loaded = bundle.load(written)
    with pytest.raises(BundleError, match="cannot be written"):
        bundle.save(tmp_path / "file" / "bundle", loaded.config, loaded.model)


@pytest.mark.parametrize("path", ["nowhere", "no/such/directory"])
def test_not_a_directory(path):
    with pytest.raises(BundleError, match=f"^{path}: not a directory$"):
        bundle.load(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(copy, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        bundle.load(copy)


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "\xff", "[" * 100_000])
def test_invalid_json(copy, text):
    (copy / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"config\.json: not valid JSON"):
        bundle.verify(copy)


def test_json_of_another_kind(copy):
    (copy / "config.json").write_text("[1]")
    with pytest.raises(BundleError, match=r"config\.json: got list, expected an object"):
        bundle.load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "config format_version: got 2, expected 1"),
        ({"format_version": None}, "config format_version: got None, expected 1"),
        ({"colour": 1}, r"config config: got unknown entries \['colour'\]"),
        ({"labels": ["sad"]}, r"config labels: got \['sad'\]"),
        (
            {"fusion": {"dim": 64}},
            r"model\.safetensors: tensor .*: got torch.float32 \[.*\], expected torch.float32 \[",
        ),
        ({"fusion": {"dim": 10**30}}, "expected widths of 1 to 8192"),
        ({"fusion": {"structures": ["flat"]}}, "unexpected: structures.guided.*more"),
        ({"streams": [{"name": "v", "modality": "audio", "encoder": "hubert", "dim": 8}]}, "got encoder 'hubert'"),
    ],
)
def test_config_that_does_not_fit(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


@pytest.mark.parametrize("keep", [0, 4, 1_000, 5_000_000])
def test_truncated_weights(copy, keep):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BundleError, match="damaged or not safetensors"):
        bundle.load(copy)


def test_pickled_weights_are_not_read(copy):
    torch.save({"decoder.emotion_bias": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(BundleError, match="damaged or not safetensors"):
        bundle.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.emotion_bias"), r"got \d+ tensors, expected \d+; missing: decoder.emotion_bias$"),
        (lambda t: t.update(extra=torch.zeros(1)), "; unexpected: extra$"),
        (
            lambda t: t.update({"decoder.emotion_bias": torch.zeros(3, 7)}),
            r"'decoder.emotion_bias': got torch.float32 \[3, 7\], expected torch.float32 \[3, 6\]",
        ),
        (
            lambda t: t.update({"decoder.emotion_bias": torch.zeros(3, 6, dtype=torch.float16)}),
            r"'decoder.emotion_bias': got torch.float16 \[3, 6\], expected torch.float32 \[3, 6\]",
        ),
        (lambda t: t["decoder.emotion_bias"].fill_(torch.nan), "'decoder.emotion_bias': got NaN or infinite"),
    ],
)
def test_tensors_that_do_not_fit(copy, change, message):
    edit_tensors(copy, change)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


def test_a_model_that_is_not_mini(tmp_path):
    config = mini_config(name="voice-only", streams=mini_config().streams[:1])
    bundle.save(tmp_path, config, FusedModel(config))
    with torch.inference_mode():
        posterior, _ = bundle.load(tmp_path).model(*INPUT)
    assert posterior.isfinite().all()


def test_make_untrained_from_the_command_line(tmp_path):
    out = tmp_path / "mini"
    subprocess.run([sys.executable, "-m", "training.make_untrained", str(out), "--seed", "5"], check=True)
    assert bundle.verify(out).provenance["seed"] == 5
    assert "UNTRAINED" in (out / "README.md").read_text()
