"""Plots of predictions with matplotlib: `plot_timeline`, and what is behind `Prediction.plot`.

Figures are made without pyplot, so that nothing global changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from merfast.courses import Course, Floats
from merfast.errors import UnavailableError
from merfast.palette import EMOTION_COLOURS, MODALITY_COLOURS
from merfast.plot_parts import INK, MUTED, SPOKEN, Sheet, blank, draw_strip, hatch, scale, spread, time_axis
from merfast.types import EMOTIONS, MODALITIES, Failure, Modality, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SIZE = 9.6, 4.8
"""Inches of a figure, unless one is given."""

CELLS = 600
"""Moments that attention is shown for, at most."""

FINEST = 0.1
"""Seconds of such a moment, at least."""

_VALENCE = 5.0
_GAP = 1e-6  # seconds


def plot_timeline(
    predictions: Iterable[Prediction | Failure], *, track: int | None = None, figure: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """Draw emotions and valence over time, what voice and face were there, and attention where it is known.

    Each window stands for the stretch in which its centre is the nearest. Long timelines are averaged to one value for
    each column of pixels, with the range of the valence around its mean. Attention is the mean over the windows that
    reach a moment.

    Args:
        predictions: of one source: a timeline, or predictions with `windows`. Failures leave gaps.
        track: of the face to show, with `faces="all"`; None shows the main face of each window.
        figure: an empty one to draw into, from 4 inches wide; None makes one.

    Returns:
        The figure.

    Raises:
        ConfigError: there is nothing to draw, or of several sources.
        UnavailableError: matplotlib is not installed.
    """
    sheet = Sheet(figure or _new(SIZE))
    course = Course.of(predictions, track)
    attention = any(w.attention is not None for w in course.windows)
    rows = {"emotion": 3.2, "valence": 1.5} | dict.fromkeys(MODALITIES, 0.0) | ({"share": 0.0} if attention else {})
    axes = sheet.rows(rows)
    start, end = float(course.spans[0, 0]), float(course.spans[:, 1].max())
    shown = course.thinned(max(64, int(sheet.columns)))
    _emotions(axes["emotion"], sheet, course, shown)
    _valence(axes["valence"], sheet, course, shown)
    for ax in (axes["emotion"], axes["valence"]):
        for a, b in _gaps(course, start, end):
            hatch(ax, a, b)
    heat = _attention(course, start, end) if attention else None
    for modality in MODALITIES:
        _strip(axes[modality], sheet, course, modality, heat)
    if heat is not None:
        _share(axes["share"], sheet, heat)
    for name, ax in axes.items():
        ax.set_xlim(start, end)
        time_axis(ax, sheet.columns, labels=name == list(axes)[-1])
    name = PurePath(course.source).name or course.source
    sheet.title(name if track is None else f"{name}, face {track}")
    return sheet.figure


def plot_prediction(prediction: Prediction, figure: Figure | SubFigure | None = None) -> Figure | SubFigure:
    """Draw one prediction: a bar for each emotion, its valence, and attention where it is known; see `Prediction.plot`.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    if prediction.windows:
        return plot_timeline([prediction], figure=figure)
    strips = dict.fromkeys(MODALITIES, 0.0) if prediction.attention is not None else {}
    sheet = Sheet(figure or _new((6.4, 3.4 if strips else 2.9)))
    axes = sheet.rows({"emotion": 3.0, "": 0.35, "valence": 0.6} | ({" ": 0.45} | strips if strips else {}))
    _bars(axes["emotion"], sheet, prediction)
    _mark(axes["valence"], sheet, prediction.valence)
    if strips:
        course = Course.of([prediction])
        heat = _attention(course, prediction.start, prediction.end)
        for modality in MODALITIES:
            _strip(axes[modality], sheet, course, modality, heat)
            axes[modality].set_xlim(prediction.start, prediction.end)
            time_axis(axes[modality], sheet.columns, labels=modality == MODALITIES[-1])
    source = PurePath(prediction.source).name or prediction.source
    used = " and ".join(SPOKEN[m] for m in prediction.modalities) or "nothing to go by"
    sheet.title(f"{source}, {prediction.start:.1f} to {prediction.end:.1f} s, {used}")
    return sheet.figure


