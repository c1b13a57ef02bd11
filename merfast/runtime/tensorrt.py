"""Networks compiled by TensorRT 10 or 11: an engine from an ONNX file, and what runs it.

Networks are strongly typed: a number has the type that the ONNX graph gives it, and fp32 is not rounded to TF32. An
engine runs only with the TensorRT and on the kind of GPU that built it. TensorRT crashes where there is no GPU, so that
none of its objects is made before torch has seen one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merfast.errors import BundleError, ConfigError, MerfastError, UnavailableError
from merfast.runtime.profiles import check_profiles, fitting
from merfast.runtime.spec import Profile, Spec
from merfast.runtime.streams import SideStream
from merfast.runtime.tensorrt_library import Progress, gpu_of, here_of, library, logger_of, made, monitor_of

BUILDER = 1
"""Counts the ways in which `build` has built: engines of another are not taken from a cache."""

ALIGNED = 256
"""Bytes that the address of an input has to be a multiple of."""

_building = threading.Lock()
"""A build at a time: it measures kernels, which another one would disturb."""


def available() -> str | None:
    """Why TensorRT cannot be used here, None if it can. Without a GPU nothing is imported."""
    try:
        library()
    except Exception as error:
        return str(error)
    return None


def engine_key(profiles: Sequence[Profile], device: torch.device | str = "cuda") -> dict[str, Any]:
    """What an engine depends on besides its ONNX file, as JSON has it: for the key of a cache.

    Raises:
        UnavailableError: no TensorRT or no GPU.
    """
    ranges = [{axis: list(sizes) for axis, sizes in profile.items()} for profile in profiles]
    return {"builder": BUILDER, **here_of(library(), gpu_of(device)), "profiles": ranges}


def build(
    onnx: Path,
    out: Path,
    spec: Spec,
    profiles: Sequence[Profile],
    progress: Progress | None = None,
    *,
    device: torch.device | str = "cuda",
) -> None:
    """Compile a network, which takes minutes, and write its engine to `out`, with a note beside it (`.json`).

    KeyboardInterrupt, and what `progress` raises, cancel it after the present step.

    Args:
        onnx: the network; weights outside of it lie beside it.
        out: file to write.
        spec: inputs and output of the network.
        profiles: ranges of sizes, each compiled for; see `merfast.runtime.profiles.profiles_of`.
        progress: is told how far each phase is.
        device: GPU to compile for.

    Raises:
        ConfigError: profiles that do not fit the spec.
        BundleError: no such file, or it has other inputs or outputs than the spec.
        UnavailableError: no TensorRT or no GPU, or TensorRT cannot compile the network.
        OSError: `out` cannot be written.
    """
    trt, gpu = library(), gpu_of(device)
    check_profiles(spec, profiles)
    if not onnx.is_file():
        raise BundleError(f"{onnx}: got no file, expected an ONNX network")
    with _building, torch.cuda.device(gpu):
        logger = logger_of(trt)
        before = logger.count
        builder = made(trt.Builder, logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)  # owns the weights: lives until the engine is built
        if not parser.parse_from_file(str(onnx)):
            problems = [parser.get_error(i) for i in range(parser.num_errors)]
            said = "; ".join(_text_of(problem) for problem in problems) or logger.said(before)
            raise UnavailableError(f"{onnx}: TensorRT {trt.__version__} cannot read it: {said}")
        names = [network.get_input(i).name for i in range(network.num_inputs)]
        names += [network.get_output(i).name for i in range(network.num_outputs)]
        expected = [*(i.name for i in spec.inputs), spec.output]
        if sorted(names) != sorted(expected):
            raise BundleError(f"{onnx}: got inputs and outputs {sorted(names)}, expected {sorted(expected)}")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        for sizes in profiles:
            optimisation = builder.create_optimization_profile()
            for i in spec.inputs:
                smallest, usual, most = (i.sized({axis: of[k] for axis, of in sizes.items()}) for k in range(3))
                optimisation.set_shape(i.name, smallest, usual, most)
            if config.add_optimization_profile(optimisation) < 0:
                raise UnavailableError(f"{onnx}: TensorRT refuses the profile {sizes}: {logger.said(before)}")
        monitor = monitor_of(trt, progress)
        config.progress_monitor = monitor

        def compiled() -> Any:
            with torch.cuda.device(gpu):
                return builder.build_serialized_network(network, config)

        # In a thread of its own, so that this one can be interrupted.
        with ThreadPoolExecutor(1) as pool:
            try:
                engine = pool.submit(compiled).result()
            except BaseException as error:
                monitor.stopped = error
                raise
        if monitor.stopped is not None:
            raise monitor.stopped
        if engine is None:
            raise UnavailableError(f"{onnx}: TensorRT {trt.__version__} cannot compile it: {logger.said(before)}")
        data = memoryview(engine)
        note = {**here_of(trt, gpu), "sha256": hashlib.sha256(data).hexdigest()}
        out.write_bytes(data)
        _note_of(out).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def read_engine(file: Path, here: Mapping[str, str]) -> bytes:
    """An engine that `build` wrote.

    Args:
        file: the engine; its note is beside it.
        here: what the note must say of TensorRT and the GPU.

    Raises:
        BundleError: it is missing, damaged or of another TensorRT or GPU; building it again helps.
    """
    try:
        note = json.loads(_note_of(file).read_text(encoding="utf-8"))
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: no engine can be read, build it again: {error}") from error
    noted = {name: note.get(name) for name in here} if isinstance(note, dict) else {}
    if noted != here:
        raise BundleError(f"{file}: an engine made for {noted}, expected one for {dict(here)}: build it again")
    if hashlib.sha256(data).hexdigest() != note.get("sha256"):
        raise BundleError(f"{file}: the engine is damaged (its SHA-256 is not the one noted): build it again")
    return data


@dataclass
class _Slot:
    """What runs one profile: its context, and the stream that all of the context's work is on."""

    context: Any
    stream: SideStream
    lock: threading.Lock = field(default_factory=threading.Lock)


