"""What `make gpu` runs: within its time, all kernels, nothing missed silently, carried wheels; and its dry run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_parts
from benchmarks.gpu_parts import SECONDS, TOTAL, Setup, stages_for, wheels_part
from benchmarks.gpu_report import Outcome
from benchmarks.gpu_run import GRACE, Part, run

ROOT = Path(__file__).parent.parent
PROMISED = 8 * 60
STARTING = 10  # seconds for importing torch, describing the machine and writing


@pytest.fixture
def real(tmp_path: Path) -> Setup:
    return Setup(sys.executable, tmp_path)


def names(setup: Setup) -> set[str]:
    return {part.name for stage in stages_for(setup) for part in stage.parts}


def test_everything_ends_within_what_is_promised(real: Setup) -> None:
    assert sum(SECONDS.values()) <= TOTAL
    assert TOTAL + GRACE + STARTING < PROMISED
    # With whatever benchmarks there are, each file of which has seconds of its own.
    assert SECONDS["wheels"] + SECONDS["build"] + sum(stage.seconds for stage in stages_for(real)) <= TOTAL
    sums = re.search(r"^ +(wheels .*?) = (\d+) =", str(gpu_parts.__doc__), re.M | re.S)
    assert sums
    stated = {name: float(number) for name, number in re.findall(r"([a-z][a-z ]*?) (\d+)", sums[1])}
    assert stated == SECONDS
    assert sum(stated.values()) == float(sums[2])


def test_all_kernels_have_checks_and_benchmarks(real: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = {f.stem[:-7] for f in (ROOT / "merfast" / "ops").glob("*_triton.py")}
    assert ops
    monkeypatch.setattr(gpu_parts, "find_sanitizer", lambda: "/bin/compute-sanitizer")
    found = names(real)
    for op in ops:
        assert {f"{kind} {op}" for kind in ("tests", "compile", "memcheck", "racecheck")} <= found
        assert f"benchmark {op}_triton" in found


def test_what_the_issue_asks_for_is_run_in_order_of_importance(real: Setup) -> None:
    found = [part.name for stage in stages_for(real) for part in stage.parts]
    order = [
        "prepare clips",
        "tests test_cuda",
        "end to end",
        "benchmark afg_triton",
        "benchmark encoders_cuda",
        "memory",
    ]
    assert [name for name in found if name in order] == order
    files = {f.stem[6:-5] for f in (ROOT / "benchmarks").glob("bench_*_cuda.py")}
    assert {f"benchmark {name}_cuda" for name in files} <= set(found)
    assert len(found) == len(set(found))  # logs and measurements are filed by name


def test_a_benchmark_of_its_own_name_is_picked_up(real: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bench_new_cuda.py", "bench_windows_cuda.py", "bench_new_triton.py"):
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        (tmp_path / "benchmarks" / name).touch()
    monkeypatch.setattr(gpu_parts, "ROOT", tmp_path)
    stages = stages_for(replace(real, only="benchmark|end to end|memory"))
    assert [[part.name for part in stage.parts] for stage in stages] == [
        ["benchmark windows_cuda"],
        ["end to end"],
        ["benchmark new_triton"],
        ["benchmark new_cuda"],
        ["memory"],
    ]
    assert [stage.seconds for stage in stages] == [40, 65, 45, gpu_parts.UNNAMED, 25]


def test_a_missing_package_is_named_for_each_part_that_needs_it(real: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setup, "absent", lambda self, modules: [m for m in modules if m in ("av", "soxr")])
    parts = {part.name: part for stage in stages_for(real) for part in stage.parts}
    for name in ("prepare clips", "tests test_cuda", "end to end", "memory", "benchmark encoders_cuda"):
        assert parts[name] == Outcome(name, "not found", "av, soxr")
    for name in ("tests afg", "benchmark afg_triton"):
        assert isinstance(parts[name], Part)


def test_only_what_is_asked_for(real: Setup) -> None:
    assert names(replace(real, only="^tests (afg|decode)$")) == {"tests afg", "tests decode"}


def make_wheel(folder: Path, name: str, version: str, code: str) -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", code)
        # What it requires is carried, too, or there already.
        requires = "Requires-Dist: a-package-that-is-nowhere\n"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_wheels_are_installed_beside_and_come_first_for_all_parts(real: Setup, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "platformdirs", "99.0", "CARRIED = 'yes'\n")
    make_wheel(tmp_path / "wheels", "merfast_carried", "1.0", "SAID = 'carried'\n")
    site = tmp_path / "site"
    outcome = run(replace(wheels_part(sys.executable, tmp_path / "wheels", site), limit=300), tmp_path, float("inf"))
    assert outcome.result == "passed", outcome.tail
    real = replace(real, site=site, data=tmp_path)
    assert real.absent(["merfast_carried", "merfast_not_carried"]) == ["merfast_not_carried"]
    stages = stages_for(replace(real, only="^tests afg$"))
    (part,) = stages[0].parts
    assert isinstance(part, Part)
    code = "import os, platformdirs as p, merfast_carried as m; print(p.CARRIED, m.SAID, os.environ['MERFAST_DATA'])"
    part = replace(part, command=[sys.executable, "-c", code], kind="plain")
    assert run(part, tmp_path, float("inf")).result == "passed"
    assert (tmp_path / "tests-afg.log").read_text() == f"yes carried {tmp_path}\n"


def test_wheels_that_cannot_be_installed_fail_and_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    saved: list[list[Outcome]] = []
    options = ["--dry-run", "--wheels", str(tmp_path / "wheels"), "--only", "^nothing$"]
    gpu.carry_out(gpu.parse(options), tmp_path, 600, saved.append)
    assert [(o.name, o.result) for o in saved[-1]] == [("wheels", "failed")]
    assert "broken" in "\n".join(saved[-1][0].tail)


@pytest.mark.parametrize("option", ["--wheels", "--data"])
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.main([option, str(tmp_path / "nowhere")])
    assert error.value.code == 2
    assert f"{option}: no such folder: {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_a_folder_without_wheels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--wheels", str(tmp_path)])
    assert "expected a folder with *.whl in it" in capsys.readouterr().err


def dry(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", *options]
    # Whoever tests may have a GPU.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_dry_run_collects_tests_and_interprets_benchmarks() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    done = dry("--only", r"^tests test_cuda$|(tests|sanitizer) decode$|benchmark decode_triton")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("tests test_cuda", "tests decode", "benchmark decode_triton", "sanitizer decode"):
        assert re.search(rf"^{name} +would run ", done.stdout, re.M), done.stdout
    assert done.stdout.endswith("\n\nall would run\n")


def test_dry_run_of_nothing_is_no_success() -> None:
    done = dry("--only", "^nothing$")
    assert done.returncode == 1
    assert done.stdout.endswith("NOTHING TO RUN\n")


def test_dry_run_fails_with_what_would_not_run(tmp_path: Path) -> None:
    part = Part(
        "tests it", [sys.executable, "-m", "pytest", "-q", "--collect-only", "-c", os.devnull], 60, kind="collect"
    )
    file = tmp_path / "test_it.py"
    for code, result in (("import nowhere_at_all\n", "failed"), ("", "failed"), ("def test_a(): pass\n", "passed")):
        file.write_text(code)
        command = [*part.command, "--rootdir", str(tmp_path), str(file)]
        assert run(replace(part, command=command), tmp_path, float("inf")).result == result


def test_no_part_of_a_dry_run_ends_for_want_of_time(real: Setup) -> None:
    for stage in stages_for(replace(real, dry=True)):
        for part in stage.parts:
            assert isinstance(part, Outcome) or part.limit == float("inf")
