"""`explain=True`: the attention of predictions, on the clock of the media, whatever they share passes with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import push, read
from test_inference import clip, window
from test_reuse import windows
from test_windows import PRE, Recording, Scripted

import merfast
from merfast import cli
from merfast.attention import Attention
from merfast.bundle import read_config
from merfast.clip import Clip
from merfast.errors import ConfigError
from merfast.explain import attention_of
from merfast.inference import Inference
from merfast.media.windows import Windower, WindowSpec
from merfast.models import FusedModel
from merfast.ops import afg_cpu
from merfast.types import SAMPLE_RATE, Known, Prediction, Window


@pytest.fixture(scope="module")
def engine() -> Iterator[merfast.Engine]:
    with merfast.Engine(device="cpu", detector="haar", latency_ms=60_000) as made:
        yield made


def inference_of(engine: merfast.Engine) -> Inference:
    return engine._workers[0].inference


def close(a: Attention | None, b: Attention | None, most: float = 1e-5) -> None:
    assert a is not None
    assert b is not None
    assert list(a.streams) == list(b.streams)
    for name, mine in a.streams.items():
        other = b.streams[name]
        assert mine.modality == other.modality
        assert mine.share == pytest.approx(other.share, abs=most)
        np.testing.assert_allclose(mine.spans, other.spans, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mine.weights, other.weights, rtol=0, atol=most)


def check(p: Prediction) -> Attention:
    """Of anything: sums, spans within the prediction's time, and only what was used."""
    made = p.attention
    assert made is not None
    assert tuple(made.modalities) == p.modalities
    assert sum(made.modalities.values()) == pytest.approx(1, abs=1e-5)
    for stream in made.streams.values():
        assert stream.weights.sum() == pytest.approx(1, abs=1e-5)
        assert (stream.weights >= 0).all()
        assert (stream.spans >= p.start).all()
        assert (stream.spans <= p.end).all()
        assert (stream.spans[:, 0] < stream.spans[:, 1]).all()
    return made


@pytest.mark.parametrize("kernels", ["reference", *(f"cpp-{isa}" for isa in afg_cpu.isas())])
def test_a_clip_is_explained_at_no_cost_to_its_prediction(kernels: str, face_clip: Path) -> None:
    engine = merfast.Engine(device="cpu", detector="haar", kernels=kernels)
    (plain,), (p,) = engine.predict([face_clip]), engine.predict([face_clip], explain=True)
    assert plain.attention is None
    np.testing.assert_array_equal(p.probabilities, plain.probabilities)
    assert p.valence == plain.valence
    streams = check(p).streams
    assert {n: s.modality for n, s in streams.items()} == {"voice": "audio", "prosody": "audio", "face": "video"}
    assert streams["prosody"].spans.tolist() == [[p.start, p.end]]
    face = streams["face"].spans
    np.testing.assert_allclose(face[:, 0], np.arange(len(face)) / 5, atol=1e-6)
    np.testing.assert_allclose(face[:-1, 1] - face[:-1, 0], 0.2, atol=1e-6)
    voice = streams["voice"].spans
    assert len(voice) > 50
    np.testing.assert_allclose(voice[1:, 0], voice[:-1, 1])
    assert voice[0, 0] == 0
    assert set(json.loads(json.dumps(p.to_dict()))["attention"]) == set(streams)
    assert "attention" not in plain.to_dict()


def test_attention_follows_the_pictures(engine: merfast.Engine) -> None:
    """Where faces change places in time, so does what is looked at in them; all else stays."""
    c = clip(4.0)
    turned = Clip.from_arrays(c.frames[::-1], fps=5, audio=c.audio, sample_rate=SAMPLE_RATE, faces="given")
    a, b = (check(p).streams["face"] for p in engine.predict([c, turned], explain=True))
    np.testing.assert_allclose(a.weights, b.weights[::-1], rtol=0, atol=1e-5)
    assert np.ptp(a.weights) > 1e-3  # not all alike


def test_one_modality_has_it_all(engine: merfast.Engine) -> None:
    c = clip(2.0)
    sound = Clip.from_arrays(audio=c.audio, sample_rate=SAMPLE_RATE)
    pictures = Clip.from_arrays(c.frames, fps=5, faces="given")
    heard, seen = engine.predict([sound, pictures], explain=True)
    assert check(heard).modalities == pytest.approx({"audio": 1.0})
    assert check(seen).modalities == pytest.approx({"video": 1.0})


