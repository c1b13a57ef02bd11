"""Features on disk: the encoders run once over all clips.

Clips go through the engine's own media path, so that crops and windows are those of inference. What the encoders give
is kept in one safetensors file for each clip and variant, named by a hash of the clip's content, the encoders' weights
and the preprocessing: changing any of these makes new entries, and a run that was stopped goes on where it was. Of an
encoder that gathers over its layers by attention, the layers are kept, as the gathering changes in training.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from merfast import bundle as bundles
from merfast.config import EngineConfig
from merfast.errors import MerfastError
from merfast.media.windows import WindowSpec
from merfast.models.model import FusedModel, inputs_of
from merfast.pipeline import ItemReader
from merfast.plan import Plan, make_plan
from merfast.types import Batch, FloatArray, Window
from training.corrupt import Corruption, corrupt
from training.data import DataError, Sample
from training.media import file_hash
from training.states import Apart, gatherings

CLEAN = "clean"
_LARGEST_HALF = 6e4


@dataclass(frozen=True)
class Variant:
    """One rendering of every clip: as it is, or corrupted by draws from the clip's name and `seed`."""

    name: str = CLEAN
    corruption: Corruption | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Entry:
    """Features of one clip.

    Attributes:
        spans: `[W, 2]` seconds, start and end of each window.
        windows: for each window, stream name -> `[T, D]`; T is 0 where the modality is absent. For a stream whose
            encoder gathers over its layers, `[T, L, D]`; read, it is in the precision and the memory of its file.
    """

    spans: Tensor
    windows: tuple[dict[str, Tensor], ...]


@dataclass(frozen=True)
class Made:
    """What became of one clip: `found` was there already; `replaced` says what was wrong with the entry that was."""

    name: str
    found: bool = False
    replaced: str = ""
    error: str = ""


