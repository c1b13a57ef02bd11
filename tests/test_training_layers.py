"""Training the attention over an encoder's layers: what is cached, what learns, and what the engine then runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_training_steps import RECIPE, step, write_clips
from test_training_store import CLEAN, NOISY, sample
from tiny_checkpoints import make, processor_of, write

import merfast
from merfast import bundle as bundles
from merfast.config import BundleConfig, FusionConfig, StreamConfig
from merfast.create import create
from merfast.models.checkpoints import Checkpoint
from merfast.models.model import FusedModel, inputs_of
from merfast.ops.ragged import Ragged, offsets_from
from merfast.types import EMOTIONS, Batch
from training import evaluate, export, features, train
from training.fusion import Batches, Example, FeatureSet, Head, loss_terms, predict
from training.loop import Schedule, fit
from training.project import Project
from training.recipe import TrainRecipe, read_recipe
from training.states import Stacks, gatherings
from training.store import FeatureStore, _crc

pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")

LAYERS, DIM = 3, 32  # of the tiny checkpoints
MODALITIES = {"hubert": "audio"}
PLAIN = TrainRecipe(batch=16, drop_audio=0, drop_video=0, noisy=0, feature_noise=0, frame_dropout=0, smoothing=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose voice gathers over its layers, with a score, and whose face does not."""
    root = tmp_path_factory.mktemp("made")
    audio, video = (write(root / name, name) for name in ("hubert", "vit"))
    bundle = create(root / "fused", audio=[audio], video=[video], layer={"hubert": "afg"})
    torch.nn.init.normal_(gatherings(bundle.model)["hubert"].score, generator=torch.Generator().manual_seed(0))
    bundles.save(root / "fused", bundle.config, bundle.model)
    return root / "fused"


def changed(made: Path, out: Path, tensor: str) -> Path:
    """The bundle with another tensor of that name."""
    bundle = bundles.load(made)
    with torch.no_grad():
        dict(bundle.model.named_parameters())[tensor].add_(0.5)
    bundles.save(out, bundle.config, bundle.model)
    return out


def test_states_are_kept_of_what_is_gathered_and_vectors_of_the_rest(made: Path, tmp_path: Path) -> None:
    store, clip = FeatureStore(tmp_path, made, detector="none"), sample(1)
    assert [m.error for m in store.make([clip], CLEAN)] == [""]
    (kept,) = store.read(clip, CLEAN).windows
    model = bundles.load(made).model
    with torch.inference_mode():
        expected = model.encode(*inputs_of(Batch.pack(list(store.windows(clip)))))
        vectors = Head(model, PLAIN).gather({"hubert": Ragged(kept["hubert"], offsets_from(torch.tensor([1])))})
    assert kept["hubert"].shape == (len(expected["hubert"].values), LAYERS, DIM)
    assert kept["hubert"].dtype == torch.float16  # as in the file
    # Half precision: 11 bits of numbers up to 4, which the energies see, too.
    torch.testing.assert_close(vectors["hubert"].values, expected["hubert"].values, rtol=0, atol=2**-7)
    torch.testing.assert_close(kept["vit"], expected["vit"].values, rtol=2**-10, atol=1e-6)


def test_a_clip_without_sound_has_no_states(made: Path, tmp_path: Path) -> None:
    store, clip = FeatureStore(tmp_path, made, detector="none"), sample(1)
    (window,) = store.windows(clip)
    (kept,) = store._encode([replace(window, audio=window.audio[:0])]).windows
    assert kept["hubert"].shape == (0, LAYERS, DIM)
    assert kept["vit"].shape == (5, DIM)


def test_keys_do_not_follow_the_gathering(made: Path, tmp_path: Path) -> None:
    key = FeatureStore(tmp_path, made).file(sample(1), CLEAN)
    for part in ("weight", "bias", "score"):
        other = changed(made, tmp_path / part, f"encoders.hubert.network.layers.{part}")
        assert FeatureStore(tmp_path, other).file(sample(1), CLEAN) == key
    for stream, part in (("hubert", "encoder.layers.2.layer_norm.bias"), ("vit", "embeddings.cls_token")):
        other = changed(made, tmp_path / stream, f"encoders.{stream}.network.model.{part}")
        assert FeatureStore(tmp_path, other).file(sample(1), CLEAN) != key


