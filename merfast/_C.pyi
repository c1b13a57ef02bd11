# ruff: noqa: N999
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]

class AfgKernel:
    def __init__(
        self,
        weight: _Floats,
        bias: _Floats,
        score: _Floats,
        absent: _Floats,
        guide_weight: _Floats | None,
        isa: str,
    ) -> None: ...
    def run(
        self, x: _Floats, offsets: NDArray[np.int64], guide: _Floats | None, out: NDArray[Any], threads: int
    ) -> None: ...
    @property
    def isa(self) -> str: ...

def isas() -> list[str]: ...
