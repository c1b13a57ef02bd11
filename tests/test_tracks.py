"""Tracking: interpolation between detections, bridged misses, cuts, and frames that wait no longer than they must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from merfast.media.decode_arrays import ArrayFrame
from merfast.media.faces import Box, Haar, YuNet, crop_square, resize
from merfast.media.lookers import FrameLooker
from merfast.media.tracks import MISSED, FacesAt, FaceTracker, GivenFaces
from merfast.media.windows import WindowSpec
from merfast.ops import crop_norm
from merfast.types import ByteArray

WIDE, HIGH = 320, 180


class Marked:
    """Finds bright squares, unless told to miss them at some calls; a face that a test can place exactly."""

    def __init__(self, miss: Callable[[int], bool] = lambda call: False) -> None:
        self.calls = 0
        self.miss = miss

    def detect(self, image: ByteArray) -> list[Box]:
        self.calls += 1
        if self.miss(self.calls - 1):
            return []
        _, _, stats, centres = cv2.connectedComponentsWithStats((image[..., 0] > 200).astype(np.uint8))
        return [Box(float(x), float(y), float(s[2])) for s, (x, y) in zip(stats[1:], centres[1:], strict=True)]


def picture(*faces: tuple[float, float, float], level: int = 40) -> ByteArray:
    """Bright squares (x, y, side) on a textured ground."""
    ground = np.full((HIGH, WIDE, 3), level, dtype=np.uint8)
    ground[:, :: 2 * level] = level // 2
    for x, y, side in faces:
        ground[round(y - side / 2) : round(y + side / 2), round(x - side / 2) : round(x + side / 2)] = 255
    return ground


def follow(
    pictures: list[ByteArray], detector: Marked, step: float = 0.2, ahead: int = 1
) -> tuple[list[FacesAt], list[int]]:
    """All views, and how many had come out after each frame."""
    crop = crop_norm.prepare(crop_norm.CropSpec(16))
    tracker = FaceTracker(FrameLooker(detector, crop_size=16, crop=crop, ahead=ahead), face_scale=1.0)
    views: list[FacesAt] = []
    counts = []
    for i, image in enumerate(pictures):
        views += tracker.push(ArrayFrame(image, i * step))
        counts.append(len(views))
    views += tracker.flush()
    assert [v.time for v in views] == [pytest.approx(i * step) for i in range(len(pictures))]
    return views, counts


def brightness(view: FacesAt, track: int) -> float:
    return float(view.faces[track].crop.mean())


def test_boxes_are_interpolated_between_detections() -> None:
    pictures = [picture((60 + 8 * i, 90, 40)) for i in range(11)]
    detector = Marked()
    views, counts = follow(pictures, detector)
    assert detector.calls == 6  # of 11 frames, at 2.5 a second
    assert all(set(v.faces) == {0} for v in views)
    # A crop that sits on the face is all bright; one that lags by a frame would be a fifth dark.
    assert min(brightness(v, 0) for v in views) > 245
    assert max(i + 1 - c for i, c in enumerate(counts)) <= 2


def test_a_short_miss_is_bridged_and_a_long_one_ends_the_track() -> None:
    pictures = [picture((100 + 4 * i, 90, 40)) for i in range(20)]
    bridged, _ = follow(pictures, Marked(lambda call: call in (3, 4)))
    assert all(set(v.faces) == {0} for v in bridged)
    assert min(brightness(v, 0) for v in bridged) > 235
    lost, counts = follow(pictures, Marked(lambda call: 3 <= call <= 6))
    seen = [set(v.faces) for v in lost]
    assert seen[:5] == [{0}] * 5  # up to the last detection before the gap
    assert seen[5:14] == [set()] * 9
    assert seen[14:] == [{1}] * 6
    assert max(i + 1 - c for i, c in enumerate(counts)) <= (MISSED + 0.8) / 0.2


def test_a_face_that_leaves_is_not_held() -> None:
    pictures = [picture((100, 90, 40))] * 7 + [picture()] * 13
    views, _ = follow(pictures, Marked())
    assert [0 in v.faces for v in views] == [True] * 7 + [False] * 13


def test_one_lonely_detection_is_no_face_but_a_single_frame_is() -> None:
    pictures = [picture((100, 90, 40))] * 12
    views, _ = follow(pictures, Marked(lambda call: call != 2))
    assert not any(v.faces for v in views)
    views, _ = follow(pictures[:1], Marked())
    assert [set(v.faces) for v in views] == [{0}]


def test_a_cut_ends_all_tracks() -> None:
    # Same place, same size: only the change of the whole picture tells that this is somebody else.
    pictures = [picture((100, 90, 40))] * 8 + [picture((100, 90, 40), level=120)] * 8
    views, _ = follow(pictures, Marked())
    assert [set(v.faces) for v in views] == [{0}] * 8 + [{1}] * 8


def test_two_faces_keep_their_tracks_while_they_move() -> None:
    pictures = [picture((40 + 5 * i, 60, 30), (280 - 5 * i, 130, 40)) for i in range(15)]
    views, _ = follow(pictures, Marked())
    assert all(set(v.faces) == {0, 1} for v in views)
    weights = np.array([[v.faces[t].weight for t in (0, 1)] for v in views])
    larger = int(weights[0].argmax())
    assert (weights.argmax(1) == larger).all()


ONE, TWO = (100, 90, 40), (240, 90, 50)
GROUPED: dict[str, tuple[list[ByteArray], Callable[[int], bool]]] = {
    "moving": ([picture((60 + 8 * i, 90, 40)) for i in range(21)], lambda call: False),
    "bridged": ([picture((100 + 4 * i, 90, 40)) for i in range(20)], lambda call: call in (3, 4)),
    "lost": ([picture((100 + 4 * i, 90, 40)) for i in range(20)], lambda call: 3 <= call <= 6),
    "leaves": ([picture(ONE)] * 7 + [picture()] * 13, lambda call: False),
    "lonely": ([picture(ONE)] * 12, lambda call: call != 2),
    "never": ([picture(ONE)] * 9, lambda call: True),
    "cut": ([picture(ONE)] * 8 + [picture(ONE, level=120)] * 9, lambda call: False),
    "cuts": ([picture(ONE, level=40 + 80 * (i // 3 % 2)) for i in range(20)], lambda call: call == 5),
    "cut at once": ([picture(ONE), picture(ONE, level=120), picture(ONE)], lambda call: False),
    "two": ([picture((40 + 5 * i, 60, 30), (280 - 5 * i, 130, 40)) for i in range(15)], lambda call: call == 4),
    "one more": ([picture(ONE)] * 9 + [picture(ONE, TWO)] * 10, lambda call: False),
    "other size": ([picture(ONE)] * 6 + [picture(ONE)[:, :160]] * 7, lambda call: False),
    "one frame": ([picture(ONE)], lambda call: False),
    "nothing": ([], lambda call: False),
}


@pytest.mark.parametrize("ahead", [2, 3, 5, 8, 16, 64])
@pytest.mark.parametrize("case", GROUPED)
def test_the_size_of_groups_changes_nothing(case: str, ahead: int) -> None:
    pictures, miss = GROUPED[case]
    alone, together = Marked(miss), Marked(miss)
    expected, _ = follow(pictures, alone)
    got, counts = follow(pictures, together, ahead=ahead)
    assert alone.calls == together.calls
    assert counts[: ahead - 1] == [0] * min(ahead - 1, len(pictures))  # so groups were made
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine.time, list(mine.faces)) == (theirs.time, list(theirs.faces))
        for number, face in mine.faces.items():
            assert face.weight == theirs.faces[number].weight
            assert np.array_equal(face.crop, theirs.faces[number].crop)


def test_rare_frames_do_not_wait_for_a_full_group() -> None:
    pictures = [picture(ONE)] * 14
    expected, _ = follow(pictures, Marked(), step=1.0)
    got, counts = follow(pictures, Marked(), step=1.0, ahead=64)
    assert [(v.time, list(v.faces)) for v in got] == [(v.time, list(v.faces)) for v in expected]
    assert counts == [0] * 5 + [6] * 6 + [12] * 3


def test_a_flush_amid_a_group_ends_tracks_as_one_between_frames_does() -> None:
    crop = crop_norm.prepare(crop_norm.CropSpec(16))

    def views(ahead: int) -> list[tuple[float, list[int]]]:
        tracker = FaceTracker(FrameLooker(Marked(), crop_size=16, crop=crop, ahead=ahead), face_scale=1.0)
        out: list[FacesAt] = []
        for i in range(14):
            out += tracker.push(ArrayFrame(picture(ONE), i * 0.2))
            out += tracker.flush() if i == 5 else ()
        out += tracker.flush()
        return [(v.time, list(v.faces)) for v in out]

    assert views(1) == views(4) == views(16)
    assert [faces for _, faces in views(1)] == [[0]] * 6 + [[1]] * 8


def test_given_faces_are_one_track() -> None:
    faces = GivenFaces(16)
    (view,) = faces.push(ArrayFrame(np.full((40, 30, 3), 7, dtype=np.uint8), 0.4))
    assert (view.time, set(view.faces), view.faces[0].crop.shape) == (0.4, {0}, (16, 16, 3))
    assert list(faces.flush()) == []


@pytest.mark.parametrize(("x", "y", "side"), [(0, 0, 30), (99, 49, 31), (-40, 20, 20), (50, 300, 10), (50, 25, 400)])
def test_crops_beyond_the_border_repeat_the_edge(x: float, y: float, side: float) -> None:
    image = np.full((50, 100, 3), 90, dtype=np.uint8)
    crop = crop_square(image, Box(x, y, side), 24)
    assert crop.shape == (24, 24, 3)
    assert (crop == 90).all()


def test_crop_is_where_the_box_is() -> None:
    image = np.zeros((50, 100, 3), dtype=np.uint8)
    image[10:30, 60:80] = (10, 20, 30)
    assert (crop_square(image, Box(70, 20, 20), 10) == (10, 20, 30)).all()
    assert crop_square(image, Box(60, 20, 20), 10)[:, :5].max() == 0


def test_scaling_down_averages() -> None:
    checks = np.zeros((64, 64, 3), dtype=np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 200
    assert (np.abs(resize(checks, 16).astype(int) - 100) <= 1).all()


def test_overlap_of_boxes() -> None:
    a = Box(10, 10, 10)
    assert a.overlap(a) == pytest.approx(1)
    assert a.overlap(Box(15, 10, 10)) == pytest.approx(1 / 3)
    assert a.overlap(Box(10, 10, 5)) == pytest.approx(0.25)
    assert a.overlap(Box(30, 10, 10)) == 0


def portrait(size: int) -> ByteArray:
    """The demo's portrait, `size` pixels high."""
    matplotlib = pytest.importorskip("matplotlib", reason="brings the portrait (extra 'demo')")
    image = cv2.imread(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg")
    assert image is not None
    scale = size / image.shape[0]
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[..., ::-1])