def _new(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError(f"plots need matplotlib ({error}): pip install 'merfast[plots]'") from error
    return Figure(size, dpi=100, facecolor="white")


def _emotions(ax: Axes, sheet: Sheet, course: Course, shown: Course) -> None:
    """Probabilities stacked on each other, with names at the right, where the last ones are."""
    times = shown.spans.reshape(-1)
    tops = np.cumsum(np.repeat(shown.probabilities, 2, axis=0), axis=1)
    times, tops = _broken(times, tops)
    bottom = np.zeros(len(times))
    for number, emotion in enumerate(EMOTIONS):
        colour = EMOTION_COLOURS[emotion]
        ax.fill_between(times, bottom, tops[:, number], color=colour, linewidth=0, label=emotion)
        bottom = tops[:, number]
    edge = 0.6 if len(shown.windows) < sheet.columns / 3 else 0.25
    for number in range(len(EMOTIONS) - 1):
        ax.plot(times, tops[:, number], color="white", linewidth=edge)
    scale(ax, {0: "0", 0.5: "50", 1: "100 %"})
    last = np.flatnonzero(np.isfinite(shown.valence))
    p = shown.probabilities[last[-1]] if len(last) else np.full(len(EMOTIONS), 1 / len(EMOTIONS))
    at = np.cumsum(p) - p / 2
    means = course.means
    for number, y in enumerate(spread(at, 1.22 * sheet.line_of(ax))):
        text = f"{EMOTIONS[number]} {means[number]:.0%}" if len(last) else EMOTIONS[number]
        sheet.beside(ax, text, y, at[number], EMOTION_COLOURS[EMOTIONS[number]])


def _valence(ax: Axes, sheet: Sheet, course: Course, shown: Course) -> None:
    times, values = _broken(shown.spans.reshape(-1), np.repeat(shown.valence, 2)[:, None])
    ax.axhline(0, color=MUTED, linewidth=0.6)
    if len(shown.valence) < len(course.valence):
        size = -(-len(course.valence) // len(shown.valence))
        padded = np.pad(course.valence, (0, -len(course.valence) % size), constant_values=np.nan).reshape(-1, size)
        kept = np.isfinite(padded)
        least, most = np.where(kept, padded, np.inf).min(axis=1), np.where(kept, padded, -np.inf).max(axis=1)
        some = kept.any(axis=1)
        low, high = np.where(some, least, np.nan), np.where(some, most, np.nan)
        band = shown.spans.reshape(-1)
        ax.fill_between(band, np.repeat(low, 2), np.repeat(high, 2), color=INK, alpha=0.2, linewidth=0)
    ax.plot(times, values[:, 0], color=INK, linewidth=1.3, label="valence")
    scale(ax, {-_VALENCE: "-5", 0: "0", _VALENCE: "+5"})
    line = 2 * _VALENCE * sheet.line_of(ax)
    for word, y in (("pleasant", _VALENCE - 0.6 * line), ("unpleasant", -_VALENCE + 0.6 * line)):
        sheet.beside(ax, word, y, None, MUTED)
    known = course.valence[np.isfinite(course.valence)]
    if len(known):
        weights = np.diff(course.spans)[np.isfinite(course.valence), 0]
        mean = float(known @ weights / weights.sum()) if weights.sum() else float(known.mean())
        sheet.beside(ax, f"valence {mean:+.1f}", 0.0, None, INK)
    else:
        sheet.beside(ax, "valence", 0.0, None, INK)


def _broken(times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """With a break where a stretch does not begin at the last one's end."""
    at = np.flatnonzero(times[2::2] - times[1:-1:2] > _GAP) * 2 + 2
    return np.insert(times, at, times[at]), np.insert(values, at, np.nan, axis=0)


def _gaps(course: Course, start: float, end: float) -> list[tuple[float, float]]:
    """Where there is no value, from `start` to `end`."""
    out, reached = [], start
    for (a, b), value in zip(course.spans, course.valence, strict=True):
        if np.isfinite(value):
            if a > reached + _GAP:
                out.append((reached, float(a)))
            reached = max(reached, float(b))
    return out + ([(reached, end)] if end > reached + _GAP else [])


Heat = tuple[Floats, dict[Modality, Floats]]


def _attention(course: Course, start: float, end: float) -> Heat:
    """Edges `[N + 1]`, and for each modality `[N]`: 1 if all of a window's attention were on it, evenly over time."""
    cells = int(np.clip((end - start) / FINEST, 1, CELLS))
    edges = np.linspace(start, end, cells + 1)
    total: dict[Modality, Floats] = {m: np.zeros(cells) for m in MODALITIES}
    count = np.zeros(cells)
    step = (end - start) / cells
    for window in course.windows:
        first = max(0, int((window.start - start) / step))
        last = min(cells, int(np.ceil((window.end - start) / step - _GAP)))
        if window.attention is None or last <= first:
            continue
        part = slice(first, last)
        count[part] += 1
        for modality in MODALITIES:
            share = window.attention.over_time(modality, edges[first : last + 1])
            total[modality][part] += share * (window.end - window.start) / step
    return edges, {m: np.where(count > 0, t / np.maximum(count, 1), np.nan) for m, t in total.items()}


def _strip(ax: Axes, sheet: Sheet, course: Course, modality: Modality, heat: Heat | None) -> None:
    """Where a modality was used, or how much attention it had."""
    used = course.used[modality]
    blank(ax, sheet, SPOKEN[modality])
    colour = MODALITY_COLOURS[modality]
    if heat is None:
        for a, b in _runs(course.spans, used):
            ax.axvspan(a, b, color=colour, linewidth=0)
        seconds = np.diff(course.spans)[:, 0]
        sheet.beside(ax, f"{float(seconds @ used / max(seconds.sum(), _GAP)):.0%} of the time", 0.5, None, MUTED)
    else:
        edges, density = heat
        most = max(float(np.nanmax(d, initial=0.0)) for d in density.values())
        draw_strip(ax, edges, density[modality] / (most or 1.0), colour)
        share = [w.attention.modalities.get(modality, 0.0) for w in course.windows if w.attention is not None]
        sheet.beside(ax, f"{float(np.mean(share)):.0%} attention", 0.5, None, MUTED)
    for a, b in _runs(course.spans, ~used):
        hatch(ax, a, b)
        why = {w.missing.get(modality, "") for w in course.windows if a <= (w.start + w.end) / 2 <= b} - {""}
        sheet.inside(ax, a, b, ", ".join(sorted(why)), course.spans[0, 0], course.spans[:, 1].max())


def _runs(spans: Floats, held: Any) -> list[tuple[float, float]]:
    """Stretches in which a thing holds, as long as can be."""
    out: list[tuple[float, float]] = []
    for (a, b), holds in zip(spans, held, strict=True):
        if holds and out and a <= out[-1][1] + _GAP:
            out[-1] = out[-1][0], float(b)
        elif holds:
            out.append((float(a), float(b)))
    return out


def _share(ax: Axes, sheet: Sheet, heat: Heat) -> None:
    """What part of the attention was on the face and on the voice, on top of each other."""
    edges, density = heat
    blank(ax, sheet, "share")
    whole = np.asarray(sum(density.values()))
    part = np.divide(density["video"], whole, out=np.full(len(whole), np.nan), where=whole > 0)
    times, level = np.repeat(edges, 2)[1:-1], np.repeat(part, 2)
    ax.fill_between(times, 0, level, color=MODALITY_COLOURS["video"], linewidth=0)
    ax.fill_between(
        times, level, np.where(np.isfinite(level), 1.0, np.nan), color=MODALITY_COLOURS["audio"], linewidth=0
    )
    sheet.beside(ax, "voice over face", 0.5, None, MUTED)


def _bars(ax: Axes, sheet: Sheet, prediction: Prediction) -> None:
    values = np.nan_to_num(prediction.probabilities)
    ax.barh(range(len(EMOTIONS)), values, color=list(EMOTION_COLOURS.values()), height=0.72)
    ax.set_ylim(len(EMOTIONS) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xticks([])
    ax.set_yticks(range(len(EMOTIONS)), EMOTIONS)
    for number, value in enumerate(values):
        text = f" {value:.0%}" if prediction.emotion is not None else " ?"
        bold = "bold" if EMOTIONS[number] == prediction.emotion else "normal"
        ax.text(float(value), number, text, va="center", fontsize=sheet.size, color=INK, fontweight=bold)


def _mark(ax: Axes, sheet: Sheet, valence: float) -> None:
    ax.set_xlim(-_VALENCE, _VALENCE)
    ax.set_ylim(-1, 1)
    ax.set_yticks([0], ["valence"])
    ax.set_xticks([-_VALENCE, 0, _VALENCE], ["-5", "0", "+5"])
    ax.axhline(0, color=MUTED, linewidth=0.6)
    ax.plot([0, 0], [-0.5, 0.5], color=MUTED, linewidth=0.6)
    if np.isfinite(valence):
        ax.plot([0, valence], [0, 0], color=INK, linewidth=2.5, solid_capstyle="butt")
        ax.plot([valence], [0], marker="o", color=INK, markersize=5)
        sheet.beside(ax, f"{valence:+.2f}", 0.0, None, INK)
