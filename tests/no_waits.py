"""Shows, without a device, whether code would wait for one: it runs on the meta device, where no value can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

COPIES = (aten._to_copy.default, aten.copy_.default)
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)


class WaitError(RuntimeError):
    """Something that waits for the device."""


class _FromPython(TorchFunctionMode):
    """Refuses tensors made on the device from numbers of Python: torch copies them there and waits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is Tensor.new_tensor and out.device.type == "meta":
            raise WaitError("new_tensor on the device")
        if func in MAKERS and out.device.type == "meta" and not isinstance(args[0], Tensor):
            raise WaitError(f"{func.__name__} on the device")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == "meta":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, (list, np.ndarray)) for part in index):
                raise WaitError("an index of Python's on the device")
        return out


class _Copies(TorchDispatchMode):
    """Refuses copies from the host that do not say `non_blocking`, and what makes them by itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # A number of Python comes as a tensor without dimensions.
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        places = {t.device.type for t in tensors if t.ndim or func in COPIES}
        if isinstance(out, Tensor) and (func in COPIES or len(places) > 1):
            blocking = not (kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))
            if len(places | {out.device.type}) > 1 and blocking:
                raise WaitError(f"{func} between {sorted(places | {out.device.type})}")
        return out


@contextmanager
def no_waits() -> Iterator[None]:
    """Raise (`WaitError`, or what the meta device says) where code inside would wait for tensors on the meta device."""
    with _FromPython(), _Copies():
        yield