def test_long_media_are_averaged_by_duration(engine: merfast.Engine) -> None:
    (p,) = engine.predict([clip(20.0)], explain=True)
    whole, parts = check(p), [check(w) for w in p.windows]
    assert [(w.start, w.end) for w in p.windows] == [(0, 16), (16, 20)]
    expected = (16 * parts[0].modalities["video"] + 4 * parts[1].modalities["video"]) / 20
    assert whole.modalities["video"] == pytest.approx(expected, abs=1e-6)
    first = whole.over_time("video", [0, 16])[0]
    assert first == pytest.approx(0.8 * parts[0].modalities["video"], abs=1e-5)
    assert len(whole.streams["face"].weights) == 100


def test_other_faces_have_their_own(engine: merfast.Engine, face_clip: Path) -> None:
    from merfast.media.decode import open_media

    media = open_media(face_clip, name="face", decoder="pyav", frame_rate=5)
    frames = np.stack([e.rgb() for e in media.events() if hasattr(e, "rgb")])
    media.close()
    two = np.concatenate([frames, frames[:, :, ::-1]], axis=2)
    (p,) = engine.predict([Clip.from_arrays(two, fps=5)], faces="all", explain=True)
    (other,) = p.others
    assert len(check(p).streams["face"].weights) == round(p.face_coverage * len(frames))
    assert len(check(other).streams["face"].weights) == round(other.face_coverage * len(frames))


@pytest.mark.parametrize("together", [1, 3, 8])
def test_known_crops_are_explained_too(engine: merfast.Engine, together: int) -> None:
    """Windows that take crops over from earlier ones, which did not ask, or did."""
    known: Known = {}
    inference = inference_of(engine)
    shared = [
        replace(w, times=tuple(n / 5 for n in w.numbers), explain=k % 3 > 0)
        for k, w in enumerate(windows(known, tracks=(3, 7), count=8))
    ]
    step = 2 * together
    got = [a for i in range(0, len(shared), step) for a in inference.start(shared[i : i + step]).attention()]
    assert [a is not None for a in got] == [w.explain for w in shared]
    for attention, w in zip(got, shared, strict=True):
        if w.explain:
            close(attention, inference.start([replace(w, known=None)]).attention()[0])


