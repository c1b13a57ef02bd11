"""CUDA streams: one that behaves as if its work ran on the caller's, one that its callers do not wait for, and one of a
stage's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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


class Arriving:
    """A tensor on its way to the host's memory."""

    def __init__(self, tensor: Tensor, event: torch.cuda.Event | None = None) -> None:
        self._tensor, self._event = tensor, event

    def wait(self) -> Tensor:
        """The tensor, once it is there; what was queued after it is not waited for."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


class WorkStream:
    """A non-default stream of one owner, on which work is queued, and from which nothing is waited for but results.

    It begins after what the caller's stream has when it is made: weights, for instance. Threads take turns in queueing:
    one's work is not torn apart by another's. On the CPU there is neither a stream nor a turn to take, and work is done
    when it is submitted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        self._turn = threading.Lock()
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.stream.wait_stream(torch.cuda.current_stream(device))

    def submit(self, work: Callable[[], Tensor]) -> Arriving:
        """Queue work, and a copy of its result to pinned memory.

        Args:
            work: queues operations on the current stream, and has it wait for what they read from other streams.
        """
        if self.stream is None:
            return Arriving(work())
        with self._turn, torch.cuda.stream(self.stream):
            result = work().to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self.stream)
        return Arriving(result, event)


def on_own_stream(stage: Iterator[T], device: torch.device) -> Iterator[T]:
    """Run a stage with a CUDA stream of its own; between its steps the caller's is the current one, as before.

    The stage sees to it that what it gives out can be read elsewhere; nothing here waits. On the CPU it is just run.
    """
    if device.type != "cuda":
        yield from stage
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    try:
        while True:
            with torch.cuda.stream(stream):
                try:
                    item = next(stage)
                except StopIteration:
                    return
            yield item
    finally:
        if isinstance(stage, Generator):
            stage.close()
