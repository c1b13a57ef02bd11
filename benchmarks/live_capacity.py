"""How many live streams hold: sessions, against the same windows through `predict`, called for each.

    python -m benchmarks.live_capacity --data folder --out capacity.json

A number of streams holds if 95 % of the latencies are below the bound and no window is refused or lost. Each side's
largest number is searched with the same players, sources and rules, and the sides take turns, run by run. `arrays`
keeps the frames that windows sample as RGB arrays, `media` keeps packets and predicts files in memory. Both call
`predict` for each window from a pool of threads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import live_inputs, live_sides
from benchmarks.live_inputs import say
from merfast.cli_bench import outcome_table
from merfast.live_bench import Connect, Outcome, Pace, measure, sessions
from merfast.live_search import Search

OURS = "session"
CONFIRM = 2
"""How many times as long the number that was found is run once more."""


def find(
    sides: Mapping[str, Callable[[int, float, int], Outcome]], searches: Mapping[str, Search], seconds: float
) -> list[tuple[str, Outcome]]:
    """Search for each side's largest number, in turns; all runs, by name of the side.

    Args:
        sides: run so many streams for so many seconds with a seed.
        searches: by the same names.
        seconds: of a run; what confirms is `CONFIRM` times as long.
    """
    runs: list[tuple[str, Outcome]] = []
    while any(search.ask() is not None for search in searches.values()):
        for name, search in searches.items():
            streams = search.ask()
            if streams is None:
                continue
            what = "confirm" if search.confirming else "try"
            outcome = sides[name](streams, seconds * (CONFIRM if search.confirming else 1), len(runs))
            latency = outcome.latency["p95"] * 1e3
            say(f"{name}: {what} {streams} streams: p95 {latency:.0f} ms, {'; '.join(outcome.why) or 'holds'}")
            runs.append((name, outcome))
            search.tell(outcome.holds)
    return runs


def ratios(best: Mapping[str, int]) -> dict[str, float]:
    """How many times as many streams sessions hold; NaN where the other side holds none."""
    return {name: best[OURS] / other if other else float("nan") for name, other in best.items() if name != OURS}


def report_text(best: Mapping[str, int], bound: float) -> list[str]:
    """Lines to print."""
    lines = [f"Largest number of streams with p95 below {bound * 1e3:g} ms and no window refused or lost:"]
    shares = ratios(best)
    for name, streams in best.items():
        lines.append(f"  {name:<8} {streams:4}" + (f"   sessions hold {shares[name]:.2f} x" if name in shares else ""))
    return lines


def sides_of(engine: Any, names: Sequence[str], pool: ThreadPoolExecutor) -> dict[str, Connect]:
    makers = {
        OURS: sessions,
        "arrays": partial(live_sides.arrays, pool=pool),
        "media": partial(live_sides.media, pool=pool),
    }
    return {name: makers[name](engine) for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    parser = live_inputs.parser_of("live_capacity", __doc__)
    parser.add_argument("--sides", default=f"{OURS},arrays,media", help="with commas")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run, windows counted")
    parser.add_argument("--window", type=float, default=4.0)
    parser.add_argument("--hop", type=float, default=1.0)
    parser.add_argument("--latency-ms", type=float, default=500.0)
    parser.add_argument("--first", type=int, default=4, help="streams to begin with")
    parser.add_argument("--most", type=int, default=256, help="streams to try at most")
    parser.add_argument("--tries", type=int, default=2, help="runs that must fail for a number to count as failed")
    parser.add_argument("--pool", type=int, default=2, help="threads that call predict")
    parser.add_argument("--sources", type=int, default=6, help="different clips")
    parser.add_argument("--length", type=float, default=60.0, help="seconds of each clip")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.pool) as pool:
        sources = live_inputs.sources_of(options.work or Path(folder), options.data, options.sources, options.length)
        with live_inputs.make_engine(options.data, latency_ms=options.latency_ms) as engine:
            return _compare(engine, sources, pool, options)


def _compare(engine: Any, sources: Sequence[str], pool: ThreadPoolExecutor, options: argparse.Namespace) -> int:
    pace = Pace(options.seconds, options.window, options.hop, options.latency_ms / 1e3, hasty=True)
    names = options.sides.split(",")

    def run(connect: Connect, streams: int, seconds: float, seed: int) -> Outcome:
        outcome = measure(connect, sources, streams, replace(pace, seconds=seconds), seed=seed)
        _drain(pool, options.pool)
        return outcome

    sides = {name: partial(run, connect) for name, connect in sides_of(engine, names, pool).items()}
    for name, side in sides.items():
        say(f"{name}: warming up")
        side(1, 2.0, 0)
    searches = {name: Search(options.first, tries=options.tries, most=options.most) for name in names}
    runs = find(sides, searches, options.seconds)
    best = {name: search.best for name, search in searches.items()}
    console = Console(width=150)
    console.print(outcome_table([outcome for _, outcome in runs], [name for name, _ in runs]))
    print("\n".join(report_text(best, pace.bound)))
    report: dict[str, Any] = {
        "bound": pace.bound,
        "best": best,
        "ratios": ratios(best) if OURS in best else {},
        "runs": [{"side": name, **outcome.to_dict()} for name, outcome in runs],
    }
    live_inputs.write(options.out, options, engine, report)
    return 0


def _drain(pool: ThreadPoolExecutor, threads: int) -> None:
    """Wait until the pool has nothing to do: what is late is dropped by its tasks."""
    for waiting in [pool.submit(int) for _ in range(threads)]:
        waiting.result()


if __name__ == "__main__":
    sys.exit(main())
