"""Running commands with time limits, one stage after the other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks import gpu_report
from benchmarks.gpu_report import Outcome

ROOT = Path(__file__).resolve().parent.parent
GRACE = 8.0
"""Seconds that an interrupted part has for writing down what it did so far."""


@dataclass(frozen=True)
class Part:
    """A command with a time limit.

    Attributes:
        name: its kind and what it is about, as "tests afg".
        command: what to run, in the repository's root.
        limit: seconds.
        environment: variables set besides the present ones.
        expected: exit status of success.
        kind: "tests" (pytest, of which at least one test has to pass), "collect" (pytest that only collects),
            "measure" (takes `--out FILE` and writes JSON there), or "plain".
    """

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    expected: int = 0
    kind: Literal["tests", "collect", "measure", "plain"] = "tests"


@dataclass(frozen=True)
class Stage:
    """Parts that run side by side, and what is written down already.

    Attributes:
        parts: in order.
        seconds: that it may take, whatever came before.
        together: parts that run at a time.
    """

    parts: Sequence[Part | Outcome]
    seconds: float
    together: int = 1


def run(part: Part, folder: Path, deadline: float) -> Outcome:
    """Run a part until it ends, or to its limit or the deadline (`time.monotonic`), where it is stopped.

    Its output goes to `<name>.log` in `folder`.
    """
    stem = part.name.replace(" ", "-")
    log, junit, bench, measured = (folder / f"{stem}.{end}" for end in ("log", "xml", "bench.json", "json"))
    limit = min(part.limit, deadline - time.monotonic())
    if limit <= 0:
        log.write_text("")
        return Outcome(part.name, "not run", "no time was left")
    command = [*part.command]
    if part.kind == "tests":
        command.append(f"--junitxml={junit}")
        if part.name.startswith("benchmark"):
            command.append(f"--benchmark-json={bench}")
    elif part.kind == "measure":
        command += ["--out", str(measured)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONUNBUFFERED": "1", **part.environment}
    began = time.monotonic()
    with log.open("wb") as out:
        try:
            # A process group of its own: compilers and workers that it started are killed with it.
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=environment, process_group=0)
        except OSError as error:
            return Outcome(part.name, "failed", str(error))
        status = _wait(process, limit)
    seconds = time.monotonic() - began
    # pytest counts a test that was interrupted as passed.
    counts, reasons = gpu_report.read_junit(junit) if status is not None else ({}, [])
    result, detail = "passed", gpu_report.counted(counts)
    if status is None:
        result, detail = "timed out", f"after {limit:.0f} s"
    elif status != part.expected:
        result, detail = "failed", f"exit status {status}{', ' + detail if detail else ''}"
    elif part.kind == "tests" and list(counts) == ["skipped"]:
        # `no_skips` lets no others stay skipped than those that want something optional.
        result, detail = "not found", "; ".join(sorted({reason.partition(": ")[2] for reason in reasons}))
    elif part.kind == "tests" and not counts.get("passed"):
        result, detail = "failed", f"no test passed{', ' + detail if detail else ''}"
    tail = [] if result in gpu_report.GOOD else log.read_text(errors="replace").splitlines()[-40:]
    found = gpu_report.read_json(measured)
    return Outcome(part.name, result, detail, seconds, counts, reasons, tail, gpu_report.read_benchmarks(bench), found)


def _wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """Exit status of a process, None if it had to be stopped; none of its group is left."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then writes what it has
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def heed_interrupts() -> None:
    """Let parts be interrupted: a shell ignores SIGINT for its background jobs, and what they start inherits that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_all(stages: Sequence[Stage], folder: Path, total: float, save: Callable[[list[Outcome]], None]) -> None:
    """Run stages one after the other in `total` seconds; `save` gets all outcomes so far after each.

    A stage has its own seconds and what those before it left: it may last until just what the later ones are promised
    is left.
    """
    began, later = time.monotonic(), sum(stage.seconds for stage in stages)
    done: list[Outcome] = []
    for stage in stages:
        later -= stage.seconds
        deadline = began + total - later
        with ThreadPoolExecutor(stage.together) as pool:
            done += pool.map(lambda p, d=deadline: p if isinstance(p, Outcome) else run(p, folder, d), stage.parts)
        save(done)
