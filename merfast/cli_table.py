"""The table of predictions that `merfast predict` shows: a row for each file or window, fitted to the terminal."""

from __future__ import annotations

import math
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from merfast.errors import MediaError
from merfast.types import EMOTIONS, Failure, Prediction

PIPE_WIDTH = 120
"""Columns where the output is not a terminal and `COLUMNS` does not say."""

COLOURS = dict(zip(EMOTIONS, ("white", "red", "yellow", "blue", "magenta", "cyan"), strict=True))
SPOKEN = {"audio": "voice", "video": "face"}
LYING, STANDING = " ▏▎▍▌▋▊▉█", " ▁▂▃▄▅▆▇█"
_EMOTION, _PERCENT, _VALENCE, _FACE, _VOICE = 8, 2, 7, 4, 5  # widths of columns
_TIMELINE_SPAN = 13  # width of 1000.0-1004.0
_INDENT = "  "
_NOTHING = "-"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit by itself, with the status of a failed prediction


def output_console() -> Console:
    """A console on standard output; lines are never cropped."""
    console = _Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


@dataclass(frozen=True)
class Layout:
    """Widths of the columns in characters.

    Attributes:
        source: of the source's name; 0 leaves the column out.
        span: of the times.
        bar: of an emotion's bar; 1 is an upright bar, 0 none.
        used: whether the columns that say what was used are shown.
    """

    source: int
    span: int
    bar: int
    used: bool

    @property
    def cell(self) -> int:
        return max(3, _PERCENT + self.bar + (self.bar > 1))

    @property
    def width(self) -> int:
        parts = [self.span, _EMOTION, len(EMOTIONS) * (self.cell + 1) - 1, _VALENCE]
        parts += [self.source] * bool(self.source) + [_FACE, _VOICE] * self.used
        return sum(parts) + 2 * (len(parts) - 1)


def fit(width: int, *, longest: int, span: int, bars: bool = True) -> Layout:
    """The richest layout that `width` columns hold; names get what they need before bars grow.

    Args:
        width: columns there are.
        longest: width of the longest name, 0 for no names.
        span: width of the times.
        bars: whether the output can show block characters.
    """
    lying = [(bar, True, 28) for bar in (8, 6, 5, 4, 3)] if bars else []
    for bar, used, enough in (*lying, (int(bars), True, 12), (0, True, 12), (int(bars), False, 8)):
        bare = Layout(0, span, bar, used)
        room = width - bare.width - 2
        if room >= min(longest, enough) and (longest or bare.width <= width):
            return Layout(min(longest, room), span, bar, used)
    return Layout(min(longest, 6), span, int(bars), used=False)


class PredictionTable:
    """Prints results as they come.

    Args:
        console: where to.
        layout: of the columns.
        heading: name the source above its rows, once, instead of in a column.
    """

    def __init__(self, console: Console, layout: Layout, *, heading: bool) -> None:
        self._console, self._layout, self._heading = console, layout, heading
        self._unicode = writes_blocks(console)
        self._started = False
        self._source: str | None = None
        self._note = ""

    def add(self, result: Prediction | Failure) -> None:
        """Print one result, with the rows of its other faces."""
        if not self._started:
            self._started = True
            self._print(self._header())
        if self._heading and result.source != self._source:
            self._source, self._note = result.source, ""
            self._print(Text(printable(result.source), "bold"))
        if isinstance(result, Failure):
            self._failure(result)
            return
        self._row(printable(result.source), span_text(result), result)
        for other in result.others:
            # Without a column for names, the face stands in the place of times that would only be repeated.
            self._row(_face_name(other), span_text(other) if self._layout.source else _face_name(other), other)

    def _print(self, text: Text) -> None:
        text.rstrip()
        self._console.print(text)

    def _header(self) -> Text:
        at = self._layout
        whole = max(map(len, EMOTIONS)) <= at.cell
        labels = [f"{e if whole else e[:3]:<{at.cell}}" for e in EMOTIONS]
        cells = [f"{'source':<{at.source}}"[: at.source]] if at.source else []
        cells += [f"{'seconds':<{at.span}}", f"{'emotion':<{_EMOTION}}", " ".join(labels), f"{'valence':>{_VALENCE}}"]
        if at.used:
            cells += [f"{'face':>{_FACE}}", f"{'voice':<{_VOICE}}"]
        return Text("  ".join(cells), "dim")

    def _row(self, name: str, span: str, p: Prediction) -> None:
        at = self._layout
        cells = [Text(shortened(name, at.source, self._unicode))] if at.source else []
        cells.append(Text(f"{span:<{at.span}}"))
        cells.append(Text(f"{p.emotion or _NOTHING:<{_EMOTION}}", f"bold {COLOURS[p.emotion]}" if p.emotion else "dim"))
        cells.append(Text(" ").join(self._cells(p)))
        known = math.isfinite(p.valence)
        tone = ("green" if p.valence > 0 else "red") if known else "dim"
        cells.append(Text(f"{f'{p.valence:+.2f}' if known else _NOTHING:>{_VALENCE}}", tone))
        if at.used:
            cells.append(Text(f"{f'{p.face_coverage:.0%}' if 'video' in p.modalities else _NOTHING:>{_FACE}}"))
            cells.append(Text(f"{'yes' if 'audio' in p.modalities else _NOTHING:<{_VOICE}}"))
        note = "; ".join(_notes(p, used_shown=at.used))
        # In a timeline the same reason holds for many windows: it is said when it changes.
        shown = "" if self._heading and note == self._note else note
        self._note = note
        row = Text("  ").join(cells)
        if shown and row.cell_len + 2 + cell_len(shown) <= self._console.width:
            self._print(row.append(f"  {shown}", "dim"))
            return
        self._print(row)
        if shown:
            self._wrapped(shown, "dim", _INDENT)

    def _cells(self, p: Prediction) -> Iterator[Text]:
        at = self._layout
        for emotion, probability in zip(EMOTIONS, p.probabilities, strict=True):
            if p.emotion is None:
                yield Text(f"{_NOTHING:>{_PERCENT + (at.bar == 1)}}".ljust(at.cell), "dim")
                continue
            percent = min(99, round(100 * float(probability)))  # two digits, certainty included
            number = Text(f"{percent:{_PERCENT}}", "bold" if emotion == p.emotion else "dim")
            if at.bar == 1:
                bar = Text(STANDING[math.ceil(8 * float(probability) - 0.5)], COLOURS[emotion])
                cell = bar + number
            elif at.bar:
                cell = number.append(" ").append(lying_bar(float(probability), at.bar), COLOURS[emotion])
            else:
                cell = number
            cell.pad_right(at.cell - cell.cell_len)
            yield cell

    def _failure(self, failure: Failure) -> None:
        reason = failure.error.reason if isinstance(failure.error, MediaError) else str(failure.error)
        message = f"failed: {printable(reason)}"
        name, width = printable(failure.source), self._layout.source
        if self._heading or cell_len(name) > width:
            if not self._heading:
                self._print(Text(name, "red"))
            self._wrapped(message, "red", _INDENT)
            return
        self._wrapped(message, "red", " " * (width + 2), first=shortened(name, width, self._unicode) + "  ")

    def _wrapped(self, text: str, style: str, indent: str, first: str | None = None) -> None:
        width = max(self._console.width, len(indent) + 20)
        lead = indent if first is None else first
        for line in textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=indent, break_on_hyphens=False):
            self._print(Text(line, style))


