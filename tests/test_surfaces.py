"""`SurfaceFrame` in the CPU's memory against `PyAVFrame`: the way that frames take to a GPU, without one."""

from __future__ import annotations

import io
import logging
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from media_files import set_rotation, write_video
from test_crop_frames import BOXES, SIZE, difference, picture

from merfast.media import decode_pyav
from merfast.media.decode import AudioChunk, Event, open_media
from merfast.media.decode_pyav import PyAVMedia
from merfast.media.faces import Box
from merfast.media.frames import PyAVFrame, new_scalers
from merfast.media.source import Reader
from merfast.media.surfaces import Stored, SurfaceFrame, eight_bits
from merfast.ops import crop_norm_cpu
from merfast.ops.crop_norm import CropSpec
from merfast.types import ByteArray

CPU = torch.device("cpu")
CROP = crop_norm_cpu.prepare(CropSpec(SIZE))


def events(path: Path, surfaces: torch.device | None = None, seconds: float = 60.0) -> list[Event]:
    """What the first so many seconds give."""
    media = open_media(path, name=path.name, decoder="pyav", frame_rate=5.0, surfaces=surfaces)
    try:
        return list(takewhile(lambda e: isinstance(e, AudioChunk) or e.time < seconds, media.events()))
    finally:
        media.close()


def both(path: Path) -> tuple[PyAVFrame, SurfaceFrame]:
    """The first picture, each way."""
    plain, surface = (next(e for e in events(path, s) if not isinstance(e, AudioChunk)) for s in (None, CPU))
    assert isinstance(plain, PyAVFrame)
    assert isinstance(surface, SurfaceFrame)
    assert (plain.time, plain.width, plain.height) == (surface.time, surface.width, surface.height)
    return plain, surface


def colours(height: int, width: int) -> ByteArray:
    """Smooth, with another shape in each channel."""
    y, x = np.mgrid[:height, :width]
    waves = [50 * np.sin(x / a + k) + 40 * np.cos(y / b + k) for k, (a, b) in enumerate([(31, 40), (45, 27), (60, 33)])]
    return (128 + np.stack(waves, 2)).astype(np.uint8)


