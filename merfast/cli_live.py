"""The command `merfast live`: windows of a camera, stream or file as they come, in a terminal view or one line each."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, cast

from merfast.types import EMOTIONS, Prediction

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from merfast.engine import Engine

FEW_CORES = 4
"""Up to so many cores torch runs in one thread: others would spin, while decoding and faces need the cores."""

PLEASANT = 3.0
"""Valence at the top of the sparkline; its negative is at the bottom."""

PIPE_WIDTH = 80
"""Columns where the output is not a terminal and `COLUMNS` does not say."""

HEADER_EVERY = 20
"""Lines after which the header is repeated, as it has gone off many a screen by then."""

_CLOCK, _EMOTION, _VALENCE, _BAR, _USED = 8, 12, 5, 3, 10  # widths of columns
_LEAST, _MOST = 8, 40  # of the sparkline
_PLAIN = "_.-=+*#@"  # where block characters cannot be written


def add_live(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    engine: argparse.ArgumentParser,
    make_engine: Callable[[argparse.Namespace], Engine],
) -> None:
    """Register `merfast live`; `engine` has the engine's options, of which `make_engine` makes one."""
    parser = commands.add_parser(
        "live",
        parents=[engine],
        help="watch a camera, stream or file",
        description="Predict windows of a camera, a live stream or a file as they come. A terminal shows the present "
        "emotion, a bar for each probability, valence, the last minute, and a line of summary at the end. Elsewhere, "
        "and with --lines, there is a line for each window: its end, emotion, valence and a sparkline of the valence "
        "so far, a bar for each probability, and what was used. Ctrl-C ends it, with exit status 130.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="camera (/dev/video0, or camera:0), microphone (alsa:hw:0), both (/dev/video0+alsa:hw:0), URL (HTTP, HLS, "
        "RTSP, ...), or file",
    )
    parser.add_argument("--window", type=float, default=4.0, metavar="SECONDS", help="length of a window (4)")
    parser.add_argument("--hop", type=float, default=1.0, metavar="SECONDS", help="from one window to the next (1)")
    text = "time constant of an exponential average over the windows so far (none)"
    parser.add_argument("--smoothing", type=float, metavar="SECONDS", help=text)
    parser.add_argument("--fast", action="store_true", help="read a file as fast as it goes, not as it would play")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="write a line of JSON for each window")
    form.add_argument("--lines", action="store_true", help="write a line for each window in a terminal, too")
    parser.set_defaults(run=_live, make_engine=make_engine)


def _live(options: argparse.Namespace) -> int:
    from merfast.media.source import check_source

    check_source(options.source, options.source)
    import torch

    if options.threads is None and (os.cpu_count() or 1) <= FEW_CORES:
        torch.set_num_threads(1)
    engine = options.make_engine(options)
    chosen = {"window": options.window, "hop": options.hop, "smoothing": options.smoothing}
    # A generator, so that closing it ends the reading.
    windows = cast("Generator[Prediction]", engine.timeline(options.source, **chosen))
    with engine, closing(windows), _shown(options) as show:
        for prediction in windows if options.fast else _paced(windows, options.source):
            show(prediction)
    return 0


def _paced(windows: Iterator[Prediction], source: str) -> Iterator[Prediction]:
    """Windows of a file when they would end if it played, from now on; live sources have a pace of their own."""
    if not os.path.isfile(source):
        yield from windows
        return
    started = time.monotonic()
    for prediction in windows:
        time.sleep(max(0.0, started + prediction.end - time.monotonic()))
        yield prediction


def _json_line(prediction: Prediction) -> None:
    print(json.dumps(prediction.to_dict(), allow_nan=False), flush=True)


def _shown(options: argparse.Namespace) -> AbstractContextManager[Callable[[Prediction], None]]:
    """What windows are handed to, while it is entered."""
    if options.json:
        return nullcontext(_json_line)
    if options.lines or not sys.stdout.isatty():
        return nullcontext(_lines(options.source))
    from merfast.cli_screen import LiveScreen, Pace, can_show

    if not can_show():
        return nullcontext(_lines(options.source))
    pace: Pace = "fast" if options.fast else "file" if os.path.isfile(options.source) else "live"
    return LiveScreen(options.source, pace)


