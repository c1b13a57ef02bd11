"""Foundation models as encoders: against transformers' own output, layers, neighbours, and the options' errors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from no_waits import no_waits
from tiny_checkpoints import (
    AUDIO,
    CONFIGS,
    FIELD,
    PROCESSORS,
    VIDEO,
    expected_vectors,
    image_processor,
    make,
    own_states,
    processor_of,
    write,
)

from merfast.config import BundleConfig, Preprocessing, StreamConfig
from merfast.errors import BundleError
from merfast.models import FusedModel
from merfast.models.checkpoints import FAMILIES, Checkpoint, load_pretrained
from merfast.models.encoders import build_encoder
from merfast.models.foundation import packs
from merfast.ops.ragged import Ragged, offsets_from

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")

SIDE = 40  # pixels of a crop: every tiny processor resizes it


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name), name) for name in CONFIGS}


def modality_of(name):
    return "audio" if name in AUDIO else "video"


def encoder_of(folder, name, dim=32, side=SIDE, **options):
    stream = StreamConfig("stream", modality_of(name), "transformers", dim, options)
    checkpoint = load_pretrained(folder, modality=modality_of(name))
    return build_encoder(stream, Preprocessing(crop_size=side), checkpoint).eval()


def speech(lengths, seed=0):
    values = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed)) * 0.1 + 0.05
    return Ragged(values, offsets_from(torch.tensor(lengths)))


def faces(lengths, side=SIDE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (sum(lengths), side, side, 3), generator=generator, dtype=torch.uint8)
    return Ragged(values, offsets_from(torch.tensor(lengths)))


def input_of(name, seed=0):
    """Seven sets, three of them empty; on the video side one of more than a chunk."""
    if name in AUDIO:
        return speech([0, 3_000, 0, 1, 700, FIELD, 0], seed)
    return faces([0, 3, 0, 1, 20, 2, 0], seed=seed)


def set_of(x, b):
    return x.values[int(x.offsets[b]) : int(x.offsets[b + 1])]


def own_input(name, values):
    """What transformers' own processor makes of one set."""
    if name in AUDIO:
        entries = {k: v for k, v in PROCESSORS["audio"].items() if k != "feature_extractor_type"}
        extractor = transformers.Wav2Vec2FeatureExtractor(**entries)
        return torch.as_tensor(extractor(values.numpy(), sampling_rate=16_000, return_tensors="np").input_values)
    processor = image_processor(processor_of(name))
    return torch.stack([torch.as_tensor(processor(crop.numpy()).pixel_values[0]) for crop in values])


def far(ours, expected):
    """Largest difference, relative to the largest value."""
    assert ours.shape == expected.shape
    return float((ours - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1e-3))


