"""CUDA graphs: buckets, padding and cutting on the CPU with a network that shows any leak; capture on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from compiled_networks import AUDIO, DIM, LEAST, PICTURES, STRIDE, Audio, audio_inputs, valid_rows
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from merfast.errors import ConfigError, UnavailableError
from merfast.runtime import cuda_graphs
from merfast.runtime.cuda_graphs import GraphedRunner, bucket_of, length_bucket, pad_into, rows_bucket
from merfast.runtime.spec import Input, Runner, Spec
from merfast.runtime.streams import SideStream

LARGEST = {"batch": 8, "samples": 64}
FILL = {"lengths": LEAST}
ODD = [[12], [13, 64], [40, 12, 33], [64] * 8, [31, 17, 12, 50, 64], [63]]


@given(st.integers(1, 1 << 20))
def test_less_than_a_quarter_of_a_length_is_padding(length: int) -> None:
    bucket = length_bucket(length)
    assert length <= bucket < 1.25 * length or bucket == length
    assert length_bucket(bucket) == bucket
    while bucket % 2 == 0:
        bucket //= 2
    assert bucket < 8


@given(st.integers(1, 1 << 20))
def test_rows_are_less_than_doubled(rows: int) -> None:
    bucket = rows_bucket(rows)
    assert rows <= bucket < 2 * rows
    assert bucket & (bucket - 1) == 0


def test_buckets() -> None:
    assert [rows_bucket(n) for n in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 8, 16]
    assert [length_bucket(n) for n in (1, 7, 8, 9, 11, 17, 400, 64_000, 64_001, 65_537)] == [
        *(1, 7, 8, 10, 12, 20, 448, 65_536, 65_536, 81_920)
    ]
    assert len({length_bucket(n) for n in range(16_000, 16 * 16_000)}) <= 18


@given(st.integers(1, 9), st.integers(1, 70))
def test_a_bucket_holds_its_sizes_and_ends_at_the_largest(batch: int, samples: int) -> None:
    sizes = {"batch": batch, "samples": samples}
    bucket = bucket_of(AUDIO, sizes, LARGEST)
    if batch > 8 or samples > 64:
        assert bucket is None
    else:
        assert bucket is not None
        assert all(sizes[axis] <= bucket[axis] <= LARGEST[axis] for axis in sizes)
        assert bucket["samples"] >= LEAST
        assert bucket_of(AUDIO, bucket, LARGEST) == bucket


def test_a_largest_size_between_buckets_is_one_itself() -> None:
    assert bucket_of(AUDIO, {"batch": 5, "samples": 60}, {"batch": 6, "samples": 62}) == {"batch": 6, "samples": 62}
    assert bucket_of(PICTURES, {"pictures": 3}, {"pictures": 100}) == {"pictures": 4}


def test_padding_overwrites_all_of_a_buffer() -> None:
    buffers = torch.full((4, 20), torch.nan), torch.full((4,), -1)
    samples, lengths = audio_inputs([13, 17])
    pad_into(buffers, (samples, lengths), (0.0, LEAST))
    assert torch.equal(buffers[0][:2, :17], samples)
    assert buffers[0][:2, 17:].eq(0).all()
    assert buffers[0][2:].eq(0).all()
    assert buffers[1].tolist() == [13, 17, LEAST, LEAST]
    whole = audio_inputs([20] * 4)
    pad_into(buffers, whole, (7.0, 7))
    assert all(torch.equal(b, x) for b, x in zip(buffers, whole, strict=True))


class Plain:
    """Stands for the recorder: calls the network again where a graph would be replayed."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.inside, self.recorded = torch.device("cpu"), False, 0

    @contextmanager
    def ordered(self) -> Iterator[None]:
        assert not self.inside
        self.inside = True
        yield
        self.inside = False

    def record(self, run: Runner, buffers: Sequence[Tensor]) -> cuda_graphs._Graph:
        self.recorded += 1
        assert not any(b.isnan().any() for b in buffers)
        output = run(*buffers)

        def replay() -> None:
            assert self.inside
            output.copy_(run(*buffers))

        return cuda_graphs._Graph(buffers, output, replay)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_Recorder", Plain)


