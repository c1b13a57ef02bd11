"""What the live benchmarks conclude: ledgers, chaos, phases of an overload, an hour that is joined from clips."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks import live_capacity, live_overload, live_phases, live_sides, live_soak, timeline_hour, videos
from benchmarks.live_chaos import Chaos
from benchmarks.live_ledger import Ledger
from benchmarks.live_phases import Phases, Record, Run
from merfast.engine import Engine
from merfast.errors import MediaError, OverloadedError
from merfast.live_bench import Pace, measure, quantiles
from merfast.live_players import Due, play
from merfast.live_search import Search
from merfast.types import EMOTIONS, Failure, Prediction

LATE = 60_000.0
"""Milliseconds that results may take: tests assert no times."""


def predicted(start: float, window: float = 4.0, name: str = "x") -> Prediction:
    probabilities = np.full(len(EMOTIONS), 1 / len(EMOTIONS), np.float32)
    return Prediction(name, start, start + window, "neutral", probabilities, 0.0, ("audio",), 0.0)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(device="cpu", detector="haar", latency_ms=LATE) as made:
        yield made


# Ledgers.


def ledger_of(seconds: float, origin: float = 10.0) -> Ledger:
    """A ledger of a stream that was pushed in blocks of half a second."""
    ledger = Ledger("x", 4.0, 1.0)
    push(ledger, origin, origin + seconds)
    return ledger


def push(ledger: Ledger, start: float, end: float) -> None:
    for at in np.arange(start, end - 1e-9, 0.5):
        with ledger.pushing(float(at), float(min(at + 0.5, end))):
            pass


def test_a_ledger_is_content_with_all_windows_in_order() -> None:
    ledger = ledger_of(6.5)
    assert [ledger.result(predicted(10.0 + k)) for k in range(3)] == [0, 1, 2]
    assert ledger.overdue() == 0
    ledger.result(predicted(13.0, 3.5))  # the last one ends with the stream
    ledger.finish(whole=True)
    assert ledger.violations == []
    assert ledger.tally["predicted"] == 4


def test_a_ledger_takes_failures_for_results() -> None:
    ledger = ledger_of(6.0)
    ledger.result(predicted(10.0))
    ledger.result(Failure("x", OverloadedError("later"), 11.0, 15.0))
    ledger.result(Failure("x", MediaError("x", "no"), 12.0, 16.0))
    ledger.finish(whole=True)
    assert ledger.violations == []
    assert (ledger.tally["refused"], ledger.tally["failed"]) == (1, 1)


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([10.0, 12.0], "window 1 was lost: window 2 came after window 0"),
        ([10.0, 10.0, 11.0, 12.0], "window 0 after window 0: doubled"),
        ([10.0, 12.0, 11.0], "window 1 after window 2: doubled, or out of order"),
        ([10.0, 11.0], "window 2 was lost: 6.00 s of 6.00 s, at the end"),
        ([10.0, 10.5, 11.0, 12.0], "no window"),
        ([10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0], "window 7 has not begun"),
        ([9.0, 10.0, 11.0, 12.0], "no window, or out of order: it starts at 9.0000"),
    ],
)
def test_a_ledger_finds_what_is_wrong(starts: list[float], said: str) -> None:
    ledger = ledger_of(6.0)
    for start in starts:
        ledger.result(predicted(start))
    ledger.finish(whole=True)
    assert any(said in text for text in ledger.violations), ledger.violations


def test_a_ledger_knows_its_stream() -> None:
    ledger = ledger_of(4.0)
    ledger.result(predicted(10.0, name="y"))
    ledger.result(Failure("x", OverloadedError("later")))
    assert [text.split(": ", 1)[1][:12] for text in ledger.violations] == ["a result of ", "a result wit"]


def test_a_pause_as_long_as_a_window_has_none() -> None:
    ledger = ledger_of(6.0)  # to 16
    push(ledger, 24.0, 29.0)
    # 17 to 20 begin and end in the pause; 16 begins with it and ends in it, 21 ends after it.
    for start in (10, 11, 12, 13, 14, 15, 21, 22, 23, 24, 25):
        ledger.result(predicted(float(start)))
    ledger.finish(whole=True)
    assert ledger.violations == []
    assert ledger.tally["pauses"] == 1
    again = ledger_of(6.0)
    push(again, 24.0, 29.0)
    for start in (10, 11, 12, 13, 14, 15, 16):
        again.result(predicted(float(start)))
    assert "window 6 lies in a pause" in again.violations[0]


def test_a_push_that_was_refused_does_not_count() -> None:
    ledger = ledger_of(4.0)
    with pytest.raises(MediaError), ledger.pushing(100.0, 101.0):
        raise MediaError("x", "no")
    assert ledger.overdue() == 0
    ledger.result(predicted(10.0))
    ledger.finish(whole=True)
    assert ledger.violations == []


def test_after_a_reset_a_new_stretch_counts() -> None:
    ledger = ledger_of(6.0)
    ledger.result(predicted(10.0))
    assert not ledger.fits(3.0)
    assert ledger.fits(3.25)
    ledger.reset()
    push(ledger, 3.25, 8.25)
    assert ledger.overdue() == 1
    assert ledger.result(predicted(11.0)) == 1  # what waited to be read
    assert [ledger.result(predicted(3.25 + k)) for k in range(2)] == [0, 1]
    ledger.finish(whole=True)
    assert ledger.violations == []
    ledger.result(predicted(12.0))
    assert "out of order" in ledger.violations[0]


# Chaos, with a real session that is held back instead of refusing windows.


def test_a_session_keeps_its_account_whatever_is_pushed(engine: Engine, face_clip: Path) -> None:
    ledger = Ledger("chaos", 1.0, 0.5)
    session = engine.session(window=1.0, hop=0.5, name="chaos", overload="wait", on_result=ledger.result)
    chaos = Chaos(session, ledger, seed=5, offset=1e6)
    for event in itertools.takewhile(lambda event: event.due < 150.0, play(face_clip, chaos.damage)):
        chaos.push(event)
    session.close()
    assert session.get(timeout=120) is None
    ledger.finish(whole=True)
    assert chaos.violations == []
    assert ledger.violations == []
    assert ledger.tally["predicted"] > 100
    assert ledger.tally["refused"] == ledger.tally["failed"] == 0
    assert set(chaos.done) >= {"reset", "refused push"}  # which others come depends on chance and on time
    assert len(set(chaos.done)) > 8


class Sieve:
    """Takes what a session would take; or all, or nothing."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def push_audio(self, samples: object, rate: int, t: float | None = None) -> None:
        self._check()

    def push_frame(self, frame: object, t: float) -> None:
        self._check()

    def reset(self) -> None:
        pass


