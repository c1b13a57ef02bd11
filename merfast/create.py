"""New bundles from foundation models: encoders with their weights, fusion untrained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from merfast import __version__, hub
from merfast import bundle as bundles
from merfast.bundle import Bundle
from merfast.config import BundleConfig, Preprocessing, StreamConfig
from merfast.errors import BundleError, ConfigError
from merfast.files import new_folder
from merfast.models import checkpoints
from merfast.models.checkpoints import Checkpoint
from merfast.models.model import FusedModel
from merfast.models.pictures import Pictures
from merfast.runtime.cache import file_digest

_SHORT = {"clip_vision_model": "clip"}  # names of streams, where the family's own is no good

_CARD = """---
library_name: merfast
---
# {name} (UNTRAINED)

Encoders by others, and a fusion of random weights (seed {seed}): the predictions of this bundle mean nothing before it
is trained. It serves to train from, to install, test and time merfast.

| stream | encoder | revision | licence |
| --- | --- | --- | --- |
{rows}
"""


@dataclass(frozen=True)
class _Origin:
    """What is known of a stream's encoder."""

    checkpoint: Checkpoint
    source: str
    revision: str | None
    sha256: str
    licence: str


def create(
    out: str | Path,
    *,
    audio: Sequence[str | Path] = (),
    video: Sequence[str | Path] = (),
    layer: str | int | Mapping[str, str | int] | None = None,
    frame_rate: float = 5.0,
    max_window: float = 16.0,
    name: str | None = None,
    seed: int = 0,
    download: bool = False,
    endpoint: str | None = None,
) -> Bundle:
    """Write a bundle of transformers checkpoints, its fusion untrained, and load it.

    Crops are as large as the checkpoint's image processor resizes them to, so that it has nothing to resize; with
    several video encoders the largest.

    Args:
        out: a new directory; it is there if all is well, and only then.
        audio: checkpoints for the voice: folders, or hub ids like "owner/name" or "owner/name@revision", each perhaps
            with the name of its stream before it, as in "voice=owner/name".
        video: checkpoints for the face, likewise.
        layer: whose vectors to take, as `merfast.models.foundation` has it, for all streams or by name of the stream.
        frame_rate: face crops a second.
        max_window: longest stretch that one prediction is made from, in seconds.
        name: of the bundle; the directory's if None.
        seed: of the untrained weights.
        download: get hub ids from the hub if need be; False takes them from its local cache only.
        endpoint: address of the hub, if another one.

    Raises:
        BundleError: a checkpoint is not one, or cannot be used; the message names it.
        ConfigError: no checkpoint at all, a name twice, or `out` is there and not empty.
        UnavailableError: transformers is not installed, or the hub's files cannot be had.
    """
    if not audio and not video:
        raise ConfigError("create: got no checkpoint, expected at least one for audio or video")
    checkpoints.library()
    with new_folder(Path(out)) as part:
        streams: list[StreamConfig] = []
        origins: dict[str, _Origin] = {}
        for modality, texts in (("audio", audio), ("video", video)):
            for text in texts:
                stream_name, source = _named(text)
                origin = _read(source, modality, download, endpoint)
                stream_name = stream_name or _SHORT.get(origin.checkpoint.family, origin.checkpoint.family)
                if stream_name in origins:
                    raise ConfigError(
                        f"stream {stream_name!r}: got it for {origins[stream_name].source} and {origin.source}, "
                        f"expected two names: NAME={source}"
                    )
                origins[stream_name] = origin
                streams.append(_stream(stream_name, modality, origin.checkpoint, layer))
        if isinstance(layer, Mapping) and (unknown := sorted(layer.keys() - origins.keys())):
            raise ConfigError(f"layer: got one of stream {unknown[0]!r}, expected of {', '.join(origins)}")
        sides = [_side(o) for o in origins.values() if o.checkpoint.modality == "video"]
        defaults = Preprocessing()
        config = BundleConfig(
            name if name is not None else Path(out).absolute().name,
            trained=False,
            streams=tuple(streams),
            preprocessing=replace(
                defaults,
                frame_rate=frame_rate,
                max_window=max_window,
                crop_size=max(sides, default=defaults.crop_size),
            ),
            licence=_licence(origins),
            provenance=_provenance(origins, seed),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FusedModel(config, {n: o.checkpoint for n, o in origins.items()}).eval()
        bundles.save(part, config, model)
        (part / bundles.CARD_FILE).write_text(_card(config, origins, seed), encoding="utf-8")
        loaded = bundles.load(part)
    return replace(loaded, path=Path(out))


def _named(text: str | Path) -> tuple[str, str | Path]:
    """Name of the stream, or "" if none is given, and the source."""
    found = re.fullmatch(r"(\w+)=(.+)", text) if isinstance(text, str) and not Path(text).is_dir() else None
    return (found[1], found[2]) if found else ("", text)


def _read(source: str | Path, modality: str, download: bool, endpoint: str | None) -> _Origin:
    folder = checkpoints.locate(source, download=download, endpoint=endpoint)
    repo = None if Path(source).is_dir() else hub.repository(source)
    return _Origin(
        checkpoint=checkpoints.read(folder, modality, whole=False),
        source=repo.name if repo else str(source),
        revision=folder.name if repo else None,
        sha256=file_digest(folder / checkpoints.WEIGHTS_FILE),
        licence=_card_licence(folder / checkpoints.CARD_FILE),
    )


def _stream(
    name: str, modality: str, checkpoint: Checkpoint, layer: str | int | Mapping[str, str | int] | None
) -> StreamConfig:
    chosen = layer.get(name) if isinstance(layer, Mapping) else layer
    known = isinstance(chosen, int) and 0 <= chosen < len(checkpoint.widths)  # else building the encoder says so
    dim = checkpoint.widths[int(chosen)] if known and chosen is not None else checkpoint.dim
    return StreamConfig(name, modality, "transformers", dim, {} if chosen is None else {"layer": chosen})


def _side(origin: _Origin) -> int:
    """Pixels, square, that the image processor resizes to before it cuts anything off."""
    config = origin.checkpoint.config
    expected = getattr(config, "image_size", 224)  # of the model, if its processor does not resize
    side = int(expected if isinstance(expected, int) else max(expected))
    try:
        return max(Pictures(origin.checkpoint.processor, side).resize or (side,))
    except ValueError as error:
        raise BundleError(f"{origin.source}: {error}") from error


def _card_licence(file: Path) -> str:
    """What the metadata of a model card say, or nothing."""
    if not file.is_file():
        return ""
    try:
        found: Mapping[str, Any] = hub.library().metadata_load(file) or {}
    except Exception:  # no YAML, or no text: the card is by others, and not needed
        return ""
    given = found.get("license")
    if given == "other":
        given = found.get("license_name") or given
    return given if isinstance(given, str) else ""


def _licence(origins: Mapping[str, _Origin]) -> str:
    licences = {name: o.licence or "not stated" for name, o in origins.items()}
    if len(distinct := set(licences.values())) == 1:
        return distinct.pop()
    return "; ".join(f"{name}: {licence}" for name, licence in licences.items())


def _provenance(origins: Mapping[str, _Origin], seed: int) -> dict[str, Any]:
    encoders = {
        name: {"source": o.source, "revision": o.revision or "local files", "sha256": o.sha256}
        for name, o in origins.items()
    }
    return {
        "weights": "encoders as their makers published them, fusion random, untrained",
        "made_by": "merfast bundle create",
        "merfast": __version__,
        "seed": seed,
        "encoders": encoders,
    }


def _card(config: BundleConfig, origins: Mapping[str, _Origin], seed: int) -> str:
    rows = [
        f"| {name} | {o.source} | {o.revision or 'local files'} | {o.licence or 'not stated'} |"
        for name, o in origins.items()
    ]
    return _CARD.format(name=config.name, seed=seed, rows="\n".join(rows))
