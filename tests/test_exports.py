"""Timelines as EAF, TextGrid and WebVTT, read again by pympi, Praat and webvtt-py."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timelines import empty, failed, timeline, window

from merfast import exports
from merfast.errors import ConfigError
from merfast.types import EMOTIONS, Prediction

Interval = tuple[float, float, str]


def spans(windows: list) -> list[tuple[float, float]]:
    return [(s.start, s.end) for s in exports.Annotations(windows).stretches]


def test_each_window_has_the_hop_around_its_middle() -> None:
    windows = timeline(5, length=4, hop=1)
    found = spans(windows)
    assert found == [(0, 2.5), (2.5, 3.5), (3.5, 4.5), (4.5, 5.5), (5.5, 8)]
    middles = [(w.start + w.end) / 2 for w in windows]
    assert [(a + b) / 2 for a, b in found[1:-1]] == middles[1:-1]


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (timeline(1, duration=2.5), [(0, 2.5)]),
        (timeline(3, 4, 1, duration=5.5), [(0, 2.5), (2.5, 3.5), (3.5, 5.5)]),
        (timeline(3, 2, 2, duration=5.25), [(0, 2), (2, 4), (4, 5.25)]),
        (timeline(3, 1, 4), [(0, 1), (4, 5), (8, 9)]),
        ([window(10, 14), window(11, 15)], [(10, 12.5), (12.5, 15)]),
        ([], []),
    ],
    ids=["one", "last is shorter", "no overlap", "gaps", "begins late", "none"],
)
def test_borders(windows: list, expected: list[tuple[float, float]]) -> None:
    assert spans(windows) == expected


@given(st.integers(1, 40), st.floats(0.3, 16), st.floats(0.1, 20), st.floats(0, 1))
def test_stretches_are_within_their_windows_and_leave_out_nothing(count, length, hop, part) -> None:
    last = (count - 1) * hop
    windows = timeline(count, length, hop, duration=max(last + 0.06, last + length - part * min(hop, length)))
    found = spans(windows)
    for (start, end), w in zip(found, windows, strict=True):
        assert w.start <= start < end <= w.end
    for (_, end), (start, _), w in zip(found, found[1:], windows, strict=False):
        assert end == start or (end, start > end) == (w.end, True)
    assert (found[0][0], found[-1][1]) == (0, windows[-1].end)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([window(1, 5), window(0, 4)], "talk.mp4.*window from 0 s after one from 1 s"),
        ([window(1, 5), failed(1, 5)], "window from 1 s after one from 1 s"),
        ([window(0, 4), window(1, 5, source="b.mp4")], "windows of 'talk.mp4' and of 'b.mp4'"),
    ],
)
def test_windows_that_are_no_timeline(windows: list, message: str, tmp_path: Path) -> None:
    file = tmp_path / "out"
    for write in (exports.write_eaf, exports.write_textgrid, exports.write_vtt):
        with pytest.raises(ConfigError, match=message):
            write(windows, file)
    assert not file.exists()


def eaf_tiers(file: Path) -> dict[str, list[Interval]]:
    """What pympi reads."""
    pympi = pytest.importorskip("pympi", reason="needs pympi-ling")
    read = pympi.Eaf(str(file))
    return {
        name: [(start / 1000, end / 1000, text) for start, end, text in read.get_annotation_data_for_tier(name)]
        for name in read.get_tier_names()
    }


def praat_tiers(file: Path) -> dict[str, list[Interval]]:
    """What Praat reads, but for empty intervals; all tiers reach from 0 to the end."""
    parselmouth = pytest.importorskip("parselmouth", reason="needs praat-parselmouth")
    call = parselmouth.praat.call
    grid = parselmouth.read(str(file))
    assert isinstance(grid, parselmouth.TextGrid)
    out = {}
    for tier in range(1, call(grid, "Get number of tiers") + 1):
        intervals = [
            (
                call(grid, "Get start time of interval", tier, i),
                call(grid, "Get end time of interval", tier, i),
                call(grid, "Get label of interval", tier, i),
            )
            for i in range(1, call(grid, "Get number of intervals", tier) + 1)
        ]
        assert (intervals[0][0], intervals[-1][1]) == (0, grid.xmax)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(intervals))
        assert all(start < end for start, end, _ in intervals)
        out[call(grid, "Get tier name", tier)] = [i for i in intervals if i[2]]
    return out


READERS: list[tuple[Callable, Callable[[Path], dict[str, list[Interval]]]]] = [
    (exports.write_eaf, eaf_tiers),
    (exports.write_textgrid, praat_tiers),
]


@pytest.mark.parametrize(("write", "read"), READERS)
def test_tiers(write: Callable, read: Callable, tmp_path: Path) -> None:
    windows = [window(0, 4, "sad", -2.345), window(1, 5, "happy", 0.001), window(2, 5.5, "surprise", -0.001)]
    write(iter(windows), tmp_path / "out")
    assert read(tmp_path / "out") == {
        "emotion": [(0, 2.5, "sad"), (2.5, 3.5, "happy"), (3.5, 5.5, "surprise")],
        "valence": [(0, 2.5, "-2.35"), (2.5, 3.5, "0.00"), (3.5, 5.5, "0.00")],
    }


@pytest.mark.parametrize(("write", "read"), READERS)
def test_windows_without_anything_are_gaps(write: Callable, read: Callable, tmp_path: Path) -> None:
    windows = [empty(0, 4), window(1, 5), empty(2, 6), window(3, 7), failed(4, 8), failed()]
    write(windows, tmp_path / "out")
    kept = [(2.5, 3.5), (4.5, 5.5)]
    tiers = read(tmp_path / "out")
    assert tiers["emotion"] == [(*span, "happy") for span in kept]
    assert tiers["valence"] == [(*span, "1.00") for span in kept]
    write([empty(0, 4), failed(1, 5)], tmp_path / "none")
    assert read(tmp_path / "none") == {"emotion": [], "valence": []}


def faces() -> list[Prediction]:
    """Three windows: faces 0 and 12, then face 12 as the main one, then the voice alone."""
    alone = {"modalities": ("audio",), "track": None, "missing": {"video": "no face found"}}
    return [
        window(0, 4, "sad", -1.0, others=(window(0, 4, "angry", -3.0, track=12),)),
        window(1, 5, "happy", 2.0, track=12),
        window(2, 6, "neutral", 0.25, **alone),
    ]


@pytest.mark.parametrize(("write", "read"), READERS)
def test_tiers_of_each_face(write: Callable, read: Callable, tmp_path: Path) -> None:
    write(faces(), tmp_path / "out")
    tiers = read(tmp_path / "out")
    assert list(tiers) == [f"{kind}{face}" for face in ("", " face 0", " face 12") for kind in ("emotion", "valence")]
    assert [text for *_, text in tiers["emotion"]] == ["sad", "happy", "neutral"]
    assert tiers["emotion face 0"] == [(0, 2.5, "sad")]
    assert tiers["valence face 12"] == [(0, 2.5, "-3.00"), (2.5, 3.5, "2.00")]


@pytest.mark.parametrize(("write", "read"), READERS)
def test_an_hour_of_several_faces(write: Callable, read: Callable, tmp_path: Path) -> None:
    windows = [replace(w, others=(replace(w, track=1),) if w.start % 3 else ()) for w in timeline(3600)]
    write(windows, tmp_path / "out")
    tiers = read(tmp_path / "out")
    assert len(tiers["emotion"]) == len(tiers["emotion face 0"]) == 3600
    assert len(tiers["valence face 1"]) == 2400
    assert tiers["emotion"][-1][:2] == (3600.5, 3603)
    assert [text for *_, text in tiers["emotion"]] == [EMOTIONS[k % 6] for k in range(3600)]


ODD = ["plain.mp4", "a b.mp4", "Straße, 情感.mov", 'it\'s "50 %" & <more>#1.wav', "100%20.mkv"]


@pytest.mark.parametrize("name", ODD)
def test_elan_finds_the_media(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path and by that from the annotations, as ELAN has them: not quoted as URLs are."""
    pympi = pytest.importorskip("pympi", reason="needs pympi-ling")
    media = tmp_path / "my media" / name
    media.parent.mkdir()
    media.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for place, relative in (
        ("my media", f"./{name}"),
        ("work/été", f"../../my media/{name}"),
        (".", f"./my media/{name}"),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        file = Path(place, "out.eaf")
        exports.write_eaf([window(0, 4, source=f"my media/{name}")], file)
        (found,) = pympi.Eaf(str(file)).get_linked_files()
        assert found["MEDIA_URL"] == f"file://{media}"
        assert found["RELATIVE_MEDIA_URL"] == relative
        assert (file.parent / found["RELATIVE_MEDIA_URL"]).samefile(media)
        expected = {".mp4": "video/mp4", ".mov": "video/quicktime", ".wav": "audio/x-wav"}.get(media.suffix)
        assert expected in (None, found["MIME_TYPE"])


def test_media_that_is_no_file(tmp_path: Path) -> None:
    pympi = pytest.importorskip("pympi", reason="needs pympi-ling")
    file = tmp_path / "out.eaf"
    exports.write_eaf([window(0, 4, source="<bytes #0>")], file)
    assert pympi.Eaf(str(file)).get_linked_files() == []
    url = "rtsp://camera/one?a=1&b=<2>"
    exports.write_eaf([window(0, 4, source=url)], file)
    (found,) = pympi.Eaf(str(file)).get_linked_files()
    assert (found["MEDIA_URL"], "RELATIVE_MEDIA_URL" in found) == (url, False)
    (tmp_path / "other.mp4").write_bytes(b"x")
    exports.write_eaf([window(0, 4, source=url)], file, media=tmp_path / "other.mp4")
    (found,) = pympi.Eaf(str(file)).get_linked_files()
    assert found["RELATIVE_MEDIA_URL"] == "./other.mp4"
    raw = tmp_path / "control\x01.mp4"
    raw.write_bytes(b"x")
    exports.write_eaf([window(0, 4, source=str(raw))], file)
    (found,) = pympi.Eaf(str(file)).get_linked_files()
    assert found["RELATIVE_MEDIA_URL"] == "./control\N{REPLACEMENT CHARACTER}.mp4"


def test_eaf_keeps_the_rules_of_its_schema(tmp_path: Path) -> None:
    """Order of elements, required attributes, unique ids and references of EAF 3.0."""
    file = tmp_path / "out.eaf"
    exports.write_eaf(faces(), file)
    root = ET.parse(file).getroot()
    assert {"AUTHOR", "DATE", "VERSION"} <= set(root.attrib)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([+-]\d\d:\d\d|Z)", root.attrib["DATE"])
    order = ["HEADER", "TIME_ORDER", "TIER", "LINGUISTIC_TYPE", "LANGUAGE", "CONTROLLED_VOCABULARY"]
    assert [tag for tag, _ in itertools.groupby(child.tag for child in root)] == order
    slots = {s.attrib["TIME_SLOT_ID"]: int(s.attrib["TIME_VALUE"]) for s in root.iter("TIME_SLOT")}
    assert list(slots.values()) == sorted(slots.values())
    entries = {e.attrib["CVE_ID"]: e.findtext("CVE_VALUE") for e in root.iter("CV_ENTRY_ML")}
    assert list(entries.values()) == list(EMOTIONS)
    annotations = list(root.iter("ALIGNABLE_ANNOTATION"))
    names = [a.attrib["ANNOTATION_ID"] for a in annotations]
    ids = [*names, *slots, *entries]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z_][\w.-]*", i) for i in ids)
    assert sorted(slots) == sorted(
        r for a in annotations for r in (a.attrib["TIME_SLOT_REF1"], a.attrib["TIME_SLOT_REF2"])
    )
    assert all(slots[a.attrib["TIME_SLOT_REF1"]] < slots[a.attrib["TIME_SLOT_REF2"]] for a in annotations)
    types = {t.attrib["LINGUISTIC_TYPE_ID"]: t.attrib for t in root.iter("LINGUISTIC_TYPE")}
    vocabularies = {v.attrib["CV_ID"] for v in root.iter("CONTROLLED_VOCABULARY")}
    assert types["emotion"]["CONTROLLED_VOCABULARY_REF"] in vocabularies
    languages = {e.attrib["LANG_ID"] for e in root.iter("LANGUAGE")}
    assert {e.attrib["LANG_REF"] for e in root.iter() if "LANG_REF" in e.attrib} <= languages
    tiers = list(root.iter("TIER"))
    assert len({t.attrib["TIER_ID"] for t in tiers}) == len(tiers) == 6
    assert all(t.attrib["LINGUISTIC_TYPE_REF"] in types for t in tiers)
    assert [t.get("PARTICIPANT") for t in tiers] == [None, None, "face 0", "face 0", "face 12", "face 12"]
    spoken = [a for a in annotations if "CVE_REF" in a.attrib]
    assert [entries[a.attrib["CVE_REF"]] for a in spoken] == [a.findtext("ANNOTATION_VALUE") for a in spoken]
    assert len(spoken) == len(annotations) / 2
    assert root.findtext("HEADER/PROPERTY") == str(len(annotations))