def _lines(source: str) -> Callable[[Prediction], None]:
    """What prints a window on standard output, a terminal or not."""
    from merfast.cli_table import output_console

    console = output_console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return LiveLines(console, source).add


class LiveLines:
    """Prints a line for each window, fitted to the width of the console.

    Args:
        console: where to. Lines are only ever added, so that any terminal will do.
        source: what they are of.
    """

    def __init__(self, console: Console, source: str) -> None:
        from merfast.cli_table import writes_blocks

        self._console, self._source = console, source
        self._blocks = writes_blocks(console)
        self._recent: deque[float] = deque(maxlen=_MOST)  # valence
        self._printed = 0

    def add(self, p: Prediction) -> None:
        """Print one window, and its other faces."""
        from rich.text import Text

        from merfast.cli_table import clock_text, printable

        if not self._printed:
            self._console.print(Text(printable(self._source), "bold"))
        if self._printed % HEADER_EVERY == 0:
            self._console.print(self._header())
        self._recent.append(p.valence)
        self._console.print(self._line(clock_text(p.end), p, self._spark()))
        for other in p.others:
            self._console.print(self._line(f"face {other.track}", other, ""))
        for warning in p.warnings:
            self._console.print(Text(f"  warning: {printable(warning)}", "dim"))
        self._printed += 1
        self._console.file.flush()

    @property
    def _room(self) -> tuple[int, bool, bool]:
        """Width of the sparkline, and whether there is room for the bars and for what was used."""
        # A column is left free: some terminals break lines that fill them.
        left = self._console.width - 1 - (_CLOCK + _EMOTION + _VALENCE + 2 * 2 + 1)
        bars, used = len(EMOTIONS) * (_BAR + 1) - 1 + 2, _USED + 2
        has_bars = left >= _LEAST + bars
        has_used = left >= _LEAST + bars + used
        return max(_LEAST, min(_MOST, left - bars * has_bars - used * has_used)), has_bars, has_used

    def _header(self) -> Text:
        from rich.text import Text

        spark, bars, used = self._room
        text = f"{'time':>{_CLOCK}}  {'emotion':<{_EMOTION}}  {'valence':<{_VALENCE + 1 + spark}}"
        text += "  " + " ".join(e[:_BAR] for e in EMOTIONS) if bars else ""
        text += "  used" if used else ""
        return Text(text.rstrip(), "dim")

    def _line(self, when: str, p: Prediction, spark: str) -> Text:
        from rich.text import Text

        from merfast.cli_table import COLOURS, SPOKEN, lying_bar, printable

        width, bars, used = self._room
        line = Text(f"{when:>{_CLOCK}}  ")
        if p.emotion is None:
            line.append(f"{'-':<{_EMOTION}}  {'-':>{_VALENCE}} {spark:<{width}}", "dim")
            why = "  " + "; ".join(printable(reason) for reason in p.missing.values())
            line.append(why[: max(0, self._console.width - 1 - line.cell_len)] if bars else "", "dim")
            line.rstrip()
            return line
        percent = min(99, round(100 * float(p.probabilities.max())))
        line.append(f"{p.emotion:<{_EMOTION - 4}} {percent:2}%", f"bold {COLOURS[p.emotion]}")
        line.append(f"  {p.valence:+{_VALENCE}.2f} ", "green" if p.valence > 0 else "red")
        line.append(f"{spark:<{width}}")
        if bars:
            line.append(" ")
            for emotion, probability in zip(EMOTIONS, p.probabilities.tolist(), strict=True):
                bar = lying_bar(probability, _BAR) if self._blocks else ("#" * round(probability * _BAR)).ljust(_BAR)
                line.append(" ").append(bar, COLOURS[emotion])
        if used:
            line.append("  " + "+".join(SPOKEN[m] for m in reversed(p.modalities)))
        line.rstrip()
        return line

    def _spark(self) -> str:
        """Recent valence, the newest last; empty windows are gaps."""
        from merfast.cli_table import STANDING

        levels = STANDING[1:] if self._blocks else _PLAIN
        recent = list(self._recent)[-self._room[0] :]
        return "".join(levels[_level(v, len(levels))] if math.isfinite(v) else " " for v in recent)


def _level(valence: float, count: int) -> int:
    part = (valence + PLEASANT) / (2 * PLEASANT)
    return min(count - 1, max(0, int(part * count)))
