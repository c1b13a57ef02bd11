"""Bundles of pretrained encoders: `create`, and `merfast bundle create` and `verify`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_checkpoints import CONFIGS, PROCESSORS, make, write

from merfast import Clip, Engine, UntrainedWarning, bundle, cli
from merfast.create import create
from merfast.errors import BundleError, ConfigError
from merfast.models import checkpoints
from merfast.runtime.cache import file_digest

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of each tiny checkpoint, by name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write(folder / name, name) for name in CONFIGS}


def run(capsys, *arguments):
    status = cli.main(["bundle", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys, *arguments):
    """The one line that is said."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("merfast: ")
    assert err.count("\n") == 1, err
    return err.removeprefix("merfast: ").strip()


def clip():
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    audio = (generator.normal(size=16_000) * 0.1).astype(np.float32)
    return Clip.from_arrays(frames, fps=5, audio=audio, sample_rate=16_000, faces="given", name="clip")


def test_create_then_predict(made, tmp_path, capsys):
    out = tmp_path / "deep" / "fused"
    status, text, err = run(capsys, "create", "--audio", made["hubert"], "--video", made["clip"], out, "--name", "mine")
    assert (status, err) == (0, "")
    assert "hubert: audio, hubert, 32 wide" in text
    assert "clip: video, clip_vision_model, 32 wide" in text
    with pytest.warns(UntrainedWarning):
        engine = Engine(out)
    (prediction,) = engine.predict([clip()])
    assert prediction.modalities == ("audio", "video")
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
    config = engine.bundle.config
    assert (config.name, config.trained, config.licence) == ("mine", False, "not stated")
    assert config.provenance["encoders"]["hubert"] == {
        "source": str(made["hubert"]),
        "revision": "local files",
        "sha256": file_digest(made["hubert"] / "model.safetensors"),
    }
    loaded = bundle.load(out)  # the engine has compiled them, and needs no weights
    for name, stream in (("hubert", "hubert"), ("clip", "clip")):
        own, copy = make(name).state_dict(), loaded.model.encoders[stream].network.model.state_dict()
        assert all(torch.equal(own[n], copy[n]) for n in own)
    card = (out / "README.md").read_text()
    assert "UNTRAINED" in card
    assert f"| hubert | {made['hubert']} |" in card
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(("modality", "name"), [("audio", "wavlm"), ("video", "resnet")])
def test_one_modality_alone(made, tmp_path, modality, name):
    loaded = create(tmp_path / "out", **{modality: [made[name]]})
    assert [(s.name, s.modality) for s in loaded.config.streams] == [(name, modality)]
    with pytest.warns(UntrainedWarning):
        (prediction,) = Engine(tmp_path / "out").predict([clip()])
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
    (other,) = {"audio", "video"} - {modality}
    assert prediction.modalities == (modality,)
    assert prediction.missing == {other: f"this bundle reads no {other}"}


def test_several_of_each(made, tmp_path, capsys):
    arguments = ["--audio", f"first={made['hubert']}", "--audio", f"second={made['hubert']}", "--audio", made["wavlm"]]
    videos = ["--video", made["dinov2"], "--video", made["resnet"], "--layer", "second=1", "--layer", "resnet=1"]
    assert run(capsys, "create", *arguments, *videos, tmp_path / "out")[0] == 0
    config = bundle.verify(tmp_path / "out")
    assert [s.name for s in config.streams] == ["first", "second", "wavlm", "dinov2", "resnet"]
    assert [s.options for s in config.streams] == [{}, {"layer": 1}, {}, {}, {"layer": 1}]
    assert config.streams[4].dim == 16  # of the ResNet's first stage
    assert (config.name, config.licence) == ("out", "not stated")


@pytest.mark.parametrize(
    ("names", "side"),
    [(["vit"], 32), (["clip"], 32), (["dinov2"], 36), (["resnet"], 32), (["vit", "dinov2"], 36), ([], 64)],
)
def test_crops_are_what_the_processor_resizes_to(made, tmp_path, names, side):
    audio = [] if names else [made["hubert"]]
    loaded = create(tmp_path / "out", audio=audio, video=[made[n] for n in names])
    assert loaded.config.preprocessing.crop_size == side
    if len(names) == 1:  # then nothing is resized: each level passes through as it is
        pictures = loaded.model.foundations[names[0]].pictures
        level = torch.arange(side * side * 3, dtype=torch.uint8).view(1, side, side, 3)
        (high, wide) = pictures.size
        top, left = (side - high) // 2, (side - wide) // 2
        kept = level[0, top : top + high, left : left + wide].permute(2, 0, 1)
        back = pictures(level)[0] * pictures.deviation + pictures.mean
        assert torch.allclose(back * 255, kept.float(), atol=1e-3)


