"""Runs what needs a GPU, and writes down what came of it: tests, benchmarks, compute-sanitizer.

    python3 -m benchmarks.gpu --wheels folder --data folder --out results     # `make gpu` does this
    python3 -m benchmarks.gpu --dry-run                                       # without a GPU: could it run?

Needs torch and triton that see a GPU. Carried wheels go into a temporary folder, which is put before all others for
the parts; nothing is fetched, and nothing is installed elsewhere. A part whose packages are missing is "not found", and
says which. A part that fails or outlasts its limit does not stop the others. Writes gpu-<commit>.json, and a log with
all output. What runs and for how long: `gpu_parts.py`.

A dry run builds, collects the tests that need a GPU, and runs every benchmark on the CPU with tiny models, kernels in
Triton's interpreter. It succeeds if all parts would run.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import gpu_report
from benchmarks.gpu_parts import TOTAL, Setup, stages_for, wheels_part
from benchmarks.gpu_report import Outcome
from benchmarks.gpu_run import ROOT, heed_interrupts, run, run_all

DRY_TOTAL = 3600.0
"""Seconds for a dry run."""


def missing_gpu() -> str | None:
    """Why nothing can be run here, None where it can."""
    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            return f"{sys.executable} has no {name}"
    import torch

    if not torch.cuda.is_available():
        return f"no CUDA GPU is here: torch {torch.__version__} of {sys.executable} sees none"
    return None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
        SystemExit: they mean nothing: a folder is not there, or has no wheels, or an expression is none.
    """
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for JSON and log")
    parser.add_argument("--commit", help="what to write down where there is no git")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install into a temporary folder")
    parser.add_argument("--data", type=Path, help="folder of real clips and YuNet's file, as MERFAST_DATA")
    parser.add_argument("--only", default="", help="regular expression: parts to run")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: see whether everything would run")
    options = parser.parse_args(arguments)
    for name in ("wheels", "data"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name}: no such folder: {folder}")
    if options.wheels is not None and not list(options.wheels.glob("*.whl")):
        parser.error(f"--wheels: got {options.wheels}, expected a folder with *.whl in it")
    try:
        re.compile(options.only)
    except re.error as error:
        parser.error(f"--only: got {options.only!r}, expected a regular expression ({error})")
    return options


def carry_out(options: argparse.Namespace, folder: Path, seconds: float, save: gpu_report.Save) -> None:
    """Install wheels, then run all stages in so many seconds; `save` gets all outcomes so far, again and again."""
    began, site, first = time.monotonic(), None, list[Outcome]()
    if options.wheels is not None:
        site = folder / "site"
        first.append(run(wheels_part(sys.executable, options.wheels, site), folder, began + seconds))
        save(first)
    setup = Setup(sys.executable, folder, site, options.data, options.dry_run, options.only)
    stages = stages_for(setup)
    if options.dry_run:
        stages = [replace(stage, seconds=0.0) for stage in stages]
    run_all(stages, folder, seconds - (time.monotonic() - began), lambda done: save([*first, *done]))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if everything passed, 1 if something did not, 2 without a GPU."""
    options = parse(arguments)
    if not options.dry_run and (reason := missing_gpu()):
        print(f"gpu: {reason}", file=sys.stderr)
        return 2
    heed_interrupts()
    began = time.monotonic()
    outcomes: list[Outcome] = []
    report, stem = {}, None
    if not options.dry_run:
        report = gpu_report.describe(ROOT, options.commit)
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"gpu-{report['commit']['id'][:12]}"
        Path(f"{stem}.log").write_text("")
    with tempfile.TemporaryDirectory(prefix="merfast-gpu-") as place:
        folder = Path(place)

        def save(done: list[Outcome]) -> None:
            new = done[len(outcomes) :]
            outcomes[:] = done
            if stem is not None:
                gpu_report.write(Path(f"{stem}.json"), report, done, time.monotonic() - began)
                gpu_report.append_log(Path(f"{stem}.log"), folder, new)
            for o in new:
                result = gpu_report.in_words(o.result, options.dry_run)
                print(f"{o.name}: {result} {o.detail} ({o.seconds:.0f} s)", flush=True)
                print("".join(f"    {line}\n" for line in o.tail), end="", flush=True)

        carry_out(options, folder, DRY_TOTAL if options.dry_run else TOTAL, save)
    print()
    if options.dry_run:
        print(gpu_report.dry_table(outcomes))
        return 0 if outcomes and all(o.result == "passed" for o in outcomes) else 1
    print(gpu_report.table(report, outcomes))
    print(f"{stem}.json")
    return 0 if gpu_report.passed(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
