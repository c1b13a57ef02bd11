"""Predictions as HTML for notebooks: inline styles, no script, and the notebook's own colours for text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from merfast.palette import EMOTION_COLOURS
from merfast.types import EMOTIONS, Failure, Prediction

OTHERS = 12
"""Other faces that are listed; the others are counted."""

_SEEN = {"video": "face", "audio": "voice"}
_FAINT = "rgba(128,128,128,.25)"
_BOX = (
    "max-width:38em;padding:.8em 1em;margin:.3em 0;border:1px solid rgba(128,128,128,.45);border-radius:.5em;"
    "background:transparent;color:currentColor;line-height:1.4;text-align:left"
)


def prediction_html(p: Prediction) -> str:
    """What a notebook shows in place of `repr(p)`."""
    parts = [_heading(p), _headline(p)]
    if p.emotion is not None:
        parts += [_bars(p), _gauge(p.valence)]
    parts.append(_line(_used(p)))
    if p.windows:
        parts.append(_strip(p.windows))
    parts += [_line(_other(other)) for other in p.others[:OTHERS]]
    if len(p.others) > OTHERS:
        parts.append(_line(f"and {len(p.others) - OTHERS} more faces"))
    parts += [_line(f"warning: {escape(warning)}") for warning in p.warnings]
    return f'<div style="{_BOX}">{"".join(parts)}</div>'


def failure_html(failure: Failure) -> str:
    """What a notebook shows in place of `repr(failure)`."""
    span = "" if failure.start is None or failure.end is None else _span(failure.start, failure.end)
    kind = escape(type(failure.error).__name__)
    mark = f"{_dot('angry')}<b>failed</b> ({kind})"
    return f'<div style="{_BOX}">{_title(failure.source, span)}{_line(mark)}{_line(escape(str(failure.error)))}</div>'


def _title(source: str, span: str) -> str:
    return (
        '<div style="display:flex;justify-content:space-between;gap:1em">'
        f'<b style="overflow-wrap:anywhere">{escape(source)}</b>'
        f'<span style="opacity:.75;white-space:nowrap">{span}</span></div>'
    )


def _heading(p: Prediction) -> str:
    track = "" if p.track is None else f"face {p.track}, "
    return _title(p.source, track + _span(p.start, p.end))


def _span(start: float, end: float) -> str:
    return f"{start:.1f}-{end:.1f} s"


def _headline(p: Prediction) -> str:
    if p.emotion is None:
        return '<div style="font-size:1.5em;opacity:.75">nothing to go by</div>'
    return f'<div style="font-size:1.5em"><b>{_dot(p.emotion)}{p.emotion}</b> {p.probabilities.max():.0%}</div>'


def _dot(emotion: str) -> str:
    """The emotion's colour beside its name, which keeps the colour of text: not every notebook has a white page."""
    return (
        f'<span style="display:inline-block;width:.6em;height:.6em;border-radius:50%;margin-right:.35em;'
        f'background:{EMOTION_COLOURS[emotion]}"></span>'
    )


def _bars(p: Prediction) -> str:
    return "".join(map(_bar, EMOTIONS, p.probabilities.tolist(), (e == p.emotion for e in EMOTIONS)))


def _bar(emotion: str, share: float, chosen: bool) -> str:
    # Not a table: notebooks and sites have styles of their own for those.
    weight = ";font-weight:bold" if chosen else ""
    return (
        f'<div style="display:flex;align-items:center;gap:.6em{weight}"><span style="width:4.8em">{emotion}</span>'
        f'<span style="width:2.6em;text-align:right">{share:.0%}</span>'
        f'<div style="flex:1;background:{_FAINT};border-radius:.2em;height:.7em">'
        f'<div style="background:{EMOTION_COLOURS[emotion]};border-radius:.2em;height:.7em;'
        f'width:{100 * share:.1f}%"></div></div></div>'
    )


def _gauge(valence: float) -> str:
    """Valence between -5 and 5: a line with a mark at zero, and a dot."""
    place = min(100.0, max(0.0, 10.0 * (valence + 5.0)))
    left, width = min(place, 50.0), abs(place - 50.0)
    at = "position:absolute;background:currentColor"
    return (
        '<div style="display:flex;align-items:center;gap:.6em;margin:.3em 0"><span>valence</span>'
        '<span style="opacity:.75">&minus;5</span><div style="position:relative;flex:1;height:1em">'
        f'<div style="position:absolute;top:.45em;height:.1em;left:0;right:0;background:{_FAINT}"></div>'
        f'<div style="{at};top:.2em;height:.6em;left:50%;width:1px;opacity:.5"></div>'
        f'<div style="{at};top:.4em;height:.2em;left:{left:.1f}%;width:{width:.1f}%"></div>'
        f'<div style="{at};top:.15em;height:.7em;width:.7em;margin-left:-.35em;border-radius:50%;left:{place:.1f}%">'
        f'</div></div><span style="opacity:.75">+5</span><b>{valence:+.2f}</b></div>'
    )


def _used(p: Prediction) -> str:
    parts = []
    for modality, name in _SEEN.items():
        if modality not in p.modalities:
            parts.append(f"no {name}: {escape(p.missing.get(modality, 'not used'))}")
            continue
        share = ""
        if p.attention is not None:
            share = f", {p.attention.modalities.get(modality, 0.0):.0%} of the attention"
        seen = f" in {p.face_coverage:.0%} of the pictures" if modality == "video" else ""
        parts.append(f"{name}{seen}{share}")
    return " &middot; ".join(parts)


def _strip(windows: Sequence[Prediction]) -> str:
    """A line of time in the emotions' colours; what was predicted is in its tooltips."""
    return (
        f'<div style="opacity:.75;margin-top:.4em">{len(windows)} windows</div>'
        f'<div style="display:flex;height:1em;border-radius:.2em;overflow:hidden">{"".join(_runs(windows))}</div>'
    )


def _runs(windows: Sequence[Prediction]) -> Iterator[str]:
    for emotion, run in groupby(windows, key=lambda w: w.emotion):
        parts = list(run)
        start, end = parts[0].start, parts[-1].end
        colour, said = _FAINT, "nothing to go by"
        if emotion is not None:
            colour = EMOTION_COLOURS[emotion]
            said = f"{emotion}, valence {math.fsum(w.valence for w in parts) / len(parts):+.2f}"
        yield f'<div title="{_span(start, end)}: {said}" style="flex:{end - start:.3f};background:{colour}"></div>'


def _other(p: Prediction) -> str:
    name = "another face" if p.track is None else f"face {p.track}"
    if p.emotion is None:
        return f"{name}: nothing to go by"
    return f"{name}: {_dot(p.emotion)}<b>{p.emotion}</b> {p.probabilities.max():.0%}, valence {p.valence:+.2f}"


def _line(html: str) -> str:
    return f'<div style="overflow-wrap:anywhere">{html}</div>'
