"""Triton kernels, in processes of their own: interpreted on the CPU, compiled ahead of time, and run on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "triton"
OPS = sorted(file.stem.removeprefix("check_") for file in FOLDER.glob("check_*.py"))

pytest.importorskip("triton", reason="Triton is not installed")


def run(command: list[str], interpret: bool) -> str:
    """Output of a Python process; fails the test, with that output, if the process fails."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=FOLDER.parent.parent
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


def check(op: str, interpret: bool) -> None:
    out = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/triton/check_{op}.py"], interpret)
    assert " passed" in out, out
    assert "skipped" not in out, out


@pytest.mark.parametrize("op", OPS)
def test_interpreted(op: str) -> None:
    check(op, interpret=True)


@pytest.mark.parametrize("op", OPS)
def test_ahead_of_time(op: str) -> None:
    print(run(["tests/triton/aot.py", op], interpret=False))


@pytest.mark.cuda
@pytest.mark.parametrize("op", OPS)
def test_on_a_gpu(op: str) -> None:
    check(op, interpret=False)
