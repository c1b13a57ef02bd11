"""The prosody encoder: what its statistics measure, and that they depend on the set alone."""

from __future__ import annotations

import copy
import math

import numpy as np
import prosody_by_set
import pytest
import torch
from no_waits import no_waits
from operations import operations

from merfast import bundle
from merfast.models import prosody, sound
from merfast.models.prosody import FUNCTIONALS, Prosody
from merfast.models.sound import FRAME, HOP
from merfast.ops.ragged import Ragged

MEDIAN_PITCH, VOICED_SHARE, ACTIVE_SHARE, LOG_SECONDS = 0, 1, 3, 4
PITCH_SPREAD = 6  # deviation of the pitch relative to its median
PITCH_SLOPE = 13
MODULATIONS = FUNCTIONALS - 24


def ragged(*sets: np.ndarray) -> Ragged:
    values = torch.from_numpy(np.concatenate([*sets, np.zeros(0)]).astype(np.float32))
    return Ragged.of(values, [len(s) for s in sets])


def buzz(pitch: float | np.ndarray, seconds: float = 1.0, rate: int = 16000) -> np.ndarray:
    """Ten harmonics of a pitch in Hz, which may change over time."""
    count = int(seconds * rate)
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(pitch, count)) / rate
    return sum(np.sin(k * phase) / k for k in range(1, 11))


def noise(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count)


def voice(seed: int, count: int) -> np.ndarray:
    """Syllables whose pitch and loudness go up and down, in more or less noise."""
    random = np.random.default_rng(seed)
    t = np.arange(count) / 16000
    waves = np.sin(2 * np.pi * random.uniform(0.3, 4, (2, 1)) * t + random.uniform(0, 6, (2, 1)))
    pitch = random.uniform(80, 300) * 2 ** (0.3 * waves[0])
    return buzz(pitch, count / 16000) * np.maximum(0.02, waves[1]) + random.choice([0.01, 0.5, 5]) * noise(seed, count)


def assert_same(got: torch.Tensor, expected: torch.Tensor, sizes: list[int]) -> None:
    """Within 1e-5 of each other; modulations of some frames, whose logs go to -14 for next to nothing, within 1e-4."""
    relative = (got - expected).abs() / (1 + expected.abs())
    budget = torch.full_like(relative, 1e-5)
    budget[[n < 12 * HOP for n in sizes if n], MODULATIONS:] = 1e-4
    assert (relative <= budget).all(), f"{relative.max():.1e} at {(relative > budget).nonzero().tolist()}"


@pytest.fixture(scope="module")
def encoder() -> Prosody:
    torch.manual_seed(0)
    return Prosody(32).eval()


@pytest.mark.parametrize("pitch", [90.0, 140.0, 220.0, 330.0])
def test_pitch_is_found_in_semitones(encoder: Prosody, pitch: float) -> None:
    (row,) = encoder.functionals(ragged(buzz(pitch)))
    assert float(row[MEDIAN_PITCH]) == pytest.approx(12 * np.log2(pitch), abs=0.5)
    assert row[VOICED_SHARE] > 0.9
    assert row[PITCH_SPREAD] < 0.5
    assert float(row[LOG_SECONDS]) == pytest.approx(0.0, abs=1e-6)


def test_a_rising_pitch_rises(encoder: Prosody) -> None:
    up, down = np.geomspace(120, 240, 16000), np.geomspace(240, 120, 16000)
    rising, falling = encoder.functionals(ragged(buzz(up), buzz(down)))
    # An octave over time -1 to 1 is 6 semitones for a unit of time.
    assert float(rising[PITCH_SLOPE]) == pytest.approx(6, abs=0.7)
    assert float(falling[PITCH_SLOPE]) == pytest.approx(-6, abs=0.7)


def test_noise_has_no_voice_and_silence_is_not_active(encoder: Prosody) -> None:
    hiss, gap = encoder.functionals(ragged(noise(0, 16000), np.concatenate([buzz(150, 0.5), np.zeros(8000)])))
    assert hiss[VOICED_SHARE] < 0.2
    assert 0.45 < gap[ACTIVE_SHARE] < 0.6


