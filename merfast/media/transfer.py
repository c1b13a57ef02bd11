"""Small tensors from a device to the host, waiting for nothing else that runs there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_host(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor's values as an array; of a tensor on the CPU, its own memory.

    The copy is queued on the current stream, and waited for without the GIL.
    """
    if tensor.device.type != "cuda":
        return np.asarray(tensor.cpu().numpy())
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # sleeps: cores that spin do not decode
    arrived.record(torch.cuda.current_stream(tensor.device))
    arrived.synchronize()
    return np.asarray(host.numpy())
