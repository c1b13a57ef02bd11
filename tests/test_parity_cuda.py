"""The same clips on the CPU and on a GPU: windows through the model, files the whole way, and pictures as decoded.

What may differ, and why. In fp32, convolutions and matrix products may use TF32, and sums have another order: 2e-3 of a
posterior for the same windows. In bf16, foundation models round after every layer: 0.02. Files go another way besides:
faces are looked for in pictures that are scaled down by another filter (swscale's, or the crop's), so that boxes differ
by a fraction of a pixel, and crops with them: 0.02, as `test_lookers_device.py` finds with both ways on a CPU.
Decoding adds nothing where the standard says what a decoder gives to the bit (H.264, HEVC), and little in MPEG-1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from media_files import set_rotation, write_video

import merfast
from merfast.demo import babble
from merfast.media import nvdec, yunet
from merfast.media.decode import Frame, open_media
from merfast.media.surfaces import SurfaceFrame
from merfast.media.windows import WindowSpec
from merfast.pipeline import ItemReader
from merfast.types import EMOTIONS, Prediction, Window

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")]

DEVICE = "cuda"
REAL = (
    "talking_1.mp4",
    "grid_bbaf2n.mpg",
    "hevc_tall_demo1.mp4",
    "tall_s13.mp4",
    "hevc_face_then_none.mov",
    "no_face.mp4",
)


class Limit(NamedTuple):
    """Largest differences of posteriors and of valence (which goes from -5 to 5)."""

    posterior: float
    valence: float


SAME_WINDOWS = {"fp32": Limit(2e-3, 0.02), "bf16": Limit(0.02, 0.2)}
SAME_FILES = {"fp32": Limit(0.02, 0.15), "bf16": Limit(0.02, 0.2)}


@pytest.fixture(scope="module")
def clips(face_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo's portrait: as it is, lying, flat with wide pixels, without sound, in 10 bits, small; also real faces,
    where MERFAST_DATA has them."""
    folder = tmp_path_factory.mktemp("clips")
    media = open_media(face_clip, name="face", decoder="pyav", frame_rate=25.0)
    pictures = [np.array(e.rgb()) for e in media.events() if hasattr(e, "rgb")]
    media.close()
    sound = babble(len(pictures) / 25, 16_000)
    lying = [np.ascontiguousarray(np.rot90(p)) for p in pictures]
    flat = [np.ascontiguousarray(p[:, ::2]) for p in pictures]
    out = [
        face_clip,
        set_rotation(write_video(folder / "lying.mp4", lying, audio=sound), 270),
        write_video(folder / "flat.mp4", flat, audio=sound[::-1].copy(), pixel_aspect=(2, 1)),
        write_video(folder / "silent.mp4", pictures[::2], fps=12.5),
        write_video(folder / "ten.mp4", pictures[:40], audio=0.3 * sound, pix_fmt="yuv420p10le"),
        write_video(
            folder / "small.mp4", [np.ascontiguousarray(p[::2, ::2]) for p in pictures[10:]], audio=sound[4000:]
        ),
    ]
    data = os.environ.get("MERFAST_DATA")
    return [*out, *(Path(data) / "clips" / name for name in REAL)] if data else out


@pytest.fixture(scope="module")
def model_file() -> Path | None:
    """YuNet's file, if there is one."""
    data = os.environ.get("MERFAST_DATA")
    file = Path(data) / "models" / "face_detection_yunet_2023mar.onnx" if data else yunet.cached()
    return file if file is not None and file.is_file() else None


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engines(
    request: pytest.FixtureRequest,
    clips: list[Path],
    model_file: Path | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, merfast.Engine, merfast.Engine]:
    """The precision, the CPU's engine in fp32, and the GPU's: of the packaged bundle, or of small foundation models."""
    precision: str = request.param
    bundle = None
    if precision == "bf16":
        pytest.importorskip("transformers", reason="needs transformers")
        from benchmarks.pipeline_inputs import make_bundle

        def seen(config: merfast.config.BundleConfig) -> list[Window]:
            plain = merfast.Engine(device="cpu", detector_model=model_file)
            return [w for clip in clips for w in windows_of(plain, clip, config)]

        bundle = tmp_path_factory.mktemp("parity") / "bundle"
        make_bundle(bundle, "tiny", frame_rate=5.0, windows=seen)
    cpu = merfast.Engine(bundle, device="cpu", runtime="torch", detector_model=model_file)
    gpu = merfast.Engine(bundle, device=DEVICE, runtime="torch", precision=precision, detector_model=model_file)
    return precision, cpu, gpu


