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
from test_afg import BAD, make
from torch import Tensor

from merfast import _C
from merfast.errors import UnavailableError
from merfast.ops import afg_cpu
from merfast.ops.afg import AFGWeights, Gathering, afg

F = np.float32
ISAS = afg_cpu.isas()
each_isa = pytest.mark.parametrize("isa", ISAS)


def single(weights: AFGWeights) -> AFGWeights:
    return AFGWeights(*[w if w is None else w.float() for w in weights])


def double(weights: AFGWeights) -> AFGWeights:
    return AFGWeights(*[w if w is None else w.double() for w in weights])


def kernel_of(weights: AFGWeights, isa: str) -> _C.AfgKernel:
    return _C.AfgKernel([tuple(w if w is None else w.numpy() for w in weights)], isa)  # type: ignore[arg-type]


def run(kernel: _C.AfgKernel, x: Tensor, offsets: Tensor, guide: Tensor | None = None, threads: int = 1) -> Tensor:
    """Straight through the binding, into an output full of NaN."""
    out = np.full((len(offsets) - 1, x.shape[1]), np.nan, np.float32)
    kernel.run([(x.numpy(), offsets.numpy(), None if guide is None else guide.numpy(), out)], threads)
    return torch.from_numpy(out)


def check(isa: str, x: Tensor, offsets: Tensor, weights: AFGWeights, guide: Tensor | None, threads: int = 1) -> None:
    """Both errors are against fp64 on the same fp32 inputs; the kernel's may be twice the eager one plus a floor."""
    x, weights, guide = x.float(), single(weights), None if guide is None else guide.float()
    exact = afg(x.double(), offsets, double(weights), None if guide is None else guide.double())
    got = run(kernel_of(weights, isa), x, offsets, guide, threads)
    if not got.numel():
        return
    eager_error = (afg(x, offsets, weights, guide) - exact).abs().max().item()
    error = (got - exact).abs().max().item()
    floor = 4e-7 * max(1.0, exact.abs().max().item())
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
    check(isa, *make(lengths, heads * part, width, heads, guide_dim, seed))


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
    check(isa, *make(lengths, dim, width, heads, guide_dim), threads)


@each_isa
def test_result_does_not_depend_on_the_batch_or_the_threads(isa: str) -> None:
    lengths = [1, 7, 0, 300, 64, 2000, 3, 0, 65, 513]
    x, offsets, weights, guide = make(lengths, 192, 130, 3, 20)
    assert guide is not None
    x, guide, kernel = x.float(), guide.float(), kernel_of(single(weights), isa)
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
        x, offsets, weights, guide = make(lengths, heads * part, width, heads, guide_dim, seed)
        inputs.append((Gathering(x.float(), offsets, None if guide is None else guide.float()), single(weights)))
    group = afg_cpu.prepare_group([weights for _, weights in inputs], isa=isa, threads=threads)
    together = group([call for call, _ in inputs])
    assert len(together) == len(inputs)
    for got, (call, weights) in zip(together, inputs, strict=True):
        assert torch.equal(got, run(kernel_of(weights, isa), *call))


@each_isa
def test_one_kernel_in_many_threads(isa: str) -> None:
    _, _, weights, _ = make([1], 192, 65, 3)
    kernel = kernel_of(single(weights), isa)
    work = []
    for seed in range(8):
        x, offsets, _, _ = make([seed, 50 * seed, 1700], 192, 65, 3, seed=seed)
        work.append((x.float(), offsets))
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
    x, offsets, weights, _ = make([rows], 192, 130, 3)
    group = afg_cpu.prepare_group([single(weights)] * count, isa="generic", threads=threads)
    calls = [Gathering(x.float(), offsets)] * count
    total = own = 0.0
    for _ in range(400_000 // (rows * count)):
        process, thread = time.process_time(), time.thread_time()
        group(calls)
        own += time.thread_time() - thread
        total += time.process_time() - process
    assert (total - own > 0.2 * own) == helped


def before_forbidden_page(values: Tensor) -> np.ndarray:
    """The values (fp32, any bytes before them) in memory that ends where touching it kills the process."""
    page, size = mmap.PAGESIZE, 4 * values.numel()
    body = (size + page - 1) // page * page
    buffer = mmap.mmap(-1, body + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + body), ctypes.c_size_t(page), 0) == 0
    array = np.frombuffer(buffer, F, values.numel(), body - size).reshape(values.shape)
    array[:] = values.numpy()
    return array


@each_isa
@pytest.mark.parametrize("part", [1, 3, 16, 19, 70])
def test_nothing_beyond_the_ends_is_touched(isa: str, part: int) -> None:
    """AddressSanitizer does not see masked loads and stores; a forbidden page does."""
    x, offsets, weights, guide = make([70, 0, 300, 1], 3 * part, 17, 3, 5)
    assert guide is not None
    x, guide, kernel = x.float(), guide.float(), kernel_of(single(weights), isa)
    out = before_forbidden_page(torch.full((4, 3 * part), torch.nan))
    kernel.run([(before_forbidden_page(x), offsets.numpy(), before_forbidden_page(guide), out)], 1)
    assert torch.equal(torch.from_numpy(out), run(kernel, x, offsets, guide))


@each_isa
def test_empty_sets_get_absent_and_single_rows_come_back(isa: str) -> None:
    x, offsets, weights, _ = make([0, 1, 0, 0, 1], 21, 5, 3)
    weights = single(weights)
    out = run(kernel_of(weights, isa), x.float(), offsets)
    assert torch.equal(out[[0, 2, 3]], weights.absent.expand(3, -1))
    assert torch.equal(out[[1, 4]], x.float())


@each_isa
def test_one_huge_energy_takes_all(isa: str) -> None:
    """tanh saturates at exactly +-1, so energies are exactly +-1e4 and all but one row weigh exactly nothing."""
    x, offsets, _, _ = make([300, 70], 24, 1, 2)
    x = x.float()
    x[:, 0] = -50.0
    x[[123, 345], 0] = 50.0
    direction = torch.zeros(1, 24)
    direction[0, 0] = 1.0
    weights = AFGWeights(direction, torch.zeros(1), torch.full((2, 1), 1e4), torch.zeros(24))
    assert torch.equal(run(kernel_of(weights, isa), x, offsets), x[[123, 345]])


@each_isa
@pytest.mark.parametrize("energy", [-1e4, 1e4, 0.0])
def test_equal_energies_average(isa: str, energy: float) -> None:
    x, offsets, _, _ = make([300, 70], 24, 1, 2)
    weights = AFGWeights(torch.zeros(1, 24), torch.full((1,), 1e30), torch.full((2, 1), energy), torch.zeros(24))
    mean = torch.stack([part.mean(0) for part in x.split([300, 70])])
    torch.testing.assert_close(run(kernel_of(weights, isa), x.float(), offsets).double(), mean, rtol=0, atol=4e-7)


@each_isa
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
    x, offsets, weights, _ = make([70, 300, 3, 64], 39, 17, 3)
    x, weights = x.float(), single(weights)
    kernel = kernel_of(weights, isa)
    clean = run(kernel, x, offsets)
    x[[100, 371], 5] = bad
    out = run(kernel, x, offsets)
    assert torch.equal(out[[0, 3]], clean[[0, 3]])
    torch.testing.assert_close(out, afg(x, offsets, weights), equal_nan=True)


def test_prepare_routes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    x, offsets, weights, guide = make([3, 0, 5], 12, 7, 2, 4)
    weights = single(weights)
    seen: list[str] = []
    original = _C.AfgKernel

    def record(*arguments: object) -> _C.AfgKernel:
        kernel = original(*arguments)  # type: ignore[arg-type]
        seen.append(kernel.isa)
        return kernel

    monkeypatch.setattr(_C, "AfgKernel", record)
    assert guide is not None
    for isa in ("auto", *ISAS):
        out = afg_cpu.prepare(weights, isa=isa)(x.float(), offsets, guide.float())
        expected = run(kernel_of(weights, isa), x.float(), offsets, guide.float())
        assert torch.equal(out, expected)
    assert [seen[i] for i in range(0, len(seen), 2)] == [ISAS[0], *ISAS]
    assert ISAS[-1] == "generic"


def test_prepare_takes_what_autograd_and_views_give() -> None:
    x, offsets, weights, _ = make([3, 5], 12, 7, 2)
    weights = single(weights)
    gather = afg_cpu.prepare(AFGWeights(*[w if w is None else w.clone().requires_grad_() for w in weights]))
    plain = gather(x.float(), offsets, None)
    assert not plain.requires_grad
    assert torch.equal(gather(x.float().requires_grad_(), offsets, None), plain)
    assert torch.equal(gather(x.float().T.contiguous().T, offsets, None), plain)


@pytest.mark.parametrize("case", BAD)
def test_prepare_refuses_what_the_reference_refuses(case: str) -> None:
    (x, offsets, weights, guide), message = BAD[case]
    with pytest.raises(ValueError, match=message):
        afg_cpu.prepare(single(weights))(x.float(), offsets, None if guide is None else guide.float())


def test_group_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    x, offsets, weights, guide = make([3, 0, 5], 12, 7, 2, 4)
    assert guide is not None
    seen: list[int] = []

    class Recorded:
        def __init__(self, *arguments: Any) -> None:
            self.kernel = original(*arguments)

        def run(self, calls: Any, threads: int) -> None:
            seen.append(len(calls))
            self.kernel.run(calls, threads)

    original = _C.AfgKernel
    monkeypatch.setattr(_C, "AfgKernel", Recorded)
    afg_cpu.prepare_group([single(weights)] * 3)([Gathering(x.float(), offsets, guide.float())] * 3)
    assert seen == [3]


@pytest.mark.parametrize("case", BAD)
def test_group_refuses_a_bad_gathering_beside_a_good_one(case: str) -> None:
    (x, offsets, weights, guide), message = BAD[case]
    good = make([3], 4, 3, 2)
    with pytest.raises(ValueError, match=message):
        afg_cpu.prepare_group([single(good[2]), single(weights)])(
            [
                Gathering(good[0].float(), good[1]),
                Gathering(x.float(), offsets, None if guide is None else guide.float()),
            ]
        )


def test_group_refuses_another_number_of_gatherings() -> None:
    x, offsets, weights, _ = make([3], 4, 3, 2)
    with pytest.raises(ValueError, match="afg: got 2 gatherings, expected 1"):
        afg_cpu.prepare_group([single(weights)])([Gathering(x.float(), offsets)] * 2)
    with pytest.raises(ValueError, match="afg: got 0 gatherings, expected 1"):
        kernel_of(single(weights), "auto").run([], 1)
    with pytest.raises(ValueError, match="afg weights: got none, expected those of at least one gathering"):
        afg_cpu.prepare_group([])


def test_prepare_refuses_other_types_and_kernels() -> None:
    x, offsets, weights, _ = make([3], 4, 3, 2)
    with pytest.raises(ValueError, match=r"afg weight: got torch.float64 on cpu, expected torch.float32 on cpu"):
        afg_cpu.prepare(weights)
    with pytest.raises(ValueError, match=r"afg x: got torch.float64 on cpu, expected torch.float32 on cpu"):
        afg_cpu.prepare(single(weights))(x, offsets, None)
    with pytest.raises(ValueError, match="afg threads: got 0, expected at least 1"):
        afg_cpu.prepare(single(weights), threads=0)
    with pytest.raises(UnavailableError, match=r"got isa 'neon', expected auto, .*generic"):
        afg_cpu.prepare(single(weights), isa="neon")


def test_without_the_extension_use_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afg_cpu, "_missing", ImportError("No module named 'merfast._C'"))
    for use in (afg_cpu.isas, lambda: afg_cpu.prepare(single(make([1], 4, 3, 2)[2]))):
        with pytest.raises(UnavailableError, match=r"got No module .*, expected merfast\._C"):
            use()


BINDING: dict[str, tuple[dict[str, Any], str]] = {
    "x-rank": ({"x": np.zeros(4, F)}, r"x: got 1 dimensions, expected 2"),
    "x-width": ({"x": np.zeros((3, 5), F)}, r"x: got float32 \[3, 5\], expected float32 \[3, 4\]"),
    "x-dtype": ({"x": np.zeros((3, 4))}, r"x: got float64 \[3, 4\], expected float32 \[3, 4\]"),
    "x-strides": ({"x": np.zeros((4, 3), F).T}, r"x: got non-contiguous or unaligned float32 \[3, 4\]"),
    "offsets-dtype": ({"offsets": np.array([0, 2, 3], np.int32)}, r"offsets: got int32 \[3\], expected int64 \[3\]"),
    "offsets-none": ({"offsets": np.zeros(0, np.int64)}, r"offsets: got int64 \[0\], expected int64 \[B \+ 1\]"),
    "offsets-falling": ({"offsets": np.array([0, 4, 3])}, r"offsets: got 0 \.\.\. 3, expected to rise from 0 to 3"),
    "offsets-end": ({"offsets": np.array([0, 2, 4])}, r"offsets: got 0 \.\.\. 4, expected to rise from 0 to 3"),
    "guide-missing": ({"guide": None}, r"guide: got guide=False with guide_weight=True"),
    "guide-shape": ({"guide": np.zeros((2, 6), F)}, r"guide: got float32 \[2, 6\], expected float32 \[2, 5\]"),
    "guide-rows": ({"guide": np.zeros((1, 5), F)}, r"guide: got float32 \[1, 5\], expected float32 \[2, 5\]"),
    "out-shape": ({"out": np.zeros((3, 4), F)}, r"out: got float32 \[3, 4\], expected float32 \[2, 4\]"),
    "threads": ({"threads": 0}, r"threads: got 0, expected at least 1"),
}


@pytest.mark.parametrize("case", BINDING)
def test_binding_refuses(case: str) -> None:
    change, message = BINDING[case]
    _, _, weights, _ = make([3], 4, 3, 2, 5)
    arguments: dict[str, Any] = {
        "x": np.zeros((3, 4), F),
        "offsets": np.array([0, 2, 3]),
        "guide": np.zeros((2, 5), F),
        "out": np.zeros((2, 4), F),
        "threads": 1,
    }
    kernel = kernel_of(single(weights), "auto")

    def run(threads: int, **call: Any) -> None:
        kernel.run([tuple(call.values())], threads)  # type: ignore[list-item]

    run(**arguments)
    with pytest.raises(ValueError, match=message):
        run(**(arguments | change))


def test_binding_refuses_a_read_only_output_and_bad_weights() -> None:
    _, _, weights, _ = make([3], 4, 3, 2)
    out = np.zeros((1, 4), F)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: got a read-only array"):
        kernel_of(single(weights), "auto").run([(np.zeros((3, 4), F), np.array([0, 3]), None, out)], 1)
    with pytest.raises(ValueError, match=r"isa: got 'neon', expected auto, .*generic"):
        kernel_of(single(weights), "neon")
    with pytest.raises(ValueError, match=r"bias: got float32 \[4\], expected float32 \[3\]"):
        kernel_of(single(weights)._replace(bias=torch.zeros(4)), "auto")
    with pytest.raises(ValueError, match="got width 4 and 3 heads, expected a multiple"):
        kernel_of(single(weights)._replace(score=torch.zeros(3, 3)), "auto")