class Counted(nn.Module):
    """The network, and the shapes that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Audio()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, samples: Tensor, lengths: Tensor) -> Tensor:
        self.shapes.append(tuple(samples.shape))
        vectors: Tensor = self.network(samples, lengths)
        return vectors


@pytest.mark.parametrize("lengths", ODD)
def test_padded_rows_are_those_of_the_network(plain: None, lengths: list[int]) -> None:
    network = Counted()
    runner = GraphedRunner(network, AUDIO, LARGEST, fill=FILL)
    inputs = audio_inputs(lengths)
    with torch.no_grad():
        expected = network.network(*inputs)
    bucket = bucket_of(AUDIO, AUDIO.sizes(inputs), LARGEST)
    assert bucket is not None
    for _ in range(2):  # the second time, what the first left in the buffers is overwritten
        got = runner(*inputs)
        assert got.shape == (len(lengths), bucket["samples"] // STRIDE, DIM)
        for mine, reference in zip(valid_rows(got, lengths), valid_rows(expected, lengths), strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-6)
        assert got.isfinite().all()
        runner(*audio_inputs([64] * 8, seed=1))
    assert set(network.shapes) == {(bucket["batch"], bucket["samples"]), (8, 64)}


def test_results_are_the_callers(plain: None) -> None:
    runner = GraphedRunner(Audio(), AUDIO, LARGEST, fill=FILL)
    first = runner(*audio_inputs([20, 30], seed=1))
    kept = first.clone()
    second = runner(*audio_inputs([20, 30], seed=2))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    first.zero_()
    assert not first.requires_grad


def test_one_graph_for_each_bucket_and_no_more_than_allowed(plain: None) -> None:
    network = Counted()
    runner = GraphedRunner(network, AUDIO, LARGEST, fill=FILL, graphs=2)
    assert runner.capture({"batch": 2, "samples": 30})
    assert runner.capture({"batch": 2, "samples": 31})
    runner(*audio_inputs([29, 32]))
    runner(*audio_inputs([29, 32, 12]))
    assert runner.buckets == [{"batch": 2, "samples": 32}, {"batch": 4, "samples": 32}]
    assert not runner.capture({"batch": 1, "samples": 12})
    assert not runner.capture({"batch": 9, "samples": 12})
    network.shapes.clear()
    assert runner(*audio_inputs([13])).shape == (1, 13 // STRIDE, DIM)  # no graph is left for it
    assert runner(*audio_inputs([65])).shape == (1, 65 // STRIDE, DIM)  # beyond the largest
    assert runner(*audio_inputs([13] * 9)).shape == (9, 13 // STRIDE, DIM)
    assert network.shapes == [(1, 13), (1, 65), (9, 13)]


def test_in_and_out_of_inference_mode(plain: None) -> None:
    runner = GraphedRunner(Audio(), AUDIO, LARGEST, fill=FILL)
    inputs = audio_inputs([20, 30])
    with torch.inference_mode():
        inside = runner(*inputs)
    outside = runner(*inputs)
    with torch.inference_mode():
        again = runner(*audio_inputs([20, 30]))
    assert torch.equal(inside, outside)
    assert torch.equal(inside, again)


def test_cut_and_other_networks(plain: None) -> None:
    runner = GraphedRunner(
        Audio(), AUDIO, LARGEST, fill=FILL, cut=lambda out, sizes: out[: sizes["batch"], : sizes["samples"] // STRIDE]
    )
    inputs = audio_inputs([13, 29, 17])
    got = runner(*inputs)
    torch.testing.assert_close(got, Audio()(*inputs).detach(), atol=1e-6, rtol=1e-6)
    assert got.is_contiguous()
    pictures = GraphedRunner(lambda x: x.mean((2, 3)), PICTURES, {"pictures": 16})
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(pictures(x), x.mean((2, 3)))
    assert pictures.buckets == [{"pictures": 8}]


def test_threads_get_their_own_results(plain: None) -> None:
    network = Audio()
    runner = GraphedRunner(network, AUDIO, LARGEST, fill=FILL)
    cases = [audio_inputs([12 + i % 50, 20], seed=i) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda inputs: runner(*inputs), cases))
    for inputs, got in zip(cases, results, strict=True):
        with torch.no_grad():
            expected = network(*inputs)
        lengths = inputs[1].tolist()
        for mine, reference in zip(valid_rows(got, lengths), valid_rows(expected, lengths), strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-6)


def test_what_does_not_fit_is_refused(plain: None) -> None:
    with pytest.raises(ConfigError, match=r"largest sizes: got \['batch'\], expected \['batch', 'samples'\]"):
        GraphedRunner(Audio(), AUDIO, {"batch": 8})
    with pytest.raises(ConfigError, match="largest size of 'samples': got 4, expected at least 12"):
        GraphedRunner(Audio(), AUDIO, {"batch": 8, "samples": 4})
    with pytest.raises(ConfigError, match=r"fill: got \['length'\], expected names of \['samples', 'lengths'\]"):
        GraphedRunner(Audio(), AUDIO, LARGEST, fill={"length": 1})
    fixed = Spec((Input("x", torch.float32, (2, "time")),), "y", {"time": 1})
    with pytest.raises(ConfigError, match="input 'x': got 2 rows, expected a number that varies"):
        GraphedRunner(Audio(), fixed, {"time": 8})
    runner = GraphedRunner(Audio(), AUDIO, LARGEST, fill=FILL)
    samples, lengths = audio_inputs([20, 30])
    with pytest.raises(ConfigError, match=r"input 'lengths': got torch\.int32"):
        runner(samples, lengths.int())
    with pytest.raises(ConfigError, match="input 'samples': got meta, expected cpu"):
        runner(samples.to("meta"), lengths)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="CUDA graphs: got device cpu, expected a CUDA GPU that torch sees"):
        GraphedRunner(Audio(), AUDIO, LARGEST, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="CUDA graphs: got device cuda, expected a CUDA GPU that torch sees"):
        GraphedRunner(Audio(), AUDIO, LARGEST)


class Queue:
    """Stands for a CUDA stream, and writes down who waits for whom."""

    said: list[tuple[str, str]]

    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: Queue) -> None:
        self.said.append((self.name, other.name))


def test_side_stream_waits_for_the_caller_and_the_caller_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(Queue, "said", said, raising=False)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Queue("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Queue("caller"))

    @contextmanager
    def current(stream: Queue) -> Iterator[None]:
        said.append(("current", stream.name))
        yield
        said.append(("current", "caller"))

    monkeypatch.setattr(torch.cuda, "stream", current)
    side = SideStream(torch.device("cuda", 0))
    with side.ordered():
        said.append(("work", "side"))
    order = [("side", "caller"), ("current", "side"), ("work", "side"), ("current", "caller"), ("caller", "side")]
    assert said == order
    said.clear()
    with pytest.raises(KeyError), side.ordered():
        raise KeyError
    assert said[-1] == ("caller", "side")


@pytest.mark.cuda
def test_side_stream_keeps_the_order_of_the_default_stream() -> None:
    side = SideStream(torch.device("cuda", torch.cuda.current_device()))
    assert side.handle != torch.cuda.default_stream().cuda_stream
    x, y = torch.zeros(1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")
    for turn in range(1, 5):
        torch.cuda._sleep(20_000_000)
        x.fill_(turn)
        with side.ordered():
            assert torch.cuda.current_stream() == side.stream
            torch.cuda._sleep(20_000_000)
            y.copy_(x)
        z = y + 1
        x.zero_()
        assert z.eq(turn + 1).all()


def on_gpu(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.cuda() for x in inputs)


def check(network: nn.Module, got: Tensor, inputs: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        expected = network.double()(inputs[0].double(), inputs[1])
    network.float()
    lengths = inputs[1].tolist()
    for mine, reference in zip(valid_rows(got, lengths), valid_rows(expected, lengths), strict=True):
        torch.testing.assert_close(mine.double().cpu(), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("lengths", ODD)
def test_graph_agrees_with_the_network(lengths: list[int]) -> None:
    runner = GraphedRunner(Audio().cuda(), AUDIO, LARGEST, fill=FILL)
    for seed in range(3):
        inputs = audio_inputs(lengths, seed=seed)
        got = runner(*on_gpu(inputs))
        assert got.isfinite().all()
        check(Audio(), got, inputs)
    assert len(runner.buckets) == 1


@pytest.mark.cuda
def test_graph_is_replayed_and_the_network_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Counted().cuda()
    runner = GraphedRunner(network, AUDIO, LARGEST, fill=FILL)
    assert runner.capture({"batch": 2, "samples": 30})
    assert network.shapes == [(2, 32), (2, 32)]  # once to get ready, once to capture
    inputs = audio_inputs([20, 30])
    check(Audio(), runner(*on_gpu(inputs)), inputs)
    assert len(network.shapes) == 2
    inputs = audio_inputs([20, 70])
    check(Audio(), runner(*on_gpu(inputs)), inputs)
    assert network.shapes[2:] == [(2, 70)]


@pytest.mark.cuda
def test_graphs_under_threads_and_streams() -> None:
    runner = GraphedRunner(Audio().cuda(), AUDIO, LARGEST, fill=FILL)
    cases = [audio_inputs([12 + i % 50, 20], seed=i) for i in range(64)]
    barrier = threading.Barrier(4)

    def work(part: int) -> list[Tensor]:
        barrier.wait(60)
        # A thread on the default stream, the others on their own.
        with torch.cuda.stream(None if part == 0 else torch.cuda.Stream()):
            results = [runner(*(x.cuda(non_blocking=True) for x in case)) * 1 for case in cases[part::4]]
            return [r.cpu() for r in results]

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(work, range(4)))
    for part, results in enumerate(parts):
        for case, got in zip(cases[part::4], results, strict=True):
            check(Audio(), got, case)


CANNOT = """
import torch
from compiled_networks import AUDIO, audio_inputs
from merfast.errors import UnavailableError
from merfast.runtime.cuda_graphs import GraphedRunner

runner = GraphedRunner(lambda samples, lengths: samples[:, : int(lengths.max())], AUDIO, {"batch": 8, "samples": 64})
try:
    runner(*(x.cuda() for x in audio_inputs([20, 30])))
except UnavailableError as error:
    print(torch.cuda.current_stream() == torch.cuda.default_stream(), error)
"""


@pytest.mark.cuda
def test_a_network_that_waits_for_the_gpu_cannot_be_captured() -> None:
    # In a process of its own: torch may not allocate as before after a capture that failed.
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    run = subprocess.run(
        [sys.executable, "-c", CANNOT], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert run.stdout.startswith("True CUDA graphs: the network cannot be captured: "), run.stderr
