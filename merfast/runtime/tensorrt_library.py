"""The module tensorrt, if there is one and a GPU; and the objects that it wants from its users."""

from __future__ import annotations

import functools
import importlib
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from merfast.errors import UnavailableError

Progress = Callable[[str, float], None]
"""Is told, from another thread, of a phase of the build and which part of it is done, 0 to 1."""

OLDEST = 10
"""Major version of TensorRT."""


def library() -> Any:
    """The module tensorrt. Without a GPU it is not even imported.

    Raises:
        UnavailableError: there is no GPU, or no TensorRT that works.
    """
    if not torch.cuda.is_available():
        raise UnavailableError(f"TensorRT needs an NVIDIA GPU: torch {torch.__version__} sees none here")
    found = _found()
    if isinstance(found, str):
        raise UnavailableError(found)
    return found


@functools.cache
def _found() -> ModuleType | str:
    """The module tensorrt, or why it cannot be used."""
    try:
        trt = importlib.import_module("tensorrt")
        version = str(trt.__version__)
        if int(version.split(".")[0]) < OLDEST:
            return f"TensorRT: got version {version}, expected {OLDEST} or later"
    except Exception as error:
        return f"TensorRT cannot be imported: {error}"
    return trt


def gpu_of(device: torch.device | str) -> torch.device:
    """The device with its number.

    Raises:
        UnavailableError: it is no GPU.
    """
    given = torch.device(device)
    if given.type != "cuda":
        raise UnavailableError(f"TensorRT: got device {given}, expected a CUDA GPU")
    return given if given.index is not None else torch.device("cuda", torch.cuda.current_device())


def here_of(trt: Any, gpu: torch.device) -> dict[str, str]:
    """TensorRT and GPU, which an engine is bound to."""
    of = torch.cuda.get_device_properties(gpu)
    return {"tensorrt": trt.__version__, "gpu": of.name, "compute_capability": f"{of.major}.{of.minor}"}


def made(make: Callable[[Any], Any], logger: Any) -> Any:
    """A builder or a runtime.

    Raises:
        UnavailableError: TensorRT gives none, as on a GPU or with a driver that it does not know.
    """
    before = logger.count
    try:
        return make(logger)
    except (TypeError, RuntimeError) as error:
        raise UnavailableError(f"TensorRT cannot use this GPU: {logger.said(before, str(error))}") from error


@functools.cache
def logger_of(trt: Any) -> Any:
    """TensorRT's logger, of which it wants only one; it keeps the last errors for messages, and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=8)
            self.count = 0

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(msg.split()))
                self.count += 1

        def said(self, before: int, otherwise: str = "it does not say why") -> str:
            """The last errors, of those that came after the first `before`."""
            new = self.count - before
            return "; ".join([*self.errors][-new:]) if new > 0 else otherwise

    return Logger()


def monitor_of(trt: Any, progress: Progress | None) -> Any:
    """What TensorRT tells its progress to; the build ends after the present step once `stopped` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.stopped: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.tell(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, min(1.0, (step + 1) / max(self.steps.get(phase_name, 1), 1)))
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, 1.0)

        def tell(self, phase: str, done: float) -> None:
            try:
                if progress is not None and self.stopped is None:
                    progress(phase, done)
            except BaseException as error:  # TensorRT would print it and drop it
                self.stopped = error

    return Monitor()
