"""`write_report`: predictions of one medium as one web page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from merfast import __version__, report_card
from merfast.errors import ConfigError
from merfast.files import replace_file
from merfast.palette import EMOTION_COLOURS, MODALITY_COLOURS
from merfast.report_media import Media, pictures_at, prepare
from merfast.report_moments import decisive_moments
from merfast.report_series import Course, Doubles, Series, course_of
from merfast.types import EMOTIONS, Failure, Prediction

if TYPE_CHECKING:
    from merfast.config import BundleConfig

SCRIPTS = ("data.js", "view.js", "lanes.js", "player.js", "page.js")
"""One script, in this order."""

CHUNK = 3 << 18
"""Bytes of media in one element of the page: what is decoded without the reader noticing."""

UNKNOWN = -32768
"""Stands for a valence that there is none of."""


def write_report(
    out: str | Path,
    video: str | Path,
    results: Iterable[Prediction | Failure],
    *,
    bundle: BundleConfig | None = None,
    media: Literal["embed", "link", "none"] = "embed",
    transcode: bool = False,
    limit: float = 64.0,
) -> Path:
    """Write a page with the video, a timeline of its predictions, pictures at decisive moments, and a summary.

    The page is one file that makes no request but for a linked video. Windows are drawn around their middles; the
    moments are those of `report_moments.decisive_moments`.

    Args:
        out: the page; a file that is there is replaced.
        video: media file that the results are of.
        results: of its windows, as `Engine.timeline` gives them, or of the whole, as `Engine.predict` does; they are
            drawn after the media have been looked at. With `faces="all"` each face can be chosen.
        bundle: what made the results, for the page's footer: `engine.bundle.config`.
        media: "embed" the video in the page, "link" to it by a relative path, or "none" of it and no pictures.
        transcode: embed it as H.264 and AAC of at most 1280 pixels, even if browsers play it as it is.
        limit: MB of media that may be embedded.

    Returns:
        The path of the page.

    Raises:
        ConfigError: the media are larger than the limit, there are no results, those of several items, or the page
            cannot be written.
        MediaError: the media cannot be read.
        UnavailableError: the media have to be transcoded, and this FFmpeg has no x264.
    """
    page, file = Path(out), Path(video)
    if media not in ("embed", "link", "none"):
        raise ConfigError(f"media: got {media!r}, expected 'embed', 'link' or 'none'")
    if not page.parent.is_dir() or page.is_dir():
        raise ConfigError(f"{page}: cannot be written there, expected a file in an existing folder")
    if page.exists() and file.exists() and page.samefile(file):
        raise ConfigError(f"{page}: is the media file itself")
    prepared = prepare(file, page, how=media, transcode=transcode, limit=limit)
    course = course_of(results, str(video))
    found = decisive_moments(course)
    pictures = pictures_at(file, [m.time for m in found]) if prepared.kind == "video" else [None] * len(found)
    warnings = [*course.warnings, *_doubts(course, prepared)]
    parts = {
        "title": report_card.text(file.name),
        "facts": report_card.text(_facts(course)),
        "player": _player(prepared),
        "moments": report_card.moments(found, pictures),
        "no_moments": "" if found else "hidden",
        "summary": report_card.summary(course),
        "warnings": report_card.listing(warnings),
        "no_warnings": "" if warnings else "hidden",
        "card": report_card.card(bundle),
        "version": __version__,
        "data": _json(_data(course, prepared)),
        "legend": "".join(
            f'<button type="button" aria-pressed="false"><i class="dot {e}"></i>{e}</button>' for e in EMOTIONS
        ),
        "media": _chunks(prepared.content),
    }
    try:
        replace_file(page, _filled(parts).encode())
    except OSError as error:
        raise ConfigError(f"{page}: cannot be written ({error.strerror or error})") from error
    return page


def _filled(parts: dict[str, str]) -> str:
    assets = resources.files("merfast").joinpath("assets", "report")

    def read(name: str) -> str:
        return assets.joinpath(name).read_text(encoding="utf-8")

    colours = [f".{e}{{--colour:{c}}}" for e, c in EMOTION_COLOURS.items()]
    colours += [f":root{{--{m}:{c}}}" for m, c in MODALITY_COLOURS.items()]
    style = read("page.css") + "\n".join(colours) + "\n"
    script = '(() => {\n"use strict";\n' + "\n".join(read(name) for name in SCRIPTS) + "})();\n"
    # Nothing but this style and this script, whatever a name may contain; a linked video lies beside the page.
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "media-src 'self' file: blob:; base-uri 'none'; form-action 'none'"
    )
    parts = parts | {"style": style, "script": script, "policy": policy}
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], read("page.html"))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that no HTML parser sees a tag or comment in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _facts(course: Course) -> str:
    faces = f", {len(course.series) - 1} faces" if len(course.series) > 1 else ""
    windows = f"{len(course.starts)} window{'s' if len(course.starts) > 1 else ''} of {course.window:g} s"
    every = f", one every {course.hop:g} s" if len(course.starts) > 1 else ""
    return f"{report_card.clock(course.end)}{faces}; {windows}{every}"


def _doubts(course: Course, media: Media) -> Iterator[str]:
    if media.note:
        yield media.note
    if media.duration is not None and course.end > media.duration + max(1.0, 0.02 * media.duration):
        got, there = report_card.clock(course.end), report_card.clock(media.duration)
        yield f"The results go to {got}, but the media end at {there}: are they of another file?"


def _player(media: Media) -> str:
    if media.kind == "none":
        return ""
    source = f' src="{report_card.text(media.link)}"' if media.link else ""
    kind, mime = media.kind, report_card.text(media.mime)
    extra = " playsinline" if kind == "video" else ""
    return f'<{kind} id="media" controls preload="auto" data-type="{mime}"{source}{extra}></{kind}>'


def _chunks(content: bytes | None) -> str:
    if content is None:
        return ""
    parts = (content[i : i + CHUNK] for i in range(0, len(content), CHUNK))
    return "\n".join(f'<script type="text/plain" class="chunk">{_base64(part)}</script>' for part in parts)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _packed(values: npt.NDArray[Any], kind: str) -> str:
    """Little-endian values in base64."""
    return _base64(np.ascontiguousarray(values).astype(f"<{kind}").tobytes())


def _data(course: Course, media: Media) -> dict[str, Any]:
    """What the script draws; `data.js` reads it."""
    top = max((float(np.quantile(a, 0.995)) for s in course.series for a in s.attention.values()), default=0.0)
    return {
        "emotions": list(EMOTIONS),
        "starts": _packed(course.starts, "f4"),
        "ends": _packed(course.ends, "f4"),
        "edges": _packed(course.edges, "f4"),
        "hop": round(course.hop, 6),
        "bin": round(course.bin_seconds, 9),
        "linked": media.link is not None,
        "series": [_series_data(course, s, max(top, 1e-9)) for s in course.series],
    }


def _series_data(course: Course, series: Series, top: float) -> dict[str, Any]:
    known = series.known
    probabilities = np.where(known[:, None], series.probabilities, 0.0)
    valence = np.where(known, np.round(series.valence * 1000), UNKNOWN)
    flags = known + 2 * series.used["audio"] + 4 * series.used["video"] + 8 * series.there
    reasons = sorted(set(series.missing))
    place = {why: i for i, why in enumerate(reasons)}
    return {
        "label": series.label,
        "first": series.first,
        "probabilities": _packed(np.round(255 * probabilities), "u1"),
        "valence": _packed(valence, "i2"),
        "coverage": _packed(np.round(255 * series.coverage), "u1"),
        "flags": _packed(flags, "u1"),
        "reasons": reasons,
        "reason": _packed(np.array([place[why] for why in series.missing]), "u2"),
        "attention": {m: _bins(values, top) for m, values in series.attention.items()},
    }


def _bins(values: Doubles, top: float) -> dict[str, Any]:
    """The bins from the first to the last that is not zero, `top` becoming 255."""
    levels = np.minimum(255, np.round(255 * values / top))
    there = np.flatnonzero(levels)
    first, last = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
    return {"first": first, "values": _packed(levels[first:last], "u1")}