LAYERS = [
    (name, layer) for name in CONFIGS for layer in ("last", 0, 1, 2, "mean") if (name, layer) != ("resnet", "mean")
]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_vectors_are_those_of_transformers(folders, name, layer):
    dim = {0: 8, 1: 16}.get(layer, 32) if name == "resnet" else 32
    x = speech([4_321]) if name in AUDIO else faces([5])
    expected = expected_vectors(name, own_states(folders[name], name, own_input(name, x.values)), layer)
    with torch.inference_mode():
        ours = encoder_of(folders[name], name, dim, layer=layer)(x)
    assert ours.offsets.tolist() == [0, len(expected)]
    assert ours.values.shape == expected.shape == (len(expected), dim)
    assert len(expected) == (5 if name in VIDEO else 1 + (4_321 - FIELD) // 20)
    assert expected.std() > 0.05
    assert torch.allclose(ours.values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_differ_and_the_last_has_a_number(folders, name):
    x = speech([900]) if name in AUDIO else faces([2])
    numbers = (1, 2, 3) if name != "resnet" else (2,)
    with torch.inference_mode():
        last, *each = (encoder_of(folders[name], name, layer=n)(x).values for n in ("last", *numbers))
    assert torch.equal(last, each[-1])
    assert all((a - b).abs().max() > 1e-2 for a, b in pairwise(each))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mixed_batch_gives_what_transformers_gives_one_by_one(folders, name):
    encoder, x = encoder_of(folders[name], name), input_of(name)
    with torch.inference_mode():
        ours = encoder(x)
    for b in range(len(x)):
        if not len(rows := set_of(x, b)):
            continue
        given = own_input(name, rows)
        if name in AUDIO and len(rows) < FIELD:
            given = torch.nn.functional.pad(given, (0, FIELD - len(rows)))
        expected = expected_vectors(name, own_states(folders[name], name, given))
        assert far(set_of(ours, b), expected) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_sets_do_not_see_each_other(folders, name):
    encoder, x, other = encoder_of(folders[name], name), input_of(name), input_of(name, seed=1)
    start, end = int(x.offsets[4]), int(x.offsets[5])
    other.values[start:end] = x.values[start:end]
    with torch.inference_mode():
        together, elsewhere = encoder(x), encoder(other)
        for b in range(len(x)):
            rows = set_of(x, b)
            alone = encoder(Ragged(rows, torch.tensor([0, len(rows)])))
            assert not len(rows) or far(set_of(together, b), alone.values) < 1e-5
    assert far(set_of(together, 4), set_of(elsewhere, 4)) < 1e-5
    assert (set_of(together, 1) - set_of(elsewhere, 1)).abs().max() > 1e-2
    expected = [0, 149, 0, 1, 34, 1, 0] if name in AUDIO else [0, 3, 0, 1, 20, 2, 0]
    assert together.lengths.tolist() == expected


REAL = {
    "hubert": {},
    "hubert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "wav2vec2": {},
    "wavlm": {},
    "vit": {},
    "clip": {"image_size": 224, "patch_size": 32},
    "dinov2": {"image_size": 518, "patch_size": 14},
    "resnet": {},
}
"""Models of the published sizes: what differs from the defaults of transformers' configs."""


def real_model(name):
    """A random model of the published size, and its hidden width."""
    family, values = CONFIGS[name]
    _, config_class, model_class, arguments = FAMILIES[family]
    switches = {k: v for k, v in values.items() if k in ("do_stable_layer_norm", "feat_extract_norm", "conv_bias")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**(switches | REAL[name]))
        model = getattr(transformers, model_class)(config, **arguments).eval()
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", REAL)
def test_models_of_real_sizes_in_mixed_batches(name):
    model = real_model(name)
    audio, side = name in AUDIO, 224
    size = {"height": side, "width": side}
    processor = processor_of(name) | ({} if audio else {"size": size, "crop_size": size, "do_center_crop": False})
    if name == "resnet":
        processor = PROCESSORS["vit"] | {"size": size}
    checkpoint = Checkpoint(modality_of(name), model, processor)
    stream = StreamConfig("stream", modality_of(name), "transformers", checkpoint.dim)
    encoder = build_encoder(stream, Preprocessing(crop_size=side), checkpoint).eval()
    x = speech([12_000, 400, 0, 9_777, 10_001]) if audio else faces([2, 0, 1, 2], side)
    with torch.inference_mode():
        ours = encoder(x)
        for b in range(len(x)):
            if len(rows := set_of(x, b)):
                given = own_input(name, rows) if audio else encoder.pictures(rows)
                out = model(given, output_hidden_states=name == "resnet")
                if audio:
                    expected = out.last_hidden_state[0]
                else:
                    pooled = name in ("clip", "resnet")
                    expected = out.pooler_output.flatten(1) if pooled else out.last_hidden_state[:, 0]
                assert far(set_of(ours, b), expected) < 1e-4


def test_plain_padding_is_wrong_for_a_base_hubert_and_ours_is_not():
    model, x = real_model("hubert"), speech([32_000, 20_000])
    padded = torch.nn.utils.rnn.pad_sequence([own_input("hubert", set_of(x, b))[0] for b in range(2)], batch_first=True)
    mask = torch.arange(32_000) < torch.tensor([[32_000], [20_000]])
    checkpoint = Checkpoint("audio", model, PROCESSORS["audio"])
    stream = StreamConfig("stream", "audio", "transformers", 768)
    with torch.inference_mode():
        alone = model(own_input("hubert", set_of(x, 1))).last_hidden_state[0]
        for attention_mask in (None, mask.long()):
            plain = model(padded, attention_mask=attention_mask).last_hidden_state[1, : len(alone)]
            assert far(plain, alone) > 1e-3
        network = build_encoder(stream, Preprocessing(), checkpoint).eval().network
        ours = network(padded, torch.tensor([32_000, 20_000]))[1, : len(alone)]
    assert far(ours, alone) < 1e-5


@pytest.mark.parametrize("name", ["hubert", "wavlm", "wav2vec2-large"])
def test_what_is_beyond_a_length_is_not_seen(folders, name):
    network = encoder_of(folders[name], name).network
    x, lengths = torch.randn(3, 4_000), torch.tensor([1_500, 4_000, FIELD])
    loud = torch.where(torch.arange(4_000) < lengths[:, None], x, 1e4)
    with torch.inference_mode():
        quiet, loud = network(x, lengths), network(loud, lengths)
    assert torch.isfinite(loud).all()
    for row, length in enumerate(lengths.tolist()):
        frames = network.frames(length)
        assert far(loud[row, :frames], quiet[row, :frames]) < 1e-5


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "resnet"])
def test_layers_gathered_by_attention(folders, name):
    x = speech([2_000]) if name in AUDIO else faces([3])
    encoder = encoder_of(folders[name], name, layer="afg", attention_dim=8)
    layers = encoder.network.layers
    out = own_states(folders[name], name, own_input(name, x.values))
    states = torch.stack([expected_vectors(name, out, n) for n in range(1, 4)]).double()
    with torch.inference_mode():
        untrained = encoder(x).values
        torch.nn.init.normal_(layers.score, generator=torch.Generator().manual_seed(0))
        ours = encoder(x).values
    energy = torch.tanh(states @ layers.weight.double().T + layers.bias) @ layers.score.double()
    expected = (torch.softmax(energy, 0)[..., None] * states).sum(0)
    assert far(untrained, states.mean(0)) < 1e-5
    assert far(ours, expected) < 1e-5
    assert far(ours, untrained.double()) > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_what_comes_after_the_layer_is_not_computed(folders, name):
    encoder = encoder_of(folders[name], name, 16 if name == "resnet" else 32, layer=1)
    model = encoder.network.model
    paths = {"resnet": "encoder.stages", "vit": "layers", "dinov2": "encoder.layer"}
    blocks = model.get_submodule(paths.get(name, "encoder.layers"))
    for block in list(blocks)[1:]:
        for p in block.parameters():
            p.data.fill_(float("nan"))
    with torch.inference_mode():
        assert encoder(speech([900]) if name in AUDIO else faces([2])).values.isfinite().all()


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 300))
def test_packs_have_every_set_once_and_little_padding(sizes, budget):
    batches = list(packs(sizes, lambda rows, longest: rows * longest <= budget))
    assert sorted(b for batch in batches for b in batch) == [b for b, size in enumerate(sizes) if size]
    for batch in batches:
        lengths = [sizes[b] for b in batch]
        assert lengths[0] == max(lengths)
        assert len(batch) == 1 or len(batch) * lengths[0] <= budget
        assert 4 * min(lengths) >= 3 * lengths[0]


