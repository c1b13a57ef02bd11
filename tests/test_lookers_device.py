"""Pictures looked at in groups where they lie: the same faces as one by one on the CPU, whatever the group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import set_rotation, write_video
from no_waits import no_waits
from test_tracks import Marked
from test_tracks import picture as squares

import merfast
from merfast.clip import Clip
from merfast.media.decode import Frame, open_media
from merfast.media.decode_arrays import ArrayFrame
from merfast.media.decode_pyav import PyAVMedia
from merfast.media.faces import DETECT_SIZE, Box, Detector, Haar
from merfast.media.lookers import THUMBNAIL, FrameLooker
from merfast.media.lookers_device import BatchDetector, OnHost, SurfaceLooker
from merfast.media.surfaces import SurfaceFrame
from merfast.media.tracks import FacesAt, FaceTracker
from merfast.media.windows import WindowSpec
from merfast.media.yunet_torch import YuNetTorch
from merfast.ops import crop_norm, crop_norm_cpu
from merfast.ops.crop_norm import CropSpec, Planes
from merfast.pipeline import ItemReader, warm_up
from merfast.plan import Step
from merfast.types import ByteArray, Prediction, Window

SIZE = 48
CPU = torch.device("cpu")
prepare = partial(crop_norm_cpu.prepare, isa="auto")


def read(path: Path, surfaces: torch.device | None, rate: float = 5.0) -> list[Frame]:
    media = open_media(path, name=path.name, decoder="pyav", frame_rate=rate, surfaces=surfaces)
    assert isinstance(media, PyAVMedia)
    return [e for e in media.events() if hasattr(e, "width")]  # type: ignore[misc]


def picture(height: int, width: int) -> ByteArray:
    """Smooth, grey, and nowhere symmetric: a picture turned otherwise differs by a lot."""
    y, x = np.mgrid[:height, :width]
    grey = 128 + 50 * np.sin(x / 17 + 0.3) + 40 * np.cos(y / 23 + x / 60)
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


def looker(detector: BatchDetector, ahead: int = 16, device: torch.device = CPU) -> SurfaceLooker:
    return SurfaceLooker(detector, crop_size=SIZE, prepare=kernel(device), ahead=ahead)


def kernel(device: torch.device) -> Callable[[CropSpec], crop_norm.Crop]:
    if device.type == "cpu":
        return prepare
    from merfast.ops import crop_norm_triton

    return crop_norm_triton.prepare


def one_by_one(detector: Detector) -> FrameLooker:
    return FrameLooker(detector, crop_size=SIZE, crop=prepare(CropSpec(SIZE)))


def follow(tracker: FaceTracker, frames: Sequence[Frame]) -> list[FacesAt]:
    return [*(v for f in frames for v in tracker.push(f)), *tracker.flush()]


def difference(a: object, b: object) -> np.ndarray:
    return np.abs(np.asarray(a).astype(int) - np.asarray(b))


def same(got: list[FacesAt], expected: list[FacesAt], limit: float) -> None:
    """The same tracks at the same times, and crops that differ by so much on average."""
    assert [(v.time, list(v.faces)) for v in got] == [(v.time, list(v.faces)) for v in expected]
    for mine, theirs in zip(got, expected, strict=True):
        for number, face in mine.faces.items():
            assert isinstance(face.crop, torch.Tensor)
            assert face.crop.shape == (SIZE, SIZE, 3)
            assert difference(face.crop.cpu(), torch.as_tensor(theirs.faces[number].crop).cpu()).mean() <= limit
            assert face.weight == pytest.approx(theirs.faces[number].weight, rel=0.2)


class Seen:
    """Keeps the pictures in which faces are looked for."""

    def __init__(self) -> None:
        self.pictures: list[torch.Tensor] = []

    def detect(self, pictures: torch.Tensor) -> list[list[Box]]:
        self.pictures.append(pictures)
        return [[] for _ in pictures]


BOXES = [Box(70.0, 50.0, 40.0), Box(150.3, 80.2, 61.7), Box(5.0, 110.0, 50.0), Box(-80.0, 40.0, 30.0)]


@pytest.mark.parametrize("aspect", [(1, 1), (4, 3), (3, 4)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize(("high", "wide"), [(120, 180), (542, 724)])
def test_pictures_are_upright_and_as_on_the_cpu(
    high: int, wide: int, degrees: int, aspect: tuple[int, int], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", [picture(high, wide)] * 3, pixel_aspect=aspect)
    set_rotation(path, degrees)
    surfaces, frames = read(path, CPU, 25.0), read(path, None, 25.0)
    seen = Seen()
    device = looker(seen)
    thumbnails, found = device.thumbnails(surfaces), device.detect(surfaces)
    crops = device.crops([(surfaces[0], BOXES), (surfaces[1], []), (surfaces[2], BOXES[:1])])
    cpu = one_by_one(Marked())
    assert found == [[], [], []]
    assert seen.pictures[0].dtype == torch.uint8
    for got, small, frame, tiny in zip(
        thumbnails, seen.pictures[0].numpy(), frames, cpu.thumbnails(frames), strict=True
    ):
        expected = frame.small(DETECT_SIZE)
        assert small.shape == expected.shape
        assert difference(expected, expected[::-1]).max() > 8  # so a turned picture would be seen
        # swscale rounds down twice, and its filters of many taps are coarse.
        assert difference(small, expected).mean() < 2
        assert difference(small, expected).max() <= 6
        assert got.shape == tiny.shape == frame.small(THUMBNAIL).shape
        assert difference(got, tiny).mean() < 3
    expected_crops = cpu.crops([(frames[0], BOXES), (frames[2], BOXES[:1])])
    assert len(crops[1]) == 0
    for got, want in zip((*crops[0], *crops[2]), (*expected_crops[0], *expected_crops[1]), strict=True):
        assert difference(got, want).max() <= 1


def squares_clip(path: Path, images: list[ByteArray]) -> Path:
    return write_video(path, images, fps=5, codec="ffv1")


ONE, TWO = (100, 90, 40), (240, 90, 50)
CLIPS: dict[str, list[ByteArray]] = {
    "moving": [squares((60 + 8 * i, 90, 40)) for i in range(21)],
    "cut": [squares(ONE)] * 8 + [squares(ONE, level=120)] * 9,
    "cuts": [squares(ONE, level=40 + 80 * (i // 3 % 2)) for i in range(20)],
    "two": [squares((40 + 5 * i, 60, 30), (280 - 5 * i, 130, 40)) for i in range(15)],
    "one more": [squares(ONE)] * 9 + [squares(ONE, TWO)] * 10,
    "nobody": [squares()] * 9,
    "one frame": [squares(ONE)],
}


@pytest.mark.parametrize("case", CLIPS)
def test_groups_follow_faces_as_the_cpu_does(case: str, tmp_path: Path) -> None:
    """Cuts within groups, several faces, none; bright squares are found alike in both ways' pictures."""
    path = squares_clip(tmp_path / "a.mkv", CLIPS[case])
    expected = follow(FaceTracker(one_by_one(Marked()), face_scale=1.2), read(path, None))
    tracks = {n for v in expected for n in v.faces}
    assert len(tracks) == {"cut": 2, "cuts": 7, "two": 2, "one more": 2, "nobody": 0}.get(case, 1)
    surfaces = read(path, CPU)
    for ahead in (1, 4, 16):
        calls = Marked()
        got = follow(FaceTracker(looker(OnHost(calls), ahead), face_scale=1.2), surfaces)
        same(got, expected, 6.0)
        assert calls.calls <= len(expected) * 0.7 + 7


