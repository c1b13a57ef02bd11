"""Stands for the module tensorrt where there is no GPU: its "engine" is JSON, and runs the network of the tests.

`test_tensorrt_api.py` checks that all names here are TensorRT's, where its bindings are installed.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
from collections.abc import Callable
from typing import Any

import torch
from compiled_networks import DIM, STRIDE, Audio

__version__ = "11.4.0"
ALIGNED = 64  # as torch allocates on the CPU


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 1


class DataType(enum.Enum):
    FLOAT = 1
    INT64 = 2
    HALF = 3


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 1
    HOST = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    ON_PROFILE_CHANGE = 1


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 1
        ERROR = 2
        WARNING = 3

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class ITensor:
    def __init__(self, name: str) -> None:
        self.name = name


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.inputs: list[str] = []
        self.outputs: list[str] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self.inputs[index])

    def get_output(self, index: int) -> ITensor:
        return ITensor(self.outputs[index])


class ParserError:
    def desc(self) -> str:
        return "no importer\n for Thing"

    def node_operator(self) -> str:
        return "Thing"

    def node_name(self) -> str:
        return "node_7"


class OnnxParser:
    """Takes JSON with "inputs" and "outputs" for an ONNX file; anything else it cannot read."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self.network = network
        self.num_errors = 0

    def parse_from_file(self, model: str) -> bool:
        with open(model) as file:
            text = file.read()
        if not text.startswith("{"):
            self.num_errors = 2
            return False
        names = json.loads(text)
        self.network.inputs, self.network.outputs = names["inputs"], names["outputs"]
        return True

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:  # noqa: A002
        self.shapes[input] = (min, opt, max)


class IBuilderConfig:
    def __init__(self) -> None:
        self.progress_monitor: IProgressMonitor | None = None
        self.cleared: list[BuilderFlag] = []
        self.profiles: list[IOptimizationProfile] = []

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if Builder.refuses_profiles:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Builder:
    refuses_profiles = False
    fails = False
    at_step: Callable[[int], None] = staticmethod(lambda step: None)
    steps_done = 0

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytearray | None:
        assert config.cleared == [BuilderFlag.TF32]
        monitor = config.progress_monitor
        assert monitor is not None
        monitor.phase_start("Building", None, 4)
        try:
            for step in range(4):
                Builder.at_step(step)
                Builder.steps_done = step + 1
                if not monitor.step_complete("Building", step):
                    return None
        finally:
            monitor.phase_finish("Building")
        if Builder.fails:
            self.logger.log(ILogger.Severity.WARNING, "nothing")
            self.logger.log(ILogger.Severity.ERROR, "Error Code 2: OutOfMemory\n (no tactic)")
            return None
        return bytearray(json.dumps([p.shapes for p in config.profiles]).encode())


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.profile = engine, -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.busy = threading.Lock()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.profile][name]
        self.shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % ALIGNED == 0
        self.addresses[name] = memory
        return memory != 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, samples = self.shapes["samples"]
        return (batch, samples // STRIDE, DIM)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.busy.acquire(blocking=False), "two threads are in one context"
        assert stream_handle == 7
        self.engine.runs.append(self.profile)
        samples = _at(self.addresses["samples"], self.shapes["samples"], ctypes.c_float)
        lengths = _at(self.addresses["lengths"], self.shapes["lengths"], ctypes.c_int64)
        with torch.no_grad():
            out = Audio()(samples, lengths)
        _at(self.addresses["vectors"], tuple(out.shape), ctypes.c_float).copy_(out)
        self.busy.release()
        return not self.engine.fails


class ICudaEngine:
    def __init__(self, profiles: list[dict[str, Any]], logger: ILogger) -> None:
        self.profiles = profiles
        self.runs: list[int] = []
        self.fails = self.no_memory = False
        self.dtypes = {"samples": DataType.FLOAT, "lengths": DataType.INT64, "vectors": DataType.FLOAT}
        self.lengths_at = TensorLocation.DEVICE

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    @property
    def num_io_tensors(self) -> int:
        return len(self.dtypes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.dtypes)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.dtypes[name]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name == "vectors" else TensorIOMode.INPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self.lengths_at if name == "lengths" else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if name == "lengths" else (-1, -1)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        shapes: list[list[int]] = self.profiles[profile_index][name]
        return shapes

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext | None:
        return None if self.no_memory else IExecutionContext(self)


class Runtime:
    change: Callable[[ICudaEngine], None] = staticmethod(lambda engine: None)
    last: ICudaEngine

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            profiles = json.loads(serialized_engine)
        except ValueError:
            self.logger.log(ILogger.Severity.ERROR, "Error Code 1: magicTag failed")
            return None
        Runtime.last = engine = ICudaEngine(profiles, self.logger)
        Runtime.change(engine)
        return engine


def _at(address: int, shape: tuple[int, ...], kind: Any) -> torch.Tensor:
    """The memory at an address as a tensor, without a copy."""
    size = 1
    for axis in shape:
        size *= axis
    dtype = torch.float32 if kind is ctypes.c_float else torch.int64
    return torch.frombuffer((kind * size).from_address(address), dtype=dtype).view(shape)
