"""The engine on real files: contract, invariance, missing modalities, failures in place, timelines, threads."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from media_files import truncate, write_video, write_wav

import merfast
from merfast.clip import Clip
from merfast.demo import babble
from merfast.media.decode import open_media
from merfast.ops import afg as afg_reference
from merfast.ops import decode as decode_reference
from merfast.types import EMOTIONS, SAMPLE_RATE, Failure, Prediction

pytestmark = pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")


@pytest.fixture(scope="module")
def engine() -> merfast.Engine:
    return merfast.Engine(detector="haar")


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    """3 s of speech-like sound at 16 kHz."""
    sound = babble(3.0)
    return np.interp(np.arange(3 * SAMPLE_RATE) * 24_000 / SAMPLE_RATE, np.arange(len(sound)), sound).astype("f4")


@pytest.fixture(scope="module")
def pictures(face_clip: Path) -> np.ndarray:
    """`[T, H, W, 3]`: the demo clip's frames at 5 a second."""
    media = open_media(face_clip, name="face", decoder="pyav", frame_rate=5)
    frames = np.stack([e.rgb() for e in media.events() if hasattr(e, "rgb")])
    media.close()
    return frames


def difference(a: Prediction | Failure, b: Prediction | Failure) -> float:
    assert isinstance(a, Prediction)
    assert isinstance(b, Prediction)
    assert a.modalities == b.modalities
    return max(float(np.abs(a.probabilities - b.probabilities).max()), abs(a.valence - b.valence))


def test_a_clip_is_predicted(engine: merfast.Engine, face_clip: Path) -> None:
    (p,) = engine.predict([face_clip])
    assert isinstance(p, Prediction)
    assert p.source == str(face_clip)
    assert p.emotion == EMOTIONS[int(p.probabilities.argmax())]
    assert p.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
    assert (p.probabilities > 0).all()
    assert -5 <= p.valence <= 5
    assert (p.start, p.end) == (0.0, pytest.approx(2.5, abs=0.1))
    assert (p.modalities, p.missing, p.windows, p.others) == (("audio", "video"), {}, (), ())
    assert p.face_coverage == 1.0
    assert p.track is not None


def test_every_kind_of_source_gives_the_same(engine: merfast.Engine, face_clip: Path) -> None:
    content = face_clip.read_bytes()
    with face_clip.open("rb") as file:
        results = engine.predict([face_clip, str(face_clip), content, io.BytesIO(content), file])
    assert max(difference(results[0], r) for r in results[1:]) <= 1e-5
    assert results[2].source == "<bytes #2>"


def test_arrays_and_given_faces(engine: merfast.Engine, pictures: np.ndarray, voice: np.ndarray) -> None:
    whole = Clip.from_arrays(pictures, fps=5, audio=voice, sample_rate=SAMPLE_RATE, name="whole")
    crops = Clip.from_arrays(pictures[:, 60:240, 150:330], fps=5, faces="given", name="crops")
    a, b = engine.predict([whole, crops])
    assert isinstance(a, Prediction)
    assert isinstance(b, Prediction)
    assert (a.source, a.modalities, a.face_coverage) == ("whole", ("audio", "video"), 1.0)
    assert (b.source, b.modalities, b.missing) == ("crops", ("video",), {"audio": "no audio track"})


def test_missing_modalities_fall_back_and_say_so(
    engine: merfast.Engine, pictures: np.ndarray, voice: np.ndarray
) -> None:
    silence = np.zeros(3 * SAMPLE_RATE, dtype=np.float32)
    blank = np.full_like(pictures, 90)
    faceless, silent, both = engine.predict(
        [
            Clip.from_arrays(blank, fps=5, audio=voice, sample_rate=SAMPLE_RATE),
            Clip.from_arrays(pictures, fps=5, audio=silence, sample_rate=SAMPLE_RATE),
            Clip.from_arrays(pictures, fps=5, audio=voice, sample_rate=SAMPLE_RATE),
        ]
    )
    assert isinstance(faceless, Prediction)
    assert isinstance(silent, Prediction)
    assert (faceless.modalities, faceless.missing) == (("audio",), {"video": "no face found"})
    assert (faceless.face_coverage, faceless.track) == (0.0, None)
    assert (silent.modalities, silent.missing) == (("video",), {"audio": "silent"})
    assert difference_of_values(faceless, both) > 1e-4  # the other modality does matter
    assert difference_of_values(silent, both) > 1e-4


