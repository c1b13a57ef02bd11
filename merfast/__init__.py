"""Emotion probabilities and valence from raw talking-face video.

import merfast
engine = merfast.Engine()
print(engine.predict(["interview.mp4"])[0])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merfast.clip import Clip
from merfast.errors import (
    BundleError,
    ConfigError,
    DeadlineError,
    MediaError,
    MerfastError,
    OverloadedError,
    UnavailableError,
    UntrainedWarning,
    UsageError,
)
from merfast.plan import Plan
from merfast.tables import to_frame
from merfast.types import EMOTIONS, Failure, Prediction

if TYPE_CHECKING:
    from merfast.engine import Engine

__version__ = "0.1.0"

__all__ = [
    "EMOTIONS",
    "BundleError",
    "Clip",
    "ConfigError",
    "DeadlineError",
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


def __getattr__(name: str) -> Any:
    # The engine brings torch, which takes seconds to import: only those who use it wait for it.
    if name == "Engine":
        from merfast.engine import Engine

        return Engine
    raise AttributeError(f"module 'merfast' has no attribute {name!r}")
