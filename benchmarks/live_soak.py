"""Live streams that come, go and misbehave for half an hour on one engine: is anything lost, doubled, or leaked?

    python -m benchmarks.live_soak --minutes 30 --streams 20 --data folder --out soak.json

Most of the streams connect for a random time, and stall, jump, send damaged packets, NaN and pictures of another size
(`live_chaos.py`). Beside each a ledger says which windows it must get (`live_ledger.py`). Two pairs of control streams
run all the time and behave: they must get every window, and the streams of a pair, which play the same, the same
results. Memory, threads and open files are looked at every 10 s, and at the end, when all streams have gone; Python's
garbage is collected before, as streams and who listens to them refer to each other.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import merfast
from benchmarks import live_inputs
from benchmarks.gauges import Gpu, footprint
from benchmarks.live_chaos import ACTIONS, Chaos
from benchmarks.live_inputs import say
from benchmarks.live_ledger import Ledger
from merfast.errors import UsageError
from merfast.live_bench import quantiles
from merfast.live_players import Player, play
from merfast.types import Failure, Prediction

LIVES = 8.0, 60.0
"""Seconds that a connection lasts, from and to."""

ENDS = ("close", "close", "cancel", "forget")
"""How a connection ends: by itself, dropped by the caller, or without a word."""

PATIENCE = 30.0
"""Seconds that a closed session may take to end."""

SAME = 1e-4
"""Most that the results of two streams may differ that play the same."""

AFTER = 60
"""Windows after a refused one in which a pair may differ: faces were not looked for meanwhile."""

BOUNDS = {"resident": 0.05, "threads": 2.0, "files": 2.0}
"""What may be added between the settled beginning and the end: of memory a share, of the others a number."""

_LATE = {"refused", "failed"}


@dataclass
class Tally:
    """What all streams together have seen; safe to use from many threads."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    control: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("difference", "compared", "after refusals", "compared after"), 0.0)
    )
    latencies: array[float] = field(default_factory=lambda: array("f"))
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, counts: Mapping[str, int], violations: Sequence[str]) -> None:
        with self.lock:
            self.counts.update(counts)
            self.violations += violations[: max(0, 100 - len(self.violations))]


class Connection:
    """One session, what is pushed into it, and who reads its results.

    Args:
        engine: of the session.
        source: file to play.
        name: of the stream.
        began: moment of time 0.
        tally: takes what was seen.
        seed: of what goes wrong.
        actions: that may go wrong.
        offset: of its times, in seconds.
        callback: whether results come by `on_result`, instead of to a thread that iterates.
        watch: is told of each result with the number of its window, and when it came.
    """

    def __init__(
        self,
        engine: merfast.Engine,
        source: str,
        name: str,
        began: float,
        tally: Tally,
        *,
        pace: tuple[float, float],
        seed: int = 0,
        actions: Sequence[str] = (),
        offset: float = 0.0,
        callback: bool = False,
        watch: Any = None,
    ) -> None:
        self.ledger = Ledger(name, *pace)
        self._tally, self._watch = tally, watch
        on_result = self._result if callback else None
        self.session = engine.session(window=pace[0], hop=pace[1], name=name, on_result=on_result)
        self.chaos = Chaos(self.session, self.ledger, seed, actions, offset)
        self.player = Player(play(source, self.chaos.damage if actions else None), self.chaos.push, began)
        self._ended = threading.Event()
        self._reader = None if callback else threading.Thread(target=self._read, name="soak-reader", daemon=True)
        if self._reader is not None:
            self._reader.start()
        self.player.start()

    def _read(self) -> None:
        for result in self.session:
            self._result(result)
        self._ended.set()

    def _result(self, result: Prediction | Failure) -> None:
        moment = Player.clock()
        k = self.ledger.result(result)
        if self._watch is not None and k is not None:
            self._watch(k, result, moment)

    def end(self, how: str) -> None:
        """Disconnect, and check what there is to check.

        Args:
            how: one of `ENDS`.
        """
        self.player.stop()
        self.player.join()
        if how == "close":
            self.session.close()
            self._check_closed()
        elif how == "cancel":
            self.session.cancel()
            self._check_closed()
        finished = how == "forget" or self._wait(PATIENCE)
        stats = self.session.stats
        self.ledger.finish(whole=how == "close" and finished)
        wrong = [*self.ledger.violations, *self.chaos.violations]
        if self.player.error is not None:
            wrong.append(f"{self.ledger.name}: the player failed: {self.player.error}")
        if not finished:
            wrong.append(f"{self.ledger.name}: did not end within {PATIENCE:g} s of {how}")
        seen = self.ledger.tally
        if how == "close" and finished and stats.windows < seen["predicted"] + seen["refused"] + seen["failed"]:
            wrong.append(f"{self.ledger.name}: stats count {stats.windows} windows, fewer than came")
        counts = Counter({f"ended by {how}": 1, "late frames": stats.late_frames}) + seen + self.chaos.done
        counts["late milliseconds of sound"] += round(stats.late_seconds * 1e3)
        self._tally.add(counts, wrong)

    def _check_closed(self) -> None:
        """A session that was closed must say so when something is pushed."""
        try:
            self.session.push_audio(np.zeros(160, np.float32), 16_000, 0.0)
        except UsageError:
            return
        except Exception as error:
            self.chaos.violations.append(f"{self.ledger.name}: push after the end: {type(error).__name__}: {error}")
            return
        self.chaos.violations.append(f"{self.ledger.name}: push after the end was accepted")

    def _wait(self, seconds: float) -> bool:
        """Whether the session has ended: its reader's iteration, or all results have been called back."""
        if self._reader is not None:
            self._reader.join(seconds)
            return not self._reader.is_alive()
        try:
            # With a callback nothing is left to be read: None is the end.
            return self.session.get(timeout=seconds) is None
        except TimeoutError:
            return False


