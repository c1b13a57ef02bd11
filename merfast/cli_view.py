"""What `merfast live` draws in a terminal: one state, and its lines for any width and height."""

from __future__ import annotations

import io
import math
import re
import statistics
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt
from rich.text import Text

from merfast.big_letters import HEIGHT, big
from merfast.cli_table import STANDING, clock_text, lying_bar, printable, shortened
from merfast.palette import EMOTION_COLOURS, MODALITY_COLOURS
from merfast.types import EMOTIONS, Prediction

SPANS = (15.0, 30.0, 60.0)
"""Seconds of history that are shown: the first that holds all there is, or the last."""

PLEASANT = 3.0
"""Valence at the top of its chart; its negative is at the bottom."""

MOVES = 0.4
"""Seconds in which bars and gauge move from one window's values to the next one's."""

WARNS = 20.0
"""Seconds for which a warning stays."""

_COLOURS = EMOTION_COLOURS | {"neutral": "#8c8a8a"}  # lighter, as most terminals are dark
_NAME, _NUMBER = 8, 4  # widths of columns
_STRIP = 6  # what the strip's block has as `leave`
_SEEN = {"video": "face", "audio": "voice"}
_LATE = 100_000  # latencies that the summary's median is of


@dataclass(frozen=True)
class _Block:
    """Lines that are shown together or not at all; where there is too little room, those of a high `leave` are not."""

    leave: int
    lines: list[Text]


