"""AFG on the CPU in C++: fp32, forward only, every vector width. The contract is `merfast.ops.afg`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merfast.errors import UnavailableError
from merfast.ops.afg import AFGWeights, Gather, GatherGroup, Gathering, check_afg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

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


def prepare_group(weights: Sequence[AFGWeights], *, isa: str = "auto", threads: int = 1) -> GatherGroup:
    """Pack the weights of gatherings that run side by side, for an instruction set: one call serves all of their sets.

    The gatherings take fp32 CPU tensors and give detached fp32 tensors: gradients need `merfast.ops.afg`. They may
    differ in shape, and each call in the number of rows and sets. Rows that are not contiguous are copied first. The
    weights are copied: later changes to them have no effect. The group may be called from many threads at once, and a
    set's result does not depend, to the bit, on the other sets, on the other gatherings or on the number of threads.

    Args:
        weights: of each gathering, fp32 on the CPU.
        isa: one of `isas()`, or "auto" for the first of them.
        threads: how many threads may work on one call; a call with little work stays on the caller's.

    Raises:
        UnavailableError: there is no such kernel here.
        ValueError: weights or, on a call, arguments that `check_afg` refuses or that are not fp32 on the CPU; a call
            with more or fewer gatherings than there are weights.
    """
    available = isas()
    if isa not in ("auto", *available):
        raise UnavailableError(f"C++ kernels: got isa {isa!r}, expected auto, {', '.join(available)} on this machine")
    if threads < 1:
        raise ValueError(f"afg threads: got {threads}, expected at least 1")
    if not weights:
        raise ValueError("afg weights: got none, expected those of at least one gathering")
    no_sets = torch.zeros(1, dtype=torch.int64)
    for w in weights:
        no_guide = None if w.guide_weight is None else torch.empty(0, w.guide_weight.shape[-1])
        check_afg(torch.empty(0, w.weight.shape[-1]), no_sets, w, no_guide)
    run = _C.AfgKernel([_arrays(w) for w in weights], isa).run
    dims = [w.weight.shape[-1] for w in weights]

    def gather(calls: Sequence[Gathering]) -> list[Tensor]:
        if len(calls) != len(weights):
            raise ValueError(f"afg: got {len(calls)} gatherings, expected {len(weights)}")
        try:
            out = [
                torch.empty(max(len(call.offsets) - 1, 0), dim, dtype=torch.float32, device="cpu")
                for call, dim in zip(calls, dims, strict=True)
            ]
            arguments = [
                (
                    _array("x", call.x),
                    call.offsets.contiguous().numpy(),
                    None if call.guide is None else _array("guide", call.guide),
                    z.numpy(),
                )
                for call, z in zip(calls, out, strict=True)
            ]
            run(arguments, threads)
        except (ValueError, TypeError):
            # The binding found something wrong without costing the good case anything; say it as the reference does.
            for call, w in zip(calls, weights, strict=True):
                check_afg(call.x, call.offsets, w, call.guide)
                if call.offsets.device.type != "cpu":
                    raise ValueError(f"afg offsets: got {call.offsets.device}, expected cpu") from None
            raise
        return out

    return gather


def prepare(weights: AFGWeights, *, isa: str = "auto", threads: int = 1) -> Gather:
    """One gathering alone; see `prepare_group`."""
    group = prepare_group([weights], isa=isa, threads=threads)

    def gather(x: Tensor, offsets: Tensor, guide: Tensor | None = None) -> Tensor:
        return group([Gathering(x, offsets, guide)])[0]

    return gather


def _arrays(weights: AFGWeights) -> tuple[Floats, Floats, Floats, Floats, Floats | None]:
    weight, bias, score, absent = (_array(name, getattr(weights, name)) for name in AFGWeights._fields[:4])
    extra = weights.guide_weight
    return weight, bias, score, absent, None if extra is None else _array("guide_weight", extra)


def _array(name: str, value: Tensor) -> Floats:
    if value.dtype != torch.float32 or value.device.type != "cpu":
        raise ValueError(f"afg {name}: got {value.dtype} on {value.device}, expected torch.float32 on cpu")
    return value.detach().contiguous().numpy()