class Pair:
    """Two control streams that play the same: compares their results, window by window.

    Args:
        tally: takes latencies and differences.
        window, hop: in seconds.
        starts: moments of both streams' time 0.
    """

    def __init__(self, tally: Tally, window: float, hop: float, starts: tuple[float, float]) -> None:
        self._tally, self._window, self._hop, self._starts = tally, window, hop, starts
        self._open: dict[int, Prediction | Failure] = {}
        self._refused = -AFTER  # last window that one of them was refused
        self._over = False
        self._lock = threading.Lock()

    def end(self) -> None:
        """Compare no more: the two of a pair end at different moments, and their last windows with them."""
        self._over = True

    def watch(self, which: int, k: int, result: Prediction | Failure, moment: float) -> None:
        due = self._starts[which] + k * self._hop + self._window
        with self._lock:
            if isinstance(result, Prediction):
                self._tally.latencies.append(moment - due)
            else:
                self._refused = max(self._refused, k)
            other = self._open.pop(k, None)
            if other is None:
                self._open[k] = result
                if len(self._open) > 1000:  # one of the two gets nothing, which its ledger says
                    self._open.clear()
                return
            after = k < self._refused + AFTER
        if self._over or isinstance(result, Failure) or isinstance(other, Failure):
            return
        difference = float(np.abs(result.probabilities - other.probabilities).max())
        difference = max(difference, abs(result.valence - other.valence))
        names = ("after refusals", "compared after") if after else ("difference", "compared")
        with self._tally.lock:
            self._tally.control[names[1]] += 1
            # NaN counts as a difference.
            if not difference <= self._tally.control[names[0]]:
                self._tally.control[names[0]] = difference


def slot(
    number: int,
    engine: merfast.Engine,
    sources: Sequence[str],
    tally: Tally,
    pace: tuple[float, float],
    until: float,
    seed: int,
    lives: tuple[float, float],
) -> None:
    """Connect and disconnect, over and over, until the time is over."""
    chance = random.Random(seed * 1000 + number)
    count = 0
    try:
        while True:
            begin = Player.clock() + chance.uniform(0.05, 2.0)
            left = until - begin
            if left < 1.0:
                return
            lasts, how = min(left, chance.uniform(*lives)), chance.choice(ENDS)
            connection = Connection(
                engine,
                chance.choice(sources),
                f"slot-{number}-{count}",
                begin,
                tally,
                pace=pace,
                seed=chance.randrange(1 << 30),
                actions=ACTIONS,
                offset=chance.choice([0.0, chance.uniform(-1e3, 1e3), 1.7e9]),
                callback=how == "forget" or chance.random() < 0.5,
            )
            time.sleep(max(0.0, begin + lasts - Player.clock()))
            connection.end(how)
            del connection
            count += 1
    except Exception as error:
        tally.add({}, [f"slot-{number}: {type(error).__name__}: {error}"])


