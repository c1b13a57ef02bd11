"""What researchers run today against `Engine.predict`: same weights, same clips, each side in a process of its own.

    python -m benchmarks.pipeline                                   # HuBERT-base and ViT-base on the CPU
    python -m benchmarks.pipeline --device cuda --size large --precisions fp32,bf16

The reference is transformers, fp32, eager, one clip at a time, all hidden states kept and gathered by attention, then
fusion in plain torch. Weights are random, of the real sizes; clips have 2 to 8 s and 16 crops. The processes live side
by side and take turns, so that a machine that gets slower gets slower for all; idle ones only wait. Networks are
compiled beforehand, in other processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import pipeline_floors, pipeline_inputs
from benchmarks.gpu_report import commit_of

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "reference"
SPREAD = 0.2
"""Least range that some class's probability must have over the clips: else differences mean nothing."""


class Worker:
    """A side in its process.

    Attributes:
        name: of the side.
        anonymous: most memory of its own that was seen, in MiB; sampled, so it may have been more for a moment.
    """

    def __init__(self, name: str, options: Sequence[str], module: str = "benchmarks.pipeline_sides") -> None:
        self.name = name
        self.anonymous = 0.0
        command = [sys.executable, "-m", module, *options]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    @cached_property
    def started(self) -> dict[str, Any]:
        """What it said when it was ready; waits for that."""
        return self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        status = self._process.wait(30)
        self._process.stdout.close()
        self._sampler.join()
        if status:
            raise RuntimeError(f"{self.name}: ended with status {self._process.returncode}")

    def ask(self, request: str) -> dict[str, Any]:
        """Its answer to a request, once it is ready."""
        _ = self.started
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _sample(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        while self._process.poll() is None:
            for line in status.read_text().splitlines() if status.exists() else ():
                if line.startswith("RssAnon:"):
                    self.anonymous = max(self.anonymous, int(line.split()[1]) / 1024)
            time.sleep(0.05)


@dataclass
class Result:
    """What was measured of a side: times in seconds, memory in MiB."""

    name: str
    started: Mapping[str, Any]
    first: float
    second: float
    all: list[float] = field(default_factory=list)
    parts: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    posterior: list[list[float]] = field(default_factory=list)
    valence: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.all)


def prepare(work: Path, size: str, clips: int, seed: int) -> None:
    """Bundle and clips in a folder, unless they are there."""
    if not (work / "bundle").exists():
        pipeline_inputs.make_bundle(work / "bundle", size, seed)
    pipeline_inputs.write_clips(work / "clips", clips, seed)
    pipeline_inputs.write_clips(work / "first", 1, seed, seconds=4.0)


def measure(work: Path, options: argparse.Namespace) -> list[Result]:
    """Start all sides, one after the other, and let them take turns."""
    common = ["--work", str(work), "--clips", str(options.clips), "--device", options.device]
    common += ["--threads", str(options.threads)]
    sides = {REFERENCE: [REFERENCE, *common]}
    for precision in options.precisions.split(","):
        sides[precision] = ["engine", *common, "--precision", precision, "--runtime", options.runtime]
    for name, command in sides.items():
        if name != REFERENCE:  # compiles what is not yet in the bundle's cache
            say(f"{name}: compiling, if need be")
            with Worker(name, command) as worker:
                _ = worker.started
    workers, results = [], []
    with ExitStack() as stack:
        for name, command in sides.items():
            say(f"{name}: start and first prediction")
            worker = stack.enter_context(Worker(name, command))
            workers.append(worker)
            first, second = worker.ask("one"), worker.ask("one")
            results.append(Result(name, worker.started, first["seconds"], second["seconds"]))
        for turn in range(options.repetitions):
            for worker, result in zip(workers, results, strict=True):
                answer = worker.ask("all")
                say(f"{worker.name}: {options.clips} clips in {answer['seconds']:.2f} s ({turn + 1})")
                result.all.append(answer["seconds"])
                result.posterior, result.valence = answer["posterior"], answer["valence"]
        for worker, result in zip(workers, results, strict=True):
            result.memory = worker.ask("memory") | {"RssAnon at most": worker.anonymous}
        for worker, result in zip(workers, results, strict=True):
            answer = worker.ask("parts")
            result.parts = answer["parts"] | {"all": answer["seconds"]}
    return results


