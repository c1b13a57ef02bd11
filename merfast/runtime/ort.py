"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merfast.errors import BundleError, UnavailableError
from merfast.runtime.memory import trim
from merfast.runtime.spec import Spec


def missing() -> str:
    """What is not here, or nothing."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed, pip install 'merfast[onnx]'"
    return ""


class OrtRunner:
    """Runs a network; safe to use from several threads.

    Args:
        file: of `merfast.runtime.onnx`.
        spec: its inputs.
        threads: that one call uses.

    Raises:
        UnavailableError: ONNX Runtime is not installed.
        BundleError: it cannot read the file.
    """

    def __init__(self, file: Path, spec: Spec, threads: int) -> None:
        if why := missing():
            raise UnavailableError(why)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Inputs of any size: an arena keeps what the largest took, and more of it with each new size.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # classes of its own, which are not exported
            raise BundleError(f"{file}: ONNX Runtime cannot read it: {str(error).splitlines()[0]}") from error
        self._spec = spec

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Inputs on the CPU, as the spec has them -> the output, fp32.

        Raises:
            ConfigError: other inputs.
        """
        self._spec.sizes(inputs)
        names = (i.name for i in self._spec.inputs)
        given = {name: t.detach().contiguous().numpy() for name, t in zip(names, inputs, strict=True)}
        return torch.from_numpy(self._session.run(None, given)[0])

    def relax(self) -> None:
        """Give back the memory of intermediate results, which the next call takes again."""
        trim()
