# ruff: noqa: N999
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_AfgWeights = tuple[_Floats, _Floats, _Floats, _Floats, _Floats | None]  # as in merfast.ops.afg.AFGWeights
# x, offsets, guide, out, attention
_AfgCall = tuple[_Floats, NDArray[np.int64], _Floats | None, _Floats, _Floats | None]
# The same with the bits of bf16 in the place of floats; bias and score remain floats.
_Bits = NDArray[np.uint16]
_AfgBf16Weights = tuple[_Bits, _Floats, _Floats, _Bits, _Bits | None]
_AfgBf16Call = tuple[_Bits, NDArray[np.int64], _Bits | None, _Bits, _Floats | None]

class AfgKernel:
    def __init__(self, weights: Sequence[_AfgWeights], isa: str) -> None: ...
    def run(self, calls: Sequence[_AfgCall], threads: int) -> None: ...
    @property
    def isa(self) -> str: ...

class AfgBf16Kernel:
    def __init__(self, weights: Sequence[_AfgBf16Weights], isa: str) -> None: ...
    def run(self, calls: Sequence[_AfgBf16Call], threads: int) -> None: ...
    @property
    def isa(self) -> str: ...

class CropNormKernel:
    def __init__(
        self, height: int, width: int, whole: bool, mean: Sequence[float], std: Sequence[float], isa: str
    ) -> None: ...
    def run(
        self,
        y: _Bytes,
        u: _Bytes,
        v: _Bytes,
        red: float,
        blue: float,
        full_range: bool,
        boxes: NDArray[np.float64],
        frame: NDArray[np.int64] | None,
        out: NDArray[Any],
    ) -> None: ...
    @property
    def isa(self) -> str: ...

class DecodeKernel:
    def __init__(
        self,
        emotion_weight: _Floats,
        emotion_bias: _Floats,
        hidden_weight: _Floats,
        hidden_bias: _Floats,
        valence_weight: _Floats,
        valence_bias: _Floats,
        class_valence: _Floats,
        mix: _Floats,
        temperature: float,
        limit: float,
        isa: str,
    ) -> None: ...
    def run(self, z: _Floats, posterior: _Floats, valence: _Floats) -> None: ...
    @property
    def isa(self) -> str: ...

class GroupNormGeluKernel:
    def __init__(self, weight: _Floats, bias: _Floats, groups: int, eps: float, isa: str) -> None: ...
    def run(self, x: _Floats, lengths: NDArray[np.int64], out: _Floats, threads: int) -> None: ...
    @property
    def isa(self) -> str: ...

def isas(bf16: bool = False) -> list[str]: ...
