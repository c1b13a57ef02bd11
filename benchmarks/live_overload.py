"""Three times as much as an engine can do: what is accepted stays in time, the rest is refused at once, and then?

    python -m benchmarks.live_overload --streams 30 --data folder --out overload.json

`--streams` is the capacity that `live_capacity` has found. Half as many streams play for a while, then three times as
many, then half as many again. Sources are decoded beforehand: else the players alone would be more than the machine can
do. The same follows for `Engine.submit`, with clips of four seconds: its capacity is measured first.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import merfast
from benchmarks import live_inputs
from benchmarks.live_inputs import say
from benchmarks.live_ledger import Ledger
from benchmarks.live_phases import BETWEEN, Phases, Record, Run, checks, recovery, summary, table
from merfast.errors import DeadlineError, OverloadedError
from merfast.live_players import Due, Player, play, pushing, replay
from merfast.types import Failure, Prediction

_TOO_MUCH = (OverloadedError, DeadlineError)


class _Stream:
    """A stream with its ledger and its records."""

    def __init__(
        self, engine: merfast.Engine, name: str, events: Iterator[Due], began: float, window: float, hop: float
    ) -> None:
        self.records: list[Record] = []
        self._window = window
        self._began = began
        self.ledger = Ledger(name, window, hop)
        self.session = engine.session(window=window, hop=hop, name=name, on_result=self._result)
        push = pushing(self.session)
        reached = {True: float("-inf"), False: float("-inf")}  # by sound and by pictures
        self._asked: deque[tuple[float, float]] = deque(maxlen=4096)  # what both have reached, and when

        def noted(event: Due) -> None:
            end = event.due if event.rate else event.start
            before = min(reached.values())
            reached[bool(event.rate)] = end
            if min(reached.values()) > before:
                self._asked.append((min(reached.values()), Player.clock()))
            with self.ledger.pushing(event.start, end):
                push(event)

        self.player = Player(events, noted, began)
        self.player.start()

    def _result(self, result: Prediction | Failure) -> None:
        moment = Player.clock()
        self.ledger.result(result)
        code = "done"
        if isinstance(result, Failure):
            code = "refused" if isinstance(result.error, OverloadedError) else "failed"
        if result.start is not None:
            end = result.start + self._window
            asked = next((when for reached, when in list(self._asked) if reached >= end), moment)
            self.records.append(Record(self._began + end, code, moment, asked))

    def end(self) -> None:
        self.player.stop()
        self.player.join()
        self.session.close()

    def check(self) -> list[str]:
        """Once it has ended."""
        try:
            ended = self.session.get(timeout=30.0) is None
        except TimeoutError:
            ended = False
        self.ledger.finish(whole=ended)
        wrong = list(self.ledger.violations)
        if not ended:
            wrong.append(f"{self.ledger.name}: did not end within 30 s")
        if self.player.error is not None:
            wrong.append(f"{self.ledger.name}: the player failed: {self.player.error}")
        return wrong


def overload_sessions(
    engine: merfast.Engine,
    media: Sequence[tuple[Sequence[Due], float]],
    capacity: int,
    seconds: tuple[float, float, float],
    window: float = 4.0,
    hop: float = 1.0,
    seed: int = 0,
) -> Run:
    """Half the capacity in streams, then three times as many, then half again.

    Args:
        engine: that is overloaded.
        media: decoded sources with their lengths.
        capacity: number of streams that it holds.
        seconds: of the three phases; streams connect when the second begins, so their first windows are due later.
        window, hop: of the windows.
        seed: of the phases of streams within a hop.
    """
    chance = random.Random(seed)
    numbers = itertools.count()

    def connect(at: float) -> _Stream:
        i = next(numbers)
        events, length = media[i % len(media)]
        return _Stream(engine, f"stream-{i}", replay(events, length), at + chance.uniform(0, hop), window, hop)

    few, many = max(1, capacity // 2), 3 * capacity
    joining = Player.clock() + 0.5
    begin = joining + window + 2 * hop
    overload = begin + seconds[0]
    run = Run(Phases(begin, overload, overload + seconds[1], overload + seconds[1] + seconds[2]))
    steady = [connect(joining) for _ in range(few)]
    extra: list[_Stream] = []
    _until(overload, steady, run)
    extra = [connect(overload) for _ in range(many - few)]
    _until(run.phases.relief, [*steady, *extra], run)
    for stream in extra:
        stream.player.stop()
    for stream in extra:
        stream.end()
    _until(run.phases.end, [*steady, *extra], run)
    for stream in steady:
        stream.end()
    for stream in (*steady, *extra):
        run.violations += stream.check()
        run.records += stream.records
    return run


def _until(moment: float, streams: Sequence[_Stream], run: Run) -> None:
    while (left := moment - Player.clock()) > 0:
        time.sleep(min(left, 0.1))
        run.look(sum(stream.session.stats.waiting for stream in streams))


def throughput(engine: merfast.Engine, clips: Sequence[merfast.Clip], seconds: float, ahead: int = 16) -> float:
    """Clips a second through `submit`, with so many asked for at a time."""
    room, done = threading.Semaphore(ahead), Counter[str]()

    def landed(future: Future[Prediction]) -> None:
        done["all"] += 1
        room.release()

    until, following = Player.clock() + seconds, itertools.cycle(clips)
    began = Player.clock()
    while Player.clock() < until:
        room.acquire()
        engine.submit(next(following)).add_done_callback(landed)
    for _ in range(ahead):
        room.acquire()
    return done["all"] / (Player.clock() - began)


def overload_submit(
    engine: merfast.Engine,
    clips: Sequence[merfast.Clip],
    rate: float,
    seconds: tuple[float, float, float],
    deadline: float | None,
    seed: int = 0,
) -> Run:
    """Clips at half the rate, then three times the rate, then half again, whether or not those before are done.

    Args:
        engine: that is overloaded.
        clips: to submit, in turns.
        rate: clips a second that it can do.
        seconds: of the three phases.
        deadline: of each request, in seconds.
        seed: of the moments.
    """
    chance, lock = random.Random(seed), threading.Lock()
    begin = Player.clock() + 0.2
    overload = begin + seconds[0]
    run = Run(Phases(begin, overload, overload + seconds[1], overload + seconds[1] + seconds[2]))
    open_requests: set[int] = set()
    sent = itertools.count()

    def submit(due: float) -> None:
        number, asked = next(sent), Player.clock()
        with lock:
            open_requests.add(number)

        def landed(future: Future[Prediction]) -> None:
            moment, error = Player.clock(), future.exception()
            code = "done" if error is None else "refused" if isinstance(error, _TOO_MUCH) else "failed"
            with lock:
                if number not in open_requests:
                    run.violations.append(f"request {number}: answered twice")
                open_requests.discard(number)
                run.records.append(Record(due, code, moment, asked))

        try:
            future = engine.submit(clips[number % len(clips)], deadline=deadline)
        except OverloadedError:
            with lock:
                open_requests.discard(number)
                run.records.append(Record(due, "refused", Player.clock(), asked))
            return
        future.add_done_callback(landed)

    moment, looked = begin, 0.0
    while moment < run.phases.end:
        if (left := moment - Player.clock()) > 0:
            time.sleep(left)
        submit(moment)
        if Player.clock() - looked > 0.1:
            looked = Player.clock()
            run.look(len(open_requests))
        factor = 3.0 if run.phases.of(moment) == BETWEEN[1] else 0.5
        moment += chance.expovariate(rate * factor)
    patience = Player.clock() + 30.0
    while open_requests and Player.clock() < patience:
        time.sleep(0.05)
    if open_requests:
        run.violations.append(f"{len(open_requests)} requests were never answered")
    return run


def _plain(value: Any) -> Any:
    """What JSON can hold: NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def decoded(source: str, seconds: float) -> tuple[list[Due], float]:
    """The beginning of a source, decoded, to be played over and over."""
    events = list(itertools.takewhile(lambda event: event.due <= seconds + 0.1, play(source, rounds=1)))
    # Sound that reaches over the end would overlap with that of the next round.
    kept = [e for e in events if (e.due <= seconds + 1e-6 if e.rate else e.start < seconds - 1e-6)]
    return kept, seconds


