"""The public surface, and that importing it stays cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import merfast


def test_public_names() -> None:
    assert sorted(merfast.__all__) == [
        "BundleError",
        "Clip",
        "ConfigError",
        "DeadlineError",
        "EMOTIONS",
        "Engine",
        "Failure",
        "MediaError",
        "MerfastError",
        "OverloadedError",
        "Plan",
        "Prediction",
        "UnavailableError",
        "UntrainedWarning",
        "UsageError",
        "__version__",
        "to_frame",
    ]
    assert all(hasattr(merfast, name) for name in merfast.__all__)
    assert merfast.EMOTIONS == ("neutral", "angry", "happy", "sad", "worried", "surprise")
    with pytest.raises(AttributeError, match="has no attribute 'Motor'"):
        _ = merfast.Motor


def test_import_brings_no_heavy_library() -> None:
    heavy = "{'torch', 'cv2', 'av', 'triton', 'tensorrt', 'onnxruntime', 'decord'}"
    code = f"import sys, merfast; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_errors_share_a_base() -> None:
    for name in ("BundleError", "ConfigError", "DeadlineError", "MediaError", "OverloadedError", "UsageError"):
        assert issubclass(getattr(merfast, name), merfast.MerfastError)
    assert issubclass(merfast.ConfigError, ValueError)
