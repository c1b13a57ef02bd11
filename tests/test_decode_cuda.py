"""NVDEC against FFmpeg's decoders on the CPU: the same times, the same samples or a bound with its reason."""

from __future__ import annotations

import gc
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="media needs PyAV")  # which a machine for GPU kernels alone may lack
pytest.importorskip("soxr", reason="media needs soxr")

import torch
from media_files import set_rotation, write_video
from test_surfaces import colours

from merfast.errors import UnavailableError
from merfast.media import decode_pynvvideocodec, decode_torchcodec, nvdec
from merfast.media.decode import AudioChunk, Event, open_media
from merfast.media.faces import Box
from merfast.media.surfaces import SurfaceFrame
from merfast.ops.crop_norm import CropSpec, crop_norm

pytestmark = pytest.mark.cuda

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
MISSING = {"nvdec": nvdec.missing, "pynvvideocodec": decode_pynvvideocodec.missing}

# What the standards leave open, in levels (see `merfast.media.nvdec`): nothing, the rounding of an inverse transform,
# which prediction carries on, or the bits that are cut here and rounded by swscale.
EXACT, TRANSFORM, BITS = 0, 4, 2


@pytest.fixture(params=list(MISSING))
def decoder(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if why := MISSING[name](GPU):
        pytest.skip(f"{name}: {why}")
    return name


def scene(count: int, height: int = 240, width: int = 320) -> list[np.ndarray]:
    """Pictures that slide under noise: every one has something to predict, and something that cannot be."""
    rng = np.random.default_rng(0)
    wide = colours(height, width + 4 * count)
    noise = rng.integers(-12, 13, (count, height, width, 1))
    slices = (wide[:, 4 * i : 4 * i + width] for i in range(count))
    return [np.clip(s + n, 0, 255).astype(np.uint8) for s, n in zip(slices, noise, strict=True)]


def read(path: Path, decoder: str, device: torch.device, rate: float = 100.0) -> list[Event]:
    media = open_media(path, name=path.name, decoder=decoder, frame_rate=rate, surfaces=device)
    try:
        return list(media.events())
    finally:
        media.close()


def largest_difference(path: Path, decoder: str, rate: float = 100.0) -> int:
    """Of all samples, in levels; times, sizes, colour and sound must be the same."""
    with ThreadPoolExecutor(2) as pool:
        got, want = pool.map(read, (path, path), (decoder, "pyav"), (GPU, CPU), (rate, rate))
    assert len(got) == len(want)
    worst = 0
    for a, b in zip(got, want, strict=True):
        if isinstance(b, AudioChunk):
            assert isinstance(a, AudioChunk)
            assert np.array_equal(a.samples, b.samples)
            continue
        assert isinstance(a, SurfaceFrame)
        assert isinstance(b, SurfaceFrame)
        assert (a.time, a.width, a.height, a.turn) == (b.time, b.width, b.height, b.turn)
        assert a.planes[3:] == b.planes[3:]
        for mine, reference in zip(a.planes[:3], b.planes[:3], strict=True):
            assert mine.device == GPU  # type: ignore[union-attr]
            worst = max(worst, int((mine.cpu().int() - reference.int()).abs().max()))  # type: ignore[union-attr]
    return worst


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "bound"),
    [
        ("a.mp4", "libx264", "yuv420p", EXACT),
        ("a.mp4", "libx265", "yuv420p", EXACT),
        ("a.mp4", "libx265", "yuv420p10le", BITS),
        ("a.webm", "libvpx", "yuv420p", EXACT),
        ("a.webm", "libvpx-vp9", "yuv420p", EXACT),
        ("a.ts", "mpeg2video", "yuv420p", TRANSFORM),
        ("a.mp4", "mpeg4", "yuv420p", TRANSFORM),
    ],
)
def test_parity(
    decoder: str, name: str, codec: str, pix_fmt: str, bound: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tone = (0.3 * np.sin(np.arange(32_000) / 9)).astype(np.float32)
    sound = {"audio_codec": "libopus", "sample_rate": 48_000} if name == "a.webm" else {}
    path = write_video(tmp_path / name, scene(50), audio=tone, codec=codec, pix_fmt=pix_fmt, **sound)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "merfast"):
        assert largest_difference(path, decoder) <= bound
    if codec in ("libx264", "libx265"):  # every chip decodes these
        assert not caplog.records, [r.getMessage() for r in caplog.records]