def clips_of(media: Sequence[tuple[Sequence[Due], float]], seconds: float, rate: float) -> list[merfast.Clip]:
    """Clips of arrays from decoded sources, with so many frames a second."""
    out = []
    for number, (events, length) in enumerate(media):
        for start in np.arange(0.0, length - seconds + 1e-6, seconds):
            inside = [e for e in events if start <= e.start < start + seconds]
            frames = [e for e in inside if not e.rate]
            wanted = [
                frames[int(np.searchsorted([f.start for f in frames], start + i / rate))]
                for i in range(int(seconds * rate))
            ]
            out.append(
                merfast.Clip.from_arrays(
                    np.stack([f.media.to_ndarray(format="rgb24") for f in wanted]),
                    fps=rate,
                    audio=np.concatenate([e.media for e in inside if e.rate]),
                    sample_rate=next(e.rate for e in inside if e.rate),
                    name=f"clip-{number}-{start:g}",
                )
            )
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 1 if a bound is not kept."""
    parser = live_inputs.parser_of("live_overload", __doc__)
    parser.add_argument("--streams", type=int, required=True, help="that the machine holds")
    parser.add_argument("--before", type=float, default=10.0, help="seconds at half of it")
    parser.add_argument("--seconds", type=float, default=25.0, help="of overload")
    parser.add_argument("--after", type=float, default=15.0, help="seconds at half of it again")
    parser.add_argument("--latency-ms", type=float, default=500.0)
    parser.add_argument("--recover", type=float, default=5.0, help="seconds that recovery may take")
    parser.add_argument("--length", type=float, default=8.0, help="seconds of each source, decoded and played over")
    options = parser.parse_args(arguments)
    bound, spans = options.latency_ms / 1e3, (options.before, options.seconds, options.after)
    with tempfile.TemporaryDirectory() as folder:
        sources = live_inputs.sources_of(options.work or Path(folder), options.data, 4, 60.0)
        media = [decoded(source, options.length) for source in sources]
    with live_inputs.make_engine(options.data, latency_ms=options.latency_ms) as engine:
        clips = clips_of(media, 4.0, engine.bundle.config.preprocessing.frame_rate)
        engine.predict(clips)
        say(f"sessions: {options.streams // 2}, {3 * options.streams}, {options.streams // 2} streams")
        runs: dict[str, Callable[[], Run]] = {
            "sessions": lambda: overload_sessions(engine, media, options.streams, spans),
            "submit": lambda: _submitted(engine, clips, spans, bound),
        }
        report, wrong = dict[str, Any](), list[str]()
        for name, call in runs.items():
            run = call()
            found, longest = summary(run.records, run.phases), run.longest()
            back = recovery(run.records, run.phases, bound)
            Console(width=150).print(table(name, found, longest))
            wrong += [f"{name}: {text}" for text in checks(found, back, bound, options.recover)]
            wrong += [f"{name}: {text}" for text in run.violations]
            print(f"{name}: in time again {back:.0f} s after the overload; memory up to {max(run.memory):.0f} MiB")
            report[name] = _plain({"phases": found, "waiting": longest, "recovery": back, "memory": max(run.memory)})
            report[name]["violations"] = run.violations[:40]
    print(f"{len(wrong)} violations" + (":" if wrong else ""))
    print("\n".join(f"  {text}" for text in wrong[:40]))
    live_inputs.write(options.out, options, engine, report | {"wrong": wrong[:40]})
    return 1 if wrong else 0


def _submitted(
    engine: merfast.Engine, clips: Sequence[merfast.Clip], spans: tuple[float, float, float], bound: float
) -> Run:
    rate = throughput(engine, clips, 5.0)
    say(f"submit: {rate:.1f} clips a second is the capacity; offering {rate / 2:.1f}, {3 * rate:.1f}, {rate / 2:.1f}")
    return overload_submit(engine, clips, rate, spans, deadline=bound)


if __name__ == "__main__":
    sys.exit(main())
