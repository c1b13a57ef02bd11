"""Pictures for reports, as PNG files: the same data and matplotlib give the same bytes."""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from merfast.errors import UnavailableError
from merfast.types import EMOTIONS, ByteArray
from training.metrics import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
_INK = "#222222"
# Okabe and Ito (2008): told apart with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_ORANGE, _GREEN = _COLOURS[1:3]
_MARKED = 40  # curves of up to so many epochs show each of them as a point
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})


def plot_confusion(
    counts: npt.NDArray[np.integer[Any]], file: str | Path, title: str, classes: Sequence[str] = EMOTIONS
) -> None:
    """Draw a confusion matrix: colour and percent are shares of the row, the other number is the count.

    Args:
        counts: `[C, C]` from 0 on, rows true (`training.metrics.confusion`).
        file: the PNG file to write.
        title: above the picture; long ones are wrapped.
        classes: C names.

    Raises:
        ValueError: shape or values are not as described.
        UnavailableError: matplotlib is not installed.
    """
    size = len(classes)
    if counts.shape != (size, size):
        raise ValueError(f"counts: got shape {list(counts.shape)}, expected [{size}, {size}]")
    if counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise ValueError(f"counts: got {counts.dtype} from {counts.min()}, expected whole numbers from 0 on")
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    figure = _figure(2.4 + 0.8 * size, 1.7 + 0.66 * size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (i, j), share in np.ndenumerate(shares):
        percent = _percent(share) if totals[i] else "\N{EN DASH}"
        ink = "white" if share > 0.55 else _INK
        weight = "bold" if i == j else "normal"
        axes.text(j, i - 0.13, str(counts[i, j]), ha="center", va="center", color=ink, fontsize=11, fontweight=weight)
        axes.text(j, i + 0.23, percent, ha="center", va="center", color=ink, fontsize=8.5)
    axes.set_xticks(range(size), classes)
    axes.set_yticks(range(size), [f"{c}\n(n = {n})" for c, n in zip(classes, totals, strict=True)])
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", fontweight="bold")
    axes.set_ylabel("true", fontweight="bold")
    axes.set_title(_wrap(title, int(8 * figure.get_figwidth())), fontsize=12, parse_math=False)
    bar = figure.colorbar(image, ax=axes, aspect=30, fraction=0.04, pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"])
    bar.set_label("share of the true class", fontsize=9)
    bar.outline.set_visible(False)
    _save(figure, file)


def plot_reliability(before: Reliability, after: Reliability, file: str | Path) -> None:
    """Draw accuracy against confidence, and how many predictions have it, before and after temperature scaling.

    Args:
        before, after: from `training.metrics.reliability`, with the same number of bins.
        file: the PNG file to write.

    Raises:
        ValueError: the numbers of bins differ.
        UnavailableError: matplotlib is not installed.
    """
    if len(before.count) != len(after.count):
        raise ValueError(f"after: got {len(after.count)} bins, expected {len(before.count)}, as before")
    figure = _figure(8.4, 5.6)
    from matplotlib.patches import Patch

    hatched = {"facecolor": "none", "hatch": "////", "linewidth": 1.0}
    gaps: dict[str, dict[str, Any]] = {
        "over-confident by": {**hatched, "edgecolor": _ORANGE},
        "under-confident by": {**hatched, "edgecolor": _GREEN},
    }
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1), gridspec_kw={"wspace": 0.08})
    for (top, bottom), (name, result) in zip(grid.T, (("before", before), ("after", after)), strict=True):
        bins = len(result.count)
        full = result.count > 0
        centres = (np.arange(bins) + 0.5) / bins
        right, sure = result.accuracy[full], result.confidence[full]
        top.bar(centres[full], right, 1 / bins, color="#A6CDE8", edgecolor="white", label="accuracy")
        for way, gap in (("over-confident by", sure - right), ("under-confident by", right - sure)):
            off = gap > 0
            low = np.minimum(sure, right)[off]
            top.bar(centres[full][off], gap[off], 0.86 / bins, low, **gaps[way])
        top.plot([0, 1], [0, 1], color=_INK, linestyle="--", linewidth=1.2, label="perfectly calibrated")
        top.set(xlim=(0, 1), ylim=(0, 1))
        top.set_title(f"{name} temperature scaling\nECE {result.ece:.3f}, n = {result.count.sum()}", fontsize=11)
        bottom.bar(centres, result.count, 1 / bins, color="#8A8A8A", edgecolor="white")
        bottom.set_xlabel("confidence")
        for axes in (top, bottom):
            _plain(axes)
    grid[1, 0].set_ylim(0, 1.1 * max(before.count.max(), after.count.max()))
    grid[1, 0].yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("predictions")
    figure.align_ylabels(grid[:, 0])
    handles, _ = grid[0, 0].get_legend_handles_labels()
    handles += [Patch(label=way, **style) for way, style in gaps.items()]  # a panel may have bars of one kind only
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    _save(figure, file)