def test_frames_may_change_their_size(tmp_path: Path) -> None:
    """Also to one that comes back, so that a group holds more than one kind."""
    wide = squares_clip(tmp_path / "a.mkv", [squares(ONE)] * 4)
    high = squares_clip(tmp_path / "b.mkv", [np.ascontiguousarray(squares(ONE).transpose(1, 0, 2))] * 4)

    def mixed(surfaces: torch.device | None) -> list[Frame]:
        a, b = read(wide, surfaces), read(high, surfaces)
        frames = [*a[:2], *b[:2], *a[2:], *b[2:]]
        for i, frame in enumerate(frames):
            frame.time = 0.2 * i
        return frames

    expected = follow(FaceTracker(one_by_one(Marked()), face_scale=1.0), mixed(None))
    assert [set(v.faces) for v in expected] == [{0}, {0}, {1}, {1}, {2}, {2}, {3}, {3}]
    same(follow(FaceTracker(looker(OnHost(Marked()), 8), face_scale=1.0), mixed(CPU)), expected, 1.0)


def test_pixels_may_change_their_aspect(tmp_path: Path) -> None:
    """The same planes, but not the same picture."""
    paths = [
        write_video(tmp_path / f"{wide}.mp4", [squares(ONE)] * 2, fps=5, pixel_aspect=(wide, 1)) for wide in (1, 2)
    ]
    surfaces, frames = ([read(path, place)[0] for path in paths] for place in (CPU, None))
    device, cpu = looker(OnHost(Marked())), one_by_one(Marked())
    got = [thumbnail.shape for thumbnail in device.thumbnails(surfaces)]
    assert got == [thumbnail.shape for thumbnail in cpu.thumbnails(frames)] == [(18, 32, 3), (9, 32, 3)]
    for mine, theirs in zip(device.detect(surfaces), cpu.detect(frames), strict=True):
        assert np.abs(np.subtract(mine, theirs)).max() < 0.01