def test_volume_and_offset_do_not_matter(encoder: Prosody) -> None:
    voice = buzz(np.geomspace(100, 160, 16000)) + noise(1, 16000)
    plain, changed = encoder.functionals(ragged(voice, 0.01 * voice + 0.3))
    torch.testing.assert_close(plain, changed, rtol=1e-2, atol=2e-2)


LENGTHS = [1, 2, 3, 799, 800, 801, 1119, 1120, 1121, 1441, 2080, 5000]
LENGTHS += [39000, 40000, 64000, 82400, 82401, 163681, 256000]


def test_all_at_once_are_as_one_after_the_other(encoder: Prosody) -> None:
    voices = [voice(n, n) for n in LENGTHS]
    others = [np.zeros(5000), np.zeros(0), np.full(3000, 0.3), noise(1, 30000), np.zeros(0), np.zeros(1)]
    sets = [s.astype(np.float32) for s in (*others, *voices, *others)]
    expected = prosody_by_set.functionals(encoder, [torch.from_numpy(s) for s in sets])
    assert_same(encoder.functionals(ragged(*sets)), expected, [len(s) for s in sets])
    alone = torch.cat([encoder.functionals(ragged(s)) for s in sets])
    assert_same(alone, expected, [len(s) for s in sets])


@pytest.mark.parametrize("seed", range(6))
def test_any_batch_is_as_one_after_the_other(encoder: Prosody, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [int(n) for n in np.exp(random.uniform(0, math.log(256_000), 9))]
    sets = [voice(100 * seed + i, n).astype(np.float32) for i, n in enumerate(sizes)]
    expected = prosody_by_set.functionals(encoder, [torch.from_numpy(s) for s in sets])
    assert_same(encoder.functionals(ragged(*sets)), expected, sizes)


def test_sets_with_few_frames_that_count(encoder: Prosody) -> None:
    """Zeros instead of statistics of fewer than three frames, or of a course without a beginning or an end."""
    click = np.zeros(16000)
    click[7000] = 1
    sets = [
        click,
        np.concatenate([np.zeros(12000), buzz(150, 0.03)]),
        np.concatenate([buzz(150, 0.2), np.zeros(16000)]),
    ]
    for rows in (encoder.functionals(ragged(*sets)), torch.cat([encoder.functionals(ragged(s)) for s in sets])):
        expected = prosody_by_set.functionals(encoder, [torch.from_numpy(s.astype(np.float32)) for s in sets])
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)
        assert not rows[0, PITCH_SLOPE - 8 : PITCH_SLOPE + 2].any()  # no voice in a click
        assert not rows[2, PITCH_SLOPE + 1]


def test_the_packaged_model_predicts_what_it_did() -> None:
    model = bundle.load().model.eval()
    encoder = model.encoders["prosody"]
    assert isinstance(encoder, Prosody)
    sizes = [800, 2500, 16000, 39000, 64000, 100_000, 256_000]
    sets = [voice(n, n).astype(np.float32) for n in sizes]
    x = ragged(*sets)
    no_faces = Ragged.of(torch.zeros(0, 48, 48, 3, dtype=torch.uint8), [0] * len(sets))
    with torch.inference_mode():
        features = model.encode(x, no_faces)
        got = model.average(model.fuse(features))
        statistics = prosody_by_set.functionals(encoder, [torch.from_numpy(s) for s in sets])
        features["prosody"] = Ragged.of(encoder.encode(statistics), [1] * len(sets))
        expected = model.average(model.fuse(features))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_nothing_waits(encoder: Prosody) -> None:
    moved = copy.deepcopy(encoder).to("meta")
    with no_waits():
        out = moved(Ragged.of(torch.zeros(64_001, device="meta"), [64_000, 0, 1]))
    assert out.values.shape == (2, 32)
    assert out.sizes == (1, 0, 1)


