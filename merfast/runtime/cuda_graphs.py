"""CUDA graphs of a network, one for each bucket of sizes: a launch for a whole network, where launches cost the time.

Inputs are padded to the next bucket. Rows go up to a power of two, lengths to a number with three significant bits (4,
5, 6, 7 times a power of two): rows are less than doubled and a length grows by less than a quarter, so that the network
sees less than 2.5 times the numbers, 1.25 times for a single row. It has to give the same rows whatever is beside them
and whatever follows their lengths.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merfast.errors import ConfigError, UnavailableError
from merfast.runtime.profiles import check_largest, rows_axis
from merfast.runtime.spec import Runner, Spec
from merfast.runtime.streams import SideStream

Bucket = Callable[[int], int]
"""Size of an axis -> size to pad it to."""

Cut = Callable[[Tensor, Mapping[str, int]], Tensor]
"""Output for a bucket, sizes of the inputs before padding -> what of it is theirs, as a view."""

GRAPHS = 16
"""Buckets that get a graph, unless said otherwise; each has its nodes and its output in the GPU's memory."""


def rows_bucket(rows: int) -> int:
    """Next power of two: less than `rows` are added."""
    return 1 << (rows - 1).bit_length()


def length_bucket(length: int) -> int:
    """Next number with three significant bits: less than a quarter of `length` is added."""
    step = 1 << max(0, length.bit_length() - 3)
    return -(-length // step) * step


def bucket_of(
    spec: Spec, sizes: Mapping[str, int], largest: Mapping[str, int], length: Bucket = length_bucket
) -> dict[str, int] | None:
    """Sizes to pad to, at least the spec's least and at most `largest`; None for sizes beyond that."""
    if any(size > largest[axis] for axis, size in sizes.items()):
        return None
    rows = rows_axis(spec)
    wanted = {axis: max(size, spec.least[axis]) for axis, size in sizes.items()}
    return {
        axis: min(largest[axis], rows_bucket(size) if axis == rows else length(size)) for axis, size in wanted.items()
    }


def pad_into(buffers: Sequence[Tensor], inputs: Sequence[Tensor], fill: Sequence[float]) -> None:
    """Copy each input to the beginning of every axis of its buffer, and fill the rest of the buffer."""
    for buffer, x, value in zip(buffers, inputs, fill, strict=True):
        if buffer.shape != x.shape:
            buffer.fill_(value)
        buffer[tuple(slice(0, size) for size in x.shape)].copy_(x)


class GraphedRunner:
    """Runs another runner through CUDA graphs; a `Runner` itself. Safe under several threads and CUDA streams.

    A bucket's graph is captured when it is first needed, or by `capture`, while other calls wait. The first `graphs`
    buckets get one; sizes of other buckets, and larger ones than `largest`, go to the other runner as they are. Weights
    must stay where they are.

    The output has the rows of the inputs. Its other axes are those of the bucket, unless `cut` says otherwise: what
    lies past a row's own length is for the caller to ignore, and as many steps as without a graph are always there.

    Args:
        run: the network, on a GPU: torch operations alone, whose sizes follow from those of the inputs, and which never
            wait for the GPU.
        spec: its inputs; the first axis of the first one counts rows, as does that of the output.
        largest: name of each axis that varies -> size of the largest bucket.
        fill: name of an input -> what its padding is, 0 by default. Where lengths are an input, give the least that
            makes sense, so that no row is empty.
        device: where inputs are.
        length: buckets of the axes other than the rows.
        cut: what of a bucket's output belongs to the inputs.
        graphs: how many buckets get a graph.

    Raises:
        ConfigError: sizes or fill for what the spec does not have, or a largest size below the least.
        UnavailableError: no GPU.
    """

    def __init__(
        self,
        run: Runner,
        spec: Spec,
        largest: Mapping[str, int],
        *,
        fill: Mapping[str, float] | None = None,
        device: torch.device | str = "cuda",
        length: Bucket = length_bucket,
        cut: Cut | None = None,
        graphs: int = GRAPHS,
    ) -> None:
        self.run, self.spec, self.largest, self.limit = run, spec, dict(largest), graphs
        check_largest(spec, largest)
        self._rows, self._length = rows_axis(spec), length
        if unknown := set(fill or {}) - {i.name for i in spec.inputs}:
            raise ConfigError(f"fill: got {sorted(unknown)}, expected names of {[i.name for i in spec.inputs]}")
        self.fill = tuple((fill or {}).get(i.name, 0) for i in spec.inputs)
        self.cut = cut or self._cut_rows
        self._recorder = _Recorder(torch.device(device))
        self.device = self._recorder.device
        # One buffer for all buckets: only one of them is at work at a time.
        with torch.inference_mode(False):  # to be written to in any mode
            self._flat = [
                torch.zeros(math.prod(i.sized(largest)), dtype=i.dtype, device=self.device) for i in spec.inputs
            ]
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._lock = threading.Lock()

    @property
    def buckets(self) -> list[dict[str, int]]:
        """Sizes of the buckets that have a graph, the oldest first."""
        return [dict(zip(self.largest, key, strict=True)) for key in list(self._graphs)]

    def capture(self, sizes: Mapping[str, int]) -> bool:
        """Capture the graph for given sizes, unless it is there; False if they get none.

        Raises:
            UnavailableError: the network does something that cannot be captured.
        """
        bucket = bucket_of(self.spec, sizes, self.largest, self._length)
        with self._lock:
            return bucket is not None and self._graph(bucket) is not None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Inputs of the spec -> its output.

        Raises:
            ConfigError: inputs that are not the spec's, or on another device.
            UnavailableError: the network does something that cannot be captured.
        """
        sizes = self.spec.sizes(inputs)
        for i, x in zip(self.spec.inputs, inputs, strict=True):
            if x.device != self.device:
                raise ConfigError(f"input {i.name!r}: got {x.device}, expected {self.device}")
        bucket = bucket_of(self.spec, sizes, self.largest, self._length)
        if bucket is not None:
            with self._lock, torch.no_grad():
                graph = self._graph(bucket)
                if graph is not None:
                    result = self.cut(graph.output, sizes)
                    out = torch.empty(result.shape, dtype=result.dtype, device=result.device)
                    with self._recorder.ordered():
                        pad_into(graph.buffers, inputs, self.fill)
                        graph.replay()
                        out.copy_(result)
                    return out
        return self.run(*inputs)

    def _graph(self, bucket: Mapping[str, int]) -> _Graph | None:
        key = tuple(bucket[axis] for axis in self.largest)
        if key not in self._graphs and len(self._graphs) < self.limit:
            shapes = [i.sized(bucket) for i in self.spec.inputs]
            buffers = [flat[: math.prod(s)].view(s) for flat, s in zip(self._flat, shapes, strict=True)]
            with self._recorder.ordered():
                for buffer, value in zip(buffers, self.fill, strict=True):
                    buffer.fill_(value)
            with torch.inference_mode(False), torch.no_grad():  # inference mode too has an end, graphs have none
                self._graphs[key] = self._recorder.record(self.run, buffers)
        return self._graphs.get(key)

    def _cut_rows(self, output: Tensor, sizes: Mapping[str, int]) -> Tensor:
        return output[: sizes[self._rows]]


@dataclass
class _Graph:
    """A captured network: `replay` queues it, which reads `buffers` and writes `output`."""

    buffers: Sequence[Tensor]
    output: Tensor
    replay: Callable[[], None]


class _Recorder:
    """Captures graphs on a stream of its own, on which they also run.

    They share their memory: only one is at work at a time, and only its output outlasts it.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda" or not torch.cuda.is_available():
            raise UnavailableError(f"CUDA graphs: got device {device}, expected a CUDA GPU that torch sees")
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._stream = SideStream(self.device)
        self.ordered = self._stream.ordered
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Runner, buffers: Sequence[Tensor]) -> _Graph:
        graph, stream = torch.cuda.CUDAGraph(), self._stream.stream
        with self.ordered():
            run(*buffers)  # libraries get ready and kernels compiled, which cannot be captured
        # The outer stream context is for a capture that fails: torch then leaves its stream current. Other threads may
        # go on allocating: only this one's calls are checked.
        caller = torch.cuda.current_stream(self.device)
        capture = torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(caller), capture:
                output = run(*buffers)
        except RuntimeError as error:
            raise UnavailableError(f"CUDA graphs: the network cannot be captured: {error}") from error
        return _Graph(buffers, output, graph.replay)
