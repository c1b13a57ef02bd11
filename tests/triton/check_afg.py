"""The Triton AFG against the reference: error in each dtype, groups, split sets, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_inputs import EYES, FACE, TONE, VOICE
from test_afg import BAD, make
from test_afg_attention import by_formula
from test_models import features_of, model_of
from torch import Tensor

from merfast.models.fusion_network import FusionNetwork
from merfast.ops import afg_triton, decode_triton
from merfast.ops.afg import AFGWeights, Gathering, afg
from merfast.ops.ragged import Ragged

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INTERPRETED = afg_triton.INTERPRETED
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])

Inputs = tuple[Tensor, Tensor, AFGWeights, Tensor | None]


def cast(inputs: Inputs, dtype: torch.dtype, device: torch.device) -> Inputs:
    x, offsets, weights, guide = inputs
    moved = AFGWeights(*[w if w is None else w.to(device, dtype) for w in weights])
    return x.to(device, dtype), offsets.to(device), moved, None if guide is None else guide.to(device, dtype)


def exact(inputs: Inputs) -> Tensor:
    """What the formula gives in fp64 on inputs that are already rounded."""
    return afg(*cast(inputs, torch.float64, torch.device("cpu")))


def bound(inputs: Inputs, reference: Tensor) -> float:
    """Twice the error of eager torch in the same dtype, and a floor: one rounding of the largest result."""
    dtype = inputs[0].dtype
    eager = (afg(*inputs).double().cpu() - reference).abs().max().item()
    return 2 * eager + max(1.0, reference.abs().max().item()) * max(torch.finfo(dtype).eps, 4e-7)


def check(groups: Sequence[Inputs], dtype: torch.dtype, device: torch.device) -> None:
    """Runs the inputs as one group."""
    inputs = [cast(g, dtype, device) for g in groups]
    gather = afg_triton.prepare_group([weights for _, _, weights, _ in inputs])
    # What torch.empty hands out next is likely to be this.
    torch.full((sum(g[0].numel() for g in inputs) + 4096,), torch.nan, device=device)
    got = gather([Gathering(x, offsets, guide) for x, offsets, _, guide in inputs])
    for mine, one in zip(got, inputs, strict=True):
        assert mine.dtype == dtype
        reference = exact(one)
        if mine.numel():
            error = (mine.double().cpu() - reference).abs().max().item()
            limit = bound(one, reference)
            assert error <= limit, f"{dtype}: error {error:.2e}, limit {limit:.2e}"


@each_dtype
@pytest.mark.parametrize(
    ("lengths", "dim", "width", "heads", "guide_dim"),
    [
        ([5, 0, 1, 64, 65, 130], 128, 64, 4, 0),
        ([3, 2, 0, 3], 128, 64, 4, 128),
        ([700], 96, 33, 3, 7),
        ([31, 32, 33], 40, 17, 5, 3),
        ([2], 1, 1, 1, 1),
        ([0, 0], 24, 16, 2, 0),
        ([], 24, 16, 2, 0),
        ([90, 3], 300, 130, 1, 65),
    ],
    ids=["mini", "tiny-sets", "split", "odd", "one", "all-empty", "no-sets", "wide"],
)
def test_error(
    dtype: torch.dtype,
    lengths: list[int],
    dim: int,
    width: int,
    heads: int,
    guide_dim: int,
    device: torch.device,
) -> None:
    check([make(lengths, dim, width, heads, guide_dim)], dtype, device)


@settings(max_examples=8 if INTERPRETED else 12, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 0, 1, 2, 5, 17, 63, 64, 65, 100]), min_size=1, max_size=4),
    heads=st.integers(1, 5),
    part=st.integers(1, 40),
    width=st.integers(1, 70),
    guide_dim=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(
    lengths: list[int], heads: int, part: int, width: int, guide_dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    check([make(lengths, heads * part, width, heads, guide_dim)], dtype, device)


def test_a_group_of_guided_and_unguided_gatherings(device: torch.device) -> None:
    sets = [([3, 0, 70], 0), ([1, 2, 0], 24), ([0, 0, 5], 0), ([40, 9, 1], 24)]
    check([make(lengths, 48, 20, 3, g, seed) for seed, (lengths, g) in enumerate(sets)], torch.float32, device)


def test_all_splits_of_a_set_agree(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = cast(make([300, 1, 0, 97], 64, 32, 2, 0), torch.float32, device)
    reference = exact(inputs)
    x, offsets, weights, _ = inputs
    gather = afg_triton.prepare_group([weights])
    for splits in (1, 2, 3, 7, 20):
        monkeypatch.setattr(afg_triton, "split_count", lambda *_, n=splits: n)
        for _ in range(2):  # the counters are zero again after each call
            (got,) = gather([Gathering(x, offsets)])
            assert (got.double().cpu() - reference).abs().max() < 2e-6, splits


@each_dtype
@pytest.mark.parametrize("splits", [1, 3])
def test_attention(dtype: torch.dtype, splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error in fp32 terms, its sums, and that z is the same to the bit, for a gathering that does not ask, too."""
    monkeypatch.setattr(afg_triton, "split_count", lambda *_: splits)
    sets = [([70, 0, 1, 150], 24), ([1, 2, 0, 0], 0), ([300, 31, 65, 0], 0)]
    inputs = [cast(make(lengths, 51, 20, 3, g, seed), dtype, device) for seed, (lengths, g) in enumerate(sets)]
    gather = afg_triton.prepare_group([weights for _, _, weights, _ in inputs])
    beyond = torch.full((9, 51), torch.nan, device=device, dtype=dtype)  # rows that belong to no set
    plain = [Gathering(torch.cat([x, beyond]), offsets, guide) for x, offsets, _, guide in inputs]
    first, last = (torch.full((len(plain[k].x), 3), torch.nan, device=device) for k in (0, 2))
    calls = [plain[0]._replace(attention=first), plain[1], plain[2]._replace(attention=last)]
    for z, before in zip(gather(calls), gather(plain), strict=True):
        assert torch.equal(z, before)
    for attention, one in ((first, inputs[0]), (last, inputs[2])):
        x, offsets, weights, guide = cast(one, torch.float32, torch.device("cpu"))
        exact, eager = by_formula(x, offsets, weights, guide), torch.full((len(x), 3), torch.nan)
        afg(x, offsets, weights, guide, eager)
        got = attention.cpu()
        assert not got[len(x) :].any()
        assert (got[: len(x)] - exact).abs().max() <= 2 * (eager - exact).abs().max() + 4e-7
        for part in got[: len(x)].split(offsets.diff().tolist()):
            torch.testing.assert_close(part.sum(0), torch.full((3,), float(len(part) > 0)), rtol=0, atol=2e-6)