def test_haar_finds_a_real_face() -> None:
    image = portrait(480)
    (box,) = Haar().detect(image)
    height, width = image.shape[:2]
    assert 0.35 < box.x / width < 0.65
    assert 0.2 < box.y / height < 0.5
    assert 0.25 < box.side / width < 0.7


def test_detectors_agree_on_the_frame_of_a_face(yunet_model: Path) -> None:
    image = portrait(480)
    (haar,), (yunet,) = Haar().detect(image), YuNet(yunet_model).detect(image)
    assert haar.overlap(yunet) > 0.7


TINY = [(1, 1), (16, 16), (9, 300), (40, 33)]


def noise(shape: tuple[int, int]) -> ByteArray:
    return np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", TINY)
def test_haar_takes_tiny_pictures(shape: tuple[int, int]) -> None:
    assert Haar().detect(noise(shape)) == []


@pytest.mark.parametrize("shape", TINY)
def test_yunet_takes_tiny_pictures(shape: tuple[int, int], yunet_model: Path) -> None:
    assert YuNet(yunet_model).detect(noise(shape)) == []


@pytest.mark.parametrize("ahead", [1, 7, 16])
def test_nothing_looks_beyond_the_end_of_a_window(ahead: int) -> None:
    """What comes out for a window is the same whatever comes after it, and all of it has come out at its end."""
    crop = crop_norm.prepare(crop_norm.CropSpec(16))
    faces = [((60 + 3 * i, 90, 40), (250 - 2 * i, 60, 30)) for i in range(50)]
    pictures = [picture(*(f for j, f in enumerate(both) if j == 0 or 12 < i < 37)) for i, both in enumerate(faces)]

    def run(count: int, end: float | None) -> list[tuple[float, list[int], list[float]]]:
        looker = FrameLooker(Marked(), crop_size=16, crop=crop, ahead=ahead)
        tracker = FaceTracker(looker, face_scale=1.0, ends=WindowSpec(2.0, 1.0).end_after)
        views: list[FacesAt] = []
        for i in range(count):
            views += tracker.push(ArrayFrame(pictures[i], i / 5))
            before = 5 * int(i / 5 + 1e-6) if i >= 10 else 0
            assert ahead > 1 or len(views) >= before
            assert len(views) >= 5 * tracker.until - 1e-6
        if end is not None:
            views += tracker.settle(end)
            assert tracker.until >= end
            assert len(views) == count
        return [(v.time, sorted(v.faces), [brightness(v, n) for n in sorted(v.faces)]) for v in views]

    whole = run(50, None)
    for end in (2, 3, 5, 8):
        assert run(5 * end, float(end)) == whole[: 5 * end]


def test_two_looks_a_second_are_enough_where_a_window_ends_each_second() -> None:
    crop, detector = crop_norm.prepare(crop_norm.CropSpec(16)), Marked()
    looker = FrameLooker(detector, crop_size=16, crop=crop)
    tracker = FaceTracker(looker, face_scale=1.0, ends=WindowSpec(4.0, 1.0).end_after)
    calls = []
    for i in range(50):
        list(tracker.push(ArrayFrame(picture((60 + i, 90, 40)), i / 5)))
        calls.append(detector.calls)
    assert calls[46] - calls[26] == 8
