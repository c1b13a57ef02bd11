"""The documentation: all its code runs, its site is built without a warning, and it fetches nothing from elsewhere."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from merfast import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [page for page in PAGES if "```" in page.read_text(encoding="utf-8")]

NEEDS = ("a GPU", "the network", "a camera", "a data set")
"""What a block may name as the reason why it is not run."""

BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<why>[^>]*) -->\n)?^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^(?P=indent)```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int
    why_not: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        code = re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        yield Block(found["kind"], code, text.count("\n", 0, found.start("text")) + 1, found["why"])


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Command -> the lines of output that the page shows below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip("\n").split("\n")
        yield command, shown


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `merfast` and `python` are those of this run."""
    folder = tmp_path_factory.mktemp("tools")
    for name, command in {"merfast": "-m merfast", "python": ""}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_of_a_page_runs(
    page: Path, face_clip: Path, tools: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, Python in one namespace, in a folder with `talk.mp4` and `recordings/`."""
    there = list(blocks(page))
    if any(b.kind == "python" and ".plot" in b.text for b in there):
        pytest.importorskip("matplotlib", reason="plots need matplotlib")
    if any("parquet" in b.text for b in there):
        pytest.importorskip("pyarrow", reason="tables need pandas and pyarrow: pip install 'merfast[tables]'")
    (tmp_path / "recordings").mkdir()
    for name in ("talk.mp4", "recordings/a.mp4", "recordings/b.mp4"):
        (tmp_path / name).write_bytes(face_clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in there:
        place = f"{page}:{block.line}"
        if block.why_not is not None:
            check_unrun(block, place)
        elif block.kind == "python":
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)
        elif block.kind == "console":
            for command, shown in commands(block.text):
                run(command, shown, tools, place)


def run(command: str, shown: list[str], environment: dict[str, str], place: str) -> None:
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{place}: $ {command}\n{done.stdout}{done.stderr}"
    written = [plain(line) for line in done.stdout.splitlines()]
    for line in shown:
        if line.strip() != "...":
            assert plain(line) in written, f"{place}: $ {command}: did not write {line!r}, but\n{done.stdout}"
            written = written[written.index(plain(line)) + 1 :]


def plain(line: str) -> str:
    """A line as it is compared: numbers are those of the machine."""
    return re.sub(r"\d+(\.\d+)?", "0", " ".join(line.split()))


def check_unrun(block: Block, place: str) -> None:
    """What is not run is at least Python, or a command with options that exist."""
    why = block.why_not or ""
    assert why.startswith(("needs ", "takes ")), f"{place}: not run, but for no reason that is known: {why!r}"
    assert why.startswith("takes ") or why.removeprefix("needs ") in NEEDS, f"{place}: {why!r}"
    if block.kind == "python":
        compile(block.text, place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    else:
        assert block.kind == "console", place
        for command, _ in commands(block.text):
            program, *arguments = shlex.split(command)
            if program == "merfast":
                cli._parser().parse_args(arguments)
            elif arguments[:2] == ["-m", "training"]:
                check_training(arguments[2:])
            else:
                assert program in ("pip", "make"), f"{place}: {command}"


def check_training(arguments: list[str]) -> None:
    from training.recipe import read_recipe

    recipe, *options = arguments
    assert read_recipe(ROOT / recipe).name
    assert options[::2] == ["--data", "--work", "--out"]


def test_code_that_does_not_run_is_noticed(tools: dict[str, str], tmp_path: Path) -> None:
    """The checks above fail where they should."""
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a GPU -->\n```console\n$ merfast predict a.mp4 --devise cuda\n```\n")
    with pytest.raises(SystemExit):  # argparse
        check_unrun(next(blocks(page)), "page")
    with pytest.raises(AssertionError, match="no reason"):
        check_unrun(Block("python", "1", 1, "because"), "page")
    with pytest.raises(AssertionError, match="merfast no-such"):
        run("merfast no-such", [], tools, "page")
    with pytest.raises(AssertionError, match="did not write 'two'"):
        run("echo one", ["two"], tools, "page")
    run("printf 'a\\nb 1.25\\n'", ["...", "b 7"], tools, "page")


def test_every_block_is_of_a_known_kind() -> None:
    there = [block for page in PAGES for block in blocks(page)]
    assert {block.kind for block in there} <= {"python", "console", "toml", "text"}
    assert 2 * len(there) == sum(page.read_text(encoding="utf-8").count("```") for page in PAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, face_clip: Path) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings", "matplotlib"):
        why = f"the documentation's site is NOT tested, as {module} is not installed: pip install 'merfast[docs,plots]'"
        pytest.importorskip(module, reason=why)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_the_site_has_all_pages_and_fetches_nothing(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in PAGES}
    assert pages <= {page.relative_to(site) for page in site.rglob("*.html")}
    for page in pages:
        html = (site / page).read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|video|source|link)\b[^>]*?(?:src|href)="([^"]+)"', html)
        assert fetched
        for address in fetched:
            assert "//" not in address, f"{page} fetches {address}"
            assert (site / page).parent.joinpath(address.split("#")[0]).exists(), f"{page}: no {address}"


def test_the_reference_describes_what_is_public(site: Path) -> None:
    import merfast

    html = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    for name in merfast.__all__:
        if name != "__version__":
            assert re.search(rf'id="merfast\.(\w+\.)?{name}"', html), f"{name} is missing in the reference"
    assert "max_wait_ms" in html
    assert "start," not in re.findall(r"<b>([^<]+)</b>", html)


def test_figures_are_those_of_readme(site: Path) -> None:
    page = (site / "performance.html").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| whole clip.*?\| ([^|]+) \|", readme, flags=re.MULTILINE)
    assert rows
    assert all(row in page for row in rows)