def difference_of_values(a: Prediction | Failure, b: Prediction | Failure) -> float:
    assert isinstance(a, Prediction)
    assert isinstance(b, Prediction)
    return float(np.abs(a.probabilities - b.probabilities).max())


def test_a_batch_never_changes_an_answer(
    engine: merfast.Engine, face_clip: Path, pictures: np.ndarray, voice: np.ndarray
) -> None:
    items = [
        face_clip,
        Clip.from_arrays(pictures[:3], fps=5),
        Clip.from_arrays(audio=voice, sample_rate=SAMPLE_RATE),
        Clip.from_arrays(audio=np.tile(voice, 9), sample_rate=SAMPLE_RATE),  # 27 s: two windows
        Clip.from_arrays(audio=voice[:100], sample_rate=SAMPLE_RATE),
        Clip.from_arrays(pictures, fps=5, audio=voice[:9000], sample_rate=SAMPLE_RATE),
    ]
    together = engine.predict(items)
    alone = [engine.predict([i])[0] for i in items]
    backwards = engine.predict(items[::-1])[::-1]
    assert max(difference(a, b) for a, b in zip(together, alone, strict=True)) <= 1e-5
    assert max(difference(a, b) for a, b in zip(together, backwards, strict=True)) <= 1e-5
    small = merfast.Engine(detector="haar", batch_seconds=1e-3).predict(items)
    assert max(difference(a, b) for a, b in zip(together, small, strict=True)) <= 1e-5


def test_long_media_are_averaged_over_their_windows(engine: merfast.Engine, voice: np.ndarray) -> None:
    long = np.concatenate([voice * g for g in (1.0, 0.3, 0.1, 1.0, 0.2, 0.5, 0.9)])[: 20 * SAMPLE_RATE]
    (whole,) = engine.predict([Clip.from_arrays(audio=long, sample_rate=SAMPLE_RATE)])
    parts = [long[: 16 * SAMPLE_RATE], long[16 * SAMPLE_RATE :]]
    first, second = engine.predict([Clip.from_arrays(audio=p, sample_rate=SAMPLE_RATE) for p in parts])
    assert isinstance(whole, Prediction)
    assert isinstance(first, Prediction)
    assert isinstance(second, Prediction)
    assert [(w.start, w.end) for w in whole.windows] == [(0, 16), (16, 20)]
    assert (whole.start, whole.end) == (0, 20)
    mean = (16 * first.probabilities + 4 * second.probabilities) / 20
    assert np.abs(whole.probabilities - mean).max() < 1e-5
    assert whole.valence == pytest.approx((16 * first.valence + 4 * second.valence) / 20, abs=1e-5)


def test_several_faces(pictures: np.ndarray, voice: np.ndarray) -> None:
    engine = merfast.Engine(detector="haar", faces="all")
    two = np.concatenate([pictures, np.roll(pictures[:, :, ::-1], 1, axis=0)], axis=2)
    item = Clip.from_arrays(two, fps=5, audio=voice, sample_rate=SAMPLE_RATE)
    (p,) = engine.predict([item])
    assert isinstance(p, Prediction)
    (other,) = p.others
    assert {p.track, other.track} == {0, 1}
    assert other.face_coverage > 0.8
    (main,) = engine.predict([item], faces="main")
    assert isinstance(main, Prediction)
    assert main.others == ()
    assert difference(main, p) <= 1e-5
    assert "others" in p.to_dict()


def bad_items(folder: Path, pictures: np.ndarray) -> dict[str, object]:
    good = write_video(folder / "good.mp4", list(pictures) * 4, 10)
    text = folder / "letter.mp4"
    text.write_text("not a film " * 100)
    empty = folder / "empty.mp4"
    empty.touch()
    noise = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    cut = write_video(folder / "cut.mp4", list(pictures) * 8, 10)
    return {
        "nowhere.mp4": folder / "nowhere.mp4",
        "empty.mp4": empty,
        "letter.mp4": text,
        "cut.mp4": truncate(cut, 0.5, faststart=True),
        "lost.mp4": truncate(good, 0.9, faststart=False).rename(folder / "lost.mp4"),
        "tiny.mp4": write_video(folder / "tiny.mp4", noise, 5),
        "hush.wav": write_wav(folder / "hush.wav", np.zeros(0, dtype=np.float32), 16_000),
        "silent.wav": write_wav(folder / "silent.wav", np.zeros(9000, dtype=np.float32), 16_000),
        "<bytes": b"",
        "float": 3.5,
    }


