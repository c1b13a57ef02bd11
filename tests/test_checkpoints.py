"""Foundation models as files: bundles that hold them, `load_pretrained`, and what every kind of damage says."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_checkpoints import AUDIO, CONFIGS, LARGE, PROCESSORS, make, processor_of, write

from merfast import Clip, Engine, UntrainedWarning, bundle
from merfast.config import BundleConfig, FusionConfig, Preprocessing, StreamConfig
from merfast.errors import BundleError, ConfigError, UnavailableError
from merfast.files import replace_file
from merfast.models import FusedModel, checkpoints
from merfast.models.checkpoints import load_pretrained
from merfast.ops.ragged import Ragged

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")

SIDE = 40
FILES = ["config.json", "model.safetensors", "preprocessor_config.json"]


def modality_of(name):
    return "audio" if name in AUDIO else "video"


def fused(tmp_path, *names, extra=()):
    """A random model of these foundation models, and its config."""
    streams = [StreamConfig(name.replace("-", "_"), modality_of(name), "transformers", 32) for name in names]
    made = {
        stream.name: load_pretrained(write(tmp_path / f"from-{name}", name), modality=stream.modality)
        for stream, name in zip(streams, names, strict=True)
    }
    config = BundleConfig(
        "tiny",
        False,
        (*streams, *extra),
        preprocessing=Preprocessing(crop_size=SIDE),
        fusion=FusionConfig(dim=16, attention_dim=8, heads=2, valence_dim=8),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config, FusedModel(config, made).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle of HuBERT, CLIP's vision model and the log-mel encoder."""
    path = tmp_path_factory.mktemp("bundle")
    mel = StreamConfig("mel", "audio", "logmel", 16, {"layers": 1, "heads": 2, "channels": 4})
    config, model = fused(tmp_path_factory.mktemp("parts"), "hubert", "clip", extra=[mel])
    bundle.save(path, config, model)
    return path