@pytest.mark.parametrize("shape", [(2, 2), (8, 6), (18, 400)])
def test_tiny_pictures(shape: tuple[int, int], tmp_path: Path, yunet_model: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [np.full((*shape, 3), 90, np.uint8)] * 5, fps=5, codec="ffv1")
    for detector in (YuNetTorch(yunet_model, "cpu"), OnHost(Haar())):
        views = follow(FaceTracker(looker(detector), face_scale=1.0), read(path, CPU))
        assert [v.faces for v in views] == [{}] * 5


def test_only_surfaces_are_looked_at() -> None:
    with pytest.raises(TypeError, match="got a ArrayFrame, expected a SurfaceFrame"):
        looker(Seen()).thumbnails([ArrayFrame(squares(), 0.0)])


def test_crops_do_not_wait_for_the_device() -> None:
    """On the meta device, where what has to be waited for cannot be had."""

    class Elsewhere(SurfaceFrame):
        def __init__(self) -> None:
            self.time, self.width, self.height, self.turn = 0.0, 180, 320, 90
            luma = torch.empty(1, 180, 320, dtype=torch.uint8, device="meta")
            chroma = torch.empty(1, 90, 160, dtype=torch.uint8, device="meta")
            self.there = Planes(luma, chroma, chroma)

        planes = property(lambda self: self.there)  # type: ignore[assignment]

        def locate(self, box: Box) -> tuple[float, float, float, float]:
            return 10.0, 20.0, 30.0, 40.0

    def empty(spec: CropSpec) -> crop_norm.Crop:
        return lambda planes, boxes, frame: torch.empty(len(boxes), *spec.sides, 3, dtype=torch.uint8, device="meta")

    device = SurfaceLooker(Seen(), crop_size=SIZE, prepare=empty)
    with no_waits():
        crops = device.crops([(Elsewhere(), BOXES), (Elsewhere(), BOXES[:1])])
    assert [len(c) for c in crops] == [4, 1]


# The whole way, on the CPU by a plan that says so.


def engine_with(yunet_model: Path, **steps: str) -> merfast.Engine:
    engine = merfast.Engine(device="cpu", detector_model=yunet_model)
    changed = tuple(Step(s.step, steps.get(s.step, s.implementation), "chosen by a test") for s in engine.plan.steps)
    engine.plan = engine._workers[0].plan = replace(engine.plan, steps=changed)
    return engine