@pytest.mark.parametrize("name", ["hubert", "resnet"])
def test_empty_sets_alone_give_no_vectors(folders, name):
    x = speech([0, 0]) if name in AUDIO else faces([0, 0])
    with torch.inference_mode():
        out = encoder_of(folders[name], name)(x)
    assert out.values.shape == (0, 32)
    assert out.values.dtype == torch.float32
    assert out.offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", AUDIO)
@pytest.mark.parametrize("length", [1, 2, FIELD - 1])
def test_short_audio_is_filled_up_with_zeros(folders, name, length):
    x = speech([length])
    filled = torch.nn.functional.pad(own_input(name, x.values), (0, FIELD - length))
    expected = expected_vectors(name, own_states(folders[name], name, filled))
    with torch.inference_mode():
        ours = encoder_of(folders[name], name)(x).values
    assert ours.shape == (1, 32)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-5)


def test_published_models_read_25_ms_at_a_time(tmp_path):
    published = {"conv_dim": [8] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
    encoder = encoder_of(write(tmp_path, "hubert", **published), "hubert")
    assert encoder.field == 400
    with torch.inference_mode():
        assert encoder(speech([64_000, 399, 719, 720])).lengths.tolist() == [199, 1, 1, 2]


def test_audio_is_normalised_only_if_the_processor_says_so(tmp_path):
    raw = PROCESSORS["audio"] | {"do_normalize": False}
    encoder = encoder_of(write(tmp_path, "wav2vec2-large", processor=raw), "wav2vec2-large")
    x = speech([2_000])
    expected = expected_vectors("wav2vec2-large", own_states(tmp_path, "wav2vec2-large", x.values[None]))
    with torch.inference_mode():
        ours, louder = encoder(x).values, encoder(Ragged(x.values * 8, x.offsets)).values
    assert torch.allclose(ours, expected, rtol=0, atol=1e-5)
    assert (ours - louder).abs().max() > 1e-2


def test_a_volume_and_an_offset_are_normalised_away(folders):
    encoder, x = encoder_of(folders["hubert-large"], "hubert-large"), speech([2_000])
    with torch.inference_mode():
        ours, louder = encoder(x).values, encoder(Ragged(x.values * 8 + 0.5, x.offsets)).values
    assert torch.allclose(ours, louder, rtol=0, atol=1e-3)


def test_crops_change_their_vectors_only(folders):
    encoder, x = encoder_of(folders["clip"], "clip"), faces([4])
    with torch.inference_mode():
        before = encoder(x).values
        x.values[2] = 255 - x.values[2]
        changed = (encoder(x).values - before).abs().amax(1)
    assert changed[2] > 1e-2
    assert changed[[0, 1, 3]].max() < 1e-5


@pytest.mark.parametrize("name", ["wavlm", "dinov2", "resnet"])
def test_encoders_can_be_trained(folders, name):
    encoder = encoder_of(folders[name], name, layer="last").train()
    x = speech([8_000, 0, 900]) if name in AUDIO else faces([3, 0, 2])
    encoder(x).values.square().sum().backward()
    gradients = [p.grad for key, p in encoder.named_parameters() if "mask" not in key and p.grad is not None]
    assert len(gradients) > 10
    assert all(g.abs().sum() > 0 for g in gradients[:3])


def test_wrong_input_is_named(folders):
    with pytest.raises(ValueError, match=r"hubert: got torch.int16 \[5\], expected float samples \[N\]"):
        encoder_of(folders["hubert"], "hubert")(Ragged(torch.zeros(5, dtype=torch.int16), torch.tensor([0, 5])))
    with pytest.raises(ValueError, match=r"vit: got torch.uint8 \[1, 8, 8, 3\], expected torch.uint8 \[N, 40, 40, 3\]"):
        encoder_of(folders["vit"], "vit")(faces([1], side=8))


@pytest.mark.parametrize(
    ("name", "dim", "options", "message"),
    [
        ("hubert", 48, {}, r"'stream': dim: got 48, expected 32, the width of the checkpoint's layer 'last'"),
        ("resnet", 32, {"layer": 1}, "dim: got 32, expected 16, the width of the checkpoint's layer 1"),
        ("resnet", 32, {"layer": "mean"}, "layer: got 'mean', expected another one of resnet"),
        ("vit", 32, {"layer": 4}, "layer: got 4, expected 'last', 'mean', 'afg' or a number from 0 to 3"),
        ("resnet", 32, {"layer": "afg"}, "layer: got 'afg', expected another one of resnet"),
        ("vit", 32, {"layer": "afg", "attention_dim": 0}, "attention_dim: got 0, expected a whole number from 1 on"),
        ("vit", 32, {"layer": -1}, "layer: got -1"),
        ("vit", 32, {"layer": True}, "layer: got True"),
        ("vit", 32, {"layer": "first"}, "layer: got 'first'"),
        ("vit", 32, {"pooling": "cls"}, r"got unknown options \['pooling'\], expected of layer, attention_dim$"),
        ("vit", 32, {"crop_size": 8}, r"got unknown options \['crop_size'\], expected of layer, attention_dim$"),
    ],
)
def test_options_that_are_refused(folders, name, dim, options, message):
    with pytest.raises(BundleError, match=message):
        encoder_of(folders[name], name, dim, **options)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hubert", {"sampling_rate": 8_000}, "sampling_rate: got 8000, expected 16000"),
        ("hubert", {"do_normalize": "yes"}, "do_normalize: got 'yes', expected true or false"),
        ("hubert", {"feature_extractor_type": "WhisperFeatureExtractor"}, "got 'WhisperFeatureExtractor', expected"),
        (
            "vit",
            {"size": {"height": 24, "width": 24}},
            r"gives pictures of \(24, 24\), expected \(32, 32\), the model's",
        ),
        ("dinov2", {"crop_size": 4}, r"gives pictures of \(4, 4\), expected a patch of 8"),
        ("resnet", {"resample": 0}, "resample: got 0"),
    ],
)
def test_processors_that_do_not_fit(name, changes, message):
    checkpoint = Checkpoint(modality_of(name), make(name), processor_of(name) | changes)
    stream = StreamConfig("stream", modality_of(name), "transformers", 32)
    with pytest.raises(BundleError, match=f"config stream 'stream': .*{message}"):
        build_encoder(stream, Preprocessing(crop_size=SIDE), checkpoint)


