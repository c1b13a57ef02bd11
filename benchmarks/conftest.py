"""Media for the benchmarks, and a table of ratios at the end: every case against its group's baseline."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table

YUNET = "face_detection_yunet_2023mar.onnx"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--work", type=Path, help="folder for bundles of random weights, which are kept and taken again")


@pytest.fixture(scope="session")
def random_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Folder of a bundle of random weights, by size and device: `pipeline_inputs.kept_bundle`."""
    from benchmarks.pipeline_inputs import kept_bundle

    work = request.config.getoption("--work") or tmp_path_factory.mktemp("bundles")
    return lambda size, device: kept_bundle(work, size, device)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real talking face where MERFAST_DATA has one (6.1 s, 700 x 700, H.264), else the demo clip of that length."""
    data = os.environ.get("MERFAST_DATA")
    if data:
        return Path(data) / "clips" / "talking_1.mp4"
    from merfast.demo import make_clip

    return make_clip(tmp_path_factory.mktemp("bench") / "demo.mp4", seconds=6.1)


@pytest.fixture(scope="session")
def yunet_model() -> Path | None:
    """YuNet's file, from MERFAST_DATA or the cache."""
    from merfast.media import yunet

    data = os.environ.get("MERFAST_DATA")
    return Path(data) / "models" / YUNET if data else yunet.cached()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Median of each case, and how many times faster than the group's baseline it is, within this run.

    The baseline is the case whose `extra_info["baseline"]` is true, or else the slowest.
    """
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[Any]] = {}
    for bench in session.benchmarks if session else ():
        groups.setdefault(bench.group or bench.fullname, []).append(bench)
    if not groups:
        return
    table = Table("case", "median", "quartiles", "times faster", title="ratios within this run", title_justify="left")
    for group, cases in groups.items():
        marked = [c for c in cases if c.extra_info.get("baseline")]
        baseline = marked[0] if marked else max(cases, key=lambda c: c.stats.median)
        table.add_section()
        table.add_row(f"[bold]{escape(group)}[/bold]")
        for case in sorted(cases, key=lambda c: c.stats.median):
            ratio = "baseline" if case is baseline else f"{baseline.stats.median / case.stats.median:.2f} x"
            note = f" ({case.extra_info['note']})" if "note" in case.extra_info else ""
            spread = f"{_time(case.stats.q1)} .. {_time(case.stats.q3)}"
            table.add_row(escape(f"  {case.name}{note}"), _time(case.stats.median), spread, ratio)
    terminalreporter.write_line("")
    Console(file=terminalreporter._tw._file, width=120).print(table)


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError
