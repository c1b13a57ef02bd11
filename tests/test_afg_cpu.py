"""The C++ AFG against the reference: error, invariance, threads, and what the binding refuses."""

from __future__ import annotations

import ctypes
import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_afg import make
from torch import Tensor

from merfast import _C
from merfast.ops import afg_cpu
from merfast.ops.afg import AFGWeights, Gathering, afg

BF16 = pytest.param(
    "avx512bf16",
    marks=pytest.mark.skipif(not afg_cpu.isas(torch.bfloat16), reason="this CPU has no AVX512_BF16"),
)
each_fp32_isa = pytest.mark.parametrize("isa", afg_cpu.isas())
each_isa = pytest.mark.parametrize("isa", [*afg_cpu.isas(), BF16])
Inputs = tuple[Tensor, Tensor, AFGWeights, Tensor | None]


def dtype_of(isa: str) -> torch.dtype:
    return torch.bfloat16 if isa.endswith("bf16") else torch.float32


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    x, offsets, weights, guide = inputs
    converted = AFGWeights(*[w if w is None else w.to(dtype) for w in weights])
    return x.to(dtype), offsets, converted, None if guide is None else guide.to(dtype)


def bits(value: Tensor) -> np.ndarray:
    """NumPy has no bf16: the kernels take its bits."""
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()


def kernel_of(weights: AFGWeights, isa: str) -> Any:
    """Straight from the binding; weights of the kernel's dtype."""
    arrays = [None if w is None else bits(w) for w in weights]
    arrays[1:3] = [weights.bias.float().numpy(), weights.score.float().numpy()]
    kernel = _C.AfgBf16Kernel if weights.weight.dtype == torch.bfloat16 else _C.AfgKernel
    return kernel([tuple(arrays)], isa)  # type: ignore[list-item]


def run(kernel: Any, x: Tensor, offsets: Tensor, guide: Tensor | None = None, threads: int = 1) -> Tensor:
    """Into an output full of NaN."""
    out = torch.full((len(offsets) - 1, x.shape[1]), torch.nan, dtype=x.dtype)
    kernel.run([(bits(x), offsets.numpy(), None if guide is None else bits(guide), bits(out), None)], threads)
    return out


def check(isa: str, inputs: Inputs, threads: int = 1) -> None:
    """Both errors are against fp64 on the same rounded inputs; the kernel's may be twice the eager one plus a floor.

    In bf16 the kernel rounds once, at the end, to within half of the last digit; what comes before is fp32.
    """
    x, offsets, weights, guide = inputs = cast(inputs, dtype_of(isa))
    exact = afg(*cast(inputs, torch.float64))
    got = run(kernel_of(weights, isa), x, offsets, guide, threads).double()
    if not got.numel():
        return
    eager_error = (afg(*inputs).double() - exact).abs().max().item()
    error = (got - exact).abs().max().item()
    floor = 4e-7 * max(1.0, exact.abs().max().item())
    if dtype_of(isa) == torch.bfloat16:
        rounding = torch.finfo(torch.bfloat16).eps / 2 * exact.abs()
        beyond = ((got - exact).abs() - rounding).max().item()
        assert beyond <= 10 * floor, f"{isa}: error {beyond:.2e} beyond the last rounding"
        floor += rounding.max().item()
    assert error <= 2 * eager_error + floor, f"{isa}: error {error:.2e}, eager {eager_error:.2e}, floor {floor:.1e}"


@each_isa
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 5, 17, 63, 64, 65, 100, 129, 257]), max_size=9),
    heads=st.integers(1, 9),
    part=st.integers(1, 70),
    width=st.integers(1, 140),
    guide_dim=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_error(isa: str, lengths: list[int], heads: int, part: int, width: int, guide_dim: int, seed: int) -> None:
    check(isa, make(lengths, heads * part, width, heads, guide_dim, seed))


@each_isa
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("lengths", "dim", "width", "heads", "guide_dim"),
    [
        ([5000], 129, 65, 3, 0),
        ([700, 0, 256, 257, 1, 512], 330, 77, 5, 33),
        ([3] * 50, 128, 64, 4, 128),
        ([40, 3], 1031, 256, 1, 1031),
        ([300], 5001, 17, 3, 0),
    ],
    ids=["long", "around-spans", "tiny-sets", "wide", "wider-than-a-block"],
)
def test_error_on_shapes_of_interest(
    isa: str, lengths: list[int], dim: int, width: int, heads: int, guide_dim: int, threads: int
) -> None:
    check(isa, make(lengths, dim, width, heads, guide_dim), threads)


@each_isa
def test_result_does_not_depend_on_the_batch_or_the_threads(isa: str) -> None:
    lengths = [1, 7, 0, 300, 64, 2000, 3, 0, 65, 513]
    x, offsets, weights, guide = cast(make(lengths, 192, 130, 3, 20), dtype_of(isa))
    assert guide is not None
    kernel = kernel_of(weights, isa)
    together = run(kernel, x, offsets, guide)
    for threads in (2, 3, 8):
        assert torch.equal(run(kernel, x, offsets, guide, threads), together)
    for b, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        alone = run(kernel, x[first:last], torch.tensor([0, last - first]), guide[b : b + 1])
        assert torch.equal(alone[0], together[b]), f"set {b} of {lengths[b]} rows"


GROUPS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0, 1, 2, 17, 64, 65, 257, 600]), max_size=5),
        st.integers(1, 5),  # heads
        st.integers(1, 40),  # columns of a head
        st.integers(1, 90),  # A
        st.sampled_from([0, 0, 1, 24]),  # G
    ),
    min_size=1,
    max_size=5,
)


@each_isa
@settings(max_examples=25, deadline=None)
@given(shapes=GROUPS, threads=st.sampled_from([1, 2, 5]))
def test_group_gives_what_each_gathering_gives(isa: str, shapes: list[Any], threads: int) -> None:
    """To the bit, whatever stands beside it; rows, sets, shapes and guides differ within a group."""
    inputs = []
    for seed, (lengths, heads, part, width, guide_dim) in enumerate(shapes):
        made = make(lengths, heads * part, width, heads, guide_dim, seed)
        x, offsets, weights, guide = cast(made, dtype_of(isa))
        inputs.append((Gathering(x, offsets, guide), weights))
    group = afg_cpu.prepare_group([weights for _, weights in inputs], isa=isa, threads=threads)
    together = group([call for call, _ in inputs])
    assert len(together) == len(inputs)
    for got, (call, weights) in zip(together, inputs, strict=True):
        assert torch.equal(got, run(kernel_of(weights, isa), *call[:3]))


@each_isa
def test_one_kernel_in_many_threads(isa: str) -> None:
    _, _, weights, _ = cast(make([1], 192, 65, 3), dtype_of(isa))
    kernel = kernel_of(weights, isa)
    work = []
    for seed in range(8):
        x, offsets, _, _ = cast(make([seed, 50 * seed, 1700], 192, 65, 3, seed=seed), dtype_of(isa))
        work.append((x, offsets))
    expected = [run(kernel, *w) for w in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda w: run(kernel, *w, threads=2), work), expected, strict=True):
                assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("rows", "count", "threads", "helped"),
    [(4000, 1, 2, True), (4000, 1, 1, False), (100, 1, 2, False), (100, 40, 2, True)],
    ids=["large", "not-asked", "small", "small-but-many"],
)
def test_threads_help_when_asked_and_worth_it(rows: int, count: int, threads: int, helped: bool) -> None:
    """Processor time that the process used and the calling thread did not is the helpers'."""
    x, offsets, weights, _ = cast(make([rows], 192, 130, 3), torch.float32)
    group = afg_cpu.prepare_group([weights] * count, isa="generic", threads=threads)
    calls = [Gathering(x, offsets)] * count
    total = own = 0.0
    for _ in range(400_000 // (rows * count)):
        process, thread = time.process_time(), time.thread_time()
        group(calls)
        own += time.thread_time() - thread
        total += time.process_time() - process
    assert (total - own > 0.2 * own) == helped


def before_forbidden_page(values: Tensor) -> np.ndarray:
    """The values (any bytes before them) in memory that ends where touching it kills the process."""
    given = bits(values)
    page, size = mmap.PAGESIZE, given.nbytes
    body = (size + page - 1) // page * page
    buffer = mmap.mmap(-1, body + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + body), ctypes.c_size_t(page), 0) == 0
    array = np.frombuffer(buffer, given.dtype, given.size, body - size).reshape(given.shape)
    array[:] = given
    return array


@each_isa
@pytest.mark.parametrize("part", [1, 3, 16, 19, 70])
def test_nothing_beyond_the_ends_is_touched(isa: str, part: int) -> None:
    """AddressSanitizer does not see masked loads and stores; a forbidden page does."""
    x, offsets, weights, guide = cast(make([70, 0, 300, 1], 3 * part, 17, 3, 5), dtype_of(isa))
    assert guide is not None
    kernel = kernel_of(weights, isa)
    out = before_forbidden_page(torch.full((4, 3 * part), torch.nan, dtype=x.dtype))
    attention = before_forbidden_page(torch.full((len(x), 3), torch.nan))
    kernel.run([(before_forbidden_page(x), offsets.numpy(), before_forbidden_page(guide), out, attention)], 1)
    assert np.array_equal(out, bits(run(kernel, x, offsets, guide)))
    assert np.isfinite(attention).all()


@each_isa
def test_empty_sets_get_absent_and_single_rows_come_back(isa: str) -> None:
    x, offsets, weights, _ = cast(make([0, 1, 0, 0, 1], 21, 5, 3), dtype_of(isa))
    out = run(kernel_of(weights, isa), x, offsets)
    assert torch.equal(out[[0, 2, 3]], weights.absent.expand(3, -1))
    assert torch.equal(out[[1, 4]], x)


@each_isa
def test_one_huge_energy_takes_all(isa: str) -> None:
    """tanh saturates at exactly +-1, so energies are exactly +-1e4 and all but one row weigh exactly nothing."""
    x, offsets, weights, _ = cast(make([300, 70], 24, 1, 2), dtype_of(isa))
    x[:, 0] = -50.0
    x[[123, 345], 0] = 50.0
    weights.weight.copy_(torch.eye(1, 24))
    weights.bias.zero_()
    weights.score.fill_(1e4)
    assert torch.equal(run(kernel_of(weights, isa), x, offsets), x[[123, 345]])


@each_isa
@pytest.mark.parametrize("energy", [-1e4, 1e4, 0.0])
def test_equal_energies_average(isa: str, energy: float) -> None:
    x, offsets, weights, _ = cast(make([300, 70], 24, 1, 2), dtype_of(isa))
    weights.weight.zero_()
    weights.bias.fill_(1e30)
    weights.score.fill_(energy)
    mean = torch.stack([part.double().mean(0) for part in x.split([300, 70])])
    rounding = torch.finfo(x.dtype).eps / 2
    got = run(kernel_of(weights, isa), x, offsets).double()
    torch.testing.assert_close(got, mean, rtol=rounding, atol=4e-7)


@each_fp32_isa
def test_tanh(isa: str) -> None:
    """A row of energy tanh(v) beside a row of energy 0: a column of 1 and 0 gives sigmoid(tanh(v))."""
    value = torch.cat([torch.linspace(-10, 10, 4001), torch.logspace(-8, 30, 500), -torch.logspace(-8, 30, 500)])
    x = torch.zeros(2 * len(value), 2)
    x[::2, 0], x[::2, 1] = value, 1.0
    weights = AFGWeights(torch.tensor([[1.0, 0.0]]), torch.zeros(1), torch.ones(1, 1), torch.zeros(2))
    out = run(kernel_of(weights, isa), x, torch.arange(0, len(x) + 1, 2))
    exact = torch.sigmoid(torch.tanh(value.double()))
    assert (out[:, 1] - exact).abs().max() < 2e-7


@each_isa
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_stay_in_their_set(isa: str, bad: float) -> None:
    x, offsets, weights, _ = cast(make([70, 300, 3, 64], 39, 17, 3), dtype_of(isa))
    kernel = kernel_of(weights, isa)
    clean = run(kernel, x, offsets)
    x[[100, 371], 5] = bad
    out = run(kernel, x, offsets)
    assert torch.equal(out[[0, 3]], clean[[0, 3]])
    expected = afg(*cast((x, offsets, weights, None), torch.float32))
    torch.testing.assert_close(out, expected.to(x.dtype), equal_nan=True)


@each_isa
@pytest.mark.parametrize("lengths", [[70, 0, 300], [5, 1], [0, 0]])
def test_rows_after_the_last_set_belong_to_none(isa: str, lengths: list[int]) -> None:
    x, offsets, weights, guide = cast(make(lengths, 39, 17, 3, 5), dtype_of(isa))
    kernel = kernel_of(weights, isa)
    beyond = torch.cat([x, torch.full((130, 39), torch.nan, dtype=x.dtype)])
    assert torch.equal(run(kernel, beyond, offsets, guide, threads=2), run(kernel, x, offsets, guide))