class FeatureStore:
    """Features on disk.

    Args:
        folder: made if needed.
        bundle: directory of a bundle whose encoders are meant; its fusion does not matter.
        detector: "auto", "yunet", "haar" or "none".
        detector_model: YuNet's file.

    Raises:
        BundleError: not a bundle.
        UnavailableError: the detector does not exist here.
    """

    def __init__(
        self, folder: Path, bundle: Path, *, detector: str = "auto", detector_model: Path | None = None
    ) -> None:
        self.folder = folder
        self._arguments = (folder, bundle, detector, detector_model)
        self._model = bundles.load(bundle).model
        options = EngineConfig(device="cpu", detector=detector, detector_model=detector_model)
        self._plan: Plan = make_plan(options, self._model.config)
        self._preprocessing = self._model.config.preprocessing
        self._encoders = encoders_hash(self._model, self._plan)
        for name, gathering in gatherings(self._model).items():
            self._model.foundations[name].network.layers = Apart(gathering)

    def file(self, sample: Sample, variant: Variant) -> Path:
        """Where a clip's entry is, made or not."""
        what: tuple[str, ...] = (sample.media.key(), self._encoders)
        if variant.corruption is not None:
            what += (repr(variant), sample.name)
        key = hashlib.sha256(repr(what).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, sample: Sample, variant: Variant) -> Entry:
        """A clip's features.

        Raises:
            DataError: there is no such entry, or it is damaged.
        """
        return read_entry(self.file(sample, variant), sample.name)

    def windows(self, sample: Sample) -> Iterator[Window]:
        """The windows of a clip's main face, as the engine cuts them.

        Raises:
            MediaError: the clip cannot be read.
        """
        longest = self._preprocessing.max_window
        spec, source = WindowSpec(longest, longest), sample.media.open()
        reader = ItemReader(source, sample.name, self._plan, self._model.config, spec, every_face=False, threads=1)
        for group in reader:
            yield group[0]

    def noise(self, samples: Sequence[Sample], most: int = 64) -> list[FloatArray]:
        """Sound of up to `most` of the clips, evenly chosen, `[N]` at 16 kHz each; those without any are left out."""
        out = []
        for sample in samples[:: max(1, len(samples) // most)][:most]:
            try:
                out += [w.audio for w in self.windows(sample) if len(w.audio)][:1]
            except MerfastError:
                continue  # named when its features are made
        return out

    def make(
        self, samples: Sequence[Sample], variant: Variant, noise: Sequence[FloatArray] = (), *, workers: int = 1
    ) -> Iterator[Made]:
        """Make what is missing or damaged; gives a `Made` for each sample as it is done, in any order.

        A clip that cannot be read gives a `Made` with an error, and has no entry.
        """
        jobs = [(sample, variant) for sample in samples]
        if workers == 1:
            yield from (self._make(sample, variant, noise) for sample in samples)
            return
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, _start_worker, (self._arguments, list(noise))) as pool:
            yield from pool.imap_unordered(_work, jobs, chunksize=8)

    def _make(self, sample: Sample, variant: Variant, noise: Sequence[FloatArray]) -> Made:
        replaced = ""
        try:
            file = self.file(sample, variant)
            if file.exists():
                try:
                    read_entry(file, sample.name)
                    return Made(sample.name, found=True)
                except DataError as error:
                    replaced = str(error)
            windows = list(self.windows(sample))
            if variant.corruption is not None:
                rng = np.random.default_rng([variant.seed, *sample.name.encode()])
                windows = [corrupt(w, variant.corruption, noise, rng) for w in windows]
            if not any(w.modalities for w in windows):
                raise DataError(f"{sample.name}: holds neither a face nor sound")
            write_entry(file, self._encode(windows))
        except MerfastError as error:
            return Made(sample.name, error=str(error))
        return Made(sample.name, replaced=replaced)

    @torch.inference_mode()
    def _encode(self, windows: Sequence[Window]) -> Entry:
        features = self._model.encode(*inputs_of(Batch.pack(windows)))
        split = {name: torch.split(r.values, r.lengths.tolist()) for name, r in features.items()}
        spans = torch.tensor([[w.start, w.end] for w in windows], dtype=torch.float64)
        return Entry(spans, tuple({name: parts[w] for name, parts in split.items()} for w in range(len(windows))))


_worker: tuple[FeatureStore, list[FloatArray]] | None = None


def _start_worker(arguments: tuple[Path, Path, str, Path | None], noise: list[FloatArray]) -> None:
    global _worker
    torch.set_num_threads(1)
    folder, bundle, detector, detector_model = arguments
    _worker = FeatureStore(folder, bundle, detector=detector, detector_model=detector_model), noise


def _work(job: tuple[Sample, Variant]) -> Made:
    assert _worker is not None
    store, noise = _worker
    return store._make(*job, noise)


def encoders_hash(model: FusedModel, plan: Plan) -> str:
    """Hash of everything that features depend on besides the clip: encoders, their weights, and how crops are made.

    Gatherings over an encoder's layers come after its features: their weights are left out.
    """
    config = model.config
    digest = hashlib.sha256(repr((config.streams, config.preprocessing, plan.choice("faces"))).encode())
    if plan.detector_model is not None:
        digest.update(file_hash(plan.detector_model).encode())
    later = tuple(f"{name}.network.layers." for name in gatherings(model))
    for name, tensor in sorted(model.encoders.state_dict().items()):
        if name.startswith(later):
            continue
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_entry(file: Path, entry: Entry) -> None:
    """Write an entry in one step, in half precision where the numbers allow it."""
    tensors = {"spans": entry.spans}
    for w, window in enumerate(entry.windows):
        for name, values in window.items():
            fits = not len(values) or float(values.abs().max()) < _LARGEST_HALF
            tensors[f"{w}/{name}"] = (values.half() if fits else values).contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not synced to the disk, as there are many: the checksum finds what a crash of the machine may leave.
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_bytes(safetensors.torch.save(tensors, {"crc": _crc(tensors)}))
    part.replace(file)


def read_entry(file: Path, name: str) -> Entry:
    """Read what `write_entry` wrote, as float32; the states of layers, of which there are many, stay where they are.

    Raises:
        DataError: missing or damaged; `name` says of which clip.
    """
    again = "run training.features again"
    if not file.exists():
        raise DataError(f"{name}: no features in {file.parent.parent}: {again}")
    try:
        with safetensors.safe_open(file, "pt") as entries:
            crc = entries.metadata()["crc"]
            tensors = {key: entries.get_tensor(key) for key in entries.keys()}  # noqa: SIM118
        if _crc(tensors) != crc:
            raise ValueError(f"checksum: got {_crc(tensors)}, expected {crc}")
        spans = tensors.pop("spans")
        windows: list[dict[str, Tensor]] = [{} for _ in range(len(spans))]
        for key, values in tensors.items():
            w, stream = key.split("/", 1)
            windows[int(w)][stream] = values if values.ndim == 3 else values.float()
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{name}: damaged features in {file} ({error}): {again}") from error
    return Entry(spans, tuple(windows))


def _crc(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"
