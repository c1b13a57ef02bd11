"""Foundation models in transformers' own format: read from a folder or the hub, outlined, written.

transformers builds the models and knows the names their weights had in its earlier versions; which files are read, and
which settings of a config are heeded, is decided here: no pickle, no code, no adapters, no kernels from elsewhere.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from merfast import hub
from merfast.errors import BundleError, ConfigError, UnavailableError
from merfast.files import check_values, listed, read_json, read_tensors, replace_file

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"  # of a checkpoint to start from

FAMILIES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "hubert": ("audio", "HubertConfig", "HubertModel", {}),
    "wav2vec2": ("audio", "Wav2Vec2Config", "Wav2Vec2Model", {}),
    "wavlm": ("audio", "WavLMConfig", "WavLMModel", {}),
    "vit": ("video", "ViTConfig", "ViTModel", {"add_pooling_layer": False}),
    "clip_vision_model": ("video", "CLIPVisionConfig", "CLIPVisionModel", {}),
    "dinov2": ("video", "Dinov2Config", "Dinov2Model", {}),
    "resnet": ("video", "ResNetConfig", "ResNetModel", {}),
}
"""`model_type` of `config.json` -> the modality it reads, transformers' classes, and arguments of the model."""

_NESTED_PROCESSOR_FILE = "processor_config.json"  # what newer versions write for models of several modalities
_FETCHED = (CONFIG_FILE, PROCESSOR_FILE, _NESTED_PROCESSOR_FILE, WEIGHTS_FILE, CARD_FILE)
_MOST_LAYERS = 256
_SWITCHES = {"dtype", "return_dict", "output_hidden_states", "output_attentions"}  # of a config, set by the caller
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = ("num_batches_tracked", "position_ids")  # the only ones that are no weights


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A foundation model and what its processor does to the input.

    Attributes:
        modality: "audio" or "video".
        model: of transformers, in evaluation mode; its weights are on the meta device if it is only an outline.
        processor: content of `preprocessor_config.json`.
    """

    modality: str
    model: nn.Module
    processor: Mapping[str, Any]

    @property
    def family(self) -> str:
        """`model_type` of the config: a key of `FAMILIES`."""
        return str(self.config.model_type)

    @property
    def config(self) -> Any:
        """transformers' config of the model."""
        return self.model.config

    @property
    def widths(self) -> list[int]:
        """Of the hidden states: what enters the first layer, then what leaves each layer (each stage of a ResNet)."""
        c = self.config
        if self.family == "resnet":
            return [c.embedding_size, *c.hidden_sizes]
        return [c.hidden_size] * (c.num_hidden_layers + 1)

    @property
    def dim(self) -> int:
        """Width of the vectors that the last layer gives."""
        return self.widths[-1]

    def __repr__(self) -> str:
        return f"Checkpoint({self.family!r}, {self.modality}, layers={len(self.widths) - 1}, dim={self.dim})"

    def outline(self) -> Checkpoint:
        """The same without memory for the weights."""
        return Checkpoint(self.modality, _outline(self.config), self.processor)


def load_pretrained(
    source: str | Path, revision: str | None = None, *, modality: str, download: bool = False
) -> Checkpoint:
    """A checkpoint to start from: one of the `FAMILIES`, or a whole CLIP, of which the vision model is taken.

    Heads and other weights that the encoder does not have are left out; all that it has must be there.

    Args:
        source: a folder in transformers' format, or a hub id like "facebook/hubert-base-ls960".
        revision: of a hub id: a branch, tag or commit.
        modality: "audio" or "video": what the encoder is to read.
        download: get a hub id's files if need be; False takes them from the hub's local cache only.

    Raises:
        BundleError: not such a checkpoint, damaged, or without `model.safetensors`.
        ConfigError: a revision of a folder.
        UnavailableError: transformers is not installed, or the hub's files cannot be had.
    """
    library()
    return read(locate(source, revision, download=download), modality, whole=False)


