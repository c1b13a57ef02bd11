"""`merfast bench live`: players, the search, what is counted, and the command."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_files import write_video

from merfast import live_bench
from merfast.cli import main
from merfast.engine import Engine
from merfast.errors import ConfigError, MediaError, OverloadedError
from merfast.live_bench import Counts, Outcome, Pace, WindowLog, count, measure, quantiles, reasons, sessions
from merfast.live_players import Due, InOrder, Player, play, pushing, replay
from merfast.live_search import Search
from merfast.types import Failure

SLOW = 60_000.0
"""Milliseconds: no machine is so slow, and tests assert no times."""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(device="cpu", detector="haar", latency_ms=SLOW) as made:
        yield made


# Players.


def test_a_file_plays_on_without_a_gap(face_clip: Path) -> None:
    with av.open(str(face_clip)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    events = list(play(face_clip, rounds=3))
    assert [e.due for e in events] == sorted(e.due for e in events)
    pictures = [e for e in events if not e.rate]
    assert len(pictures) == 3 * frames
    assert np.diff([e.start for e in pictures]) == pytest.approx(1 / 25, abs=1e-3)
    sound = [e for e in events if e.rate]
    assert all(e.due == pytest.approx(e.start + len(e.media) / e.rate) for e in sound)
    gaps = [b.start - a.due for a, b in itertools.pairwise(sound)]
    assert np.abs(gaps).max() < 1e-3
    assert sum(len(e.media) for e in sound) / sound[0].rate == pytest.approx(3 * frames / 25, abs=0.01)


def test_sound_alone_and_pictures_alone_play(tmp_path: Path) -> None:
    pictures = [np.full((48, 64, 3), i, np.uint8) for i in range(10)]
    silent = write_video(tmp_path / "silent.mp4", pictures, fps=10)
    assert [round(e.start, 3) for e in play(silent, rounds=2)] == [round(i / 10, 3) for i in range(20)]
    with av.open(str(tmp_path / "voice.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="stereo")
        block = av.AudioFrame.from_ndarray(np.full((1, 3200), 8192, np.int16), format="s16", layout="stereo")
        block.sample_rate = 8000
        out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    sound = list(play(tmp_path / "voice.wav", rounds=2))
    assert sum(len(e.media) for e in sound) == 3200
    assert all(e.rate == 8000 and e.media.dtype == np.float32 for e in sound)
    assert np.ptp(np.concatenate([e.media for e in sound])) < 1e-3 < sound[0].media[0]
    assert sound[-1].due == pytest.approx(0.4)


def test_what_cannot_be_played_says_so(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"missing\.mp4: cannot be played"):
        next(play(tmp_path / "missing.mp4"))


def test_damaged_packets_are_left_out(face_clip: Path) -> None:
    def broken(packet: av.Packet) -> av.Packet:
        if packet.stream.type != "video" or packet.is_keyframe:
            return packet
        out = av.Packet(b"\xff" * packet.size)
        out.stream, out.pts, out.dts, out.time_base = packet.stream, packet.pts, packet.dts, packet.time_base
        return out

    whole, damaged = list(play(face_clip, rounds=2)), list(play(face_clip, broken, rounds=2))
    assert [e.due for e in damaged if e.rate and e.due < 2.4] == [e.due for e in whole if e.rate and e.due < 2.4]
    assert 0 < sum(not e.rate for e in damaged) < sum(not e.rate for e in whole)


def test_events_come_in_order() -> None:
    order = InOrder(("audio", "video"))
    given = [("audio", 0.1), ("video", 0.0), ("audio", 0.2), ("video", 0.08), ("video", 0.04), ("video", 0.3)]
    out = []
    for kind, due in given:
        order.add(kind, Due(due, due, kind))
        out += [e.due for e in order.ready()]
    assert out[:2] == [0.0, 0.08]  # 0.04 came after what was due later: it is too late for its place
    assert sorted([*out, *(e.due for e in order.rest())]) == sorted(due for _, due in given)


def test_decoded_events_play_on() -> None:
    events = [Due(0.0, 0.0, "a"), Due(0.5, 0.25, "b", 8)]
    shown = replay(events, 1.0)
    assert [(e.due, e.start, e.media, e.rate) for e in (next(shown) for _ in range(4))] == [
        (0.0, 0.0, "a", 0),
        (0.5, 0.25, "b", 8),
        (1.0, 1.0, "a", 0),
        (1.5, 1.25, "b", 8),
    ]


class Sink:
    """Keeps what is pushed, and tells when so much is there."""

    def __init__(self, enough: int = 0) -> None:
        self.pushed: list[tuple[str, float | None]] = []
        self.full = threading.Event()
        self._enough = enough

    def push_audio(self, samples: object, rate: int, t: float | None = None) -> None:
        self._add("sound", t)

    def push_frame(self, frame: object, t: float) -> None:
        self._add("picture", t)

    def _add(self, kind: str, t: float | None) -> None:
        self.pushed.append((kind, t))
        if len(self.pushed) == self._enough:
            self.full.set()


def test_a_player_never_pushes_early_and_counts_how_late_it_is(face_clip: Path) -> None:
    sink = Sink(enough=30)
    moments: list[float] = []
    push = pushing(sink)

    def timed(event: Due) -> None:
        moments.append(Player.clock() - event.due)
        push(event)

    began = Player.clock() + 0.2
    player = Player(play(face_clip), timed, began)
    assert player.origin is None
    player.start()
    assert sink.full.wait(60)
    player.stop()
    player.join()
    late = player.lateness()
    assert len(late) == len(sink.pushed)
    assert min(late) >= 0
    assert min(moments) >= began
    assert player.origin == pytest.approx(0, abs=0.05)
    assert {kind for kind, _ in sink.pushed} == {"sound", "picture"}
    assert player.lateness() == []
    assert player.error is None


def test_an_error_ends_a_player_and_is_kept() -> None:
    def refuse(event: Due) -> None:
        raise MediaError("x", "no")

    player = Player(replay([Due(0.0, 0.0, None)], 1.0), refuse, Player.clock())
    player.start()
    player.join()
    assert isinstance(player.error, MediaError)


# The search.


def searched(capacity: int, first: int = 4, **options: int) -> tuple[list[int], Search]:
    search, asked = Search(first, **options), []
    while (number := search.ask()) is not None:
        asked.append(number)
        search.tell(number <= capacity)
    return asked, search


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 7, 8, 23, 100])
@pytest.mark.parametrize("first", [1, 4, 40])
def test_the_search_finds_the_largest_number(capacity: int, first: int) -> None:
    asked, search = searched(capacity, first, tries=1)
    assert search.best == capacity
    assert asked[-1] == capacity
    assert asked.count(capacity) == 2  # found, and confirmed
    assert search.confirming
    with pytest.raises(ValueError, match="over"):
        search.tell(True)


def test_the_search_finds_nothing_where_nothing_holds() -> None:
    asked, search = searched(0, 4, tries=1)
    assert (search.best, asked) == (0, [4, 2, 1])


def test_a_number_is_tried_again_before_it_counts_as_failed() -> None:
    search, failed = Search(2, tries=2), set[int]()
    asked = []
    while (number := search.ask()) is not None:
        asked.append(number)
        once = number in failed
        failed.add(number)
        search.tell(number <= 5 and (once or number != 4))  # 4 fails by chance the first time
    assert search.best == 5
    assert asked == [2, 4, 4, 8, 8, 6, 6, 5, 5]


def test_what_is_not_confirmed_is_lowered() -> None:
    search = Search(64, tries=1, most=64)
    search.tell(True)
    assert (search.ask(), search.confirming) == (64, True)
    search.tell(False)
    assert search.ask() == 62
    search.tell(True)
    assert (search.ask(), search.best) == (None, 62)


def test_a_search_checks_its_numbers() -> None:
    for wrong in ({"first": 0}, {"first": 1, "tries": 0}, {"first": 9, "most": 8}):
        with pytest.raises(ValueError, match="expected 1 at least"):
            Search(**wrong)


# What is counted.


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(v) for v in range(1, 101)]
    assert quantiles(values[::-1]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
    assert quantiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert all(math.isnan(v) for v in quantiles([]).values())


class Played:
    """A stream that was played: for `count`."""

    def __init__(self, began: float, origin: float | None) -> None:
        self.player = Player(iter(()), lambda event: None, began)
        self.player.origin = origin
        self.now = 0.0
        self.log = WindowLog(1.0, lambda: self.now)

    def note(self, start: float | None, code: str, moment: float) -> None:
        self.now = moment
        self.log.note(start, code)

    def late(self) -> tuple[int, float]:
        return 0, 0.0

    def close(self) -> None:
        pass


def test_windows_are_counted_by_when_their_end_was_due() -> None:
    pace = Pace(seconds=3.0, window=4.0, hop=1.0)
    stream = Played(began=100.0, origin=0.5)  # ends are due at 104.5, 105.5, ...
    for k, code in enumerate(["done", "done", "refused", "failed", "done"]):
        stream.note(0.5 + k, code, 104.5 + k + 0.2)
    stream.note(1.5, "done", 110.0)
    stream.note(1.75, "done", 110.0)
    stream.note(None, "failed", 110.0)
    found = count([stream, Played(100.0, None)], pace, 105.0, 110.0)
    assert (found.done, found.refused, found.failed, found.lost) == (2, 1, 1, 1)
    assert (found.doubled, found.strange, found.expected) == (1, 2, 5)
    assert found.latencies == pytest.approx([0.2, 0.2])


def test_failures_are_told_apart() -> None:
    log = WindowLog(1.0)
    log.result(Failure("x", OverloadedError("later"), 1.0, 5.0))
    log.result(Failure("x", MediaError("x", "no"), 2.0, 6.0))
    found = log.windows(0.0)
    assert {k: [code for code, _ in entries] for k, entries in found.items()} == {1: ["refused"], 2: ["failed"]}


def test_reasons_name_all_that_is_wrong() -> None:
    assert reasons(Counts(done=5), 0.1, 0.0, 0.5, []) == []
    assert reasons(Counts(done=5), 0.5, 0.0, 0.5, []) == ["p95 is 500 ms"]
    assert reasons(Counts(), float("nan"), 0.0, 0.5, []) == ["no window was predicted"]
    text = "; ".join(reasons(Counts(done=5, refused=2, lost=1), 0.1, 0.3, 0.5, ["gone"]))
    assert text == "a player failed: gone; 2 windows refused; 1 windows lost; players were late themselves: p95 300 ms"


def test_a_pace_is_checked() -> None:
    with pytest.raises(ConfigError, match="seconds: got 0"):
        Pace(seconds=0)
    with pytest.raises(ConfigError, match="hop: got nan"):
        Pace(hop=float("nan"))


# For real.


def test_two_streams_get_all_their_windows(engine: Engine, face_clip: Path) -> None:
    pace = Pace(seconds=2.0, window=1.0, hop=0.5, bound=SLOW / 1e3)
    outcome = measure(sessions(engine), [str(face_clip)], 2, pace)
    assert outcome.windows["expected"] >= 6
    assert outcome.windows["done"] == outcome.windows["expected"], outcome.why
    assert outcome.streams == 2
    assert outcome.latency["p50"] > 0
    assert outcome.rss["peak"] >= outcome.rss["start"] > 0
    assert outcome.cores > 0
    json.dumps(outcome.to_dict(), allow_nan=False)
    assert not [t for t in threading.enumerate() if t.name == "merfast-player"]


def test_a_source_that_cannot_be_played_is_the_reason(engine: Engine, tmp_path: Path) -> None:
    outcome = measure(sessions(engine), [str(tmp_path / "none.mp4")], 1, Pace(1.0, 1.0, 0.5))
    assert not outcome.holds
    assert "cannot be played" in outcome.why[0]
    assert json.loads(json.dumps(outcome.to_dict(), allow_nan=False))["latency"]["p50"] is None


def test_the_command_shows_a_table_and_writes_json(
    face_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    options = ["--streams", "2", "--seconds", "1", "--window", "1", "--hop", "0.5", "--latency-ms", str(SLOW)]
    assert main(["bench", "live", *options, "--detector", "haar", "--json", str(out), str(face_clip)]) == 0
    shown = capsys.readouterr().out
    assert "p95 ms" in shown
    assert "no window refused or lost: holds" in shown
    report = json.loads(out.read_text())
    assert report["best"] is None
    (run,) = report["runs"]
    assert run["streams"] == 2
    assert run["windows"]["lost"] == 0
    assert run["windows"]["done"] == run["windows"]["expected"] > 0
    assert report["plan"]["device"] == "cpu"


def outcome_of(streams: int, *, holds: bool) -> Outcome:
    return Outcome(
        streams=streams,
        seconds=1.0,
        bound=0.5,
        windows=dict.fromkeys(("expected", "done", "refused", "failed", "lost", "doubled", "strange"), 0),
        latency=quantiles([0.1]),
        late_frames=0,
        late_seconds=0.0,
        player=quantiles([0.0]),
        cores=1.0,
        rss={"start": 1.0, "end": 1.0, "peak": 1.0},
        why=[] if holds else ["p95 is 700 ms"],
    )


def test_the_command_finds_what_holds(
    monkeypatch: pytest.MonkeyPatch, face_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[tuple[int, float]] = []

    def run(connect: object, sources: object, streams: int, pace: Pace, **_: object) -> Outcome:
        runs.append((streams, pace.seconds))
        assert pace.hasty
        return outcome_of(streams, holds=streams <= 5)

    monkeypatch.setattr(live_bench, "measure", run)
    out = tmp_path / "found.json"
    arguments = ["bench", "live", "--find", "--seconds", "3", "--detector", "none", "--json", str(out), str(face_clip)]
    assert main(arguments) == 0
    assert json.loads(out.read_text())["best"] == 5
    assert runs[-1] == (5, 6.0)
    assert "5 streams hold: p95 below 500 ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--streams or --find"),
        (["--streams", "0"], "expected at least 1"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], said: str, face_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "live", *arguments, str(face_clip)])
    assert said in capsys.readouterr().err


def test_the_command_refuses_what_it_cannot_measure_or_write(face_clip: Path, tmp_path: Path) -> None:
    assert main(["bench", "live", "--streams", "1", "--hop", "0", str(face_clip)]) == 2
    assert main(["bench", "live", "--streams", "1", "--json", str(tmp_path / "no" / "x.json"), str(face_clip)]) == 2
