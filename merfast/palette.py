"""The colours of emotions and modalities, one set for all that is drawn.

Each has a contrast of 3 or more to white and to #111111 (WCAG 2.2, 1.4.11). Any two emotions are at least 19 apart in
CAM02-UCS, to normal eyes and to those without red, green or blue cones (Machado and others, 2009).
"""

from __future__ import annotations

EMOTION_COLOURS: dict[str, str] = {
    "neutral": "#636161",
    "angry": "#b52c18",
    "happy": "#d08400",
    "sad": "#3c57c8",
    "worried": "#9988d9",
    "surprise": "#21a694",
}
"""Emotion -> hex colour, in the order of `EMOTIONS`."""

MODALITY_COLOURS: dict[str, str] = {"audio": "#c04a86", "video": "#557a1f"}
"""Modality -> hex colour."""


def rgb(colour: str) -> tuple[int, int, int]:
    """`#rrggbb` as three values from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