def results_table(
    console: Console, results: Sequence[Prediction | Failure], names_to_come: Sequence[str] = ()
) -> PredictionTable:
    """A table fitted to results at hand and to names of items still to come: sources in a column."""
    rows = [p for r in results if isinstance(r, Prediction) for p in (r, *r.others)]
    names = [
        "source",
        *(r.source for r in results),
        *(_face_name(p) for r in results if isinstance(r, Prediction) for p in r.others),
        *names_to_come,
    ]
    layout = fit(
        console.width,
        longest=max(cell_len(printable(name)) for name in names),
        span=max([len("seconds"), *(len(span_text(p)) for p in rows)]),
        bars=writes_blocks(console),
    )
    return PredictionTable(console, layout, heading=False)


def timeline_table(console: Console) -> PredictionTable:
    """A table for windows that are still to come: the source is named above them."""
    layout = fit(console.width, longest=0, span=_TIMELINE_SPAN, bars=writes_blocks(console))
    return PredictionTable(console, layout, heading=True)


def _face_name(p: Prediction) -> str:
    return f"{_INDENT}face {p.track}"


def span_text(p: Prediction) -> str:
    return f"{p.start:.1f}-{p.end:.1f}"


def printable(text: str) -> str:
    """`text` without characters that would move the cursor or cannot be encoded."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _notes(p: Prediction, *, used_shown: bool) -> Iterator[str]:
    if p.windows:
        yield f"average of {len(p.windows)} windows"
    for modality, reason in p.missing.items():
        yield f"{SPOKEN[modality]}: {printable(reason)}"
    if not used_shown and "video" in p.modalities and p.face_coverage < 1:
        yield f"face in {p.face_coverage:.0%}"
    for warning in p.warnings:
        yield f"warning: {printable(warning)}"


def lying_bar(part: float, width: int) -> str:
    """A bar of `width` characters, filled in part (0 to 1)."""
    eighths = round(part * width * 8)
    full, rest = divmod(eighths, 8)
    return (LYING[8] * full + (LYING[rest] if rest else "")).ljust(width)


def shortened(name: str, width: int, ellipsis_fits: bool) -> str:
    """Exactly `width` cells: padded, or with its beginning left out, as the end of a path says more."""
    mark = "…" if ellipsis_fits else "~"
    if cell_len(name) > width:
        while name and cell_len(name) > width - 1:
            name = name[1:]
        name = mark + name
    return name + " " * (width - cell_len(name))


def writes_blocks(console: Console) -> bool:
    """Whether the output can hold block characters."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def clock_text(seconds: float) -> str:
    """`M:SS.s`, or `H:MM:SS` from an hour on."""
    tenths = round(10 * seconds)
    if tenths >= 36_000:
        return f"{tenths // 36_000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}"
    return f"{tenths // 600}:{tenths // 10 % 60:02}.{tenths % 10}"