def soak(
    engine: merfast.Engine,
    sources: Sequence[str],
    streams: int,
    seconds: float,
    seed: int = 0,
    pace: tuple[float, float] = (4.0, 1.0),
    every: float = 10.0,
    lives: tuple[float, float] = LIVES,
) -> tuple[Tally, list[dict[str, float]]]:
    """Run so many streams, four of which behave, for so long.

    Returns:
        What was seen, and looks at the process, the last one after all streams have gone.
    """
    tally, gpu = Tally(), Gpu("cpu")
    gc.collect()
    gc.freeze()  # so that collecting what streams leave behind does not take long
    began = Player.clock() + 0.5
    until = began + seconds
    # With a fraction of a hop between them, so that the pair's windows do not end together.
    controls, pairs, chance = [], [], random.Random(seed)
    for pair in range(2):
        starts = (began + chance.uniform(0, pace[1]), began + chance.uniform(0, pace[1]))
        pairs.append(Pair(tally, *pace, starts))
        for which, start in enumerate(starts):
            name, source = f"control-{pair}-{which}", sources[pair % len(sources)]
            watch = partial(pairs[-1].watch, which)
            controls.append(Connection(engine, source, name, start, tally, pace=pace, callback=which == 0, watch=watch))
    arguments = engine, sources, tally, pace, until, seed, lives
    threads = [threading.Thread(target=slot, args=(i, *arguments), daemon=True) for i in range(max(0, streams - 4))]
    for thread in threads:
        thread.start()
    looks: list[dict[str, float]] = []
    following = began
    while (now := Player.clock()) < until:
        if now >= following:
            looks.append({"seconds": now - began, **_held(gpu)})
            following += every
            _check_overdue(controls, tally)
        time.sleep(min(0.2, max(0.0, until - now)))
    for thread in threads:
        thread.join(PATIENCE + 10.0)
        if thread.is_alive():
            tally.add({}, ["a slot did not end"])
    for each in pairs:
        each.end()
    for control in controls:
        refused = sum(control.ledger.tally[name] for name in _LATE)
        control.end("close")
        if control.ledger.tally["failed"]:
            tally.add({}, [f"{control.ledger.name}: {control.ledger.tally['failed']} windows failed, expected none"])
        late = control.session.stats.late_frames
        tally.add({"control refused": refused, "control windows": control.ledger.tally["predicted"]}, [])
        if late:
            tally.add({"control late frames": late}, [])
    del control, controls
    time.sleep(1.0)
    gc.unfreeze()
    looks.append({"seconds": Player.clock() - began, **_held(gpu)})
    if not tally.control["difference"] <= SAME:
        tally.add({}, [f"control streams that play the same differ by {tally.control['difference']:.1e}"])
    return tally, looks


def _held(gpu: Gpu) -> dict[str, float]:
    """What this process holds; of memory what it needs, as the C library first gives back what is free."""
    gc.collect()
    with suppress(AttributeError):  # where the C library is another one
        ctypes.CDLL(None).malloc_trim(0)
    return footprint("cpu", gpu)


def _check_overdue(controls: Sequence[Connection], tally: Tally) -> None:
    """A control stream is some windows behind at most."""
    for control in controls:
        if (behind := control.ledger.overdue()) > 5:
            tally.add({}, [f"{control.ledger.name}: {behind} windows are overdue"])


def trends(looks: Sequence[Mapping[str, float]], settled: float) -> dict[str, dict[str, float]]:
    """Of memory, threads and files after `settled` seconds: first, last, most, slope a minute, and rise by that slope.

    The last look, when all streams have gone, is left out.
    """
    late = [look for look in looks[:-1] if look["seconds"] >= settled]
    if len(late) < 3:
        raise ValueError(f"looks after {settled:g} s: got {len(late)}, expected 3 at least: a longer run")
    minutes = np.array([look["seconds"] for look in late]) / 60
    out = {}
    for name in BOUNDS:
        values = np.array([look[name] for look in late])
        slope = float(np.polyfit(minutes, values, 1)[0])
        out[name] = {
            "first": float(values[0]),
            "last": float(values[-1]),
            "most": float(values.max()),
            "after": float(looks[-1][name]),
            "a_minute": slope,
            "rise": slope * float(minutes[-1] - minutes[0]),
        }
    return out


