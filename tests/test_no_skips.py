"""The plugin that turns skips into failures: all kinds of skips, and those that stay."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pytest_on(folder: Path, code: str, *, plugin: bool = True, dry: bool = False) -> tuple[int, str]:
    (folder / "test_it.py").write_text(f"import pytest\n{code}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "-c", os.devnull]
    command += [*(["-p", "benchmarks.no_skips"] if plugin else []), "--rootdir", str(folder)]
    environment = {k: v for k, v in os.environ.items() if k not in ("MERFAST_DATA", "TRITON_INTERPRET")}
    environment |= {"TRITON_INTERPRET": "1"} if dry else {}
    done = subprocess.run(
        [*command, str(folder / "test_it.py")], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    return done.returncode, done.stdout


PASSES = "def test_that_passes(): pass\n"
SKIPS = {
    "in a test": "def test_a(): pytest.skip('no mood')",
    "by a mark": "@pytest.mark.skipif(True, reason='no mood')\ndef test_a(): pass",
    "in a fixture": "@pytest.fixture\ndef f(): pytest.skip('no mood')\ndef test_a(f): pass",
    "importing": "def test_a(): pytest.importorskip('nowhere_at_all', reason='no mood')",
    "of a file": "pytest.importorskip('nowhere_at_all', reason='no mood')",
    "that names what is there": "def test_a(): pytest.skip('no mood for pytest')",
}


@pytest.mark.parametrize("kind", SKIPS)
def test_a_skip_is_a_failure(tmp_path: Path, kind: str) -> None:
    status, said = pytest_on(tmp_path, f"{SKIPS[kind]}\n{PASSES}", plugin=False)
    assert status in (0, 5)  # silently: nothing was collected of a file that was left out
    assert "1 skipped" in said
    status, said = pytest_on(tmp_path, f"{SKIPS[kind]}\n{PASSES}")
    assert status in (1, 2)
    assert re.search(r"skipped, where nothing may be .*: no mood", said)
    assert " skipped in" not in said


def test_a_skip_of_what_is_optional_and_missing_stays_one(tmp_path: Path) -> None:
    code = "def test_a(): pytest.skip('needs a library: libnvcuvid-of-nowhere')\n"
    code += "def test_b(): pytest.skip('MERFAST_DATA is not set')\n"
    conftest = "import benchmarks.no_skips as n\nn.OPTIONAL = ('libnvcuvid-of-nowhere', 'MERFAST_DATA')\n"
    (tmp_path / "conftest.py").write_text(conftest)
    status, said = pytest_on(tmp_path, code + PASSES)
    assert status == 0, said
    assert "1 passed, 2 skipped" in said


def test_what_is_optional_excuses_nothing_where_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import benchmarks.no_skips as n\nn.OPTIONAL = ('json',)\n")
    status, said = pytest_on(tmp_path, f"def test_a(): pytest.skip('json is not installed')\n{PASSES}")
    assert status == 1
    assert "1 failed, 1 passed" in said


def test_a_gpu_may_be_missing_where_kernels_are_interpreted(tmp_path: Path) -> None:
    code = f"def test_a(): pytest.skip('NVDEC is part of an NVIDIA GPU')\n{PASSES}"
    assert pytest_on(tmp_path, code, dry=True)[0] == 0
    assert pytest_on(tmp_path, code, dry=False)[0] == 1


@pytest.mark.parametrize("count", [1, 2])
def test_another_gpu_may_be_missing(tmp_path: Path, count: int) -> None:
    (tmp_path / "conftest.py").write_text(f"import torch\ntorch.cuda.device_count = lambda: {count}\n")
    code = f"def test_a(): pytest.skip('needs two NVIDIA GPUs')\n{PASSES}"
    assert pytest_on(tmp_path, code)[0] == (0 if count == 1 else 1)


def test_expected_failures_stay_expected(tmp_path: Path) -> None:
    status, said = pytest_on(tmp_path, f"@pytest.mark.xfail\ndef test_a(): assert 0\n{PASSES}")
    assert status == 0, said
    assert "1 passed, 1 xfailed" in said


def test_without_a_gpu_tests_that_need_one_fail() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.no_skips"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "-m", "cuda", "tests/test_cuda.py"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 1
    assert "needs an NVIDIA GPU" in done.stdout
    assert " passed" not in done.stdout
    assert " skipped" not in done.stdout.splitlines()[-1]
