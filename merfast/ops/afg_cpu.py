"""AFG on the CPU in C++, forward only: fp32 at every vector width, bf16 where the CPU multiplies it.

The contract is `merfast.ops.afg`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merfast.errors import UnavailableError
from merfast.ops.afg import AFGWeights, Gather, GatherGroup, Gathering, check_afg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

try:
    from merfast import _C
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None

DTYPES = (torch.float32, torch.bfloat16)


def isas(dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """Instruction sets this machine can run, best first.

    Args:
        dtype: fp32, of which all are capable: out of `avx512`, `avx2` and `generic`. Or bf16: `avx512bf16` or nothing.

    Raises:
        UnavailableError: merfast was installed without its C++ extension.
        ValueError: another dtype.
    """
    if _missing is not None:
        raise UnavailableError(f"C++ kernels: got {_missing}, expected merfast._C (build: pip install -e .)")
    if dtype not in DTYPES:
        raise ValueError(f"C++ kernels: got {dtype}, expected {' or '.join(map(str, DTYPES))}")
    return tuple(_C.isas(dtype == torch.bfloat16))


def check_isa(isa: str, dtype: torch.dtype = torch.float32) -> None:
    """Raise UnavailableError unless isa is "auto" or one of `isas(dtype)`, of which there is at least one."""
    available = isas(dtype)
    if not available:
        raise UnavailableError(f"C++ kernels in {dtype}: got a CPU without AVX512_BF16, expected one with it")
    if isa not in ("auto", *available):
        expected = f"auto, {', '.join(available)} on this machine"
        raise UnavailableError(f"C++ kernels in {dtype}: got isa {isa!r}, expected {expected}")


def prepare_group(weights: Sequence[AFGWeights], *, isa: str = "auto", threads: int = 1) -> GatherGroup:
    """Pack the weights of gatherings that run side by side, for an instruction set: one call serves all of their sets.

    The gatherings take CPU tensors in the dtype of the weights, and give detached ones in it: gradients need
    `merfast.ops.afg`. Sums, energies and softmax are fp32 in either dtype. The gatherings may differ in shape, and each
    call in the number of rows and sets. Rows that are not contiguous are copied first. The weights are copied: later
    changes to them have no effect. The group may be called from many threads at once, and a set's result does not
    depend, to the bit, on the other sets, on the other gatherings or on the number of threads. Where a call asks for no
    attention, nothing is kept for it.

    Args:
        weights: of each gathering, all fp32 or all bf16, on the CPU. bf16 needs a CPU with AVX512_BF16.
        isa: one of `isas(dtype)`, or "auto" for the first of them.
        threads: how many threads may work on one call; a call with little work stays on the caller's.

    Raises:
        UnavailableError: there is no such kernel here.
        ValueError: weights or, on a call, arguments that `check_afg` refuses, or that are not all fp32 or all bf16 on
            the CPU; a call with more or fewer gatherings than there are weights.
    """
    if not weights:
        raise ValueError("afg weights: got none, expected those of at least one gathering")
    dtype = weights[0].weight.dtype
    check_isa(isa, dtype)
    if threads < 1:
        raise ValueError(f"afg threads: got {threads}, expected at least 1")
    no_sets = torch.zeros(1, dtype=torch.int64)
    for w in weights:
        no_guide = None if w.guide_weight is None else torch.empty(0, w.guide_weight.shape[-1])
        check_afg(torch.empty(0, w.weight.shape[-1]), no_sets, w, no_guide)
    kernel: Any = _C.AfgBf16Kernel if dtype == torch.bfloat16 else _C.AfgKernel
    run = kernel([_arrays(w, dtype) for w in weights], isa).run
    dims = [w.weight.shape[-1] for w in weights]

    def gather(calls: Sequence[Gathering]) -> list[Tensor]:
        if len(calls) != len(weights):
            raise ValueError(f"afg: got {len(calls)} gatherings, expected {len(weights)}")
        try:
            out = [
                torch.empty(max(len(call.offsets) - 1, 0), dim, dtype=dtype, device="cpu")
                for call, dim in zip(calls, dims, strict=True)
            ]
            arguments = [
                (
                    _array("x", call.x, dtype),
                    call.offsets.contiguous().numpy(),
                    None if call.guide is None else _array("guide", call.guide, dtype),
                    _bits(z),
                    None if call.attention is None else call.attention.detach().numpy(),
                )
                for call, z in zip(calls, out, strict=True)
            ]
            run(arguments, threads)
        except (ValueError, TypeError):
            # The binding found something wrong without costing the good case anything; say it as the reference does.
            for call, w in zip(calls, weights, strict=True):
                check_afg(call.x, call.offsets, w, call.guide, call.attention)
                if call.offsets.device.type != "cpu":
                    raise ValueError(f"afg offsets: got {call.offsets.device}, expected cpu") from None
            raise
        return out

    return gather


def prepare(weights: AFGWeights, *, isa: str = "auto", threads: int = 1) -> Gather:
    """One gathering alone; see `prepare_group`."""
    group = prepare_group([weights], isa=isa, threads=threads)

    def gather(x: Tensor, offsets: Tensor, guide: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        return group([Gathering(x, offsets, guide, attention)])[0]

    return gather


def _arrays(weights: AFGWeights, dtype: torch.dtype) -> tuple[Array | None, ...]:
    arrays = [None if w is None else _array(name, w, dtype) for name, w in zip(weights._fields, weights, strict=True)]
    arrays[1:3] = [w.detach().float().contiguous().numpy() for w in (weights.bias, weights.score)]
    return tuple(arrays)


def _array(name: str, value: Tensor, dtype: torch.dtype) -> Array:
    if value.dtype != dtype or value.device.type != "cpu":
        raise ValueError(f"afg {name}: got {value.dtype} on {value.device}, expected {dtype} on cpu")
    return _bits(value.detach().contiguous())


def _bits(value: Tensor) -> Array:
    """NumPy has no bf16: the kernels take its bits."""
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()
