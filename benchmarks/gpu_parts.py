"""What `make gpu` runs, in what order, and how long each stage may take.

The order is that of importance, after what everything needs; seconds that a stage leaves go to those after it.

    wheels 10 + build 40 + tests 95 + windows 40 + end to end 65 + kernels 45 + decode 35 + faces 20 + encoders 25
    + memory 25 + sanitizer 60 = 460 = `TOTAL`

With `GRACE` = 8 for what the last part writes when it is stopped, that is 468; 12 are left for starting and writing.
"""

from __future__ import annotations

import importlib.machinery
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path

from benchmarks.gpu_report import Outcome
from benchmarks.gpu_run import ROOT, Part, Stage

TOTAL = 460.0
"""Seconds for everything, below the 8 minutes (480) that are promised."""

SECONDS = {
    "wheels": 10.0,
    "build": 40.0,
    "tests": 95.0,
    "windows": 40.0,
    "end to end": 65.0,
    "kernels": 45.0,
    "decode": 35.0,
    "faces": 20.0,
    "encoders": 25.0,
    "memory": 25.0,
    "sanitizer": 60.0,
}
"""Stage -> seconds, in order. `bench_<stage>_cuda.py` belongs to the stage of that name, all `bench_*_triton.py` to
"kernels"."""

UNNAMED = 10.0
"""Seconds of each `bench_*_cuda.py` that has no stage here; they come before "memory". Others have to give them up."""

SIDE_BY_SIDE = 8
"""Tests that run at a time: they share the GPU, and most of their time is spent starting and compiling."""

FAULT = 99
"""Exit status of compute-sanitizer that has found something."""

MEDIA = ("av", "cv2", "soxr", "platformdirs", "safetensors", "transformers")
"""Modules that whatever reads files and runs foundation models needs."""


