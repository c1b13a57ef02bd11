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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_foundation_models_on_a_gpu_agree_with_cpu(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    import tiny_checkpoints as tiny

    from merfast import bundle, compiled
    from merfast.create import create

    audio, video = (tiny.write(tmp_path / name, name) for name in ("hubert", "vit"))
    create(tmp_path / "bundle", audio=[audio], video=[video], layer="afg")
    config = bundle.read_config(tmp_path / "bundle")
    targets = {name: compiled.Target("torch", precision, "cuda:0") for name in ("hubert", "vit")}
    expected = bundle.load(tmp_path / "bundle").model
    got = compiled.load(tmp_path / "bundle", config, targets).model.cuda()
    side = config.preprocessing.crop_size
    inputs = voices([16_000, 0, 9_000, 50, 16_000]), crops([3, 2, 0, 0, 20], size=side)
    with torch.inference_mode():
        want = expected.encode(*inputs)
        for _ in range(2):  # the second time from the graphs
            have = got.encode(*(Ragged(i.values.cuda(), i.offsets.cuda()) for i in inputs))
            for name, x in want.items():
                far = (have[name].values.cpu() - x.values).abs().max() / x.values.abs().max()
                assert far <= (1e-4 if precision == "fp32" else 0.15), name
                assert torch.equal(have[name].offsets.cpu(), x.offsets)
