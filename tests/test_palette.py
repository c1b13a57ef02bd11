"""The colours can be told apart, by everyone, on white and on dark."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from merfast.palette import EMOTION_COLOURS, MODALITY_COLOURS, rgb
from merfast.types import EMOTIONS, MODALITIES

DARK = "#111111"
LEAST_CONTRAST = 3.0
LEAST_DISTANCE = {"emotions": 19.0, "modalities": 25.0}

ALL = EMOTION_COLOURS | MODALITY_COLOURS


def test_every_class_has_its_colour_in_order() -> None:
    assert tuple(EMOTION_COLOURS) == EMOTIONS
    assert tuple(MODALITY_COLOURS) == MODALITIES


def test_rgb() -> None:
    assert rgb("#0a80ff") == (10, 128, 255)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ground", ["#ffffff", DARK])
def test_contrast(name: str, ground: str) -> None:
    light, dark = sorted([_luminance(ALL[name]), _luminance(ground)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= LEAST_CONTRAST


@pytest.mark.parametrize("sight", [None, "protanomaly", "deuteranomaly", "tritanomaly"])
@pytest.mark.parametrize("kind", ["emotions", "modalities"])
def test_told_apart(sight: str | None, kind: str) -> None:
    colours = EMOTION_COLOURS if kind == "emotions" else MODALITY_COLOURS
    spot = {name: _seen(colour, sight) for name, colour in colours.items()}
    near = {(a, b): float(np.linalg.norm(spot[a] - spot[b])) for a, b in combinations(spot, 2)}
    assert min(near.values()) >= LEAST_DISTANCE[kind], near


def _luminance(colour: str) -> float:
    """Relative luminance, as WCAG defines it."""
    values = np.array(rgb(colour)) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _seen(colour: str, sight: str | None) -> np.ndarray:
    """CAM02-UCS of a colour as it is seen without one kind of cones, or with all."""
    convert = pytest.importorskip("colorspacious", reason="needs colorspacious").cspace_convert
    values = np.array(rgb(colour)) / 255
    if sight is not None:
        space = {"name": "sRGB1+CVD", "cvd_type": sight, "severity": 100}
        values = np.clip(convert(values, space, "sRGB1"), 0, 1)
    return np.asarray(convert(values, "sRGB1", "CAM02-UCS"))
