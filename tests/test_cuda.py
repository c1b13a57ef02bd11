"""The engine and the model on a GPU against the CPU: encoders in plain torch, what follows them also in Triton."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from ragged_inputs import FACE, SIZE, VOICE, crops, voices

import merfast
from merfast.config import BundleConfig, FusionConfig, Preprocessing
from merfast.models import FusedModel
from merfast.ops.ragged import Ragged
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


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_model_on_a_gpu_agrees_with_cpu(kernels: str) -> None:
    torch.manual_seed(0)
    fusion = FusionConfig(dim=32, attention_dim=16, heads=4, valence_dim=16)
    config = BundleConfig("test", False, (VOICE, FACE), preprocessing=Preprocessing(crop_size=SIZE), fusion=fusion)
    model = FusedModel(config).eval()
    inputs = voices([16_000, 0, 9_000, 0]), crops([3, 2, 0, 0])
    moved = deepcopy(model).cuda()
    if kernels == "triton":
        from merfast.ops import afg_triton, decode_triton

        moved.accelerate(afg_triton.prepare_group, decode_triton.prepare)
    with torch.inference_mode():
        expected = model(*inputs)
        got = moved(*(Ragged(i.values.cuda(), i.offsets.cuda()) for i in inputs))
    for mine, reference in zip(got, expected, strict=True):
        assert (mine.cpu() - reference).abs().max() <= 2e-3  # convolutions may use TF32
