"""A network as an ONNX file, with its weights beside it, and the same with weights and activations in eight bits."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from merfast.errors import UnavailableError
from merfast.runtime.spec import Spec

MODEL_FILE = "network.onnx"
OPSET = 20  # what ONNX Runtime, OpenVINO and TensorRT 10 all read


def missing() -> str:
    """What exporting needs and is not here, or nothing."""
    lacking = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"exporting needs {' and '.join(lacking)}, pip install 'merfast[onnx]'" if lacking else ""


def examples(spec: Spec) -> tuple[Tensor, ...]:
    """Inputs to trace a network with: two rows, and four times the least of every other axis that varies."""
    sizes = {name: 2 if name == spec.inputs[0].shape[0] else 4 * least for name, least in spec.least.items()}
    inputs = []
    for i in spec.inputs:
        shape = i.sized(sizes)
        # Lengths: rows that are full.
        full = max(sizes.values())
        inputs.append(torch.full(shape, full, dtype=i.dtype) if i.dtype == torch.int64 else torch.zeros(shape))
    return tuple(inputs)


def exported(network: nn.Module, spec: Spec) -> torch.export.ExportedProgram:
    """The network as a graph whose axes that are named in the spec vary.

    Raises:
        RuntimeError: it cannot be traced.
    """
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(i.shape) if isinstance(size, str)}
        for i in spec.inputs
    )
    with quietly(), torch.no_grad():
        return torch.export.export(network.eval(), examples(spec), dynamic_shapes=dynamic, strict=False)


def export(network: nn.Module, spec: Spec, folder: Path) -> Path:
    """Write the network as `network.onnx` and `network.onnx.data`; its precision is that of its weights.

    Returns:
        The file.

    Raises:
        UnavailableError: what exporting needs is not installed.
        RuntimeError: the network cannot be exported.
    """
    if why := missing():
        raise UnavailableError(why)
    file = folder / MODEL_FILE
    program = exported(network, spec)
    with quietly():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[i.name for i in spec.inputs],
            output_names=[spec.output],
            verbose=False,
        )
        cast(torch.onnx.ONNXProgram, made).save(file, external_data=True)
    return file


def quantise(file: Path, folder: Path) -> Path:
    """Write the network of an ONNX file with products in eight bits: weights by output channel, inputs as they come.

    The first sixth of the products stays as it is: what goes wrong there goes through all the rest.

    Returns:
        The file `network.onnx` in `folder`.

    Raises:
        UnavailableError: ONNX Runtime is not installed.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise UnavailableError("int8 needs onnxruntime and onnx, pip install 'merfast[onnx]'") from error
    import onnx

    out, kinds = folder / MODEL_FILE, ["MatMul", "Gemm"]
    graph = onnx.load(file, load_external_data=False).graph
    weights = {i.name for i in graph.initializer if len(i.dims) == 2}
    products = [node.name for node in graph.node if node.op_type in kinds and node.input[1] in weights]
    with quietly():
        quantize_dynamic(
            file,
            out,
            op_types_to_quantize=kinds,
            nodes_to_exclude=products[: len(products) // 6],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    return out


@contextmanager
def quietly() -> Iterator[None]:
    """No notes of the exporters on what they skip; errors are raised all the same."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root", "")
    logs = [logging.getLogger(name) for name in names]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
