"""The engine on a GPU, which runs the plain torch reference in this version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import merfast
from merfast.types import Prediction

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")]


def test_gpu_agrees_with_cpu(face_clip: Path) -> None:
    cpu, gpu = (merfast.Engine(device=d, detector="haar") for d in ("cpu", "cuda"))
    assert gpu.plan.choice("device") == "cuda:0"
    (a,), (b,) = cpu.predict([face_clip]), gpu.predict([face_clip])
    assert isinstance(a, Prediction)
    assert isinstance(b, Prediction)
    assert np.abs(a.probabilities - b.probabilities).max() <= 2e-3  # convolutions may use TF32
    assert abs(a.valence - b.valence) <= 2e-2
