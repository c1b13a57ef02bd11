"""What runs foundation models: explicit choices hold or raise one sentence, "auto" falls back and says why."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from merfast import bundle, compiled
from merfast.config import BundleConfig, EngineConfig, StreamConfig
from merfast.errors import UnavailableError
from merfast.plan import Plan, make_plan
from merfast.runtime import openvino, tensorrt

BUNDLE = BundleConfig(
    "made",
    False,
    (
        StreamConfig("voice", "audio", "transformers", 32),
        StreamConfig("mel", "audio", "logmel", 16),
        StreamConfig("face", "video", "transformers", 32),
    ),
)
FIND = importlib.util.find_spec


def plan(config: BundleConfig = BUNDLE, **options: object) -> Plan:
    return make_plan(EngineConfig(**{"device": "cpu", "detector": "haar", **options}), config)  # type: ignore[arg-type]


def encode(made: Plan, stream: str = "voice") -> tuple[str, str]:
    return next((s.implementation, s.reason) for s in made.steps if s.step == f"encode {stream}")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    """Says which libraries are installed, and whether the CPU multiplies in bf16."""

    def say(*names: str, bf16: bool = True) -> None:
        known = ("openvino", "onnxruntime", "onnx", "onnxscript", "tensorrt")

        def find(name: str, package: str | None = None) -> object:
            return (object() if name in names else None) if name in known else FIND(name, package)

        monkeypatch.setattr("importlib.util.find_spec", find)
        monkeypatch.setattr(openvino, "has_bf16", lambda: bf16)

    say("openvino", "onnxruntime", "onnx", "onnxscript")
    return say


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_steps_for_each_stream(here) -> None:
    made = plan()
    assert [s.step for s in made.steps if s.step.startswith("encode")] == ["encode voice", "encode mel", "encode face"]
    assert encode(made) == encode(made, "face") == ("openvino fp32", "the fastest")
    assert encode(made, "mel") == ("torch", "logmel is small")
    assert "encode face     openvino fp32" in str(made)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "fp32"}, "openvino fp32"),
        ({"precision": "bf16"}, "openvino bf16"),
        ({"runtime": "openvino", "precision": "bf16"}, "openvino bf16"),
        ({"runtime": "onnxruntime"}, "onnxruntime fp32"),
        ({"runtime": "onnxruntime", "precision": "int8"}, "onnxruntime int8"),
        ({"runtime": "torch"}, "torch fp32"),
        ({"runtime": "torch", "precision": "bf16"}, "torch bf16"),
    ],
)
def test_choices_that_hold(here, options: dict[str, str], expected: str) -> None:
    made = plan(**options)
    assert encode(made) == (expected, "chosen" if "runtime" in options else "the fastest")
    precision = next(s for s in made.steps if s.step == "precision")
    assert precision.implementation == expected.split()[1]
    targets = compiled.targets_of(BUNDLE, made, threads=3)
    assert targets == dict.fromkeys(("voice", "face"), compiled.Target(*expected.split(), "cpu", 3))


def test_int8_says_why_it_is_not_openvino(here) -> None:
    assert encode(plan(precision="int8")) == ("onnxruntime int8", "openvino: has no int8 on cpu")


NONE_HERE = "is not installed, pip install 'merfast["
FALLBACKS = [
    (("onnxruntime", "onnx", "onnxscript"), "fp32", "onnxruntime fp32", f"openvino: {NONE_HERE}openvino]'"),
    (("onnxruntime", "onnx"), "fp32", "torch fp32", "onnxruntime: exporting needs onnxscript, pip install"),
    ((), "fp32", "torch fp32", f"onnxruntime: {NONE_HERE}onnx]'"),
    ((), "bf16", "torch bf16", "onnxruntime: has no bf16 on cpu"),
]


@pytest.mark.parametrize(("names", "precision", "expected", "why"), FALLBACKS)
def test_auto_falls_back_and_says_why(here, names: tuple[str, ...], precision: str, expected: str, why: str) -> None:
    here(*names)
    implementation, reason = encode(plan(precision=precision))
    assert implementation == expected
    assert why in reason
    assert NONE_HERE + "openvino]'" in reason


def test_a_cpu_without_bf16(here) -> None:
    here("openvino", bf16=False)
    implementation, reason = encode(plan(precision="bf16"))
    assert implementation == "torch bf16"
    assert "openvino: needs a CPU that multiplies in bf16" in reason
    assert encode(plan())[0] == "openvino fp32"
    with pytest.raises(UnavailableError, match=r"^runtime 'openvino': needs a CPU that multiplies in bf16$"):
        plan(runtime="openvino", precision="bf16")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("openvino",), {"runtime": "openvino", "precision": "int8"}, "runtime 'openvino': has no int8 on cpu"),
        (("onnxruntime",), {"runtime": "onnxruntime", "precision": "bf16"}, "runtime 'onnxruntime': has no bf16 on"),
        ((), {"runtime": "torch", "precision": "int8"}, "runtime 'torch': has no int8 on cpu"),
        ((), {"runtime": "openvino"}, "runtime 'openvino': is not installed, pip install 'merfast[openvi"),
        ((), {"runtime": "onnxruntime"}, "runtime 'onnxruntime': is not installed, pip install 'merf"),
        (("onnxruntime", "onnx"), {"runtime": "onnxruntime"}, "runtime 'onnxruntime': exporting needs onnxscript, pip"),
        (("openvino",), {"precision": "int8"}, "precision 'int8': openvino: has no int8 on cpu; onnxruntime: is not"),
    ],
)
def test_choices_that_cannot_be_had(here, names: tuple[str, ...], options: dict[str, str], message: str) -> None:
    here(*names)
    with pytest.raises(UnavailableError) as raised:
        plan(**options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_tensorrt_needs_a_gpu(here, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"^runtime 'tensorrt': .*(TensorRT|tensorrt|GPU)"):
        plan(runtime="tensorrt")
    monkeypatch.setattr(tensorrt, "available", lambda: None)
    with pytest.raises(UnavailableError, match=r"^runtime 'tensorrt': does not run on cpu$"):
        plan(runtime="tensorrt")
    on_gpu = {"device": "cuda", "kernels": "reference"}
    assert encode(plan(runtime="tensorrt", **on_gpu)) == ("tensorrt fp32", "chosen")
    assert encode(plan(runtime="tensorrt", precision="bf16", **on_gpu))[0] == "tensorrt bf16"
    monkeypatch.setattr(tensorrt, "available", lambda: "TensorRT is not installed")
    with pytest.raises(UnavailableError, match=r"^runtime 'tensorrt': TensorRT is not installed$"):
        plan(runtime="tensorrt", **on_gpu)


def test_a_gpu_runs_torch(here, gpu: None) -> None:
    on_gpu = {"device": "cuda", "kernels": "reference"}
    assert encode(plan(**on_gpu))[0] == "torch fp32"
    assert encode(plan(precision="bf16", **on_gpu))[0] == "torch bf16"
    for runtime in ("openvino", "onnxruntime"):
        with pytest.raises(UnavailableError, match=rf"^runtime '{runtime}': does not run on cuda:0$"):
            plan(runtime=runtime, **on_gpu)
    with pytest.raises(
        UnavailableError, match=r"^precision 'int8': torch: has no int8 on cuda:0; tensorrt: has no int8"
    ):
        plan(precision="int8", **on_gpu)


def test_a_bundle_without_foundation_models(here) -> None:
    mini = bundle.verify()
    made = plan(mini, runtime="torch")
    with pytest.raises(UnavailableError, match=r"^runtime: got 'openvino', expected torch: the bundle has no"):
        plan(mini, runtime="openvino")
    assert compiled.targets_of(mini, made, threads=1) == {}
    assert encode(made, "face") == ("torch", "facecnn is small")
    assert plan(mini, precision="fp32").choice("precision") == "fp32"
    for precision in ("bf16", "int8"):
        with pytest.raises(UnavailableError, match=rf"^precision: got '{precision}', expected fp32: the bundle has no"):
            plan(mini, precision=precision)