def windows(engine: merfast.Engine, source: Path | Clip) -> list[Window]:
    config = engine.bundle.config
    spec = WindowSpec(4.0, 4.0)
    reader = ItemReader(source, "item", engine.plan, config, spec, every_face=True, threads=1)
    return [w for group in reader for w in group]


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
@pytest.mark.parametrize("crop", ["reference", "cpp-generic"])
def test_the_way_over_surfaces_predicts_alike(crop: str, face_clip: Path, yunet_model: Path) -> None:
    plain, over = engine_with(yunet_model), engine_with(yunet_model, faces="yunet-torch", crop=crop)
    assert (plain.plan.surfaces, over.plan.surfaces) == (None, "cpu")
    (a,), (b,) = windows(plain, face_clip), windows(over, face_clip)
    assert isinstance(a.crops, np.ndarray)
    assert isinstance(b.crops, torch.Tensor)
    assert (a.sampled, a.track, a.modalities, a.ready) == (b.sampled, b.track, b.modalities, b.ready)
    # Where a box rounds to a neighbouring pixel, a crop of this clip differs by 3 to 7 levels, elsewhere by none.
    levels = difference(b.crops, a.crops).mean((1, 2, 3))
    assert levels.mean() < 3
    assert levels.max() < 10
    (p,), (q,) = plain.predict([face_clip]), over.predict([face_clip])
    assert isinstance(p, Prediction)
    assert isinstance(q, Prediction)
    assert np.abs(p.probabilities - q.probabilities).max() <= 0.02
    assert p.face_coverage == q.face_coverage == 1.0


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
@pytest.mark.parametrize("faces", ["yunet-torch", "haar", "none"])
def test_what_readers_run_is_made_ready(faces: str, yunet_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in ("thumbnails", "detect", "crops"):
        original = getattr(SurfaceLooker, name)
        monkeypatch.setattr(SurfaceLooker, name, lambda *a, n=name, o=original: (ran.append(n), o(*a))[1])
    engine = engine_with(yunet_model)
    assert ran == []  # nothing is to be made ready for pictures that the decoder keeps
    over = replace(
        engine.plan,
        steps=tuple(Step(s.step, faces if s.step == "faces" else s.implementation, "") for s in engine.plan.steps),
    )
    warm_up(over, engine.bundle.config)
    assert ran == (["thumbnails", "detect", "crops"] if faces == "yunet-torch" else [])


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
@pytest.mark.parametrize("name", ["hevc_face_then_none.mov", "no_face.mp4", "tall_s13.mp4"])
def test_real_clips_over_surfaces(name: str, data_dir: Path, yunet_model: Path) -> None:
    """What is left is of boxes that round to a neighbouring pixel."""
    plain, over = engine_with(yunet_model), engine_with(yunet_model, faces="yunet-torch")
    (p,), (q,) = (e.predict([data_dir / "clips" / name]) for e in (plain, over))
    assert isinstance(p, Prediction)
    assert isinstance(q, Prediction)
    assert np.abs(p.probabilities - q.probabilities).max() <= 0.02
    assert abs(p.valence - q.valence) <= 0.1
    assert p.face_coverage == q.face_coverage


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
def test_windows_on_and_off_the_device_share_a_pass(face_clip: Path, yunet_model: Path) -> None:
    """A caller's own arrays stay with the CPU, in the same call as files whose faces are on the device."""
    over = engine_with(yunet_model, faces="yunet-torch")
    frames = np.stack([f.rgb() for f in read(face_clip, None)])
    clip = Clip.from_arrays(frames, fps=5.0)
    (there,), (here,) = windows(over, face_clip), windows(over, clip)
    assert isinstance(there.crops, torch.Tensor)
    assert isinstance(here.crops, np.ndarray)
    together = over.predict([clip, face_clip, clip])
    alone = [p for item in (clip, face_clip, clip) for p in over.predict([item])]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(a.probabilities - b.probabilities).max() <= 1e-5


# On a GPU.


@pytest.mark.cuda
@pytest.mark.parametrize("case", ["two", "cut"])
def test_a_gpu_follows_faces_as_the_cpu_does(case: str, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    path = squares_clip(tmp_path / "a.mkv", CLIPS[case])
    expected = follow(FaceTracker(one_by_one(Marked()), face_scale=1.2), read(path, None))
    got = follow(FaceTracker(looker(OnHost(Marked()), device=device), face_scale=1.2), read(path, device))
    assert all(f.crop.device == device for v in got for f in v.faces.values())
    same(got, expected, 6.0)
