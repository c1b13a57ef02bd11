"""The reference of the crop op: against its formulas in numpy, torch, OpenCV and swscale, and what it refuses."""

from __future__ import annotations

from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from crop_inputs import LAYOUTS, exact_rgb, make_planes
from hypothesis import given, settings
from hypothesis import strategies as st

from merfast.ops.crop_norm import FARTHEST, CropSpec, Planes, crop_norm, prepare, resample, sides_of

FLOAT = torch.float32


def grey(picture: np.ndarray) -> Planes:
    """A full-range picture without colour: R = G = B = Y."""
    height, width = picture.shape
    chroma = torch.full((1, (height + 1) // 2, (width + 1) // 2), 128, dtype=torch.uint8)
    return Planes(torch.from_numpy(picture)[None], chroma, chroma.clone(), full_range=True)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    layout=st.sampled_from(LAYOUTS),
    matrix=st.sampled_from(["bt601", "bt709"]),
    full_range=st.booleans(),
    corner=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    sides=st.tuples(st.floats(0.01, 60), st.floats(0.01, 60)),
    size=st.one_of(st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9))),
)
def test_the_formulas(
    height: int,
    width: int,
    layout: str,
    matrix: str,
    full_range: bool,
    corner: tuple[float, float],
    sides: tuple[float, float],
    size: int | tuple[int, int],
) -> None:
    planes = make_planes(height, width, layout=layout, frames=2, spare=3, matrix=matrix, full_range=full_range)
    box = [*corner, corner[0] + sides[0], corner[1] + sides[1]]
    got = resample(planes, torch.tensor([box], dtype=torch.float64), torch.tensor([1]), size, torch.float64)
    np.testing.assert_allclose(got[0].permute(1, 2, 0), exact_rgb(planes, box, 1, sides_of(size)), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("side", "size"), [(40, 8), (37, 10), (40, 39), (24, 24), (10, 23), (1, 5)])
def test_resampling_is_that_of_torch(side: int, size: int) -> None:
    """torch sees its input alone: it gets the box with as much around it on each side, and the middle is compared."""
    picture = noise(150, 160)
    left, top = 60, 55
    around = torch.from_numpy(picture[top - side : top + 2 * side, left - side : left + 2 * side])
    expected = torch.nn.functional.interpolate(
        around[None, None].double(), size=3 * size, mode="bilinear", antialias=True, align_corners=False
    )[0, 0, size : 2 * size, size : 2 * size]
    box = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float64)
    got = resample(grey(picture), box, None, size, torch.float64)
    torch.testing.assert_close(got[0], expected.expand(3, -1, -1), rtol=0, atol=1e-4)


def test_enlarging_is_that_of_opencv() -> None:
    picture = noise(40, 40)
    expected = cv2.resize(picture, (100, 100), interpolation=cv2.INTER_LINEAR)
    got = crop_norm(grey(picture), torch.tensor([[0.0, 0.0, 40.0, 40.0]]), spec=CropSpec(100))[0]
    assert np.abs(got.numpy().astype(int) - expected[..., None]).max() <= 1


