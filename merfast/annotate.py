"""`annotate`: a video with what the engine says of it drawn into its pictures."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from merfast.courses import Course, nearest
from merfast.errors import ConfigError, MediaError
from merfast.media.faces import Box
from merfast.media.planes import Coding, Picture, Sprite
from merfast.media.rewrite import FORMATS, rewrite
from merfast.palette import EMOTION_COLOURS
from merfast.panel import HISTORY, Panel, letter_for, name_tag
from merfast.sightings import Sightings
from merfast.types import Prediction

if TYPE_CHECKING:
    from merfast.engine import Engine

Progress = Callable[[str, float], None]

HIDDEN = 0.02
"""Part of all faces that a panel may hide before a shorter one is tried."""

_OTHER = "#bababa"  # the box of a face of which nothing is said
_LINE = 0.23  # of a box, over a letter's height
_HALO = 1.9  # of the dark line under it, over its own width


def annotate(
    engine: Engine,
    source: str | Path,
    target: str | Path,
    *,
    window: float = 4.0,
    hop: float = 1.0,
    faces: str | None = None,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Write a video with its faces' boxes, emotions and valence drawn in; its sound stays, and all timestamps.

    The file is read twice: for the timeline, and to draw. What is shown at a moment is said of the window whose centre
    is the nearest; the box of a face, its colour and its name are those of its own track.

    Args:
        engine: predicts.
        source: the file to read.
        target: the file to write: .mp4, .m4v, .mov or .mkv, with H.264. It appears when all is done.
        window, hop, faces: as for `Engine.timeline`.
        progress: called now and then with "predicting" or "drawing", and the seconds that are done.

    Returns:
        The timeline.

    Raises:
        ConfigError: the target is the source, of another format, or cannot be written; or an option is out of range.
        MediaError: the source cannot be read, or has no pictures.
    """
    source, target = Path(source), Path(target)
    check_target(source, target)
    say = progress or (lambda what, time: None)
    sightings = Sightings()
    timeline = []
    for prediction in engine.timeline(str(source), window=window, hop=hop, faces=faces, watch=sightings.add):
        timeline.append(prediction)
        say("predicting", prediction.end)
    drawing = Drawing(timeline, sightings)
    threads = engine.config.threads or len(os.sched_getaffinity(0))
    rewrite(source, target, drawing.paint, threads=threads, progress=lambda time: say("drawing", time))
    return timeline


def check_target(source: Path, target: Path) -> None:
    """Refuse before the work what cannot be written.

    Raises:
        ConfigError: the target is the source, of another format, or in no folder.
        MediaError: there is no such source.
    """
    if not source.is_file():
        raise MediaError(str(source), "no such file, expected a video file")
    if target.suffix.lower() not in FORMATS:
        raise ConfigError(f"{target}: got a name that ends in {target.suffix!r}, expected {', '.join(FORMATS)}")
    if not target.parent.is_dir() or target.is_dir():
        raise ConfigError(f"{target}: cannot be written there, expected a file in an existing folder")
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target}: is the video to read, expected another file")


