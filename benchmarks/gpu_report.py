"""What a GPU run writes down: machine, versions, commit, outcomes; and the short table of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

GOOD = ("passed", "not found")
FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a part.

    Attributes:
        name: of the part.
        result: "passed", "failed", "timed out", "not run" (no time was left) or "not found" (a tool is missing).
        detail: what more there is to say in a few words.
        seconds: how long it ran.
        tests: "passed", "failed", "skipped" -> how many.
        skipped: tests that were, and why.
        tail: last lines of its output, unless it passed.
        benchmarks: its timed cases.
        measured: the JSON that it wrote.

    What belongs into tables of headlines says so itself: a timed case has "headline", a JSON "headlines". Each is
    `{"what", "result", "against"}`, in words.
    """

    name: str
    result: str
    detail: str = ""
    seconds: float = 0.0
    tests: Mapping[str, int] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    tail: Sequence[str] = ()
    benchmarks: Sequence[Mapping[str, Any]] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)


Save = Callable[[list[Outcome]], None]


def passed(outcomes: Sequence[Outcome]) -> bool:
    """Whether all that could be run passed."""
    return bool(outcomes) and all(o.result in GOOD for o in outcomes)


def commit_of(root: Path) -> dict[str, Any]:
    """`{"id", "dirty"}` of the checkout; "unknown" and None where `root` is not the top of one."""

    def git(*arguments: str) -> str:
        # The owner of a checkout may be another user.
        command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {"id": "unknown", "dirty": None}
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"id": "unknown", "dirty": None}


