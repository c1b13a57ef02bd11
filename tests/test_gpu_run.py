"""`make gpu` without a GPU: time limits, what counts as passed, what it writes; and its benchmarks, interpreted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts, gpu_report, gpu_run
from benchmarks.gpu_parts import Setup
from benchmarks.gpu_report import Outcome
from benchmarks.gpu_run import Part, Stage, run, run_all

ROOT = Path(__file__).parent.parent
REPORT = {
    "format": 1,
    "machine": {"gpu": "GPU", "driver": "1"},
    "versions": {"torch": "2", "triton": "3"},
    "commit": {"id": "abc", "dirty": True},
}


def soon() -> float:
    return time.monotonic() + 60


def python(code: str, limit: float = 60, **options: object) -> Part:
    return Part("a part", [sys.executable, "-c", code], limit, kind="plain", **options)  # type: ignore[arg-type]


def pytest_of(folder: Path, code: str) -> Part:
    file = folder / "test_it.py"
    file.write_text(code)
    return Part(
        "tests it", [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), "-c", os.devnull, file], 60
    )


def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pytest.importorskip("triton", reason="Triton is not installed")
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert re.search(r"gpu: no CUDA GPU is here: torch \S+ of \S+ sees none", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "expected", "result"), [(0, 0, "passed"), (3, 0, "failed"), (99, 99, "passed")])
def test_exit_status(tmp_path: Path, status: int, expected: int, result: str) -> None:
    outcome = run(python(f"print('said'); raise SystemExit({status})", expected=expected), tmp_path, soon())
    assert outcome.result == result
    assert outcome.tail == ([] if result == "passed" else ["said"])
    assert (tmp_path / "a-part.log").read_text() == "said\n"


def test_limit_ends_all_processes_of_a_part(tmp_path: Path) -> None:
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '300']); print(p.pid); time.sleep(300)"
    began = time.monotonic()
    outcome = run(python(code, limit=3), tmp_path, soon())
    assert time.monotonic() - began < 60
    assert (outcome.result, outcome.detail) == ("timed out", "after 3 s")
    status = Path(f"/proc/{int(outcome.tail[0])}/status")
    while time.monotonic() - began < 60 and status.exists() and "State:\tZ" not in status.read_text():
        time.sleep(0.1)
    assert time.monotonic() - began < 60, status.read_text()


def test_a_part_that_ignores_interrupts_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "GRACE", 0.5)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('on', flush=True); time.sleep(300)"
    began = time.monotonic()
    outcome = run(python(code, limit=3), tmp_path, soon())
    assert time.monotonic() - began < 60
    assert (outcome.result, outcome.tail) == ("timed out", ["on"])


@pytest.fixture
def ignoring_interrupts() -> Iterator[None]:
    """As in a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ignoring_interrupts")
def test_what_was_done_before_the_limit_is_kept(tmp_path: Path) -> None:
    gpu_run.heed_interrupts()
    part = pytest_of(
        tmp_path,
        "import time\n"
        "def test_a(benchmark): benchmark.pedantic(abs, (1,), rounds=2)\n"
        "def test_b(benchmark): time.sleep(300)  # as if it were compiling\n",
    )
    outcome = run(replace(part, name="benchmark it", limit=15), tmp_path, soon())
    assert (outcome.result, outcome.tests) == ("timed out", {})
    assert [(b["name"], b["rounds"]) for b in outcome.benchmarks] == [("test_a", 2)]


def test_a_command_that_is_missing_fails_alone(tmp_path: Path) -> None:
    outcome = run(Part("a part", [str(tmp_path / "nowhere")], 60, kind="plain"), tmp_path, soon())
    assert outcome.result == "failed"
    assert "No such file" in outcome.detail


def test_deadline_comes_before_the_limit(tmp_path: Path) -> None:
    outcome = run(python("import time; time.sleep(300)"), tmp_path, time.monotonic() + 1)
    assert outcome.result == "timed out"
    outcome = run(python("print(1)"), tmp_path, time.monotonic() - 1)
    assert (outcome.result, outcome.detail) == ("not run", "no time was left")


def test_pytest_is_counted(tmp_path: Path) -> None:
    code = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no data')\ndef test_c(): assert 0\n"
    outcome = run(pytest_of(tmp_path, code), tmp_path, soon())
    assert (outcome.result, outcome.tests) == ("failed", {"passed": 1, "failed": 1, "skipped": 1})
    assert outcome.detail == "exit status 1, 1 passed, 1 failed, 1 skipped"
    assert outcome.skipped == ["test_b: no data"]