def test_720p(decoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.mp4", scene(30, 720, 1280))
    with caplog.at_level(logging.INFO, "merfast"):
        assert largest_difference(path, decoder) == 0
    assert not caplog.records


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_and_pixel_aspect(decoder: str, degrees: int, tmp_path: Path) -> None:
    path = set_rotation(write_video(tmp_path / "a.mp4", scene(10), pixel_aspect=(4, 3)), degrees)
    assert largest_difference(path, decoder) == 0
    frames = [[e for e in read(path, *way) if not isinstance(e, AudioChunk)] for way in ((decoder, GPU), ("pyav", CPU))]
    for a, b in zip(*frames, strict=True):
        assert np.array_equal(a.small(64), b.small(64))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.mp4", "libx264", "yuv422p10le"), ("a.mp4", "libx264", "yuv444p10le"), ("a.mkv", "ffv1", "yuv420p")],
)
def test_what_is_refused_goes_to_the_cpu(
    decoder: str, name: str, codec: str, pix_fmt: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / name, scene(20), codec=codec, pix_fmt=pix_fmt)
    with caplog.at_level(logging.INFO, "merfast"):
        assert largest_difference(path, decoder) <= BITS  # the newest chips do decode them
    if codec == "ffv1":
        assert [r.getMessage().partition("(")[0] for r in caplog.records] == [f"{name}: decoded on the CPU "]


@pytest.mark.parametrize("codec", ["libvpx-vp9", "ffv1"])
def test_odd_sizes(decoder: str, codec: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.mkv", scene(10, 181, 241), codec=codec)
    with caplog.at_level(logging.INFO, "merfast"):
        assert largest_difference(path, decoder) == 0
    assert len(caplog.records) == 1


def test_sizes_one_after_the_other(decoder: str, tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(240, 320), (320, 240), (144, 176), (720, 1280), (240, 320)]):
        assert largest_difference(write_video(tmp_path / f"{i}.mp4", scene(8, height, width)), decoder) == 0


def test_real_clips(decoder: str, data_dir: Path) -> None:
    for path in sorted((data_dir / "clips").iterdir()):
        bound = TRANSFORM if path.suffix == ".mpg" else BITS
        assert largest_difference(path, decoder, rate=5.0) <= bound, path.name


def test_many_at_a_time_on_streams_of_their_own(decoder: str, tmp_path: Path) -> None:
    """Pictures are used while others are decoded into the memory of those let go of: order and lifetime must hold."""
    paths = [write_video(tmp_path / f"{i}.mp4", scene(60, 96 + 16 * i, 160)) for i in range(4)]
    box = torch.tensor([[10.0, 5.0, 90.0, 85.0]])
    spec = CropSpec(32)

    def crops(path: Path, decoder: str, device: torch.device) -> torch.Tensor:
        out = []
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        media = open_media(path, name=path.name, decoder=decoder, frame_rate=100.0, surfaces=device)
        with torch.cuda.stream(stream):
            for event in media.events():
                assert isinstance(event, SurfaceFrame)
                planes = event.planes
                if stream is not None:
                    torch.cuda._sleep(200_000)  # the copy is used long after its frame is gone
                out.append(crop_norm(planes, box.to(device), spec=spec))
                del event, planes
            whole = torch.cat(out).cpu()
        media.close()
        return whole

    expected = [crops(path, "pyav", CPU) for path in paths]
    with ThreadPoolExecutor(16) as pool:
        for i, got in enumerate(pool.map(lambda k: crops(paths[k % 4], decoder, GPU), range(32))):
            assert (got.int() - expected[i % 4].int()).abs().max() <= 1


def test_memory_is_given_back(decoder: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", scene(40))
    used = []
    for _ in range(8):
        for _ in range(4):
            read(path, decoder, GPU)
        gc.collect()
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated(GPU))
    assert used[-1] <= used[1]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p"])
def test_pictures_of_the_cpu_are_uploaded(pix_fmt: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", scene(20), pix_fmt=pix_fmt)
    assert largest_difference(path, "pyav") == 0


def test_crops_on_the_gpu_are_those_of_the_cpu(decoder: str, tmp_path: Path) -> None:
    path = set_rotation(write_video(tmp_path / "a.mp4", scene(5)), 90)
    for a, b in zip(read(path, decoder, GPU), read(path, "pyav", CPU), strict=True):
        assert isinstance(a, SurfaceFrame)
        assert isinstance(b, SurfaceFrame)
        corners = torch.tensor([a.locate(Box(100.0, 120.0, 90.0))])
        got, want = (crop_norm(f.planes, corners.to(f.device), spec=CropSpec(48)).cpu() for f in (a, b))
        assert (got.int() - want.int()).abs().max() <= 1


def test_torchcodec(tmp_path: Path) -> None:
    try:
        decode_torchcodec.load()
    except UnavailableError as error:
        pytest.skip(str(error))
    path = write_video(tmp_path / "a.mp4", scene(50))
    got, want = (
        [e for e in read(path, name, GPU, 5.0) if not isinstance(e, AudioChunk)] for name in ("torchcodec", "pyav")
    )
    for a, b in zip(got, want, strict=True):
        assert a.time == pytest.approx(b.time, abs=1e-4)
        assert np.abs(a.rgb().astype(int) - b.rgb()).mean() <= 3  # its conversion to RGB is NPP's or its own kernel's
