"""Crops of decoded frames: which way they are made, that they lie where they should, and that ways agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import set_rotation, write_video

import merfast
from merfast import _C
from merfast.media.decode import open_media
from merfast.media.decode_arrays import ArrayFrame
from merfast.media.decode_pyav import PyAVFrame
from merfast.media.faces import Box, Haar, crop_square, resize
from merfast.ops import afg_cpu, crop_norm, crop_norm_cpu
from merfast.ops.crop_norm import Crop, CropSpec, Planes
from merfast.types import ByteArray, Prediction

SIZE = 48


def read(path: Path) -> list[PyAVFrame]:
    media = open_media(path, name=path.name, decoder="pyav", frame_rate=5.0)
    return [e for e in media.events() if isinstance(e, PyAVFrame)]


def picture(height: int, width: int) -> ByteArray:
    """Smooth, grey, and nowhere symmetric: a crop from another place, or turned otherwise, differs by a lot."""
    y, x = np.mgrid[:height, :width]
    grey = 128 + 50 * np.sin(x / 17 + 0.3) + 40 * np.cos(y / 23 + x / 60)
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


def never(planes: Planes, boxes: torch.Tensor, frame: torch.Tensor | None) -> torch.Tensor:
    raise AssertionError("planes were cut")


def refuse_rgb(self: PyAVFrame) -> ByteArray:
    raise AssertionError("a whole frame was converted")


def difference(a: ByteArray, b: ByteArray) -> np.ndarray:
    return np.abs(a.astype(int) - b)


BOXES = [Box(70.0, 50.0, 40.0), Box(150.3, 80.2, 61.7), Box(5.0, 110.0, 50.0), Box(-80.0, 40.0, 30.0)]


@pytest.mark.parametrize("aspect", [(1, 1), (4, 3), (3, 4)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_crops_lie_in_the_upright_picture(
    degrees: int, aspect: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", [picture(120, 180)] * 3, pixel_aspect=aspect)
    frame = read(set_rotation(path, degrees))[0]
    whole = frame.rgb()
    expected = [crop_square(whole, box, SIZE) for box in BOXES]
    monkeypatch.setattr(PyAVFrame, "rgb", refuse_rgb)
    crops = frame.crops(BOXES, SIZE, crop_norm_cpu.prepare(CropSpec(SIZE)))
    assert len(crops) == len(BOXES)
    assert all(difference(want, want[::-1]).max() > 8 for want in expected[:3])  # so a turned crop would be seen
    for got, want in zip(crops, expected, strict=True):
        assert (got.shape, got.dtype) == ((SIZE, SIZE, 3), np.uint8)
        # Two levels of swscale's rounding, and another filter: boxes against triangles, in a picture that bends.
        assert difference(got, want).max() <= 5


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
def test_grey_agrees_with_the_whole_frame_path_where_filters_are_the_same(pix_fmt: str, tmp_path: Path) -> None:
    """Enlarged, both are bilinear; OpenCV does not look beyond the cut, so its outermost pixels are left out."""
    codec = "mjpeg" if pix_fmt == "yuvj420p" else "libx264"
    path = write_video(tmp_path / "a.mkv", [picture(120, 180)] * 3, codec=codec, pix_fmt=pix_fmt)
    frame, box = read(path)[0], Box(90.0, 60.0, 20.0)
    planes = frame.planes()
    assert planes is not None
    assert planes.full_range == (pix_fmt == "yuvj420p")
    (got,) = frame.crops([box], SIZE, crop_norm_cpu.prepare(CropSpec(SIZE)))
    assert difference(got, crop_square(frame.rgb(), box, SIZE))[2:-2, 2:-2].max() <= 2


def test_faces_agree_with_the_whole_frame_path(face_clip: Path) -> None:
    """What differs is explained: swscale's fast conversion rounds down (1.2 levels on average) and repeats chroma
    samples instead of interpolating them; and averages of areas against triangles twice as wide, at edges.
    """
    crop = crop_norm_cpu.prepare(CropSpec(SIZE))
    compared = 0
    for frame in read(face_clip):
        whole = frame.rgb()
        small = frame.small(480)
        boxes = [b.scaled(frame.width / small.shape[1]) for b in Haar().detect(small)]
        for got, box in zip(frame.crops(boxes, SIZE, crop), boxes, strict=True):
            apart = difference(got, crop_square(whole, box, SIZE))
            assert apart.mean() < 4
            assert apart.max() < 40
            side = max(1, round(box.side))
            left, top = round(box.x - side / 2), round(box.y - side / 2)
            same_filter = triangle(whole, left, top, side)
            apart = np.abs(got - same_filter)
            assert apart.mean() < 2
            assert apart.max() < 12
            compared += 1
    assert compared >= 5


def triangle(image: ByteArray, left: int, top: int, side: int) -> np.ndarray:
    """A square of an RGB picture through the filter that the op uses."""
    padded = np.pad(image, ((side, side), (side, side), (0, 0)), mode="edge")
    around = torch.from_numpy(padded[top : top + 3 * side, left : left + 3 * side]).permute(2, 0, 1)[None].float()
    big = torch.nn.functional.interpolate(around, size=3 * SIZE, mode="bilinear", antialias=True)
    return big[0, :, SIZE : 2 * SIZE, SIZE : 2 * SIZE].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv444p", "yuv420p10le", "bgr0"])
def test_other_formats_convert_the_whole_frame(pix_fmt: str, tmp_path: Path) -> None:
    codec = "ffv1" if pix_fmt == "bgr0" else "libx264"
    path = write_video(tmp_path / "a.mkv", [picture(120, 180)] * 3, codec=codec, pix_fmt=pix_fmt)
    frame = read(path)[0]
    assert frame.planes() is None
    whole = frame.rgb()
    for got, box in zip(frame.crops(BOXES, SIZE, never), BOXES, strict=True):
        assert np.array_equal(got, crop_square(whole, box, SIZE))


@pytest.mark.parametrize(("colourspace", "matrix"), [(1, "bt709"), (2, "bt601"), (5, "bt601"), (6, "bt601"), (9, None)])
def test_the_matrix_is_that_of_the_frame(colourspace: int, matrix: str | None, tmp_path: Path) -> None:
    frame = read(write_video(tmp_path / "a.mp4", [picture(48, 64)] * 3))[0]
    frame._frame.colorspace = colourspace
    planes = frame.planes()
    assert (planes and planes.matrix) == matrix


def test_odd_sizes_and_planes_are_the_decoders_own(tmp_path: Path) -> None:
    frame = read(write_video(tmp_path / "a.mkv", [picture(47, 65)] * 3, codec="ffv1"))[0]
    planes = frame.planes()
    assert planes is not None
    assert [list(p.shape) for p in planes[:3]] == [[1, 47, 65], [1, 24, 33], [1, 24, 33]]  # type: ignore[union-attr]
    assert planes.y.data_ptr() == frame._frame.planes[0].buffer_ptr
    (got,) = frame.crops([Box(40.0, 30.0, 60.0)], SIZE, crop_norm_cpu.prepare(CropSpec(SIZE)))
    assert difference(got, crop_square(frame.rgb(), Box(40.0, 30.0, 60.0), SIZE)).max() <= 5


def test_nv12_frames(tmp_path: Path) -> None:
    planar = read(write_video(tmp_path / "a.mp4", [picture(120, 180)] * 3))[0]
    frame = PyAVFrame(planar._frame.reformat(format="nv12"), 0.0, 1.0, planar._scalers)
    planes = frame.planes()
    assert planes is not None
    assert planes.u.stride(2) == 2
    crop = crop_norm_cpu.prepare(CropSpec(SIZE))
    for a, b in zip(frame.crops(BOXES, SIZE, crop), planar.crops(BOXES, SIZE, crop), strict=True):
        assert np.array_equal(a, b)


def test_arrays_keep_their_way() -> None:
    image = picture(120, 180)
    for got, box in zip(ArrayFrame(image, 0.0).crops(BOXES, SIZE, never), BOXES, strict=True):
        assert np.array_equal(got, crop_square(image, box, SIZE))
    assert np.array_equal(resize(image[:48, :48], 48), image[:48, :48])


def test_no_box_touches_nothing(face_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PyAVFrame, "rgb", refuse_rgb)
    assert list(read(face_clip)[0].crops([], SIZE, never)) == []


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
@pytest.mark.parametrize("kernels", [*(f"cpp-{isa}" for isa in afg_cpu.isas()), "cpp", "reference"])
def test_the_engine_takes_the_planned_way(kernels: str, face_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame is converted as a whole, and the crops come from the kernel that the plan names."""
    kernel, ran = _C.CropNormKernel, []

    class Recorder:
        def __init__(self, *arguments: object) -> None:
            self._kernel = kernel(*arguments)  # type: ignore[arg-type]

        def run(self, *arguments: object) -> None:
            ran.append(f"cpp-{self._kernel.isa}")
            self._kernel.run(*arguments)  # type: ignore[arg-type]

    def record(resample: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*arguments: object) -> torch.Tensor:
            ran.append("reference")
            return resample(*arguments)

        return run

    monkeypatch.setattr(_C, "CropNormKernel", Recorder)
    monkeypatch.setattr(crop_norm, "resample", record(crop_norm.resample))
    monkeypatch.setattr(PyAVFrame, "rgb", refuse_rgb)
    engine = merfast.Engine(device="cpu", detector="haar", kernels=kernels)
    (prediction,) = engine.predict([face_clip])
    assert isinstance(prediction, Prediction)
    assert "video" in prediction.modalities
    assert len(ran) > 5
    assert set(ran) == {engine.plan.choice("crop")}


@pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")
def test_ways_predict_alike(face_clip: Path) -> None:
    predictions = []
    for kernels in ("reference", "cpp"):
        (p,) = merfast.Engine(device="cpu", detector="haar", kernels=kernels).predict([face_clip])
        assert isinstance(p, Prediction)
        predictions.append(p)
    assert np.abs(predictions[0].probabilities - predictions[1].probabilities).max() < 1e-3


def test_kernels_give_what_the_reference_gives_on_frames(face_clip: Path) -> None:
    frame = read(face_clip)[0]
    crops: list[Crop] = [crop_norm_cpu.prepare(CropSpec(SIZE), isa=isa) for isa in afg_cpu.isas()]
    expected = frame.crops(BOXES, SIZE, crop_norm.prepare(CropSpec(SIZE)))
    for crop in crops:
        for got, want in zip(frame.crops(BOXES, SIZE, crop), expected, strict=True):
            assert difference(got, want).max() <= 1