def test_attention_of_one_head_and_of_no_sets(device: torch.device) -> None:
    x, offsets, weights, _ = cast(make([5, 40], 16, 8, 1), torch.float32, device)
    attention = torch.full((45, 1), torch.nan, device=device)
    gather = afg_triton.prepare(weights)
    gather(x, offsets, None, attention)
    assert (attention.cpu() - by_formula(x, offsets, weights, None)).abs().max() < 1e-6
    gather(x, offsets[:1], None, attention)
    assert not attention.any()


@each_dtype
def test_rows_after_the_last_set_belong_to_none(dtype: torch.dtype, device: torch.device) -> None:
    sets = [([70, 0, 3], 24), ([1, 0, 2], 0)]
    inputs = [cast(make(lengths, 48, 20, 3, g), dtype, device) for lengths, g in sets]
    gather = afg_triton.prepare_group([weights for _, _, weights, _ in inputs])
    calls = [Gathering(x, offsets, guide) for x, offsets, _, guide in inputs]
    beyond = [c._replace(x=torch.cat([c.x, torch.full_like(c.x, torch.nan)])) for c in calls]
    for mine, one in zip(gather(beyond), inputs, strict=True):
        reference = exact(one)
        assert (mine.double().cpu() - reference).abs().max() <= bound(one, reference)