class Drawing:
    """Draws what is known onto pictures.

    Args:
        timeline: of the video, with other faces' in `others`.
        sightings: where the faces were.
    """

    def __init__(self, timeline: list[Prediction], sightings: Sightings) -> None:
        self._course = Course.of(timeline)
        self._starts = self._course.spans[:, 0].tolist()
        self._sightings = sightings
        own: dict[int, list[Prediction]] = {}
        for p in timeline:
            for face in (p, *p.others):
                if face.track is not None and face.emotion is not None and "video" in face.modalities:
                    own.setdefault(face.track, []).append(face)
        self._own = {track: (nearest(said)[:, 0].tolist(), said) for track, said in own.items()}
        self._panel: Panel | None = None
        self._corner = (0, 0)
        self._shown: tuple[int, Sprite] | None = None  # number of the window
        self._tags: dict[tuple[str, str], Sprite] = {}

    def paint(self, picture: Picture, time: float) -> None:
        """Draw on the picture that is shown at a time."""
        if self._panel is None:
            self._panel, self._corner = self._placed(picture)
        letter = letter_for(picture.width, picture.height)
        boxes = {t: box.scaled(picture.width) for t, box in self._sightings.at(time).items()}
        said = {track: self._said(track, time) for track in boxes}
        for track, box in boxes.items():
            one = said[track]
            colour = EMOTION_COLOURS[one.emotion] if one is not None and one.emotion else _OTHER
            line = max(1.0, letter * _LINE * (1.0 if one is not None else 0.5))
            picture.outline(box, "#111111", line * _HALO, 0.55)
            picture.outline(box, colour, line)
        picture.lay(self._panel_at(time, picture.coding), *self._corner)
        for track, box in boxes.items():
            if (one := said[track]) is not None and one.emotion is not None:
                self._name(picture, box, one, letter)

    def _panel_at(self, time: float, coding: Coding) -> Sprite:
        number = max(0, bisect_right(self._starts, time) - 1)
        if self._shown is None or self._shown[0] != number:
            assert self._panel is not None
            end = self._course.spans[number, 1]
            recent = [
                (float(a), float(b), float(v))
                for (a, b), v in zip(self._course.spans[: number + 1], self._course.valence, strict=False)
                if b > end - HISTORY
            ]
            image = self._panel.draw(self._course.windows[number], recent)
            self._shown = number, Sprite.of(image, coding)
        return self._shown[1]

    def _said(self, track: int, time: float) -> Prediction | None:
        """Of a face, by the window that has the nearest centre of those that reach there and say something of it."""
        if track not in self._own:
            return None
        starts, said = self._own[track]
        one = said[max(0, bisect_right(starts, time) - 1)]
        return one if one.start <= time < one.end + 1e-6 else None

    def _name(self, picture: Picture, box: Box, said: Prediction, letter: float) -> None:
        """Put the emotion's name above a face, or within its box where there is no room."""
        assert said.emotion is not None
        text = f"{said.emotion} {float(said.probabilities.max()):.0%}"
        key = text, said.emotion
        if key not in self._tags:
            self._tags[key] = Sprite.of(name_tag(text, EMOTION_COLOURS[said.emotion], letter), picture.coding)
        tag = self._tags[key]
        wide, high = tag.size
        left = min(max(0, round(box.x - box.side / 2)), max(0, picture.width - wide))
        top = round(box.y - box.side / 2 - high - 0.4 * letter)
        picture.lay(tag, left, top if top >= 0 else max(0, round(box.y - box.side / 2 + 0.5 * letter)))

    def _placed(self, picture: Picture) -> tuple[Panel, tuple[int, int]]:
        """The panel, and (left, top) of it: a short one where a whole one would hide twice as much of the faces."""
        whole, short = (Panel(picture.width, picture.height, short=short) for short in (False, True))
        (corner, hidden), (other, less) = (self._free_corner(panel, picture) for panel in (whole, short))
        return (short, other) if hidden > max(HIDDEN, 2 * less) else (whole, corner)

    def _free_corner(self, panel: Panel, picture: Picture) -> tuple[tuple[int, int], float]:
        """(left, top) in the corner that faces use the least, and what part of them it hides there.

        The bottom left one is taken where none is used.
        """
        right = max(0, picture.width - panel.width - panel.margin)
        bottom = max(0, picture.height - panel.height - panel.margin)
        near = min(panel.margin, right), min(panel.margin, bottom)
        places = [(near[0], bottom), (right, bottom), (near[0], near[1]), (right, near[1])]
        areas = np.array([(x, y, x + panel.width, y + panel.height) for x, y in places]) / picture.width
        hidden = self._sightings.hidden(areas)
        best = int(hidden.argmin())
        return places[best], float(hidden[best])