def plot_curves(csv_log: str | Path, file: str | Path) -> None:
    """Draw a training log: one panel for each group of columns, such as `train_loss` and `val_loss`.

    Columns belong together if they share a word `loss`, `f1` or `lr`, or else their first word that names no split;
    words end at `_`, `/`, `.` or `-`.

    Args:
        csv_log: a CSV file with a header, a column `epoch`, and numbers; an empty cell was not measured.
        file: the PNG file to write.

    Raises:
        ValueError: no column `epoch`, nothing beside it, no rows, or a cell that is no number.
        UnavailableError: matplotlib is not installed.
    """
    columns = _read_log(Path(csv_log))
    epochs = columns.pop("epoch")
    panels: dict[str, list[str]] = {}
    for name in columns:
        panels.setdefault(_group(name), []).append(name)
    wide = 2 if len(panels) == 4 else min(len(panels), 3)
    high = math.ceil(len(panels) / wide)
    margin = max(0.5, 0.04 * float(np.ptp(epochs)))
    figure = _figure(4.2 * wide, 3.1 * high)
    grid = figure.subplots(high, wide, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (group, names) in zip(grid.flat, panels.items(), strict=False):
        for number, name in enumerate(names):
            known = np.isfinite(columns[name])
            marker = "o" if known.sum() <= _MARKED else ""
            style = {"color": _COLOURS[number % len(_COLOURS)], "marker": marker, "markersize": 3.5, "linewidth": 1.6}
            axes.plot(epochs[known], columns[name][known], label=name, **style)
        axes.set_title(group, fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_xlim(epochs.min() - margin, epochs.max() + margin)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if len(names) > 1 or names[0] != group:
            axes.legend(fontsize=8.5, framealpha=0.9)
        _plain(axes)
    _save(figure, file)


def plot_crops(groups: Mapping[str, Sequence[ByteArray]], file: str | Path, title: str) -> None:
    """Draw rows of face pictures one below the other, to compare how they are framed; all come out equally large.

    Args:
        groups: label of a row -> its pictures, each uint8 `[S, S, 3]` RGB or `[S, S]` grey; at least one in all.
        file: the PNG file to write.
        title: above the picture; long ones are wrapped.

    Raises:
        ValueError: no picture in a row, no rows, or something that is not such a picture.
        UnavailableError: matplotlib is not installed.
    """
    if not groups:
        raise ValueError("groups: got no rows, expected at least one")
    for label, pictures in groups.items():
        if not len(pictures):
            raise ValueError(f"{label}: got no pictures, expected at least one")
        for picture in pictures:
            square = picture.ndim in (2, 3) and picture.shape[0] == picture.shape[1] > 0
            if picture.dtype != np.uint8 or not square or picture.shape[2:] not in ((), (3,)):
                got = f"{picture.dtype} {list(picture.shape)}"
                raise ValueError(f"{label}: got {got}, expected uint8 [S, S, 3] or [S, S]")
    labels = [_with_size(label, pictures) for label, pictures in groups.items()]
    side, label_height, gap = 1.25, 0.34, 0.06  # inches
    wide = max(len(pictures) for pictures in groups.values())
    width = max(4.0, wide * (side + gap) + gap, 0.085 * max(len(label) for label in labels))
    heading = _wrap(title, int(9 * width))
    top = 0.16 + 0.2 * (heading.count("\n") + 1)
    height = top + len(groups) * (side + label_height) + gap
    figure = _figure(width, height, layout=None)
    style: dict[str, Any] = {"color": _INK, "parse_math": False}
    figure.text(gap / width, 1 - 0.08 / height, heading, va="top", fontsize=12, fontweight="bold", **style)
    for row, (label, pictures) in enumerate(zip(labels, groups.values(), strict=True)):
        under = height - top - (row + 1) * (side + label_height)
        figure.text(gap / width, (under + side + 0.05) / height, label, va="bottom", fontsize=10, **style)
        for column, picture in enumerate(pictures):
            left = gap + column * (side + gap)
            axes = figure.add_axes((left / width, under / height, side / width, side / height))
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
    _save(figure, file)


def _with_size(label: str, pictures: Sequence[ByteArray]) -> str:
    sizes = sorted({len(p) for p in pictures})
    return f"{label} ({' to '.join(str(s) for s in dict.fromkeys((sizes[0], sizes[-1])))} pixels)"


def _read_log(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    with path.open(newline="", encoding="utf-8") as lines:
        names, *rows = [line for line in csv.reader(lines) if line] or [[]]
    if "epoch" not in names or len(names) < 2:
        raise ValueError(f"{path}: got the columns {names}, expected 'epoch' and at least one other")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: got the columns {names}, expected each once")
    if not rows:
        raise ValueError(f"{path}: got no rows, expected at least one epoch")
    columns = {name: np.full(len(rows), np.nan) for name in names}
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(f"{path}: row {number + 1}: got {len(row)} cells, expected {len(names)}")
        for name, cell in zip(names, row, strict=True):
            try:
                columns[name][number] = float(cell) if cell.strip() else np.nan
            except ValueError:
                raise ValueError(f"{path}: {name}, row {number + 1}: got {cell!r}, expected a number") from None
    if not np.isfinite(columns["epoch"]).all():
        raise ValueError(f"{path}: epoch: got rows without a number, expected one in each")
    return columns


def _group(name: str) -> str:
    words = name.replace("/", "_").replace(".", "_").replace("-", "_").split("_")
    for known in ("loss", "f1", "lr"):
        if known in words:
            return known
    return next((w for w in words if w not in _SPLITS), name)


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or " "


def _plain(axes: Axes) -> None:
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _percent(share: float) -> str:
    """Without decimals, and without calling some none or most all."""
    if 0 < share < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure, in inches, drawn by Agg whatever backend pyplot has."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("pictures need matplotlib, which is not installed: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, file: str | Path) -> None:
    # No metadata: they would name matplotlib's version.
    figure.savefig(file, format="png", metadata={"Software": None})