class TensorRTRunner:
    """Runs an engine that `build` wrote; a `Runner`. Safe under several threads and CUDA streams.

    Work is queued in the order of the caller's stream and not waited for. Inputs are read where they are; only one
    whose address TensorRT does not take (a view into another tensor) is copied. Each profile has memory of its own.

    Attributes:
        spec: inputs and output of the network.
        device: the GPU that inputs are on.
        profiles: ranges of sizes that the engine takes; the smallest that fits is used.

    Raises:
        UnavailableError: no TensorRT or no GPU, or too little of its memory is free.
        BundleError: the engine is missing, damaged, of another TensorRT or GPU, or of another network: build it again.
    """

    def __init__(self, file: Path, spec: Spec, device: torch.device | str = "cuda") -> None:
        trt = library()
        self.spec, self.device = spec, gpu_of(device)
        data = read_engine(file, here_of(trt, self.device))
        with torch.cuda.device(self.device):
            self._logger = logger = logger_of(trt)
            before = logger.count
            self._runtime = runtime = made(trt.Runtime, logger)  # has to outlive its engine
            engine = runtime.deserialize_cuda_engine(data)
            if engine is None:
                said = logger.said(before)
                raise BundleError(f"{file}: TensorRT {trt.__version__} refuses the engine, build it again: {said}")
            _check_engine(trt, engine, spec, file)
            count = engine.num_optimization_profiles
            self.profiles = tuple(_profile_of(engine, spec, index) for index in range(count))
            self._slots = [self._slot(trt, engine, index) for index in range(count)]

    def _slot(self, trt: Any, engine: Any, index: int) -> _Slot:
        stream, before = SideStream(self.device), self._logger.count
        # Memory for its own profile; by default a context has it for the largest.
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
        with stream.ordered():
            if context is None or not context.set_optimization_profile_async(index, stream.handle):
                said = self._logger.said(before)
                raise UnavailableError(f"TensorRT cannot prepare profile {self.profiles[index]}: {said}")
        return _Slot(context, stream)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Inputs of the spec -> its output, fp32.

        Raises:
            ConfigError: inputs that are not the spec's, on another device, or of sizes that no profile takes.
            MerfastError: TensorRT failed.
        """
        sizes = self.spec.sizes(inputs)
        for i, x in zip(self.spec.inputs, inputs, strict=True):
            if x.device != self.device:
                raise ConfigError(f"input {i.name!r}: got {x.device}, expected {self.device}")
        slot = self._slots[fitting(self.profiles, sizes)]
        taken = [_aligned(x.detach()) for x in inputs]
        with slot.lock, torch.cuda.device(self.device):
            context, before, good = slot.context, self._logger.count, True
            for i, x in zip(self.spec.inputs, taken, strict=True):
                good &= context.set_input_shape(i.name, tuple(x.shape))
                good &= context.set_tensor_address(i.name, x.data_ptr())
            shape = tuple(context.get_tensor_shape(self.spec.output))
            if not good or min(shape, default=0) < 0:
                raise MerfastError(f"TensorRT does not take sizes {sizes}: {self._logger.said(before)}")
            out = torch.empty(shape, dtype=torch.float32, device=self.device)
            good &= context.set_tensor_address(self.spec.output, out.data_ptr())
            with slot.stream.ordered():
                good = good and context.execute_async_v3(slot.stream.handle)
        if not good:
            raise MerfastError(f"TensorRT failed at sizes {sizes}: {self._logger.said(before)}")
        return out


def _check_engine(trt: Any, engine: Any, spec: Spec, file: Path) -> None:
    """See that an engine has the inputs and the output of a spec.

    Raises:
        BundleError: it has others.
    """
    kinds = {torch.float32: trt.DataType.FLOAT, torch.int64: trt.DataType.INT64}
    expected = {i.name: (kinds[i.dtype], trt.TensorIOMode.INPUT) for i in spec.inputs}
    expected[spec.output] = (trt.DataType.FLOAT, trt.TensorIOMode.OUTPUT)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    got = {name: (engine.get_tensor_dtype(name), engine.get_tensor_mode(name)) for name in names}
    if got != expected:
        raise BundleError(f"{file}: an engine with {got}, expected {expected}: build it again")
    for i in spec.inputs:
        shape = tuple(engine.get_tensor_shape(i.name))
        if shape != tuple(-1 if isinstance(size, str) else size for size in i.shape):
            wanted = list(i.shape)
            raise BundleError(f"{file}: an engine with {i.name!r} {list(shape)}, expected {wanted}: build it again")
        if engine.get_tensor_location(i.name) != trt.TensorLocation.DEVICE:
            raise BundleError(f"{file}: the engine wants {i.name!r} on the CPU: shapes depend on its values")


def _profile_of(engine: Any, spec: Spec, index: int) -> Profile:
    """A profile of an engine, by the names of the spec's axes."""
    profile: dict[str, tuple[int, int, int]] = {}
    for i in spec.inputs:
        if any(isinstance(axis, str) for axis in i.shape):
            smallest, usual, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(i.name, index))
            sizes = zip(smallest, usual, most, strict=True)
            profile |= {axis: of for axis, of in zip(i.shape, sizes, strict=True) if isinstance(axis, str)}
    return profile


def _text_of(problem: Any) -> str:
    where = f"{problem.node_operator()} {problem.node_name()}".strip()
    return f"{' '.join(problem.desc().split())}{f' ({where})' if where else ''}"


def _aligned(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x if x.data_ptr() % ALIGNED == 0 else x.clone()


def _note_of(file: Path) -> Path:
    return file.with_name(file.name + ".json")
