"""Masked GroupNorm and GELU on the CPU in C++: fp32, forward only. The contract is `merfast.ops.group_norm_gelu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merfast.ops.afg_cpu import check_isa
from merfast.ops.group_norm_gelu import GroupNormGelu, check_group_norm_gelu

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def prepare(
    weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, *, isa: str = "auto", threads: int = 1
) -> GroupNormGelu:
    """Bind the weights, which are copied: later changes to them have no effect.

    The op takes fp32 CPU tensors and gives a detached contiguous fp32 tensor; x that is not contiguous is copied first.
    A group's frames stay in the cache between its three passes: mean, variance, result. It may be called from many
    threads at once, and a sample's result does not depend, to the bit, on its padding, on the other samples or on the
    number of threads.

    Args:
        weight, bias, groups, eps: see `merfast.ops.group_norm_gelu.group_norm_gelu`; fp32 on the CPU.
        isa: one of `merfast.ops.afg_cpu.isas()`, or "auto" for the first of them.
        threads: how many threads may work on one call; a call with little work stays on the caller's.

    Raises:
        UnavailableError: there is no such kernel here.
        ValueError: weights, options or, on a call, arguments that the reference refuses or that are not fp32 on the
            CPU.
    """
    check_isa(isa)
    if threads < 1:
        raise ValueError(f"group_norm_gelu threads: got {threads}, expected at least 1")
    weight, bias = weight.detach().clone(), bias.detach().clone()
    check_group_norm_gelu(torch.empty(0, weight.numel(), 0), torch.zeros(0).long(), weight, bias, groups, eps)
    from merfast import _C

    run = _C.GroupNormGeluKernel(_array("weight", weight), _array("bias", bias), groups, eps, isa).run

    def group_norm_gelu(x: Tensor, lengths: Tensor) -> Tensor:
        try:
            out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
            run(_array("x", x), lengths.contiguous().numpy(), out.numpy(), threads)
        except (ValueError, TypeError):
            # The binding found something wrong without costing the good case anything; say it as the reference does.
            check_group_norm_gelu(x, lengths, weight, bias, groups, eps)
            if lengths.device.type != "cpu":
                raise ValueError(f"group_norm_gelu lengths: got {lengths.device}, expected cpu") from None
            raise
        return out

    return group_norm_gelu


def _array(name: str, value: Tensor) -> NDArray[np.float32]:
    if value.dtype != torch.float32 or value.device.type != "cpu":
        raise ValueError(f"group_norm_gelu {name}: got {value.dtype} on {value.device}, expected torch.float32 on cpu")
    return value.detach().contiguous().numpy()
