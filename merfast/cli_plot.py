"""The command `merfast plot`: a timeline as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from merfast.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from merfast.engine import Engine
    from merfast.types import Failure, Prediction

FORMATS = (".png", ".svg", ".pdf")

_DPI = 100  # pixels of a PNG to an inch, in which text is 8 to 9 points


def add_plot(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    engine: argparse.ArgumentParser,
    make_engine: Callable[[argparse.Namespace], Engine],
) -> None:
    """Register `merfast plot`; `engine` has the engine's options, of which `make_engine` makes one."""
    parser = commands.add_parser(
        "plot",
        parents=[engine],
        help="draw a timeline",
        description="Draw emotions, valence, and what there was of voice and face over time. Needs matplotlib: "
        "pip install 'merfast[plots]'.",
    )
    parser.add_argument("source", metavar="SOURCE", help="file or URL; or results in JSON (.json, or .jsonl by line)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="PNG, SVG or PDF, by its name")
    parser.add_argument("--window", type=float, default=4.0, metavar="SECONDS", help="length of a window (4)")
    parser.add_argument("--hop", type=float, default=1.0, metavar="SECONDS", help="from one window to the next (1)")
    parser.add_argument("--explain", action="store_true", help="show which moments of voice and face were looked at")
    parser.add_argument("--track", type=int, metavar="N", help="the face to show, with --faces all")
    parser.add_argument("--item", metavar="NAME", help="the one to show, where results are of several")
    parser.add_argument("--width", type=int, default=960, metavar="PIXELS", help="of the picture, 400 to 8000 (960)")
    parser.set_defaults(run=_plot, usage_error=parser.error, make_engine=make_engine)


def _plot(options: argparse.Namespace) -> int:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError(f"plots need matplotlib ({error}): pip install 'merfast[plots]'") from error
    from merfast.plots import plot_timeline

    output: Path = options.output
    if output.suffix.lower() not in FORMATS:
        options.usage_error(f"--output: got {output.suffix or 'no suffix'!r}, expected one of {', '.join(FORMATS)}")
    if not 400 <= options.width <= 8000:
        options.usage_error(f"--width: got {options.width}, expected 400 to 8000")
    if not output.parent.is_dir() or output.is_dir():
        raise ConfigError(f"--output {output}: cannot be written there, expected a file in an existing folder")
    results = list(_results(options))
    wide = options.width / _DPI
    figure = Figure((wide, max(3.2, wide / 2)), dpi=_DPI, facecolor="white")
    plot_timeline(results, track=options.track, figure=figure)
    try:
        figure.savefig(output)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror or error})") from error
    return 0


def _results(options: argparse.Namespace) -> Iterable[Prediction | Failure]:
    from merfast.saved import SUFFIXES, read_results

    if Path(options.source).suffix.lower() not in SUFFIXES:
        more = {"explain": True} if options.explain else {}
        engine = options.make_engine(options)
        return engine.timeline(options.source, window=options.window, hop=options.hop, **more)  # type: ignore[no-any-return]
    results = read_results(options.source)
    names = list(dict.fromkeys(r.source for r in results))
    if options.item is None and len(names) > 1:
        raise ConfigError(f"{options.source}: holds results of {len(names)} items, expected --item with one of them")
    if options.item not in (None, *names):
        raise ConfigError(f"--item: got {options.item!r}, expected one of {', '.join(names[:8])}")
    return [r for r in results if options.item in (None, r.source)]
