"""The command `merfast timeline`: windows of one item, as a table and in files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, cast

from merfast.cli_output import ANNOTATIONS, EXPLAIN, TABLES, OutputFile, add_output, check_outputs, output_of
from merfast.errors import MediaError
from merfast.types import Failure, Prediction

if TYPE_CHECKING:
    from merfast.engine import Engine


def add_timeline(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    engine: argparse.ArgumentParser,
    make_engine: Callable[[argparse.Namespace], Engine],
) -> None:
    """Register `merfast timeline`; `engine` has the engine's options, of which `make_engine` makes one."""
    parser = commands.add_parser(
        "timeline",
        parents=[engine],
        help="predict windows of one file, URL or camera",
        description="Predict overlapping windows of one file, URL or camera, as they come. Files hold a row or object "
        "for each window (with --faces all, for each face, too); .eaf (ELAN), .TextGrid (Praat) and .vtt (WebVTT) hold "
        "annotations, each of the stretch around the middle of its window. Exit status: 0 all predicted, 1 the source "
        "failed (what was predicted is still written), 2 the command is wrong, 130 after Ctrl-C.",
    )
    parser.add_argument("source", metavar="SOURCE", help="file, URL, or camera and microphone as for merfast live")
    parser.add_argument("--window", type=float, default=4.0, metavar="SECONDS", help="length of a window (4)")
    parser.add_argument("--hop", type=float, default=1.0, metavar="SECONDS", help="from one window to the next (1)")
    text = "time constant of an exponential average over the windows so far (none)"
    parser.add_argument("--smoothing", type=float, metavar="SECONDS", help=text)
    add_output(parser, (*TABLES, *ANNOTATIONS))
    parser.add_argument("--explain", action="store_true", help=EXPLAIN)
    parser.add_argument("--quiet", action="store_true", help="no table beside a file")
    parser.set_defaults(run=_timeline, make_engine=make_engine, usage_error=parser.error)


def _timeline(options: argparse.Namespace) -> int:
    from merfast.cli_table import output_console, timeline_table
    from merfast.media.source import check_source

    for option in ("quiet", "explain"):
        if getattr(options, option) and not options.output:
            options.usage_error(f"--{option} needs -o FILE")
    outputs = [output_of(name, (*TABLES, *ANNOTATIONS)) for name in options.output]
    check_outputs(outputs, [options.source])
    check_source(options.source, options.source)
    engine = options.make_engine(options)
    chosen = {name: getattr(options, name) for name in ("window", "hop", "smoothing", "explain")}
    # A generator, so that closing it ends the reading.
    windows = cast("Generator[Prediction]", engine.timeline(options.source, **chosen))
    failed = False
    with ExitStack() as stack:
        writers = [stack.enter_context(OutputFile(*output)).add for output in outputs]
        stack.enter_context(engine)
        stack.enter_context(closing(windows))
        if not options.quiet:
            writers.append(timeline_table(output_console()).add)
        for result in until_failure(options.source, windows):
            failed |= not result.ok
            for add in writers:
                add(result)
    return 1 if failed else 0


def until_failure(source: str, windows: Iterator[Prediction]) -> Iterator[Prediction | Failure]:
    """Windows of a source, and what ended them, if its media did."""
    try:
        yield from windows
    except MediaError as error:
        yield Failure(source, error)