def test_what_is_not_finite_stays_in_its_set(device: torch.device) -> None:
    x, offsets, weights, _ = cast(make([5, 70, 3], 48, 20, 3, 0), torch.float32, device)
    clean = afg_triton.prepare(weights)(x, offsets)
    x = x.clone()
    x[20, 7] = torch.nan
    got = afg_triton.prepare(weights)(x, offsets)
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert got[1].isnan().all()
    x[20, 7] = torch.inf
    got, expected = afg_triton.prepare(weights)(x, offsets), afg(x, offsets, weights)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_one_group_in_many_threads(device: torch.device) -> None:
    x, offsets, weights, _ = cast(make([200, 3, 150], 64, 32, 2, 0), torch.float32, device)
    gather = afg_triton.prepare(weights)
    expected = gather(x, offsets)
    count = 1 if INTERPRETED else 16  # the interpreter patches Triton's globals while it runs
    with ThreadPoolExecutor(count) as pool:
        for got in pool.map(lambda _: gather(x, offsets), range(4 * count)):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("case", [c for c in BAD if INTERPRETED or "expected to rise" not in BAD[c][1]])
def test_bad_arguments_are_refused_as_by_the_reference(case: str, device: torch.device) -> None:
    """But for the values of offsets, which are not read on a GPU."""
    (x, offsets, weights, guide), message = BAD[case]
    weights = AFGWeights(*[w if w is None else w.to(device, torch.float32) for w in weights])
    with pytest.raises(ValueError, match=message):
        afg_triton.prepare(weights)(
            x.to(device).float(), offsets.to(device), None if guide is None else guide.to(device).float()
        )


def test_refusals(device: torch.device) -> None:
    x, offsets, weights, _ = cast(make([2, 3], 6, 5, 3, 0), torch.float32, device)
    gather = afg_triton.prepare_group([weights])
    with pytest.raises(ValueError, match=r"afg x: got torch.float16 on .*, expected torch.float32"):
        gather([Gathering(x.half(), offsets)])
    with pytest.raises(ValueError, match="afg: got 2 gatherings, expected 1"):
        gather([Gathering(x, offsets)] * 2)
    with pytest.raises(ValueError, match="expected 2 sets"):
        afg_triton.prepare_group([weights] * 2)([Gathering(x, offsets), Gathering(x[:2], offsets[:2])])
    with pytest.raises(ValueError, match="got gatherings of 2 kinds"):
        afg_triton.prepare_group([weights, cast(make([2], 12, 5, 3, 0), torch.float32, device)[2]])
    with pytest.raises(ValueError, match="got none"):
        afg_triton.prepare_group([])
    with pytest.raises(ValueError, match=r"got torch.float64"):
        afg_triton.prepare_group([AFGWeights(*[w if w is None else w.double() for w in weights])])


@torch.inference_mode()
def test_a_model_on_triton(device: torch.device) -> None:
    streams = (VOICE, FACE, TONE, EYES)
    model = model_of(*streams).to(device)
    lengths = [[70, 0, 3], [0, 0, 150], [5, 0, 0], [9, 0, 1]]
    features = {n: Ragged(f.values.to(device), f.offsets.to(device)) for n, f in features_of(streams, lengths).items()}
    expected = model.average(model.fuse(features))
    _, by_reference = model.explain(features)
    model.accelerate(afg_triton.prepare_group, decode_triton.prepare)
    got = model.average(model.fuse(features))
    for mine, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)
    for name, weights in model.explain(features)[1].items():
        torch.testing.assert_close(weights, by_reference[name], rtol=1e-5, atol=1e-6)
    padding = torch.tensor(torch.nan, device=device)  # as in a graph's bucket
    rows = [torch.cat([x.values, padding.expand(9, x.values.shape[1])]) for x in features.values()]
    sets = torch.stack([x.lengths for x in features.values()], 1)
    padded = FusionNetwork(model)(torch.cat([sets, torch.zeros_like(sets)]), *rows)
    torch.testing.assert_close(padded[:3, :6], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded[:3, 6], expected[1], rtol=1e-5, atol=1e-5)
    assert padded.isfinite().all()
