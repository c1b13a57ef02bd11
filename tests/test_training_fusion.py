"""Training the fusion: what a batch holds, what the loss is, what the ablations leave out, and windows combined."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from merfast.config import FusionConfig, StreamConfig
from merfast.models.fusion import explain
from merfast.models.model import FusedModel
from merfast.ops.ragged import Ragged, offsets_from, take
from training.data import DataError, Sample
from training.fusion import (
    Batches,
    Example,
    FeatureSet,
    Head,
    choose,
    class_valences,
    class_weights,
    keep,
    loss_terms,
    predict,
    without,
)
from training.make_untrained import mini_config
from training.recipe import TrainRecipe
from training.store import Entry

MODALITIES = {"voice": "audio", "face": "video"}
PLAIN = TrainRecipe(batch=4, drop_audio=0, drop_video=0, noisy=0, feature_noise=0, frame_dropout=0, smoothing=0)
DIMS = {stream.name: stream.dim for stream in mini_config().streams}


class Nowhere:
    def key(self) -> str:
        return ""

    def open(self) -> object:
        raise AssertionError


def ragged(lengths: list[int], dim: int = 3, seed: int = 0) -> Ragged:
    values = torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(seed))
    return Ragged(values, offsets_from(torch.tensor(lengths)))


def sets(x: Ragged) -> list[list[list[float]]]:
    return [part.tolist() for part in torch.split(x.values, x.lengths.tolist())]


def entry(voice: list[int], face: list[int], seed: int = 0, seconds: float = 2.0) -> Entry:
    generator = torch.Generator().manual_seed(seed)
    windows = tuple(
        {n: torch.randn(rows, DIMS[n], generator=generator) for n, rows in (("voice", v), ("face", f))}
        for v, f in zip(voice, face, strict=True)
    )
    ends = torch.arange(1, len(voice) + 1) * seconds
    return Entry(torch.stack([ends - seconds, ends], 1).double(), windows)


def labelled(count: int) -> list[Sample]:
    return [Sample(f"c{i}", Nowhere(), i % 6, float(i % 6) - 2.5, None, "train") for i in range(count)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data() -> FeatureSet:
    lengths = [(5, 3), (4, 0), (0, 2), (6, 4), (3, 3), (2, 1), (7, 2), (5, 5)]
    return FeatureSet.of(labelled(8), [entry([v], [f], seed=i) for i, (v, f) in enumerate(lengths)])


def model(**changes: object) -> FusedModel:
    torch.manual_seed(0)
    streams = tuple(s for s in mini_config().streams if s.name in MODALITIES)
    small = {"streams": streams, "fusion": FusionConfig(dim=16, attention_dim=8, heads=2, valence_dim=8)}
    return FusedModel(mini_config(**(small | changes)))


def test_sets_are_taken_kept_and_emptied() -> None:
    x = ragged([2, 0, 3, 1])
    own = sets(x)
    assert sets(take(x, torch.tensor([2, 0, 2, 1]))) == [own[2], own[0], own[2], []]
    mask = torch.tensor([True, False, False, True, False, True])
    assert sets(keep(x, mask)) == [own[0][:1], [], [own[2][1]], own[3]]
    assert sets(without(x, torch.tensor([True, False, False, True]))) == [[], [], own[2], []]
    other = ragged([1, 1, 0, 2], seed=9)
    chosen = choose(x, other, torch.tensor([False, True, True, False]))
    assert sets(chosen) == [own[0], sets(other)[1], [], own[3]]


def test_a_plain_batch_is_the_data(data: FeatureSet) -> None:
    batches = Batches([data], MODALITIES, PLAIN)
    examples = list(batches(0, torch.Generator().manual_seed(0)))
    assert len(examples) == len(batches) == 2
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for b, example in enumerate(examples):
        rows = order[4 * b : 4 * b + 4]
        assert example.emotions.tolist() == data.emotions[rows].tolist()
        for name, expected in data.pick(rows).items():
            assert sets(example.features[name]) == sets(expected)


def test_epochs_differ_and_seeds_repeat(data: FeatureSet) -> None:
    batches = Batches([data], MODALITIES, TrainRecipe(batch=8))

    def first(seed: int) -> list[float]:
        return next(iter(batches(0, torch.Generator().manual_seed(seed)))).features["voice"].values.flatten().tolist()

    assert first(1) == first(1) != first(2)


def test_modalities_are_dropped_but_never_the_last(data: FeatureSet) -> None:
    batches = Batches([data], MODALITIES, replace(PLAIN, batch=8, drop_audio=0.5, drop_video=0.5))
    dropped = {"voice": 0, "face": 0}
    for seed in range(20):
        (example,) = batches(0, torch.Generator().manual_seed(seed))
        left = {name: x.lengths > 0 for name, x in example.features.items()}
        assert (left["voice"] | left["face"]).all()
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        for name, x in data.pick(order).items():
            dropped[name] += int(((x.lengths > 0) & ~left[name]).sum())
    # Six clips have both, and one of the two goes each time.
    assert sum(dropped.values()) == 120
    assert min(dropped.values()) > 40


def test_frames_are_dropped_but_no_set_is_emptied(data: FeatureSet) -> None:
    (example,) = Batches([data], MODALITIES, replace(PLAIN, batch=8, frame_dropout=1.0))(0, torch.Generator())
    for x in example.features.values():
        assert set(x.lengths.tolist()) == {0, 1}


def test_the_corrupted_rendering_is_used_as_often_as_asked(data: FeatureSet) -> None:
    marked = {name: Ragged(torch.full_like(x.values, 99.0), x.offsets) for name, x in data.streams.items()}
    batches = Batches([data, replace(data, streams=marked)], MODALITIES, replace(PLAIN, batch=8, noisy=0.25))
    used = 0
    for seed in range(50):
        (example,) = batches(0, torch.Generator().manual_seed(seed))
        voice = example.features["voice"]
        used += len({i for i, part in enumerate(sets(voice)) if part and part[0][0] == 99.0})
    assert 60 < used < 120  # of 350
    short = FeatureSet.of(labelled(1), [entry([1], [1])])
    with pytest.raises(DataError, match=r"renderings: got \[8, 1\] windows"):
        Batches([data, short], MODALITIES, PLAIN)


def test_the_loss_is_the_formula(data: FeatureSet) -> None:
    head = Head(model(), PLAIN)
    with torch.no_grad():
        head.log_variance.copy_(torch.tensor([[0.3, -0.2, 0.1], [1.0, 0.5, -0.5]]))
    emotions, valences = data.emotions.clone(), data.valences.clone()
    emotions[1], valences[4] = -1, float("nan")
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.5, 1.0])
    got = loss_terms(head, Example(data.streams, emotions, valences), weights, 0.0)
    with torch.no_grad():
        out = head(data.streams)
    expected = 0.0
    for s in range(3):
        p = out.logits[s].log_softmax(-1)
        rows = [i for i in range(8) if i != 1]
        w = [float(weights[emotions[i]]) for i in rows]
        ce = -sum(wi * float(p[i, emotions[i]]) for wi, i in zip(w, rows, strict=True)) / sum(w)
        mse = np.mean([(float(out.valence[s, i]) - float(valences[i])) ** 2 for i in range(8) if i != 4])
        s_e, s_v = head.log_variance.detach()[:, s].tolist()
        expected += math.exp(-s_e) * ce + 0.5 * math.exp(-s_v) * mse + 0.5 * (s_e + s_v)
    assert float(got["loss"].detach()) == pytest.approx(expected, rel=1e-5)


def test_unlabelled_clips_do_not_move_the_model(data: FeatureSet) -> None:
    head = Head(model(), replace(PLAIN, weighting="fixed"))
    nothing = Example(data.streams, torch.full((8,), -1), torch.full((8,), float("nan")))
    terms = loss_terms(head, nothing, torch.ones(6), 0.1)
    terms["loss"].backward()
    assert float(terms["loss"].detach()) == 0.0
    assert all(p.grad is None or not p.grad.any() for p in head.parameters())


def test_fixed_weights_stay(data: FeatureSet) -> None:
    assert not Head(model(), replace(PLAIN, weighting="fixed")).log_variance.requires_grad
    assert Head(model(), PLAIN).log_variance.requires_grad


def test_parallel_valence_knows_nothing_of_the_posterior(data: FeatureSet) -> None:
    joint, parallel = Head(model(), PLAIN), Head(model(), replace(PLAIN, decoding="parallel"))
    before = {name: head(data.streams) for name, head in (("joint", joint), ("parallel", parallel))}
    assert torch.equal(before["joint"].posterior, before["parallel"].posterior)
    for head in (joint, parallel):
        with torch.no_grad():
            head.decoder.emotion_bias[:, 2] += 3.0
    assert not torch.allclose(joint(data.streams).valence, before["joint"].valence)
    assert torch.equal(parallel(data.streams).valence, before["parallel"].valence)


def test_mean_pooling_pools_by_mean(data: FeatureSet) -> None:
    head = Head(model(fusion=FusionConfig(dim=16, heads=2, structures=("flat",))), replace(PLAIN, gathering="mean"))
    structure = head.structures["flat"]
    z = structure(data.streams)
    both = torch.cat(
        [structure.project[n](torch.split(x.values, x.lengths.tolist())[3]) for n, x in data.streams.items()]
    )
    torch.testing.assert_close(z[3], both.mean(0))
    empty = {n: without(x, torch.ones(8, dtype=torch.bool)) for n, x in data.streams.items()}
    torch.testing.assert_close(structure(empty)[0], structure.gather.absent)
    ((_, shares),) = zip(*explain([structure], data.streams), strict=True)
    counts = torch.stack([x.lengths for x in data.streams.values()]).sum(0)
    first = torch.cat([x[: data.streams[name].lengths[0]] for name, x in shares.items()])
    torch.testing.assert_close(first, torch.full_like(first, 1 / float(counts[0])))


def test_windows_are_combined_by_duration() -> None:
    head = Head(model(), PLAIN).eval()
    parts = entry([5, 4], [3, 2])
    uneven = Entry(torch.tensor([[0.0, 16.0], [16.0, 20.0]], dtype=torch.float64), parts.windows)
    one = FeatureSet.of(labelled(1), [uneven])
    two = FeatureSet.of(labelled(2), [Entry(uneven.spans[k : k + 1], (uneven.windows[k],)) for k in range(2)])
    posterior, valence = predict(head, one, modalities=MODALITIES)
    each, each_valence = predict(head, two, modalities=MODALITIES)
    np.testing.assert_allclose(posterior[:, 0], 0.8 * each[:, 0] + 0.2 * each[:, 1], rtol=1e-6)
    np.testing.assert_allclose(valence[:, 0], 0.8 * each_valence[:, 0] + 0.2 * each_valence[:, 1], rtol=1e-6)


def test_prediction_does_not_depend_on_the_batch_and_nothing_gives_nan(data: FeatureSet) -> None:
    head = Head(model(), PLAIN).eval()
    whole, _ = predict(head, data, modalities=MODALITIES)
    small, _ = predict(head, data, modalities=MODALITIES, batch=3)
    np.testing.assert_allclose(whole, small, atol=1e-6)
    without_face, valence = predict(head, data, modalities=MODALITIES, absent=["video"])
    assert np.isnan(without_face[:, 2]).all()  # it had a face alone
    assert np.isnan(valence[:, 2]).all()
    assert np.isfinite(np.delete(without_face, 2, 1)).all()


def test_class_weights_and_valences() -> None:
    emotions = torch.tensor([0, 0, 0, 0, 1, -1])
    weights = class_weights(emotions, 1.0)
    assert weights[0] * 4 == pytest.approx(float(weights[1]))
    assert float((weights[[0, 0, 0, 0, 1]]).mean()) == pytest.approx(1.0)
    assert class_weights(emotions, 0.0)[:2].tolist() == [1.0, 1.0]
    valences = torch.tensor([1.0, 2.0, float("nan"), 3.0, -4.0, 0.0])
    means = class_valences(emotions, valences)
    assert means is not None
    assert means[:2].tolist() == [2.0, -4.0]
    assert means[2] == pytest.approx(0.4)
    assert class_valences(emotions, torch.full((6,), float("nan"))) is None


def test_one_modality_alone_trains(data: FeatureSet) -> None:
    streams = (StreamConfig("voice", "audio", "logmel", DIMS["voice"]),)
    alone = replace(data, streams={"voice": data.streams["voice"]})
    batches = Batches([alone], {"voice": "audio"}, TrainRecipe(batch=8, drop_audio=0.5))
    head = Head(model(streams=streams), TrainRecipe())
    (example,) = batches(0, torch.Generator().manual_seed(0))
    assert (example.features["voice"].lengths > 0).sum() == 7  # never dropped where there is nothing else
    assert float(loss_terms(head, example, torch.ones(6), 0.0)["loss"].detach()) > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decoding": "serial"}, "train decoding: got 'serial'"),
        ({"noisy": 1.5}, "train noisy: got 1.5, expected 0 to 1"),
    ],
)
def test_recipes_check_themselves(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TrainRecipe(**wrong)  # type: ignore[arg-type]
