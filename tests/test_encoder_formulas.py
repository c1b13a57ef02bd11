"""Mini encoders and the decoder against their formulas written out, for one set at a time."""

import math

import numpy as np
import pytest
import torch
from ragged_inputs import FACE, SIZE, TONE, VOICE, crops
from torch.nn import functional

from merfast.config import BundleConfig, FusionConfig, Preprocessing, StreamConfig
from merfast.models.decoding import JointDecoder
from merfast.models.encoders import build_encoder
from merfast.models.logmel import LogMel
from merfast.models.model import FusedModel
from merfast.ops.decode import decode
from merfast.ops.ragged import Ragged


def single(rows):
    return Ragged(rows, torch.tensor([0, len(rows)]))


def scrambled(stream, seed=0):
    """The stream's encoder in float64, none of whose norms is an identity and whose attention is far from uniform."""
    torch.manual_seed(seed)
    encoder = build_encoder(stream, Preprocessing(crop_size=SIZE)).double().eval()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.3, 3)
            elif tensor.is_floating_point() and tensor.ndim == 1:  # biases, norms and running means
                tensor.add_(torch.randn_like(tensor) * 0.4)
            elif name.endswith("qkv.weight"):
                tensor.mul_(4)
    return encoder


# Log-mel spectrogram.


def signal(length):
    """Two tones in a little noise, then silence; small, and not centred."""
    generator = np.random.default_rng(3)
    seconds = np.arange(length) / 16_000
    wave = np.sin(2 * np.pi * 440 * seconds) + 0.3 * np.sin(2 * np.pi * 2_500 * seconds)
    wave += 0.01 * generator.standard_normal(length)
    wave[length * 2 // 3 :] = 0
    return (0.02 * wave + 0.004).astype(np.float32)


def triangle(band, hertz):
    """Height of a mel filter at a frequency."""
    lowest, highest = (2595 * math.log10(1 + f / 700) for f in (20, 7600))
    left, centre, right = (
        700 * (10 ** ((lowest + (highest - lowest) * (band + i) / 97) / 2595) - 1) for i in range(3)
    )  # Hz
    if left < hertz <= centre:
        return (hertz - left) / (centre - left)
    return (right - hertz) / (right - centre) if centre < hertz < right else 0.0


def naive_spectrogram(samples, normalise):
    x = samples.astype(np.float64)
    x = x - x.mean()
    x = x / np.abs(x).max()
    hann = np.array([math.sin(math.pi * n / 800) ** 2 for n in range(800)])
    filters = np.array([[triangle(band, k * 16_000 / 1024) for k in range(513)] for band in range(96)])
    rows, start = [], 0
    while True:
        frame = np.zeros(800)
        piece = x[start : start + 800]
        frame[: len(piece)] = piece
        power = np.abs(np.fft.rfft(frame * hann, 1024)) ** 2
        rows.append([10 * math.log10(max(power @ weights, 1e-10)) for weights in filters])  # dB
        start += 320
        if start + 480 >= len(x):  # the last frame reached the end
            break
    decibels = np.array(rows)
    assert decibels.min() < decibels.max() - 90 < decibels.max() - 80  # something to cut off
    decibels = np.maximum(decibels, decibels.max() - 80)
    axes = {"utterance": [None], "band": [0], "both": [None, 0]}[normalise]
    return np.stack([(decibels - decibels.mean(axis)) / decibels.std(axis) for axis in axes], 1)


@pytest.mark.parametrize("length", [4_321, 5_280, 16_000])
@pytest.mark.parametrize("normalise", ["utterance", "band", "both"])
def test_spectrogram_follows_its_formula(normalise, length):
    samples = signal(length)
    expected = naive_spectrogram(samples, normalise)
    got = LogMel(32, normalise=normalise).spectrogram(single(torch.from_numpy(samples))).values
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("normalise", ["utterance", "band", "both"])
def test_spectrogram_ignores_volume_and_offset(normalise):
    encoder = LogMel(32, normalise=normalise)
    wave = torch.from_numpy(signal(8_000))
    wave = (wave - wave.mean()) / (wave - wave.mean()).abs().max()
    expected = encoder.spectrogram(single(wave)).values
    for copy in (wave * 50, wave * 3e-4, wave + 0.5, wave * 3e-4 - 1e-3):
        got = encoder.spectrogram(single(copy)).values
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(encoder.spectrogram(single(-wave)).values, expected, rtol=0, atol=1e-5)


def test_each_set_is_levelled_alone():
    encoder = LogMel(32)
    loud, quiet = torch.from_numpy(signal(3_000)) * 1_000 + 7, torch.from_numpy(signal(5_000)) * 0.01
    both = encoder.spectrogram(Ragged(torch.cat([loud, quiet]), torch.tensor([0, 3_000, 8_000]))).values
    expected = [naive_spectrogram(signal(n), "both") for n in (3_000, 5_000)]
    np.testing.assert_allclose(both.numpy(), np.concatenate(expected), rtol=0, atol=1e-3)


def test_a_constant_signal_is_silence():
    frames = LogMel(32).spectrogram(single(torch.full((1_000,), 0.3))).values
    assert torch.equal(frames, torch.zeros(2, 2, 96))


# Convolutions and conformer.


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def layer_norm(x, norm):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def turned(x):
    """Rotary position of rows `[T, d]`: entries i and i + d / 2 are a complex number."""
    half = x.shape[1] // 2
    rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * rates
    z = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angles)
    return torch.cat([z.real, z.imag], 1)


