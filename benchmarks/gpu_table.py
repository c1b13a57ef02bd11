"""README's table of what was measured on GPUs, from what `make gpu` has written.

    python -m benchmarks.gpu_table            # writes it into README.md; --check only looks

Each GPU has one run, all of whose numbers are shown: of the runs in `benchmarks/results/gpu-*.json` whose tests all
passed, those that passed altogether come first, then those with the most clips a second end to end, then the newest.
A number is shown only if its part passed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_report import KERNEL_COLUMNS, cases_of, headlines, ratios

ROOT = Path(__file__).resolve().parent.parent
START = "<!-- made by `python -m benchmarks.gpu_table`: do not edit -->"
END = "<!-- end of what it makes -->"

Run = Mapping[str, Any]


def read_runs(folder: Path) -> list[Run]:
    """The runs in a folder.

    Raises:
        ValueError: a file is not what `make gpu` writes.
    """
    runs: list[Run] = []
    for file in sorted(folder.glob("gpu-*.json")):
        run = json.loads(file.read_text())
        if not isinstance(run, dict) or run.get("format") != 1:
            raise ValueError(f"{file}: got something else, expected what `make gpu` writes, format 1")
        runs.append(run)
    return runs


def clips_per_second(run: Run) -> float:
    """End to end, from files; 0 where that was not measured or did not pass."""
    rates = [
        float(part["measured"].get("clips_per_second", 0.0))
        for part in run["parts"]
        if part["name"] == "end to end" and part["result"] == "passed"
    ]
    return max(rates, default=0.0)


def is_tested(run: Run) -> bool:
    """Whether tests ran, and all that ran passed."""
    tests = [part["result"] for part in run["parts"] if part["name"].startswith("tests ")]
    return "passed" in tests and all(result in ("passed", "not found") for result in tests)


def best_runs(runs: Iterable[Run]) -> list[Run]:
    """The run that counts of each GPU, by the GPU's name."""
    best: dict[str, Run] = {}
    for run in sorted(runs, key=lambda r: (r["passed"], clips_per_second(r), r["started"])):
        if is_tested(run):
            best[run["machine"]["gpu"]] = run
    return [best[name] for name in sorted(best)]


def kernel_rows(parts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of each kernel's benchmark the case that moves most bytes, without CUDA graphs; rows as `ratios` gives them."""
    rows = []
    for part in parts:
        cases = [c for c in part["benchmarks"] if c["name"] == "triton"]
        if cases and part["result"] == "passed":
            largest = max(cases, key=lambda c: c.get("bytes", 0))
            rows += [row for row in ratios(cases_of([part])) if row[:2] == [largest["group"], "triton"]]
    return rows


def section(run: Run) -> list[str]:
    """Lines of Markdown for one GPU."""
    machine, versions, commit = run["machine"], run["versions"], run["commit"]
    changed = " with changes" if commit["dirty"] else ""
    lines = [
        f"{machine['gpu']}, driver {machine['driver']}, {machine['cores']} cores; Python {versions['python']}, torch "
        f"{versions['torch']}, triton {versions['triton']}; commit {commit['id'][:12]}{changed}, "
        f"{run['started'][:10]}, `make gpu` in {run['seconds']:.0f} s:",
        "",
    ]
    if rows := headlines(run["parts"]):
        lines += ["| what | result | against |", "| --- | --- | --- |"]
        lines += [_row([row["what"], row["result"], row["against"]]) for row in rows]
        lines.append("")
    if kernels := kernel_rows(run["parts"]):
        lines += [_row(["kernel, largest case", *KERNEL_COLUMNS[2:]]), _row(["---"] * (len(KERNEL_COLUMNS) - 1))]
        lines += [_row([row[0], *row[2:]]) for row in kernels]
        lines.append("")
    for result, word in (("not found", "Not measured, as something was missing"), (None, "Not passed")):
        names = [
            f"{part['name']} ({part['detail']})" if part["detail"] else part["name"]
            for part in run["parts"]
            if (part["result"] == result if result else part["result"] not in ("passed", "not found"))
        ]
        if names:
            lines += [f"{word}: {', '.join(names)}.", ""]
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def block(runs: Iterable[Run]) -> str:
    """What stands in README from the one marker to the other, both included."""
    lines: list[str] = []
    for run in best_runs(runs):
        lines += section(run)
    lines = lines or ["On a GPU: not measured. `make gpu` measures there, and this table comes of what it writes.", ""]
    return "\n".join([START, *lines, END])


def replaced(text: str, new: str) -> str:
    """README with another block.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"README: expected once each, in this order: {START} and {END}")
    return text[: text.index(START)] + new + text[text.index(END) + len(END) :]


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or with --check 1 if README has something else."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_table", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of gpu-*.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if README is not as it says")
    options = parser.parse_args(arguments)
    old = options.readme.read_text()
    new = replaced(old, block(read_runs(options.results)))
    if options.check:
        return 0 if new == old else 1
    if new != old:
        options.readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