def test_failures_take_their_place_and_nothing_else(
    engine: merfast.Engine, tmp_path: Path, face_clip: Path, pictures: np.ndarray
) -> None:
    bad = bad_items(tmp_path, pictures)
    items: list[object] = [face_clip]
    for item in bad.values():
        items += [item, face_clip]
    done: list[int] = []
    results = engine.predict(items, on_error="return", progress=done.append)  # type: ignore[arg-type]
    assert done == list(range(1, len(items) + 1))
    good, failures = results[::2], results[1::2]
    assert all(difference(good[0], g) <= 1e-5 for g in good)
    for name, failure in zip(bad, failures, strict=True):
        assert isinstance(failure, Failure), name
        assert isinstance(failure.error, merfast.MediaError), name
        assert str(failure.error).startswith(failure.source), name
        if "." in name:
            assert name in str(failure.error)
        assert set(failure.to_dict()) == {"source", "error", "kind"}
    assert not [t for t in threading.enumerate() if t.name == "merfast-prefetch"]


def test_the_first_error_is_raised_by_default(engine: merfast.Engine, face_clip: Path) -> None:
    with pytest.raises(merfast.MediaError, match=r"nowhere\.mp4: no such file"):
        engine.predict([face_clip, "nowhere.mp4", face_clip])
    before = threading.active_count()
    with pytest.raises(merfast.MediaError, match=r"nothing to predict from \(audio: silent; video: no video track\)"):
        engine.predict([Clip.from_arrays(audio=np.zeros(900, np.float32), sample_rate=16_000), face_clip])
    assert threading.active_count() <= before


def test_one_picture_is_enough(engine: merfast.Engine, tmp_path: Path, pictures: np.ndarray) -> None:
    path = write_video(tmp_path / "one.mp4", pictures[:1], 25)
    (p,) = engine.predict([path])
    assert isinstance(p, Prediction)
    assert (p.modalities, p.face_coverage) == (("video",), 1.0)


@pytest.mark.parametrize("items", ["a.mp4", Path("a.mp4"), b"abc", 5, None])
def test_items_must_be_a_list(engine: merfast.Engine, items: object) -> None:
    with pytest.raises(merfast.ConfigError, match="expected a list"):
        engine.predict(items)  # type: ignore[arg-type]


def test_no_items_no_predictions(engine: merfast.Engine) -> None:
    assert engine.predict([]) == []


def test_timeline_equals_predicting_what_it_cuts(engine: merfast.Engine, voice: np.ndarray) -> None:
    sound = np.concatenate([voice, 0.2 * voice, voice[::-1]])
    clip = Clip.from_arrays(audio=sound, sample_rate=SAMPLE_RATE)
    windows = list(engine.timeline(clip, window=4, hop=1.5))
    assert [(w.start, w.end) for w in windows] == [(0, 4), (1.5, 5.5), (3, 7), (4.5, 8.5), (6, 9)]
    for w in windows:
        part = sound[round(w.start * SAMPLE_RATE) : round(w.end * SAMPLE_RATE)]
        (alone,) = engine.predict([Clip.from_arrays(audio=part, sample_rate=SAMPLE_RATE)])
        assert difference(w, alone) <= 1e-5


def test_timeline_keeps_a_row_for_empty_windows(engine: merfast.Engine, voice: np.ndarray) -> None:
    sound = np.concatenate([voice, np.zeros(4 * SAMPLE_RATE, dtype=np.float32), voice])
    clip = Clip.from_arrays(audio=sound, sample_rate=SAMPLE_RATE)
    windows = list(engine.timeline(clip, window=1, hop=1))
    assert [w.emotion is None for w in windows] == [False] * 3 + [True] * 4 + [False] * 3
    assert np.isnan(windows[4].probabilities).all()
    assert windows[4].to_dict()["probabilities"]["happy"] is None
    (whole,) = engine.predict([clip])
    assert isinstance(whole, Prediction)
    assert whole.emotion is not None