def test_chaos_sees_errors_that_should_not_be_and_those_that_are_missing(face_clip: Path) -> None:
    def refuse() -> None:
        raise MediaError("x", "never")

    events = list(play(face_clip, rounds=4))
    strict = Chaos(Sieve(refuse), Ledger("x", 1.0, 0.5), seed=0, actions=())
    lax = Chaos(Sieve(lambda: None), Ledger("x", 1.0, 0.5), seed=0, actions=("nan",))
    for event in events:
        strict.push(event)
        lax.push(event)
    assert "a good push was refused" in strict.violations[0]
    assert "NaN was accepted" in lax.violations[0]


def test_a_short_soak_finds_nothing_wrong(engine: Engine, face_clip: Path) -> None:
    tally, looks = live_soak.soak(
        engine, [str(face_clip)], 6, seconds=6.0, seed=1, pace=(1.0, 0.5), every=1.0, lives=(1.0, 3.0)
    )
    assert tally.violations == []
    assert tally.counts["predicted"] > 0
    assert tally.counts["control windows"] >= 4 * 9
    assert tally.control["compared"] > 0
    assert len(looks) >= 3
    assert "0 violations" in live_soak.report_text(tally, live_soak.trends(looks, 0.0), 0.1, 6)[-1]
    assert not [t for t in threading.enumerate() if t.name in ("soak-reader", "merfast-player")]


def test_a_soak_tells_what_rises() -> None:
    def looks(resident: float, threads: float) -> list[dict[str, float]]:
        times = np.arange(0.0, 1800.0, 10.0)
        return [
            {"seconds": t, "resident": 500 + resident * t / 60, "threads": 50 + threads * t / 60, "files": 9.0 + t % 3}
            for t in times
        ]

    flat = live_soak.trends(looks(0.1, 0.0), 180.0)
    assert live_soak.rising(flat) == []
    assert flat["resident"]["a_minute"] == pytest.approx(0.1)
    assert live_soak.rising(live_soak.trends(looks(2.0, 0.0), 180.0)) == ["resident"]
    assert live_soak.rising(live_soak.trends(looks(0.0, 1.0), 180.0)) == ["threads"]
    with pytest.raises(ValueError, match="expected 3 at least"):
        live_soak.trends(looks(0.0, 0.0), 1795.0)


# Capacity.