@pytest.mark.parametrize("layer", ["last", "mean", 1])
def test_other_streams_are_cached_as_ever(layer: str | int, tmp_path: Path) -> None:
    """Name and bytes of an entry, written down anew: old caches stay valid."""
    made = create(tmp_path / "fused", audio=[write(tmp_path / "hubert", "hubert")], layer=layer)
    store, clip = FeatureStore(tmp_path / "cache", made.path), sample(1)
    list(store.make([clip], CLEAN))
    digest = hashlib.sha256(
        repr((made.config.streams, made.config.preprocessing, store._plan.choice("faces"))).encode()
    )
    for name, tensor in sorted(made.model.encoders.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    key = hashlib.sha256(repr((clip.media.key(), digest.hexdigest())).encode()).hexdigest()
    with torch.inference_mode():
        vectors = made.model.encode(*inputs_of(Batch.pack(list(store.windows(clip)))))["hubert"].values
    tensors = {"spans": torch.tensor([[0.0, 1.0]], dtype=torch.float64), "0/hubert": vectors.half()}
    expected = safetensors.torch.save(tensors, {"crc": _crc(tensors)})
    assert (tmp_path / "cache" / key[:2] / f"{key}.safetensors").read_bytes() == expected


def test_sets_of_states_are_picked_and_measured() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 20.0, 0.1])[:, None]
    sets = [(spread * torch.randn(n, LAYERS, DIM, generator=generator) + 3).half() for n in (4, 0, 7, 2)]
    stacks = Stacks(tuple(sets))
    picked = stacks.pick(torch.tensor([2, 1, 0]))
    assert picked.lengths.tolist() == [7, 0, 4]
    assert torch.equal(picked.values, torch.cat([sets[2], sets[0]]))
    every = torch.cat(sets).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(stacks.std()[:, 0], every.std(1, correction=0).float())
    assert Stacks((sets[1],)).std().tolist() == [[1.0]] * LAYERS


def voice_model() -> FusedModel:
    streams = (StreamConfig("hubert", "audio", "transformers", DIM, {"layer": "afg", "attention_dim": 8}),)
    fusion = FusionConfig(dim=16, attention_dim=8, heads=2, valence_dim=8)
    torch.manual_seed(0)
    checkpoint = Checkpoint("audio", make("hubert"), processor_of("hubert"))
    return FusedModel(BundleConfig("toy", False, streams, fusion=fusion), {"hubert": checkpoint})