def test_where_all_tests_want_what_is_missing_the_part_is_not_found(tmp_path: Path) -> None:
    code = "import pytest\nfor name in 'abc': globals()[f'test_{name}'] = lambda: pytest.skip('no TensorRT: none')\n"
    outcome = run(pytest_of(tmp_path, code), tmp_path, soon())
    assert (outcome.result, outcome.detail, outcome.tail) == ("not found", "no TensorRT: none", [])


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import a_module_that_is_nowhere\n", "exit status 2, 1 failed"),
        ("\n", "exit status 5"),
    ],
)
def test_nothing_passed_is_failure(tmp_path: Path, code: str, detail: str) -> None:
    outcome = run(pytest_of(tmp_path, code), tmp_path, soon())
    assert (outcome.result, outcome.detail) == ("failed", detail)


def test_a_failure_stops_nothing_and_everything_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Part("first", [sys.executable, "-c", "raise SystemExit('broken')"], 60, kind="plain")
    second = Part("second", [sys.executable, "-c", "print('went well')"], 60, kind="plain")
    stages = [Stage([first, Outcome("racecheck it", "not found", "compute-sanitizer")], 60, 2), Stage([second], 60)]
    monkeypatch.setattr(gpu, "missing_gpu", lambda: None)
    monkeypatch.setattr(gpu, "stages_for", lambda setup: stages)
    monkeypatch.setattr(
        gpu_report, "describe", lambda root, commit: {**REPORT, "commit": {"id": commit, "dirty": None}}
    )
    assert gpu.main(["--out", str(tmp_path / "new" / "out"), "--commit", "0123456789abcdef"]) == 1
    files = sorted((tmp_path / "new" / "out").iterdir())
    assert [f.name for f in files] == ["gpu-0123456789ab.json", "gpu-0123456789ab.log"]
    written = json.loads(files[0].read_text())
    assert written.keys() == {*REPORT, "seconds", "passed", "parts"}
    assert not written["passed"]
    assert [(p["name"], p["result"]) for p in written["parts"]] == [
        ("first", "failed"),
        ("racecheck it", "not found"),
        ("second", "passed"),
    ]
    assert written["parts"][0]["tail"] == ["broken"]
    assert "broken" in files[1].read_text()
    assert "went well" in files[1].read_text()
    table = capsys.readouterr().out.split("\n\n", 1)[1]
    assert re.search(r"^racecheck it +not found +0 +compute-sanitizer$", table, re.M)
    assert "NOT PASSED: first; NOT FOUND: racecheck it (compute-sanitizer)\n" in table


def test_passed() -> None:
    good, missing, bad = (Outcome("x", result) for result in ("passed", "not found", "not run"))
    assert gpu_report.passed([good, missing])
    assert not gpu_report.passed([good, bad])
    assert not gpu_report.passed([])


def test_ratios() -> None:
    cases = [
        {"group": "afg A", "name": "eager", "median": 8e-5},
        {"group": "afg A", "name": "compiled", "median": 4e-5},
        {"group": "afg A", "name": "floor-copy", "median": 5e-6},
        {"group": "afg A", "name": "floor-gemm", "median": 1e-5},
        {"group": "afg A", "name": "triton", "median": 2e-5, "of_copy": 0.912, "launches": 3},
        {"group": "afg B", "name": "eager", "median": 1.0},
        {"group": "afg B", "name": "triton-graph", "median": 0.5},
    ]
    assert gpu_report.ratios(cases) == [
        ["afg A", "triton", "20.0 us", "4.00", "2.00", "50%", "91%", "3"],
        ["afg B", "triton-graph", "500000.0 us", "2.00", "-", "-", "-", "-"],
    ]
    table = gpu_report.table(REPORT, [Outcome("benchmark afg", "passed", benchmarks=cases)])
    assert "commit abc with changes" in table
    assert re.search(r"^afg A +triton +20.0 us +4.00 +2.00 +50% +91% +3$", table, re.M)
    assert table.endswith("\npassed")


