"""Reports without a browser: how results are laid out, which moments are chosen, what the file holds."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import set_rotation, write_video, write_wav

import merfast
from benchmarks.report_inputs import synthetic
from merfast import cli
from merfast.attention import Attention, StreamAttention
from merfast.bundle import packaged, read_config
from merfast.errors import ConfigError, MediaError, MerfastError
from merfast.report import write_report
from merfast.report_card import clock
from merfast.report_media import pictures_at, prepare
from merfast.report_moments import decisive_moments
from merfast.report_series import course_of
from merfast.saved import read_results
from merfast.types import EMOTIONS, Failure, Prediction


def window(k: float, emotion: str = "happy", sure: float = 0.9, valence: float = 0.0, **changes) -> Prediction:
    values = np.full(6, (1 - sure) / 5, dtype=np.float32)
    values[EMOTIONS.index(emotion)] = sure
    p = Prediction("a.mp4", k, k + 2.0, emotion, values, valence, ("audio", "video"), 1.0, track=0)
    return replace(p, **changes)


def empty(k: float) -> Prediction:
    nothing, missing = np.full(6, np.nan, dtype=np.float32), {"audio": "silent", "video": "no face found"}
    return Prediction("a.mp4", k, k + 2.0, None, nothing, float("nan"), (), 0.0, missing)


def attention(start: float, end: float, weights: list[float], modality: str = "video") -> Attention:
    marks = np.linspace(start, end, len(weights) + 1)
    spans = np.stack([marks[:-1], marks[1:]], axis=1)
    values = np.array(weights, dtype=np.float32)
    return Attention({"face": StreamAttention(modality, 1.0, spans, values / values.sum())})


class Texts(HTMLParser):
    """Text by tag, attributes of tags, and the page's data."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts.setdefault(self.tags[-1][0], []).append(data)

    @property
    def data(self) -> dict:
        return json.loads(next(t for t in self.texts["script"] if t.startswith("{")))