@pytest.mark.parametrize("aspect", [(1, 1), (4, 3), (3, 4)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_the_same_as_in_the_decoders_memory(degrees: int, aspect: tuple[int, int], tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [colours(120, 180)] * 3, pixel_aspect=aspect)
    plain, surface = both(set_rotation(path, degrees))
    assert surface.turn == degrees
    if aspect == (1, 1):
        assert np.array_equal(surface.rgb(), plain.rgb())
    # Scaled, swscale is off by what it is no longer told: that chroma lies on every second column, not between two.
    for got, want in ((surface.rgb(), plain.rgb()), (surface.small(50), plain.small(50))):
        apart = difference(got, want)
        assert apart.mean() <= 0.5
        assert apart.max() <= 4
    for got, want in zip(surface.crops(BOXES, SIZE, CROP), plain.crops(BOXES, SIZE, CROP), strict=True):
        assert np.array_equal(got, want)
    corners = torch.tensor([surface.locate(box) for box in BOXES], dtype=torch.float64)
    turned = np.rot90(CROP(surface.planes, corners, None).numpy(), surface.turn // 90, axes=(1, 2))
    assert np.array_equal(turned, np.stack(plain.crops(BOXES, SIZE, CROP)))


def test_it_is_a_copy(tmp_path: Path) -> None:
    plain, _ = both(write_video(tmp_path / "a.mp4", [colours(48, 64)] * 3))
    surface = SurfaceFrame.of(plain._frame, 0.0, 1.0, CPU)
    planes = plain.planes()
    assert planes is not None
    before = surface.planes.y.clone()
    planes.y.zero_()
    assert torch.equal(surface.planes.y, before)
    assert before.any()


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "bound"),
    [
        ("yuvj420p", "mjpeg", 0),
        ("yuv422p", "libx264", 3),  # chroma loses every second row
        ("yuv444p", "libx264", 5),
        ("yuv420p10le", "libx264", 3),  # and bits
        ("yuv422p10le", "libx264", 3),
        ("bgr0", "ffv1", 6),
        ("gray", "ffv1", 2),
    ],
)
def test_other_formats_become_8_bit_420(pix_fmt: str, codec: str, bound: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [colours(120, 180)] * 3, codec=codec, pix_fmt=pix_fmt)
    plain, surface = both(path)
    assert [list(p.shape) for p in surface.planes[:3]] == [[1, 120, 180], [1, 60, 90], [1, 60, 90]]  # type: ignore[union-attr]
    assert np.ptp(plain.rgb()) > 100
    apart = difference(surface.rgb(), plain.rgb())
    assert apart.mean() <= bound / 2
    assert apart.max() <= 2 * bound


@pytest.mark.parametrize(("colourspace", "matrix"), [(1, "bt709"), (2, "bt601"), (5, "bt601"), (9, "bt709")])
def test_matrices(colourspace: int, matrix: str, tmp_path: Path) -> None:
    """BT.2020 (9) is converted; taken for another matrix as it is, it would be off by 30 levels."""
    plain, _ = both(write_video(tmp_path / "a.mp4", [colours(120, 180)] * 3))
    plain._frame.colorspace = colourspace
    surface = SurfaceFrame.of(plain._frame, 0.0, 1.0, CPU)
    assert surface.planes.matrix == matrix
    assert difference(surface.rgb(), plain.rgb()).max() <= 6


@pytest.mark.parametrize("size", [(47, 65), (48, 65), (47, 64), (1, 1)])
def test_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    plain, surface = both(write_video(tmp_path / "a.mkv", [colours(*size)] * 3, codec="ffv1"))
    assert list(surface.planes.u.shape) == [1, (size[0] + 1) // 2, (size[1] + 1) // 2]
    assert np.array_equal(surface.rgb(), plain.rgb())
    box = Box(size[1] * 0.6, size[0] * 0.6, max(1, size[0] * 0.8))
    for got, want in zip(surface.crops([box], SIZE, CROP), plain.crops([box], SIZE, CROP), strict=True):
        assert np.array_equal(got, want)


def test_interleaved_chroma_as_nvdec_makes_it(tmp_path: Path) -> None:
    plain, _ = both(write_video(tmp_path / "a.mp4", [colours(120, 180)] * 3))
    planes = plain.planes()
    assert planes is not None
    parts = [planes.y[0], torch.stack((planes.u[0], planes.v[0]), 2)]
    surface = SurfaceFrame(Stored(parts, plain._geometry, planes.matrix, planes.full_range), 0.0, CPU)
    assert surface.planes.u.stride(2) == surface.planes.v.stride(2) == 2
    assert np.array_equal(surface.rgb(), plain.rgb())
    for got, want in zip(surface.crops(BOXES, SIZE, CROP), plain.crops(BOXES, SIZE, CROP), strict=True):
        assert np.array_equal(got, want)


def test_sixteen_bits_are_cut_to_their_upper_eight() -> None:
    samples = torch.tensor([[0x0000, 0x00FF, 0x0100, 0xABC0, 0xFFFF]], dtype=torch.int32).to(torch.uint16)
    pitched = torch.zeros(1, 8, dtype=torch.uint16)
    pitched[:, :5] = samples
    assert eight_bits(pitched[:, :5]).tolist() == [[0x00, 0x00, 0x01, 0xAB, 0xFF]]
    pairs = samples[:, :4].reshape(1, 2, 2)
    assert eight_bits(pairs).tolist() == [[[0x00, 0x00], [0x01, 0xAB]]]
    assert eight_bits(torch.ones(2, 2, dtype=torch.uint8)).tolist() == [[1, 1], [1, 1]]


def test_a_scaler_is_shared_between_frames(tmp_path: Path) -> None:
    plain, _ = both(write_video(tmp_path / "a.mp4", [picture(48, 64)] * 3, pix_fmt="yuv444p"))
    scalers = new_scalers()
    for _ in range(3):
        SurfaceFrame.of(plain._frame, 0.0, 1.0, CPU, scalers)
    assert list(scalers) == [(64, 48, "yuv420p")]


def test_real_clips_have_the_same_events(data_dir: Path) -> None:
    for path in sorted((data_dir / "clips").iterdir()):
        plain, surfaces = events(path, seconds=2.0), events(path, CPU, seconds=2.0)
        assert len(plain) == len(surfaces), path.name
        for a, b in zip(plain, surfaces, strict=True):
            if isinstance(a, AudioChunk):
                assert isinstance(b, AudioChunk)
                assert a.start == b.start
                assert np.array_equal(a.samples, b.samples)
            else:
                assert isinstance(b, SurfaceFrame)
                assert (a.time, a.width, a.height) == (b.time, b.width, b.height), path.name
        first = [next(e for e in all_ if not isinstance(e, AudioChunk)) for all_ in (plain, surfaces)]
        assert difference(first[1].rgb(), first[0].rgb()).max() <= 2, path.name


@pytest.mark.parametrize("decoder", ["nvdec", "pynvvideocodec"])
@pytest.mark.parametrize("surfaces", [None, CPU])
def test_a_gpu_is_needed_where_there_must_be_one(decoder: str, surfaces: torch.device | None, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [picture(48, 64)] * 3)
    with pytest.raises(ValueError, match=f"decoder '{decoder}': got surfaces={surfaces}, expected a CUDA device"):
        open_media(path, name="a", decoder=decoder, frame_rate=5.0, surfaces=surfaces)


@pytest.mark.parametrize("kind", ["path", "file", "stream"])
@pytest.mark.parametrize("size", [(48, 64), (47, 64)])
def test_odd_sizes_are_not_given_to_nvdec(
    kind: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The container is opened again without it, except where it cannot be."""
    opened: list[bool] = []
    real = decode_pyav._open

    def record(source: Any, name: str, gpu: torch.device | None) -> Any:
        opened.append(gpu is not None)
        return real(source, name, None)

    monkeypatch.setattr(decode_pyav, "_open", record)
    path = write_video(tmp_path / "a.mkv", [colours(*size)] * 5, codec="ffv1")
    source: Any = str(path)
    if kind != "path":
        file = io.BytesIO(path.read_bytes())
        source = Reader(file if kind == "file" else SimpleNamespace(read=file.read), "a.mkv")
    with caplog.at_level(logging.INFO, "merfast"):
        media = PyAVMedia(source, "a.mkv", frame_rate=100.0, want_video=True, threads=1, surfaces=CPU, hardware=True)
        frames = [e for e in media.events() if isinstance(e, SurfaceFrame)]
        media.close()
    again = size[0] % 2 == 1 and kind != "stream"
    assert opened == ([True, False] if again else [True])
    assert len(frames) == 5
    reason = f"odd size, ffv1 64x{size[0]}" if again else f"NVDEC refuses yuv420p, ffv1 64x{size[0]}"
    assert [r.getMessage() for r in caplog.records] == [f"a.mkv: decoded on the CPU ({reason})"]
