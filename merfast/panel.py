"""What is laid over a video: a panel with emotions and valence, and the names of faces."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from merfast.palette import EMOTION_COLOURS, rgb
from merfast.types import EMOTIONS, ByteArray, Prediction

SMALLEST = 6.0
"""Pixels of a capital letter, at least."""

LETTER = 0.021
"""Height of a capital letter, over the shorter side of the picture."""

HISTORY = 15.0
"""Seconds of valence that are shown."""

GROUND, INK, MUTED, TRACK = (17, 17, 17), (255, 255, 255), (186, 186, 186), (44, 44, 44)

_OPACITY = 0.74
_LETTERS = 22.5, 22.5  # width and height of a whole panel, over a letter's height
_HIGHEST_SHORT = 0.75
_WIDEST, _HIGHEST = 0.42, 0.56  # of a panel, over the picture's; where letters would be too small, it is a shorter one
_FINE = 4  # times larger are things drawn, so that their edges are smooth
_FONT = cv2.FONT_HERSHEY_DUPLEX
_CAPITAL = 21.0  # pixels of the font's capital letters at scale 1
_VALENCE = 5.0


def letter_for(width: int, height: int) -> float:
    """Pixels of a capital letter on a picture of this size."""
    return max(SMALLEST, LETTER * min(width, height))


class Sheet:
    """An RGBA picture to draw on, in pixels of its final size.

    Args:
        width, height: of it, in pixels.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = round(width), round(height)
        self._image = np.zeros((self.height * _FINE, self.width * _FINE, 4), dtype=np.uint8)

    def ground(self, radius: float) -> None:
        """Fill all of it but its round corners, half clear."""
        high, wide = self._image.shape[:2]
        r, shape = round(radius * _FINE), np.zeros((high, wide), dtype=np.uint8)
        cv2.rectangle(shape, (r, 0), (wide - 1 - r, high - 1), 255, -1)
        cv2.rectangle(shape, (0, r), (wide - 1, high - 1 - r), 255, -1)
        for x in (r, wide - 1 - r):
            for y in (r, high - 1 - r):
                cv2.circle(shape, (x, y), r, 255, -1)
        self._image[..., :3] = GROUND
        self._image[..., 3] = np.round(shape * _OPACITY)

    def bar(self, left: float, top: float, width: float, height: float, colour: tuple[int, int, int]) -> None:
        a, b = (round(left * _FINE), round(top * _FINE)), (round((left + width) * _FINE), round((top + height) * _FINE))
        if b[0] > a[0]:
            cv2.rectangle(self._image, a, (b[0] - 1, b[1] - 1), (*colour, 255), -1)

    def dot(self, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        cv2.circle(self._image, (round(x * _FINE), round(y * _FINE)), round(radius * _FINE), (*colour, 255), -1)

    def line(self, points: Sequence[tuple[float, float]], width: float, colour: tuple[int, int, int]) -> None:
        fine = np.round(np.array(points) * _FINE).astype(np.int32)
        cv2.polylines(self._image, [fine], False, (*colour, 255), max(1, round(width * _FINE)))

    def text(self, text: str, x: float, base: float, letter: float, colour: tuple[int, int, int], bold: bool) -> None:
        """Text on a base line; `letter` is the height of a capital."""
        at, size = (round(x * _FINE), round(base * _FINE)), letter * _FINE / _CAPITAL
        thick = max(1, round(letter * _FINE / (6.0 if bold else 8.5)))
        cv2.putText(self._image, text, at, _FONT, size, (*colour, 255), thick, cv2.LINE_8)

    def done(self) -> ByteArray:
        """`[height, width, 4]` RGBA."""
        whole = self._image.astype(np.float32)
        whole[..., :3] *= whole[..., 3:] / 255
        small = np.asarray(cv2.resize(whole, (self.width, self.height), interpolation=cv2.INTER_AREA), np.float32)
        small[..., :3] *= 255 / np.maximum(small[..., 3:], 1)
        return np.round(np.clip(small, 0, 255)).astype(np.uint8)


def width_of(text: str, letter: float, bold: bool = False) -> float:
    """Pixels of a text."""
    (wide, _), _ = cv2.getTextSize(text, _FONT, letter * _FINE / _CAPITAL, 1)
    return wide / _FINE + (letter / 6 if bold else 0)


class Panel:
    """Draws panels of one size, for pictures of one size.

    Args:
        width, height: of the pictures, in pixels.
        short: leave out what can be left out; so it is on small pictures, too.

    Attributes:
        width, height: of the panel.
        margin: pixels to leave at the picture's edge.
    """

    def __init__(self, width: int, height: int, *, short: bool = False) -> None:
        f = min(letter_for(width, height), _WIDEST * width / _LETTERS[0], _HIGHEST * height / _LETTERS[1])
        self._small = short or f < SMALLEST
        f = self._letter = letter_for(width, height) if self._small else f
        names = [e[:3] for e in EMOTIONS] if self._small else EMOTIONS
        self._names = dict(zip(EMOTIONS, names, strict=True))
        self._row = f * (1.45 if self._small else 1.8)
        self._edge = f * (0.6 if self._small else 1.2)
        self._bar = self._edge + max(width_of(n, f, True) for n in names) + f * (0.5 if self._small else 0.9)
        self._long = f * (4.0 if self._small else 8.0)
        self.width = round(self._bar + self._long + (self._edge if self._small else 5.2 * f))
        rows = self._row * len(EMOTIONS)
        self._reach = f * (1.3 if self._small else 2.2)
        self.height = round(2 * self._edge + rows + (self._row + 3.1 * f if self._small else 9.6 * f))
        if self._small and self.height > _HIGHEST_SHORT * height:
            self.height, self._reach = round(2 * self._edge + rows + self._row), 0.0
        self.margin = round(f)

    def draw(self, now: Prediction, recent: Sequence[tuple[float, float, float]]) -> ByteArray:
        """The panel as `[h, w, 4]` RGBA.

        Args:
            now: what it shows.
            recent: (start, end, valence) of the stretches up to now, in order; NaN where nothing is known.
        """
        f, sheet = self._letter, Sheet(self.width, self.height)
        sheet.ground(f)
        y = self._edge
        for number, emotion in enumerate(EMOTIONS):
            value, best = float(now.probabilities[number]), emotion == now.emotion
            base = y + (self._row + f) / 2
            ink = INK if best else MUTED
            sheet.text(self._names[emotion], self._edge, base, f, ink, best)
            high = 0.95 * f
            sheet.bar(self._bar, base - high, self._long, high, TRACK)
            if np.isfinite(value):
                sheet.bar(self._bar, base - high, self._long * value, high, rgb(EMOTION_COLOURS[emotion]))
                if not self._small:
                    self._right(sheet, f"{value:.0%}", base, f, ink, best)
            y += self._row
        self._valence(sheet, y, now, recent)
        return sheet.done()

    def _right(
        self, sheet: Sheet, text: str, base: float, letter: float, ink: tuple[int, int, int], bold: bool = False
    ) -> None:
        sheet.text(text, self.width - self._edge - width_of(text, letter, bold), base, letter, ink, bold)

    def _valence(self, sheet: Sheet, y: float, now: Prediction, recent: Sequence[tuple[float, float, float]]) -> None:
        f = self._letter
        value = f"{now.valence:+.1f}" if np.isfinite(now.valence) else "?"
        base = y + (self._row + f) / 2 + (0.0 if self._small else 0.5 * f)
        sheet.text("val" if self._small else "valence", self._edge, base, f, INK, False)
        self._right(sheet, value, base, f, INK, True)
        left, right, reach = self._edge, self.width - self._edge, self._reach
        if not reach:
            return
        middle = base + reach + (0.5 if self._small else 1.0) * f
        sheet.bar(left, middle - reach, right - left, 2 * reach, (38, 38, 38))
        sheet.line([(left, middle), (right, middle)], 0.08 * f, MUTED)
        for run in _runs(recent):
            end = recent[-1][1]
            points = [
                (max(left, right - (end - t) / HISTORY * (right - left)), middle - np.clip(v / _VALENCE, -1, 1) * reach)
                for a, b, v in run
                for t in (a, b)
                if b > end - HISTORY
            ]
            if points:
                sheet.line(points, 0.24 * f, INK)
        if np.isfinite(now.valence):
            sheet.dot(right, middle - now.valence / _VALENCE * reach, 0.42 * f, INK)
        if self._small:
            return
        said = {("audio", "video"): "voice + face", ("audio",): "voice alone", ("video",): "face alone"}
        text = said.get(now.modalities, "no voice, no face")
        sheet.text(text, left, middle + reach + 1.7 * f, 0.85 * f, MUTED, False)


def _runs(recent: Sequence[tuple[float, float, float]]) -> list[list[tuple[float, float, float]]]:
    """Stretches with a value that follow each other without a gap."""
    out: list[list[tuple[float, float, float]]] = []
    last: tuple[float, float, float] | None = None
    for one in recent:
        if np.isfinite(one[2]):
            if last is None or not np.isfinite(last[2]) or one[0] - last[1] > 1e-6:
                out.append([])
            out[-1].append(one)
        last = one
    return out


def name_tag(text: str, colour: str, letter: float) -> ByteArray:
    """A name to put on a face's box, as `[h, w, 4]` RGBA: a dot of the colour, and text."""
    f = letter
    sheet = Sheet(width_of(text, f, True) + 3.4 * f, 2.2 * f)
    sheet.ground(0.6 * f)
    sheet.dot(1.3 * f, 1.1 * f, 0.55 * f, rgb(colour))
    sheet.text(text, 2.3 * f, 1.6 * f, f, INK, True)
    return sheet.done()