def test_what_is_shorter_than_a_millisecond_is_left_out(tmp_path: Path) -> None:
    windows = timeline(40, length=0.1, hop=0.0002)
    exports.write_eaf(windows, tmp_path / "out.eaf")
    exports.write_vtt(windows, tmp_path / "out.vtt")
    tier = eaf_tiers(tmp_path / "out.eaf")["emotion"]
    assert 2 < len(tier) < 40
    assert all(start < end for start, end, _ in tier)
    assert len(cues(tmp_path / "out.vtt")) == len(tier)


def test_textgrid_needs_a_window(tmp_path: Path) -> None:
    for windows in ([], [failed()]):
        with pytest.raises(ConfigError, match="got no windows"):
            exports.write_textgrid(windows, tmp_path / "out.TextGrid")
    exports.write_textgrid([window(10, 14)], tmp_path / "out.TextGrid")
    assert praat_tiers(tmp_path / "out.TextGrid")["emotion"] == [(10, 14, "happy")]


def test_quotes_are_doubled_for_praat() -> None:
    assert exports._quoted('say "hi" & go') == '"say ""hi"" & go"'


def cues(file: Path) -> list[tuple[str, str, str, str | None]]:
    """What webvtt-py reads."""
    webvtt = pytest.importorskip("webvtt", reason="needs webvtt-py")
    return [(c.start, c.end, c.text, c.voice) for c in webvtt.read(str(file))]