def test_more_sets_are_no_more_launches(encoder: Prosody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "CPU_CHUNK", sound.GPU_CHUNK)
    few, many = (ragged(*[noise(b, 9000 + 20000 * (b % 3)) for b in range(count)]) for count in (3, 9))
    encoder(few)  # what is remembered for a length is worked out on the host
    seen = operations(lambda: encoder(few))
    assert seen == operations(lambda: encoder(many))
    assert seen.total() <= 180


def test_nan_stays_in_its_set(encoder: Prosody) -> None:
    sets = [voice(1, 20000), np.full(5000, np.nan), voice(2, 9000)]
    rows = encoder.functionals(ragged(*sets))
    assert rows[1].isnan().any()
    torch.testing.assert_close(rows[[0, 2]], encoder.functionals(ragged(sets[0], sets[2])), rtol=0, atol=1e-5)


def test_sets_never_see_each_other(encoder: Prosody) -> None:
    sets = [buzz(120, 0.7), noise(2, 5), np.zeros(0), noise(3, 30000), np.zeros(400)]
    together = encoder(ragged(*sets))
    assert together.lengths.tolist() == [1, 1, 0, 1, 1]
    alone = [encoder(ragged(s)).values for s in sets]
    torch.testing.assert_close(together.values, torch.cat(alone), rtol=0, atol=1e-6)
    assert torch.isfinite(together.values).all()


@pytest.mark.parametrize("count", [1, 2, FRAME - 1, FRAME, FRAME + 1, FRAME + HOP, 3 * FRAME, 16000 * 16])
def test_any_length_gives_finite_numbers(encoder: Prosody, count: int) -> None:
    for samples in (noise(count, count), np.zeros(count), np.ones(count)):
        row = encoder.functionals(ragged(samples))
        assert row.shape == (1, FUNCTIONALS)
        assert torch.isfinite(row).all()


def test_long_sets_are_read_in_chunks(encoder: Prosody, monkeypatch: pytest.MonkeyPatch) -> None:
    long = ragged(np.concatenate([buzz(130, 1.5), noise(5, 9000), buzz(200, 1.0)]))
    whole = encoder.functionals(long)
    monkeypatch.setattr(sound, "CPU_CHUNK", 7)
    torch.testing.assert_close(encoder.functionals(long), whole, rtol=1e-4, atol=1e-4)


def test_modulations_are_where_they_are(encoder: Prosody) -> None:
    t = np.arange(32000) / 16000
    beats = [(0.51 + 0.49 * np.sin(2 * np.pi * f * t)) * noise(7, len(t)) for f in (3.0, 6.0, 12.0)]
    rows = encoder.functionals(ragged(*beats))
    loudness = rows[:, MODULATIONS:][:, :6]  # bands up to 1, 2, 4, 8, 16 and 25 Hz
    assert loudness.argmax(1).tolist() == [2, 3, 4]


def test_statistics_are_scaled_by_the_training_sets(encoder: Prosody) -> None:
    other = Prosody(32).eval()
    other.load_state_dict(encoder.state_dict())
    statistics = encoder.functionals(ragged(buzz(150)))

    def layers(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(other.layer(torch.nn.functional.gelu(other.hidden(x))))

    with torch.no_grad():
        other.mean.copy_(statistics[0])
        other.deviation.fill_(2.0)
        shifted = other.encode(statistics + 2.0)
        expected = layers(torch.ones_like(statistics))
        beyond = other.encode(statistics + 1e6)
        cut = layers(torch.full_like(statistics, prosody.SPREAD))
    torch.testing.assert_close(shifted, expected)
    torch.testing.assert_close(beyond, cut)


@pytest.mark.parametrize("values", [torch.zeros(4, 2), torch.zeros(8, dtype=torch.int16)])
def test_bad_input_is_named(encoder: Prosody, values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"prosody: got torch\..*expected float samples \[N\]"):
        encoder(Ragged(values, torch.tensor([0, len(values)])))


def test_nothing_at_all(encoder: Prosody) -> None:
    out = encoder(ragged(np.zeros(0), np.zeros(0)))
    assert out.values.shape == (0, 32)
    assert out.lengths.tolist() == [0, 0]
