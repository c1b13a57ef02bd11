"""Plots: what they show, at any size and length, and that nothing global changes; results read from JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from merfast import cli
from merfast.attention import Attention, StreamAttention
from merfast.courses import Course
from merfast.errors import ConfigError, OverloadedError
from merfast.palette import EMOTION_COLOURS, MODALITY_COLOURS, rgb
from merfast.types import EMOTIONS, Failure, Prediction

pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'merfast[plots]'")
from matplotlib.figure import Figure

from merfast.plot_parts import clock, spread
from merfast.plots import plot_timeline


def window(
    start: float, emotion: str | None = "happy", valence: float = 1.0, length: float = 4.0, **changes
) -> Prediction:
    values = np.full(6, 0.02 if emotion else np.nan, dtype=np.float32)
    if emotion:
        values[EMOTIONS.index(emotion)] = 0.9
    used = ("audio", "video") if emotion else ()
    shown = valence if emotion else float("nan")
    p = Prediction("films/talk $1$.mp4", start, start + length, emotion, values, shown, used, 1.0, track=0)
    return replace(p, **changes)


def attention(start: float, voice: float) -> Attention:
    """All on the first second; `voice` of it on the voice."""
    spans = start + np.array([[0.0, 1.0], [1.0, 4.0]])
    weights = np.array([1.0, 0.0], dtype=np.float32)
    streams = {
        "a": StreamAttention("audio", voice, spans, weights),
        "v": StreamAttention("video", 1 - voice, spans, weights),
    }
    return Attention(streams)


def pixels(figure) -> np.ndarray:
    """[H, W, 3] RGB, as the file has it."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    image = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    return image[..., ::-1]


def area(image: np.ndarray, colour: str) -> int:
    return int((np.abs(image.astype(int) - rgb(colour)).max(axis=-1) <= 3).sum())


def inside(figure, name: str) -> np.ndarray:
    """The pixels of the axes with a label."""
    image = pixels(figure)
    (ax,) = (a for a in figure.axes if a.get_label() == name)
    box = ax.get_position()
    high, wide = image.shape[:2]
    return image[round((1 - box.y1) * high) : round((1 - box.y0) * high), round(box.x0 * wide) : round(box.x1 * wide)]


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.texts] + [t.get_text() for ax in figure.axes for t in ax.texts]