def test_crops_where_nothing_is_resized(tmp_path):
    entries = {k: v for k, v in PROCESSORS["vit"].items() if k not in ("size", "resample")} | {"do_resize": False}
    loaded = create(tmp_path / "out", video=[write(tmp_path / "vit", "vit", processor=entries)])
    assert loaded.config.preprocessing.crop_size == 32  # the model's


@pytest.mark.parametrize("layer", ["last", "mean", 0, 2])
def test_layers(made, tmp_path, layer, capsys):
    assert run(capsys, "create", "--audio", made["hubert"], "--layer", layer, tmp_path / "out")[0] == 0
    assert bundle.verify(tmp_path / "out").streams[0].options == {"layer": layer}


def test_options(made, tmp_path, capsys):
    options = ["--frame-rate", 2.5, "--max-window", 8, "--seed", 3]
    assert run(capsys, "create", "--video", made["vit"], *options, tmp_path / "out")[0] == 0
    config = bundle.verify(tmp_path / "out")
    assert (config.preprocessing.frame_rate, config.preprocessing.max_window) == (2.5, 8)
    assert config.provenance["seed"] == 3


def test_the_same_seed_gives_the_same_bytes(made, tmp_path):
    state = torch.get_rng_state()
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        create(tmp_path / out, audio=[made["hubert"]], name="same", seed=seed)
    assert torch.equal(torch.get_rng_state(), state)

    def content(out):
        return {f.relative_to(tmp_path / out): f.read_bytes() for f in (tmp_path / out).rglob("*") if f.is_file()}

    assert content("a") == content("b") != content("c")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: open-rail\n---\n", "open-rail"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\ntags: [a]\n---\n", "not stated"),
        ("no metadata", "not stated"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "not stated"),
        ("---\n: : [\n---\n", "not stated"),
        ("\xff\xfe", "not stated"),
    ],
)
def test_licences(tmp_path, made, card, licence):
    folder = write(tmp_path / "vit", "vit")
    (folder / "README.md").write_bytes(card.encode("latin-1"))
    assert create(tmp_path / "one", video=[folder]).config.licence == licence
    both = create(tmp_path / "two", audio=[made["hubert"]], video=[folder]).config.licence
    assert both == (licence if licence == "not stated" else f"hubert: not stated; vit: {licence}")


# Verify.


def test_verify_names_what_is_there(made, tmp_path, capsys):
    create(tmp_path / "out", audio=[f"voice={made['hubert']}"], video=[f"face={made['vit']}"])
    status, out, err = run(capsys, "verify", tmp_path / "out")
    assert (status, err) == (0, "")
    lines = {line[:15].strip(): line[15:] for line in out.splitlines()}
    assert lines["directory"] == str(tmp_path / "out")
    assert lines["trained"] == "no: its predictions mean nothing"
    assert lines["streams"].startswith("voice: audio, hubert, 32 wide, ")
    assert "face: video, vit, 32 wide" in out
    assert lines["fusion"].startswith("flat, hierarchical, guided, ")
    assert cli.main(["info", str(tmp_path / "out")]) == 0
    assert "encoders.face.sha256: " in capsys.readouterr().out


def test_verify_the_packaged_bundle(capsys):
    assert run(capsys, "verify", bundle.packaged())[0] == 0


def test_verify_says_what_is_wrong(made, tmp_path, capsys):
    create(tmp_path / "out", audio=[made["hubert"]])
    weights = tmp_path / "out" / "encoders" / "hubert" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert fails(capsys, "verify", tmp_path / "out").startswith(f"{weights}: damaged or not safetensors: ")
    weights.unlink()
    assert fails(capsys, "verify", tmp_path / "out") == f"{weights}: missing"
    assert fails(capsys, "verify", tmp_path / "none") == f"{tmp_path / 'none'}: not a directory"