def floats(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def test_cells_meet_between_the_middles_of_windows() -> None:
    course = course_of([window(k) for k in (0, 1, 2, 4)])
    np.testing.assert_allclose(course.edges, [0, 1.5, 2.5, 4, 6])
    assert (course.hop, course.window, course.end) == (1.0, 2.0, 6.0)


def test_parts_of_a_whole_and_of_its_other_faces_are_taken() -> None:
    other = [window(k, "sad", track=7) for k in (0, 2)]
    parts = (window(0), window(2))
    whole = replace(window(0), end=4.0, windows=parts, others=(replace(other[0], end=4.0, windows=tuple(other)),))
    course = course_of([whole])
    assert [s.label for s in course.series] == ["Main face", "Face 0", "Face 7"]
    assert course.series[2].probabilities[:, EMOTIONS.index("sad")].tolist() == pytest.approx([0.9, 0.9])


def test_tracks_keep_their_own_stretch() -> None:
    results = [window(k, track=3 if k < 5 else 4) for k in range(10)]
    results[8] = replace(results[8], others=(window(8, "angry", track=3),))
    main, four, three = sorted(course_of(results).series, key=lambda s: s.label, reverse=True)
    assert (main.label, four.first, len(four.valence), three.first, len(three.valence)) == ("Main face", 5, 5, 0, 9)
    assert three.there.tolist() == [True] * 5 + [False] * 3 + [True]
    assert EMOTIONS[int(three.probabilities[8].argmax())] == "angry"


def test_failures_become_gaps_and_warnings() -> None:
    late = merfast.OverloadedError("too much")
    refused = [Failure("a.mp4", late, start, start + 2) for start in (1.0, 2.0)]
    course = course_of([window(0), *refused, window(3, warnings=("x",))])
    assert course.series[0].known.tolist() == [True, False, False, True]
    assert course.warnings == ("x", "2 failed: too much")


def test_results_of_several_items_are_told_apart_by_name() -> None:
    results = [window(0), replace(window(0, "sad"), source="b.mp4")]
    assert course_of(results, "b.mp4").series[0].probabilities[0].argmax() == EMOTIONS.index("sad")
    with pytest.raises(ConfigError, match=r"got those of 2 items \(a.mp4, b.mp4\), none is 'c.mp4'"):
        course_of(results, "c.mp4")
    with pytest.raises(ConfigError, match="got no windows: failed: gone"):
        course_of([Failure("a.mp4", MerfastError("gone"))])


def test_attention_is_relative_to_an_even_spread() -> None:
    course = course_of([window(0, attention=attention(0, 2, [1, 1, 1, 1])), window(2, attention=None)])
    even = course.series[0].attention["video"]
    np.testing.assert_allclose(even[: len(even) // 2], 1.0)
    assert not even[len(even) // 2 :].any()
    # Half of all attention on the first quarter of a second window: twice as much as evenly.
    first, second = attention(0, 2, [3, 1, 1, 1]), attention(1, 3, [1] * 4)
    course = course_of([window(0, attention=first), window(1, attention=second)])
    values = course.series[0].attention["video"]
    np.testing.assert_allclose(values[:5], 2.0)  # one window holds it
    np.testing.assert_allclose(values[10:15], (4 / 6 + 1) / 2)  # the mean of two


def test_moments_are_where_confidence_valence_and_attention_peak() -> None:
    results = [window(k, sure=0.5, attention=attention(k, k + 2, [1] * 8)) for k in range(40)]
    results[10] = window(10, "sad", sure=0.97, attention=attention(10, 12, [1] * 8))
    for k in range(20, 40):
        results[k] = replace(results[k], valence=-3.0)
    results[30] = replace(results[30], attention=attention(30, 32, [1, 1, 1, 1, 60, 1, 1, 1]))
    found = {m.why: m for m in decisive_moments(course_of(results))}
    assert found["confidence peaks: 97%"].time == pytest.approx(11)
    assert found["confidence peaks: 97%"].emotion == "sad"
    assert found["valence falls to \N{MINUS SIGN}3.0"].time == pytest.approx(21)
    assert 31.0 <= found["attention peaks, on the face"].time <= 31.25


def test_moments_are_few_spread_out_and_reproducible() -> None:
    course = course_of(synthetic(1800, explain=True))
    found = decisive_moments(course)
    assert found == decisive_moments(course_of(synthetic(1800, explain=True)))
    assert len(found) == 12
    assert min(np.diff([m.time for m in found])) >= 1800 / 24 - 1
    assert len({re.sub(r"[^a-z ].*", "", m.why) for m in found}) >= 3  # none of the curves has them all


@pytest.mark.parametrize(
    ("results", "expected"), [([window(0)], 1), ([window(k) for k in range(5)], 1), ([empty(0)], 0)]
)
def test_moments_of_what_never_changes(results: list[Prediction], expected: int) -> None:
    assert len(decisive_moments(course_of(results))) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.26, "0:07.3"), (59.96, "1:00"), (61.4, "1:01"), (3599.7, "1:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_page_holds_the_predictions(tmp_path: Path) -> None:
    results = [*synthetic(60, explain=True), empty(100.0)]
    results = [replace(p, source="a.mp4") for p in results]
    page = Texts(write_report(tmp_path / "r.html", "a.mp4", results, media="none"))
    series = page.data["series"][0]
    known = [p.emotion is not None for p in results]
    np.testing.assert_allclose(floats(page.data["starts"], "<f4"), [p.start for p in results])
    wanted = np.array([p.probabilities if k else np.zeros(6) for p, k in zip(results, known, strict=True)])
    np.testing.assert_allclose(floats(series["probabilities"], "u1").reshape(-1, 6) / 255, wanted, atol=0.002)
    valence = floats(series["valence"], "<i2")
    np.testing.assert_allclose(valence[known] / 1000, [p.valence for p in results if p.emotion], atol=0.0006)
    assert (valence[~np.array(known)] == -32768).all()
    flags = floats(series["flags"], "u1")
    assert (flags & 2 > 0).tolist() == ["audio" in p.modalities for p in results]
    reasons = [series["reasons"][i] for i in floats(series["reason"], "<u2")]
    assert reasons[-1] == "no voice: silent; no face: no face found"
    assert floats(series["attention"]["audio"]["values"], "u1").max() == 255


def test_summary_shares_follow_time(tmp_path: Path) -> None:
    results = [window(k, "happy" if k < 30 else "sad", valence=2.0 if k < 30 else -1.0) for k in range(40)]
    text = write_report(tmp_path / "r.html", "a.mp4", results, media="none").read_text()
    row = re.search(r"<tr><th scope=\"row\">Face and voice.*?</tr>", text)
    assert row is not None
    cells = re.findall(r"<td[^>]*>([^<]*)", row[0])
    # Cells: 41 s, of which happy has the first 30.5.
    shares = ["0%", "0%", "74%", "26%", "0%", "0%"]
    assert cells == ["0:41", *shares, "+1.23", "\N{MINUS SIGN}1.00", "+2.00", "100%", "100%"]


def test_names_and_reasons_cannot_break_out(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--\u2028\"'& é"
    results = [replace(window(0), source=evil, missing={"audio": evil}, modalities=("video",), warnings=(evil,))]
    config = replace(read_config(packaged()), name=evil, licence=evil)
    video = tmp_path / "<img src=x onerror=alert(1)>\"'\udcff.mp4"
    page = Texts(write_report(tmp_path / "r.html", video, results, bundle=config, media="none"))
    assert [tag for tag, _ in page.tags].count("script") == 2  # the data and the page's own
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert evil in "".join(page.texts["li"])
    assert page.texts["bdi"] == ["<img src=x onerror=alert(1)>\"'\N{REPLACEMENT CHARACTER}.mp4"]
    assert page.data["series"][0]["reasons"] == [f"no voice: {evil}"]


def test_card_says_what_the_bundle_is(tmp_path: Path) -> None:
    config = read_config(packaged())
    text = write_report(tmp_path / "r.html", "a.mp4", [window(0)], media="none", bundle=config).read_text()
    for said in ("merfast-mini", "CC BY-NC-SA 4.0", "demonstration model", "pseudo-labels", "reconstruction", "0.792"):
        assert said in text
    untrained = replace(config, trained=False, metrics={}, provenance={})
    text = write_report(tmp_path / "r.html", "a.mp4", [window(0)], media="none", bundle=untrained).read_text()
    assert "UNTRAINED" in text
    assert "states no scores" in text
    assert "demonstration" not in text.replace(config.licence, "")
    text = write_report(tmp_path / "r.html", "a.mp4", [window(0)], media="none").read_text()
    assert "does not say which model" in text


def test_an_hour_with_attention_and_faces_is_small(tmp_path: Path) -> None:
    page = write_report(tmp_path / "r.html", "a.mp4", synthetic(3603, faces=4, explain=True), media="none")
    assert len(Texts(page).data["series"]) == 5
    assert page.stat().st_size < 1_000_000


def test_results_come_back_from_json(tmp_path: Path) -> None:
    results = [*synthetic(30, faces=3, explain=True), empty(40), Failure("a.mp4", MerfastError("gone"), 41.0, 45.0)]
    lines, array = tmp_path / "lines.jsonl", tmp_path / "array.json"
    lines.write_text("\n".join(json.dumps(r.to_dict()) for r in results) + "\n\n")
    array.write_text(json.dumps([r.to_dict() for r in results]))
    for file in (lines, array):
        assert [r.to_dict() for r in read_results(file)] == [r.to_dict() for r in results]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ('{"source": "a"}', "line 1: missing 'probabilities', expected a result"),
        ("[1]", "entry 0: got int, expected a result"),
        (json.dumps(window(0).to_dict() | {"emotion": "bored"}), "got emotion 'bored'"),
        (json.dumps(window(3).to_dict() | {"end": 1}), "got a start of 3.0 and an end of 1.0"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_results(file)


def colours(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Pictures, each of another grey."""
    return [np.full((height, width, 3), 20 + 20 * i, dtype=np.uint8) for i in range(count)]


def test_what_browsers_play_is_embedded_as_it_is(tmp_path: Path, face_clip: Path) -> None:
    media = prepare(face_clip, tmp_path / "r.html", how="embed")
    assert (media.kind, media.mime, media.content) == ("video", "video/mp4", face_clip.read_bytes())
    page = write_report(tmp_path / "r.html", face_clip, [window(0)])
    chunks = re.findall(r'<script type="text/plain" class="chunk">([^<]*)', page.read_text())
    assert b"".join(base64.b64decode(c) for c in chunks) == face_clip.read_bytes()


def streams_of(content: bytes) -> dict[str, str]:
    import io

    with av.open(io.BytesIO(content)) as made:
        return {s.type: s.codec.canonical_name for s in made.streams} | {"format": made.format.name}


def test_h264_in_another_container_is_repacked(tmp_path: Path) -> None:
    sound = 0.1 * np.sin(np.arange(48_000) / 20)
    file = write_video(tmp_path / "a.mkv", colours(10) * 3, fps=10, audio=sound.astype(np.float32))
    content = prepare(file, tmp_path / "r.html", how="embed").content
    assert content is not None
    assert streams_of(content) == {"video": "h264", "audio": "aac", "format": "mov,mp4,m4a,3gp,3g2,mj2"}
    packets = [[p.size for p in av.open(f).demux(video=0) if p.size] for f in (str(file), _file(tmp_path, content))]
    assert len(packets[0]) == len(packets[1]) == 30


def _file(folder: Path, content: bytes) -> str:
    out = folder / "content.mp4"
    out.write_bytes(content)
    return str(out)


def test_other_codecs_are_transcoded_upright_and_in_time(tmp_path: Path) -> None:
    times = [0.0, 0.5, 0.6, 2.0, 2.1]
    file = write_video(tmp_path / "a.mp4", colours(5, 48, 96), pts=times, codec="mjpeg", pix_fmt="yuvj420p")
    set_rotation(file, 90)
    content = prepare(file, tmp_path / "r.html", how="embed").content
    with av.open(_file(tmp_path, content or b"")) as made:
        frames = list(made.decode(video=0))
        assert made.streams.video[0].codec.canonical_name == "h264"
    assert [(f.width, f.height) for f in frames] == [(48, 96)] * 5
    assert [f.time for f in frames] == pytest.approx(times, abs=1e-3)
    greys = [f.to_ndarray(format="rgb24").mean() for f in frames]
    assert greys == pytest.approx([20, 40, 60, 80, 100], abs=4)


def test_sound_alone(tmp_path: Path) -> None:
    file = write_wav(tmp_path / "a.wav", 0.1 * np.sin(np.arange(32_000) / 20))
    media = prepare(file, tmp_path / "r.html", how="embed")
    assert (media.kind, media.mime, media.content) == ("audio", "audio/wav", file.read_bytes())
    media = prepare(file, tmp_path / "r.html", how="embed", transcode=True)
    assert streams_of(media.content or b"") == {"audio": "aac", "format": "mov,mp4,m4a,3gp,3g2,mj2"}
    assert '<audio id="media"' in write_report(tmp_path / "r.html", file, [window(0)]).read_text()


def test_media_above_the_limit_are_refused_before_anything_is_predicted(tmp_path: Path, face_clip: Path) -> None:
    def results():
        pytest.fail("predicted for nothing")
        yield

    with pytest.raises(ConfigError, match=r"got 0\.\d MB, expected at most 0.01 to embed: .*link.*or transcode"):
        write_report(tmp_path / "r.html", face_clip, results(), limit=0.01)
    assert not (tmp_path / "r.html").exists()


def test_links_are_relative_and_quoted(tmp_path: Path, face_clip: Path) -> None:
    (tmp_path / "out").mkdir()
    video = tmp_path / "a: b#c?%é.mp4"
    video.write_bytes(face_clip.read_bytes())
    page = Texts(write_report(tmp_path / "out" / "r.html", video, [window(0)], media="link"))
    source = next(attributes["src"] for tag, attributes in page.tags if tag == "video")
    assert source == "./../a%3A%20b%23c%3F%25%C3%A9.mp4"


def test_pictures_are_those_of_the_moments(tmp_path: Path) -> None:
    import cv2

    file = write_video(tmp_path / "a.mp4", colours(10), fps=1)
    found = pictures_at(file, [8.5, 0.0, 3.9, 9.9])
    greys = [cv2.imdecode(np.frombuffer(p or b"", np.uint8), cv2.IMREAD_COLOR).mean() for p in found]
    assert greys == pytest.approx([180, 20, 80, 200], abs=4)


def test_results_longer_than_the_media_are_doubted(tmp_path: Path, face_clip: Path) -> None:
    text = write_report(tmp_path / "r.html", face_clip, synthetic(60)).read_text()
    assert "The results go to 1:00, but the media end at 0:02.5: are they of another file?" in text


def test_errors_name_the_file(tmp_path: Path, face_clip: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no media")
    with pytest.raises(MediaError, match=r"broken\.mp4: cannot be read as media"):
        write_report(tmp_path / "r.html", broken, [window(0)])
    with pytest.raises(ConfigError, match="expected a file in an existing folder"):
        write_report(tmp_path / "none" / "r.html", face_clip, [window(0)])
    with pytest.raises(ConfigError, match="is the media file itself"):
        write_report(face_clip, face_clip, [window(0)])
    with pytest.raises(ConfigError, match="media: got 'inline'"):
        write_report(tmp_path / "r.html", face_clip, [window(0)], media="inline")


def test_command_predicts_and_writes(tmp_path: Path, face_clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"
    assert cli.main(["report", str(face_clip), "-o", str(out), "--window", "1", "--hop", "0.5"]) == 0
    assert f"{out} (" in capsys.readouterr().out
    page = Texts(out)
    assert len(floats(page.data["starts"], "<f4")) == 4
    assert page.data["hop"] == 0.5
    assert "merfast-mini" in page.texts["dd"]


def test_command_takes_results_that_exist(tmp_path: Path, face_clip: Path) -> None:
    saved = tmp_path / "saved.jsonl"
    shown = [sys.executable, "-m", "merfast", "live", str(face_clip), "--fast", "--json", "--window", "1"]
    saved.write_bytes(subprocess.run(shown, check=True, capture_output=True).stdout)
    out = tmp_path / "r.html"
    assert cli.main(["report", str(face_clip), "-o", str(out), "--results", str(saved), "--no-video"]) == 0
    page = Texts(out)
    assert floats(page.data["starts"], "<f4").tolist() == [0, 1, 2]
    assert not [tag for tag, _ in page.tags if tag in ("video", "img")]
    assert "does not say which model" in "".join(page.texts["li"])
    assert cli.main(["report", str(face_clip), "-o", str(out), "--results", str(tmp_path / "none")]) == 2