def test_checkpoints_and_streams_must_go_together(folders):
    voice = StreamConfig("voice", "audio", "transformers", 32)
    mel = StreamConfig("mel", "audio", "logmel", 32)
    hubert = load_pretrained(folders["hubert"], modality="audio")
    for streams, checkpoints, message in [
        ((voice,), None, "'voice': got no checkpoint, expected one from load_pretrained"),
        ((voice,), {"face": hubert, "voice": hubert}, r"got checkpoints of unknown streams \['face'\]"),
        ((voice, mel), {"mel": hubert, "voice": hubert}, "'mel': got a checkpoint, expected none for logmel"),
        ((StreamConfig("voice", "video", "transformers", 32),), {"voice": hubert}, "but hubert reads audio"),
    ]:
        with pytest.raises(BundleError, match=message):
            FusedModel(BundleConfig("tiny", False, streams), checkpoints)


def test_random_lengths_have_the_vectors_they_should(folders):
    lengths = np.random.default_rng(0).integers(0, 300, 60).tolist()
    with torch.inference_mode():
        out = encoder_of(folders["wav2vec2"], "wav2vec2")(speech(lengths))
    assert out.lengths.tolist() == [0 if n == 0 else 1 + max(n - FIELD, 0) // 20 for n in lengths]


@pytest.mark.parametrize("name", CONFIGS)
def test_encoding_waits_for_nothing(folders, name):
    options = {"layer": "afg"} if name not in ("resnet",) else {}
    encoder = encoder_of(folders[name], name, **options).to("meta")
    x = input_of(name)
    x = Ragged(x.values.to("meta"), x.offsets.to("meta"), tuple(x.lengths.tolist()))
    with torch.inference_mode(), no_waits():
        vectors = encoder(x)
    expected = encoder_of(folders[name], name)(input_of(name))
    assert vectors.sizes == tuple(expected.lengths.tolist())
    assert vectors.values.shape == expected.values.shape


def test_loudness_and_offset_of_each_set_in_a_pass(folders):
    """Normalised in one go: each set by its own mean and deviation, to the bit of what follows in fp32."""
    encoder = encoder_of(folders["hubert"], "hubert")
    sets = [100.0 * set_of(speech([900]), 0) + 7, set_of(speech([1_200], seed=1), 0), set_of(speech([3], seed=2), 0)]
    rows, lengths = encoder.batch(torch.cat(sets), [(0, 900), (900, 1_200), (2_100, 3)])
    assert lengths.tolist() == [900, 1_200, FIELD]
    for row, one in zip(rows, sets, strict=True):
        exact = one.double()
        expected = (exact - exact.mean()) / (exact.var(correction=0) + 1e-7).sqrt()
        torch.testing.assert_close(row[: len(one)], expected.float(), rtol=1e-6, atol=1e-6)
        assert not row[len(one) :].any()