def test_passes_of_many_windows(engine: merfast.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only passes with a window that asks are explained."""
    inference = inference_of(engine)
    monkeypatch.setattr(inference, "pass_seconds", 3.0)
    calls: list[int] = []
    original = FusedModel.explain

    def watched(self: FusedModel, features: Any) -> Any:
        calls.append(len(next(iter(features.values()))))
        return original(self, features)

    monkeypatch.setattr(FusedModel, "explain", watched)
    made = [replace(window(1.0, i), times=(0.0, 0.4, 0.8), explain=i in (4, 6)) for i in range(9)]
    pending = inference.start(made)
    results, attention = pending.result(), pending.attention()
    assert calls == [3, 3]
    assert [i for i, a in enumerate(attention) if a is not None] == [4, 6]
    plain = inference.start([replace(w, explain=False) for w in made]).result()
    for (a, v), (b, u) in zip(results, plain, strict=True):
        np.testing.assert_array_equal(a, b)
        assert v == u
    assert inference.start([]).attention() == []


def test_a_timeline_is_explained(engine: merfast.Engine, face_clip: Path) -> None:
    plain = list(engine.timeline(face_clip, window=1.0, hop=0.5))
    made = list(engine.timeline(face_clip, window=1.0, hop=0.5, explain=True, smoothing=1.0))
    assert len(made) == len(plain) > 3
    assert all(p.attention is None for p in plain)
    for p in made:
        check(p)
    assert made[2].attention is not None
    assert made[2].attention.streams["face"].spans[0, 0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.7e9])
def test_a_session_is_explained_on_the_callers_clock(engine: merfast.Engine, face_clip: Path, shift: float) -> None:
    expected = list(engine.timeline(face_clip, window=1.0, hop=1.0, explain=True))
    with engine.session(window=1.0, hop=1.0, explain=True) as session:
        push(session, read(face_clip), shift)
    got = list(session)
    assert len(got) == len(expected)
    for p, e in zip(got, expected, strict=True):
        assert isinstance(p, Prediction)
        check(p)
        if shift == 0:
            close(p.attention, e.attention)


def test_submitted_items_share_passes_with_those_that_do_not_ask(engine: merfast.Engine) -> None:
    items = [clip(1.0 + i / 4, i) for i in range(6)]
    futures = [engine.submit(item, explain=i % 2 == 0) for i, item in enumerate(items)]
    alone = engine.predict(items, explain=True)
    for i, (future, expected) in enumerate(zip(futures, alone, strict=True)):
        got = future.result(60)
        assert np.abs(got.probabilities - expected.probabilities).max() < 1e-5
        if i % 2:
            assert got.attention is None
        else:
            close(got.attention, expected.attention)
    (awaited,) = asyncio.run(engine.predict_async(items[:1], explain=True))
    close(awaited.attention, alone[0].attention)


def test_several_devices(engine: merfast.Engine, face_clip: Path) -> None:
    pair = merfast.Engine(device=["cpu", "cpu"], detector="haar", threads=2)
    items = [clip(1.0, 1), face_clip, clip(1.5, 2)]
    for a, b in zip(pair.predict(items, explain=True), engine.predict(items, explain=True), strict=True):
        close(a.attention, b.attention)
    for a, b in zip(*(list(e.timeline(face_clip, window=1.0, explain=True)) for e in (pair, engine)), strict=True):
        close(a.attention, b.attention)


@pytest.mark.cuda
def test_a_gpu_gives_what_the_cpu_does(engine: merfast.Engine) -> None:
    items = [clip(1.0), clip(20.0, 1), clip(4.0, 2)]
    gpu = merfast.Engine(device="cuda", detector="haar")
    plain, made = gpu.predict(items), gpu.predict(items, explain=True)
    for p, before, expected in zip(made, plain, engine.predict(items, explain=True), strict=True):
        assert np.abs(p.probabilities - before.probabilities).max() < 1e-4
        check(p)
        close(p.attention, expected.attention, 1e-3)


def test_a_window_of_nothing_has_none(engine: merfast.Engine) -> None:
    sound = np.zeros(3 * SAMPLE_RATE, dtype=np.float32)
    sound[:SAMPLE_RATE] = clip(1.0).audio
    item = Clip.from_arrays(audio=sound, sample_rate=SAMPLE_RATE)
    first, second, third = engine.timeline(item, window=1.0, hop=1.0, explain=True)
    check(first)
    assert (second.emotion, second.attention, third.attention) == (None, None, None)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_other_values_are_refused(engine: merfast.Engine, value: Any) -> None:
    calls = (
        lambda: engine.predict([clip(1.0)], explain=value),
        lambda: engine.timeline(clip(1.0), explain=value),
        lambda: engine.session(explain=value),
        lambda: engine.submit(clip(1.0), explain=value),
        lambda: asyncio.run(engine.predict_async([], explain=value)),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=rf"explain: got {value!r}, expected True or False"):
            call()


def test_windows_say_when_their_crops_and_sound_are_from() -> None:
    class Late(Recording):
        """Its sound starts at 0.6 s."""

        def events(self) -> Any:
            for event in super().events():
                if hasattr(event, "rgb") or event.start >= 0.6 * SAMPLE_RATE:
                    yield event

    media = Late(3, 3)
    windower = Windower(media.info, Scripted((0, 1.0, 0.4, 9)), WindowSpec(2, 1, explain=True), PRE, every_face=False)
    (first,), (second,) = windower.run(media.events())
    np.testing.assert_allclose(first.times, np.arange(2, 10) / 5)
    np.testing.assert_allclose(second.times, np.arange(5, 15) / 5)
    assert (first.heard, second.heard) == (pytest.approx(0.6), 0)
    assert first.explain
    assert second.explain


def test_spans() -> None:
    """Of sound from 0.5 s after the window's start, and of crops, the last of which its end cuts off."""
    config = read_config(merfast.bundle.directory(None))
    sound, crops = np.ones(SAMPLE_RATE, dtype=np.float32), np.zeros((2, 48, 48, 3), dtype=np.uint8)
    made = Window(10.0, 12.0, sound, crops, 3, 0, {}, times=(9.9999999, 11.9), heard=0.5, explain=True)
    weights = {n: np.full(t, 0.1, dtype=np.float32) for n, t in (("voice", 4), ("prosody", 1), ("face", 2))}
    streams = attention_of(made, weights, config).streams
    np.testing.assert_allclose(streams["voice"].spans, [[10.5 + k / 4, 10.75 + k / 4] for k in range(4)])
    assert streams["prosody"].spans.tolist() == [[10, 12]]
    np.testing.assert_allclose(streams["face"].spans, [[10, 10.2], [11.9, 12]], atol=1e-6)
    assert {n: s.share for n, s in streams.items()} == pytest.approx({"voice": 0.4, "prosody": 0.1, "face": 0.2})
    assert set(attention_of(made, weights | {"voice": weights["voice"][:0]}, config).streams) == {"prosody", "face"}


def test_command_line(face_clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["predict", str(face_clip), "--json", "--detector", "haar"]
    for more, count in (([], 1), (["--window", "1"], 3)):
        assert cli.main([*call, "--explain", *more]) == 0
        made = json.loads(capsys.readouterr().out)
        assert len(made) == count
        for each in made:
            assert sum(s["share"] for s in each["attention"].values()) == pytest.approx(1, abs=1e-4)
    with pytest.raises(SystemExit):
        cli.main(["predict", str(face_clip), "--explain"])
    assert "--explain needs --json" in capsys.readouterr().err
