"""Foundation encoders, compiled from a bundle's checkpoints, kept in its `compiled/`, and run without torch's models.

What is compiled is found again by a key of everything that it depends on. It is never trusted further than that: what
does not load is made anew. `compiled/` can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import platformdirs
import torch
from torch import nn
from torch.nn.utils import parametrize

from merfast import bundle as bundles
from merfast.config import BundleConfig
from merfast.errors import BundleError, UnavailableError
from merfast.files import read_json, read_tensors
from merfast.models.checkpoints import CONFIG_FILE, PROCESSOR_FILE, WEIGHTS_FILE, Checkpoint
from merfast.models.foundation import GPU_CROPS, GPU_SAMPLES, FoundationEncoder, Takes
from merfast.models.networks import Network, SpeechNetwork
from merfast.ops.group_norm_gelu import PrepareNorm
from merfast.plan import FOUNDATION, Plan
from merfast.runtime import onnx, openvino, ort, tensorrt
from merfast.runtime.cache import Cache, Key, file_digest
from merfast.runtime.cuda_graphs import GraphedRunner
from merfast.runtime.profiles import profiles_of
from merfast.runtime.spec import Profile, Runner, Spec
from merfast.runtime.tensorrt_library import Progress
from merfast.types import SAMPLE_RATE

FOLDER = "compiled"
ENGINE_FILE = "network.engine"
FORMAT = 1
"""Counts up when what is compiled from the same checkpoint changes."""

_GPU_ROWS = 64  # of audio in a batch for which graphs and engines are made

_CONFIG = "encoder.json"  # beside the network: the checkpoint's whole config, defaults included

log = logging.getLogger("merfast")


@dataclass(frozen=True)
class Target:
    """What an encoder is run by.

    Attributes:
        runtime: "openvino", "onnxruntime", "tensorrt" or "torch".
        precision: "fp32", "bf16" or "int8".
        device: of torch.
        threads: of the CPU, for one call.
    """

    runtime: str
    precision: str
    device: str = "cpu"
    threads: int = 1


class Described(nn.Module):
    """Stands for a model of transformers where its weights are in a compiled network: its config alone."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)


def targets_of(config: BundleConfig, plan: Plan, threads: int) -> dict[str, Target]:
    """What a plan has each foundation encoder run by, by stream."""
    names = [s.name for s in config.streams if s.encoder == FOUNDATION]
    choices = {name: plan.choice(f"encode {name}").split() for name in names}
    return {
        n: Target(runtime, precision, plan.choice("device"), threads) for n, (runtime, precision) in choices.items()
    }


def load(
    root: Path, config: BundleConfig, targets: Mapping[str, Target], norm: PrepareNorm | None = None
) -> bundles.Bundle:
    """A bundle whose encoders run on their targets, compiled now unless they are in a cache.

    Checkpoints whose compiled networks are used are not read. Networks that run in torch are on their device.

    Args:
        root: of the bundle.
        config: of the bundle.
        targets: of every stream with a foundation model.
        norm: implementation of the masked GroupNorm and GELU for networks that run in torch in fp32.

    Raises:
        BundleError: the bundle, or one of its checkpoints, is not one.
        UnavailableError: what compiling needs is not installed.
    """
    entries = compile_encoders(root, config, {n: t for n, t in targets.items() if t.runtime != "torch"})
    described: dict[str, Checkpoint] = {}
    for name, folder in entries.items():
        try:
            described[name] = _described(root, config, name, folder)
        except BundleError as error:
            entries[name] = _anew(root, config, name, targets[name], folder, error)
            described[name] = _described(root, config, name, entries[name])
    bundle = bundles.load(root, described=described)
    for name, encoder in bundle.model.foundations.items():
        target = targets[name]
        if target.runtime == "torch":
            encoder.accelerate(_torch_runner(encoder, target, config, norm))
            continue
        try:
            runner = _runner_of(entries[name], encoder, target)
        except BundleError as error:
            runner = _runner_of(_anew(root, config, name, target, entries[name], error), encoder, target)
        encoder.accelerate(
            runner, getattr(runner, "relax", None), alone=target.precision == "int8", takes=_takes_of(runner)
        )
    return bundle