@pytest.fixture
def copy(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "copy"))


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(3_000, generator=generator) * 0.1
    crops = torch.randint(0, 256, (5, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return Ragged(audio, torch.tensor([0, 2_000, 3_000, 3_000])), Ragged(crops, torch.tensor([0, 3, 3, 5]))


def predict(model):
    with torch.inference_mode():
        return torch.cat([t.flatten() for t in model(*inputs())])


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(file, change):
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    replace_file(file, safetensors.torch.save(tensors))  # what is mapped from the old one stays


@pytest.mark.parametrize("names", [(n,) for n in CONFIGS] + [("wavlm", "hubert-large", "resnet")], ids=" ".join)
def test_a_bundle_predicts_the_same_after_saving_and_loading(tmp_path, names):
    config, model = fused(tmp_path, *names)
    bundle.save(tmp_path / "bundle", config, model)
    state = torch.get_rng_state()
    loaded = bundle.load(tmp_path / "bundle")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.config == config
    assert not any(m.training for m in loaded.model.modules())
    # Not to the bit: kernels round by where in memory the weights lie.
    assert torch.allclose(predict(loaded.model), predict(model), rtol=0, atol=1e-6)
    assert predict(model)[:6].sum() == pytest.approx(1, abs=1e-5)


def test_files_of_a_bundle(written):
    assert sorted(str(f.relative_to(written)) for f in written.rglob("*") if f.is_file()) == sorted(
        ["config.json", "model.safetensors"] + [f"encoders/{s}/{f}" for s in ("hubert", "clip") for f in FILES]
    )
    own = safetensors.torch.load_file(written / "model.safetensors")
    assert not [name for name in own if name.startswith(("encoders.hubert", "encoders.clip"))]
    assert [name for name in own if name.startswith("encoders.mel.")]
    theirs = transformers.HubertModel.from_pretrained(written / "encoders" / "hubert")
    assert torch.equal(theirs.encoder.layer_norm.weight, make("hubert").encoder.layer_norm.weight)
    assert json.loads((written / "encoders/clip/preprocessor_config.json").read_text()) == PROCESSORS["clip"]
    assert bundle.verify(written).streams[1].encoder == "transformers"


def test_files_can_be_read_by_whoever_may_read_the_others(written):
    modes = {f.name: oct(f.stat().st_mode & 0o777) for f in written.rglob("*") if f.is_file()}
    assert set(modes.values()) == {modes["config.json"]}, modes


def test_saving_again_gives_the_same_bytes_and_leaves_nothing_behind(written, tmp_path):
    loaded = bundle.load(written)
    for _ in range(2):
        bundle.save(tmp_path / "again", loaded.config, loaded.model)
    for file in written.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(written)).read_bytes(), file
    assert len(list((tmp_path / "again").rglob("*"))) == len(list(written.rglob("*")))


def test_saving_refuses_a_model_that_does_not_fit(written, tmp_path):
    loaded = bundle.load(written)
    other = replace(loaded.config, streams=loaded.config.streams[1:])
    with pytest.raises(BundleError, match=r"unknown streams \['hubert'\]"):
        bundle.save(tmp_path / "a", other, loaded.model)
    loaded.model.encoders["hubert"].half()
    with pytest.raises(BundleError, match=r"tensor 'encoders.hubert.*': got torch.float16 .*, expected torch.float32"):
        bundle.save(tmp_path / "b", loaded.config, loaded.model)
    assert list(tmp_path.iterdir()) == []


def test_the_loaded_model_outlives_its_files(copy):
    model = bundle.load(copy).model
    before = predict(model)
    for file in copy.rglob("*.safetensors"):
        replace_file(file, b"")
    assert torch.equal(predict(model), before)
    shutil.rmtree(copy)
    assert torch.equal(predict(model), before)


def test_a_loaded_model_can_be_trained(written):
    model = bundle.load(written).model.train()
    model.decode(model.encode(*inputs())).logits.sum().backward()
    assert not any(p.is_meta for p in model.parameters())
    for stream, name in (("hubert", "encoder.layer_norm.weight"), ("clip", "post_layernorm.weight")):
        (weight,) = [p for key, p in model.encoders[stream].named_parameters() if key.endswith(f".{name}")]
        assert weight.grad.abs().sum() > 0


def test_the_engine_predicts(copy):
    generator = np.random.default_rng(0)
    clips = [
        Clip.from_arrays(
            generator.integers(0, 256, (5, 48, 48, 3), dtype=np.uint8),
            fps=5,
            audio=(generator.normal(size=16_000) * 0.1).astype(np.float32),
            sample_rate=16_000,
            faces="given",
            name=f"clip {i}",
        )
        for i in range(3)
    ]
    clips.append(Clip.from_arrays(audio=clips[0].audio, sample_rate=16_000, name="voice"))
    with pytest.warns(UntrainedWarning):
        engine = Engine(copy)
    together = engine.predict(clips)
    assert [p.modalities for p in together] == [("audio", "video")] * 3 + [("audio",)]
    for clip, prediction in zip(clips, together, strict=True):
        (alone,) = engine.predict([clip])
        assert np.allclose(alone.probabilities, prediction.probabilities, rtol=0, atol=1e-5)
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(together[0].probabilities - together[3].probabilities).max() > 1e-4
    assert [engine.plan.choice(f"encode {name}") for name in ("hubert", "clip")] == ["openvino fp32"] * 2


@pytest.mark.parametrize("file", FILES)
def test_missing_files(copy, file):
    (copy / "encoders" / "hubert" / file).unlink()
    with pytest.raises(BundleError, match=f"encoders/hubert/{file}: missing$"):
        bundle.load(copy)


def test_a_missing_folder(copy):
    shutil.rmtree(copy / "encoders")
    with pytest.raises(BundleError, match=r"encoders/hubert/config.json: missing"):
        bundle.load(copy)


def test_pickled_weights_are_not_read(copy):
    folder = copy / "encoders" / "hubert"
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for attempt in (lambda: bundle.load(copy), lambda: load_pretrained(folder, modality="audio")):
        with pytest.raises(BundleError, match=r"model.safetensors: missing; got pytorch_model.bin, which is pickle"):
            attempt()
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(BundleError, match=r"model.safetensors: damaged or not safetensors"):
        bundle.load(copy)


def test_weights_in_several_files_are_refused(tmp_path):
    make("vit").save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["vit"]))
    with pytest.raises(BundleError, match="missing; got weights in several files, expected one"):
        load_pretrained(tmp_path, modality="video")


@pytest.mark.parametrize("keep", [0, 4, 1_000, 60_000])
def test_truncated_weights(copy, keep):
    file = copy / "encoders" / "clip" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"encoders/clip/model.safetensors: damaged or not safetensors"):
        bundle.load(copy)


