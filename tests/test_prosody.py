"""The prosody encoder: what its statistics measure, and that they depend on the set alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merfast.models import prosody
from merfast.models.prosody import FRAME, FUNCTIONALS, HOP, Prosody
from merfast.ops.ragged import Ragged, offsets_from

MEDIAN_PITCH, VOICED_SHARE, ACTIVE_SHARE, LOG_SECONDS = 0, 1, 3, 4
PITCH_SPREAD = 6  # deviation of the pitch relative to its median
PITCH_SLOPE = 13


def ragged(*sets: np.ndarray) -> Ragged:
    values = torch.from_numpy(np.concatenate([*sets, np.zeros(0)]).astype(np.float32))
    return Ragged(values, offsets_from(torch.tensor([len(s) for s in sets], dtype=torch.int64)))


def buzz(pitch: float | np.ndarray, seconds: float = 1.0, rate: int = 16000) -> np.ndarray:
    """Ten harmonics of a pitch in Hz, which may change over time."""
    count = int(seconds * rate)
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(pitch, count)) / rate
    return sum(np.sin(k * phase) / k for k in range(1, 11))


def noise(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count)


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
    monkeypatch.setattr(prosody, "CHUNK", 7)
    torch.testing.assert_close(encoder.functionals(long), whole, rtol=1e-4, atol=1e-4)


def test_modulations_are_where_they_are(encoder: Prosody) -> None:
    t = np.arange(32000) / 16000
    beats = [(0.51 + 0.49 * np.sin(2 * np.pi * f * t)) * noise(7, len(t)) for f in (3.0, 6.0, 12.0)]
    rows = encoder.functionals(ragged(*beats))
    loudness = rows[:, FUNCTIONALS - 24 :][:, :6]  # bands up to 1, 2, 4, 8, 16 and 25 Hz
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