def _takes_of(runner: Runner) -> Takes | None:
    """Sizes of audio batches that an engine has a profile for."""
    if not isinstance(runner, tensorrt.TensorRTRunner) or "samples" not in runner.spec.least:
        return None
    ranges = [(profile["batch"], profile["samples"]) for profile in runner.profiles]
    return lambda rows, length: any(a <= rows <= b and c <= length <= d for (a, _, b), (c, _, d) in ranges)


def _anew(root: Path, config: BundleConfig, name: str, target: Target, folder: Path, error: BundleError) -> Path:
    """Folder of an encoder whose entry in a cache is damaged, made once more."""
    log.info("compiling again: %s", error)
    shutil.rmtree(folder, ignore_errors=True)
    return compile_encoders(root, config, {name: target})[name]


def compile_encoders(
    root: Path, config: BundleConfig, targets: Mapping[str, Target], progress: Progress | None = None
) -> dict[str, Path]:
    """Folders of compiled encoders by stream: from a cache, or made now and put there.

    Args:
        root: of the bundle.
        config: of the bundle.
        targets: stream -> what to compile its encoder for.
        progress: is told how far TensorRT is.

    Raises:
        BundleError: the bundle, or one of its checkpoints, is not one.
        UnavailableError: what compiling needs is not installed, an encoder cannot be compiled, or the cache cannot be
            written to.
    """
    out: dict[str, Path] = {}
    loaded: bundles.Bundle | None = None
    for name, target in targets.items():
        key, label = _key(root, config, name, target), f"{name}-{target.runtime}-{target.precision}"
        folder = _found(root, label, key)
        if folder is None:
            with _compiling:
                folder = _found(root, label, key)  # by whoever compiled before
                if folder is None:
                    what = name, target.runtime, target.precision
                    log.info("compiling encoder %r for %s in %s; this is done once", *what)
                    loaded = loaded or bundles.load(root)
                    make = partial(_compile, loaded.model.foundations[name], target, config, progress)
                    cache = _writable(root)
                    try:
                        folder = cache.get(label, key, make)
                    except OSError as error:
                        raise UnavailableError(
                            f"{cache.root}: what is compiled cannot be kept there: {error}"
                        ) from error
        out[name] = folder
    return out


_compiling = threading.Lock()
"""A network at a time: torch traces no two at once in one process."""


def _found(root: Path, label: str, key: Key) -> Path | None:
    return next((f for c in _caches(root) if (f := c.find(label, key)) is not None), None)


def _described(root: Path, config: BundleConfig, stream: str, folder: Path) -> Checkpoint:
    """What is known of a checkpoint without transformers: the modality, the config, and the processor."""
    modality = next(s.modality for s in config.streams if s.name == stream)
    processor = read_json(bundles.encoder_folder(root, stream) / PROCESSOR_FILE)
    return Checkpoint(modality, Described(read_json(folder / _CONFIG)), processor)


_lock = threading.Lock()
_runners: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def _runner_of(folder: Path, encoder: FoundationEncoder[Any], target: Target) -> Runner:
    """What runs a compiled network, ready to go; one that is loaded already for the same checkpoint is shared.

    Raises:
        BundleError: the files are damaged.
    """
    # The name of the folder has the digest of all that it was made from, wherever it lies.
    name = f"{folder.name.partition('-')[2]} {target.device} {target.threads}"
    spec: Spec = encoder.network.spec
    with _lock:
        runner = _runners.get(name)
        if runner is None:
            if target.runtime == "openvino":
                file = folder / openvino.MODEL_FILE
                runner = openvino.OpenVINORunner(file, spec, target.precision, target.threads)
            elif target.runtime == "onnxruntime":
                runner = ort.OrtRunner(folder / onnx.MODEL_FILE, spec, target.threads)
            else:
                runner = tensorrt.TensorRTRunner(folder / ENGINE_FILE, spec, target.device)
            # The first run is where runtimes get ready; it shows, too, whether the files are sound.
            with openvino.released(runner) if isinstance(runner, openvino.OpenVINORunner) else nullcontext():
                runner(*(x.to(target.device) for x in onnx.examples(spec)))
            _runners[name] = runner
        return cast(Runner, runner)


