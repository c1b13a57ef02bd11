"""Makes the pictures of this site while it is built: what the present code does with the demo clip."""

from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

import merfast
from merfast.annotate import annotate
from merfast.cli_view import terminal_picture
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
        "live.svg": terminal_picture(timeline, "talk.mp4", COLUMNS, ROWS).encode(),
        "notebook.html": whole._repr_html_().encode(),
    }