def compare(results: Sequence[Result], seconds: float, clips: int) -> list[dict[str, Any]]:
    """A row of the table for each side, by name of the column.

    Raises:
        ValueError: the reference says nearly the same of all clips, or something is NaN.
    """
    reference = results[0]
    exact = np.array(reference.posterior)
    spread = float(np.ptp(exact, axis=0).max())
    if not spread > SPREAD:
        raise ValueError(f"posteriors: got a range of {spread:.3f} over the clips, expected above {SPREAD}")
    rows = []
    for r in results:
        posterior, valence = np.array(r.posterior), np.array(r.valence)
        if not (np.isfinite(posterior).all() and np.isfinite(valence).all()):
            raise ValueError(f"{r.name}: predictions of NaN")
        row = {
            "side": r.name,
            "seconds": r.median,
            "quickest": min(r.all),
            "slowest": max(r.all),
            "clips_per_second": clips / r.median,
            "times_real_time": seconds / r.median,
            "throughput": reference.median / r.median,
            "first_minus_next": r.first - r.second,
            "first": r.first,
            "next": r.second,
            "start": r.started["start"],
            "import": r.started["import"],
            "posterior_difference": float(np.abs(posterior - exact).max()),
            "valence_difference": float(np.abs(valence - np.array(reference.valence)).max()),
            "same_emotion": float((posterior.argmax(1) == exact.argmax(1)).mean()),
            "peak_mib": r.memory["VmHWM"],
            "peak_own_mib": r.memory["RssAnon at most"],
            "peak_ratio": r.memory["VmHWM"] / reference.memory["VmHWM"],
            "gpu_peak_mib": r.memory.get("gpu"),
            "parts": dict(r.parts),
            "all_seconds": r.all,
            "plan": r.started["plan"],
        }
        rows.append(row)
    rows[0]["posterior_range"] = spread
    return rows


def table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The rows for reading."""
    out = Table(title=title, title_justify="left")
    for name in ("", "all clips", "real time", "throughput", "dp", "dv", "first - next", "start", "peak", "peak ratio"):
        out.add_column(name, justify="left" if not name else "right")
    for r in rows:
        out.add_row(
            r["side"],
            f"{r['seconds']:.2f} s ({r['quickest']:.2f} .. {r['slowest']:.2f})",
            f"{r['times_real_time']:.1f} x",
            f"{r['throughput']:.2f} x",
            f"{r['posterior_difference']:.1e}",
            f"{r['valence_difference']:.1e}",
            f"{r['first_minus_next']:+.2f} s",
            f"{r['import']:.1f} + {r['start']:.1f} s",
            f"{r['peak_mib']:.0f} MiB" + (f", GPU {r['gpu_peak_mib']:.0f}" if r["gpu_peak_mib"] else ""),
            f"{r['peak_ratio']:.2f}",
        )
    return out


def where(row: Mapping[str, Any]) -> str:
    """A line on where a side's time goes, from a run with clocks in it."""
    parts = dict(row["parts"])
    whole = parts.pop("all")
    encoders = [name for name in parts if " " not in name]
    shown = [
        f"{name} {parts[name]:.2f} s"
        + (f" (its network {parts[f'{name} network']:.2f} s)" if f"{name} network" in parts else "")
        for name in encoders
    ]
    return f"{row['side']}: {', '.join(shown)}, all else {whole - sum(parts[n] for n in encoders):.2f} s"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", default="base", choices=list(pipeline_inputs.SIZES), help="of both models")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--precisions", default="fp32,bf16,int8", help="of the engine, with commas")
    parser.add_argument("--runtime", default="auto", help="of the engine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of all clips; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for bundle and clips, which are kept and taken again")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        say("making bundle and clips")
        prepare(work, options.size, options.clips, options.seed)
        clips = pipeline_inputs.read_clips(work / "clips", options.clips)
        results = measure(work, options)
    seconds = sum(c.seconds for c in clips)
    rows = compare(results, seconds, options.clips)
    floors = pipeline_floors.floors(options.size, [len(c.audio) for c in clips], options.device, options.threads)
    machine = pipeline_floors.machine(options.device)
    title = f"{options.clips} clips, {seconds:.0f} s, {options.size} models, {machine['processor']}"
    Console(width=150).print(table(rows, title))
    print(f"probabilities range over {rows[0]['posterior_range']:.2f}; dp, dv: largest difference from the reference")
    for row in rows:
        print(where(row))
    for line in floors["lines"]:
        print(line)
    if options.out is not None:
        kept = {name: str(value) for name, value in vars(options).items() if name not in ("out", "work")}
        report = {"commit": commit_of(ROOT), "machine": machine, "options": kept, "rows": rows, "floors": floors}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