def _torch_runner(
    encoder: FoundationEncoder[Any], target: Target, config: BundleConfig, norm: PrepareNorm | None
) -> Runner | None:
    """The network itself in the target's precision; on a GPU in CUDA graphs."""
    network: Network = encoder.network.to(target.device)
    if target.precision == "bf16":
        network.to(torch.bfloat16)
    elif norm is not None and isinstance(network, SpeechNetwork):
        network.accelerate(norm)
    if not target.device.startswith("cuda"):
        return None
    fill = {"lengths": network.spec.least["samples"]} if isinstance(network, SpeechNetwork) else {}
    return GraphedRunner(network, network.spec, _largest(network, config), fill=fill, device=target.device)


def _largest(network: Network, config: BundleConfig) -> dict[str, int]:
    """Sizes of the largest batches that encoders make on a GPU."""
    if not isinstance(network, SpeechNetwork):
        return {"pictures": GPU_CROPS}
    longest = max(network.field, int(config.preprocessing.max_window * SAMPLE_RATE))
    return {"batch": _GPU_ROWS, "samples": longest}


def _compile(
    encoder: FoundationEncoder[Any], target: Target, config: BundleConfig, progress: Progress | None, folder: Path
) -> None:
    """Fill a folder with what the target's runtime loads. The encoder is of no use after that."""
    network: Network = encoder.network
    spec, settings = network.spec, network.config.to_dict()
    _freeze(network)
    try:
        if target.runtime == "openvino":
            openvino.convert(network, spec, folder, half=target.precision == "bf16")
        elif target.runtime == "onnxruntime" and target.precision == "fp32":
            onnx.export(network, spec, folder)
        else:
            with tempfile.TemporaryDirectory(dir=folder) as whole:
                if target.runtime == "onnxruntime":
                    onnx.quantise(onnx.export(network, spec, Path(whole)), folder)
                else:
                    if target.precision == "bf16":
                        network.to(torch.bfloat16)
                    file = onnx.export(network, spec, Path(whole))
                    profiles = _profiles(network, config)
                    tensorrt.build(file, folder / ENGINE_FILE, spec, profiles, progress, device=target.device)
    except RuntimeError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnavailableError(
            f"encoder {encoder.family!r}: cannot be compiled for {target.runtime}: {said}"
        ) from error
    (folder / _CONFIG).write_text(json.dumps(settings, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")


def _profiles(network: Network, config: BundleConfig) -> tuple[Profile, ...]:
    largest = _largest(network, config)
    budget = max(GPU_SAMPLES, largest["samples"]) if isinstance(network, SpeechNetwork) else None
    return profiles_of(network.spec, largest, budget)


def _freeze(network: Network) -> None:
    """Weights that are computed from others, as they are: the convolution that tells places apart."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def _key(root: Path, config: BundleConfig, name: str, target: Target) -> Key:
    """All that a compiled encoder depends on."""
    stream = next(s for s in config.streams if s.name == name)
    folder = bundles.encoder_folder(root, name)
    key: dict[str, Any] = {
        "format": FORMAT,
        "files": {f: file_digest(folder / f) for f in (WEIGHTS_FILE, CONFIG_FILE, PROCESSOR_FILE)},
        "options": dict(stream.options),
        "crop_size": config.preprocessing.crop_size if stream.modality == "video" else None,
        "runtime": target.runtime,
        "precision": target.precision,
    }
    if stream.options.get("layer") == "afg":
        key["layers"] = _layers_digest(root, name)
    if target.runtime == "tensorrt":
        sizes = [GPU_SAMPLES, GPU_CROPS, _GPU_ROWS, config.preprocessing.max_window]  # what the profiles follow from
        key["engine"] = {**tensorrt.engine_key([], target.device), "sizes": sizes}
    return key


def _layers_digest(root: Path, stream: str) -> str:
    """Of the weights that gather the layers, which are in the bundle's own file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(root / bundles.WEIGHTS_FILE).items()):
        if name.startswith(f"encoders.{stream}.network.layers."):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _caches(root: Path) -> list[Cache]:
    """In the bundle, and for bundles that cannot be written to, with the user's other caches."""
    return [Cache(root / FOLDER), Cache(platformdirs.user_cache_path("merfast") / FOLDER)]


def _writable(root: Path) -> Cache:
    inside, outside = _caches(root)
    return inside if os.access(inside.root if inside.root.exists() else root, os.W_OK) else outside