def toy(clips: int = 96, informed: int = 1) -> FeatureSet:
    """Noise on each layer's own direction; on `informed` alone, the class shows too."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(LAYERS, DIM, generator=generator)
    patterns = torch.randn(len(EMOTIONS), DIM, generator=generator)
    emotions = torch.arange(clips) % len(EMOTIONS)
    sets = []
    for emotion in emotions:
        states = directions + torch.randn(4, LAYERS, DIM, generator=generator)
        states[:, informed] += patterns[emotion]
        sets.append(states.half())
    lengths = torch.ones(clips, dtype=torch.float64)
    return FeatureSet(
        {"hubert": Stacks(tuple(sets))}, torch.arange(clips), lengths, emotions, torch.full((clips,), 0.5)
    )


def loss(head: Head, batch: Example) -> dict[str, torch.Tensor]:
    return loss_terms(head, batch, torch.ones(len(EMOTIONS)), 0.0)


def test_gradients_reach_the_score_and_then_the_weight() -> None:
    head = Head(voice_model(), PLAIN)
    batch = next(iter(Batches([toy()], MODALITIES, PLAIN)(0, torch.Generator().manual_seed(0))))
    layers = head.layers["hubert"]
    loss(head, batch)["loss"].backward()
    assert layers.score.grad.abs().min() > 0
    assert not layers.weight.grad.any()  # the score is zero: energies do not depend on it yet
    with torch.no_grad():
        layers.score -= layers.score.grad
    loss(head, batch)["loss"].backward()
    assert layers.weight.grad.abs().max() > 0
    assert layers.bias.grad.abs().max() > 0


def trained(folder: Path, data: FeatureSet, schedule: Schedule, **options: object) -> Head:
    batches = Batches([data], MODALITIES, PLAIN)
    head = Head(voice_model(), PLAIN)
    return fit(head, schedule, folder=folder, seed=0, batches=batches, steps=len(batches), loss=loss, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("informed", range(LAYERS))
def test_attention_goes_to_the_layer_that_knows(informed: int, tmp_path: Path) -> None:
    data = toy(informed=informed)
    head = trained(tmp_path, data, Schedule(epochs=8, lr=2e-2))
    layers = head.layers["hubert"]
    with torch.inference_mode():
        states = data.pick(torch.arange(len(data)))["hubert"].values.float()
        attention = torch.cat([layers.energy(s) for s in states.unbind(1)], 1).softmax(1).mean(0)
    assert attention[informed] > 0.65  # a third, before
    posteriors, _ = predict(head, data, modalities=MODALITIES)
    assert (posteriors.mean(0).argmax(1) == data.emotions.numpy()).mean() > 0.9


def test_a_stopped_run_goes_on_with_its_gathering(tmp_path: Path) -> None:
    data, schedule = toy(32), Schedule(epochs=4, ema=0.9)
    whole = trained(tmp_path / "whole", data, schedule)

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", data, schedule, progress=stop)
    again = trained(tmp_path / "stopped", data, schedule)
    assert {"layers.hubert.weight", "layers.hubert.bias", "layers.hubert.score"} <= whole.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def test_augmented_batches_are_states(made: Path, tmp_path: Path) -> None:
    store, clips = FeatureStore(tmp_path, made, detector="none"), [sample(i) for i in range(4)]
    renderings = []
    for variant in (CLEAN, NOISY):
        list(store.make(clips, variant))
        renderings.append(FeatureSet.of(clips, [store.read(c, variant) for c in clips]))
    batches = Batches(renderings, {"hubert": "audio", "vit": "video"}, TrainRecipe(batch=4, drop_audio=0.5))
    sizes = set()
    for epoch in range(3):
        (example,) = batches(epoch, torch.Generator().manual_seed(epoch))
        states = example.features["hubert"]
        assert states.values.shape[1:] == (LAYERS, DIM)
        assert states.values.dtype == torch.float32
        sizes |= set(states.lengths.tolist())
        assert loss(Head(bundles.load(made).model, TrainRecipe()), example)["loss"].isfinite()
    assert 0 in sizes  # dropped
    assert len(sizes) > 2


def test_the_engine_runs_what_was_trained(tmp_path: Path) -> None:
    """Clips, a created bundle, its features, the training, the export and the engine."""
    start = create(
        tmp_path / "fused", audio=[write(tmp_path / "h", "hubert")], video=[write(tmp_path / "v", "vit")], layer="afg"
    )
    write_clips(tmp_path / "data")
    stream = (
        '[[streams]]\nname = "{}"\nmodality = "{}"\nencoder = "transformers"\ndim = 32\noptions = {{ layer = "afg" }}'
    )
    streams = [stream.format(s.name, s.modality) for s in start.config.streams]
    sources = [f'[encoders.{s.name}]\nsource = "{start.path}"' for s in start.config.streams]
    rest = RECIPE.partition("[preprocessing]")[2].replace("epochs = 25", "epochs = 4\nema = 0.5")
    text = "\n".join([RECIPE.partition("[[streams]]")[0], *streams, *sources, "[preprocessing]" + rest])
    (tmp_path / "recipe.toml").write_text(text.replace("crop_size = 48", "crop_size = 32"))
    folders = (tmp_path / "recipe.toml", tmp_path / "data", tmp_path / "work")
    for main in (features.main, train.main, evaluate.main):
        assert step(main, *folders) == 0
    assert step(export.main, *folders, "--out", str(tmp_path / "out")) == 0

    engine = merfast.Engine(tmp_path / "out", detector="haar")
    before, after = gatherings(start.model)["hubert"], gatherings(engine.bundle.model)["hubert"]
    assert all(not torch.equal(before.get_parameter(n), p) for n, p in after.named_parameters())
    unheard = gatherings(engine.bundle.model)["vit"]
    assert not unheard.score.any()  # no clip has a face

    project = Project(read_recipe(folders[0]), *folders[1:])
    clips = project.tests["test"]
    same = FeatureStore(project.work / "features", tmp_path / "out", detector="haar")
    assert same.file(clips[0], CLEAN) == project.store.file(clips[0], CLEAN)
    cached = FeatureSet.of(clips, [project.store.read(c, CLEAN) for c in clips]).pick(torch.arange(len(clips)))
    with torch.inference_mode():
        gathered = Head(engine.bundle.model, PLAIN).gather(cached)
        windows = [next(project.store.windows(c)) for c in clips]
        encoded = engine.bundle.model.encode(*inputs_of(Batch.pack(windows)))
    assert encoded["hubert"].lengths.tolist() == gathered["hubert"].lengths.tolist()
    torch.testing.assert_close(gathered["hubert"].values, encoded["hubert"].values, rtol=0, atol=2**-7)

    scores = json.loads((project.work / "report" / "scores.json").read_text())["sets"]["test"]["audio+video"]
    predictions = engine.predict([tmp_path / "data" / f"5_{e}.wav" for e in EMOTIONS])
    valence = [(p.valence - (e - 2.5)) ** 2 for e, p in enumerate(predictions)]
    assert sum(valence) / len(valence) == pytest.approx(scores["mse"], abs=5e-3)