# Bad input.


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_checkpoints_that_cannot_be_used(tmp_path, capsys):
    def refused(change, message, name="hubert", modality="audio"):
        folder = write(tmp_path / f"x{len(list(tmp_path.iterdir()))}", name)
        change(folder)
        capsys.readouterr()  # of transformers' writing
        said = fails(capsys, "create", f"--{modality}", folder, tmp_path / "out")
        assert message.format(folder) in said, said
        assert not (tmp_path / "out").exists()

    def keep(folder, count):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:count])

    def processor(folder, **changes):
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def pickled(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    def sharded(folder):
        make("hubert").save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink()

    refused(
        lambda f: edit_config(f, model_type="whisper"),
        "{}/config.json: got model_type 'whisper', expected one of hubert, wav2vec2, wavlm for audio",
    )
    refused(lambda f: None, "{}/config.json: got model_type 'hubert', expected one of vit, ", modality="video")
    refused(lambda f: edit_config(f, intermediate_size=50), "tensor 'encoder.layers.0.feed_forward.intermediate_dense")
    refused(lambda f: edit_config(f, intermediate_size=50), ".bias': got [48], expected [50]")
    refused(lambda f: edit_config(f, num_hidden_layers=9), "got 63 tensors, expected 159; missing: encoder.layers.3.")
    refused(lambda f: keep(f, 60_000), "{}/model.safetensors: damaged or not safetensors")
    refused(lambda f: processor(f, sampling_rate=8000), "stream 'hubert': sampling_rate: got 8000, expected 16000")
    refused(
        lambda f: processor(f, image_processor_type="Other"),
        "{}: image processor: got 'Other', expected one of ViTImageProcessor, ",
        "vit",
        "video",
    )
    refused(
        lambda f: processor(f, size={"height": 40, "width": 40}),
        "stream 'vit': image processor: gives pictures of (40, 40), expected (32, 32), the model's",
        "vit",
        "video",
    )
    refused(pickled, "{}/model.safetensors: missing; got pytorch_model.bin, which is pickle and never read")
    refused(sharded, "{}/model.safetensors: missing; got weights in several files, expected one")
    refused(lambda f: (f / "preprocessor_config.json").unlink(), "{}/preprocessor_config.json: missing")


def test_wrong_arguments(made, tmp_path, capsys, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="comes with transformers")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hubert, out = made["hubert"], tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for arguments, message in (
        ([out], "create: got no checkpoint, expected at least one for audio or video"),
        (["--audio", hubert, tmp_path / "full"], f"{tmp_path / 'full'}: exists, expected a new or an empty folder"),
        (["--audio", hubert, hubert / "config.json"], f"{hubert / 'config.json'}: exists, expected a new or an empty"),
        (
            ["--audio", hubert, "--audio", hubert, out],
            f"stream 'hubert': got it for {hubert} and {hubert}, expected two names: NAME={hubert}",
        ),
        (
            ["--audio", f"x={hubert}", "--video", f"x={made['vit']}", out],
            f"stream 'x': got it for {hubert} and {made['vit']}, expected two names",
        ),
        (["--audio", f"1x={hubert}", out], "config stream '1x': name cannot be used, expected a word like 'voice'"),
        (
            ["--audio", "someone/hubert", out],
            "someone/hubert: not a directory, and not in the hub's local cache; download=True (--download) gets it",
        ),
        (["--audio", "someone/hubert@main", out], "someone/hubert@main: not a directory, and not in the hub's local"),
        (["--audio", f"{hubert}@main", out], f"{hubert}@main: not a directory, and no hub id like 'owner/name'"),
        (["--audio", "nowhere", out], "nowhere: not a directory, and no hub id like 'owner/name'"),
        (["--audio", "some one/hubert", out], "some one/hubert: not a directory, and no hub id"),
        (["--audio", "someone/hubert@", out], "someone/hubert@: not a directory, and no hub id"),
        (["--audio", "", out], ": not a directory, and no hub id"),
        (["--audio", hubert, "--layer", "9", out], "config stream 'hubert': layer: got 9, expected 'last', 'mean'"),
        (["--audio", hubert, "--layer", "first", out], "config stream 'hubert': layer: got 'first', expected"),
        (["--audio", hubert, "--layer", "x=1", out], "layer: got one of stream 'x', expected of hubert"),
        (["--audio", hubert, "--layer", "1", "--layer", "2", out], "--layer: got 1, 2, expected one for all streams"),
        (["--audio", hubert, "--frame-rate", "0", out], "config preprocessing.frame_rate: got 0.0, expected above 0"),
        (["--audio", hubert, "--max-window", "1e9", out], "config preprocessing.max_window: got 1000000000.0"),
    ):
        assert fails(capsys, "create", *arguments).startswith(message), message
        assert not out.exists()
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_names_in_paths(tmp_path):
    """Folders may have the signs in their names that separate a stream's name, or a revision."""
    folder = write(tmp_path / "voice=some@thing", "hubert")
    loaded = create(tmp_path / "out", audio=[str(folder)])
    assert loaded.config.streams[0].name == "hubert"
    assert loaded.config.provenance["encoders"]["hubert"]["source"] == str(folder)


def test_a_revision_is_for_hub_ids(made):
    with pytest.raises(ConfigError, match="revision: got 'main' with a folder"):
        checkpoints.locate(made["vit"], "main")
    with pytest.raises(BundleError, match="not a directory, and no hub id"):
        checkpoints.locate(Path("someone/vit"))


def test_usage_and_light_help():
    for arguments in (["bundle"], ["bundle", "create"], ["bundle", "push", "x"], ["bundle", "pull"], ["bundle", "x"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
    code = (
        "import sys; from merfast.cli import _parser; _parser(); "
        "print({'torch', 'transformers', 'huggingface_hub'} & {*sys.modules})"
    )
    root = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"
