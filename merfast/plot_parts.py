"""Parts of plots: rows of axes on a figure of any size, names beside them, time axes, gaps and strips."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from merfast.types import Modality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

INK, MUTED, FAINT, NOTHING = "#222222", "#6b6b6b", "#d4d4d4", "#f4f4f4"

SPOKEN: dict[Modality, str] = {"audio": "voice", "video": "face"}

STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 36000, 86400)
"""Seconds from one mark of a time axis to the next."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 0.56, 1.14, 0.30, 0.30  # inches around the axes
_BETWEEN, _STRIP = 0.07, 0.16  # inches
_MARK = 58.0  # pixels from one mark to the next, at least


class Sheet:
    """A figure on which rows are laid out in inches, so that text fits at any size.

    Args:
        figure: an empty one.

    Attributes:
        figure: that one.
        size: of text, points.
        columns: pixels across the axes.
    """

    def __init__(self, figure: Figure | SubFigure) -> None:
        self.figure = figure
        self._dpi = float(figure.get_dpi())
        self._width, self._height = figure.bbox.width / self._dpi, figure.bbox.height / self._dpi
        self.size = 8.0 if self._width < 7 else 9.0
        self._scale = self.size / 8.0
        self.columns = max(1.0, (self._width - (_LEFT + _RIGHT) * self._scale) * self._dpi)

    def rows(self, heights: Mapping[str, float]) -> dict[str, Axes]:
        """Axes below each other: parts of the room by height, strips where that is 0, and empty room without a name."""
        strip = _STRIP * self._scale
        left, room = _LEFT * self._scale, self._height - (_TOP + _BOTTOM) * self._scale
        room -= sum(strip for h in heights.values() if not h) + _BETWEEN * (len(heights) - 1)
        unit = max(0.1, room) / sum(heights.values())
        top = self._height - _TOP * self._scale
        out = {}
        for name, height in heights.items():
            inches = unit * height or strip
            top -= inches
            if name.strip():
                place = left / self._width, top / self._height, self.columns / self._dpi / self._width
                ax = out[name] = self.figure.add_axes((*place, inches / self._height), label=name)
                _plain(ax, self.size)
            top -= _BETWEEN
        return out

    def title(self, text: str) -> None:
        """At the top left, no longer than there is room for."""
        most = max(8, int((self._width - 0.2) * 72 / (0.56 * (self.size + 1))))
        short = text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
        at = 1 - 0.08 / self._height
        self.figure.text(
            0.1 / self._width,
            at,
            short,
            va="top",
            fontsize=self.size + 1,
            color=INK,
            fontweight="bold",
            parse_math=False,
        )

    def line_of(self, ax: Axes) -> float:
        """Height of a line of text over that of the axes."""
        return self.size / 72 / (ax.get_position().height * self._height)

    def beside(self, ax: Axes, text: str, y: float, points_at: float | None, colour: str) -> None:
        """Text at the right of the axes, level with y; a line leads to the value it is of."""
        across = ax.get_yaxis_transform()
        inch = self._dpi / self.columns
        begin = 1 + 0.06 * inch
        if points_at is not None:
            begin = 1 + 0.22 * inch
            line = [1.0, 1 + 0.12 * inch, 1 + 0.19 * inch], [points_at, y, y]
            ax.plot(*line, color=colour, linewidth=2.2, transform=across, clip_on=False, solid_capstyle="butt")
        ink = INK if points_at is not None else colour
        ax.text(begin, y, text, transform=across, va="center", fontsize=self.size - 0.5, color=ink, clip_on=False)

    def inside(self, ax: Axes, a: float, b: float, text: str, start: float, end: float) -> None:
        """Text between two moments of an axis from `start` to `end`, if it fits there."""
        room = (b - a) / max(end - start, 1e-9) * self.columns
        if text and len(text) * 0.56 * self.size * self._dpi / 72 + 6 <= room:
            box = {"facecolor": NOTHING, "edgecolor": "none", "pad": 1.0}
            ax.text((a + b) / 2, 0.48, text, ha="center", va="center", fontsize=self.size - 1.5, color=MUTED, bbox=box)


def _plain(ax: Axes, size: float) -> None:
    ax.set_facecolor("white")
    ax.tick_params(labelsize=size - 0.5, colors=MUTED, labelcolor=INK, length=2.5, width=0.6)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=MUTED, linewidth=0.6)


def scale(ax: Axes, marks: Mapping[float, str]) -> None:
    """Marks from the bottom of the axes to the top, whose text stays within them."""
    ax.set_ylim(min(marks), max(marks))
    ax.set_yticks(list(marks), list(marks.values()))
    lowest, *_, highest = ax.get_yticklabels()
    lowest.set_verticalalignment("bottom")
    highest.set_verticalalignment("top")


def blank(ax: Axes, sheet: Sheet, name: str) -> None:
    """A strip: a name at the left and no values."""
    ax.set_ylim(0, 1)
    ax.set_yticks([0.5], [name])
    ax.tick_params(axis="y", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def hatch(ax: Axes, a: float, b: float) -> None:
    """Shows that there is nothing between two moments."""
    ax.axvspan(a, b, facecolor=NOTHING, edgecolor=FAINT, hatch="////", linewidth=0, zorder=0.5)


def draw_strip(ax: Axes, edges: npt.NDArray[np.float64], values: npt.NDArray[np.float64], colour: str) -> None:
    """Cells from white at 0 to a colour at 1; none where there is nothing, so that what is below can be seen."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("merfast", ["white", colour])
    ax.pcolormesh(
        edges,
        [0.0, 1.0],
        np.ma.masked_invalid(np.where(values > 0, values, np.nan))[None],
        cmap=shades,
        vmin=0,
        vmax=1,
        rasterized=True,
    )


def time_axis(ax: Axes, columns: float, *, labels: bool) -> None:
    """Marks at round times, with minutes and hours where there are any."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator

    start, end = ax.get_xlim()
    step = next((s for s in STEPS if (end - start) / s * _MARK <= columns), STEPS[-1])
    ax.xaxis.set_major_locator(MultipleLocator(step) if labels else NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda t, _: clock(t, end)))


def clock(time: float, end: float) -> str:
    """A moment of media that end then: "7 s", "1:07" or "2:01:07"."""
    whole = round(time)
    sign, whole = ("-" if whole < 0 else ""), abs(whole)
    if end < 60:
        return f"{sign}{whole} s"
    hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
    return f"{sign}{hours}:{minutes:02}:{seconds:02}" if end >= 3600 else f"{sign}{minutes}:{seconds:02}"


def spread(at: npt.NDArray[np.float64], gap: float) -> list[float]:
    """Places as near as can be to rising ones within [0, 1], with a gap between them and half of one at the ends."""
    count = len(at)
    gap = min(gap, 1.0 / count)
    # With the gaps taken out the places need only rise: pool neighbours that do not.
    blocks: list[tuple[float, int]] = []
    for i, y in enumerate(at):
        mean, size = float(y) - i * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, size = (mean * size + before * many) / (size + many), size + many
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    least, most = gap / 2, 1.0 - gap / 2 - (count - 1) * gap
    return [min(max(y, least), max(most, least)) + i * gap for i, y in enumerate(flat)]