@dataclass(frozen=True)
class Setup:
    """How to run the parts.

    Attributes:
        python: with torch.
        folder: an empty one outside of the tree, for clips and bundles that several parts use.
        site: where carried wheels are installed, if there are any.
        data: folder of real clips and YuNet's file, if there is one.
        dry: without a GPU: collect its tests, and run all else tiny on the CPU, kernels in Triton's interpreter.
        only: regular expression of the parts to run.
    """

    python: str
    folder: Path
    site: Path | None = None
    data: Path | None = None
    dry: bool = False
    only: str = ""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables for all parts."""
        shared = {"TRITON_INTERPRET": "1"} if self.dry else {}
        if self.site is not None:
            paths = [str(self.site), os.environ.get("PYTHONPATH", "")]
            shared["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        return shared | ({"MERFAST_DATA": str(self.data.absolute())} if self.data is not None else {})

    def absent(self, names: Sequence[str]) -> list[str]:
        """Those of the modules that are not installed."""
        places = [*([str(self.site)] if self.site is not None else []), *sys.path]
        return [name for name in names if importlib.machinery.PathFinder.find_spec(name, places) is None]


@dataclass
class _Stages:
    """Collects stages: leaves out what is not wanted, and says what is not found."""

    setup: Setup
    stages: list[Stage] = field(default_factory=list)

    def add(self, name: str, parts: Sequence[tuple[Part | Outcome, Sequence[str]]], together: int = 1) -> None:
        """A stage of parts and the modules that each needs."""
        wanted: list[Part | Outcome] = []
        for part, needs in parts:
            if not re.search(self.setup.only, part.name):
                continue
            if isinstance(part, Part) and (absent := self.setup.absent(needs)):
                wanted.append(Outcome(part.name, "not found", ", ".join(absent)))
            elif isinstance(part, Part):
                # A dry run is about whether, not about how long.
                limit = math.inf if self.setup.dry else part.limit
                wanted.append(replace(part, limit=limit, environment={**self.setup.environment, **part.environment}))
            else:
                wanted.append(part)
        if wanted:
            self.stages.append(Stage(wanted, SECONDS.get(name, UNNAMED), together))


def wheels_part(python: str, wheels: Path, site: Path) -> Part:
    """Installs the wheels of a folder into another one, without network and without what they depend on."""
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command = [*pip, "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
    files = sorted(str(file.absolute()) for file in wheels.glob("*.whl"))
    return Part("wheels", [*command, *files], SECONDS["wheels"], kind="plain")


def stages_for(setup: Setup) -> list[Stage]:
    """What `make gpu` runs after the wheels are installed."""
    python, dry, out = setup.python, setup.dry, _Stages(setup)
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-p", "benchmarks.no_skips"]
    pytest += ["-W", "default"]  # not the versions that are pinned
    timed = [*pytest, "-o", "python_files=bench_*.py", "--benchmark-only", "--benchmark-columns=median,iqr,rounds"]
    timed += [f"--work={setup.folder / 'bundles'}"]
    ops = {file.stem.removeprefix("check_"): _name(file) for file in _files("tests/triton/check_*.py")}
    kernels = {file.stem[6:-7]: _name(file) for file in _files("benchmarks/bench_*_triton.py")}
    others = {file.stem[6:-5]: _name(file) for file in _files("benchmarks/bench_*_cuda.py")}
    whole = _whole(setup)
    portrait = () if setup.data is not None else ("matplotlib",)
    tools = ("triton", "pytest", "pytest_benchmark", "rich")

    if importlib.machinery.PathFinder.find_spec("merfast._C", [str(ROOT / "merfast")]) is None:
        build = [python, "setup.py", "-q", "build_ext", "--inplace"]
        part = Part("build merfast._C", build, SECONDS["build"], kind="plain")
        out.add("build", [(part, ("pybind11", "setuptools"))])
    out.add("tests", _tests(setup, pytest, ops, kernels, whole, portrait), 2 if dry else SIDE_BY_SIDE)

    def measured(stage: str) -> tuple[Part, Sequence[str]]:
        name, kind = (f"benchmark {stage}_cuda", "tests") if stage in others else (stage, "measure")
        command = [*timed, others[stage]] if stage in others else whole[stage]
        limit = SECONDS.get(stage, UNNAMED)
        part = Part(name, command, 3 * limit, kind=kind)  # type: ignore[arg-type]
        return part, (*tools, *MEDIA) if stage in others else (*MEDIA, *portrait)

    for stage in ("windows", "end to end"):
        if stage in others or stage in whole:
            out.add(stage, [measured(stage)])
    each = [(Part(f"benchmark {op}_triton", [*timed, file], SECONDS["kernels"]), tools) for op, file in kernels.items()]
    out.add("kernels", each)
    for stage in [*(s for s in SECONDS if s in others), *(s for s in others if s not in SECONDS)]:
        if stage != "windows":
            out.add(stage, [measured(stage)])
    out.add("memory", [measured("memory")])
    out.add("sanitizer", [(part, tools) for part in sanitizer_parts(setup, pytest, ops)], 2 if dry else SIDE_BY_SIDE)
    return out.stages


def _files(pattern: str) -> list[Path]:
    return sorted(ROOT.glob(pattern))


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _whole(setup: Setup) -> dict[str, list[str]]:
    """Commands of what starts from files: with large models on a GPU, dry with tiny ones on the CPU."""
    models = ["--size", "tiny", "--runtime", "torch"] if setup.dry else ["--device", "cuda", "--size", "large"]
    common = [*models, "--work", str(setup.folder / "work")]
    common += ["--data", str(setup.data.absolute())] if setup.data is not None else []
    files = [setup.python, "-m", "benchmarks.end_to_end", *common]
    files += (
        ["--clips", "3", "--passes", "1", "--turns", "1"] if setup.dry else ["--clips", "64", "--most-seconds", "20"]
    )
    memory = [setup.python, "-m", "benchmarks.memory_loop", *common]
    memory += ["--clips", "12", "--files", "2", "--most", "3", "--short"] if setup.dry else []
    clips = ["sh", "-c", f"{shlex.join(files)} --prepare && {shlex.join(memory)} --prepare"]
    bundles = [setup.python, "-m", "benchmarks.pipeline_inputs", "--work", str(setup.folder / "bundles")]
    bundles += ["--sizes", "tiny"] if setup.dry else ["--sizes", "large,base", "--device", "cuda"]
    return {"prepare clips": clips, "prepare bundles": bundles, "end to end": files, "memory": memory}


def _tests(
    setup: Setup,
    pytest: Sequence[str],
    ops: Mapping[str, str],
    kernels: Mapping[str, str],
    whole: Mapping[str, Sequence[str]],
    portrait: Sequence[str],
) -> list[tuple[Part | Outcome, Sequence[str]]]:
    """Tests marked cuda, the kernels' checks, and what benchmarks wait for: clips, a bundle, compiled kernels.

    Files of tests are processes of their own: they run side by side, and one that crashes takes no other with it.
    Running the kernels' benchmarks once, untimed, checks them at full size and fills the compilers' caches.
    """
    limit, few = SECONDS["tests"], {"OMP_NUM_THREADS": "2"}
    collect = ["--collect-only", "-q"] if setup.dry else []
    kind = "collect" if setup.dry else "tests"
    # test_triton.py starts the checks in processes of their own; here they are started directly.
    marked = [f for f in _files("tests/test_*.py") if f.name != "test_triton.py" and "mark.cuda" in f.read_text()]
    tested = ("pytest", "hypothesis", "pytest_benchmark")
    parts: list[tuple[Part | Outcome, Sequence[str]]] = [
        (Part(name, whole[name], 2 * limit, kind="plain"), (*MEDIA, *portrait))
        for name in ("prepare clips", "prepare bundles")
    ]
    for file in marked:
        command = [*pytest, *collect, "-m", "cuda", _name(file)]
        part = Part(f"tests {file.stem}", command, 2 * limit, few, kind=kind)  # type: ignore[arg-type]
        parts.append((part, (*tested, *MEDIA, "rich", "matplotlib")))
    for op, name in ops.items():
        part = Part(f"tests {op}", [*pytest, *collect, name], 2 * limit, few, kind=kind)  # type: ignore[arg-type]
        parts.append((part, (*tested, "triton")))
    if not setup.dry:  # there the benchmarks themselves do it
        once = [*pytest, "-o", "python_files=bench_*.py", "--benchmark-disable"]
        for op, name in kernels.items():
            parts.append((Part(f"compile {op}", [*once, name], 2 * limit, few), (*tested, "triton", "rich")))
    return parts


def find_sanitizer() -> str | None:
    """compute-sanitizer on the PATH, in a CUDA toolkit, or in an installed package."""
    if found := shutil.which("compute-sanitizer"):
        return found
    toolkits = [os.environ.get("CUDA_HOME", ""), *sorted(glob("/usr/local/cuda*"), reverse=True)]
    places = [f"{t}/{sub}/compute-sanitizer" for t in toolkits if t for sub in ("bin", "compute-sanitizer")]
    places += [p for base in sys.path for p in glob(f"{base}/nvidia/**/compute-sanitizer", recursive=True)]
    return next((p for p in places if os.access(p, os.X_OK) and Path(p).is_file()), None)


def sanitizer_parts(setup: Setup, pytest: Sequence[str], ops: Mapping[str, str]) -> list[Part | Outcome]:
    """memcheck and racecheck on each op's tests of errors, and memcheck on a kernel that is wrong on purpose.

    Only merfast's kernels are looked at. Without its cache torch gives every tensor memory of its own, past whose end
    memcheck sees a write. Dry, the tests are collected.
    """
    tools = ("memcheck", "racecheck")
    if setup.dry:
        collect = [*pytest, "--collect-only", "-q", "-k", "test_error and not any_shape"]
        return [Part(f"sanitizer {op}", [*collect, file], 100, kind="collect") for op, file in ops.items()]
    sanitizer = find_sanitizer()
    if sanitizer is None:
        return [Outcome(f"{tool} {op}", "not found", "compute-sanitizer") for tool in tools for op in ops]
    environment = {"OMP_NUM_THREADS": "2", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    common = [sanitizer, "--error-exitcode", str(FAULT), "--report-api-errors", "no", "--print-limit", "20"]
    common += ["--target-processes", "application-only"]
    fault = [*common, "--tool", "memcheck", "--kernel-name", "kns=fault_kernel", setup.python, "tests/triton/fault.py"]
    limit = 2 * SECONDS["sanitizer"]
    parts: list[Part | Outcome] = [Part("memcheck fault", fault, limit, environment, FAULT, kind="plain")]
    for tool in tools:
        for op, file in ops.items():
            source = (ROOT / "merfast" / "ops" / f"{op}_triton.py").read_text()
            names = re.findall(r"^def (\w*kernel)\(", source, re.M)
            only = [word for name in names for word in ("--kernel-name", f"kns={name}")]
            chosen = ["-k", "test_error and not any_shape", file]
            command = [*common, "--tool", tool, *only, *pytest, *chosen]
            parts.append(Part(f"{tool} {op}", command, limit, environment))
    return parts
