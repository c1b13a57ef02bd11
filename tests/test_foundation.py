"""Foundation models as encoders: against transformers' own output, layers, neighbours, and the options' errors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
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
from merfast.models.checkpoints import Checkpoint, load_pretrained
from merfast.models.encoders import build_encoder
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
def test_sets_do_not_see_each_other(folders, name):
    encoder, x, other = encoder_of(folders[name], name), input_of(name), input_of(name, seed=1)
    start, end = int(x.offsets[4]), int(x.offsets[5])
    other.values[start:end] = x.values[start:end]
    with torch.inference_mode():
        together, elsewhere = encoder(x), encoder(other)
        for b in range(len(x)):
            rows = set_of(x, b)
            alone = encoder(Ragged(rows, torch.tensor([0, len(rows)])))
            assert torch.equal(alone.values, set_of(together, b))
    assert torch.equal(set_of(together, 4), set_of(elsewhere, 4))
    assert (set_of(together, 1) - set_of(elsewhere, 1)).abs().max() > 1e-2
    expected = [0, 149, 0, 1, 34, 1, 0] if name in AUDIO else [0, 3, 0, 1, 20, 2, 0]
    assert together.lengths.tolist() == expected


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
        ("vit", 32, {"layer": 4}, "layer: got 4, expected 'last', 'mean' or a number from 0 to 3"),
        ("vit", 32, {"layer": -1}, "layer: got -1"),
        ("vit", 32, {"layer": True}, "layer: got True"),
        ("vit", 32, {"layer": "first"}, "layer: got 'first'"),
        ("vit", 32, {"pooling": "cls"}, r"got unknown options \['pooling'\], expected of layer$"),
        ("vit", 32, {"crop_size": 8}, r"got unknown options \['crop_size'\], expected of layer$"),
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
