"""The command `merfast annotate`: a video with its predictions drawn in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merfast.engine import Engine


def add_annotate(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    engine: argparse.ArgumentParser,
    make_engine: Callable[[argparse.Namespace], Engine],
) -> None:
    """Register `merfast annotate`; `engine` has the engine's options, of which `make_engine` makes one."""
    parser = commands.add_parser(
        "annotate",
        parents=[engine],
        help="draw faces, emotions and valence into a video",
        description="Write a video with the boxes of faces, emotions and valence drawn into its pictures. Its sound "
        "and all timestamps stay; pictures are upright and H.264. What is shown at a moment is said of the window "
        "whose centre is the nearest.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="video file")
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write: .mp4, .m4v, .mov or .mkv")
    parser.add_argument("--window", type=float, default=4.0, metavar="SECONDS", help="length of a window (4)")
    parser.add_argument("--hop", type=float, default=1.0, metavar="SECONDS", help="from one window to the next (1)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_annotate, make_engine=make_engine)


def _annotate(options: argparse.Namespace) -> int:
    from merfast.annotate import annotate, check_target

    check_target(options.source, options.target)
    with options.make_engine(options) as engine, _progress(options) as progress:
        timing = {"window": options.window, "hop": options.hop}
        annotate(engine, options.source, options.target, **timing, progress=progress)
    return 0


@contextmanager
def _progress(options: argparse.Namespace) -> Iterator[Callable[[str, float], None] | None]:
    """A bar on standard error, gone when the work is done."""
    if options.quiet or not sys.stderr.isatty():
        yield None
        return
    import av
    from rich.console import Console
    from rich.progress import Progress

    try:
        with av.open(str(options.source)) as media:
            seconds = (media.duration or 0) / av.time_base or None
    except (av.FFmpegError, ValueError):
        seconds = None  # the engine will say what is wrong
    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks = {what: bar.add_task(what, total=seconds) for what in ("predicting", "drawing")}
        yield lambda what, done: bar.update(tasks[what], completed=done)
