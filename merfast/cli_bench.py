"""The command `merfast bench live`: how many live streams this machine holds, and how soon results are there."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merfast import __version__
from merfast.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from merfast.engine import Engine
    from merfast.live_bench import Outcome, Pace

_FIRST = 4  # streams that a search begins with
_CLIP = 20.0, 640  # seconds and width of the clip that is made where none is given
_CONFIRM = 2  # how many times as long the number that was found is run once more


def add_bench(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    engine: argparse.ArgumentParser,
    make_engine: Callable[..., Engine],
) -> None:
    """Register `merfast bench live`; `engine` has the engine's options, of which `make_engine` makes one."""
    bench = commands.add_parser("bench", help="measure this machine")
    kinds = bench.add_subparsers(title="commands", required=True, metavar="COMMAND")
    parser = kinds.add_parser(
        "live",
        parents=[engine],
        help="play files as live streams, and measure how soon results are there",
        description="Play files as so many live streams, each in real time and over and over, into sessions of one "
        "engine, and measure the time from the end of each window to its result. Decoding all frames of all "
        "streams is part of the load. Exit status: 0 measured, 1 windows were lost, 2 the command is wrong.",
    )
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="media file; without any a 360p clip is made")
    parser.add_argument("--streams", type=int, metavar="N", help=f"how many; with --find the first try ({_FIRST})")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="windows of so long are counted (30)")
    parser.add_argument("--window", type=float, default=4.0, metavar="SECONDS", help="length of a window (4)")
    parser.add_argument("--hop", type=float, default=1.0, metavar="SECONDS", help="from one window to the next (1)")
    text = "what 95 of 100 latencies must be below (500)"
    parser.add_argument("--latency-ms", type=float, default=500.0, metavar="MS", help=text)
    text = "search the largest number of streams with that latency and without a window refused or lost"
    parser.add_argument("--find", action="store_true", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.set_defaults(run=_live, usage_error=parser.error, make_engine=make_engine)


def _live(options: argparse.Namespace) -> int:
    if options.streams is None and not options.find:
        options.usage_error("--streams or --find is needed")
    if options.streams is not None and options.streams < 1:
        options.usage_error(f"--streams: got {options.streams}, expected at least 1")
    if options.json is not None and (not options.json.parent.is_dir() or options.json.is_dir()):
        raise ConfigError(f"--json {options.json}: cannot be written there, expected a file in an existing folder")
    import torch

    from merfast.cli_table import output_console
    from merfast.demo import make_clip
    from merfast.live_bench import Pace
    from merfast.media.source import check_source

    for source in options.sources:
        check_source(source, source)
    pace = Pace(options.seconds, options.window, options.hop, options.latency_ms / 1e3)
    # Streams are the parallel work here: threads of torch would only stand in each other's way.
    torch.set_num_threads(1)
    with ExitStack() as stack:
        sources = list(options.sources)
        if not sources:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="merfast-"))
            _say("making a clip")
            sources = [str(make_clip(Path(folder, "clip.mp4"), _CLIP[0], width=_CLIP[1]))]
        engine = stack.enter_context(options.make_engine(options, latency_ms=options.latency_ms))
        plan = {step.step: step.implementation for step in engine.plan.steps}
        outcomes, best = _measured(engine, sources, pace, options)
    console = output_console()
    _show(console, outcomes, best, pace)
    if options.json is not None:
        _write(options.json, outcomes, best, pace, plan)
    lost = any(o.windows[code] for o in outcomes for code in ("lost", "doubled", "strange") if o.holds or best is None)
    return 1 if lost else 0


def _measured(
    engine: Engine, sources: Sequence[str], pace: Pace, options: argparse.Namespace
) -> tuple[list[Outcome], int | None]:
    """All runs, and the largest number that holds, where it was asked for."""
    from merfast.live_bench import measure, sessions
    from merfast.live_search import Search

    connect, outcomes = sessions(engine), []
    if not options.find:
        outcomes.append(measure(connect, sources, options.streams, pace, tell=_say))
        return outcomes, None
    search = Search(options.streams or _FIRST)
    while (streams := search.ask()) is not None:
        seconds = pace.seconds * (_CONFIRM if search.confirming else 1)
        outcome = measure(connect, sources, streams, replace(pace, hasty=True, seconds=seconds), seed=len(outcomes))
        _say(f"{streams} streams: p95 {outcome.latency['p95'] * 1e3:.0f} ms, {'; '.join(outcome.why) or 'holds'}")
        outcomes.append(outcome)
        search.tell(outcome.holds)
    return outcomes, search.best


def _show(console: Console, outcomes: Sequence[Outcome], best: int | None, pace: Pace) -> None:
    console.print(outcome_table(outcomes))
    console.print(
        f"\nWindows of {pace.window:g} s every {pace.hop:g} s. Latency: from the end of a window to its result. Late: "
        "frames and seconds of sound that\ncame after their window. Players: p95 of how late they were themselves, "
        "which is part of the latency.",
    )
    if best is not None:
        console.print(f"{best} streams hold: p95 below {pace.bound * 1e3:g} ms, no window refused or lost.")
        return
    for outcome in outcomes:
        verdict = "holds" if outcome.holds else f"does not hold ({'; '.join(outcome.why)})"
        console.print(f"p95 below {pace.bound * 1e3:g} ms, no window refused or lost: {verdict}.")


def outcome_table(outcomes: Sequence[Outcome], names: Sequence[str] = ()) -> Any:
    """A row for each run; with its name before, if there are names."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    if names:
        table.add_column("side")
    for heading in ("streams", "windows", "refused", "failed", "lost", "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="right")
    for heading in ("late", "players ms", "cores", "MiB, peak", ""):
        table.add_column(heading, justify="right")
    for i, o in enumerate(outcomes):
        latency = [f"{o.latency[name] * 1e3:.0f}" for name in ("p50", "p95", "p99", "max")]
        table.add_row(
            *([names[i]] if names else []),
            str(o.streams),
            *(str(o.windows[code]) for code in ("expected", "refused", "failed", "lost")),
            *latency,
            f"{o.late_frames}, {o.late_seconds:.1f} s",
            f"{o.player['p95'] * 1e3:.0f}",
            f"{o.cores:.2f}",
            f"{o.rss['end']:.0f}, {o.rss['peak']:.0f}",
            "holds" if o.holds else "",
        )
    return table


def _write(path: Path, outcomes: Sequence[Outcome], best: int | None, pace: Pace, plan: dict[str, str]) -> None:
    report = {
        "merfast": __version__,
        "machine": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "plan": plan,
        "window": pace.window,
        "hop": pace.hop,
        "bound": pace.bound,
        "best": best,
        "runs": [outcome.to_dict() for outcome in outcomes],
    }
    try:
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror or error})") from error


def _say(text: str) -> None:
    print(f"merfast: {text}", file=sys.stderr, flush=True)