NORM = "encoder.layer_norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), rf"got \d+ tensors, expected \d+; missing: {NORM}$"),
        (lambda t: t.update(extra=torch.zeros(1)), "; unexpected: extra$"),
        (lambda t: t.update({NORM: torch.zeros(7)}), rf"tensor '{NORM}': got \[7\], expected \[32\]"),
        (lambda t: t.update({NORM: torch.zeros(32, dtype=torch.int8)}), f"tensor '{NORM}': got torch.int8, expected"),
        (lambda t: t[NORM].fill_(torch.nan), f"tensor '{NORM}': got NaN or infinite values"),
    ],
)
def test_tensors_that_do_not_fit(copy, change, message):
    edit_tensors(copy / "encoders" / "hubert" / "model.safetensors", change)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


def test_a_negative_variance(tmp_path):
    config, model = fused(tmp_path, "resnet")
    bundle.save(tmp_path / "bundle", config, model)
    file = tmp_path / "bundle" / "encoders" / "resnet" / "model.safetensors"
    edit_tensors(file, lambda t: next(v for k, v in t.items() if k.endswith("running_var")).fill_(-1))
    with pytest.raises(BundleError, match="running_var': got a negative variance"):
        bundle.load(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "whisper"}, "got model_type 'whisper', expected one of hubert, wav2vec2, wavlm for audio"),
        ({"model_type": "vit"}, "got model_type 'vit', expected one of hubert, wav2vec2, wavlm for audio"),
        ({"model_type": ["vit"]}, r"got model_type \['vit'\]"),
        ({"quantization_config": {"quant_method": "awq"}}, "got quantised weights"),
        ({"hidden_size": 64}, r"dim: got 32, expected 64, the width of the checkpoint's layer 'last'"),
        ({"hidden_size": "wide"}, "config.json: does not describe a model: "),
        ({"num_attention_heads": 5}, "config.json: does not describe a model: "),
        ({"hidden_act": "magic"}, "config.json: does not describe a model: "),
        ({"num_hidden_layers": 10**9}, r"got \[1000000000\] layers, expected 1 to 256"),
        ({"num_hidden_layers": 0}, r"got \[0\] layers"),
        ({"num_hidden_layers": 4}, r"got \d\d tensors, expected \d\d; missing: encoder.layers.3"),
        ({"intermediate_size": 10**7}, r"model.safetensors: got \d+ bytes, expected at least \d+, one for each weight"),
        ({"intermediate_size": 50}, r"tensor '.*dense.*': got \[48.*\], expected \[50"),
        ({"conv_stride": [5, 10**9, 2]}, r"convolutions: a vector is made from \d+ samples, expected 1 to 16000"),
    ],
)
def test_configs_that_do_not_fit(copy, changes, message):
    edit_json(copy / "encoders" / "hubert" / "config.json", **changes)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


def test_other_families_that_do_not_fit(tmp_path):
    grey = write(tmp_path / "grey", "resnet", num_channels=1)
    with pytest.raises(BundleError, match="num_channels: got 1, expected 3"):
        load_pretrained(grey, modality="video")
    adapter = write(tmp_path / "adapter", "wav2vec2", add_adapter=True, output_hidden_size=32)
    with pytest.raises(BundleError, match="add_adapter: got true"):
        load_pretrained(adapter, modality="audio")


def test_names_of_streams_lead_nowhere_else(copy):
    edit_json(
        copy / "config.json", streams=[{"name": "../x", "modality": "audio", "encoder": "transformers", "dim": 32}]
    )
    with pytest.raises(BundleError, match=r"config stream '../x': name cannot be used"):
        bundle.load(copy)


def test_switches_of_a_config_change_nothing(copy):
    before = predict(bundle.load(copy).model)
    for stream in ("hubert", "clip"):
        file = copy / "encoders" / stream / "config.json"
        edit_json(file, return_dict=False, output_hidden_states=True, output_attentions=True, dtype="float16")
        edit_json(file, transformers_weights="other.bin", _attn_implementation="someone/kernels")
        edit_json(file, fusion_config={"patch_embeddings": True}, attn_implementation="someone/kernels")
    assert torch.equal(predict(bundle.load(copy).model), before)


def test_code_beside_a_checkpoint_is_not_run(copy):
    folder, trace = copy / "encoders" / "hubert", copy / "trace"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    bundle.load(copy)
    assert not trace.exists()


def test_loading_and_saving_print_nothing(written, tmp_path, capfd):
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    loaded = bundle.load(written)
    bundle.save(tmp_path / "copy", loaded.config, loaded.model)
    load_pretrained(heads(tmp_path / "heads"), modality="audio")
    assert capfd.readouterr() == ("", "")
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