def test_chroma_lies_between_rows_and_on_columns() -> None:
    """Planes are linear in the places where they are sited, and so is what is interpolated between them."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(30), indexing="ij")
    u, v = 80 + columns + 2 * rows, 90 + 2 * columns - rows  # at x = 2 column + 1/2, y = 2 row + 1
    luma = torch.full((80, 60), 128)
    planes = Planes(luma[None].byte(), u[None].byte(), v[None].byte(), full_range=True)
    box, size = torch.tensor([[10.5, 20.25, 40.5, 50.25]], dtype=torch.float64), 40
    got = resample(planes, box, None, size, torch.float64)[0]
    at = (torch.arange(size) + 0.5) * 30 / size
    x, y = 10.5 + at[None, :], 20.25 + at[:, None]
    red = 128 + 1.402 * (90 + (x - 0.5) - (y - 1) / 2 - 128)
    blue = 128 + 1.772 * (80 + (x - 0.5) / 2 + (y - 1) - 128)
    torch.testing.assert_close(got[0], red.clamp(0, 255).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(got[2], blue.clamp(0, 255).double(), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> tuple[av.VideoFrame, list[torch.Tensor]]:
    """A frame of smooth, pale colours out of a lossless H.264 file, which sites its chroma; and its three planes."""
    y, x = np.mgrid[:64, :64]
    luma = (110 + 30 * np.sin(x / 5) + 10 * np.cos(y / 3)).astype(np.uint8)
    u, v = ((128 + 20 * f(x[::2, ::2] / 9 + y[::2, ::2] / 7)).astype(np.uint8) for f in (np.sin, np.cos))
    frame = av.VideoFrame(64, 64, "yuv420p")
    for plane, picture in zip(frame.planes, (luma, u, v), strict=True):
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : picture.shape[1]] = picture
    path = tmp_path_factory.mktemp("lossless") / "colours.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.mux([*stream.encode(frame), *stream.encode(None)])
    with av.open(str(path)) as media:
        decoded = next(media.decode(video=0))
    return decoded, [torch.from_numpy(p.copy())[None] for p in (luma, u, v)]


@pytest.mark.parametrize(("matrix", "colourspace"), [("bt601", 5), ("bt709", 1)])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_swscale_agrees(lossless: Any, matrix: str, colourspace: int, full_range: bool, layout: str) -> None:
    """Pixel for pixel, with swscale's slow and exact conversion; nothing has to be clamped."""
    frame, (y, u, v) = lossless
    frame.colorspace, frame.color_range = colourspace, 2 if full_range else 1
    flags = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    converted = VideoReformatter().reformat(frame, width=64, height=64, format="rgb24", interpolation=flags)
    if layout == "nv12":
        uv = torch.stack((u, v), -1)
        u, v = uv[..., 0], uv[..., 1]
    planes = Planes(y, u, v, matrix, full_range)
    got = crop_norm(planes, torch.tensor([[0.0, 0.0, 64.0, 64.0]]), spec=CropSpec(64))[0].numpy()
    assert np.abs(got.astype(int) - converted.to_ndarray())[1:-1, 1:-1].max() <= 1


def test_converting_first_gives_the_same_where_nothing_is_clamped() -> None:
    """Flat chroma, so that it does not matter how often it is filtered; OpenCV converts the whole picture."""
    picture = np.clip(noise(96, 96), 90, 180)
    chroma = np.full((48, 48), 110, np.uint8), np.full((48, 48), 150, np.uint8)
    planes = Planes(*(torch.from_numpy(p)[None] for p in (picture, *chroma)))
    stacked = np.concatenate([p.reshape(-1) for p in (picture, *chroma)]).reshape(144, 96)
    whole = cv2.cvtColor(stacked, cv2.COLOR_YUV2RGB_I420).astype(np.float64)
    box = torch.tensor([[16.0, 16.0, 80.0, 80.0]])
    got = crop_norm(planes, box, spec=CropSpec(16, FLOAT))[0].permute(1, 2, 0) * 255
    for c in range(3):
        channel = torch.from_numpy(np.ascontiguousarray(whole[..., c]))[None].clamp(0, 255)
        expected = torch.nn.functional.interpolate(
            channel[None], size=24, mode="bilinear", antialias=True, align_corners=False
        )[0, 0, 4:20, 4:20]
        assert (got[..., c] - expected).abs().max() <= 1  # OpenCV rounds each pixel, by up to 1


@pytest.mark.parametrize("box", [[-20, -10, 20, 30], [70, 50, 110, 90], [-90, 20, -60, 50], [30, 300, 60, 330]])
def test_beyond_the_border_the_edge_is_repeated(box: list[int]) -> None:
    picture = noise(60, 80)
    padded = np.pad(picture, 400, mode="edge")
    inside = torch.tensor([[float(c) for c in box]])
    got = crop_norm(grey(picture), inside, spec=CropSpec(7, FLOAT))
    torch.testing.assert_close(got, crop_norm(grey(padded), inside + 400, spec=CropSpec(7, FLOAT)), rtol=0, atol=1e-6)


def test_outputs() -> None:
    planes, boxes = make_planes(30, 40, frames=2), torch.tensor([[3.0, 4.0, 20.0, 21.0], [1.0, 1.0, 5.0, 9.0]])
    frame = torch.tensor([1, 0])
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    exact = resample(planes, boxes, frame, 6, torch.float64)
    whole = crop_norm(planes, boxes, frame, spec=CropSpec(6))
    assert (whole.dtype, whole.shape) == (torch.uint8, (2, 6, 6, 3))
    assert (whole.permute(0, 3, 1, 2) - exact).abs().max() <= 0.5 + 1e-4
    three = [torch.tensor(v).double()[:, None, None] for v in (mean, std)]
    for dtype, limit in ((FLOAT, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)):
        out = prepare(CropSpec(6, dtype, mean, std))(planes, boxes, frame)
        assert (out.dtype, out.shape) == (dtype, (2, 3, 6, 6))
        assert (out - (exact / 255 - three[0]) / three[1]).abs().max() <= limit
    assert crop_norm(planes, boxes[:0], spec=CropSpec(6)).shape == (0, 6, 6, 3)
    assert crop_norm(planes, boxes[:0], spec=CropSpec(6, FLOAT)).shape == (0, 3, 6, 6)


