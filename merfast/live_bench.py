"""Measuring live streams: many files played in real time into one engine, and how soon each window's result is there.

The latency of a window runs from the moment at which its last data was due, on its player's clock, to the moment at
which its result arrives. So it holds whatever comes between: blocks of sound that reach over the end of the window, a
player that is late, the wait for other streams, the work itself.
"""

from __future__ import annotations

import gc
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from merfast.errors import ConfigError, OverloadedError
from merfast.live_players import Player, play, pushing
from merfast.types import Failure, Prediction

if TYPE_CHECKING:
    from merfast.engine import Engine

LATE_PLAYER = 0.1
"""Seconds that the players' 95th percentile may be late: else the machine cannot even play so many streams."""

HOPELESS = 3.0
"""Seconds, or four times the bound: results are not waited for any longer."""

_LOOK = 0.1  # seconds between looks at memory and at what has failed
_JOIN = 0.25  # seconds between two streams that join
_CODES = ("done", "refused", "failed")


@dataclass(frozen=True)
class Pace:
    """How to measure: seconds, but for the names.

    Attributes:
        seconds: how long windows are counted that end in this time.
        window, hop: of the windows.
        bound: that 95 % of the latencies must be below.
        hasty: stop when it is clear that the number of streams does not hold.
    """

    seconds: float = 30.0
    window: float = 4.0
    hop: float = 1.0
    bound: float = 0.5
    hasty: bool = False

    def __post_init__(self) -> None:
        for name in ("seconds", "window", "hop", "bound"):
            value = getattr(self, name)
            if not 0 < value < 1e6:
                raise ConfigError(f"{name}: got {value!r}, expected seconds above 0")


class WindowLog:
    """What became of the windows of one stream, as results come from the engine's threads.

    Args:
        hop: seconds from one window to the next.
        clock: that results are timed by.
    """

    def __init__(self, hop: float, clock: Callable[[], float] = Player.clock) -> None:
        self._hop, self._clock = hop, clock
        self.marks: list[tuple[float | None, str, float]] = []  # start on the stream's clock, code, moment

    def result(self, result: Prediction | Failure) -> None:
        """Take one result, as `on_result`."""
        if isinstance(result, Failure):
            self.note(result.start, "refused" if isinstance(result.error, OverloadedError) else "failed")
        else:
            self.note(result.start, "done")

    def note(self, start: float | None, code: str) -> None:
        self.marks.append((start, code, self._clock()))

    def now(self) -> float:
        return self._clock()

    def windows(self, origin: float) -> dict[int | None, list[tuple[str, float]]]:
        """Number of the window -> what became of it, and when; None for what lies on no window's start."""
        out: dict[int | None, list[tuple[str, float]]] = {}
        for start, code, moment in list(self.marks):
            k = None if start is None else round((start - origin) / self._hop)
            if k is not None and start is not None and abs(start - origin - k * self._hop) > 0.01:
                k = None
            out.setdefault(k, []).append((code, moment))
        return out


class Stream(Protocol):
    """A source on its way into the engine, by whatever side is measured."""

    player: Player
    log: WindowLog

    def late(self) -> tuple[int, float]:
        """Frames and seconds of sound that came too late for their windows."""

    def close(self) -> None:
        """End it; what waits is dropped. The player has stopped."""


Connect = Callable[[str, str, float, Pace], Stream]
"""Makes a stream of a file, a name, and the moment at which its time 0 is due."""


class SessionStream:
    """A file played into a session of its own."""

    def __init__(self, engine: Engine, source: str, name: str, began: float, pace: Pace) -> None:
        self.log = WindowLog(pace.hop)
        self._session = engine.session(window=pace.window, hop=pace.hop, name=name, on_result=self.log.result)
        self.player = Player(play(source), pushing(self._session), began)

    def late(self) -> tuple[int, float]:
        stats = self._session.stats
        return stats.late_frames, stats.late_seconds

    def close(self) -> None:
        self._session.cancel()


def sessions(engine: Engine) -> Connect:
    """Connects streams by sessions of an engine."""
    return lambda source, name, began, pace: SessionStream(engine, source, name, began, pace)


@dataclass
class Counts:
    """What became of the windows that ended in the time that counts.

    Attributes:
        done, refused, failed: by their results.
        lost: without a result.
        doubled: results beyond the first of a window.
        strange: results of no window, or without a time.
        latencies: of those done, in seconds.
    """

    done: int = 0
    refused: int = 0
    failed: int = 0
    lost: int = 0
    doubled: int = 0
    strange: int = 0
    latencies: list[float] = field(default_factory=list, repr=False)

    @property
    def expected(self) -> int:
        return self.done + self.refused + self.failed + self.lost


