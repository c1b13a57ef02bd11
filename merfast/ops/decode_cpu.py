"""Joint decoding on the CPU in C++: fp32, forward only, every vector width. The contract is `merfast.ops.decode`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merfast.ops.afg_cpu import check_isa
from merfast.ops.decode import Decode, DecodeWeights, check_average, check_decode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def prepare(
    weights: DecodeWeights, mix: Tensor, temperature: float = 1.0, limit: float = math.inf, *, isa: str = "auto"
) -> Decode:
    """Pack the weights for an instruction set. The weights are copied: later changes to them have no effect.

    The decoding takes fp32 CPU tensors and gives detached fp32 tensors: gradients need `merfast.ops.decode`. It works
    on the caller's thread, may be called from many threads at once, and a sample's result does not depend, to the bit,
    on the other samples. Vectors that are not contiguous are copied first.

    Args:
        weights, mix: fp32 on the CPU, see `merfast.ops.decode.decode`.
        temperature, limit: see there.
        isa: one of `isas()`, or "auto" for the first of them.

    Raises:
        UnavailableError: there is no such kernel here.
        ValueError: weights, mix, temperature, limit or, on a call, z that the reference refuses or that are not fp32 on
            the CPU.
    """
    check_isa(isa)
    fixed = DecodeWeights(*(w.detach() for w in weights))
    structures, classes, dim = weights.emotion_weight.shape if weights.emotion_weight.ndim == 3 else (0, 0, 0)
    check_decode(torch.empty(structures, 0, dim), fixed)
    check_average(mix, structures, temperature, limit)
    arrays = {name: _array(name, value) for name, value in fixed._asdict().items()}
    from merfast import _C

    run = _C.DecodeKernel(**arrays, mix=_array("mix", mix), temperature=temperature, limit=limit, isa=isa).run

    def decode(z: Tensor) -> tuple[Tensor, Tensor]:
        batch = z.shape[1] if z.ndim == 3 else 0
        posterior = torch.empty(batch, classes, dtype=torch.float32, device="cpu")
        valence = torch.empty(batch, dtype=torch.float32, device="cpu")
        try:
            run(_array("z", z), posterior.numpy(), valence.numpy())
        except ValueError:
            # The binding found something wrong without costing the good case anything; say it as the reference does.
            check_decode(z, fixed)
            raise
        return posterior, valence

    return decode


def _array(name: str, value: Tensor) -> NDArray[np.float32]:
    if value.dtype != torch.float32 or value.device.type != "cpu":
        raise ValueError(f"decode {name}: got {value.dtype} on {value.device}, expected torch.float32 on cpu")
    return value.detach().contiguous().numpy()
