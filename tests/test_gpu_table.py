"""README's GPU table: which run counts, what is shown of it, and that README has what the command would write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_table
from benchmarks.gpu_report import Outcome, passed, write

ROOT = Path(__file__).parent.parent
GPU = "NVIDIA H200"


def outcomes(rate: float, **results: str) -> list[Outcome]:
    """A run's parts; `results` has names of parts, with _ for blanks, and how they ended if not well."""
    row = {"what": "files to predictions", "result": f"{rate:.1f} clips/s", "against": "12.0 x the reference"}
    kernel = {"group": "afg A", "rounds": 40, "q1": 0.0, "q3": 0.0}
    cases: list[dict[str, Any]] = [
        {**kernel, "name": "eager", "median": 8e-5},
        {**kernel, "name": "triton", "median": 2e-5, "bytes": 10, "of_copy": 0.9},
        {**kernel, "group": "afg B", "name": "triton", "median": 4e-5, "bytes": 20},
        {**kernel, "group": "afg B", "name": "eager", "median": 16e-5},
        {**kernel, "group": "afg B", "name": "triton-graph", "median": 3e-5, "bytes": 20},
    ]
    found = [
        Outcome("tests test_cuda", "passed", "3 passed"),
        Outcome("benchmark afg", "passed", benchmarks=cases),
        Outcome("end to end", "passed", measured={"clips_per_second": rate, "headlines": [row]}),
    ]
    ends = {name.replace("_", " "): result for name, result in results.items()}
    known = [
        Outcome(o.name, ends.pop(o.name, o.result), o.detail, 1.0, {}, (), (), o.benchmarks, o.measured) for o in found
    ]
    return known + [Outcome(name, result, "a reason") for name, result in ends.items()]


def write_run(
    folder: Path, name: str, parts: list[Outcome], gpu: str = GPU, started: str = "2026-11-23T10:00:00"
) -> None:
    report = {
        "format": 1,
        "started": started,
        "machine": {"gpu": gpu, "driver": "580.1", "cores": 16},
        "versions": {"python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0"},
        "commit": {"id": name * 8, "dirty": False},
    }
    write(folder / f"gpu-{name}.json", report, parts, 401.6)


def commits(folder: Path) -> list[str]:
    return [run["commit"]["id"] for run in gpu_table.best_runs(gpu_table.read_runs(folder))]


def test_readme_has_what_the_command_would_write() -> None:
    assert gpu_table.main(["--check"]) == 0, "python -m benchmarks.gpu_table has not been run"


def test_without_results_nothing_is_claimed(tmp_path: Path) -> None:
    text = gpu_table.block(gpu_table.read_runs(tmp_path / "nowhere"))
    assert "not measured" in text
    assert "|" not in text


def test_the_best_run_of_each_gpu_counts(tmp_path: Path) -> None:
    write_run(tmp_path, "slower", outcomes(90.0))
    assert commits(tmp_path) == ["slower" * 8]
    write_run(tmp_path, "faster", outcomes(120.0))
    assert commits(tmp_path) == ["faster" * 8]
    # More clips a second count for less than that everything passed, and for nothing where tests failed.
    write_run(tmp_path, "partly", outcomes(150.0, memory="failed"))
    write_run(tmp_path, "broken", outcomes(200.0, tests_test_cuda="failed"))
    write_run(tmp_path, "nottested", [o for o in outcomes(300.0) if not o.name.startswith("tests")])
    assert commits(tmp_path) == ["faster" * 8]
    write_run(tmp_path, "newer", outcomes(120.0), started="2026-11-24T10:00:00")
    write_run(tmp_path, "other", outcomes(50.0, end_to_end="not found"), gpu="NVIDIA A100")
    assert commits(tmp_path) == ["other" * 8, "newer" * 8]


def test_all_numbers_of_a_gpu_are_of_its_run(tmp_path: Path) -> None:
    write_run(tmp_path, "one", outcomes(120.0, racecheck_afg="not found", memory="timed out"))
    text = gpu_table.block(gpu_table.read_runs(tmp_path))
    lines = text.splitlines()
    assert lines[0] == gpu_table.START
    assert lines[-1] == gpu_table.END
    assert lines[1] == (
        "NVIDIA H200, driver 580.1, 16 cores; Python 3.12.3, torch 2.11.0, triton 3.6.0; commit oneoneoneone, "
        "2026-11-23, `make gpu` in 402 s:"
    )
    assert "| files to predictions | 120.0 clips/s | 12.0 x the reference |" in lines
    assert [line for line in lines if line.startswith("| afg")] == ["| afg B | 40.0 us | 4.00 | - | - | - | - |"]
    assert "Not measured, as something was missing: racecheck afg (a reason)." in lines
    assert "Not passed: memory (a reason)." in lines


def test_a_part_that_did_not_pass_has_no_number(tmp_path: Path) -> None:
    write_run(tmp_path, "one", outcomes(120.0, end_to_end="timed out", benchmark_afg="failed"))
    text = gpu_table.block(gpu_table.read_runs(tmp_path))
    assert "clips/s" not in text
    assert " us " not in text


def test_readme_is_rewritten_between_its_markers_alone(tmp_path: Path) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    write_run(results, "one", outcomes(120.0))
    shutil.copy(ROOT / "README.md", readme)
    old = readme.read_text()
    options = ["--results", str(results), "--readme", str(readme)]
    assert gpu_table.main([*options, "--check"]) == 1
    assert readme.read_text() == old
    assert gpu_table.main(options) == 0
    new = readme.read_text()
    assert "120.0 clips/s" in new
    assert gpu_table.main([*options, "--check"]) == 0
    before, after = old.split(gpu_table.START)[0], old.split(gpu_table.END)[1]
    assert new.startswith(before + gpu_table.START)
    assert new.endswith(gpu_table.END + after)


@pytest.mark.parametrize("text", ["nothing", f"{gpu_table.END}\n{gpu_table.START}", gpu_table.START * 2])
def test_a_readme_without_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected once each, in this order"):
        gpu_table.replaced(text, "new")


def test_a_file_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gpu-x.json").write_text(json.dumps({"format": 7}))
    with pytest.raises(ValueError, match=r"gpu-x\.json"):
        gpu_table.read_runs(tmp_path)


def test_recorded_runs_can_be_read() -> None:
    for run in gpu_table.read_runs(ROOT / "benchmarks" / "results"):
        assert run["passed"] == passed([Outcome(**part) for part in run["parts"]])
