"""The attention that gatherings write, eager and in C++: its error, its sums, and that it leaves z alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from test_afg import make
from test_afg_cpu import BF16, GROUPS, Inputs, cast, dtype_of
from torch import Tensor

from merfast.ops import afg_cpu
from merfast.ops.afg import AFGWeights, GatherGroup, Gathering, afg, prepare_group
from merfast.ops.ragged import set_index

each_way = pytest.mark.parametrize("way", ["eager", *afg_cpu.isas(), BF16])


def by_formula(x: Tensor, offsets: Tensor, weights: AFGWeights, guide: Tensor | None) -> Tensor:
    """`[N, H]` fp64, set by set; 0 for rows that belong to none."""
    x, offsets, weights, guide = cast((x, offsets, weights, guide), torch.float64)
    out = torch.zeros(len(x), len(weights.score), dtype=torch.float64)
    for b, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        inner = x[first:last] @ weights.weight.T + weights.bias
        if guide is not None and weights.guide_weight is not None:
            inner = inner + weights.guide_weight @ guide[b]
        out[first:last] = (torch.tanh(inner) @ weights.score.T).softmax(0)
    return out


def poisoned(x: Tensor, weights: AFGWeights) -> Tensor:
    return torch.full((len(x), len(weights.score)), torch.nan)


def group_of(way: str, weights: list[AFGWeights], threads: int = 1) -> GatherGroup:
    return prepare_group(weights) if way == "eager" else afg_cpu.prepare_group(weights, isa=way, threads=threads)


def check(way: str, inputs: list[Inputs], threads: int = 1) -> None:
    """Runs the inputs as one group: twice the eager error in fp32, as energies and sums are in fp32 in any dtype."""
    inputs = [cast(each, dtype_of(way)) for each in inputs]
    group = group_of(way, [weights for _, _, weights, _ in inputs], threads)
    plain = group([Gathering(x, offsets, guide) for x, offsets, _, guide in inputs])
    attention = [poisoned(x, weights) for x, _, weights, _ in inputs]
    calls = [Gathering(x, offsets, guide, a) for (x, offsets, _, guide), a in zip(inputs, attention, strict=True)]
    for z, before, got, each in zip(group(calls), plain, attention, inputs, strict=True):
        assert torch.equal(z, before)
        x, offsets, weights, guide = cast(each, torch.float32)
        exact, eager = by_formula(x, offsets, weights, guide), poisoned(x, weights)
        afg(x, offsets, weights, guide, eager)
        assert not got[int(offsets[-1]) :].any()
        sums = torch.zeros(len(offsets), got.shape[1]).index_add(0, set_index(offsets, len(x)), got)[:-1]
        torch.testing.assert_close(sums, (offsets.diff() > 0)[:, None].expand_as(sums).float(), rtol=0, atol=2e-6)
        if got.numel():
            limit = 2 * (eager - exact).abs().max().item() + 4e-7
            error = (got - exact).abs().max().item()
            assert error <= limit, f"{way}: error {error:.2e}, limit {limit:.2e}"


@each_way
@settings(max_examples=25, deadline=None)
@given(shapes=GROUPS)
def test_error(way: str, shapes: list[Any]) -> None:
    check(way, [make(lengths, h * part, a, h, g, seed) for seed, (lengths, h, part, a, g) in enumerate(shapes)])


@each_way
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_error_on_sets_of_many_spans(way: str, threads: int) -> None:
    sets = [([700, 0, 256, 257, 1, 512], 5, 33), ([5000], 3, 0), ([3] * 300, 4, 0)]
    check(way, [make(lengths, 60, 77, heads, g, seed) for seed, (lengths, heads, g) in enumerate(sets)], threads)


@each_way
@pytest.mark.parametrize("lengths", [[70, 0, 300], [5, 1], [0, 0], []])
def test_rows_of_no_set_weigh_nothing(way: str, lengths: list[int]) -> None:
    x, offsets, weights, guide = cast(make(lengths, 39, 17, 3, 5), dtype_of(way))
    group, alone = group_of(way, [weights]), poisoned(x, weights)
    group([Gathering(x, offsets, guide, alone)])
    beyond = torch.cat([x, torch.full((130, 39), torch.nan, dtype=x.dtype)])
    attention = poisoned(beyond, weights)
    group([Gathering(beyond, offsets, guide, attention)])
    assert torch.equal(attention, torch.cat([alone, torch.zeros(130, 3)]))


@each_way
def test_only_what_asks_gets_it(way: str) -> None:
    x, offsets, weights, _ = cast(make([5, 300], 24, 17, 3), dtype_of(way))
    attention = poisoned(x, weights)
    plain, asked = group_of(way, [weights] * 2)([Gathering(x, offsets), Gathering(x, offsets, None, attention)])
    assert torch.equal(plain, asked)
    assert attention.isfinite().all()


@each_way
def test_one_huge_energy_takes_all(way: str) -> None:
    x, offsets, weights, _ = cast(make([300, 70], 24, 1, 2), dtype_of(way))
    x[:, 0] = -50.0
    x[[123, 345], 0] = 50.0
    weights.weight.copy_(torch.eye(1, 24))
    weights.bias.zero_()
    weights.score.fill_(1e4)
    attention = poisoned(x, weights)
    group_of(way, [weights])([Gathering(x, offsets, None, attention)])
    assert attention.nonzero().tolist() == [[t, h] for t in (123, 345) for h in (0, 1)]
    assert attention[[123, 345]].eq(1).all()


@each_way
def test_nan_stays_in_its_set(way: str) -> None:
    x, offsets, weights, _ = cast(make([70, 300, 3], 39, 17, 3), dtype_of(way))
    x[100, 5] = torch.nan
    attention = poisoned(x, weights)
    group_of(way, [weights])([Gathering(x, offsets, None, attention)])
    assert attention[70:370].isnan().all()
    assert attention[:70].isfinite().all()
    assert attention[370:].isfinite().all()


@pytest.mark.parametrize("way", ["eager", "auto"])
def test_outputs_that_do_not_fit_are_refused(way: str) -> None:
    x, offsets, weights, _ = cast(make([2, 1], 4, 3, 2), torch.float32)
    group = group_of(way, [weights])
    for attention, got in (
        (torch.zeros(3, 4), r"torch.float32 \[3, 4\]"),
        (torch.zeros(2, 2), r"torch.float32 \[2, 2\]"),
        (torch.zeros(3, 2).double(), r"torch.float64 \[3, 2\]"),
        (torch.zeros(2, 3).T, r"non-contiguous torch.float32 \[3, 2\]"),
        (torch.zeros(3, 2, device="meta"), r"torch.float32 \[3, 2\] on meta"),
    ):
        with pytest.raises(ValueError, match=rf"afg attention: got {got}.*, expected torch.float32 \[3, 2\] on cpu"):
            group([Gathering(x, offsets, None, attention)])


def test_attention_has_no_gradient() -> None:
    x, offsets, weights, _ = make([2, 3], 4, 3, 2)
    leaves = AFGWeights(*[w if w is None else w.requires_grad_() for w in weights])
    attention = poisoned(x, weights)
    plain, asked = afg(x, offsets, leaves), afg(x, offsets, leaves, attention=attention)
    assert not attention.requires_grad
    assert leaves.score.requires_grad
    first, second = (torch.autograd.grad(z.square().sum(), leaves.score)[0] for z in (plain, asked))
    assert torch.equal(first, second)