def heads(folder, **changes):
    """A whole speech recogniser around a HuBERT."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.HubertForCTC(transformers.HubertConfig(**(CONFIGS["hubert"][1] | changes)))
    folder.mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    model.config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["audio"]))
    return folder


def test_pretrained_heads_are_left_out(tmp_path):
    checkpoint = load_pretrained(str(heads(tmp_path / "ctc", **LARGE)), modality="audio")
    assert repr(checkpoint) == "Checkpoint('hubert', audio, layers=3, dim=32)"
    assert checkpoint.dim == 32
    assert "lm_head.weight" not in checkpoint.model.state_dict()
    stored = safetensors.torch.load_file(tmp_path / "ctc" / "model.safetensors")
    ours = checkpoint.model.state_dict()
    assert torch.equal(ours["encoder.layer_norm.weight"], stored["hubert.encoder.layer_norm.weight"])
    with pytest.raises(BundleError, match="unexpected: "):
        checkpoints.read(tmp_path / "ctc", "audio")


def test_pretrained_weights_that_are_missing_are_not_made_up(tmp_path):
    folder = heads(tmp_path / "ctc")
    edit_tensors(folder / "model.safetensors", lambda t: t.pop("hubert.masked_spec_embed"))
    assert not load_pretrained(folder, modality="audio").model.masked_spec_embed.any()
    edit_tensors(folder / "model.safetensors", lambda t: t.pop("hubert.encoder.layer_norm.bias"))
    with pytest.raises(BundleError, match=r"missing: encoder\.layer_norm\.bias$"):
        load_pretrained(folder, modality="audio")


def test_names_of_older_versions_are_known(tmp_path):
    folder = write(tmp_path / "old", "hubert")
    before = load_pretrained(folder, modality="audio").model.state_dict()

    def rename(tensors):
        for name in [name for name in tensors if ".parametrizations." in name]:
            new = name.replace("parametrizations.weight.original0", "weight_g")
            tensors[new.replace("parametrizations.weight.original1", "weight_v")] = tensors.pop(name)

    edit_tensors(folder / "model.safetensors", rename)
    assert any(name.endswith("weight_g") for name in safetensors.torch.load_file(folder / "model.safetensors"))
    after = load_pretrained(folder, modality="audio").model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_vision_model_of_a_whole_clip(tmp_path):
    vision = {k: v for k, v in CONFIGS["clip"][1].items() if k != "initializer_range"}
    text = vision | {"vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    text = {k: v for k, v in text.items() if k not in ("image_size", "patch_size")}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "processor_config.json").write_text(json.dumps({"image_processor": PROCESSORS["clip"]}))
    checkpoint = load_pretrained(tmp_path / "clip", modality="video")
    assert checkpoint.processor == PROCESSORS["clip"]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.vision_model(pixels).pooler_output
        assert torch.equal(checkpoint.model(pixels).pooler_output, expected)
    streams = (StreamConfig("face", "video", "transformers", 32),)
    config = BundleConfig("tiny", False, streams, preprocessing=Preprocessing(crop_size=SIDE))
    fresh = FusedModel(config, {"face": checkpoint}).eval()
    bundle.save(tmp_path / "bundle", config, fresh)
    loaded = bundle.load(tmp_path / "bundle").model
    assert torch.allclose(predict(loaded), predict(fresh), rtol=0, atol=1e-6)


def test_half_precision_checkpoints_become_fp32(tmp_path):
    make("vit").half().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor_of("vit")))
    model = load_pretrained(tmp_path, modality="video").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.embeddings.cls_token, make("vit").embeddings.cls_token.half().float())


def test_sources_that_are_none(tmp_path):
    folder = write(tmp_path / "vit", "vit")
    with pytest.raises(ConfigError, match="revision: got 'main' with a folder"):
        load_pretrained(folder, "main", modality="video")
    with pytest.raises(BundleError, match="expected one of hubert, wav2vec2, wavlm for audio"):
        load_pretrained(folder, modality="audio")
    for source in (tmp_path / "no" / "where", "nowhere", "https://example.org/a/b"):
        with pytest.raises(BundleError, match=f"^{source}: not a directory, and no hub id"):
            load_pretrained(source, modality="audio")


def test_without_transformers(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    sentence = r"^encoder 'transformers': needs transformers, pip install 'merfast\[transformers\]'$"
    for attempt in (
        lambda: bundle.load(written),
        lambda: Engine(written, runtime="torch"),
        lambda: load_pretrained("a/b", modality="audio"),
    ):
        with pytest.raises(UnavailableError, match=sentence):
            attempt()
    assert bundle.load().config.name == "merfast-mini"


def test_other_bundles_do_not_import_transformers():
    code = "import sys; from merfast import bundle; bundle.load(); print('transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "False"