def test_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert gpu_report.commit_of(tmp_path) == {"id": "unknown", "dirty": None}
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "first")
    assert gpu_report.commit_of(tmp_path) == {"id": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("b")
    assert gpu_report.commit_of(tmp_path)["dirty"] is True
    # A copy inside of another project's checkout is not of that commit.
    (tmp_path / "copy").mkdir()
    assert gpu_report.commit_of(tmp_path / "copy") == {"id": "unknown", "dirty": None}


def test_a_stage_has_its_seconds_and_what_was_left_by_those_before_it(tmp_path: Path) -> None:
    def sleeper(name: str, seconds: float) -> Part:
        return Part(name, [sys.executable, "-c", f"import time; time.sleep({seconds})"], 600, kind="plain")

    # 100 s in all, of which 97 are promised to stages that come later.
    stages = [Stage([sleeper("slow", 300)], 0), Stage([sleeper("quick", 0), sleeper("too", 0)], 57, 2), Stage([], 40)]
    saved: list[list[str]] = []
    began = time.monotonic()
    run_all(stages, tmp_path, 100, lambda done: saved.append([f"{o.name} {o.result}" for o in done]))
    assert time.monotonic() - began < 60
    assert saved[0] == ["slow timed out"]
    assert saved[-1] == ["slow timed out", "quick passed", "too passed"]


def test_what_a_command_measures_is_kept(tmp_path: Path) -> None:
    code = "import json, sys; json.dump({'rate': 3}, open(sys.argv[sys.argv.index('--out') + 1], 'w'))"
    outcome = run(Part("end to end", [sys.executable, "-c", code], 60, kind="measure"), tmp_path, soon())
    assert (outcome.result, outcome.measured) == ("passed", {"rate": 3})
    outcome = run(Part("memory", [sys.executable, "-c", "pass"], 60, kind="measure"), tmp_path, soon())
    assert outcome.measured == {}


def test_headlines_are_of_parts_that_passed_and_skips_are_told() -> None:
    row = {"what": "clips", "result": "3 a second", "against": "2 x"}
    parts = [
        Outcome("benchmark a", "passed", benchmarks=[{"group": "g", "name": "n", "median": 1.0, "headline": row}]),
        Outcome("end to end", "passed", measured={"headlines": [{**row, "what": "files"}]}),
        Outcome("memory", "failed", measured={"headlines": [{**row, "what": "loop"}]}),
        Outcome("tests it", "passed", skipped=["test_x: TensorRT is not installed"]),
    ]
    table = gpu_report.table(REPORT, parts)
    assert "\nclips: 3 a second (2 x)\nfiles: 3 a second (2 x)\n" in table
    assert "loop:" not in table
    assert "\nskipped:\ntests it: test_x: TensorRT is not installed\n" in table


def test_sanitizer_is_looked_for_and_missed_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "find_sanitizer", lambda: None)
    outcomes = gpu_parts.sanitizer_parts(Setup("python", tmp_path), ["pytest"], {"afg": "check_afg.py"})
    assert [(o.name, o.result) for o in outcomes if isinstance(o, Outcome)] == [
        ("memcheck afg", "not found"),
        ("racecheck afg", "not found"),
    ]
    monkeypatch.undo()
    tool = tmp_path / "nvidia" / "tools" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.touch(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gpu_parts, "glob", lambda pattern, recursive=False: [str(tool)] if "nvidia" in pattern else [])
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert gpu_parts.find_sanitizer() == str(tool)


def test_sanitizer_looks_at_the_kernels_of_an_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "find_sanitizer", lambda: "/bin/compute-sanitizer")
    setup = Setup("python", tmp_path)
    fault, *parts = gpu_parts.sanitizer_parts(setup, ["python", "-m", "pytest"], {"decode": "check_decode.py"})
    assert isinstance(fault, Part)
    assert fault.expected == gpu_parts.FAULT
    for part, tool in zip(parts, ("memcheck", "racecheck"), strict=True):
        assert isinstance(part, Part)
        command = " ".join(part.command)
        assert f"--tool {tool} --kernel-name kns=decode_kernel python -m pytest" in command
        assert command.endswith("check_decode.py")


def test_benchmarks_interpreted(tmp_path: Path) -> None:
    """The GPU's benchmarks at toy sizes on the CPU: they run, their kernels are right, and the table has them."""
    pytest.importorskip("triton", reason="Triton is not installed")
    written = tmp_path / "it.json"
    files = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "benchmarks").glob("bench_*_triton.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *files]
    command += ["-o", "python_files=bench_*.py", "--benchmark-only", f"--benchmark-json={written}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = gpu_report.ratios(gpu_report.read_benchmarks(written))
    assert len({group for group, *_ in rows}) >= len(files)
    for _, _, _, eager, compiled, _, of_copy, launches in rows:
        assert "-" not in (eager, compiled)
        assert (of_copy == "-") == (launches != "-")
