"""AFG on the CPU in C++: fp32, forward only, every vector width. The contract is `merfast.ops.afg`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merfast.errors import UnavailableError
from merfast.ops.afg import AFGWeights, Gather, check_afg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

try:
    from merfast import _C
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None


def isas() -> tuple[str, ...]:
    """Instruction sets this machine can run, best first, out of `avx512`, `avx2` and `generic`.

    Raises:
        UnavailableError: merfast was installed without its C++ extension.
    """
    if _missing is not None:
        raise UnavailableError(f"C++ kernels: got {_missing}, expected merfast._C (build: pip install -e .)")
    return tuple(_C.isas())


def prepare(weights: AFGWeights, *, isa: str = "auto", threads: int = 1) -> Gather:
    """Pack the weights for an instruction set. The weights are copied: later changes to them have no effect.

    The gathering takes fp32 CPU tensors and gives a detached fp32 tensor: gradients need `merfast.ops.afg`. Rows that
    are not contiguous are copied first. It may be called from many threads at once, and a set's result does not
    depend, to the bit, on the other sets or on the number of threads.

    Args:
        weights: fp32 on the CPU.
        isa: one of `isas()`, or "auto" for the first of them.
        threads: how many threads may work on one call; a call with little work stays on the caller's.

    Raises:
        UnavailableError: there is no such kernel here.
        ValueError: weights or, on a call, arguments that `check_afg` refuses or that are not fp32 on the CPU.
    """
    available = isas()
    if isa not in ("auto", *available):
        raise UnavailableError(f"C++ kernels: got isa {isa!r}, expected auto, {', '.join(available)} on this machine")
    if threads < 1:
        raise ValueError(f"afg threads: got {threads}, expected at least 1")
    dim, extra = weights.weight.shape[-1], weights.guide_weight
    no_sets = torch.zeros(1, dtype=torch.int64)
    check_afg(torch.empty(0, dim), no_sets, weights, None if extra is None else torch.empty(0, extra.shape[-1]))
    run = _C.AfgKernel(
        _array("weight", weights.weight),
        _array("bias", weights.bias),
        _array("score", weights.score),
        _array("absent", weights.absent),
        None if extra is None else _array("guide_weight", extra),
        isa,
    ).run

    def gather(x: Tensor, offsets: Tensor, guide: Tensor | None = None) -> Tensor:
        try:
            out = torch.empty(max(len(offsets) - 1, 0), dim, dtype=torch.float32, device="cpu")
            guide_array = None if guide is None else _array("guide", guide)
            run(_array("x", x), offsets.contiguous().numpy(), guide_array, out.numpy(), threads)
        except (ValueError, TypeError):
            # The binding found something wrong without costing the good case anything; say it as the reference does.
            check_afg(x, offsets, weights, guide)
            if offsets.device.type != "cpu":
                raise ValueError(f"afg offsets: got {offsets.device}, expected cpu") from None
            raise
        return out

    return gather


def _array(name: str, value: Tensor) -> NDArray[np.float32]:
    if value.dtype != torch.float32 or value.device.type != "cpu":
        raise ValueError(f"afg {name}: got {value.dtype} on {value.device}, expected torch.float32 on cpu")
    return value.detach().contiguous().numpy()


def prepare_group(weights, *, isa="auto", threads=1):  # SHIM
    each = [prepare(w, isa=isa, threads=threads) for w in weights]
    return lambda calls: [g(c.x, c.offsets, c.guide) for g, c in zip(each, calls, strict=True)]
