"""The fused model: batch invariance, missing modalities, structures against their formulas, gradients, routing."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_inputs import EYES, FACE, SIZE, TONE, VOICE, crops, one, pick, voices

from merfast.config import BundleConfig, FusionConfig, Preprocessing, StreamConfig
from merfast.errors import BundleError
from merfast.models import FusedModel, inputs_of
from merfast.models.fusion import AFG, STRUCTURES
from merfast.ops.afg import prepare_group as reference
from merfast.ops.decode import decode
from merfast.ops.ragged import Ragged, offsets_from
from merfast.types import Batch

CASES = {
    "one each": (VOICE, FACE),
    "several": (VOICE, FACE, TONE, EYES),
    "audio alone": (VOICE, TONE),
    "one video": (FACE,),
}


def model_of(*streams, **fusion):
    torch.manual_seed(0)
    widths = {"dim": 16, "attention_dim": 8, "heads": 2, "valence_dim": 8} | fusion
    config = BundleConfig(
        "test", False, streams, preprocessing=Preprocessing(crop_size=SIZE), fusion=FusionConfig(**widths)
    )
    return FusedModel(config).eval()


def features_of(streams, lengths):
    """Random features; `lengths` is a row of set sizes for each stream."""
    generator = torch.Generator().manual_seed(1)
    offsets = [offsets_from(torch.tensor(n)) for n in lengths]
    values = [torch.randn(int(o[-1]), s.dim, generator=generator) for s, o in zip(streams, offsets, strict=True)]
    return {s.name: Ragged(v, o) for s, v, o in zip(streams, values, offsets, strict=True)}


@pytest.mark.parametrize("name", ["", "a.b", "keys", "two words", "training", "_parameters"])
def test_stream_names_that_cannot_be_used(name):
    with pytest.raises(BundleError, match="name cannot be used"):
        model_of(StreamConfig(name, "audio", "logmel", 32))


# Structures, against a direct reading of the formulas: one clip at a time, nothing ragged.


def gather(module, rows, guide=None):
    """AFG of one set, from its formula."""
    if not len(rows):
        return module.absent
    parts = []
    width = rows.shape[1] // len(module.score)
    for h, u in enumerate(module.score):
        inner = [module.weight @ x + module.bias + (0 if guide is None else module.guide_weight @ guide) for x in rows]
        attention = torch.stack([u @ torch.tanh(e) for e in inner]).softmax(0)
        parts.append(sum(a * x[h * width : (h + 1) * width] for a, x in zip(attention, rows, strict=True)))
    return torch.cat(parts)


def direct(structure, kind, streams, clip):
    """One clip's vector; `clip` maps a stream's name to its frames."""

    def project(stream):
        linear = structure.project[stream.name]
        return [linear.weight @ x + linear.bias for x in clip[stream.name]]

    modalities = [[s for s in streams if s.modality == m] for m in ("audio", "video")]
    if kind == "flat":
        return gather(structure.gather, stack([x for s in streams for x in project(s)]))
    if kind == "hierarchical":
        top = []
        for members in modalities:
            present = [s for s in members if len(clip[s.name])]
            vectors = [gather(structure.gather_frames[s.name], stack(project(s))) for s in present]
            if len(members) > 1 and vectors:
                vectors = [gather(structure.gather_streams[members[0].modality], stack(vectors))]
            top += vectors
        return gather(structure.gather_modalities, stack(top))
    audio, video = (stack([x for s in members for x in project(s)]) for members in modalities)
    if not all(modalities):
        name, rows = ("audio", audio) if modalities[0] else ("video", video)
        found = [gather(structure.gather_frames[name], rows)] if len(rows) else []
        return gather(structure.gather_elements, stack(found))
    guide_a, guide_v = gather(structure.gather_guide["audio"], audio), gather(structure.gather_guide["video"], video)
    found = []
    if len(audio):
        found.append(gather(structure.gather_frames["audio"], audio, guide_v))
    if len(video):
        found.append(gather(structure.gather_frames["video"], video, guide_a))
    if len(found) == 2:
        found.append(found[0] * found[1])
    return gather(structure.gather_elements, stack(found))


def stack(rows):
    return torch.stack(rows) if rows else torch.zeros(0, 16)


@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", STRUCTURES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_structures_follow_their_formulas(kind, streams, data):
    torch.manual_seed(0)
    structure = STRUCTURES[kind](streams, FusionConfig(dim=16, attention_dim=8, heads=2))
    sets = data.draw(st.integers(1, 4))
    rows = st.lists(st.integers(0, 5), min_size=sets, max_size=sets)
    features = features_of(streams, [data.draw(rows) for _ in streams])
    with torch.inference_mode():
        got = structure(features)
        assert got.shape == (sets, 16)
        for b in range(sets):
            clip = {name: one(x, b).values for name, x in features.items()}
            assert torch.allclose(got[b], direct(structure, kind, streams, clip), rtol=0, atol=1e-5)


def test_guide_matters():
    torch.manual_seed(0)
    structure = STRUCTURES["guided"]((VOICE, FACE), FusionConfig(dim=16, attention_dim=8, heads=2))
    module = structure.gather_frames["audio"]
    x = Ragged(torch.randn(5, 16), torch.tensor([0, 5]))
    a, b = (module(x, guide) for guide in torch.randn(2, 1, 16))
    assert not torch.allclose(a, b, atol=1e-3)


# The whole model.


@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
def test_predictions_do_not_depend_on_the_batch(streams):
    model = model_of(*streams)
    samples, faces = [16_000, 0, 1, 399, 5_000, 0, 23_457], [5, 3, 0, 1, 0, 0, 12]
    audio, video = voices(samples), crops(faces)
    order = [3, 6, 0, 5, 1, 4, 2]
    with torch.inference_mode():
        posterior, valence = model(audio, video)
        assert posterior.shape == (7, 6)
        assert torch.allclose(posterior.sum(1), torch.ones(7))
        for b in range(7):
            alone = model(one(audio, b), one(video, b))
            assert torch.allclose(alone[0][0], posterior[b], rtol=0, atol=1e-5)
            assert torch.allclose(alone[1][0], valence[b], rtol=0, atol=1e-5)
        shuffled = model(pick(audio, order), pick(video, order))
    assert torch.allclose(shuffled[0], posterior[order], rtol=0, atol=1e-5)
    assert torch.allclose(shuffled[1], valence[order], rtol=0, atol=1e-5)


def test_each_modality_changes_the_prediction():
    model = model_of(VOICE, FACE)
    audio, video = voices([16_000]), crops([4])
    nothing = voices([0]), crops([0])
    with torch.inference_mode():
        outs = [model(*pair)[0][0] for pair in itertools.product((audio, nothing[0]), (video, nothing[1]))]
    for a, b in itertools.combinations(outs, 2):
        assert a.isfinite().all()
        assert (a - b).abs().max() > 1e-3


def test_no_media_at_all_gives_the_same_finite_answer():
    with torch.inference_mode():
        posterior, valence = model_of(VOICE, FACE, TONE, EYES)(voices([0, 0]), crops([0, 0]))
    assert posterior.isfinite().all()
    assert torch.equal(posterior[0], posterior[1])
    assert torch.equal(valence[0], valence[1])


def test_valence_is_clamped_only_in_the_average():
    model = model_of(VOICE, FACE)
    with torch.no_grad():
        model.decoder.valence_bias.fill_(40.0)
        features = model.encode(voices([800]), crops([1]))
        assert (model.decode(features).valence > 30).all()
        assert model.average(model.fuse(features))[1].tolist() == [5.0]


def test_weights_of_the_average():
    whole = model_of(VOICE, FACE, weights=(0.0, 3.0, 0.0))
    with torch.inference_mode():
        features = whole.encode(voices([3_000]), crops([2]))
        each = whole.decode(features)
        posterior, _ = whole.average(whole.fuse(features))
    assert torch.allclose(posterior, each.posterior[1], atol=1e-6)
    assert not torch.allclose(posterior, each.posterior[0], atol=1e-4)


def test_a_model_of_one_structure():
    with torch.inference_mode():
        assert model_of(VOICE, FACE, structures=("guided",)).fuse(features_of((VOICE, FACE), [[2], [0]])).shape == (
            1,
            1,
            16,
        )


def test_structures_share_no_parameters():
    model = model_of(VOICE, FACE, TONE, EYES)
    owned = [{id(p) for p in s.parameters()} for s in model.structures.values()]
    assert all(not a & b for a, b in itertools.combinations(owned, 2))


@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
def test_gradients_reach_every_parameter(streams):
    model = model_of(*streams).train()
    features = model.encode(voices([8_000, 9_000, 0, 700, 0]), crops([4, 0, 3, 2, 0]))
    each = model.decode(features)
    (each.logits.square().mean() + each.valence.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # An absent element is left out of the next gathering, and a gathering of one element has nothing to weigh.
        left_out = name.endswith(".absent") and (".gather_frames." in name or ".gather_streams." in name)
        single = len(model.structures["flat"].modalities) == 1
        weighs_one = single and (".gather_modalities." in name or ".gather_elements." in name)
        assert parameter.grad.any() or left_out or weighs_one, name


def test_guide_absent_vectors_learn():
    model = model_of(VOICE, FACE)
    features = model.encode(voices([8_000, 0]), crops([0, 4]))
    model.decode(features).logits.square().mean().backward()
    guides = model.structures["guided"].gather_guide
    assert all(guides[m].absent.grad.any() for m in ("audio", "video"))


def test_inputs_must_agree():
    with pytest.raises(ValueError, match="got 2 sets of audio and 1 of crops"):
        model_of(VOICE, FACE)(voices([1, 1]), crops([1]))


# Acceleration.


def test_accelerate_routes_every_gathering_in_one_call_for_each_stage():
    model = model_of(VOICE, FACE, TONE, EYES)
    prepared, calls = [], []

    def prepare(weights):
        assert not any(w.requires_grad for of in weights for w in of if w is not None)
        prepared.append(weights)

        def run(gatherings):
            calls.append(len(gatherings))
            return reference(weights)(gatherings)

        return run

    audio, video = voices([3_000, 0]), crops([2, 1])
    with torch.inference_mode():
        expected = model(audio, video)
        model.accelerate(prepare)
        got = model(audio, video)
        # Flat: all frames. Hierarchical: four streams, two modalities, one. Guided: two guides, two guided, one.
        assert calls == [len(weights) for weights in prepared] == [1 + 4 + 2, 2 + 2, 1 + 1]
        assert sum(calls) == sum(isinstance(m, AFG) for m in model.modules())
        assert torch.equal(got[0], expected[0])
        model.accelerate(None)
        model(audio, video)
    assert len(calls) == 3


def test_an_accelerated_model_refuses_to_train():
    model = model_of(VOICE, FACE)
    model.accelerate(reference)
    model.train()
    with pytest.raises(RuntimeError, match=r"call accelerate\(None\) before training"):
        model.fuse(features_of((VOICE, FACE), [[2], [1]]))


# Batches.


def test_inputs_share_the_memory_of_the_batch():
    batch = Batch(
        np.zeros(800, np.float32), np.array([0, 800]), np.zeros((2, SIZE, SIZE, 3), np.uint8), np.array([0, 2])
    )
    audio, video = inputs_of(batch)
    assert audio.values.data_ptr() == batch.audio.ctypes.data
    assert video.values.data_ptr() == batch.crops.ctypes.data
    with torch.inference_mode():
        posterior, _ = model_of(VOICE, FACE)(audio, video)
    assert posterior.shape == (1, 6)


def test_read_only_batches_are_copied():
    samples = np.zeros(800, np.float32)
    samples.setflags(write=False)
    batch = Batch(samples, np.array([0, 800]), np.zeros((0, SIZE, SIZE, 3), np.uint8), np.array([0, 0]))
    assert inputs_of(batch)[0].values.data_ptr() != samples.ctypes.data


def test_accelerate_routes_joint_decoding():
    model = model_of(VOICE, FACE, temperature=0.7)
    calls = []

    def prepare_decode(weights, mix, temperature, limit):
        assert not any(w.requires_grad for w in weights)
        assert (temperature, limit) == (0.7, 5.0)

        def run(z):
            calls.append(z.shape)
            return decode(z, weights, mix, temperature, limit)

        return run

    audio, video = voices([3_000, 0]), crops([2, 1])
    with torch.inference_mode():
        expected = model(audio, video)
        model.accelerate(None, prepare_decode)
        got = model(audio, video)
        assert len(calls) == 1
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        model.accelerate(None)
        model(audio, video)
    assert len(calls) == 1
    model.accelerate(None, prepare_decode)
    model.train()
    with pytest.raises(RuntimeError, match=r"decode: .*call accelerate\(None\) before training"):
        model.average(torch.zeros(len(model.structures), 1, 16))
