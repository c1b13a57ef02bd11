"""Packing and joining sets."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from merfast.models.packed import ragged_attention, rotary_angles, rotate, slots, spread
from merfast.ops.ragged import Ragged, offsets_from, set_index, union

lengths_lists = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def sets_of(x: Ragged) -> list[torch.Tensor]:
    return [x.values[a:b] for a, b in zip(x.offsets[:-1].tolist(), x.offsets[1:].tolist(), strict=True)]


def test_ragged_reports_its_sets():
    x = Ragged(torch.zeros(5, 2), torch.tensor([0, 3, 3, 5]))
    assert len(x) == 3
    assert x.lengths.tolist() == [3, 0, 2]
    assert repr(x) == "Ragged(3 sets, values [5, 2] torch.float32)"


@given(lengths_lists)
def test_offsets_and_owners(lengths):
    offsets = offsets_from(torch.tensor(lengths))
    assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert set_index(offsets).tolist() == [b for b, n in enumerate(lengths) for _ in range(n)]


@given(st.integers(1, 3), st.integers(1, 5), st.data())
def test_union_joins_set_by_set(parts, sets, data):
    rows = st.lists(st.integers(0, 4), min_size=sets, max_size=sets)
    each = []
    for part in range(parts):
        offsets = offsets_from(torch.tensor(data.draw(rows)))
        each.append(Ragged(100.0 * part + torch.arange(int(offsets[-1]))[:, None].expand(-1, 2), offsets))
    joined = union(each)
    for got, *expected in zip(sets_of(joined), *(sets_of(p) for p in each), strict=True):
        assert torch.equal(got, torch.cat(expected))


def test_union_has_gradients():
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    union([Ragged(a, torch.tensor([0, 1, 2])), Ragged(b, torch.tensor([0, 0, 1]))]).values.sum().backward()
    assert torch.equal(a.grad, torch.ones(2, 3))
    assert torch.equal(b.grad, torch.ones(1, 3))


@given(lengths_lists, st.integers(1, 5), st.sampled_from([1, 4]))
def test_slots_leave_gaps(lengths, gap, align):
    layout = slots(torch.tensor(lengths), gap, align)
    offsets = offsets_from(torch.tensor(lengths))
    taken = sets_of(Ragged(layout.places, offsets))
    end = 0
    for start, places, n in zip(layout.starts.tolist(), taken, lengths, strict=True):
        assert start >= end
        assert start % align == 0
        assert places.tolist() == list(range(start, start + n))
        end = start + n + gap
    assert layout.total >= end
    axis = spread(torch.ones(sum(lengths), 2), layout)
    assert axis.shape == (layout.total, 2)
    assert axis.sum() == 2 * sum(lengths)


@given(st.lists(st.sampled_from([0, 1, 3, 3, 8]), min_size=1, max_size=7))
def test_attention_stays_within_sets(lengths):
    offsets = offsets_from(torch.tensor(lengths))
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 2, 4, generator=generator)
    got = sets_of(Ragged(ragged_attention(q, k, v, offsets), offsets))
    rows = zip(*(sets_of(Ragged(t, offsets)) for t in (q, k, v)), got, strict=True)
    for qs, ks, vs, out in rows:
        weights = (torch.einsum("qhd,khd->hqk", qs, ks) / 2).softmax(-1)
        assert torch.allclose(out, torch.einsum("hqk,khd->qhd", weights, vs), atol=1e-6)


def test_rotation_depends_on_distance_alone():
    angles = rotary_angles(torch.tensor([0, 2, 12]), 8)
    assert torch.equal(angles[:2], angles[2:4])
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotate(t.expand(12, 1, 8), angles)[:, 0] for t in (q, k))
    products = turned_q[2:] @ turned_k[2:].T  # [10, 10]
    for distance in range(-9, 10):
        same = products.diagonal(distance)
        assert torch.allclose(same, same[:1].expand_as(same), atol=1e-5)
    assert products[0].std() > 1e-2