@pytest.mark.parametrize("side", [live_sides.arrays, live_sides.media])
def test_windows_through_predict_are_all_counted(side: Callable[..., object], engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the portrait comes with matplotlib")
    (file,) = videos.write_videos(tmp_path, [(320, 240, 4.0)], keyframes=25)
    with ThreadPoolExecutor(2) as pool:
        pace = Pace(seconds=2.0, window=1.0, hop=1.0, bound=LATE / 1e3)
        outcome = measure(side(engine, pool), [str(file)], 2, pace)
    assert outcome.windows["expected"] == outcome.windows["done"] >= 3, outcome.why


def test_packets_make_exactly_the_window(engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the portrait comes with matplotlib")
    (file,) = videos.write_videos(tmp_path, [(320, 240, 4.0)], keyframes=25)
    items = []

    class Kept(live_sides.MediaWindows):
        def _predict(self, start: float, end: float, media: object) -> None:
            items.append((start, self._item(media)))

    with ThreadPoolExecutor(1) as pool:
        kept = Kept(engine, pool, str(file), "x", 0.0, Pace(1.0, window=2.0, hop=1.0))
        for event in itertools.takewhile(lambda event: event.due < 6.5, live_sides.play_packets(str(file))):
            kept._push(event)
    kept.close()
    assert [start for start, _ in items] == [0.0, 1.0, 2.0, 3.0, 4.0]
    place = tmp_path / "cut.mkv"
    for _, data in items:
        place.write_bytes(data)
        pictures = [e for e in play(place, rounds=1) if not e.rate]
        assert len(pictures) == 50
        (prediction,) = engine.predict([data])
        assert prediction.end == pytest.approx(2.0, abs=0.1)
        assert set(prediction.modalities) == {"audio", "video"}


def test_sides_take_turns_until_all_are_found() -> None:
    from test_live_bench import outcome_of

    limits, order = {"session": 9, "arrays": 3}, []

    def side(name: str) -> Callable[[int, float, int], object]:
        def run(streams: int, seconds: float, seed: int) -> object:
            order.append((name, streams, seconds))
            return outcome_of(streams, holds=streams <= limits[name])

        return run

    searches = {name: Search(2, tries=1) for name in limits}
    runs = live_capacity.find({name: side(name) for name in limits}, searches, 5.0)
    best = {name: search.best for name, search in searches.items()}
    assert best == limits
    assert [name for name, _, _ in order[:4]] == ["session", "arrays", "session", "arrays"]
    assert ("arrays", 3, 10.0) in order
    assert len(runs) == len(order)
    assert live_capacity.ratios(best) == {"arrays": 3.0}
    assert math.isnan(live_capacity.ratios({"session": 4, "media": 0})["media"])
    assert live_capacity.report_text(best, 0.5)[-1].split() == ["arrays", "3", "sessions", "hold", "3.00", "x"]


# Overload.


def record(due: float, code: str = "done", latency: float = 0.1) -> Record:
    return Record(due, code, due + latency, due)


def test_an_overload_is_told_by_phases() -> None:
    phases = Phases(0.0, 10.0, 20.0, 30.0)
    records = [record(5.0), record(12.0, latency=0.4), record(13.0, "refused", 0.6), record(25.0), record(31.0)]
    found = live_phases.summary(records, phases)
    assert [row["offered"] for row in found.values()] == [1, 2, 1]
    assert found["overload"]["refused"] == 1
    assert found["overload"]["latency"]["max"] == pytest.approx(0.4)
    assert found["overload"]["refusal"]["max"] == pytest.approx(0.6)
    run = Run(phases, queued=[(5.0, 3), (15.0, 40), (16.0, 20), (40.0, 99)])
    assert run.longest() == {"before": 3, "overload": 40, "after": 0}


def test_recovery_is_when_all_slices_are_in_time() -> None:
    phases = Phases(0.0, 10.0, 20.0, 30.0)
    good = [record(20.0 + 0.25 * i) for i in range(40)]
    assert live_phases.recovery(good, phases, 0.5) == 0.0
    assert live_phases.recovery([*good, record(22.1, "refused")], phases, 0.5) == 3.0
    assert live_phases.recovery([*good, record(24.6, latency=0.7)], phases, 0.5) == 5.0
    assert live_phases.recovery([*good, record(29.5, "refused")], phases, 0.5) == math.inf


def test_an_overload_is_judged() -> None:
    def found(overload: dict[str, object]) -> dict[str, dict[str, object]]:
        calm = {"done": 9, "refused": 0, "failed": 0, "latency": quantiles([0.1])}
        return {"before": calm, "overload": calm | overload, "after": calm}

    fine = found({"refused": 5})
    assert live_phases.checks(fine, 2.0, 0.5, 5.0) == []
    assert "nothing was refused" in live_phases.checks(found({}), 2.0, 0.5, 5.0)[0]
    assert "p95 is 2.00 s" in live_phases.checks(found({"refused": 5, "latency": quantiles([2.0])}), 2.0, 0.5, 5.0)[0]
    assert "1 failed" in live_phases.checks(found({"refused": 5, "failed": 1}), 2.0, 0.5, 5.0)[0]
    assert "after inf s" in live_phases.checks(fine, math.inf, 0.5, 5.0)[0]


def test_all_windows_of_an_overload_are_accounted_for(engine: Engine, face_clip: Path) -> None:
    media = [live_overload.decoded(str(face_clip), 2.0)]
    run = live_overload.overload_sessions(engine, media, 2, (1.0, 2.0, 1.0), window=1.0, hop=0.5)
    assert run.violations == []
    found = live_phases.summary(run.records, run.phases)
    assert found["overload"]["offered"] > found["before"]["offered"] > 0
    assert all(row["done"] == row["offered"] for row in found.values())


def test_all_requests_of_an_overload_are_accounted_for(engine: Engine, face_clip: Path) -> None:
    clips = live_overload.clips_of([live_overload.decoded(str(face_clip), 2.0)], 1.0, 5.0)
    assert [clip.frames.shape[0] for clip in clips if clip.frames is not None] == [5, 5]
    rate = live_overload.throughput(engine, clips, 1.0, ahead=4)
    assert rate > 0
    run = live_overload.overload_submit(engine, clips, min(rate, 20.0), (1.0, 1.0, 1.0), deadline=None)
    assert run.violations == []
    assert len(run.records) > 0
    assert {r.code for r in run.records} <= {"done", "refused"}


def test_decoded_media_play_on_without_overlap(face_clip: Path) -> None:
    events, length = live_overload.decoded(str(face_clip), 2.0)
    assert length == 2.0
    assert sum(not e.rate for e in events) == 50
    assert max(e.due for e in events) <= 2.0
    assert isinstance(events[0], Due)


# An hour.


def test_clips_are_joined_without_decoding(face_clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "long.mp4"
    seconds = timeline_hour.join([str(face_clip), str(face_clip)], out, 7.0)
    assert seconds == pytest.approx(3 * 2.58, abs=0.1)
    pictures = [e for e in play(out, rounds=1) if not e.rate]
    assert len(pictures) == 3 * 62
    steps = np.diff([e.start for e in pictures])
    assert steps.min() > 0.03
    assert steps.max() < 0.2


def test_a_timeline_is_what_predict_says_of_its_windows(engine: Engine, face_clip: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "long.mp4")
    timeline_hour.join([str(face_clip)], Path(out), 7.0)
    found = timeline_hour.run(engine, out, 4.0, 1.0, every=0.2)
    predictions = found["predictions"]
    assert [p.start for p in predictions[:4]] == [0.0, 1.0, 2.0, 3.0]
    assert found["looks"][-1]["media"] == pytest.approx(predictions[-1].end)
    checked = timeline_hour.Checked(engine, out, 4.0, 1.0, every=2)
    checked.compare(predictions)
    assert checked.starts[:2] == [0.0, 2.0]
    assert max(checked.probabilities) < 1e-4
    assert max(checked.valences) < 1e-4
    with pytest.raises(ValueError, match="shorter"):
        timeline_hour.Checked(engine, out, 4.0, 1.0, every=2).compare(predictions[:-1])
    raw = timeline_hour.raw_differences(engine, out, {p.start: p for p in predictions[:1]}, 4.0)
    assert len(raw) == 1
    assert raw[0] < 1


def test_an_hour_is_judged() -> None:
    looks = [
        {"media": t, "seconds": t / 20, "resident": 500.0 if t < 120 else 600 + t / 100} for t in range(0, 3600, 60)
    ]
    assert timeline_hour.grown(looks, 120.0) == pytest.approx((600 + 35.4) / 601.2 - 1)
    assert math.isnan(timeline_hour.grown(looks, 4000.0))
    measured = {"real_time": 14.0, "growth": 0.01, "probabilities": 2e-5, "valence": float("nan")}
    kept = timeline_hour.verdict(measured)
    assert kept == {"real_time": False, "growth": True, "probabilities": True, "valence": False}
    found = {"looks": looks, "seconds": 200.0, "cores": 1.5}
    text = "\n".join(timeline_hour.report_text(found, measured, kept, 3600.0, 3597, 97, [0.01]))
    assert "60.0 minutes, 3597 windows in 200.0 s: 14.0 x real time" in text
    assert text.count("NOT KEPT") == 2