def locate(
    source: str | Path, revision: str | None = None, *, download: bool = False, endpoint: str | None = None
) -> Path:
    """The folder of a checkpoint: `source` itself, or that of a hub id in the hub's local cache, named by the commit.

    Args:
        source, revision, download: as `load_pretrained` has them; a hub id may have the revision in it, as `id@main`.
        endpoint: address of the hub, if another one.

    Raises:
        BundleError: neither a folder nor a hub id, or one without `model.safetensors`.
        ConfigError: a revision of a folder.
        UnavailableError: the hub's files cannot be had.
    """
    folder = Path(source)
    if source != "" and folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision: got {revision!r} with a folder, expected it with a hub id only")
        return folder
    if (repo := hub.repository(source, revision)) is None:
        raise BundleError(f"{source}: not a directory, and no hub id like 'owner/name' or 'owner/name@revision'")
    if not download:
        there = hub.cached(repo)
        if there is None or not any(there.glob("*model*")):  # transformers may have looked at its config alone
            raise UnavailableError(
                f"{repo}: not a directory, and not in the hub's local cache; download=True (--download) gets it"
            )
        return there
    there = hub.fetch(repo, _FETCHED, endpoint=endpoint)
    if not (there / WEIGHTS_FILE).is_file():
        names = hub.look(hub.Repository(repo.name, there.name), endpoint=endpoint).files
        weights = [name for name in names if name.endswith((".safetensors", ".bin", ".h5", ".msgpack", ".pt", ".pth"))]
        raise BundleError(
            f"{repo}: got {', '.join(weights[:4]) or 'no weights'}, expected {WEIGHTS_FILE}: neither pickled "
            "weights nor those in several files are read"
        )
    return there


def outline(folder: Path, modality: str) -> Checkpoint:
    """The checkpoint in a folder without its weights, from its two JSON files.

    Raises:
        BundleError: a file is missing or damaged, or describes no model for this modality.
        UnavailableError: transformers is not installed.
    """
    library()
    file = folder / CONFIG_FILE
    data = read_json(file)
    if data.get("model_type") == "clip" and isinstance(data.get("vision_config"), Mapping):
        data = {**data["vision_config"], "model_type": "clip_vision_model"}
    family = data.get("model_type")
    expected = [name for name, entry in FAMILIES.items() if entry[0] == modality]
    if family not in expected:
        raise BundleError(f"{file}: got model_type {family!r}, expected one of {', '.join(expected)} for {modality}")
    if data.get("quantization_config"):
        raise BundleError(f"{file}: got quantised weights, expected float ones")
    try:
        config = _config(data)
        _check_config(config)
        model = _outline(config)
    except Exception as error:  # transformers checks little by itself: a wrong entry may raise anything
        raise BundleError(f"{file}: does not describe a model: {hub.line(error)}") from error
    return Checkpoint(modality, model, _read_processor(folder))


