"""The parts of a report's page that need no script: summary, moments, warnings, and the model's card."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from merfast.report_moments import Moment, signed
from merfast.report_series import Course, Series
from merfast.types import EMOTIONS

if TYPE_CHECKING:
    from merfast.config import BundleConfig

_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

ABOUT = (
    "Emotions are the classes that the model was trained on, and what a face and a voice express in them; they do not "
    "say what a person feels.",
    "The model's inside is a reconstruction: it follows the abstract of arXiv 2309.07925, the only part of that "
    "publication that was available.",
)
COMPOSITES = (
    "This is a demonstration model: it was trained on composites of still faces and acted voices, not on recordings of "
    "people, and its valence targets are pseudo-labels. Do not decide anything by it."
)
UNTRAINED = "This bundle is UNTRAINED: its predictions mean nothing."
UNNAMED = "The results were read from a file that does not say which model made them."


def text(value: object) -> str:
    """Any text, safe in HTML and in quoted attributes."""
    return escape(_UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def clock(seconds: float) -> str:
    """`M:SS`, or `H:MM:SS` from an hour on; with tenths in the first minute where they are not zero."""
    tenths = round(seconds * 10) if seconds < 60 else 10 * round(seconds)
    whole, rest = divmod(tenths, 10)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    head = f"{hours}:{minute:02}" if hours else f"{minute}"
    return f"{head}:{second:02}" + (f".{rest}" if rest else "")


def summary(course: Course) -> str:
    """A table with a row for each series: shares of time, valence, and coverage."""
    head = "".join(f'<th scope="col"><i class="dot {e}"></i>{e}</th>' for e in EMOTIONS)
    rows = "\n".join(_row(course, series) for series in course.series)
    return f"""<table aria-describedby="summary-hint">
<thead><tr><th scope="col">Who</th><th scope="col">Time</th>{head}
<th scope="col">Valence<br><small>mean</small></th><th scope="col"><br><small>least</small></th>
<th scope="col"><br><small>most</small></th><th scope="col">Face</th><th scope="col">Voice</th></tr></thead>
<tbody>
{rows}
</tbody></table>"""


def _row(course: Course, series: Series) -> str:
    cells = np.diff(course.edges)[series.first : series.first + len(series.valence)]
    known, present = series.known, series.there
    time, seen = float(cells[known].sum()), float(cells[present].sum())
    name = f'<th scope="row">{text(series.label)}</th><td>{clock(seen)}</td>'
    if time <= 0:
        return f'<tr>{name}<td colspan="{len(EMOTIONS) + 5}">no prediction</td></tr>'
    best = series.probabilities[known].argmax(axis=1)
    shares = [float(cells[known][best == i].sum()) / time for i in range(len(EMOTIONS))]
    most = int(np.argmax(shares))
    parts = "".join(
        f'<td class="share{" top" if i == most else ""}">{s:.0%}<svg class="{e}" viewBox="0 0 100 5" '
        f'preserveAspectRatio="none" aria-hidden="true"><rect width="{100 * s:.1f}" height="5"/></svg></td>'
        for i, (e, s) in enumerate(zip(EMOTIONS, shares, strict=True))
    )
    valence = series.valence[known]
    mean = float(np.average(valence, weights=np.maximum(cells[known], 1e-9)))
    face = float((series.coverage * cells)[present].sum()) / seen
    voice = float(cells[present & series.used["audio"]].sum()) / seen
    numbers = "".join(f"<td>{signed(float(v), 2)}</td>" for v in (mean, valence.min(), valence.max()))
    return f"<tr>{name}{parts}{numbers}<td>{face:.0%}</td><td>{voice:.0%}</td></tr>"


def moments(found: Sequence[Moment], pictures: Sequence[bytes | None]) -> str:
    """A list of buttons, with pictures where there are any."""
    items = []
    for moment, picture in zip(found, pictures, strict=True):
        image = ""
        if picture is not None:
            data = base64.b64encode(picture).decode()
            image = f'<img src="data:image/jpeg;base64,{data}" alt="">'
        items.append(
            f'<li><button type="button" class="moment {moment.emotion}" data-time="{moment.time:.3f}">{image}'
            f'<span><b>{clock(moment.time)}</b> <i class="dot {moment.emotion}"></i>{moment.emotion}<br>'
            f"<small>{text(moment.why)}</small></span></button></li>"
        )
    return "\n".join(items)


def listing(warnings: Sequence[str], most: int = 20) -> str:
    shown = [f"<li>{text(w)}</li>" for w in warnings[:most]]
    if len(warnings) > most:
        shown.append(f"<li>and {len(warnings) - most} more</li>")
    return "\n".join(shown)


def card(config: BundleConfig | None) -> str:
    """What made the predictions: from the bundle's config, with what a reader must know about it."""
    if config is None:
        return _notes([UNNAMED, *ABOUT])
    notes = [] if config.trained else [UNTRAINED]
    composites = config.provenance.get("kind") == "composites"
    notes += [COMPOSITES] if composites else []
    streams = ", ".join(f"{s.name} ({s.modality}: {s.encoder})" for s in config.streams)
    rows = {
        "Bundle": config.name,
        "Format": f"version {config.format_version}",
        "Licence": config.licence or "not stated",
        "Streams": streams,
        "Structures": ", ".join(config.fusion.structures),
    }
    made = [f"{k} {v}" for k, v in config.provenance.items() if isinstance(v, (str, int, float))]
    rows["Made by"] = "; ".join(made) or "not stated"
    items = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in rows.items())
    return f"{_notes([*notes, *ABOUT])}\n<dl>{items}</dl>\n{_scores(config.metrics, pseudo=composites)}"


def _notes(notes: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(note)}</li>" for note in notes) + "</ul>"


def _scores(metrics: Mapping[str, Any], *, pseudo: bool) -> str:
    """The scores that training wrote, of the average of the structures."""
    names = {"n": "clips", "weighted_f1": "weighted F1", "accuracy": "accuracy", "mse": "valence MSE"}
    rows = []
    sets = metrics.get("sets")
    for name, parts in sets.items() if isinstance(sets, Mapping) else ():
        for given, scores in parts.items() if isinstance(parts, Mapping) else ():
            if isinstance(scores, Mapping) and all(isinstance(scores.get(k), (int, float)) for k in names):
                cells = "".join(f"<td>{scores[k]:{'d' if k == 'n' else '.3f'}}</td>" for k in names)
                rows.append(f'<tr><th scope="row">{text(name)}</th><td>{text(given)}</td>{cells}</tr>')
    if not rows:
        return "<p>The bundle states no scores.</p>"
    head = "".join(f'<th scope="col">{label}</th>' for label in ("set", "given", *names.values()))
    note = " Valence was scored on pseudo-labels." if pseudo else ""
    return (
        f'<p class="hint">Scores that the bundle states, as measured when it was trained.{note}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Scores of the model"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