def rising(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What is not flat."""
    share = {name: t["rise"] / t["first"] if name == "resident" else t["rise"] for name, t in found.items()}
    return [name for name, rise in share.items() if not rise <= BOUNDS[name]]


def report_text(tally: Tally, found: Mapping[str, Mapping[str, float]], minutes: float, streams: int) -> list[str]:
    """Lines to print."""
    c = tally.counts
    lines = [
        f"{minutes:.1f} minutes, {streams} streams: {c['predicted']} windows predicted, {c['refused']} refused, "
        f"{c['failed']} failed; {c['pauses']} pauses, {c['reset']} resets, {c['refused push']} bad pushes refused, "
        f"{c['refused damage']} of damage",
        "connections: " + ", ".join(f"{c[f'ended by {how}']} ended by {how}" for how in dict.fromkeys(ENDS)),
        "actions: " + ", ".join(f"{name} {c[name]}" for name in ACTIONS),
        f"late: {c['late frames']} frames, {c['late milliseconds of sound'] / 1e3:.1f} s of sound",
    ]
    q = {name: value * 1e3 for name, value in quantiles(tally.latencies).items()}
    lines.append(
        f"control streams: {c['control windows']} windows, {c['control refused']} refused or failed, latency p50 "
        f"{q['p50']:.0f} ms, p95 {q['p95']:.0f}, p99 {q['p99']:.0f}, max {q['max']:.0f}"
    )
    t = tally.control
    lines.append(
        f"{t['compared']:.0f} pairs of their windows differ by {t['difference']:.1e} at most; "
        f"{t['compared after']:.0f} within {AFTER} windows of a refused one by {t['after refusals']:.1e}"
    )
    bad = rising(found)
    for name, trend in found.items():
        first, last, most, after = (f"{trend[key]:.0f}" for key in ("first", "last", "most", "after"))
        lines.append(
            f"{name}: {first} when settled, {last} last, {most} at most, {trend['a_minute']:+.3f} a minute "
            f"({trend['rise']:+.1f} in all: {'RISING' if name in bad else 'flat'}), {after} when all had gone"
        )
    lines.append(f"{len(tally.violations)} violations" + (":" if tally.violations else ""))
    return lines + [f"  {text}" for text in tally.violations[:40]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 1 if something was lost, doubled, wrong, or rises."""
    parser = live_inputs.parser_of("live_soak", __doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, required=True, help="at the same time, 5 at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=float, default=4.0)
    parser.add_argument("--hop", type=float, default=1.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds from one look at the process to the next")
    parser.add_argument("--settled", type=float, default=180.0, help="seconds after which memory counts")
    parser.add_argument("--short", action="store_true", help="too short to tell what rises: it does not count")
    options = parser.parse_args(arguments)
    if options.streams < 5:
        parser.error(f"--streams: got {options.streams}, expected at least 5, four of which are control streams")
    with tempfile.TemporaryDirectory() as folder:
        sources = live_inputs.sources_of(options.work or Path(folder), options.data, 6, 60.0)
        with live_inputs.make_engine(options.data) as engine:
            say(f"{options.streams} streams for {options.minutes:g} minutes")
            pace = options.window, options.hop
            seconds = options.minutes * 60
            tally, looks = soak(engine, sources, options.streams, seconds, options.seed, pace, options.every)
    found = trends(looks, options.settled)
    bad = rising(found)
    print("\n".join(report_text(tally, found, options.minutes, options.streams)))
    report: dict[str, Any] = {
        "counts": dict(tally.counts),
        "violations": tally.violations,
        "control": tally.control,
        "latency": quantiles(tally.latencies),
        "trends": found,
        "rising": bad,
        "looks": looks,
    }
    live_inputs.write(options.out, options, engine, report)
    return 1 if tally.violations or (bad and not options.short) else 0


if __name__ == "__main__":
    sys.exit(main())
