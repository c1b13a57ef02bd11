"""The command `merfast report`: a web page of one file's timeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from merfast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator

    from merfast.engine import Engine
    from merfast.types import Failure, Prediction


def add_report(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    engine: argparse.ArgumentParser,
    make_engine: Callable[[argparse.Namespace], Engine],
) -> None:
    """Register `merfast report`; `engine` has the engine's options, of which `make_engine` makes one."""
    parser = commands.add_parser(
        "report",
        parents=[engine],
        help="make a web page with the video, its timeline and a summary",
        description="Make one web page of a video: the video, its emotions and valence over time, pictures at decisive "
        "moments, a summary, and what is to be known of the model. The page is a single file that any browser opens, "
        "without a network.",
    )
    parser.add_argument("video", type=Path, metavar="VIDEO", help="media file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the page to write (HTML)")
    text = "show these results instead of predicting: JSON, or a line of JSON for each (predict --json, live --json)"
    parser.add_argument("--results", type=Path, metavar="FILE", help=text)
    parser.add_argument("--window", type=float, default=4.0, metavar="SECONDS", help="length of a window (4)")
    parser.add_argument("--hop", type=float, default=1.0, metavar="SECONDS", help="from one window to the next (1)")
    text = "time constant of an exponential average over the windows so far (none)"
    parser.add_argument("--smoothing", type=float, metavar="SECONDS", help=text)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--link", action="store_true", help="refer to the video by its relative path, do not embed it")
    how.add_argument("--no-video", action="store_true", help="neither the video nor pictures of it")
    how.add_argument("--transcode", action="store_true", help="embed it as H.264 and AAC of at most 1280 pixels")
    text = "MB of video that may be embedded (64)"
    parser.add_argument("--limit", type=float, default=64.0, metavar="MB", help=text)
    parser.set_defaults(run=_report, make_engine=make_engine)


def _report(options: argparse.Namespace) -> int:
    from merfast import bundle as bundles
    from merfast.report import write_report
    from merfast.saved import read_results

    if not options.limit > 0:
        raise ConfigError(f"--limit: got {options.limit:g}, expected MB above 0")
    media = "link" if options.link else "none" if options.no_video else "embed"
    chosen: dict[str, Any] = {"media": media, "transcode": options.transcode, "limit": options.limit}
    if options.results is not None:
        # Only a bundle that is named: the packaged one need not be what made these.
        config = None if options.bundle is None else bundles.read_config(bundles.directory(options.bundle))
        write_report(options.output, options.video, read_results(options.results), bundle=config, **chosen)
    else:
        engine = options.make_engine(options)
        how = {"window": options.window, "hop": options.hop, "smoothing": options.smoothing, "explain": True}
        # A generator, so that closing it ends the reading.
        windows = cast("Generator[Prediction]", engine.timeline(options.video, **how))
        with engine, closing(windows):
            write_report(options.output, options.video, _shown(windows), bundle=engine.bundle.config, **chosen)
    print(f"{options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")
    return 0


def _shown(results: Iterable[Prediction]) -> Iterator[Prediction | Failure]:
    """The results, with how far they are on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console

    from merfast.report_card import clock

    with Console(stderr=True).status("predicting") as status:
        for result in results:
            status.update(f"predicting: {clock(result.end)}")
            yield result
