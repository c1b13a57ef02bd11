"""Encoders: sets that do not see each other, what they ignore and what not, and their errors."""

import numpy as np
import pytest
import torch
from no_waits import no_waits
from operations import operations
from ragged_inputs import FACE, SIZE, TONE, VOICE, crops, one, voices

from merfast.config import Preprocessing, StreamConfig
from merfast.errors import BundleError
from merfast.models import sound
from merfast.models.encoders import build_encoder
from merfast.models.logmel import MELS, LogMel, mel_filters
from merfast.ops.ragged import Ragged

LENGTHS = (0, 1, 799, 800, 801, 1_119, 1_120, 1_121, 2_080, 16_000, 23_457)


@pytest.mark.parametrize("stream", [VOICE, TONE, StreamConfig("voice", "audio", "logmel", 128)], ids=str)
def test_voice_sets_do_not_see_each_other(stream):
    torch.manual_seed(0)
    encoder = build_encoder(stream, Preprocessing()).eval()
    x = voices(LENGTHS)
    x.values[2_000:20_000] = torch.sin(torch.arange(18_000) * 0.1)  # bands far below the loudest one
    with torch.inference_mode():
        together = encoder(x)
        for b, length in enumerate(LENGTHS):
            alone = encoder(one(x, b)).values
            frames = 0 if length == 0 else 1 + -(-max(length - 800, 0) // 320)
            assert len(alone) == -(-frames // 2)
            assert torch.allclose(alone, one(together, b).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stream", [VOICE, TONE, StreamConfig("voice", "audio", "logmel", 128)], ids=str)
def test_voice_waits_for_nothing(stream):
    encoder = build_encoder(stream, Preprocessing()).eval().to("meta")
    with no_waits():
        out = encoder(Ragged.of(torch.zeros(sum(LENGTHS), device="meta"), LENGTHS))
    assert out.values.shape == (sum(out.sizes), stream.dim)
    assert out.sizes == (0, 1, 1, 1, 1, 1, 1, 2, 3, 25, 36)


def test_more_sets_are_no_more_launches(monkeypatch):
    monkeypatch.setattr(sound, "CPU_CHUNK", sound.GPU_CHUNK)
    encoder = build_encoder(StreamConfig("voice", "audio", "logmel", 128), Preprocessing()).eval()
    few, many = (operations(lambda n=n: encoder(voices([9_000, 7_000] * n))) for n in (1, 4))
    assert few == many


def test_faces_wait_for_nothing():
    encoder = build_encoder(FACE, Preprocessing(crop_size=SIZE)).eval().to("meta")
    with no_waits():
        out = encoder(Ragged.of(torch.zeros(700, SIZE, SIZE, 3, dtype=torch.uint8, device="meta"), [300, 0, 400]))
    assert out.values.shape == (700, FACE.dim)
    assert out.sizes == (300, 0, 400)


def test_voice_vectors_come_25_times_a_second():
    torch.manual_seed(0)
    with torch.inference_mode():
        assert build_encoder(VOICE, Preprocessing()).eval()(voices([64_000])).lengths.tolist() == [100]


def test_voice_ignores_the_volume_but_not_the_voice():
    torch.manual_seed(0)
    encoder = build_encoder(VOICE, Preprocessing()).eval()
    x = voices([16_000, 16_000])
    with torch.inference_mode():
        loud = encoder(x).values
        quiet = encoder(Ragged(x.values * 0.01, x.offsets)).values
    assert torch.allclose(loud, quiet, atol=1e-3)
    assert (loud[:25] - loud[25:]).abs().mean() > 100 * (loud - quiet).abs().mean()


def test_silence_gives_finite_vectors():
    with torch.inference_mode():
        out = build_encoder(VOICE, Preprocessing()).eval()(Ragged(torch.zeros(800), torch.tensor([0, 800])))
    assert out.values.isfinite().all()


def test_spectrogram_sees_a_tone_in_its_band():
    encoder = LogMel(32, normalise="utterance")
    tone = torch.sin(2 * np.pi * 1_000 * torch.arange(16_000) / 16_000)
    frames = encoder.spectrogram(Ragged(tone, torch.tensor([0, 16_000]))).values
    assert frames.shape == (49, 1, MELS)
    centre = (mel_filters() * (np.arange(513) * 15.625)[:, None]).sum(0) / mel_filters().sum(0)
    assert abs(centre[int(frames.mean((0, 1)).argmax())] - 1_000) < 50
    assert frames.mean() == pytest.approx(0, abs=1e-5)
    assert frames.std() == pytest.approx(1, abs=1e-2)


def test_mel_filters_cover_the_band():
    filters = mel_filters()
    assert (filters.sum(0) > 0).all()
    assert (filters[3:481].sum(1) > 0).all()
    assert filters[0].sum() == 0
    assert (filters[487:].sum(1) == 0).all()


def test_crops_do_not_see_each_other():
    torch.manual_seed(0)
    encoder = build_encoder(FACE, Preprocessing(crop_size=SIZE)).eval()
    x = crops([3, 0, 1, 40, 0])
    with torch.inference_mode():
        together = encoder(x)
        assert together.lengths.tolist() == [3, 0, 1, 40, 0]
        for b in range(len(x)):
            assert torch.allclose(encoder(one(x, b)).values, one(together, b).values, rtol=0, atol=1e-5)
        assert encoder(crops([0, 0])).values.shape == (0, 24)


def test_face_ignores_light_but_not_the_face():
    torch.manual_seed(0)
    encoder = build_encoder(FACE, Preprocessing(crop_size=SIZE)).eval()
    x = crops([1, 1])
    half = Ragged(x.values // 2 // 2 * 2, x.offsets)  # even values, so that halving is exact
    quarter = Ragged(half.values // 2, x.offsets)
    with torch.inference_mode():
        assert torch.allclose(encoder(half).values, encoder(quarter).values, atol=1e-4)
        a, b = encoder(x).values
    assert (a - b).abs().mean() > 0.05


@pytest.mark.parametrize("value", [0, 255])
def test_flat_crops_give_finite_vectors(value):
    encoder = build_encoder(FACE, Preprocessing(crop_size=SIZE)).eval()
    x = Ragged(torch.full((2, SIZE, SIZE, 3), value, dtype=torch.uint8), torch.tensor([0, 2]))
    assert encoder(x).values.isfinite().all()


def test_encoders_name_wrong_input():
    encoder = build_encoder(FACE, Preprocessing(crop_size=SIZE))
    with pytest.raises(
        ValueError, match=r"facecnn: got torch.uint8 \[2, 8, 8, 3\], expected torch.uint8 \[N, 16, 16, 3\]"
    ):
        encoder(Ragged(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 2])))
    with pytest.raises(ValueError, match=r"logmel: got torch.int16 \[5\], expected float samples"):
        build_encoder(VOICE, Preprocessing())(Ragged(torch.zeros(5, dtype=torch.int16), torch.tensor([0, 5])))


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (StreamConfig("v", "audio", "wavenet", 32), "got encoder 'wavenet', expected one of logmel, prosody, facecnn"),
        (StreamConfig("v", "video", "logmel", 32), "got modality 'video', but logmel reads audio"),
        (
            StreamConfig("v", "audio", "logmel", 32, {"depth": 3}),
            r"got unknown options \['depth'\], expected of channels",
        ),
        (StreamConfig("v", "video", "facecnn", 32, {"crop_size": 3}), r"got unknown options \['crop_size'\]"),
        (StreamConfig("v", "audio", "logmel", 30), "got 30, 4, expected dim a multiple of twice the heads"),
        (StreamConfig("v", "audio", "logmel", 32, {"layers": "two"}), "stream 'v'"),
        (StreamConfig("v", "audio", "logmel", 32, {"kernel": 4}), "kernel: got 4, expected an odd number"),
        (StreamConfig("v", "audio", "logmel", 32, {"normalise": "no"}), "normalise: got 'no'"),
        (StreamConfig("v", "video", "facecnn", 32, {"widths": []}), "widths: got"),
    ],
)
def test_encoder_errors(stream, message):
    with pytest.raises(BundleError, match=message):
        build_encoder(stream, Preprocessing())
