"""The check for waits itself: it sees what waits, and lets pass what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from no_waits import no_waits
from torch import Tensor

from merfast.ops.ragged import moved

WAITING: dict[str, Callable[[Tensor], object]] = {
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool((x > 0).any()),
    "int": lambda x: int(x.sum()),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "boolean index": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.long()),
    "repeat_interleave of rows": lambda x: x.repeat_interleave(x.long()),
    "split": lambda x: torch.split(x, x.long().tolist()),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "as_tensor": lambda x: torch.as_tensor([1.0, 2.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "to": lambda x: torch.ones(3).to(x.device),
    "copy_": lambda x: x.copy_(torch.ones(4)),
    "slice": lambda x: x[:2].copy_(torch.ones(2)),
    "index on the host": lambda x: x[torch.tensor([0, 1])],
    "index": lambda x: x[[0, 1]],
}

PASSING: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).sum() / len(x),
    "where": lambda x: torch.where(x > 0, x, 0.0).clamp(min=1),
    "queued": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "copied": lambda x: x.copy_(torch.ones(4), non_blocking=True),
    "moved": lambda x: moved(torch.ones(4), x.device) + x,
    "sized": lambda x: torch.repeat_interleave(x.long(), output_size=9),
    "gathered": lambda x: x[torch.arange(3, device=x.device)],
    "made": lambda x: torch.zeros(3, device=x.device) + x.new_full((3,), 2.0) + x[:3].fill_(1),
    "on the host": lambda x: [*torch.tensor([1, 2]).tolist(), int(torch.ones(2).sum()), *torch.ones(2)[[0, 1]]],
}


@pytest.mark.parametrize("name", WAITING)
def test_waits_are_seen(name: str) -> None:
    x = torch.ones(4, device="meta")
    with no_waits(), pytest.raises((RuntimeError, TypeError)):
        WAITING[name](x)


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_wait_passes(name: str) -> None:
    x = torch.ones(4, device="meta")
    with no_waits():
        PASSING[name](x)