def naive_block(x, block, heads):
    dim = x.shape[1]
    width = dim // heads
    q, k, v = torch.split(linear(layer_norm(x, block.norm_attention), block.qkv), dim, dim=1)
    seen = []
    for h in range(heads):
        at = slice(h * width, (h + 1) * width)
        scores = (turned(q[:, at]) @ turned(k[:, at]).T / math.sqrt(width)).exp()
        seen.append(scores / scores.sum(1, keepdim=True) @ v[:, at])
    x = x + linear(torch.cat(seen, 1), block.out)

    value, gate = torch.split(linear(layer_norm(x, block.norm_conv), block.gate), dim, dim=1)
    mixed = value / (1 + torch.exp(-gate))
    weight, bias = block.depthwise.weight, block.depthwise.bias
    mixed = functional.conv1d(mixed.T[None], weight, bias, padding=weight.shape[2] // 2, groups=dim)[0].T
    mixed = layer_norm(mixed, block.norm_depthwise)
    x = x + linear(mixed / (1 + torch.exp(-mixed)), block.pointwise)

    return x + linear(gelu(linear(layer_norm(x, block.norm_feed), block.feed_in)), block.feed_out)


def batch_norm(x, norm):
    mean, variance, weight, bias = (
        t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def naive_encode(frames, encoder, heads):
    x = frames.transpose(0, 1)[None]  # [1, C, time, 96]
    if x.shape[2] % 2:
        x = torch.cat([x, torch.zeros_like(x[:, :, :1])], 2)
    conv = functional.conv2d
    x = batch_norm(conv(x, encoder.stem.weight, stride=(2, 4), padding=(2, 3)), encoder.norm_stem).clamp(min=0)
    for stage, stride in zip(encoder.stages, (1, 2, 2), strict=True):
        y = batch_norm(conv(x, stage.conv1.weight, stride=(1, stride), padding=1), stage.norm1).clamp(min=0)
        y = batch_norm(conv(y, stage.conv2.weight, padding=1), stage.norm2)
        x = y + batch_norm(conv(x[..., ::stride], stage.shortcut[0].weight), stage.shortcut[1])
        x = x.clamp(min=0)
    rows = torch.stack([x[0, :, t].flatten() for t in range(x.shape[2])])
    rows = linear(rows, encoder.project)
    for block in encoder.blocks:
        rows = naive_block(rows, block, heads)
    return layer_norm(rows, encoder.norm_out)


@pytest.mark.parametrize("frames", [1, 6, 37, 101])
@pytest.mark.parametrize("stream", [VOICE, TONE, StreamConfig("voice", "audio", "logmel", 16)], ids=str)
def test_voice_vectors_follow_their_formula(stream, frames):
    encoder = scrambled(stream)
    channels = encoder.stem.in_channels
    x = torch.randn(frames, channels, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = naive_encode(x, encoder, stream.options.get("heads"))
        torch.testing.assert_close(encoder.encode(single(x)).values, expected, rtol=0, atol=1e-5)


def test_voice_encoder_encodes_its_spectrogram():
    encoder = scrambled(VOICE)
    x = single(torch.from_numpy(signal(6_000)).double())
    with torch.inference_mode():
        expected = naive_encode(encoder.spectrogram(x).values, encoder, VOICE.options["heads"])
        torch.testing.assert_close(encoder(x).values, expected, rtol=0, atol=1e-5)


# Faces.


def naive_luma(crop):
    """`[S, S]` of one crop `[S, S, 3]`; red, green and blue as ITU-R BT.601 weighs them."""
    red, green, blue = crop.double().unbind(-1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    grey = grey - grey.mean()
    return grey / max(float((grey**2).mean().sqrt()), 1.0)


def naive_face(luma, state, blocks):
    """One picture `[S, S]` -> its vector; `blocks` in each stage."""

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{name}.{n}"][:, None, None] for n in names)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    x = norm(conv(luma[None, None], "stem.0"), "stem.1").clamp(min=0)
    x = functional.max_pool2d(norm(conv(x, "stem.3"), "stem.4").clamp(min=0), 2)
    firsts = [sum(blocks[:stage]) for stage in range(len(blocks))]
    for i in range(sum(blocks)):
        changes = i in firsts[1:]
        stride, at = (2 if changes else 1), f"stages.{i}"
        y = norm(conv(x, f"{at}.conv1", stride), f"{at}.norm1").clamp(min=0)
        y = norm(conv(y, f"{at}.conv2"), f"{at}.norm2")
        if changes:
            x = norm(conv(functional.avg_pool2d(x, 2, ceil_mode=True), f"{at}.shortcut.1"), f"{at}.shortcut.2")
        x = (x + y).clamp(min=0)
    pooled = x[0].flatten(1).sum(1) / x[0, 0].numel()
    variance = ((pooled - pooled.mean()) ** 2).mean()
    return (pooled - pooled.mean()) / (variance + 1e-5).sqrt() * state["norm_out.weight"] + state["norm_out.bias"]


def test_luma_follows_bt601():
    torch.manual_seed(0)
    encoder = build_encoder(FACE, Preprocessing(crop_size=SIZE)).eval()
    values = crops([3]).values
    values[1] = values[1] // 128 + 60  # a deviation below 1, which is not raised
    values[2, ..., 0] = 255 - values[2, ..., 2]  # red against blue
    expected = torch.stack([naive_luma(crop) for crop in values])[:, None]
    assert expected[1].std() < 0.9
    torch.testing.assert_close(encoder.luma(values).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("widths", "blocks"), [([4], []), ([8, 16], []), ([8, 16], [2, 1, 3])], ids=str)
def test_face_vectors_follow_their_formula(widths, blocks):
    encoder = scrambled(StreamConfig("face", "video", "facecnn", 24, {"widths": widths, "blocks": blocks}))
    blocks = blocks or [1] * (len(widths) + 1)
    x = crops([10])
    with torch.inference_mode():
        state = encoder.state_dict()
        expected = torch.stack([naive_face(naive_luma(crop), state, blocks) for crop in x.values])
        torch.testing.assert_close(encoder(x).values, expected, rtol=0, atol=1e-5)


# Decoding.


@pytest.mark.parametrize(
    ("raw", "limited"), [(-40.0, -5.0), (-5.25, -5.0), (-4.75, -4.75), (0.5, 0.5), (4.75, 4.75), (5.25, 5.0)]
)
def test_valence_of_the_average_is_clamped_on_both_sides(raw, limited):
    torch.manual_seed(0)
    fusion = FusionConfig(dim=16, attention_dim=8, heads=2)
    model = FusedModel(BundleConfig("test", False, (VOICE, FACE), fusion=fusion))
    with torch.no_grad():
        model.decoder.valence_weight.zero_()
        model.decoder.class_valence.zero_()
        model.decoder.valence_bias.fill_(raw)
        _, valence = model.average(torch.randn(len(model.structures), 2, 16))
    assert valence.tolist() == pytest.approx([limited] * 2, abs=1e-5)


def test_valence_teaches_the_posterior():
    torch.manual_seed(0)
    decoder = JointDecoder(2, 12, 7).double()
    with torch.no_grad():
        decoder.valence_weight.zero_()  # leaves p . mu
    z = torch.randn(2, 1, 12, dtype=torch.float64)
    mix = torch.tensor([0.3, 0.7], dtype=torch.float64)
    posterior, mu = decoder(z).posterior[:, 0].detach(), decoder.class_valence.detach()
    above = mu - (posterior * mu).sum(1, keepdim=True)
    slope = (posterior * above)[:, :, None] * z  # of p . mu, by W
    assert slope.abs().max() > 0.1
    (alone,) = torch.autograd.grad(decoder(z).valence.sum(), decoder.emotion_weight)
    torch.testing.assert_close(alone, slope)
    (averaged,) = torch.autograd.grad(decode(z, decoder.weights, mix)[1].sum(), decoder.emotion_weight)
    torch.testing.assert_close(averaged, slope * mix[:, None, None])
