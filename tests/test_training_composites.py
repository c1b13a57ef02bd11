"""The mini recipe's data: readers, splits without overlap, and what a composite shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_data

from merfast.types import EMOTIONS
from training.composites import FRAME_RATE, Composite, Motion, average_neutral, make_composites
from training.corpora import Faces, Utterance, fold_of, read_faces, read_speech, split_speech
from training.data import DataError, check


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write(tmp_path_factory.mktemp("data"))


def test_speech_is_read(folder: Path) -> None:
    utterances = read_speech(folder / "speech")
    assert len(utterances) == 36  # without disgust
    assert Counter(u.emotion for u in utterances) == dict.fromkeys(range(6), 6)
    fear = next(u for u in utterances if u.file.name == "one_1_fear.wav")
    assert (fear.emotion, fear.speaker) == (EMOTIONS.index("worried"), "one_1")
    assert fear.valence == pytest.approx(5 * -0.64)
    assert replace(fear, intensity="normal").valence == pytest.approx(5 * -0.64 * 0.6)


def test_splits_share_no_speaker_and_no_picture(folder: Path) -> None:
    faces = read_faces(folder / "fer2013.npz", 0.2, seed=1)
    speech = split_speech(read_speech(folder / "speech"), val=["one_0", "two_0"], test=["one_1", "two_1"])
    neutral = average_neutral(faces["train"])
    samples = [
        s for split in faces for s in make_composites(faces[split], speech[split], neutral, split, 80, Motion(), 0)
    ]
    check(samples)
    seen: dict[str, set[object]] = {split: set() for split in faces}
    for sample in samples:
        assert isinstance(sample.media, Composite)
        seen[sample.split] |= {sample.media.utterance.speaker, sample.media.image.tobytes()}
        assert sample.emotion == sample.media.utterance.emotion
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]
    assert seen["test"] >= {"one_1", "two_1"}
    moved = [replace(samples[0], name="again", split="test")]
    with pytest.raises(DataError, match=r"speaker 'one_2'|speaker 'two_2'|picture"):
        check([*samples, *moved])


def test_the_real_splits_share_nothing(data_dir: Path) -> None:
    """The packaged recipe's own splits, on the real data."""
    from training.project import Project
    from training.recipe import read_recipe

    recipe = read_recipe(Path(__file__).parent.parent / "training" / "recipes" / "mini.toml")
    project = Project(recipe, data_dir, data_dir / "never-written")
    assert {split: len(f) > 1000 for split, f in project.faces.items()} == dict.fromkeys(("train", "val", "test"), True)
    check(project.samples)
    pictures = {split: set(f.ids) for split, f in project.faces.items()}
    speakers = {split: {u.speaker for u in utterances} for split, utterances in project.speech.items()}
    for kind in (pictures, speakers):
        assert not kind["train"] & kind["test"]
        assert not kind["train"] & kind["val"]
        assert not kind["val"] & kind["test"]
        assert min(map(len, kind.values())) > 2
    corpora = {s.split("_")[0] for s in speakers["test"]}
    assert corpora == {"ravdess", "emodb", "nemo"}


def test_test_and_held_out_pictures_are_apart(folder: Path) -> None:
    faces = read_faces(folder / "fer2013.npz", 0.2, seed=1)
    assert len(faces["test"]) == 60
    assert len(faces["train"]) + len(faces["val"]) == 180
    assert 15 <= len(faces["val"]) <= 60
    again, other = read_faces(folder / "fer2013.npz", 0.2, seed=1), read_faces(folder / "fer2013.npz", 0.2, seed=2)
    assert faces["val"].ids == again["val"].ids != other["val"].ids


def test_the_same_picture_in_two_splits_is_refused(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "fer2013.npz") as arrays:
        parts = dict(arrays)
    parts["images"][-1] = parts["images"][0]
    np.savez(tmp_path / "fer.npz", **parts)
    with pytest.raises(DataError, match=r"picture .*splits test, train"):
        read_faces(tmp_path / "fer.npz", 0.0, 0)


