"""Counts what a call asks of a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = func.is_view or func.__name__.split(".")[0] in ("_unsafe_view", "empty", "empty_like", "new_empty")
        if not views:
            self.seen[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> Counter[str]:
    """Operations of a call that read or write memory, by name: on a GPU, each is a launch or a few."""
    with torch.no_grad(), _Count() as count:
        call()
    return count.seen
