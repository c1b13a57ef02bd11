"""Bundles of tiny foundation models, and engines on them, for tests of compiled encoders."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import write

from merfast import Clip, Engine, Prediction, UntrainedWarning
from merfast.create import create
from merfast.types import Failure

SIDE = 32


def face_bundle(folder: Path, layers: int = 1, **options: object) -> Path:
    """A bundle of one ViT, which is compiled in two or three seconds."""
    checkpoint = write(folder / "vit", "vit", num_hidden_layers=layers)
    return create(folder / "bundle", video=[checkpoint], **options).path


def copy_of(root: Path, to: Path, *, compiled: bool = True) -> Path:
    shutil.copytree(root, to)
    if not compiled:
        shutil.rmtree(to / "compiled", ignore_errors=True)
    return to


def edit_config(root: Path, **changes: object) -> None:
    file = root / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def engine_of(root: Path, **options: object) -> Engine:
    with warnings.catch_warnings(action="ignore", category=UntrainedWarning):
        return Engine(root, device="cpu", detector="haar", **options)


def clip(seconds: float, *, voice: bool = True, face: bool = True, seed: int = 0) -> Clip:
    """Noise for voice and given faces."""
    generator = np.random.default_rng([seed, round(seconds * 100)])
    frames = generator.integers(0, 256, (max(1, round(seconds * 5)), SIDE, SIDE, 3), dtype=np.uint8) if face else None
    audio = (generator.normal(size=round(seconds * 16_000)) * 0.1).astype(np.float32) if voice else None
    return Clip.from_arrays(
        frames, fps=5 if face else None, audio=audio, sample_rate=16_000 if voice else None, faces="given"
    )


FACES = [clip(0.6, voice=False), clip(3, voice=False, seed=1)]


def values_of(results: Sequence[Prediction | Failure]) -> np.ndarray:
    """`[N, 6]` probabilities."""
    assert all(isinstance(p, Prediction) for p in results), results
    return np.stack([p.probabilities for p in results])


def compilings(log: pytest.LogCaptureFixture) -> list[str]:
    """What was said about compiling since the last call."""
    said = [r.getMessage() for r in log.records if r.name == "merfast"]
    log.clear()
    return said


def entries(root: Path) -> list[Path]:
    return sorted((root / "compiled").iterdir()) if (root / "compiled").exists() else []
