"""The picture of `merfast live`: that it fits, and that it shows what came."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from merfast.big_letters import HEIGHT, big
from merfast.cli_view import MOVES, WARNS, LiveView
from merfast.palette import EMOTION_COLOURS
from merfast.types import EMOTIONS, Prediction


def window(end: float, emotion: str = "happy", valence: float = 1.5, *, share: float = 0.8, **changes) -> Prediction:
    values = np.full(6, (1 - share) / 5, dtype=np.float32)
    values[EMOTIONS.index(emotion)] = share
    p = Prediction("talk.mp4", end - 4, end, emotion, values, valence, ("audio", "video"), 1.0, track=0)
    return replace(p, **changes)


def empty(end: float) -> Prediction:
    nothing, missing = np.full(6, np.nan, dtype=np.float32), {"audio": "silent", "video": "no face found"}
    return Prediction("talk.mp4", end - 4, end, None, nothing, math.nan, (), 0.0, missing)


def watched(*windows: Prediction, late: float = 0.04) -> LiveView:
    view = LiveView("talk.mp4")
    for p in windows:
        view.add(p, late, p.end)
    return view


def text_of(view: LiveView, width: int = 80, height: int = 24, now: float = 1e6) -> list[str]:
    return [line.plain for line in view.lines(width, height, now, "14:05:33")]


@pytest.mark.parametrize("width", [20, 40, 60, 61, 80, 100, 133, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 8, 12, 15, 18, 24, 50])
def test_it_fits_any_terminal(width: int, height: int) -> None:
    others = tuple(window(0, "sad", -2.0, track=k) for k in range(1, 9))
    for view in (
        LiveView("a/long/name/" * 30 + "talk.mp4"),
        watched(window(4)),
        watched(empty(4)),
        watched(*(window(4 + k / 2, EMOTIONS[k % 6], 5 - k % 11, others=others) for k in range(300))),
        watched(window(4, others=others, warnings=("damaged " * 40,))),
    ):
        lines = view.lines(width, height, 4.2, "14:05:33")
        assert 1 <= len(lines) <= height
        assert all(line.cell_len <= width for line in lines)


def test_the_most_important_stays_in_a_short_terminal() -> None:
    view = watched(window(4, "angry", -2.0, share=0.7))
    assert text_of(view, height=2)[1] == "ANGRY  70%"
    assert [line.split()[0] for line in text_of(view, height=4)] == ["talk.mp4", "ANGRY", "●", "valence"]
    rows = [line.split()[0] for line in text_of(view, height=10)]
    assert rows == ["talk.mp4", "ANGRY", "●", *EMOTIONS, "valence"]
    large = text_of(view, height=24)
    assert [line.rstrip() for line in big("angry  70%")] == [line.rstrip() for line in large[2 : 2 + HEIGHT]]


@pytest.mark.parametrize("emotion", EMOTIONS)
@pytest.mark.parametrize("width", [60, 80])
def test_the_emotion_is_large_and_its_confidence_is_beside(emotion: str, width: int) -> None:
    lines = text_of(watched(window(4, emotion, share=0.77)), width)
    shown = lines[2 : 2 + HEIGHT]
    assert [line[: len(big(emotion)[0])] for line in shown] == big(emotion)
    assert any("77%" in line for line in shown) or [line[-len(big("77%")[0]) :] for line in shown] == big("77%")


def test_letters_are_the_pixels_meant() -> None:
    assert big("L1") == ["█    ▄█", "█     █", "▀▀▀▀  ▀"]
    assert len({tuple(big(c)) for c in "".join(sorted(set("".join(EMOTIONS).upper())))}) == len(set("".join(EMOTIONS)))


def test_bars_move_from_one_window_to_the_next_and_stop() -> None:
    view = watched(window(4, "sad", -2.0, share=1.0))
    view.add(window(5, "happy", 3.0, share=1.0), 0.0, 100.0)

    def share(emotion: str, now: float) -> int:
        (line,) = (line for line in text_of(view, now=now) if line.startswith(f"{emotion} "))
        return int(line.split()[1].rstrip("%"))

    times = [100.0, 100.0 + MOVES / 4, 100.0 + MOVES / 2, 100.0 + MOVES]
    happy, sad = ([share(e, t) for t in times] for e in ("happy", "sad"))
    assert (happy[0], happy[-1]) == (0, 100)
    assert (sad[0], sad[-1]) == (100, 0)
    assert 0 < happy[1] < happy[2] < 100
    assert [view.moves(t) for t in (*times, 100.0 + 2 * MOVES)] == [True, True, True, False, False]


@pytest.mark.parametrize(("valence", "place"), [(-5.0, 0.0), (0.0, 0.5), (2.5, 0.75), (5.0, 1.0)])
def test_the_gauge_goes_from_minus_5_to_5(valence: float, place: float) -> None:
    (line,) = (line for line in text_of(watched(window(4, valence=valence))) if line.startswith("valence"))
    scale = line[line.index("-5 ") + 3 : line.index(" +5")]
    assert scale.index("●") / (len(scale) - 1) == pytest.approx(place, abs=0.02)
    if valence:
        assert scale.index("┼") == len(scale) // 2
    assert line.endswith(f"{valence:+.2f}")


def colours_of(view: LiveView, width: int, row: int) -> list[str]:
    line = view.lines(width, 24, 1e6)[row]
    styles = [""] * len(line)
    for span in line.spans:
        styles[span.start : span.end] = [str(span.style)] * (span.end - span.start)
    return styles


def test_the_strip_has_the_colours_of_the_last_minute() -> None:
    """One column for each second of 60: angry for 30, then nothing, then happy."""
    angry = [window(float(k), "angry") for k in range(1, 41)]
    happy = [window(float(k), "happy") for k in range(51, 71)]
    view = watched(*angry, *(empty(float(k)) for k in range(41, 51)), *happy)
    lines = text_of(view, 60)
    strip = next(k for k, line in enumerate(lines) if line.startswith("60 s ago")) - 1
    expected = [EMOTION_COLOURS["angry"]] * 30 + ["dim"] * 10 + [EMOTION_COLOURS["happy"]] * 20
    assert colours_of(view, 60, strip) == expected
    assert lines[strip] == "▆" * 30 + "·" * 10 + "▆" * 20


def test_a_stretch_without_windows_is_blank_and_the_span_grows() -> None:
    view = watched(*(window(float(k)) for k in (1, 2, 3, 4, 9, 10, 11)))
    lines = text_of(view, 60)
    (strip,) = (lines[k - 1] for k, line in enumerate(lines) if line.startswith("15 s ago"))
    assert len(strip.split()) == 2
    for end, text in ((20.0, "30 s ago"), (40.0, "60 s ago"), (900.0, "60 s ago")):
        assert any(line.startswith(text) for line in text_of(watched(*(window(e) for e in (2.0, end)))))


def test_memory_is_that_of_a_minute() -> None:
    view = watched(*(window(float(k)) for k in range(1000)))
    assert len(view._recent) == 61


def test_a_tall_terminal_has_a_chart_of_valence() -> None:
    view = watched(*(window(4.0 + k, valence=-3 + k / 10) for k in range(61)))
    lines = text_of(view, 64, 40)
    top = next(k for k, line in enumerate(lines) if line.startswith("+3"))
    bottom = next(k for k, line in enumerate(lines) if line.startswith("-3"))
    marks = [min(lines[row].find(c) % 1000 for c in "▀▄") for row in range(top, bottom + 1)]
    assert marks == sorted(marks, reverse=True)  # it rises
    assert not any(line.startswith("+3") for line in text_of(view, 64, 20))


def test_what_is_there_and_what_is_not() -> None:
    assert "● face 0, 50% of the time   ● voice" in text_of(watched(window(4, face_coverage=0.5)))
    one = window(4, modalities=("video",), missing={"audio": "silent"})
    assert "● face 0, 100% of the time   ○ silent" in text_of(watched(one))
    nothing = text_of(watched(empty(4)))
    assert "○ no face found   ○ silent" in nothing
    assert "nothing to go by" in nothing
    assert any(line.startswith("valence") and "●" not in line for line in nothing)


def test_several_faces_have_lines() -> None:
    others = tuple(window(4, "sad", -2.0, track=k) for k in range(3, 9))
    lines = text_of(watched(window(4, others=others)), height=30)
    assert "6 other faces" in lines[6]
    assert [line.split()[1] for line in lines if line.startswith("face ")] == ["3", "4", "5", "6"]
    assert "sad" in next(line for line in lines if line.startswith("face 3"))
    assert "and 2 more faces" in lines


def test_warnings_stay_for_a_while_and_cannot_move_the_cursor() -> None:
    view = watched(window(4, warnings=("bad \x1b[2Jpacket",)))
    assert text_of(view, now=5.0)[-1] == "warning: bad \N{REPLACEMENT CHARACTER}[2Jpacket"
    view.warn("again", 6.0)
    assert text_of(view, now=7.0)[-1] == "warning (2 so far): again"
    assert not any("again" in line for line in text_of(view, now=6.0 + WARNS))


def test_the_summary_counts() -> None:
    assert LiveView("talk.mp4").summary() == "talk.mp4: no window"
    happy, sad = (window(k, "happy", 2.0) for k in (4.0, 5.0)), window(6.0, "sad", -1.0, modalities=("audio",))
    view = watched(*happy, sad, empty(7.0))
    assert view.summary() == (
        "talk.mp4: 0:07.0, 4 windows; happy 50%, sad 25%; mean valence +1.00; face in 50%; voice in 75%; "
        "0.04 s late at the median"
    )
