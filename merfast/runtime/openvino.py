"""OpenVINO on the CPU: the network as its own file, in fp32 or bf16.

It is converted from torch's graph, not from ONNX: there products keep their weights as torch has them, which OpenVINO
maps from the file, where those of an ONNX file are turned first, in memory of their own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merfast.errors import BundleError, UnavailableError
from merfast.runtime.memory import trim
from merfast.runtime.onnx import exported, quietly
from merfast.runtime.profiles import rows_axis
from merfast.runtime.spec import Spec

MODEL_FILE = "network.xml"
_WEIGHTS_FILE = "network.bin"
_MADV_DONTNEED = 4
_RELEASE_SECONDS = 0.02


def missing() -> str:
    """What is not here, or nothing."""
    return "" if importlib.util.find_spec("openvino") else "openvino is not installed, pip install 'merfast[openvino]'"


def version() -> str:
    """Version of the library, on which files depend."""
    import openvino

    return str(openvino.__version__)


def has_bf16() -> bool:
    """Whether this CPU multiplies in bf16."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def convert(network: nn.Module, spec: Spec, folder: Path, *, half: bool = False) -> Path:
    """Write the network as `network.xml` and `network.bin`.

    Args:
        network: in fp32.
        spec: its inputs.
        folder: to write to.
        half: keep the weights in fp16: half the file, for networks that run in bf16, which rounds them more.

    Returns:
        The file.

    Raises:
        UnavailableError: OpenVINO is not installed.
        RuntimeError: the network cannot be converted.
    """
    if why := missing():
        raise UnavailableError(why)
    import openvino

    program = exported(network, spec)
    with quietly():
        model = openvino.convert_model(program)
        openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=half and _fits_half(network))
    return folder / MODEL_FILE


def _fits_half(network: nn.Module) -> bool:
    most = torch.finfo(torch.float16).max
    return all(float(p.detach().abs().max()) < most for p in network.parameters() if p.numel())


class OpenVINORunner:
    """Runs a network; safe to use from several threads, which take turns.

    Args:
        file: of `convert`.
        spec: its inputs.
        precision: "fp32" or "bf16".
        threads: that one call uses.

    Raises:
        UnavailableError: OpenVINO is not installed.
        BundleError: it cannot read the file.
    """

    def __init__(self, file: Path, spec: Spec, precision: str, threads: int) -> None:
        if why := missing():
            raise UnavailableError(why)
        options = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._model: Any = _core().compile_model(file, "CPU", options)
            self._request = self._model.create_infer_request()
        except RuntimeError as error:
            raise BundleError(f"{file}: OpenVINO cannot read it: {str(error).splitlines()[0]}") from error
        self._spec, self._lock = spec, threading.Lock()
        self._file = file

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Inputs on the CPU, as the spec has them -> the output, fp32.

        All axes but the one of rows are filled up with zeros to one of a few sizes, as are the output's.

        Raises:
            ConfigError: other inputs.
        """
        sizes = self._spec.sizes(inputs)
        rows = rows_axis(self._spec)
        wanted = {axis: size if axis == rows else filled_up(size) for axis, size in sizes.items()}
        arrays = [_padded(t.detach(), i.sized(wanted)).numpy() for i, t in zip(self._spec.inputs, inputs, strict=True)]
        with self._lock:
            (out,) = self._request.infer(arrays, share_inputs=True, share_outputs=True).values()
            return torch.from_numpy(out.copy())

    def relax(self) -> None:
        """Give back the memory of intermediate results, which the next call takes again."""
        with self._lock:
            self._model.release_memory()
        trim()

    def release(self) -> None:
        """Give back the pages of the weights' file; those that are read again come back from it.

        After its first run, OpenVINO has the weights in a form of its own, and reads the file no more.
        """
        where = str((self._file.parent / _WEIGHTS_FILE).resolve())
        libc = ctypes.CDLL(None, use_errno=True)
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            area, rights, *_, name = line.split(maxsplit=5) if line.count(" ") > 4 else ("", "", "")
            if name.strip() == where and "w" not in rights:  # what was not written can be read again
                start, end = (int(n, 16) for n in area.split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def filled_up(size: int) -> int:
    """The next of four sizes an octave: less than a quarter is added.

    For each new size OpenVINO writes machine code, which takes time, and keeps it: there should be few sizes.
    """
    step = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // step) * step


def _padded(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Contiguous and of this shape, zeros after what x has."""
    if x.shape == shape:
        return x.contiguous()
    out = x.new_zeros(shape)
    out[tuple(slice(0, size) for size in x.shape)] = x
    return out


@contextmanager
def released(runner: OpenVINORunner) -> Iterator[None]:
    """Give back the pages of the weights' file again and again: a first run reads all of it, and needs each page once.

    It would otherwise be in memory as a whole beside the form of it that OpenVINO makes.
    """
    over = threading.Event()

    def work() -> None:
        while not over.wait(_RELEASE_SECONDS):
            runner.release()

    helper = threading.Thread(target=work, name="merfast-release", daemon=True)
    helper.start()
    try:
        yield
    finally:
        over.set()
        helper.join()
        runner.release()


_shared: list[Any] = []


def _core() -> Any:
    import openvino

    if not _shared:
        _shared.append(openvino.Core())
    return _shared[0]