def test_folds_part_speakers(folder: Path) -> None:
    utterances = read_speech(folder / "speech")
    folds = fold_of(utterances, 3)
    assert folds == {"one_0": 0, "one_1": 1, "one_2": 2, "two_0": 0, "two_1": 1, "two_2": 2}
    with pytest.raises(DataError, match="got 3 speakers, expected at least as many as folds"):
        fold_of(utterances, 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("one_0_sad.wav", "one", "a", "sulky", "", "1"), "line 2: emotion: got 'sulky', expected one of neutral"),
        (("gone.wav", "one", "a", "sad", "", "1"), "line 2: .*gone.wav: no such file"),
        (("one_0_sad.wav", "one", "a", "sad", "loud", "1"), "intensity: got 'loud'"),
        (("one_0_sad.wav", "one", "a", "sad", "", "long"), "seconds: got 'long', expected a number"),
        (("one_0_sad.wav", "one", "a"), "line 2: got no emotion, intensity, seconds"),
    ],
)
def test_a_bad_manifest_is_named(folder: Path, tmp_path: Path, row: tuple[str, ...], message: str) -> None:
    (tmp_path / "one_0_sad.wav").write_bytes((folder / "speech" / "one_0_sad.wav").read_bytes())
    tiny_data.write_manifest(tmp_path, [row])
    with pytest.raises(DataError, match=message):
        read_speech(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.csv: cannot be read: No such file"):
        read_speech(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK nonsense", b"\x93NUMPY"])
def test_pictures_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fer.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"fer\.npz: cannot be read as FER2013"):
        read_faces(tmp_path / "fer.npz", 0.1, 0)


def test_unknown_and_shared_speakers(folder: Path) -> None:
    utterances = read_speech(folder / "speech")
    with pytest.raises(DataError, match="got three_0, which the data do not have"):
        split_speech(utterances, ["three_0"], [])
    with pytest.raises(DataError, match=r"speaker 'one_0'.*splits test, val"):
        split_speech(utterances, ["one_0"], ["one_0"])


def composite(folder: Path, seed: int = 0, **motion: float) -> Composite:
    image = np.full((48, 48), 60, np.uint8)
    image[16:32, 16:32] = 200
    neutral = np.full((48, 48), 128, np.uint8)
    neutral[:24] = 100
    still = Motion(0, 0, 0, 0, 0, 0, 0, 0, 1.0)
    utterance = read_speech(folder / "speech")[0]
    return Composite(image, "face", neutral, utterance, replace(still, **motion), seed)


def test_without_motion_the_picture_stands_still(folder: Path) -> None:
    still = composite(folder)
    frames, times = still.pictures(2.0)
    assert frames.shape == (10, 48, 48)
    np.testing.assert_allclose(times, np.arange(10) / FRAME_RATE)
    mirrored = {frame.tobytes() for frame in frames} | {still.image.tobytes(), still.image[:, ::-1].tobytes()}
    assert len(mirrored) <= 2


@pytest.mark.parametrize(
    "motion", [{"shift": 0.1}, {"turn": 20.0}, {"zoom": 0.2}, {"light": 0.3}, {"weakest": 0.1}, {"covered": 1.0}]
)
def test_each_motion_moves_over_time(folder: Path, motion: dict[str, float]) -> None:
    frames, _ = composite(folder, seed=4, **motion).pictures(4.0)
    assert len({frame.tobytes() for frame in frames}) > 1


def test_the_expression_falls_back_to_the_neutral_face(folder: Path) -> None:
    moving = composite(folder, seed=2, weakest=0.0)
    frames, _ = moving.pictures(6.0)
    strength = [float(frame[20:28, 20:28].mean()) - float(frame[:8].mean()) for frame in frames]
    assert max(strength) > 120  # the picture itself: 200 - 60
    assert min(strength) < 70


def test_dropped_frames_leave_a_gap(folder: Path) -> None:
    gaps = [composite(folder, seed=s, dropped=1.0).pictures(4.0)[1] for s in range(8)]
    assert all(10 <= len(times) < 20 for times in gaps)
    assert any(np.diff(times).max() > 1.5 / FRAME_RATE for times in gaps)


def test_a_composite_is_the_same_every_time(folder: Path) -> None:
    moved = Motion()
    one, same, other = (replace(composite(folder, seed=s), motion=moved) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.open().frames, same.open().frames)  # type: ignore[arg-type]
    assert one.key() == same.key() != other.key()
    assert not np.array_equal(one.open().frames, other.open().frames)  # type: ignore[arg-type]
    assert replace(one, motion=Motion(blur=2.0)).key() != one.key()
    clip = one.open()
    assert clip.faces == "given"
    assert clip.duration == pytest.approx(0.6, abs=0.11)


def test_every_picture_is_used_before_any_is_used_again(folder: Path) -> None:
    faces = read_faces(folder / "fer2013.npz", 0.0, 0)["test"]
    speech = read_speech(folder / "speech")
    samples = make_composites(faces, speech, average_neutral(faces), "test", len(faces), Motion(), 0)
    pictures = [s.media.image_id for s in samples if isinstance(s.media, Composite)]
    assert sorted(pictures) == sorted(faces.ids)
    corpora = Counter(s.media.utterance.corpus for s in samples if isinstance(s.media, Composite))
    assert min(corpora.values()) > 0.3 * len(samples)


def test_pictures_without_a_voice_are_refused(folder: Path) -> None:
    faces: Faces = read_faces(folder / "fer2013.npz", 0.0, 0)["test"]
    voices: list[Utterance] = [u for u in read_speech(folder / "speech") if u.emotion != EMOTIONS.index("happy")]
    with pytest.raises(DataError, match="got pictures but no utterance of happy"):
        make_composites(faces, voices, average_neutral(faces), "test", 60, Motion(), 0)
