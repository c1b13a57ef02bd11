"""Windows packed into batches: arrays, tensors on a device, and both."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from merfast.models.model import inputs_of
from merfast.types import Batch, Window


def window(value: int, count: int, *, device: str | None = None, ready: object = None) -> Window:
    crops = np.full((count, 4, 4, 3), value, dtype=np.uint8)
    audio = np.full(10 * value, value, dtype=np.float32)
    return Window(0.0, 1.0, audio, crops if device is None else torch.from_numpy(crops).to(device), 5, 0, {})


def values(batch: Batch) -> list[int]:
    return [int(crop[0, 0, 0]) for crop in batch.crops]


def test_arrays_stay_arrays() -> None:
    batch = Batch.pack([window(1, 2), window(2, 0), window(3, 1)])
    assert isinstance(batch.crops, np.ndarray)
    assert values(batch) == [1, 1, 3]
    assert batch.crop_offsets.tolist() == [0, 2, 2, 3]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_tensors_and_arrays_go_to_the_device(order: tuple[int, ...]) -> None:
    each = [window(1, 2, device="cpu"), window(2, 0), window(3, 1), window(4, 3, device="cpu")]
    mixed = [each[i] for i in order]
    batch = Batch.pack(mixed)
    assert isinstance(batch.crops, torch.Tensor)
    expected = Batch.pack([window(round(w.audio[0]), len(w.crops)) for w in mixed])
    assert values(batch) == values(expected)
    assert batch.crop_offsets.tolist() == expected.crop_offsets.tolist()
    assert "crops [6, 4, 4, 3]" in repr(batch)
    for got, want in zip(inputs_of(batch), inputs_of(expected), strict=True):
        assert torch.equal(got.values, want.values)
        assert torch.equal(got.offsets, want.offsets)


def test_read_only_arrays_may_be_among_them() -> None:
    still = window(1, 2)
    assert isinstance(still.crops, np.ndarray)
    still.crops.setflags(write=False)
    assert values(Batch.pack([still, window(2, 1, device="cpu")])) == [1, 1, 2]


def test_types_need_no_torch() -> None:
    command = "import merfast.types, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


@pytest.mark.cuda
def test_packing_waits_for_the_stream_that_cuts_on_the_gpu() -> None:
    """Crops that are written late, on a reader's stream, and whose memory is let go of at once."""
    cutting, packing = torch.cuda.Stream(), torch.cuda.Stream()
    for value in range(1, 6):
        with torch.cuda.stream(cutting):
            torch.cuda._sleep(50_000_000)
            crops = torch.full((64, 224, 224, 3), value, dtype=torch.uint8, device="cuda")
            ready = torch.cuda.Event()
            ready.record()
        late = Window(0.0, 1.0, np.zeros(16, np.float32), crops, 64, 0, {}, ready)
        with torch.cuda.stream(packing):
            audio, video = inputs_of(Batch.pack([late, late]), "cuda")
        del late, crops
        with torch.cuda.stream(cutting):
            torch.full((64, 224, 224, 3), 99, dtype=torch.uint8, device="cuda")
        packing.synchronize()
        assert bool((video.values == value).all())
        assert audio.values.is_cuda