def test_cues(tmp_path: Path) -> None:
    file = tmp_path / "out.vtt"
    exports.write_vtt([window(0, 4, valence=1.94), empty(1, 5), window(3598.7, 3602.7, "sad", -0.04), failed()], file)
    assert cues(file) == [
        ("00:00:00.000", "00:00:02.500", "happy 82 % · valence +1.9", None),
        ("00:59:58.700", "01:00:02.700", "sad 82 % · valence +0.0", None),
    ]
    exports.write_vtt([failed(0, 4)], file)
    assert cues(file) == []


def test_cues_of_each_face(tmp_path: Path) -> None:
    exports.write_vtt(faces(), tmp_path / "out.vtt")
    assert [(start, text, voice) for start, _, text, voice in cues(tmp_path / "out.vtt")] == [
        ("00:00:00.000", "face 0: sad 82 % · valence -1.0", "face 0"),
        ("00:00:00.000", "face 12: angry 82 % · valence -3.0", "face 12"),
        ("00:00:02.500", "face 12: happy 82 % · valence +2.0", "face 12"),
        ("00:00:03.500", "voice: neutral 82 % · valence +0.2", "voice"),
    ]


@pytest.mark.parametrize("name", [*ODD, "a --> b\n\n00:00.000 --> 00:09.000\nforged", "raw\udcff.mp4", ""])
def test_no_name_breaks_cues(name: str, tmp_path: Path) -> None:
    file = tmp_path / "out.vtt"
    exports.write_vtt([window(0, 4, source=name)], file)
    assert cues(file) == [("00:00:00.000", "00:00:04.000", "happy 82 % · valence +1.0", None)]
    note = file.read_text(encoding="utf-8").split("\n\n")[1]
    assert note.startswith("NOTE ")
    assert "-->" not in note
    assert "<" not in note


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "out.vtt"
    file.write_text("precious")

    def windows():
        yield window(0, 4)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        exports.write_vtt(windows(), file)
    assert file.read_text() == "precious"
    assert [f.name for f in tmp_path.iterdir()] == ["out.vtt"]
