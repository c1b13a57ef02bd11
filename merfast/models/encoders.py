"""Encoders by name: a module whose `forward` takes one modality's `Ragged` input and gives `Ragged` vectors.

Audio encoders read `[N]` float32 samples at 16 kHz, video encoders `[N, S, S, 3]` uint8 RGB face crops; the vectors are
`[N', dim]`. A set's vectors must not depend on the other sets, and an empty set gives no vectors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from merfast.config import Preprocessing, StreamConfig
from merfast.errors import BundleError
from merfast.models.facecnn import FaceCNN
from merfast.models.logmel import LogMel

KINDS: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "logmel": ("audio", LogMel),
    "facecnn": ("video", FaceCNN),
}
"""Kind -> the modality it reads and what builds it."""


def build_encoder(stream: StreamConfig, preprocessing: Preprocessing) -> nn.Module:
    """The encoder that `stream` names, with fresh weights.

    Raises:
        BundleError: an unknown kind, a kind for the other modality, an unknown option or one out of range.
    """
    where = f"config stream {stream.name!r}"
    if stream.encoder not in KINDS:
        raise BundleError(f"{where}: got encoder {stream.encoder!r}, expected one of {', '.join(KINDS)}")
    modality, build = KINDS[stream.encoder]
    if stream.modality != modality:
        raise BundleError(f"{where}: got modality {stream.modality!r}, but {stream.encoder} reads {modality}")
    given: dict[str, Any] = {"crop_size": preprocessing.crop_size} if modality == "video" else {}
    options = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(stream.options) - (set(options) - set(given))):
        expected = ", ".join(o for o in options if o not in given)
        raise BundleError(f"{where}: got unknown options {unknown}, expected of {expected}")
    try:
        return build(stream.dim, **given, **stream.options)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise BundleError(f"{where}: {error}") from error
