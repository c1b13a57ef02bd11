"""Runs what needs a GPU, and writes down what came of it: tests, benchmarks, compute-sanitizer.

    python3 -m benchmarks.gpu --out results        # `make gpu` does this

Needs torch and triton that see a GPU, numpy, safetensors, pytest, pytest-benchmark, hypothesis and rich; pybind11,
setuptools and a C++ compiler if `merfast._C` is not built yet. Nothing is installed and nothing is fetched. A part that
fails or outlasts its limit does not stop the others. Writes gpu-<commit>.json, and a log with all output.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from benchmarks import gpu_report
from benchmarks.gpu_report import Outcome

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 460.0
"""Seconds for everything, below the 8 minutes that are promised."""

GRACE = 8.0
"""Seconds that an interrupted part has for writing down what it did so far."""

SIDE_BY_SIDE = 5
"""Parts of a stage that run at a time."""

FAULT = 99
"""Exit status of compute-sanitizer that has found something."""


@dataclass(frozen=True)
class Part:
    """A command with a time limit.

    Attributes:
        name: its kind and what it is about, as "tests afg".
        command: what to run, in the repository's root.
        limit: seconds.
        environment: variables set besides the present ones.
        expected: exit status of success.
        pytest: whether the command is pytest, of which at least one test has to pass.
    """

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    expected: int = 0
    pytest: bool = True


def run(part: Part, folder: Path, deadline: float) -> Outcome:
    """Run a part until it ends, or to its limit or the deadline (`time.monotonic`), where it is stopped.

    Its output goes to `<name>.log` in `folder`.
    """
    stem = part.name.replace(" ", "-")
    log, junit, bench = (folder / f"{stem}.{end}" for end in ("log", "xml", "bench.json"))
    limit = min(part.limit, deadline - time.monotonic())
    if limit <= 0:
        log.write_text("")
        return Outcome(part.name, "not run", "no time was left")
    command = [*part.command]
    if part.pytest:
        command.append(f"--junitxml={junit}")
    if part.name.startswith("benchmark"):
        command.append(f"--benchmark-json={bench}")
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
    elif part.pytest and not counts.get("passed"):
        result, detail = "failed", f"no test passed{', ' + detail if detail else ''}"
    tail = [] if result == "passed" else log.read_text(errors="replace").splitlines()[-40:]
    return Outcome(part.name, result, detail, seconds, counts, reasons, tail, gpu_report.read_benchmarks(bench))


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


def run_all(stages: Sequence[Sequence[Part | Outcome]], folder: Path, save: Callable[[list[Outcome]], None]) -> None:
    """Run stages one after the other, the parts of one side by side; `save` gets all outcomes so far after each."""
    deadline = time.monotonic() + TOTAL
    done: list[Outcome] = []
    for stage in stages:
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            done += pool.map(lambda part: part if isinstance(part, Outcome) else run(part, folder, deadline), stage)
        save(done)


def find_sanitizer() -> str | None:
    """compute-sanitizer on the PATH, in a CUDA toolkit, or in an installed package."""
    if found := shutil.which("compute-sanitizer"):
        return found
    toolkits = [os.environ.get("CUDA_HOME", ""), *sorted(glob("/usr/local/cuda*"), reverse=True)]
    places = [f"{t}/{sub}/compute-sanitizer" for t in toolkits if t for sub in ("bin", "compute-sanitizer")]
    places += [p for base in sys.path for p in glob(f"{base}/nvidia/**/compute-sanitizer", recursive=True)]
    return next((p for p in places if os.access(p, os.X_OK) and Path(p).is_file()), None)


def stages_for(python: str) -> list[list[Part | Outcome]]:
    """What `make gpu` runs."""
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-W", "default"]  # not the versions that are pinned
    checks = sorted(ROOT.glob("tests/triton/check_*.py"))
    ops = {c.stem.removeprefix("check_"): str(c.relative_to(ROOT)) for c in checks}
    # test_triton.py starts the checks in processes of their own; here they are started directly.
    marked = [
        str(f.relative_to(ROOT))
        for f in sorted(ROOT.glob("tests/test_*.py"))
        if f.name != "test_triton.py" and "mark.cuda" in f.read_text()
    ]
    cores = {"OMP_NUM_THREADS": "2"}
    build: list[Part | Outcome] = []
    if importlib.util.find_spec("merfast._C") is None:
        command = [python, "setup.py", "-q", "build_ext", "--inplace"]
        build.append(Part("build merfast._C", command, 150, pytest=False))
    tests: list[Part | Outcome] = [
        Part("tests cuda", [*pytest, "-m", "cuda", "--require-cuda", *marked], 180, cores),
        *(Part(f"tests {op}", [*pytest, file], 180, cores) for op, file in ops.items()),
    ]
    files = sorted(ROOT.glob("benchmarks/bench_*_triton.py"))
    encoders = "benchmarks/bench_encoders_cuda.py"
    flags = ["-o", "python_files=bench_*.py", "--benchmark-only", "--benchmark-columns=median,iqr,rounds"]
    alone: list[list[Part | Outcome]] = [
        [Part(f"benchmark {f.stem[6:-7]}", [*pytest, *flags, str(f.relative_to(ROOT))], 120)] for f in files
    ]
    if all(importlib.util.find_spec(name) is not None for name in ("transformers", "av")):
        alone.append([Part("benchmark encoders", [*pytest, *flags, encoders], 150, cores)])
    else:
        alone.append([Outcome("benchmark encoders", "not found", "transformers or av")])
    return [stage for stage in (build, tests, *alone, sanitizer_parts(python, pytest, ops, cores)) if stage]


def sanitizer_parts(
    python: str, pytest: Sequence[str], ops: Mapping[str, str], environment: Mapping[str, str]
) -> list[Part | Outcome]:
    """memcheck and racecheck on each op's tests of errors, and memcheck on a kernel that is wrong on purpose.

    Only merfast's kernels are looked at. Without its cache torch gives every tensor memory of its own, past whose end
    memcheck sees a write.
    """
    sanitizer = find_sanitizer()
    tools = ("memcheck", "racecheck")
    if sanitizer is None:
        return [Outcome(f"{tool} {op}", "not found", "compute-sanitizer") for tool in tools for op in ops]
    environment = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    common = [sanitizer, "--error-exitcode", str(FAULT), "--report-api-errors", "no", "--print-limit", "20"]
    common += ["--target-processes", "application-only"]
    fault = [*common, "--tool", "memcheck", "--kernel-name", "kns=fault_kernel", python, "tests/triton/fault.py"]
    parts: list[Part | Outcome] = [Part("memcheck fault", fault, 60, environment, FAULT, pytest=False)]
    for tool in tools:
        for op, file in ops.items():
            source = (ROOT / "merfast" / "ops" / f"{op}_triton.py").read_text()
            names = re.findall(r"^def (\w*kernel)\(", source, re.M)
            only = [word for name in names for word in ("--kernel-name", f"kns={name}")]
            chosen = ["-k", "test_error and not any_shape", file]
            command = [*common, "--tool", tool, *only, *pytest, *chosen]
            parts.append(Part(f"{tool} {op}", command, 100, environment))
    return parts


def missing_gpu() -> str | None:
    """Why nothing can be run here, None where it can."""
    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            return f"{sys.executable} has no {name}"
    import torch

    if not torch.cuda.is_available():
        return f"no CUDA GPU is here: torch {torch.__version__} of {sys.executable} sees none"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if everything passed, 1 if something did not, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for JSON and log")
    parser.add_argument("--commit", help="what to write down where there is no git")
    options = parser.parse_args(arguments)
    if reason := missing_gpu():
        print(f"gpu: {reason}", file=sys.stderr)
        return 2
    heed_interrupts()
    began = time.monotonic()
    report = gpu_report.describe(ROOT, options.commit)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"gpu-{report['commit']['id'][:12]}"
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:

        def save(done: list[Outcome]) -> None:
            new = done[len(outcomes) :]
            outcomes[:] = done
            gpu_report.write(Path(f"{stem}.json"), report, done, time.monotonic() - began)
            with Path(f"{stem}.log").open("a" if new != done else "w") as log:
                for outcome in new:
                    file = Path(folder) / f"{outcome.name.replace(' ', '-')}.log"
                    text = file.read_text(errors="replace") if file.exists() else ""
                    log.write(f"==== {outcome.name}: {outcome.result} {outcome.detail}\n{text}\n")
                    print(f"{outcome.name}: {outcome.result} {outcome.detail} ({outcome.seconds:.0f} s)", flush=True)
                    print("".join(f"    {line}\n" for line in outcome.tail), end="", flush=True)

        run_all(stages_for(sys.executable), Path(folder), save)
    print()
    print(gpu_report.table(report, outcomes))
    print(f"{stem}.json")
    return 0 if gpu_report.passed(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