def test_areas_are_probabilities() -> None:
    timeline = [window(float(k), EMOTIONS[k // 2]) for k in range(12)]
    image = inside(plot_timeline(timeline), "emotion")
    areas = np.array([area(image, c) for c in EMOTION_COLOURS.values()])
    assert areas / areas.sum() == pytest.approx(Course.of(timeline).means, abs=0.01)
    left, right = image[:, : image.shape[1] // 8], image[:, -image.shape[1] // 8 :]
    assert area(left, EMOTION_COLOURS["neutral"]) > 0.8 * left[..., 0].size
    assert area(right, EMOTION_COLOURS["surprise"]) > 0.8 * right[..., 0].size


def test_a_window_stands_for_the_stretch_that_it_is_nearest_to() -> None:
    spans = Course.of([window(0.0), window(1.0), window(2.0), window(20.0)]).spans
    assert spans.tolist() == [[0.0, 2.5], [2.5, 3.5], [3.5, 6.0], [20.0, 24.0]]


def test_valence_is_drawn_at_its_height() -> None:
    for valence in (-4.0, 0.0, 3.0):
        image = inside(plot_timeline([window(0.0, valence=valence)]), "valence")
        middle = image[:, image.shape[1] // 2 - 2 : image.shape[1] // 2 + 3]
        rows = np.nonzero((middle < 60).all(axis=-1))[0]
        assert (0.5 - rows.mean() / len(image)) * 10 == pytest.approx(valence, abs=0.3)


@pytest.mark.parametrize(("width", "height"), [(480, 320), (960, 480), (400, 320), (1920, 800)])
def test_every_name_fits_and_none_overlap(width: int, height: int) -> None:
    timeline = [window(float(k), EMOTIONS[k % 2], attention=attention(k, 0.25)) for k in range(9)]
    figure = plot_timeline(timeline, figure=Figure((width / 100, height / 100), dpi=100))
    assert pixels(figure).shape == (height, width, 3)
    boxes = [
        (t.get_text(), t.get_window_extent())
        for t in [*figure.texts, *(t for ax in figure.axes for t in [*ax.texts, *ax.get_yticklabels()])]
    ]
    last = figure.axes[-1]
    start, end = last.get_xlim()
    marks = zip(last.get_xticks(), last.get_xticklabels(), strict=True)
    boxes += [(t.get_text(), t.get_window_extent()) for x, t in marks if start <= x <= end]
    for i, (name, box) in enumerate(boxes):
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= width, name
        assert box.y1 <= height, name
        for other, there in boxes[:i]:
            wide = min(box.x1, there.x1) - max(box.x0, there.x0)
            high = min(box.y1, there.y1) - max(box.y0, there.y0)
            assert wide < 2 or high < 2, (name, other)
    said = " ".join(texts(figure))
    assert all(e in said for e in EMOTIONS)


def test_missing_modalities_leave_their_strips() -> None:
    missing = {"video": "no face found"}
    voice = [window(float(k), modalities=("audio",), missing=missing) for k in range(4, 8)]
    timeline = [window(float(k)) for k in range(4)] + voice + [window(float(k), None) for k in range(8, 12)]
    figure = plot_timeline(timeline)
    spans = np.diff(Course.of(timeline).spans)[:, 0]
    for name, count in (("audio", 8), ("video", 4)):
        strip = inside(figure, name)
        part = area(strip, MODALITY_COLOURS[name]) / strip[..., 0].size
        assert part == pytest.approx(spans[:count].sum() / spans.sum(), abs=0.02)
    nothing = inside(figure, "emotion")
    gap = nothing[:, -nothing.shape[1] // 5 :]
    assert sum(area(gap, c) for c in EMOTION_COLOURS.values()) < 20
    assert "no face found" in texts(plot_timeline(timeline, figure=Figure((14, 5), dpi=100)))


def test_failures_and_hops_leave_gaps() -> None:
    late = Failure("films/talk $1$.mp4", OverloadedError("too much"), 10.0, 14.0)
    image = inside(plot_timeline([window(0.0), late, window(10.0)]), "emotion")
    column = image[:, round(0.5 * image.shape[1])]
    assert sum(area(column[None], c) for c in EMOTION_COLOURS.values()) == 0


def test_attention_is_where_it_was() -> None:
    timeline = [window(4.0 * k, attention=attention(4.0 * k, 0.75)) for k in range(3)]
    figure = plot_timeline(timeline)
    strip = inside(figure, "audio").astype(float)
    shade = 255 - strip.mean(axis=(0, 2))  # a white strip has none
    seconds = np.array_split(shade, 12)
    strong = [float(s[2:-2].mean()) > 40 for s in seconds]
    assert strong == [True, False, False, False] * 3
    mute = [replace(w, modalities=("video",), attention=attention(w.start, 0.0)) for w in timeline]
    hatched = inside(plot_timeline(mute), "audio")
    assert hatched.std() > 3
    share = inside(figure, "share")
    voice, face = (area(share, MODALITY_COLOURS[m]) for m in ("audio", "video"))
    assert voice / (voice + face) == pytest.approx(0.75, abs=0.08)
    assert "75% attention" in texts(figure)


def test_an_hour_and_one_window() -> None:
    timeline = [window(float(k), EMOTIONS[k * 6 // 3600], valence=3.0 if k % 2 else -3.0) for k in range(3600)]
    image = inside(figure := plot_timeline(timeline), "emotion")
    areas = np.array([area(image, c) for c in EMOTION_COLOURS.values()])
    assert areas / areas.sum() == pytest.approx(np.full(6, 1 / 6), abs=0.02)
    band = inside(figure, "valence")
    assert (band < 240).all(axis=-1).mean() == pytest.approx(0.6, abs=0.1)  # from -3 to 3 of -5 to 5
    assert len(Course.of(timeline).thinned(500).windows) == 3600
    assert len(Course.of(timeline).thinned(500).spans) == 450
    plot_timeline(timeline[:1])


def test_one_prediction() -> None:
    for p in (window(0.0), window(0.0, attention=attention(0.0, 0.5)), window(0.0, None)):
        figure = p.plot()
        image = pixels(figure)
        bars = [area(image, c) for c in EMOTION_COLOURS.values()]
        assert (bars[2] > 10 * max(b for i, b in enumerate(bars) if i != 2)) == (p.emotion is not None)
        assert "talk $1$.mp4, 0.0 to 4.0 s" in figure.texts[0].get_text()
    whole = window(0.0, length=8.0, windows=(window(0.0), window(4.0)))
    assert {"emotion", "valence", "audio", "video"} == {a.get_label() for a in whole.plot().axes}


def test_several_faces() -> None:
    timeline = [window(float(k), "happy", others=(window(float(k), "sad", track=3),)) for k in range(4)]
    image = inside(plot_timeline(timeline, track=3), "emotion")
    assert area(image, EMOTION_COLOURS["sad"]) > 0.85 * image[..., 0].size
    swapped = [*timeline, window(4.0, "sad", track=3, others=(window(4.0, "happy"),))]
    assert len(Course.of(swapped, 3).windows) == 5
    with pytest.raises(ConfigError, match=r"track 7, expected one of \[0, 3\]"):
        plot_timeline(timeline, track=7)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="got none, expected at least one"):
        plot_timeline([])
    with pytest.raises(ConfigError, match="2 sources"):
        plot_timeline([window(0.0), window(4.0, source="b.mp4")])


def test_nothing_global_changes_and_pyplot_stays_out() -> None:
    code = (
        "import sys, matplotlib as m\n"
        "def state(): return {k: m.rcParams[k] for k in m.rcParams if k != 'backend'}\n"  # which is found by asking
        "before = state()\n"
        "sys.path[:0] = ['tests']; from test_plots import *\n"
        "pixels(plot_timeline([window(0.0)])); pixels(window(0.0).plot())\n"
        "print(state() == before, 'matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "False"]


def test_without_matplotlib() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None\n"
        "import numpy as np; from merfast.types import Prediction; from merfast import UnavailableError, cli\n"
        "p = Prediction('a', 0.0, 1.0, 'sad', np.full(6, 1 / 6, np.float32), 0.0, ('audio',), 0.0)\n"
        "try: p.plot()\nexcept UnavailableError as e: print(e)\n"
        "sys.exit(cli.main(['plot', 'a.json', '-o', 'a.png']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert "pip install 'merfast[plots]'" in run.stdout
    assert "pip install 'merfast[plots]'" in run.stderr


def test_places_are_spread() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.dirichlet(np.full(6, 0.3))
        at = spread(np.cumsum(p) - p / 2, 0.1)
        assert np.diff(at).min() >= 0.1 - 1e-9
        assert at[0] >= 0.05 - 1e-9
        assert at[-1] <= 0.95 + 1e-9
    assert spread(np.array([0.2, 0.5, 0.8]), 0.1) == pytest.approx([0.2, 0.5, 0.8])


def test_clock() -> None:
    assert [clock(t, e) for t, e in ((7, 20), (67, 90), (7267, 8000))] == ["7 s", "1:07", "2:01:07"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_command_draws_results(tmp_path: Path, suffix: str) -> None:
    (results := tmp_path / "a.json").write_text(json.dumps([window(float(k)).to_dict() for k in range(5)]))
    out = tmp_path / f"a{suffix}"
    assert cli.main(["plot", str(results), "-o", str(out), "--width", "480"]) == 0
    if suffix == ".png":
        assert cv2.imread(str(out)).shape[1] == 480
    elif suffix == ".svg":
        assert ET.parse(out).getroot().tag.endswith("svg")
    else:
        assert out.read_bytes().startswith(b"%PDF")


def test_the_command_draws_a_clip(face_clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert cli.main(["plot", str(face_clip), "-o", str(out), "--window", "1", "--hop", "0.5", "--threads", "1"]) == 0
    assert cv2.imread(str(out)).shape == (480, 960, 3)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [window(0.0).to_dict(), window(0.0, source="b.mp4").to_dict()]
    (results := tmp_path / "a.json").write_text(json.dumps(both))
    out = str(tmp_path / "a.png")
    for more, why in (
        ([], "results of 2 items, expected --item"),
        (["--item", "c"], "--item: got 'c'"),
        (["--item", "b.mp4", "-o", str(tmp_path / "none" / "a.png")], "existing folder"),
    ):
        assert cli.main(["plot", str(results), "-o", out, *more]) == 2
        assert why in capsys.readouterr().err
    assert cli.main(["plot", str(results), "-o", out, "--item", "b.mp4"]) == 0
    for more in (["-o", str(tmp_path / "a.bmp")], ["-o", out, "--width", "10"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["plot", str(results), *more])
