"""The eager reference of AFG, against loops written from the formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from merfast.ops.afg import AFGWeights, Gathering, afg, prepare_group


def make(
    lengths: list[int], dim: int, width: int, heads: int, guide_dim: int = 0, seed: int = 0
) -> tuple[Tensor, Tensor, AFGWeights, Tensor | None]:
    """Random fp64 x, offsets, weights and guide; hidden values and energies are of order 1."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    weights = AFGWeights(
        weight=draw(width, dim) / dim**0.5,
        bias=draw(width),
        score=draw(heads, width) / width**0.5,
        absent=draw(dim),
        guide_weight=draw(width, guide_dim) / guide_dim**0.5 if guide_dim else None,
    )
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return draw(sum(lengths), dim), offsets, weights, draw(len(lengths), guide_dim) if guide_dim else None


def by_formula(x: Tensor, offsets: Tensor, weights: AFGWeights, guide: Tensor | None) -> Tensor:
    heads, width = weights.score.shape
    dim = x.shape[1]
    part = dim // heads
    out = torch.empty(len(offsets) - 1, dim, dtype=x.dtype)
    for b, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        if first == last:
            out[b] = weights.absent
            continue
        for h in range(heads):
            energies = []
            for t in range(first, last):
                energy = 0.0
                for a in range(width):
                    hidden = float(weights.weight[a] @ x[t] + weights.bias[a])
                    if guide is not None and weights.guide_weight is not None:
                        hidden += float(weights.guide_weight[a] @ guide[b])
                    energy += float(weights.score[h, a]) * math.tanh(hidden)
                energies.append(energy)
            raised = [math.exp(e - max(energies)) for e in energies]
            z = sum(r / sum(raised) * x[first + i, h * part : (h + 1) * part] for i, r in enumerate(raised))
            out[b, h * part : (h + 1) * part] = torch.as_tensor(z)
    return out


@pytest.mark.parametrize("guide_dim", [0, 5])
@pytest.mark.parametrize(
    ("lengths", "dim", "width", "heads"),
    [([3, 1, 4], 6, 5, 1), ([0, 7, 0, 0, 2, 0], 15, 3, 5), ([1], 1, 1, 1), ([0, 0], 4, 3, 2), ([], 4, 3, 2)],
    ids=["plain", "empty-sets", "one-element", "all-empty", "no-sets"],
)
def test_formula(lengths: list[int], dim: int, width: int, heads: int, guide_dim: int) -> None:
    x, offsets, weights, guide = make(lengths, dim, width, heads, guide_dim)
    torch.testing.assert_close(afg(x, offsets, weights, guide), by_formula(x, offsets, weights, guide))


def test_prepared_is_the_reference() -> None:
    x, offsets, weights, guide = make([3, 0, 2], 6, 5, 2, 4)
    (gathered,) = prepare_group([weights])([Gathering(x, offsets, guide)])
    assert torch.equal(gathered, afg(x, offsets, weights, guide))


def test_one_element_is_returned() -> None:
    x, offsets, weights, _ = make([1, 1, 1], 8, 5, 4)
    torch.testing.assert_close(afg(x, offsets, weights), x)


@pytest.mark.parametrize("guide_dim", [0, 5])
def test_rows_after_the_last_set_belong_to_none(guide_dim: int) -> None:
    x, offsets, weights, guide = make([3, 0, 4], 6, 5, 2, guide_dim)
    beyond = torch.cat([x, torch.full((3, 6), torch.nan)])
    assert torch.equal(afg(beyond, offsets, weights, guide), afg(x, offsets, weights, guide))
    nothing = afg(beyond[7:], torch.zeros_like(offsets), weights, guide)
    assert torch.equal(nothing, weights.absent.expand(3, -1))


def test_order_within_a_set_does_not_matter() -> None:
    x, offsets, weights, _ = make([5], 8, 5, 4)
    torch.testing.assert_close(afg(x.flip(0), offsets, weights), afg(x, offsets, weights))


