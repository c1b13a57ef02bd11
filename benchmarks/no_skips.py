"""A pytest plugin that turns skips into failures: `python -m pytest -m cuda -p benchmarks.no_skips`.

Where the hardware is there, a test that skips itself, or a file that is left out when tests are collected, would pass
for tested. Skips stay skips only if their reason names something of `OPTIONAL` that is really not here.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Generator

import pytest

SEVERAL = "two NVIDIA GPUs"
OPTIONAL = ("tensorrt", "PyNvVideoCodec", "torchcodec", "decord", "libnvcuvid", "MERFAST_DATA", "NVIDIA GPU", SEVERAL)
"""What a user may choose to have: packages, the driver's library for its decode engines, a folder of real clips, and
another GPU.

With TRITON_INTERPRET=1 there is no GPU by choice.
"""


def absent(name: str) -> bool:
    """Whether something of `OPTIONAL` cannot be loaded here."""
    if name == "NVIDIA GPU":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if name == SEVERAL:
        import torch

        return torch.cuda.device_count() < 2
    if name == "MERFAST_DATA":
        return name not in os.environ
    try:
        if name.startswith("lib"):
            ctypes.CDLL(f"{name}.so.1")
        else:
            importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        return True
    return False


def _check(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):  # an expected failure counts as skipped, too
        return
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    why = why.removeprefix("Skipped: ")
    if not any(name.lower() in why.lower() and absent(name) for name in OPTIONAL):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be but for want of {', '.join(OPTIONAL)}: {why}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _check(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _check(report)
    return report
