"""Pictures and sound in the forms in which they are pushed."""

from __future__ import annotations

from typing import Any

import av
import cv2
import numpy as np
import pytest

from merfast.media.pushed import Pictures, mono


def stored(form: str) -> av.VideoFrame:
    """A coarse picture in many colours, so that no chroma is lost."""
    colours = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(colours, (64, 48), interpolation=cv2.INTER_NEAREST)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return frame.reformat(format=form, dst_colorspace="ITU601", dst_color_range="MPEG")


@pytest.mark.parametrize("form", ["frame", "rgb", "yuv", "nv12", "nv12 pairs"])
def test_every_form_gives_the_same_picture(form: str) -> None:
    frame = stored("nv12" if "nv12" in form else "yuv420p")
    expected = frame.to_ndarray(format="rgb24").astype(int)
    packed = frame.to_ndarray()
    picture: Any = frame
    if form == "rgb":
        picture = frame.to_ndarray(format="rgb24")
    elif form == "yuv":
        u, v = packed[48:].reshape(2, 24, 32)
        picture = packed[:48], u, v
    elif form == "nv12":
        picture = packed[:48], packed[48:]
    elif form == "nv12 pairs":
        picture = packed[:48], packed[48:].reshape(24, 32, 2)
    made = Pictures("stream").check(picture)(1.5)
    assert (made.time, made.width, made.height) == (1.5, 64, 48)
    difference = np.abs(made.rgb().astype(int) - expected)
    assert np.median(difference) <= 2
    assert np.quantile(difference, 0.9) <= 12  # where colours meet, chroma is between them


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0.5, -0.25]), [0.5, -0.25]),
        (np.array([16384, -32768], np.int16), [0.5, -1.0]),
        (np.array([[0.5, 0.25], [1.0, 0.0]], np.float32), [0.375, 0.5]),
        (np.array([[32767], [0]], np.int16), [32767 / 32768, 0.0]),
        (np.zeros((0, 2), np.float32), []),
    ],
)
def test_sound_in_every_form(samples: np.ndarray, expected: list[float]) -> None:
    out = mono("mic", samples, 16_000)
    assert out.dtype == np.float32
    assert out.tolist() == expected
    assert not np.shares_memory(out, samples)