def read(folder: Path, modality: str, *, whole: bool = True) -> Checkpoint:
    """The checkpoint in a folder, in evaluation mode on the CPU, in fp32.

    Weights that are stored in fp32 stay mapped from the file (`read_tensors`): training them changes the process's own
    copy, and what replaces the file later changes nothing.

    Args:
        folder: holds `config.json`, `preprocessor_config.json` and `model.safetensors`.
        modality: "audio" or "video".
        whole: refuse tensors that the encoder does not have, too.

    Raises:
        BundleError: a file is missing or damaged, or the tensors are not those that the config calls for.
        UnavailableError: transformers is not installed.
    """
    described = outline(folder, modality)
    file = folder / WEIGHTS_FILE
    if not file.is_file() and (others := sorted(f.name for f in folder.glob("pytorch_model*"))):
        raise BundleError(f"{file}: missing; got {', '.join(others)}, which is pickle and never read")
    if not file.is_file() and (folder / f"{WEIGHTS_FILE}.index.json").is_file():
        raise BundleError(f"{file}: missing; got weights in several files, expected one")
    tensors = read_tensors(file, mapped=True)
    count = sum(p.numel() for p in described.model.parameters())
    if count > file.stat().st_size:  # before memory is taken for what a config only claims
        raise BundleError(f"{file}: got {file.stat().st_size} bytes, expected at least {count}, one for each weight")
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS and not name.endswith(_INTEGERS):
            raise BundleError(f"{file}: tensor {name!r}: got {tensor.dtype}, expected floating-point numbers")
    *_, model_class, arguments = FAMILIES[described.family]
    try:
        with _unnoticed():
            model, report = getattr(library(), model_class).from_pretrained(
                None,
                config=described.config,
                state_dict=tensors,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported below, like all else
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                **arguments,
            )
    except Exception as error:
        raise BundleError(f"{file}: does not fit {folder / CONFIG_FILE}: {hub.line(error)}") from error
    missing = set(report["missing_keys"])
    if not whole and "masked_spec_embed" in missing:  # in training alone, and some checkpoints lack it
        nn.init.zeros_(model.masked_spec_embed)
        missing.remove("masked_spec_embed")
    unexpected = report["unexpected_keys"] if whole else ()
    if missing or unexpected:
        wanted = f"{file}: got {len(tensors)} tensors, expected {len(model.state_dict())}"
        raise BundleError(wanted + listed("missing", sorted(missing)) + listed("unexpected", sorted(unexpected)))
    for name, got, want in sorted(report["mismatched_keys"]):
        raise BundleError(f"{file}: tensor {name!r}: got {list(got)}, expected {list(want)}")
    for name, tensor in model.state_dict().items():
        check_values(file, name, tensor)
    return Checkpoint(modality, model.eval(), described.processor)


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the three files of a checkpoint; the folder is made if needed, and each file replaced in one step.

    Raises:
        OSError: writing fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        with _unnoticed():
            checkpoint.model.save_pretrained(part, max_shard_size="1TB")  # type: ignore[operator]
        shutil.copymode(Path(part) / CONFIG_FILE, Path(part) / WEIGHTS_FILE)  # safetensors keeps it from others
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            with (Path(part) / name).open("rb+") as file:
                os.fsync(file.fileno())
            (Path(part) / name).replace(folder / name)
    text = json.dumps(dict(checkpoint.processor), indent=2, sort_keys=True) + "\n"
    replace_file(folder / PROCESSOR_FILE, text.encode())


def library() -> Any:
    """transformers, imported when first needed.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UnavailableError(
            "encoder 'transformers': needs transformers, pip install 'merfast[transformers]'"
        ) from error


def _config(data: Mapping[str, Any]) -> Any:
    """transformers' config, of the entries that its class has by itself: none that load code or choose kernels."""
    config_class = getattr(library(), FAMILIES[data["model_type"]][1])
    with _unnoticed():
        known = config_class().to_dict().keys() - _SWITCHES
        return config_class.from_dict({name: value for name, value in data.items() if name in known})


def _check_config(config: Any) -> None:
    """Refuse what the encoders do not handle, and what would take for ever to build."""
    layers = config.depths if config.model_type == "resnet" else [config.num_hidden_layers]
    if not layers or min(layers) < 1 or sum(layers) > _MOST_LAYERS:
        raise ValueError(f"got {layers} layers, expected 1 to {_MOST_LAYERS}")
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError(f"num_channels: got {config.num_channels}, expected 3")
    if getattr(config, "add_adapter", False):
        raise ValueError("add_adapter: got true, expected an encoder without adapter")


def _outline(config: Any) -> nn.Module:
    *_, model_class, arguments = FAMILIES[config.model_type]
    with _unnoticed(), torch.device("meta"):
        model: nn.Module = getattr(library(), model_class)(config, **arguments)
    return model.to("meta").eval()  # some parameters are made in a way that heeds no device


def _read_processor(folder: Path) -> Mapping[str, Any]:
    file = folder / PROCESSOR_FILE
    nested = folder / _NESTED_PROCESSOR_FILE
    if file.is_file() or not nested.is_file():
        return read_json(file)
    data = read_json(nested)
    inner = data.get("image_processor") or data.get("feature_extractor")
    if not isinstance(inner, Mapping):
        raise BundleError(f"{nested}: got neither image_processor nor feature_extractor, expected one of them")
    return inner


@contextmanager
def _unnoticed() -> Iterator[None]:
    """No progress bars and reports of transformers, and no random numbers taken."""
    log = library().utils.logging
    level, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    try:
        log.set_verbosity_error()
        if shown:
            log.disable_progress_bar()
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