def count(streams: Sequence[Stream], pace: Pace, start: float, end: float) -> Counts:
    """Look through the logs for windows whose end was due in `[start, end)` on the players' clock."""
    out = Counts()
    for stream in streams:
        origin = stream.player.origin
        if origin is None:
            continue
        found = stream.log.windows(origin)
        out.strange += len(found.get(None, ()))
        first = stream.player.began + origin + pace.window  # the first window is due
        k = max(0, math.ceil((start - first) / pace.hop))
        while (due := first + k * pace.hop) < end:
            entries = found.get(k, [])
            out.doubled += max(0, len(entries) - 1)
            code, moment = entries[0] if entries else ("lost", 0.0)
            setattr(out, code, getattr(out, code) + 1)
            if code == "done":
                out.latencies.append(moment - due)
            k += 1
    return out


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max: the smallest value that so large a share does not exceed; NaN of nothing."""
    if not len(values):
        return dict.fromkeys(("p50", "p95", "p99", "max"), float("nan"))
    ranked = np.sort(np.asarray(values, dtype=np.float64))
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: float(np.quantile(ranked, share, method="inverted_cdf")) for name, share in shares.items()}


@dataclass
class Outcome:
    """A run of so many streams; times in seconds, memory in MiB.

    Attributes:
        streams: number of them.
        seconds: that windows were counted for; less than asked for where it was clear before.
        latency: p50, p95, p99 and max.
        player: how late the players were, likewise.
        cores: CPU time of the process over time.
        rss: "start", "end" and "peak" of the time that counts.
        why: why so many streams do not hold; empty if they do.
    """

    streams: int
    seconds: float
    bound: float
    windows: dict[str, int]
    latency: dict[str, float]
    late_frames: int
    late_seconds: float
    player: dict[str, float]
    cores: float
    rss: dict[str, float]
    why: list[str]

    @property
    def holds(self) -> bool:
        return not self.why

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        plain = asdict(self) | {"holds": self.holds}
        for name in ("latency", "player"):
            plain[name] = {q: value if math.isfinite(value) else None for q, value in plain[name].items()}
        return plain


def reasons(counts: Counts, latency: float, player: float, bound: float, errors: Sequence[str]) -> list[str]:
    """Why these streams are more than the machine holds, of p95s in seconds; empty if they are not."""
    out = [f"a player failed: {error}" for error in errors[:3]]
    wrong = {code: getattr(counts, code) for code in ("refused", "failed", "lost", "doubled", "strange")}
    out += [f"{number} windows {code}" for code, number in wrong.items() if number]
    if not counts.done:
        out.append("no window was predicted")
    elif not latency < bound:
        out.append(f"p95 is {latency * 1e3:.0f} ms")
    if player > LATE_PLAYER:
        out.append(f"players were late themselves: p95 {player * 1e3:.0f} ms")
    return out


def measure(
    connect: Connect,
    sources: Sequence[str],
    streams: int,
    pace: Pace,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Outcome:
    """Play so many streams, and count what becomes of their windows once all have joined and settled.

    Streams join one after the other, each at a random phase within a hop, and take the sources in turn.

    Args:
        connect: makes a stream.
        sources: files.
        streams: number of them.
        pace: how to measure.
        seed: of the phases.
        tell: is told where this stands.
    """
    if not sources or streams < 1:
        raise ConfigError(f"streams: got {streams} of {len(sources)} sources, expected 1 of 1 at least")
    chance, clock = random.Random(seed), Player.clock
    gc.collect()
    joining = clock() + 0.2
    running: list[Stream] = []
    try:
        for i in range(streams):
            began = joining + i * _JOIN + chance.uniform(0, pace.hop)
            running.append(connect(sources[i % len(sources)], f"stream-{i}", began, pace))
            running[-1].player.start()
        start = joining + streams * _JOIN + pace.hop + pace.window + 2 * pace.hop
        _sleep_until(start, running)
        if tell is not None:
            tell(f"{streams} streams have joined")
        return _count_for(running, pace, start)
    finally:
        for stream in running:
            stream.player.stop()
        for stream in running:
            stream.player.join()
            stream.close()


def _count_for(running: Sequence[Stream], pace: Pace, start: float) -> Outcome:
    """The run once all streams have joined."""
    clock, end = Player.clock, start + pace.seconds
    for stream in running:
        stream.player.lateness()
    late = [stream.late() for stream in running]
    cpu, wall = time.process_time(), clock()
    memory = [resident()]
    while (now := clock()) < end:
        time.sleep(min(_LOOK, max(0.0, end - now)))
        memory.append(resident())
        looked = now - 4 * pace.bound  # results of windows up to here are there, or will not help
        if any(stream.player.error for stream in running):
            end = clock()
        elif pace.hasty and _hopeless(count(running, pace, start, looked), len(running), pace):
            end = looked
    cores = (time.process_time() - cpu) / (clock() - wall)
    behind = [seconds for stream in running for seconds in stream.player.lateness()]
    # Players go on until the last results are there, so that the load stays what it was.
    patience = clock() + max(HOPELESS, 4 * pace.bound)
    while clock() < patience and count(running, pace, start, end).lost:
        time.sleep(_LOOK)
    counts = count(running, pace, start, end)
    latency, player = quantiles(counts.latencies), quantiles(behind)
    errors = [str(stream.player.error) for stream in running if stream.player.error]
    after = [stream.late() for stream in running]
    return Outcome(
        streams=len(running),
        seconds=max(0.0, end - start),
        bound=pace.bound,
        windows={c: getattr(counts, c) for c in ("expected", *_CODES, "lost", "doubled", "strange")},
        latency=latency,
        late_frames=sum(b[0] - a[0] for a, b in zip(late, after, strict=True)),
        late_seconds=sum(b[1] - a[1] for a, b in zip(late, after, strict=True)),
        player=player,
        cores=cores,
        rss={"start": memory[0], "end": memory[-1], "peak": max(memory)},
        why=reasons(counts, latency["p95"], player["p95"], pace.bound, errors),
    )


def _hopeless(counts: Counts, streams: int, pace: Pace) -> bool:
    """Whether so much has gone wrong that the rest of the run cannot mend it."""
    late = sum(latency > pace.bound for latency in counts.latencies)
    whole = streams * pace.seconds / pace.hop
    return counts.refused + counts.failed + counts.lost + counts.doubled + counts.strange > 0 or late > 0.06 * whole


def _sleep_until(moment: float, running: Sequence[Stream]) -> None:
    while (left := moment - Player.clock()) > 0 and not any(stream.player.error for stream in running):
        time.sleep(min(left, _LOOK))


def resident() -> float:
    """Memory of this process in MiB."""
    match = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else float("nan")