class LiveView:
    """The state of a watched source, and what it looks like.

    Args:
        source: its name.
        late_word: what follows the number that `add` gets, as in "0.04 s late".
    """

    def __init__(self, source: str, late_word: str = "s late") -> None:
        self._source, self._late_word = printable(source), late_word
        self._now: Prediction | None = None
        self._since = -math.inf  # when that came
        self._first = 0.0  # where the first window began
        self._from = self._to = np.zeros(len(EMOTIONS) + 1)  # probabilities, then valence
        self._recent: deque[Prediction] = deque()
        self._late: deque[float] = deque(maxlen=_LATE)
        self._emotions: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._valence, self._windows, self._warnings = 0.0, 0, 0
        self._warning: tuple[float, str] | None = None

    def add(self, p: Prediction, late: float, now: float) -> None:
        """Take a window.

        Args:
            p: the window.
            late: what is said before `late_word`.
            now: seconds, of a clock that never goes back.
        """
        self._from = self._shown(now)
        self._now, self._since = p, now
        self._to = np.nan_to_num(np.append(p.probabilities, p.valence))
        self._first = p.start if not self._windows else self._first
        self._recent.append(p)
        while self._recent[0].end < p.end - SPANS[-1]:
            self._recent.popleft()
        self._late.append(late)
        self._windows += 1
        self._used.update(p.modalities)
        if p.emotion is not None:
            self._emotions[p.emotion] += 1
            self._valence += p.valence
        for warning in p.warnings:
            self.warn(warning, now)

    def warn(self, text: str, now: float) -> None:
        """Show a warning for a while."""
        self._warnings += 1
        self._warning = now, printable(text)

    def moves(self, now: float) -> bool:
        """Whether the next picture differs from the last one by more than the clock."""
        return now - self._since < MOVES

    def _shown(self, now: float) -> npt.NDArray[np.float64]:
        """Probabilities and valence on their way to those of the last window."""
        left = min(1.0, max(0.0, 1.0 - (now - self._since) / MOVES)) ** 3
        return self._to + left * (self._from - self._to)

    def lines(self, width: int, height: int, now: float, clock: str = "") -> list[Text]:
        """The picture.

        Args:
            width, height: characters there are; 20 by 1 at least.
            now: as for `add`.
            clock: the time of day, as text.

        Returns:
            `height` lines at most, each `width` at most.
        """
        blocks = [_Block(0, [self._header(width, clock)])]
        p = self._now
        if p is None:
            blocks.append(_Block(1, [Text(), Text("waiting for the first window", "dim")]))
        else:
            blocks += self._blocks(p, width, height, now)
        if self._warning is not None and now - self._warning[0] < WARNS:
            more = f" ({self._warnings} so far)" if self._warnings > 1 else ""
            text = Text(f"warning{more}: {self._warning[1]}", "yellow")
            blocks.append(_Block(4, [text]))
        if p is not None:
            spare = height - sum(len(b.lines) for b in blocks)
            rows = min(9, spare - 1 + spare % 2)
            if rows >= 5:
                strip = next(k for k, block in enumerate(blocks) if block.leave == _STRIP)
                blocks.insert(strip, _Block(_STRIP, [*self._chart(width, rows - 2), Text()]))
        return _fit(blocks, width, height)

    def _blocks(self, p: Prediction, width: int, height: int, now: float) -> Iterator[_Block]:
        values = self._shown(now)
        gap = [Text()]
        yield _Block(11, gap)
        yield _Block(1, self._headline(p, width, large=height >= 15))
        yield _Block(12, gap)
        yield _Block(3, [_indicators(p)])
        yield _Block(10, gap)
        yield _Block(5, list(self._bars(values[:-1], p, width)))
        yield _Block(9, gap)
        yield _Block(2, [_gauge(float(values[-1]), p, width)])
        yield _Block(13, gap)
        yield _Block(_STRIP, [self._strip(width)])
        yield _Block(8, [_axis(self._span, width)])
        shown = 4 if height >= 24 else 2
        if p.others:
            lines = [_other(other, width) for other in p.others[:shown]]
            if len(p.others) > shown:
                lines.append(Text(f"and {len(p.others) - shown} more faces", "dim"))
            yield _Block(14, gap)
            yield _Block(7, lines)

    def _header(self, width: int, clock: str) -> Text:
        right = []
        if self._now is not None:
            right = [f"{self._late[-1]:.2f} {self._late_word}", clock_text(self._now.end)]
        right = [part for part in (*right, clock) if part]
        while right and width - len("  ".join(right)) < 14:
            right.pop()
        text = "  ".join(right)
        room = width - len(text) - 2 * bool(text)
        return Text(shortened(self._source, room, ellipsis_fits=True), "bold").append(
            f"  {text}" if text else "", "dim"
        )

    def _headline(self, p: Prediction, width: int, *, large: bool) -> list[Text]:
        if p.emotion is None:
            return [Text("nothing to go by", "bold dim")]
        percent = f"{100 * float(p.probabilities.max()):.0f}%"
        style = f"bold {_COLOURS[p.emotion]}"
        for written in (f"{p.emotion}  {percent}", p.emotion) if large else ():
            rows = big(written)
            beside = "" if written.endswith("%") else f"  {percent}"
            if len(rows[0]) + len(beside) <= width:
                return [Text(row, style).append(beside if i == HEIGHT - 1 else "") for i, row in enumerate(rows)]
        return [Text(p.emotion.upper(), style).append(f"  {percent}", "bold")]

    def _bars(self, values: npt.NDArray[np.float64], p: Prediction, width: int) -> Iterator[Text]:
        """Name, bar, per cent, and where there is room, the last minute's values."""
        room = width - _NAME - 1 - _NUMBER - 1
        past = min(60, room // 2 - 2) if room >= 44 else 0
        bar = min(60, room - past - 2 * bool(past))
        moments = self._moments(past)
        for k, (emotion, value) in enumerate(zip(EMOTIONS, values.tolist(), strict=True)):
            colour, style = _COLOURS[emotion], "bold" if emotion == p.emotion else ""
            line = Text(f"{emotion:<{_NAME}} {100 * value:3.0f}% ", style).append(lying_bar(value, bar), colour)
            if past:
                spark = "".join(" " if w is None else _level(float(w.probabilities[k])) for w in moments)
                line.append("  ").append(spark, colour)
            yield line

    def _strip(self, width: int) -> Text:
        """The last minute: a colour for the emotion, a height for its probability."""
        cells = []
        for window in self._moments(width):
            if window is None or window.emotion is None:
                cells.append((" " if window is None else "·", "dim"))
            else:
                cells.append((_level(float(window.probabilities.max())), _COLOURS[window.emotion]))
        return _runs(cells)

    def _moments(self, count: int) -> list[Prediction | None]:
        """The window that each of `count` equal parts of the last `SPAN` seconds fell to, the newest last."""
        if not self._recent or not count:
            return [None] * count
        ends = [p.end for p in self._recent]
        span = self._span
        hop = statistics.median([b - a for a, b in pairwise(ends)] or [0.0])
        out: list[Prediction | None] = []
        for k in range(count):
            moment = ends[-1] - span * (count - 1 - k) / count
            at = bisect_left(ends, moment - 1e-6)
            near = ends[at] - moment <= 1.5 * hop + 1e-6
            out.append(self._recent[at] if near else None)
        return out

    @property
    def _span(self) -> float:
        """Seconds of history that are shown."""
        there = self._recent[-1].end - self._first
        return next((span for span in SPANS if there <= span), SPANS[-1])

    def _chart(self, width: int, rows: int) -> Iterator[Text]:
        """Valence over the last minute, coloured as the emotion; `rows` is odd, so that zero has a row."""
        moments = self._moments(width - 3)
        places: list[int | None] = []  # in halves of rows, from the top
        for window in moments:
            known = window is not None and window.emotion is not None
            part = (PLEASANT - window.valence) / (2 * PLEASANT) if window is not None and known else math.nan
            places.append(min(2 * rows - 1, max(0, int(2 * rows * part))) if known else None)
        labels = {0: f"+{PLEASANT:.0f}", rows // 2: " 0", rows - 1: f"-{PLEASANT:.0f}"}
        for row in range(rows):
            zero = "─" if row == rows // 2 else " "
            cells = [(f"{labels.get(row, ''):<3}", "dim")]
            for window, place in zip(moments, places, strict=True):
                if window is not None and window.emotion and place is not None and place // 2 == row:
                    cells.append(("▄" if place % 2 else "▀", _COLOURS[window.emotion]))
                else:
                    cells.append((zero, "dim"))
            yield _runs(cells)

    def summary(self) -> str:
        """One line: how long, what was seen."""
        if self._now is None:
            return f"{self._source}: no window"
        parts = [f"{clock_text(self._now.end)}, {self._windows} window{'s' * (self._windows > 1)}"]
        if self._emotions:
            shares = ((e, round(100 * n / self._windows)) for e, n in self._emotions.most_common())
            parts.append(", ".join(f"{emotion} {share}%" for emotion, share in shares))
            parts.append(f"mean valence {self._valence / self._emotions.total():+.2f}")
        for modality, name in _SEEN.items():
            parts.append(f"{name} in {100 * self._used[modality] / self._windows:.0f}%")
        parts.append(f"{statistics.median(self._late):.2f} {self._late_word} at the median")
        if self._warnings:
            parts.append(f"{self._warnings} warning{'s' * (self._warnings > 1)}")
        return f"{self._source}: {'; '.join(parts)}"


def _fit(blocks: list[_Block], width: int, height: int) -> list[Text]:
    """The blocks that `height` lines hold, the most important first, in their order."""
    left, kept = height, set()
    for k, block in sorted(enumerate(blocks), key=lambda item: item[1].leave):
        if len(block.lines) <= left:
            left -= len(block.lines)
            kept.add(k)
    lines = [line.copy() for k, block in enumerate(blocks) if k in kept for line in block.lines]
    for line in lines:
        line.truncate(width)
    return lines


def _indicators(p: Prediction) -> Text:
    line = Text()
    for modality, name in _SEEN.items():
        used = modality in p.modalities
        line.append("● " if used else "○ ", MODALITY_COLOURS[modality] if used else "dim")
        if not used:
            line.append(f"{printable(p.missing.get(modality, f'no {name}'))}   ", "dim")
        elif modality == "video":
            number = "" if p.track is None else f" {p.track}"
            line.append(f"{name}{number}, {p.face_coverage:.0%} of the time   ")
        else:
            line.append(f"{name}   ")
    if p.others:
        line.append(f"{len(p.others)} other face{'s' * (len(p.others) > 1)}")
    line.rstrip()
    return line


def _gauge(value: float, p: Prediction, width: int) -> Text:
    """Valence between its limits: a line from zero to a dot."""
    low, high = -5.0, 5.0
    room = min(width - _NAME - 1 - 2 * 3 - 7, 111)
    room -= 1 - room % 2  # so that zero has a place
    line = Text(f"{'valence':<{_NAME}} ")
    line.append(f"{low:+.0f} ", "dim")
    middle = room // 2
    if p.emotion is None:
        return line.append("─" * middle + "┼" + "─" * middle, "dim").append(f" {high:+.0f}", "dim")
    at = round((value - low) / (high - low) * (room - 1))
    at = min(room - 1, max(0, at))
    first, last = sorted((middle, at))
    line.append("─" * first, "dim")
    marks = "".join("●" if k == at else "┼" if k == middle else "━" for k in range(first, last + 1))
    line.append(marks, "bold").append("─" * (room - 1 - last), "dim")
    return line.append(f" {high:+.0f}", "dim").append(f"  {value:+.2f}", "bold")


def _axis(span: float, width: int) -> Text:
    left, right = f"{span:.0f} s ago", "now"
    return Text(f"{left}{right:>{max(0, width - len(left))}}", "dim")


def _other(p: Prediction, width: int) -> Text:
    line = Text(f"{f'face {p.track}':<{_NAME}} ")
    if p.emotion is None:
        return line.append("nothing to go by", "dim")
    line.append(lying_bar(float(p.probabilities.max()), 12), _COLOURS[p.emotion])
    line.append(f" {p.emotion:<8}", f"bold {_COLOURS[p.emotion]}")
    return line.append(f"{100 * float(p.probabilities.max()):3.0f}%  valence {p.valence:+.2f}")


def _runs(cells: Iterable[tuple[str, str]]) -> Text:
    """Texts and their styles in a row; a style is written once for neighbours that share it."""
    line = Text()
    for style, run in groupby(cells, key=lambda cell: cell[1]):
        line.append("".join(text for text, _ in run), style)
    return line


def _level(part: float) -> str:
    if not math.isfinite(part):
        return " "
    return STANDING[min(8, max(1, math.ceil(8 * part - 0.5)))]


def terminal_picture(timeline: Sequence[Prediction], source: str, columns: int, rows: int) -> str:
    """What a terminal of this size shows at the end of a timeline, as SVG."""
    from rich.console import Console, Group

    view = LiveView(source)
    for p in timeline:
        view.add(p, 0.02, p.end)
    console = Console(record=True, width=columns, height=rows, color_system="truecolor", file=io.StringIO())
    console.print(Group(*view.lines(columns, rows, timeline[-1].end + 5, "14:05:33")))
    svg: str = console.export_svg(title=f"merfast live {source}")
    # rich's own font comes from elsewhere.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S).replace("Fira Code", "monospace")
