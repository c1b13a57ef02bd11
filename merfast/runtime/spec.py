"""The inputs of a network, and the range of their sizes: what an export and a compiled engine are made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merfast.errors import ConfigError

Runner = Callable[..., Tensor]
"""Runs a network: its inputs, in order, as contiguous tensors on the runner's device -> its output, fp32, there."""

Profile = Mapping[str, tuple[int, int, int]]
"""Name of each axis that varies -> its smallest, most usual and largest size."""

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Input:
    """One input of a network.

    Attributes:
        name: of the input, in the ONNX graph too.
        dtype: float32 or int64.
        shape: sizes of the axes; a name stands for one that varies, and the same name for the same size.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes of the axes that vary."""
        return tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)


@dataclass(frozen=True)
class Spec:
    """Inputs of a network in order, and the name and axes of its output.

    Attributes:
        inputs: in the order in which the network takes them.
        output: name of the output in the ONNX graph; it is float32.
        least: name of each axis that varies -> its smallest size that makes sense.
    """

    inputs: tuple[Input, ...]
    output: str
    least: Mapping[str, int]

    def sizes(self, tensors: tuple[Tensor, ...]) -> dict[str, int]:
        """Sizes of the axes that vary.

        Raises:
            ConfigError: another number of tensors, type or shape than the spec's.
        """
        if len(tensors) != len(self.inputs):
            raise ConfigError(f"got {len(tensors)} inputs, expected {len(self.inputs)}")
        sizes: dict[str, int] = {}
        for i, t in zip(self.inputs, tensors, strict=True):
            fits = t.ndim == len(i.shape) and t.dtype == i.dtype
            for want, got in zip(i.shape, t.shape, strict=False):
                fits &= sizes.setdefault(want, got) == got if isinstance(want, str) else want == got
            if not fits:
                expected = f"{i.dtype} [{', '.join(map(str, i.shape))}]"
                raise ConfigError(f"input {i.name!r}: got {t.dtype} {list(t.shape)}, expected {expected}")
        return sizes