def windows_of(engine: merfast.Engine, clip: Path, config: merfast.config.BundleConfig | None = None) -> list[Window]:
    config = config or engine.bundle.config
    longest = config.preprocessing.max_window
    spec = WindowSpec(longest, longest)
    reader = ItemReader(clip, clip.name, engine.plan, config, spec, every_face=False, threads=1)
    return [w for group in reader for w in group if w.modalities]


def check(got: Sequence[tuple[np.ndarray, float]], want: Sequence[tuple[np.ndarray, float]], limit: Limit) -> None:
    posterior, expected = (np.stack([p for p, _ in each]) for each in (got, want))
    assert np.ptp(expected, axis=0).max() > 0.1  # so that one clip's answer is not another's
    assert np.isfinite(posterior).all()
    far = np.abs(posterior - expected).max(1)
    assert far.max() <= limit.posterior, far
    assert max(abs(a - b) for (_, a), (_, b) in zip(got, want, strict=True)) <= limit.valence
    first, second = np.sort(expected, axis=1)[:, :-3:-1].T
    sure = first - second > 2 * limit.posterior
    assert sure.any()
    assert [EMOTIONS[i] for i in posterior.argmax(1)[sure]] == [EMOTIONS[i] for i in expected.argmax(1)[sure]]


def test_the_same_windows(engines: tuple[str, merfast.Engine, merfast.Engine], clips: list[Path]) -> None:
    precision, cpu, gpu = engines
    windows = [w for clip in clips for w in windows_of(cpu, clip)]
    want = cpu._workers[0].inference.start(windows).result()
    check(gpu._workers[0].inference.start(windows).result(), want, SAME_WINDOWS[precision])
    alone = [gpu._workers[0].inference.start([w]).result()[0] for w in windows]
    check(alone, want, SAME_WINDOWS[precision])


def test_the_same_files(engines: tuple[str, merfast.Engine, merfast.Engine], clips: list[Path]) -> None:
    precision, cpu, gpu = engines
    want, got = cpu.predict(clips), gpu.predict(clips)
    pairs = [(p.probabilities, p.valence) for p in got if isinstance(p, Prediction)]
    check(pairs, [(p.probabilities, p.valence) for p in want if isinstance(p, Prediction)], SAME_FILES[precision])
    for a, b in zip(got, want, strict=True):
        assert isinstance(a, Prediction)
        assert isinstance(b, Prediction)
        assert (a.modalities, a.start, a.end) == (b.modalities, b.start, b.end)
        # A detector may be unsure of a face in a picture or two.
        assert abs(a.face_coverage - b.face_coverage) <= 0.1


def test_faces_lie_alike(engines: tuple[str, merfast.Engine, merfast.Engine], clips: list[Path]) -> None:
    """In a face that fills the picture the detector wavers between two boxes; most of all in the small clip."""
    _, cpu, gpu = engines
    apart: dict[str, float] = {}
    for clip in clips:
        for a, b in zip(windows_of(gpu, clip), windows_of(cpu, clip), strict=True):
            assert (a.sampled, a.track is None, len(a.audio)) == (b.sampled, b.track is None, len(b.audio))
            if len(a.crops) == len(b.crops) > 0:
                difference = np.asarray(torch.as_tensor(a.crops).cpu()).astype(int) - np.asarray(b.crops)
                apart[clip.name] = float(np.abs(difference).mean())
    assert len(apart) > len(clips) / 2
    assert apart.pop("small.mp4", 0.0) <= 40
    assert max(apart.values()) <= 10, apart
    assert np.median(list(apart.values())) <= 4, apart


def test_pictures_are_decoded_alike(clips: list[Path]) -> None:
    """By NVDEC as by the CPU: to the bit, but for MPEG-1, whose cosine transform is not specified that far."""
    device = torch.device(DEVICE, 0)
    if why := nvdec.missing(device):
        pytest.skip(f"NVDEC ({why}; its library is libnvcuvid)")

    def frames(clip: Path, decoder: str) -> list[Frame]:
        media = open_media(clip, name=clip.name, decoder=decoder, frame_rate=5.0, surfaces=device)
        return [e for e in media.events() if hasattr(e, "width")]  # type: ignore[misc]

    for clip in clips:
        there, here = frames(clip, "nvdec"), frames(clip, "pyav")
        assert [(f.time, f.width, f.height) for f in there] == [(f.time, f.width, f.height) for f in here]
        for a, b in zip(there, here, strict=True):
            assert isinstance(a, SurfaceFrame)
            assert isinstance(b, SurfaceFrame)
            for mine, theirs in zip(a.planes[:3], b.planes[:3], strict=True):
                apart = (mine.int() - theirs.int()).abs()
                # Ten bits are rounded to eight in two ways: cut off there, with dither here.
                assert int(apart.max()) <= (2 if clip.name == "ten.mp4" or clip.suffix == ".mpg" else 0), clip.name
