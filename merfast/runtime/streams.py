"""A CUDA stream that behaves as if its work ran on the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A non-default stream of one owner, whose work keeps its order with the caller's and with itself.

    What the owner shares between calls (scratch memory, static buffers) is safe under any number of caller's streams,
    because all of its work is on this one. Tensors that the caller's stream made need no `record_stream`: that stream
    waits for the work before it can give their memory to anything else. Nothing here waits on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        """Its cudaStream_t."""
        return int(self.stream.cuda_stream)

    @contextmanager
    def ordered(self) -> Iterator[None]:
        """Make it current; what is queued inside runs after the caller's earlier work, and before the later."""
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            caller.wait_stream(self.stream)
