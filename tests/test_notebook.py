"""What notebooks show: HTML that is whole, self-contained and escaped, and says what the prediction says."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from merfast.attention import Attention, StreamAttention
from merfast.errors import MediaError, OverloadedError
from merfast.notebook import OTHERS
from merfast.palette import EMOTION_COLOURS
from merfast.types import EMOTIONS, Failure, Prediction

PROBABILITIES = np.array([0.05, 0.1, 0.6, 0.2, 0.02, 0.03], dtype=np.float32)


class Page(HTMLParser):
    """Text, styles and titles of a piece of HTML; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.styles, self.titles, self._open = "", list[str](), list[str](), list[str]()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        given = dict(attrs)
        self.styles.append(given.get("style") or "")
        self.titles += [title] if (title := given.get("title")) else []

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.text += "\n" if tag == "div" else " "

    def handle_data(self, data: str) -> None:
        self.text += data

    def widths(self, emotion: str) -> list[float]:
        """Widths in per cent of what has the emotion's colour."""
        found = [re.search(r"width:([\d.]+)%", s) for s in self.styles if EMOTION_COLOURS[emotion] in s]
        return [float(m[1]) for m in found if m]


def prediction(**changes) -> Prediction:
    p = Prediction("talk.mp4", 1.0, 5.5, "happy", PROBABILITIES.copy(), 1.25, ("audio", "video"), 0.96, track=3)
    return replace(p, **changes)


def nothing(start: float = 0.0) -> Prediction:
    values, missing = np.full(6, np.nan, dtype=np.float32), {"audio": "silent", "video": "no face found"}
    return Prediction("talk.mp4", start, start + 4, None, values, math.nan, (), 0.0, missing)


def test_it_says_what_the_prediction_says() -> None:
    page = Page(prediction()._repr_html_())
    for words in ("talk.mp4", "face 3, 1.0-5.5 s", "happy", "60%", "+1.25", "face in 96% of the pictures", "voice"):
        assert words in page.text
    for emotion, share in zip(EMOTIONS, PROBABILITIES, strict=True):
        assert page.widths(emotion) == [pytest.approx(100 * share, abs=0.06)]
        assert re.search(rf"{emotion} +{share:.0%}", page.text)


@pytest.mark.parametrize(("valence", "place"), [(-5.0, "0.0%"), (0.0, "50.0%"), (1.25, "62.5%"), (5.0, "100.0%")])
def test_the_gauge_goes_from_minus_5_to_5(valence: float, place: float) -> None:
    page = Page(prediction(valence=valence)._repr_html_())
    assert sum(style.endswith(f"left:{place}") for style in page.styles) == 1


def test_it_needs_nothing_from_elsewhere_and_takes_the_notebooks_colours() -> None:
    windows = (prediction(), nothing(5.5))
    html = prediction(windows=windows, others=windows, warnings=("careful",))._repr_html_()
    page = Page(html)
    assert page.tags <= {"div", "span", "b"}
    assert page.attributes <= {"style", "title"}
    assert "url(" not in html
    assert "http" not in html
    colours = {m for style in page.styles for m in re.findall(r"(?:^|;)color:([^;]+)", style)}
    assert colours == {"currentColor"}
    assert len(html) < 12_000


def test_names_and_reasons_are_escaped() -> None:
    bad = "<script>alert(1)</script>&\"'.mp4"
    p = prediction(source=bad, modalities=("video",), missing={"audio": bad}, warnings=(bad,))
    for html in (p._repr_html_(), Failure(bad, MediaError(bad, bad))._repr_html_()):
        page = Page(html)
        assert "script" not in page.tags
        assert page.text.count(bad) >= 2


def test_windows_are_a_strip_with_as_many_parts_as_the_emotion_changes() -> None:
    sad = [prediction(start=4.0 * k, end=4.0 * k + 4, emotion="sad", valence=-1.0 - k) for k in range(3)]
    windows = (*sad, nothing(12.0), prediction(start=16.0, end=18.0))
    page = Page(prediction(windows=windows)._repr_html_())
    assert "5 windows" in page.text
    expected = [
        "0.0-12.0 s: sad, valence -2.00",
        "12.0-16.0 s: nothing to go by",
        "16.0-18.0 s: happy, valence +1.25",
    ]
    assert page.titles == expected
    flex = [float(m[1]) for s in page.styles if (m := re.match(r"flex:(\d+\.\d+);", s))]
    assert flex == [12.0, 4.0, 2.0]


def test_nothing_to_go_by() -> None:
    page = Page(nothing()._repr_html_())
    for words in ("nothing to go by", "no face: no face found", "no voice: silent"):
        assert words in page.text
    assert "nan" not in page.text.lower()
    assert page.widths("happy") == []


def test_attention_is_shown_where_there_is_some() -> None:
    spans, weights = np.array([[0.0, 1.0]]), np.ones(1, dtype=np.float32)
    streams = {
        "face": StreamAttention("video", 0.7, spans, weights),
        "mel": StreamAttention("audio", 0.3, spans, weights),
    }
    text = Page(prediction(attention=Attention(streams))._repr_html_()).text
    assert "face in 96% of the pictures, 70% of the attention" in text
    assert "voice, 30% of the attention" in text


def test_many_other_faces_are_counted() -> None:
    others = tuple(prediction(track=k) for k in range(4, 4 + OTHERS + 5))
    text = Page(prediction(others=others)._repr_html_()).text
    assert text.count("valence +1.25") == OTHERS
    assert "and 5 more faces" in text


def test_failures_say_why_and_when() -> None:
    text = Page(Failure("camera", OverloadedError("camera: too late"), 3.0, 7.0)._repr_html_()).text
    for words in ("camera", "failed", "OverloadedError", "too late", "3.0-7.0 s"):
        assert words in text


def test_python_alone_does_not_import_it() -> None:
    import subprocess
    import sys

    code = "import sys, merfast; assert 'merfast.notebook' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
