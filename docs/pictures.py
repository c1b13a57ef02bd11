"""Makes the pictures of this site while it is built: what the present code does with the demo clip."""

from __future__ import annotations

import io
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

import merfast
from merfast.annotate import annotate
from merfast.cli_view import LiveView
from merfast.demo import make_clip
from merfast.plots import plot_timeline
from merfast.report import write_report
from merfast.types import combine

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

SECONDS = 16.0
"""Length of the demo clip here."""

COLUMNS, ROWS = 100, 30
"""Of the terminal in the picture of `merfast live`."""

_HERE = "<!-- a prediction in a notebook -->"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for name, content in pictures().items():
        files.append(File.generated(config, f"pictures/{name}", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    return markdown.replace(_HERE, f'<div class="notebook">{pictures()["notebook.html"].decode()}</div>')


@cache
def pictures() -> dict[str, bytes]:
    """File name -> content."""
    with tempfile.TemporaryDirectory(prefix="merfast-docs-") as folder, merfast.Engine(detector="haar") as engine:
        clip = make_clip(Path(folder, "talk.mp4"), SECONDS)
        timeline = list(engine.timeline(clip, window=2.0, hop=0.5, explain=True))
        annotate(engine, clip, Path(folder, "annotated.mp4"), window=2.0, hop=0.5)
        write_report(Path(folder, "report.html"), clip, timeline, bundle=engine.bundle.config)
        out = {name: Path(folder, name).read_bytes() for name in ("annotated.mp4", "report.html")}
    drawn = io.BytesIO()
    plot_timeline(timeline).savefig(drawn, format="png", dpi=150)
    windows = tuple(timeline[::4])  # those that do not overlap
    whole = combine(windows, windows=windows, source="talk.mp4")
    return out | {
        "plot.png": drawn.getvalue(),
        "live.svg": live_picture(timeline).encode(),
        "notebook.html": whole._repr_html_().encode(),
    }


def live_picture(timeline: list[merfast.Prediction]) -> str:
    """What `merfast live` shows at the end of a timeline, as SVG."""
    from rich.console import Console, Group

    view = LiveView("talk.mp4")
    for p in timeline:
        view.add(p, 0.02, p.end)
    nowhere = io.StringIO()
    console = Console(record=True, width=COLUMNS, height=ROWS, color_system="truecolor", file=nowhere)
    console.print(Group(*view.lines(COLUMNS, ROWS, timeline[-1].end + 5, "14:05:33")))
    svg = console.export_svg(title="merfast live talk.mp4")
    # rich's own font comes from elsewhere.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S).replace("Fira Code", "monospace")
