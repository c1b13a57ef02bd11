"""Encoders by name: a module whose `forward` takes one modality's `Ragged` input and gives `Ragged` vectors.

Audio encoders read `[N]` float32 samples at 16 kHz, video encoders `[N, S, S, 3]` uint8 RGB face crops; the vectors are
`[N', dim]`. A set's vectors must not depend on the other sets, and an empty set gives no vectors. A video encoder gives
one vector for each crop, made from that crop alone: windows that share a crop share its vector.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from merfast.config import Preprocessing, StreamConfig
from merfast.errors import BundleError
from merfast.models.checkpoints import Checkpoint
from merfast.models.facecnn import FaceCNN
from merfast.models.foundation import foundation
from merfast.models.logmel import LogMel
from merfast.models.prosody import Prosody

KINDS: dict[str, tuple[str | None, Callable[..., nn.Module]]] = {
    "logmel": ("audio", LogMel),
    "prosody": ("audio", Prosody),
    "facecnn": ("video", FaceCNN),
    "transformers": (None, foundation),
}
"""Kind -> the modality it reads, None for that of its checkpoint, and what builds it."""


def build_encoder(
    stream: StreamConfig, preprocessing: Preprocessing, checkpoint: Checkpoint | None = None
) -> nn.Module:
    """The encoder that `stream` names, with fresh weights, or those of its checkpoint if it is of kind "transformers".

    Raises:
        BundleError: an unknown kind, a kind for the other modality, an unknown option or one out of range, a checkpoint
            that is missing, does not fit, or is of no use.
    """
    where = f"config stream {stream.name!r}"
    if stream.encoder not in KINDS:
        raise BundleError(f"{where}: got encoder {stream.encoder!r}, expected one of {', '.join(KINDS)}")
    modality, build = KINDS[stream.encoder]
    if modality is not None and stream.modality != modality:
        raise BundleError(f"{where}: got modality {stream.modality!r}, but {stream.encoder} reads {modality}")
    given: dict[str, Any] = {"crop_size": preprocessing.crop_size} if modality != "audio" else {}
    if modality is None:
        given |= {"checkpoint": checkpoint, "modality": stream.modality}
    elif checkpoint is not None:
        raise BundleError(f"{where}: got a checkpoint, expected none for {stream.encoder}")
    options = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(stream.options) - (set(options) - set(given))):
        expected = ", ".join(o for o in options if o not in given)
        raise BundleError(f"{where}: got unknown options {unknown}, expected of {expected}")
    try:
        return build(stream.dim, **given, **stream.options)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise BundleError(f"{where}: {error}") from error
