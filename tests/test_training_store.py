"""The feature cache: the engine's own windows, keyed by content, resumable, and never silent about damage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from merfast import bundle as bundles
from merfast.clip import Clip
from merfast.demo import babble
from merfast.models.model import inputs_of
from merfast.types import Batch, Window
from training import make_untrained
from training.corrupt import Corruption, add_noise, corrupt
from training.data import DataError, Sample
from training.manifest import VideoFile
from training.store import FeatureStore, Variant


@dataclass(frozen=True)
class Drawn:
    """A short clip of noise that needs no file."""

    seed: int
    seconds: float = 1.0

    def key(self) -> str:
        return f"drawn {self.seed} {self.seconds}"

    def open(self) -> Clip:
        rng = np.random.default_rng(self.seed)
        frames = rng.integers(0, 256, (max(1, int(5 * self.seconds)), 64, 64, 3)).astype(np.uint8)
        audio = rng.normal(0, 0.1, int(16000 * self.seconds)).astype(np.float32)
        return Clip.from_arrays(
            frames, fps=5.0, audio=audio, sample_rate=16000, faces="given", name=f"drawn {self.seed}"
        )


def sample(seed: int, seconds: float = 1.0) -> Sample:
    return Sample(f"clip-{seed}", Drawn(seed, seconds), seed % 6, None, None, "train")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle")
    make_untrained.write(path)
    return path


@pytest.fixture
def store(tmp_path: Path, start: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features", start)


CLEAN, NOISY = Variant(), Variant("noisy", Corruption(), 1)


def test_features_are_what_the_engine_would_compute(store: FeatureStore, start: Path, face_clip: Path) -> None:
    clip = Sample("demo", VideoFile(face_clip), 0, None, None, "train")
    assert [m.error for m in store.make([clip], CLEAN)] == [""]
    entry = store.read(clip, CLEAN)
    model = bundles.load(start).model
    (window,) = store.windows(clip)
    with torch.inference_mode():
        features = model.encode(*inputs_of(Batch.pack([window])))
    assert entry.spans.tolist() == [[window.start, window.end]]
    for name, expected in features.items():
        assert len(expected.values) > 5 or name == "prosody"
        # Kept in half precision: 11 bits.
        torch.testing.assert_close(entry.windows[0][name], expected.values, rtol=2**-10, atol=1e-6)


def test_long_clips_have_several_windows(store: FeatureStore) -> None:
    long = sample(1, 20.0)
    list(store.make([long], CLEAN))
    entry = store.read(long, CLEAN)
    assert entry.spans.tolist() == [[0.0, 16.0], [16.0, 20.0]]
    assert [len(w["face"]) for w in entry.windows] == [80, 20]


def test_what_is_there_is_not_made_again(store: FeatureStore) -> None:
    samples = [sample(i) for i in range(3)]
    assert [m.found for m in store.make(samples[:2], CLEAN)] == [False, False]
    assert [m.found for m in store.make(samples, CLEAN)] == [True, True, False]
    written = [store.file(s, CLEAN).stat().st_mtime_ns for s in samples]
    assert all(m.found for m in store.make(samples, CLEAN))
    assert [store.file(s, CLEAN).stat().st_mtime_ns for s in samples] == written


def test_processes_side_by_side_make_the_same(store: FeatureStore, start: Path, tmp_path: Path) -> None:
    samples = [sample(i) for i in range(6)]
    other = FeatureStore(tmp_path / "other", start)
    noise = [babble(1.0)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        list(store.make(samples, NOISY, noise))
    finally:
        torch.set_num_threads(threads)
    made = list(other.make(samples, NOISY, noise, workers=2))
    assert sorted(m.name for m in made) == [s.name for s in samples]
    for s in samples:
        assert store.file(s, NOISY).read_bytes() == other.file(s, NOISY).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damage_is_named_and_mended(store: FeatureStore, damage: str) -> None:
    one = sample(1)
    list(store.make([one], CLEAN))
    good = store.read(one, CLEAN)
    file = store.file(one, CLEAN)
    data = file.read_bytes()
    flipped = bytearray(data)
    flipped[-7] ^= 4
    file.write_bytes({"cut": data[:-9], "flip": bytes(flipped), "empty": b"", "other": b"{}" * 40}[damage])
    with pytest.raises(DataError, match=r"clip-1: damaged features in .*run training\.features again"):
        store.read(one, CLEAN)
    (made,) = store.make([one], CLEAN)
    assert "clip-1: damaged features" in made.replaced
    assert torch.equal(store.read(one, CLEAN).windows[0]["voice"], good.windows[0]["voice"])


def test_what_is_missing_is_named(store: FeatureStore) -> None:
    with pytest.raises(DataError, match=r"clip-4: no features in .*run training\.features again"):
        store.read(sample(4), CLEAN)


def test_keys_follow_content_encoders_and_variant(store: FeatureStore, start: Path, tmp_path: Path) -> None:
    files = {store.file(sample(i), v) for i in (1, 2) for v in (CLEAN, NOISY, replace(NOISY, seed=2))}
    assert len(files) == 6
    make_untrained.write(tmp_path / "other", seed=1)
    other = FeatureStore(store.folder, tmp_path / "other")
    assert other.file(sample(1), CLEAN) != store.file(sample(1), CLEAN)
    again = FeatureStore(store.folder, start)
    assert again.file(sample(1), CLEAN) == store.file(sample(1), CLEAN)


def test_an_unreadable_clip_is_named_and_harms_no_other(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 50)
    bad = Sample("bad", VideoFile(tmp_path / "bad.mp4"), 0, None, None, "train")
    gone = Sample("gone", VideoFile(tmp_path / "gone.mp4"), 0, None, None, "train")
    made = list(store.make([sample(1), bad, gone, sample(2)], CLEAN))
    assert [bool(m.error) for m in made] == [False, True, True, False]
    assert made[1].error.startswith("bad: cannot be read as media")
    assert "gone.mp4" in made[2].error
    with pytest.raises(DataError, match="bad: no features"):
        store.read(bad, CLEAN)


def test_stopping_loses_only_what_was_under_way(store: FeatureStore) -> None:
    samples = [sample(i) for i in range(4)]
    running: Iterator[object] = store.make(samples, CLEAN)
    next(running)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert [m.found for m in store.make(samples, CLEAN)] == [True, True, False, False]
    assert not [f for f in store.folder.rglob("*") if f.is_file() and f.name.startswith(".")]


def window(seed: int = 0) -> Window:
    rng = np.random.default_rng(seed)
    crops = rng.integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    return Window(0.0, 1.0, rng.normal(0, 0.1, 16000).astype(np.float32), crops, 4, 0, {})


@pytest.mark.parametrize("snr", [0.0, 5.0, 10.0])
def test_noise_has_the_ratio_it_should(snr: float) -> None:
    rng = np.random.default_rng(3)
    voice, noise = window().audio, (0.01 * rng.normal(size=7000)).astype(np.float32)
    under = add_noise(voice, noise, snr, rng) - voice
    assert 10 * np.log10(np.mean(voice**2) / np.mean(under**2)) == pytest.approx(snr, abs=0.2)


def test_silent_noise_and_no_noise_change_nothing() -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(add_noise(window().audio, np.zeros(10, np.float32), 5.0, rng), window().audio)
    np.testing.assert_array_equal(corrupt(window(), Corruption(), [], rng).audio, window().audio)


def test_blur_grows_with_its_number() -> None:
    rng = np.random.default_rng(0)
    roughness = [
        float(np.abs(np.diff(corrupt(window(), Corruption(blurs=(b,)), [], rng).crops.astype(float), axis=2)).mean())
        for b in (0.0, 1.0, 2.0, 4.0)
    ]
    assert roughness == sorted(roughness, reverse=True)
    assert roughness[0] > 3 * roughness[3]


def test_corruption_follows_its_probabilities() -> None:
    rng, noise = np.random.default_rng(0), [window(5).audio]
    half = Corruption(audio=0.5, video=0.5)
    changed = [corrupt(window(), half, noise, rng) for _ in range(60)]
    for kind in ("audio", "crops"):
        count = sum(not np.array_equal(getattr(w, kind), getattr(window(), kind)) for w in changed)
        assert 15 < count < 45
    with pytest.raises(DataError, match="corruption: expected snr"):
        Corruption(snr=(10.0, 5.0))