def describe(root: Path, commit: str | None = None) -> dict[str, Any]:
    """When, on what machine, with what versions, of which commit."""
    import numpy as np
    import torch
    import triton

    import merfast

    gpu = torch.cuda.get_device_properties(0)
    return {
        "format": FORMAT,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "gpu": gpu.name,
            "compute_capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_bytes": gpu.total_memory,
            "driver": _driver(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            "numpy": np.__version__,
            "merfast": merfast.__version__,
        },
        "commit": {"id": commit, "dirty": None} if commit else commit_of(root),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def read_junit(file: Path) -> tuple[dict[str, int], list[str]]:
    """How many tests passed, failed and were skipped, and why; nothing if pytest has not written the file."""
    try:
        cases = list(ElementTree.parse(file).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return {}, []
    counts: Counter[str] = Counter()
    skipped = []
    for case in cases:
        if (reason := case.find("skipped")) is not None:
            counts["skipped"] += 1
            skipped.append(f"{case.get('name')}: {reason.get('message')}")
        else:
            counts["failed" if case.find("failure") is not None or case.find("error") is not None else "passed"] += 1
    return dict(counts), skipped


def counted(counts: Mapping[str, int]) -> str:
    """As "3 passed, 1 skipped"."""
    return ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped") if counts.get(name))


def read_benchmarks(file: Path) -> list[dict[str, Any]]:
    """The cases of pytest-benchmark's JSON: group, name, rounds, quartiles in seconds, and what else was noted."""
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError):
        return []
    return [
        {
            "group": case["group"],
            "name": case["name"],
            "rounds": case["stats"]["rounds"],
            "q1": case["stats"]["q1"],
            "median": case["stats"]["median"],
            "q3": case["stats"]["q3"],
            **case["extra_info"],
        }
        for case in data["benchmarks"]
    ]


def read_json(file: Path) -> dict[str, Any]:
    """What a part has measured; nothing if it has not written the file."""
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write(file: Path, report: Mapping[str, Any], outcomes: Sequence[Outcome], seconds: float) -> None:
    """Write the run as JSON, in one step."""
    whole = {**report, "seconds": seconds, "passed": passed(outcomes), "parts": [asdict(o) for o in outcomes]}
    new = file.with_name(file.name + ".new")
    new.write_text(json.dumps(whole, indent=1) + "\n")
    new.replace(file)


def append_log(file: Path, folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Add the output of parts, which lies in `folder`, to the log of the whole run."""
    with file.open("a") as log:
        for outcome in outcomes:
            part = folder / f"{outcome.name.replace(' ', '-')}.log"
            text = part.read_text(errors="replace") if part.exists() else ""
            log.write(f"==== {outcome.name}: {outcome.result} {outcome.detail}\n{text}\n")


def in_words(result: str, dry: bool) -> str:
    """A result as it is told."""
    return "would run" if dry and result == "passed" else result


def dry_table(outcomes: Sequence[Outcome]) -> str:
    """Parts of a dry run, and what keeps it from being well."""
    rows = [[o.name, in_words(o.result, True), f"{o.seconds:.0f}", o.detail] for o in outcomes]
    bad = [o.name for o in outcomes if o.result != "passed"]
    verdict = f"WOULD NOT RUN: {', '.join(bad)}" if bad else "all would run" if outcomes else "NOTHING TO RUN"
    return "\n".join([*_columns([["part", "result", "seconds", ""], *rows]), "", verdict])


def table(report: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Outcomes, headlines, every case of a Triton kernel against eager, compiled and a copy, and what was skipped."""
    machine, versions, commit = report["machine"], report["versions"], report["commit"]
    dirty = " with changes" if commit["dirty"] else ""
    lines = [
        f"{machine['gpu']}, driver {machine['driver']}; torch {versions['torch']}, triton {versions['triton']}; "
        f"commit {commit['id'][:12]}{dirty}",
        "",
        *_columns(
            [["part", "result", "seconds", ""], *([o.name, o.result, f"{o.seconds:.0f}", o.detail] for o in outcomes)]
        ),
    ]
    parts = [asdict(o) for o in outcomes]
    if rows := headlines(parts):
        lines += ["", *(f"{h['what']}: {h['result']} ({h['against']})" for h in rows)]
    if kernels := ratios(cases_of(parts)):
        lines += ["", *_columns([KERNEL_COLUMNS, *kernels])]
    if skipped := sorted({f"{o.name}: {reason}" for o in outcomes for reason in o.skipped}):
        lines += ["", "skipped:", *skipped]
    bad = [o.name for o in outcomes if o.result not in GOOD]
    absent = [f"{o.name} ({o.detail})" for o in outcomes if o.result == "not found"]
    verdict = f"NOT PASSED: {', '.join(bad)}" if bad else "passed"
    return "\n".join([*lines, "", verdict + (f"; NOT FOUND: {', '.join(absent)}" if absent else "")])


KERNEL_COLUMNS = ["group", "case", "time", "x eager", "x compiled", "of floor", "of a copy", "launches"]
"""Of `ratios`."""


def cases_of(parts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Timed cases of the parts, as the JSON has them."""
    return [case for part in parts for case in part["benchmarks"]]


def headlines(parts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, str]]:
    """What the parts, as the JSON has them, have to say in tables of headlines; nothing of those that did not pass."""
    out: list[Mapping[str, str]] = []
    for part in parts:
        if part["result"] == "passed":
            out += [case["headline"] for case in part["benchmarks"] if "headline" in case]
            out += part.get("measured", {}).get("headlines", ())
    return out


def ratios(cases: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each Triton case: how many times faster than its baselines, and how near to what limits it.

    "of floor" is the time of its group's slower floor in parts of its own, "of a copy" its bandwidth in parts of that
    of a large copy.
    """
    medians = {(c["group"], c["name"]): c["median"] for c in cases}
    rows = []
    for case in cases:
        if not case["name"].startswith("triton"):
            continue
        row = [case["group"], case["name"], f"{case['median'] * 1e6:.1f} us"]
        for other in ("eager", "compiled"):
            theirs = medians.get((case["group"], other))
            row.append("-" if theirs is None else f"{theirs / case['median']:.2f}")
        floors = [m for (group, name), m in medians.items() if group == case["group"] and name.startswith("floor")]
        row.append(f"{max(floors) / case['median']:.0%}" if floors else "-")
        row.append(f"{case['of_copy']:.0%}" if "of_copy" in case else "-")
        row.append(str(case.get("launches", "-")))
        rows.append(row)
    return rows


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
