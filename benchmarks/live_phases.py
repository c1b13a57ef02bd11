"""Phases of a run that is overloaded in the middle: what became of requests in each, and how soon all is well again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from merfast.live_bench import HOPELESS, quantiles, resident
from merfast.live_players import Player

SLICE = 1.0
"""Seconds of a slice, in each of which 95 % must be in time for it to count as recovered."""

BETWEEN = "before", "overload", "after"


@dataclass
class Record:
    """One request, or window: when it was due, what became of it, and when.

    Attributes:
        due: moment of the player's clock.
        code: "done", "refused" or "failed".
        moment: of the result.
        asked: when it was really asked for, by a player that may have been late.
    """

    due: float
    code: str
    moment: float
    asked: float

    @property
    def latency(self) -> float:
        return self.moment - self.due


@dataclass
class Phases:
    """Moments at which the overload begins and ends, and of the beginning and end of all."""

    begin: float
    overload: float
    relief: float
    end: float

    def of(self, moment: float) -> str | None:
        """The phase that a moment lies in."""
        if self.begin <= moment < self.overload:
            return BETWEEN[0]
        if self.overload <= moment < self.relief:
            return BETWEEN[1]
        return BETWEEN[2] if self.relief <= moment < self.end else None


def summary(records: Sequence[Record], phases: Phases) -> dict[str, dict[str, Any]]:
    """By phase: how many were done, refused and failed; latencies of those done, from when they were due and from when
    they were asked for; how soon refusals come; how late the players were."""
    out: dict[str, dict[str, Any]] = {}
    for phase in BETWEEN:
        mine = [r for r in records if phases.of(r.due) == phase]
        counts = Counter(r.code for r in mine)
        out[phase] = {
            "offered": len(mine),
            **{code: counts[code] for code in ("done", "refused", "failed")},
            "latency": quantiles([r.latency for r in mine if r.code == "done"]),
            "refusal": quantiles([r.latency for r in mine if r.code == "refused"]),
            "since asked": quantiles([r.moment - r.asked for r in mine if r.code == "done"]),
            "asked late": quantiles([r.asked - r.due for r in mine]),
        }
    return out


def recovery(records: Sequence[Record], phases: Phases, bound: float) -> float:
    """Seconds from the end of the overload on after which all slices are in time, with nothing refused or failed.

    Slices are of the times at which windows were due; infinite if the last one is not in time.
    """
    count = int((phases.end - phases.relief) // SLICE)
    for i in reversed(range(count)):
        begin = phases.relief + i * SLICE
        mine = [r for r in records if begin <= r.due < begin + SLICE]
        late = quantiles([r.latency for r in mine if r.code == "done"])["p95"]
        if any(r.code != "done" for r in mine) or late >= bound:
            return (i + 1) * SLICE if i + 1 < count else float("inf")
    return 0.0


@dataclass
class Run:
    """What is kept of a run.

    Attributes:
        records: of all requests or windows.
        queued: looks at what waits: moment and number.
        memory: MiB at the same moments.
        violations: what is wrong.
    """

    phases: Phases
    records: list[Record] = field(default_factory=list)
    queued: list[tuple[float, int]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def look(self, waiting: int) -> None:
        self.queued.append((Player.clock(), waiting))
        self.memory.append(resident())

    def longest(self) -> dict[str, int]:
        """Most that waited, by phase."""
        most = dict.fromkeys(BETWEEN, 0)
        for moment, number in self.queued:
            if (phase := self.phases.of(moment)) is not None:
                most[phase] = max(most[phase], number)
        return most


def table(title: str, found: Mapping[str, Mapping[str, Any]], longest: Mapping[str, int]) -> Table:
    """A row for each phase. asked: latency from when a late player asked; players: how late they asked."""
    out = Table(title=title, title_justify="left")
    out.add_column("phase")
    for name in ("offered", "done", "refused", "failed", "p50 ms", "p95", "p99", "max"):
        out.add_column(name, justify="right")
    for name in ("asked p95", "asked max", "refusal p95", "players p95", "waiting"):
        out.add_column(name, justify="right")
    for phase, row in found.items():
        out.add_row(
            phase,
            *(str(row[name]) for name in ("offered", "done", "refused", "failed")),
            *(f"{row['latency'][q] * 1e3:.0f}" for q in ("p50", "p95", "p99", "max")),
            *(f"{row['since asked'][q] * 1e3:.0f}" for q in ("p95", "max")),
            f"{row['refusal']['p95'] * 1e3:.0f}",
            f"{row['asked late']['p95'] * 1e3:.0f}",
            str(longest[phase]),
        )
    return out


def checks(found: Mapping[str, Mapping[str, Any]], back: float, bound: float, recover: float) -> list[str]:
    """What is not as it must be."""
    out = []
    for phase, row in found.items():
        if row["failed"]:
            out.append(f"{phase}: {row['failed']} failed, expected none")
        # Half a bound for what comes between the work and the caller.
        if row["done"] and row["latency"]["max"] > HOPELESS:
            out.append(f"{phase}: a latency of {row['latency']['max']:.2f} s, expected them bounded by {HOPELESS:g} s")
    if not found["overload"]["refused"]:
        out.append("overload: nothing was refused: it was none")
    if not found["overload"]["done"]:
        out.append("overload: nothing was done")
    elif found["overload"]["latency"]["p95"] > 1.5 * bound:
        out.append(f"overload: p95 is {found['overload']['latency']['p95']:.2f} s, expected {1.5 * bound:g} s at most")
    if back > recover:
        out.append(f"in time again after {back:.0f} s, expected {recover:g} s at most")
    return out