def test_guide_of_one_set_leaves_the_others_alone() -> None:
    x, offsets, weights, guide = make([4, 3, 5], 8, 5, 2, 3)
    assert guide is not None
    before = afg(x, offsets, weights, guide)
    guide[1] += 1
    after = afg(x, offsets, weights, guide)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(after[1], before[1])


def test_huge_energies_stay_finite() -> None:
    x, offsets, weights, _ = make([4, 6], 8, 5, 2)
    out = afg(x, offsets, weights._replace(score=weights.score * 1e6))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    x, offsets, weights, _ = make([4, 0], 8, 5, 2)
    lower = AFGWeights(*[w if w is None else w.to(dtype) for w in weights])
    out = afg(x.to(dtype), offsets, lower)
    assert out.dtype == dtype
    budget = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), afg(x, offsets, weights), rtol=budget, atol=budget)


@pytest.mark.parametrize("guide_dim", [0, 3])
def test_gradients(guide_dim: int) -> None:
    x, offsets, weights, guide = make([3, 0, 1, 2], 4, 3, 2, guide_dim)
    leaves = [t.requires_grad_() for t in (x, *weights, guide) if t is not None]

    def run(*_: Tensor) -> Tensor:
        return afg(x, offsets, weights, guide)

    assert torch.autograd.gradcheck(run, leaves)


def test_gradient_reaches_absent_only_from_empty_sets() -> None:
    x, offsets, weights, _ = make([2, 0], 4, 3, 2)
    weights.absent.requires_grad_()
    out = afg(x, offsets, weights)
    (gradient,) = torch.autograd.grad(out.sum(), weights.absent)
    assert torch.equal(gradient, torch.ones_like(gradient))


X, OFFSETS, WEIGHTS, GUIDE = make([2, 1], 4, 3, 2, 5)
BARE = WEIGHTS._replace(guide_weight=None)

BAD = {
    "x-width": ((X[:, :3], OFFSETS, BARE, None), r"x: got \[3, 3\], expected \[N, 4\]"),
    "x-rank": ((X[0], OFFSETS, BARE, None), r"x: got \[4\], expected \[N, 4\]"),
    "bias": ((X, OFFSETS, BARE._replace(bias=X[0]), None), r"got .*bias \[4\].*expected"),
    "weight": ((X, OFFSETS, BARE._replace(weight=X[:2]), None), r"got weight \[2, 4\].*expected"),
    "absent": ((X, OFFSETS, BARE._replace(absent=X[0, :2]), None), r"got .*absent \[2\].*expected"),
    "heads": ((X, OFFSETS, BARE._replace(score=X[:3, :3]), None), r"got width 4 and 3 heads, expected a multiple"),
    "offsets-dtype": ((X, OFFSETS.int(), BARE, None), r"offsets: got torch.int32 \[3\], expected int64"),
    "offsets-none": ((X, OFFSETS[:0], BARE, None), r"offsets: got torch.int64 \[0\], expected int64"),
    "offsets-rank": ((X, OFFSETS[None], BARE, None), r"offsets: got torch.int64 \[1, 3\], expected int64"),
    "offsets-end": ((X[:2], OFFSETS, BARE, None), r"offsets: expected to rise from 0 to at most 2, got \[0, 2, 3\]"),
    "offsets-start": ((X, OFFSETS.clamp(min=1), BARE, None), r"offsets: expected to rise from 0 to at most 3, got \[1"),
    "offsets-falling": (
        (X, torch.tensor([0, 3, 2, 3]), BARE, None),
        r"expected to rise from 0 to at most 3, got \[0, 3, 2",
    ),
    "guide-missing": ((X, OFFSETS, WEIGHTS, None), r"got guide=False with guide_weight=True, expected both"),
    "guide-unwanted": ((X, OFFSETS, BARE, GUIDE), r"got guide=True with guide_weight=False, expected both"),
    "guide-shape": ((X, OFFSETS, WEIGHTS, X), r"guide: got \[3, 4\], expected \[2, 5\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_say_got_and_expected(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        afg(*arguments)
