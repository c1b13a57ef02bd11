"""Timelines as annotations: ELAN (`.eaf`), Praat (`.TextGrid`) and WebVTT (`.vtt`).

Windows overlap, and annotations of a tier must not. What a prediction describes best is the middle of its window, so
each is given the stretch around that: where two windows overlap, the border lies in the middle of their overlap. With
windows of 4 s each second these are the seconds around the windows' middles; the first stretch begins where the first
window does, and the last one ends with the media. Windows that do not overlap keep their own times, with gaps between.

A window with neither face nor sound stays empty, and so does one that failed. Where any window has other faces
(`faces="all"`), each face track has tiers, or cues, of its own.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from merfast.errors import ConfigError
from merfast.types import EMOTIONS, Failure, Prediction


class Said(NamedTuple):
    """What is predicted of one face, or of the main one: emotion, its probability, and valence."""

    emotion: str
    probability: float
    valence: float


class Stretch(NamedTuple):
    """What annotations say of `[start, end)` seconds.

    Attributes:
        main: of the main face, or the voice alone; None if there is nothing to say.
        faces: of each face by its track, the main one's first.
    """

    start: float
    end: float
    main: Said | None
    faces: dict[int, Said]


class Tier(NamedTuple):
    """One row of annotations.

    Attributes:
        kind: "emotion" or "valence".
        face: as in "face 3"; empty for the main face's.
        labels: start, end and text, in order, without overlap.
    """

    kind: str
    face: str
    labels: list[tuple[float, float, str]]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.face}".strip()


class Annotations:
    """The stretches of one timeline, which is added window by window; they are all that is kept of it.

    Attributes:
        source: name of the item.
        stretches: one for each window, in order.
        several: whether any window has another face than the main one.
    """

    def __init__(self, timeline: Iterable[Prediction | Failure] = ()) -> None:
        self.source = ""
        self.stretches: list[Stretch] = []
        self.several = False
        self._window = (0.0, 0.0)  # the last one
        for result in timeline:
            self.add(result)

    def add(self, result: Prediction | Failure) -> None:
        """Add the next window; a failure of the whole item adds nothing.

        Raises:
            ConfigError: it does not begin after the one before, or is of another item.
        """
        start, end = result.start, result.end
        if start is None or end is None:
            return
        border = start
        if self.stretches:
            first, until = self._window
            if result.source != self.source:
                got = f"got windows of {self.source!r} and of {result.source!r}"
                raise ConfigError(f"timeline: {got}, expected those of one item")
            if start <= first:
                got = f"got a window from {start:g} s after one from {first:g} s"
                raise ConfigError(f"timeline of {self.source!r}: {got}, expected them in order")
            if start < until:
                border = (start + until) / 2
                self.stretches[-1] = self.stretches[-1]._replace(end=border)
        self.source, self._window = result.source, (start, end)
        if isinstance(result, Failure):
            self.stretches.append(Stretch(border, end, None, {}))
            return
        seen = [p for p in (result, *result.others) if p.track is not None]
        faces = {p.track: said for p in seen if p.track is not None and (said := _said(p))}
        self.several |= bool(result.others)
        self.stretches.append(Stretch(border, end, _said(result), faces))

    @property
    def end(self) -> float:
        """Where the last window ends, in seconds; 0 without any."""
        return self._window[1]

    def tiers(self) -> Iterator[Tier]:
        """Emotion and valence of the main face, then, if there are several, of each face by its track."""
        yield from _pair("", [(s.start, s.end, s.main) for s in self.stretches])
        if self.several:
            for track in sorted({track for s in self.stretches for track in s.faces}):
                yield from _pair(f"face {track}", [(s.start, s.end, s.faces.get(track)) for s in self.stretches])


def _pair(face: str, said: Sequence[tuple[float, float, Said | None]]) -> Iterator[Tier]:
    yield Tier("emotion", face, [(start, end, what.emotion) for start, end, what in said if what])
    yield Tier("valence", face, [(start, end, f"{what.valence:z.2f}") for start, end, what in said if what])


def _said(p: Prediction) -> Said | None:
    return None if p.emotion is None else Said(p.emotion, float(p.probabilities.max()), p.valence)


def write_eaf(timeline: Iterable[Prediction | Failure], file: str | Path, *, media: str | Path | None = None) -> None:
    """Write a timeline as annotations for ELAN, in EAF 3.0.

    Tiers `emotion`, with the six as a controlled vocabulary, and `valence`, with two decimals; with several faces
    `emotion face N` and `valence face N` for each track, too. Times are rounded to milliseconds.

    Args:
        timeline: windows of one item, in order, of `Engine.timeline` or a session; or `Prediction.windows`.
        file: to write; replaced at once when all is known.
        media: that ELAN shows with it, a path or URL; by default the timeline's source, if that is one.

    Raises:
        ConfigError: the windows are not in order, or of several items.
        OSError: the file cannot be written.
    """
    _write(file, eaf_text(Annotations(timeline), file, media))


def write_textgrid(timeline: Iterable[Prediction | Failure], file: str | Path) -> None:
    """Write a timeline as a TextGrid for Praat (long format, UTF-8), with the tiers of `write_eaf`.

    Intervals follow each other from 0 to the end of the last window, which may be up to 0.05 s before that of the
    media; where there is nothing to say they are empty.

    Args:
        timeline, file: as for `write_eaf`.

    Raises:
        ConfigError: there is no window, or they are not in order, or of several items.
        OSError: the file cannot be written.
    """
    _write(file, textgrid_text(Annotations(timeline)))


def write_vtt(timeline: Iterable[Prediction | Failure], file: str | Path) -> None:
    """Write a timeline as WebVTT, for players: cues such as `happy 82 % · valence +1.9`.

    With several faces, one cue for each, spoken by `face N`, or by `voice` where no face is seen, and beginning with
    that name.

    Args:
        timeline, file: as for `write_eaf`.

    Raises:
        ConfigError: the windows are not in order, or of several items.
        OSError: the file cannot be written.
    """
    _write(file, vtt_text(Annotations(timeline)))


def _write(file: str | Path, text: str) -> None:
    from merfast.files import replace_file

    replace_file(Path(file), text.encode("utf-8"))


_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def eaf_text(annotations: Annotations, file: str | Path, media: str | Path | None = None) -> str:
    """The content of an EAF file that will be written to `file`."""
    from merfast import __version__

    author = f"merfast {__version__}"
    document = {
        "AUTHOR": author,
        "DATE": datetime.now().astimezone().isoformat(timespec="seconds"),
        "FORMAT": "3.0",
        "VERSION": "3.0",
        "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
        "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
    }
    root = ET.Element("ANNOTATION_DOCUMENT", document)
    header = ET.SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    if described := _media(annotations.source if media is None else media, Path(file)):
        ET.SubElement(header, "MEDIA_DESCRIPTOR", described)
    order = ET.SubElement(root, "TIME_ORDER")
    slots: list[tuple[int, str]] = []
    count = 0
    for tier in annotations.tiers():
        row = ET.SubElement(root, "TIER", TIER_ID=tier.name, LINGUISTIC_TYPE_REF=tier.kind, ANNOTATOR=author)
        if tier.face:
            row.set("PARTICIPANT", tier.face)
        for start, end, text in tier.labels:
            times = round(1000 * start), round(1000 * end)
            if times[0] == times[1]:
                continue
            count += 1
            names = f"ts{2 * count - 1}", f"ts{2 * count}"
            slots += zip(times, names, strict=True)
            place = {"ANNOTATION_ID": f"a{count}", "TIME_SLOT_REF1": names[0], "TIME_SLOT_REF2": names[1]}
            if tier.kind == "emotion":
                place["CVE_REF"] = f"cve{EMOTIONS.index(text)}"
            annotation = ET.SubElement(ET.SubElement(row, "ANNOTATION"), "ALIGNABLE_ANNOTATION", place)
            ET.SubElement(annotation, "ANNOTATION_VALUE").text = text
    ET.SubElement(header, "PROPERTY", NAME="lastUsedAnnotationId").text = str(count)
    for time, name in sorted(slots, key=lambda slot: slot[0]):
        ET.SubElement(order, "TIME_SLOT", TIME_SLOT_ID=name, TIME_VALUE=str(time))
    for kind in ("emotion", "valence"):
        of_kind = {"LINGUISTIC_TYPE_ID": kind, "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
        vocabulary_of = {"CONTROLLED_VOCABULARY_REF": "emotion"} if kind == "emotion" else {}
        ET.SubElement(root, "LINGUISTIC_TYPE", of_kind | vocabulary_of)
    language = {"LANG_ID": "eng", "LANG_LABEL": "English (eng)", "LANG_DEF": "http://cdb.iso.org/lg/CDB-00138502-001"}
    ET.SubElement(root, "LANGUAGE", language)
    vocabulary = ET.SubElement(root, "CONTROLLED_VOCABULARY", CV_ID="emotion")
    ET.SubElement(vocabulary, "DESCRIPTION", LANG_REF="eng").text = "the classes of merfast"
    for i, emotion in enumerate(EMOTIONS):
        entry = ET.SubElement(vocabulary, "CV_ENTRY_ML", CVE_ID=f"cve{i}")
        ET.SubElement(entry, "CVE_VALUE", LANG_REF="eng", DESCRIPTION="").text = emotion
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _media(media: str | Path, file: Path) -> dict[str, str]:
    """Attributes of EAF's reference to media, from the file's folder; empty if they are neither a file nor a URL."""
    name = os.fspath(media)
    kind = mimetypes.guess_type(name)[0] or "unknown"
    mime = {"MIME_TYPE": {"audio/wav": "audio/x-wav"}.get(kind, kind)}
    if "://" in name:
        return mime | {"MEDIA_URL": _NO_XML.sub("\ufffd", name)}
    if not os.path.isfile(name):
        return {}
    # As ELAN writes and reads them: plain paths behind the scheme, in which a percent sign is one.
    folder, base = os.path.split(os.path.abspath(name))
    path = os.path.join(os.path.realpath(folder), base)
    relative = Path(os.path.relpath(path, os.path.realpath(file.parent))).as_posix()
    urls = {
        "MEDIA_URL": f"file:///{Path(path).as_posix().lstrip('/')}",
        "RELATIVE_MEDIA_URL": relative if relative.startswith("../") else f"./{relative}",
    }
    return mime | {k: _NO_XML.sub("\ufffd", v) for k, v in urls.items()}


def textgrid_text(annotations: Annotations) -> str:
    """The content of a TextGrid.

    Raises:
        ConfigError: there is no window, and a TextGrid needs a duration.
    """
    if not annotations.stretches:
        raise ConfigError("timeline: got no windows, expected at least one for a TextGrid")
    tiers = list(annotations.tiers())
    last = _seconds(annotations.end)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {last}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for i, tier in enumerate(tiers, 1):
        intervals = list(_contiguous(tier.labels, annotations.end))
        lines += [f"    item [{i}]:", '        class = "IntervalTier"', f"        name = {_quoted(tier.name)}"]
        lines += ["        xmin = 0", f"        xmax = {last}", f"        intervals: size = {len(intervals)}"]
        for k, (start, end, text) in enumerate(intervals, 1):
            lines += [f"        intervals [{k}]:", f"            xmin = {start}", f"            xmax = {end}"]
            lines.append(f"            text = {_quoted(text)}")
    return "\n".join(lines) + "\n"


def _contiguous(labels: Iterable[tuple[float, float, str]], end: float) -> Iterator[tuple[str, str, str]]:
    """Start, end and text of intervals from 0 to `end`, with empty ones where there is no label."""
    at = _seconds(0.0)
    for start, until, text in (*labels, (end, end, "")):
        begins, ends = _seconds(start), _seconds(until)
        if begins != at:
            yield at, begins, ""
        if ends != begins:
            yield begins, ends, text
        at = ends


def _seconds(time: float) -> str:
    return f"{time:.6f}".rstrip("0").rstrip(".")


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def vtt_text(annotations: Annotations) -> str:
    """The content of a WebVTT file."""
    source = " ".join(_escaped(annotations.source).split())
    blocks = [f"WEBVTT\n\nNOTE merfast: estimates of how people appear in {source}"]
    for s in annotations.stretches:
        faces = {f"face {track}": said for track, said in s.faces.items()}
        if not annotations.several or not faces:
            faces = {"voice" if annotations.several else "": s.main} if s.main else {}
        start, end = round(1000 * s.start), round(1000 * s.end)
        for name, said in faces.items():
            if start < end:
                what = f"{said.emotion} {100 * said.probability:.0f} % · valence {said.valence:+z.1f}"
                # Most players do not show who speaks.
                text = f"<v {name}>{name}: {what}" if name else what
                blocks.append(f"{_clock(start)} --> {_clock(end)}\n{text}")
    return "\n\n".join(blocks) + "\n"


def _clock(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