def test_timeline_stops_reading_when_closed(engine: merfast.Engine, face_clip: Path) -> None:
    before = threading.active_count()
    timeline = engine.timeline(face_clip, window=0.5, hop=0.1)
    next(timeline)
    timeline.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_timeline_checks_its_arguments_at_once(engine: merfast.Engine, face_clip: Path) -> None:
    for arguments in ({"window": 0}, {"window": 17}, {"hop": 0}, {"hop": -1}, {"window": float("nan")}):
        with pytest.raises(merfast.ConfigError, match=next(iter(arguments))):
            engine.timeline(face_clip, **arguments)
    with pytest.raises(merfast.MediaError, match="no such file"):
        next(iter(engine.timeline("nowhere.mp4")))


def test_many_threads_one_engine(engine: merfast.Engine, face_clip: Path, voice: np.ndarray) -> None:
    clip = Clip.from_arrays(audio=voice, sample_rate=SAMPLE_RATE)
    expected = engine.predict([face_clip, clip])
    with ThreadPoolExecutor(6) as pool:
        for results in pool.map(lambda _: engine.predict([face_clip, clip]), range(12)):
            assert max(difference(a, b) for a, b in zip(expected, results, strict=True)) <= 1e-5


@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_the_plan_decides_which_kernel_runs(
    kernels: str, voice: np.ndarray, monkeypatch: pytest.MonkeyPatch, engine: merfast.Engine
) -> None:
    clip = Clip.from_arrays(audio=voice, sample_rate=SAMPLE_RATE)
    chosen = merfast.Engine(kernels=kernels)
    assert chosen.plan.choice("afg").startswith(kernels)
    calls: list[int] = []
    original = afg_reference.afg

    def counted(*arguments: object) -> object:
        calls.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    assert chosen.plan.choice("joint decoding") == chosen.plan.choice("afg")
    decoded: list[int] = []
    original_decode = decode_reference.decode

    def counted_decode(*arguments: object) -> object:
        decoded.append(1)
        return original_decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("merfast.models.fusion.afg", counted)
    monkeypatch.setattr("merfast.models.model.decode", counted_decode)
    (p,) = chosen.predict([clip])
    assert bool(calls) == bool(decoded) == (kernels == "reference")
    assert difference(p, engine.predict([clip])[0]) <= 1e-5


def test_real_clips_in_one_call(data_dir: Path, yunet_model: Path) -> None:
    engine = merfast.Engine(detector_model=yunet_model)
    paths = sorted((data_dir / "clips").iterdir())
    together = engine.predict(paths)
    assert len(together) == 21
    by_name = {p.name: r for p, r in zip(paths, together, strict=True)}
    for name, result in by_name.items():
        assert isinstance(result, Prediction), name
        if name == "no_face.mp4":
            assert (result.modalities, result.missing) == (("audio",), {"video": "no face found"})
        elif "silent_track" in name:
            assert (result.modalities, result.missing) == (("video",), {"audio": "silent"})
        else:
            assert (result.modalities, result.missing) == (("audio", "video"), {})
    worst = max(difference(r, engine.predict([p])[0]) for p, r in zip(paths, together, strict=True))
    assert worst <= 1e-5
    (several,) = engine.predict([data_dir / "clips" / "several_people.mp4"], faces="all")
    assert isinstance(several, Prediction)
    assert len(several.others) >= 1


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
import merfast
engine = merfast.Engine(detector="none")
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    engine.predict([])
except merfast.UnavailableError as error:
    assert "spawn" in str(error)
    os._exit(7)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_told_so_instead_of_hanging() -> None:
    assert subprocess.run([sys.executable, "-c", FORK], timeout=120, check=False).returncode == 7


def test_an_engine_is_not_pickled(engine: merfast.Engine) -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(engine)


def test_results_and_errors_are_pickled(engine: merfast.Engine, voice: np.ndarray) -> None:
    results = engine.predict([Clip.from_arrays(audio=voice, sample_rate=SAMPLE_RATE), "nowhere.mp4"], on_error="return")
    good, bad = pickle.loads(pickle.dumps(results))
    assert difference(good, results[0]) == 0
    assert str(bad.error) == "nowhere.mp4: no such file"
