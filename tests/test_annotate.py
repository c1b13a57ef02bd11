"""`merfast annotate`: boxes where the faces are, what is shown when, every picture and timestamp, any kind of file."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import set_rotation, truncate, write_video, write_wav

import merfast
from merfast import cli
from merfast.annotate import Drawing, annotate
from merfast.errors import ConfigError, MediaError
from merfast.media.faces import Box
from merfast.media.planes import Coding, Picture
from merfast.media.tracks import FacesAt, FaceView
from merfast.palette import EMOTION_COLOURS, rgb
from merfast.panel import Panel, letter_for, name_tag
from merfast.sightings import Sightings
from merfast.types import EMOTIONS, Prediction

CLIPS = ("grid_bbaf2n.mpg", "hevc_face_then_none.mov", "mp3_audio_single_face.mp4", "no_face.mp4", "talking_1.mp4")
"""Of the data: MPEG-1, late sound, MP3, no face, a picture that begins late."""


@pytest.fixture(scope="module")
def engine() -> merfast.Engine:
    return merfast.Engine(threads=1)


def pictures(path: Path) -> tuple[np.ndarray, list[float]]:
    with av.open(str(path)) as media:
        start = media.start_time / av.time_base
        frames = list(media.decode(media.streams.video[0]))
        assert all(frame.rotation == 0 for frame in frames)
        return np.stack([f.to_ndarray(format="rgb24") for f in frames]), [f.time - start for f in frames]


def timing(path: Path) -> tuple[list[float], float]:
    """When pictures are shown, and how long the file is, in seconds."""
    with av.open(str(path)) as media:
        start = media.start_time / av.time_base
        return [f.time - start for f in media.decode(media.streams.video[0])], media.duration / av.time_base


def window(k: int, emotion: str | None = "happy", track: int | None = 0, **changes) -> Prediction:
    values = np.full(6, 0.02 if emotion else np.nan, dtype=np.float32)
    if emotion:
        values[EMOTIONS.index(emotion)] = 0.9
    used = ("audio", "video") if emotion else ()
    p = Prediction(
        "a.mp4", float(k), k + 4.0, emotion, values, 1.0 if emotion else float("nan"), used, 1.0, track=track
    )
    return replace(p, **changes)


def sighted(*views: tuple[float, dict[int, Box]]) -> Sightings:
    out = Sightings()
    for time, boxes in views:
        crop = np.zeros((4, 4, 3), np.uint8)
        out.add(FacesAt(time, {n: FaceView(crop, 1.0, box) for n, box in boxes.items()}))
    return out


def black(width: int, height: int) -> Picture:
    half = (height // 2, width // 2)
    planes = np.full((height, width), 16, np.uint8), np.full(half, 128, np.uint8), np.full(half, 128, np.uint8)
    return Picture(planes, Coding("bt601", False))


def seen(picture: Picture) -> np.ndarray:
    """[H, W, 3] RGB"""
    frame = av.VideoFrame(picture.width, picture.height, "yuv420p")
    for plane, values in zip(frame.planes, picture.planes, strict=True):
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width] = values
    return frame.to_ndarray(format="rgb24")


def near(pixel: np.ndarray, colour: str, within: int = 40) -> bool:
    return bool(np.abs(pixel.astype(int) - rgb(colour)).max() <= within)


def test_a_clip(face_clip: Path, engine: merfast.Engine, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    sightings = Sightings()
    known = list(engine.timeline(face_clip, window=2.0, hop=0.5, watch=sightings.add))
    told: list[tuple[str, float]] = []
    timeline = annotate(
        engine, face_clip, target, window=2.0, hop=0.5, progress=lambda what, time: told.append((what, time))
    )
    assert [p.to_dict() for p in timeline] == [p.to_dict() for p in known]
    (before, then), (after, now) = pictures(face_clip), pictures(target)
    assert after.shape == before.shape
    assert now == pytest.approx(then, abs=1e-6)
    assert abs(timing(target)[1] - timing(face_clip)[1]) <= 0.04
    assert {what for what, _ in told} == {"predicting", "drawing"}
    for i in (0, 20, len(after) - 1):
        ((track, box),) = sightings.at(now[i]).items()
        best = min(known, key=lambda p: abs((p.start + p.end) / 2 - now[i]))
        assert (track, best.track) == (0, 0)
        x, y, half = box.x * 480, box.y * 480, box.side * 240
        for dx, dy in ((half, 0), (-half, 0), (0, half)):
            around = after[i, round(y + dy) - 2 : round(y + dy) + 3, round(x + dx) - 2 : round(x + dx) + 3]
            assert any(near(p, EMOTION_COLOURS[best.emotion]) for p in around.reshape(-1, 3)), (i, dx, dy)
        changed = np.abs(after[i].astype(int) - before[i]).max(axis=-1) > 60
        inner = np.s_[round(y - half / 2) : round(y + half / 2), round(x - half / 2) : round(x + half / 2)]
        assert changed[inner].mean() < 0.01  # the face is left alone
        assert changed.mean() > 0.02


def test_sound_is_not_touched(face_clip: Path, engine: merfast.Engine, tmp_path: Path) -> None:
    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as media:
            return [bytes(p) for p in media.demux(media.streams.audio[0])]

    annotate(engine, face_clip, tmp_path / "out.mp4")
    assert packets(tmp_path / "out.mp4") == packets(face_clip)


def test_rotated_input_has_upright_text(face_clip: Path, engine: merfast.Engine, tmp_path: Path) -> None:
    """The same as drawing on the upright pictures."""
    upright = pictures(face_clip)[0][:20]
    turned = set_rotation(write_video(tmp_path / "turned.mp4", [np.rot90(p, -1) for p in upright]), 90)
    sightings = Sightings()
    drawing = Drawing(list(engine.timeline(turned, watch=sightings.add)), sightings)
    annotate(engine, turned, tmp_path / "out.mp4")
    after, times = pictures(tmp_path / "out.mp4")
    assert after.shape == upright.shape
    planes = av.VideoFrame.from_ndarray(upright[9], format="rgb24").reformat(format="yuv420p")
    picture = black(480, 360)
    for own, plane in zip(picture.planes, planes.planes, strict=True):
        own[...] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width]
    drawing.paint(picture, times[9])
    expected, got = seen(picture).astype(int), after[9].astype(int)
    drawn = np.abs(expected - upright[9]).max(axis=-1) > 40
    assert drawn.mean() > 0.02
    assert np.abs(expected - got)[drawn].mean() < 0.3 * np.abs(upright[9] - got)[drawn].mean()
    assert np.abs(expected - got)[~drawn].mean() < 6


def test_no_sound_no_face_and_neither(engine: merfast.Engine, tmp_path: Path) -> None:
    images = [np.full((120, 160, 3), 30 + i, np.uint8) for i in range(12)]
    loud = np.sin(np.arange(16_000) / 5).astype(np.float32) * 0.3
    for name, audio in (("silent", None), ("voice", loud)):
        clip = write_video(tmp_path / f"{name}.mp4", images, fps=12, audio=audio)
        (only,) = annotate(engine, clip, tmp_path / "out.mp4")
        assert (only.emotion is None) == (audio is None)
        after, times = pictures(tmp_path / "out.mp4")
        assert times == pytest.approx(np.arange(12) / 12)
        panel = after[5, 60:, :70].astype(int) - images[5][60:, :70]
        assert (np.abs(panel).max(axis=-1) > 60).mean() > 0.01  # its text


@pytest.mark.parametrize(
    ("width", "height"), [(160, 120), (120, 160), (162, 90), (640, 360), (720, 1280), (3840, 2160)]
)
def test_the_panel_fits_any_picture(width: int, height: int) -> None:
    panel, picture = Panel(width, height), black(width, height)
    Drawing([window(0)], sighted((0.0, {}))).paint(picture, 0.0)
    lit = seen(picture).max(axis=-1) > 24
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    assert columns[0] >= panel.margin - 1
    assert columns[-1] < panel.width + panel.margin
    assert height - panel.height - panel.margin - 1 <= rows[0]
    assert rows[-1] < height - panel.margin
    assert panel.width <= 0.55 * width
    assert panel.height <= 0.8 * height


def test_text_grows_with_the_picture() -> None:
    assert letter_for(3840, 2160) == pytest.approx(3 * letter_for(1280, 720))
    assert name_tag("sad 86%", "#3c57c8", 40.0).shape[0] == pytest.approx(4 * name_tag("sad", "#3c57c8", 10.0).shape[0])


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_bars_are_as_long_as_probabilities(emotion: str) -> None:
    panel = Panel(1280, 720)
    image = panel.draw(window(0, emotion), [(0.0, 4.0, 1.0)])
    lengths = {}
    for name in EMOTIONS:
        exact = np.abs(image[..., :3].astype(int) - rgb(EMOTION_COLOURS[name])).max(axis=-1) <= 4
        lengths[name] = int(exact.sum(axis=1).max())
    assert max(lengths, key=lambda n: lengths[n]) == emotion
    other = next(n for n in EMOTIONS if n != emotion)
    assert lengths[emotion] / max(1, lengths[other]) > 15  # of 0.9 and 0.02


def test_the_line_of_valence_rises_and_falls() -> None:
    panel = Panel(1280, 720)

    def height_of(valence: float) -> float:
        one = panel.draw(window(0, valence=valence), [(0.0, 4.0, valence)])
        none = panel.draw(window(0, valence=valence), [])
        return float(np.nonzero(np.abs(one.astype(int) - none).max(axis=-1) > 60)[0].mean())

    assert height_of(4.0) < height_of(0.5) < height_of(-4.0)
    assert height_of(0.5) - height_of(4.0) == pytest.approx(height_of(-3.0) - height_of(0.5), abs=2)


@pytest.mark.parametrize(("time", "number"), [(0.0, 0), (2.4, 0), (2.6, 1), (3.4, 1), (3.6, 2), (5.9, 2), (9.0, 2)])
def test_the_window_with_the_nearest_centre_is_shown(time: float, number: int) -> None:
    timeline = [window(0, "happy"), window(1, "sad"), window(2, "angry")]
    picture = black(640, 360)
    Drawing(timeline, sighted((0.0, {}))).paint(picture, time)
    shown = seen(picture)
    count = {
        e: int((np.abs(shown.astype(int) - rgb(EMOTION_COLOURS[e])).max(axis=-1) <= 24).sum())
        for e in ("happy", "sad", "angry")
    }
    assert max(count, key=lambda e: count[e]) == timeline[number].emotion


def test_each_face_has_its_own_colour() -> None:
    first, second, third = Box(0.2, 0.2, 0.2), Box(0.8, 0.2, 0.2), Box(0.5, 0.4, 0.1)
    boxes = {0: first, 5: second, 9: third}
    timeline = [window(0, "happy", others=(window(0, "sad", track=5),))]
    picture = black(640, 360)
    Drawing(timeline, sighted((0.0, boxes), (4.0, boxes))).paint(picture, 1.0)
    shown = seen(picture)

    def at(box: Box) -> list[np.ndarray]:
        x, y = round((box.x + box.side / 2) * 640), round(box.y * 640)
        return list(shown[y, x - 3 : x + 4])

    assert any(near(p, EMOTION_COLOURS["happy"]) for p in at(first))
    assert any(near(p, EMOTION_COLOURS["sad"]) for p in at(second))
    assert any(near(p, "#bababa", 60) for p in at(third))


@pytest.mark.parametrize(("x", "left"), [(0.9, True), (0.1, False)])
def test_the_panel_goes_where_no_face_is(x: float, left: bool) -> None:
    picture = black(640, 360)
    boxes = {3: Box(x, 0.45, 0.2)}
    Drawing([window(0, None)], sighted((0.0, boxes), (3.0, boxes))).paint(picture, 10.0)
    lit = seen(picture)[150:].max(axis=-1) > 100
    halves = lit[:, :200].sum(), lit[:, -200:].sum()
    assert (halves[0] > halves[1]) == left


def test_boxes_between_looks() -> None:
    a, b, c = Box(0.2, 0.2, 0.1), Box(0.4, 0.3, 0.2), Box(0.7, 0.7, 0.1)
    sightings = sighted((1.0, {0: a}), (2.0, {0: b, 1: c}), (3.0, {1: c}))
    assert sightings.at(0.5) == {0: a}
    assert sightings.at(1.25)[0] == pytest.approx(Box(0.25, 0.225, 0.125))
    assert set(sightings.at(1.25)) == {0}
    assert set(sightings.at(1.75)) == {0, 1}
    assert set(sightings.at(2.25)) == {0, 1}
    assert set(sightings.at(2.75)) == {1}
    assert sightings.at(9.0) == {1: c}
    assert Sightings().at(1.0) == {}


def test_targets_that_are_refused(face_clip: Path, engine: merfast.Engine, tmp_path: Path) -> None:
    clip = tmp_path / "in.mp4"
    clip.write_bytes(face_clip.read_bytes())
    (link := tmp_path / "link.mp4").symlink_to(clip)
    for target, why in (
        (clip, "is the video to read"),
        (link, "is the video to read"),
        (tmp_path / "a.avi", r"'\.avi'"),
    ):
        with pytest.raises(ConfigError, match=why):
            annotate(engine, clip, target)
    with pytest.raises(ConfigError, match="existing folder"):
        annotate(engine, clip, tmp_path / "none" / "a.mp4")
    with pytest.raises(MediaError, match=r"gone\.mp4: no such file"):
        annotate(engine, tmp_path / "gone.mp4", tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="window"):
        annotate(engine, clip, tmp_path / "a.mp4", window=-1.0)
    assert clip.read_bytes() == face_clip.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "link.mp4"]


def test_a_truncated_file_and_sound_alone(face_clip: Path, engine: merfast.Engine, tmp_path: Path) -> None:
    clip = tmp_path / "cut.mp4"
    clip.write_bytes(face_clip.read_bytes())
    truncate(clip, 0.5)
    with pytest.raises(MediaError, match="truncated"):
        annotate(engine, clip, tmp_path / "out.mp4")
    sound = write_wav(tmp_path / "a.wav", np.sin(np.arange(16_000) / 5) * 0.3)
    with pytest.raises(MediaError, match="holds no pictures"):
        annotate(engine, sound, tmp_path / "out.mp4")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_the_command(face_clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    assert cli.main(["annotate", str(face_clip), str(out), "--window", "2", "--hop", "1", "--threads", "1"]) == 0
    assert len(timing(out)[0]) == len(timing(face_clip)[0])
    said = io.StringIO()
    with redirect_stderr(said):
        assert cli.main(["annotate", str(face_clip), str(face_clip)]) == 2
    assert f"{face_clip}: is the video to read" in said.getvalue()


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips(name: str, data_dir: Path, yunet_model: Path, tmp_path: Path) -> None:
    with merfast.Engine(detector_model=yunet_model, threads=1) as own:
        annotate(own, data_dir / "clips" / name, tmp_path / "out.mp4", faces="all")
    (then, long), (now, same) = timing(data_dir / "clips" / name), timing(tmp_path / "out.mp4")
    assert len(now) == len(then)
    assert now == pytest.approx(then, abs=1e-4)
    assert abs(same - long) <= long / len(then)
