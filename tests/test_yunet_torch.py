"""YuNet in torch: the boxes that OpenCV gives, for batches, without waiting for a device; and files it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from no_waits import no_waits

from merfast.errors import UnavailableError
from merfast.media.decode import AudioChunk, open_media
from merfast.media.faces import DETECT_SIZE, Box, YuNet, yunet_boxes
from merfast.media.yunet_torch import YuNetTorch, unreadable, yunet_on
from merfast.types import ByteArray

CLIPS = ["several_people.mp4", "tall_silent_track_s29.mp4", "hevc_face_then_none.mov", "no_face.mp4", "grid_bbaf2n.mpg"]


@pytest.fixture(scope="module")
def ours(yunet_model: Path) -> YuNetTorch:
    return YuNetTorch(yunet_model, "cpu")


def pictures(path: Path, rate: float = 2.0, longest: int = DETECT_SIZE) -> list[ByteArray]:
    media = open_media(path, name=path.name, decoder="pyav", frame_rate=rate)
    return [e.small(longest) for e in media.events() if not isinstance(e, AudioChunk)]


def batch(images: list[ByteArray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))


def check(got: list[list[Box]], expected: list[list[Box]], limit: float) -> int:
    """As many faces in each picture, in the same order; how many there are."""
    assert [len(boxes) for boxes in got] == [len(boxes) for boxes in expected]
    for mine, theirs in zip(got, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert np.abs(np.subtract(a, b)).max() <= limit, (a, b)
    return sum(map(len, got))


@pytest.mark.parametrize("name", CLIPS)
def test_agrees_with_opencv_on_real_clips(name: str, data_dir: Path, yunet_model: Path, ours: YuNetTorch) -> None:
    images = pictures(data_dir / "clips" / name)
    theirs = YuNet(yunet_model)
    count = check(ours.detect(batch(images)), [theirs.detect(image) for image in images], 0.01)
    assert (count == 0) == (name == "no_face.mp4")
    if name == "several_people.mp4":
        assert count > 1.5 * len(images)


@pytest.mark.parametrize("longest", [480, 333, 97, 31])
def test_agrees_with_opencv_at_any_size(longest: int, face_clip: Path, yunet_model: Path, ours: YuNetTorch) -> None:
    images = pictures(face_clip, longest=longest)
    theirs = YuNet(yunet_model)
    assert check(ours.detect(batch(images)), [theirs.detect(image) for image in images], 0.01) >= (longest > 90)


def test_a_picture_does_not_depend_on_the_others(face_clip: Path, yunet_model: Path, ours: YuNetTorch) -> None:
    images = pictures(face_clip)
    alone = [ours.detect(batch([image]))[0] for image in images]
    assert check(ours.detect(batch(images)), alone, 1e-3) == len(images)
    last = YuNetTorch(yunet_model, "cpu", channels_last=True)
    check(last.detect(batch(images)), alone, 1e-3)
    blank = [np.zeros_like(images[0]), *images]
    assert [len(boxes) for boxes in ours.detect(batch(blank))] == [0, *map(len, alone)]


@pytest.mark.parametrize("shape", [(0, 40, 40), (3, 9, 300), (2, 1, 1), (2, 16, 16), (1, 40, 33)])
def test_tiny_pictures_and_none(shape: tuple[int, int, int], ours: YuNetTorch) -> None:
    noise = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ours.detect(noise) == [[]] * shape[0]


def test_nothing_waits_before_the_best_cells_are_read(yunet_model: Path) -> None:
    there = YuNetTorch(yunet_model, "meta")
    with no_waits():
        cells = there.best_cells(torch.empty(3, 270, 480, 3, dtype=torch.uint8, device="meta"))
    assert cells.shape == (3, 100, 6)


def test_one_for_all_that_ask(yunet_model: Path) -> None:
    cpu = torch.device("cpu")
    assert yunet_on(yunet_model, cpu) is yunet_on(yunet_model, cpu)


def test_boxes_are_thinned_out() -> None:
    rows = np.array(
        [
            [10, 10, 40, 50, 0.8],
            [12, 11, 40, 50, 0.9],  # the same face, surer
            [200, 10, 40, 50, 0.75],
            [300, 10, 40, 50, 0.69],  # not sure enough
            [400, 10, np.inf, 50, 0.99],
            [500, 10, 30, 30, np.nan],
        ],
        dtype=np.float32,
    )
    first, second = yunet_boxes(rows)
    assert (first.x, first.y, second.x) == (32, 36, 220)
    assert first.side == pytest.approx(1.09 * 2000**0.5)
    assert yunet_boxes(rows[:0]) == []
    assert len(yunet_boxes(rows[2:3])) == 1


def test_files_that_it_refuses(tmp_path: Path, yunet_model: Path) -> None:
    content = yunet_model.read_bytes()
    cases = {
        "none": (None, r"none\.onnx cannot be read \(No such file"),
        "empty": (b"", "holds another network: got 0 convolutions, expected the 53 of"),
        "noise": (b"\xff" * 200, "is no ONNX file with YuNet's weights"),
        "half": (content[: len(content) // 2], "is no ONNX file with YuNet's weights"),
        # One of the stem's sides, as TensorProto has it: dims 16, 3, 3, 3.
        "other": (content.replace(b"\x08\x10\x08\x03\x08\x03\x08\x03", b"\x08\x10\x08\x09\x08\x03\x08\x01"), "another"),
    }
    assert cases["other"][0] != content
    for name, (bad, message) in cases.items():
        file = tmp_path / f"{name}.onnx"
        if bad is not None:
            file.write_bytes(bad)
        with pytest.raises(UnavailableError, match=f"detector 'yunet': .*{message}"):
            YuNetTorch(file, "cpu")
        assert name in unreadable(file)
    assert unreadable(yunet_model) == ""


@pytest.mark.cuda
def test_a_gpu_agrees_with_the_cpu(face_clip: Path, yunet_model: Path, ours: YuNetTorch) -> None:
    images = batch(pictures(face_clip))
    gpu = YuNetTorch(yunet_model, "cuda")
    assert check(gpu.detect(images.cuda()), ours.detect(images), 0.5) == len(images)  # convolutions may use TF32