BYTES = torch.zeros(1, 4, 4, dtype=torch.uint8)
HALF = torch.zeros(1, 2, 2, dtype=torch.uint8)
BOX = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "y-dtype": ({"y": BYTES.float()}, r"y: got torch.float32 with 3 dimensions, expected torch.uint8 \[F, H, W\]"),
    "y-rank": ({"y": BYTES[0]}, r"y: got torch.uint8 with 2 dimensions"),
    "y-empty": ({"y": BYTES[:, :0]}, r"y: got \[1, 0, 4\], expected at least 1"),
    "y-columns": (
        {"y": torch.zeros(1, 4, 8, dtype=torch.uint8)[..., ::2]},
        r"y: got columns 2 bytes apart, expected 1",
    ),
    "u-shape": ({"u": BYTES}, r"u: got \[1, 4, 4\], expected \[1, 2, 2\] for y of 4x4"),
    "v-frames": ({"v": HALF.expand(2, -1, -1)}, r"v: got \[2, 2, 2\], expected \[1, 2, 2\]"),
    "v-strides": ({"v": torch.zeros(1, 2, 4, dtype=torch.uint8)[..., :2]}, r"u, v: got strides \(4, 2, 1\) and \(8, 4"),
    "matrix": ({"matrix": "bt2020"}, r"matrix: got 'bt2020', expected one of bt601, bt709"),
    "boxes-shape": ({"boxes": torch.zeros(4)}, r"boxes: got torch.float32 \[4\], expected .* \[N, 4\]"),
    "boxes-dtype": ({"boxes": BOX.int()}, r"boxes: got torch.int32 \[1, 4\]"),
    "boxes-empty": ({"boxes": BOX[:, [0, 1, 0, 3]]}, r"boxes: got \[0.0, 0.0, 0.0, 2.0\] in row 0, expected left < ri"),
    "boxes-nan": ({"boxes": BOX * torch.nan}, r"boxes: got \[nan, .* in row 0"),
    "boxes-far": ({"boxes": BOX * FARTHEST}, r"boxes: got .* within 65536 pixels"),
    "frame-shape": ({"frame": torch.zeros(2).long()}, r"frame: got torch.int64 \[2\], expected torch.int64 \[1\]"),
    "frame-dtype": ({"frame": torch.zeros(1)}, r"frame: got torch.float32 \[1\]"),
    "frame-range": ({"frame": torch.ones(1).long()}, r"frame: got 1 to 1, expected 0 to 0"),
}


def bad_arguments(case: str) -> tuple[Planes, torch.Tensor, torch.Tensor | None]:
    values: dict[str, Any] = {"y": BYTES, "u": HALF, "v": HALF, "matrix": "bt601", "boxes": BOX, "frame": None}
    values |= BAD[case][0]
    planes = Planes(values["y"], values["u"], values["v"], values["matrix"])
    return planes, values["boxes"], values["frame"]


@pytest.mark.parametrize("case", BAD)
def test_refuses(case: str) -> None:
    with pytest.raises(ValueError, match=f"crop_norm {BAD[case][1]}"):
        crop_norm(*bad_arguments(case), spec=CropSpec(2))


BAD_SPECS: dict[str, tuple[CropSpec, str]] = {
    "size": (CropSpec(0), "size: got 0, expected at least 1"),
    "height": (CropSpec((0, 3)), r"size: got \(0, 3\), expected at least 1"),
    "dtype": (CropSpec(2, torch.int32), "dtype: got torch.int32, expected one of torch.uint8"),
    "bytes": (CropSpec(2, mean=(0.5, 0.5, 0.5)), "mean, std: got .* with uint8, expected a float dtype"),
    "std": (CropSpec(2, FLOAT, std=(1.0, 0.0, 1.0)), "mean, std: got .* std above 0"),
    "mean": (CropSpec(2, FLOAT, mean=(float("nan"), 0.0, 1.0)), "mean, std: got .* three finite"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_refuses_specs(case: str) -> None:
    spec, message = BAD_SPECS[case]
    with pytest.raises(ValueError, match=f"crop_norm {message}"):
        prepare(spec)
