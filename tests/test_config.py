"""Options and `config.json`: what is accepted, and what the errors say."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from merfast.config import BundleConfig, EngineConfig, FusionConfig, Preprocessing, StreamConfig
from merfast.errors import BundleError, ConfigError, MerfastError

STREAMS = (StreamConfig("voice", "audio", "logmel", 128, {"layers": 2}), StreamConfig("face", "video", "facecnn", 192))


def data(**changes):
    return json.loads(json.dumps(BundleConfig("test", True, STREAMS).to_dict())) | changes


def test_engine_defaults_are_auto():
    config = EngineConfig()
    assert {config.device, config.precision, config.decoder, config.detector, config.kernels} == {"auto"}
    with pytest.raises(FrozenInstanceError):
        config.device = "cpu"


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:11"])
def test_devices(device):
    assert EngineConfig(device=device).device == device


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device: got 'tpu', expected 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": "cuda:x"}, "device: got 'cuda:x'"),
        ({"precision": "int3"}, "precision: got 'int3', expected one of auto"),
        ({"kernels": "magic"}, "kernels: got 'magic'"),
        ({"decoder": "vlc"}, "decoder: got 'vlc'"),
        ({"detector": "eyes"}, "detector: got 'eyes'"),
        ({"faces": "none"}, "faces: got 'none'"),
        ({"threads": 0}, "threads: got 0, expected at least 1"),
        ({"batch_seconds": 0}, "batch_seconds: got 0"),
        ({"batch_seconds": float("nan")}, "batch_seconds: got nan"),
        ({"detector": "haar", "detector_model": Path("x.onnx")}, "detector_model: is a YuNet file"),
    ],
)
def test_engine_errors(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        EngineConfig(**options)
    assert isinstance(caught.value, MerfastError)
    assert isinstance(caught.value, ValueError)


def test_bundle_config_survives_json():
    config = BundleConfig(
        "test",
        True,
        STREAMS,
        preprocessing=Preprocessing(frame_rate=2.5, crop_size=48),
        fusion=FusionConfig(dim=64, structures=("guided", "flat"), weights=(1.0, 3.0)),
        licence="MIT",
        provenance={"data": ["a"]},
        metrics={"f1": 0.5},
    )
    assert BundleConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.fusion.mix == (0.25, 0.75)


def test_mix_is_uniform_without_weights():
    assert FusionConfig().mix == pytest.approx((1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 0}, "format_version: got 0, expected 1"),
        ({"labels": ["happy", "sad"]}, r"labels: got \['happy', 'sad'\], expected \['neutral'"),
        ({"name": 3}, "config.name: got 3, expected str"),
        ({"trained": 1}, "config.trained: got 1, expected bool"),
        ({"extra": 1}, r"got unknown entries \['extra'\]"),
        ({"metrics": []}, r"config.metrics: got \(\), expected dict"),
        ({"streams": None}, "streams: got NoneType, expected a list"),
        ({"streams": []}, r"streams: got names \[\], expected at least one"),
        ({"streams": ["voice"]}, "stream: got str, expected an object"),
        ({"streams": [{"name": "voice"}]}, "stream: .*missing"),
        (
            {"streams": [data()["streams"][0]] * 2},
            r"got names \['voice', 'voice'\], expected at least one, all distinct",
        ),
        ({"streams": [data()["streams"][0] | {"modality": "smell"}]}, "got modality 'smell'"),
        ({"streams": [data()["streams"][0] | {"dim": 0}]}, "got dim 0"),
        ({"streams": [data()["streams"][0] | {"dim": True}]}, "stream.dim: got True, expected int"),
        ({"preprocessing": {"frame_rate": 0}}, "frame_rate: got 0.0, expected above 0"),
        ({"preprocessing": {"sample_rate": 8000}}, "sample_rate: got 8000, expected 16000"),
        ({"preprocessing": {"crop_size": 64.0}}, "crop_size: got 64.0, expected int"),
        ({"preprocessing": 5}, "preprocessing: got int, expected an object"),
        ({"fusion": {"dim": 10, "heads": 4}}, "heads dividing dim"),
        ({"fusion": {"structures": []}}, "fusion.structures: got"),
        ({"fusion": {"structures": ["flat", "flat"]}}, "expected distinct names"),
        ({"fusion": {"structures": ["round"]}}, r"got \['round'\], expected of flat, hierarchical, guided"),
        ({"fusion": {"weights": [1.0]}}, "expected one per structure"),
        ({"fusion": {"weights": [1, 1, -1]}}, "none below 0"),
        ({"fusion": {"weights": [0, 0, 0]}}, "fusion.weights"),
        ({"fusion": {"weights": [1, 1, float("inf")]}}, "fusion.weights"),
        ({"fusion": {"weights": [1, 1, float("nan")]}}, "fusion.weights"),
        ({"fusion": {"weights": ["1", "1", "1"]}}, "fusion.weights: got"),
    ],
)
def test_bundle_errors(changes, message):
    with pytest.raises(BundleError, match=message):
        BundleConfig.from_dict(data(**changes))


def test_a_missing_name():
    entries = data()
    del entries["name"]
    with pytest.raises(BundleError, match="'name'"):
        BundleConfig.from_dict(entries)


def test_config_and_types_do_not_import_torch():
    code = "import sys, merfast.config, merfast.types, merfast.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


VOICE = {"name": "v", "modality": "audio", "encoder": "logmel", "dim": 8}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"preprocessing": {"frame_rate": 10**400}}, "frame_rate"),
        ({"preprocessing": {"crop_size": 10**9}}, "crop_size"),
        ({"preprocessing": {"silence": 5.0}}, "silence"),
        ({"fusion": {"weights": [10**400, 1.5, 1]}}, "weights"),
        ({"fusion": {"weights": [True, True, True]}}, "weights"),
        ({"fusion": {"dim": 10**6}}, "widths"),
        ({"streams": [VOICE | {"dim": 10**9}]}, "dim"),
        ({"streams": [VOICE | {"options": {"layers": 1e9}}]}, "too large"),
    ],
)
def test_sizes_that_would_eat_the_machine_are_refused(entry, message):
    with pytest.raises(BundleError, match=message):
        BundleConfig.from_dict(data(**json.loads(json.dumps(entry))))
