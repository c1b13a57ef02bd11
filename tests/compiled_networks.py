"""Small networks with the inputs of the encoders, for tests of what runs compiled networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from merfast.runtime.spec import Input, Profile, Spec

LEAST = 12
DIM = 5

AUDIO = Spec(
    (Input("samples", torch.float32, ("batch", "samples")), Input("lengths", torch.int64, ("batch",))),
    "vectors",
    {"batch": 1, "samples": LEAST},
)
PICTURES = Spec((Input("pictures", torch.float32, ("pictures", 3, 4, 4)),), "vectors", {"pictures": 1})
STRIDE = 4

PROFILES: tuple[Profile, ...] = (
    {"batch": (1, 1, 1), "samples": (LEAST, 16, 64)},
    {"batch": (1, 8, 8), "samples": (LEAST, 16, 16)},
    {"batch": (1, 4, 4), "samples": (LEAST, 64, 64)},
)


class Audio(nn.Module):
    """Samples `[B, N]` and lengths `[B]` -> vectors `[B, N // 4, 5]`; a row's are its own up to its length // 4.

    Each vector holds its four samples' values through a matrix, and the mean of the row's valid samples, so that it
    is wrong if padding leaks or a length is lost; an empty row would be 0 / 0.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(STRIDE, DIM, generator=generator))

    def forward(self, samples: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
        x = samples * valid
        mean = x.sum(1, keepdim=True) / valid.sum(1, keepdim=True)
        steps = samples.shape[1] // STRIDE
        frames = x[:, : steps * STRIDE].reshape(samples.shape[0], steps, STRIDE)
        return frames @ self.weight + mean[:, :, None]


def audio_inputs(lengths: list[int], longest: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples with noise past each length too, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(len(lengths), longest or max(lengths), generator=generator)
    return samples, torch.tensor(lengths, dtype=torch.int64)


def valid_rows(vectors: Tensor, lengths: list[int]) -> list[Tensor]:
    """What of the vectors is said to be right."""
    return [v[: n // STRIDE] for v, n in zip(vectors, lengths, strict=True)]


def write_onnx(file: Path, weight: Tensor) -> None:
    """The network `Audio` as ONNX, its weight in a file of its own beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def ints(name: str, *values: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    nodes = [
        helper.make_node("Shape", ["samples"], ["shape"]),
        helper.make_node("Gather", ["shape", "at_time"], ["time"]),
        helper.make_node("Range", ["zero", "time", "one"], ["steps"]),
        helper.make_node("Unsqueeze", ["lengths", "axis_one"], ["column"]),
        helper.make_node("Less", ["steps", "column"], ["valid"]),
        helper.make_node("Cast", ["valid"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["samples", "mask"], ["x"]),
        helper.make_node("ReduceSum", ["x", "axis_one"], ["total"], keepdims=1),
        helper.make_node("ReduceSum", ["mask", "axis_one"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Unsqueeze", ["mean", "axis_two"], ["means"]),
        helper.make_node("Unsqueeze", ["x", "axis_one"], ["signal"]),
        helper.make_node("Conv", ["signal", "weight"], ["frames"], strides=[STRIDE], kernel_shape=[STRIDE]),
        helper.make_node("Transpose", ["frames"], ["vectors_alone"], perm=[0, 2, 1]),
        helper.make_node("Add", ["vectors_alone", "means"], ["vectors"]),
    ]
    scalars = [
        numpy_helper.from_array(np.array(value, np.int64), n) for n, value in (("zero", 0), ("one", 1), ("at_time", 1))
    ]
    convolution = np.ascontiguousarray(weight.detach().cpu().numpy().T[:, None])
    constants = [*scalars, ints("axis_one", 1), ints("axis_two", 2), numpy_helper.from_array(convolution, "weight")]
    graph = helper.make_graph(
        nodes,
        "audio",
        [
            helper.make_tensor_value_info("samples", TensorProto.FLOAT, ["batch", "samples"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", "steps", DIM])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(file), save_as_external_data=True, location=file.name + ".data", size_threshold=64)
