"""Packing and joining sets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from no_waits import no_waits

from merfast.models import inputs_of
from merfast.models.packed import owners, ragged_attention, rotary_angles, rotate, side_by_side, slots, spread
from merfast.ops.ragged import Ragged, moved, offsets_from, set_index, take, union
from merfast.types import Batch, Window

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


@given(lengths_lists, st.integers(0, 5))
def test_owners_of_a_known_number_of_rows(lengths, more):
    offsets = offsets_from(torch.tensor(lengths))
    owner = set_index(offsets, sum(lengths) + more)
    assert torch.equal(owner[: sum(lengths)], set_index(offsets))
    assert owner[sum(lengths) :].tolist() == [len(lengths)] * more  # of no set


@given(lengths_lists)
def test_sizes_on_the_host(lengths):
    x = Ragged.of(torch.zeros(sum(lengths), 2), lengths)
    assert x.sizes == x.host_sizes() == tuple(lengths)
    assert x.offsets.tolist() == offsets_from(torch.tensor(lengths)).tolist()
    assert Ragged(x.values, x.offsets).host_sizes() == tuple(lengths)
    with pytest.raises(ValueError, match=rf"got sizes of {len(lengths)} sets, {sum(lengths) + 1} rows in all"):
        Ragged(x.values, x.offsets, (lengths[0] + 1, *lengths[1:]))
    with pytest.raises(ValueError, match=rf"expected {len(lengths)} sets in {sum(lengths)} rows"):
        Ragged(x.values, x.offsets, (*lengths, 0))


@given(st.integers(1, 3), st.integers(1, 5), st.data())
def test_union_joins_set_by_set(parts, sets, data):
    rows = st.lists(st.integers(0, 4), min_size=sets, max_size=sets)
    each = []
    for part in range(parts):
        sizes, left = data.draw(rows), data.draw(st.integers(0, 3))  # rows that belong to no set
        values = 100.0 * part + torch.arange(sum(sizes))[:, None].expand(-1, 2)
        each.append(Ragged.of(torch.cat([values, torch.full((left, 2), torch.nan)]), sizes))
    joined = union(each)
    for got, *expected in zip(sets_of(joined), *(sets_of(p) for p in each), strict=True):
        assert torch.equal(got, torch.cat(expected))
    assert len(joined.values) == sum(len(p.values) for p in each)
    assert joined.sizes == tuple(joined.lengths.tolist())
    unknown = [Ragged(each[0].values, each[0].offsets), *each[1:]]
    assert union(unknown).sizes is None
    assert torch.equal(union(unknown).values.nan_to_num(), joined.values.nan_to_num())


@given(lengths_lists, st.data())
def test_taken_sets(lengths, data):
    x = Ragged.of(torch.arange(sum(lengths)), lengths)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=5))
    for source in (x, Ragged(x.values, x.offsets)):
        taken = take(source, torch.tensor(rows, dtype=torch.int64))
        assert [s.tolist() for s in sets_of(taken)] == [sets_of(x)[b].tolist() for b in rows]
    assert take(x, torch.tensor(rows, dtype=torch.int64)).sizes == tuple(lengths[b] for b in rows)


def test_nothing_waits_where_sizes_are_known():
    with no_waits():
        a = Ragged.of(torch.zeros(5, 2, device="meta"), [2, 0, 3])
        b = Ragged.of(torch.zeros(4, 2, device="meta"), [1, 3, 0])
        joined = union([a, b])
        assert joined.host_sizes() == (3, 3, 3)
        assert take(joined, torch.tensor([2, 0])).host_sizes() == (3, 3)
        assert set_index(a.offsets, 7).shape == (7,)
        with pytest.raises(RuntimeError):
            Ragged(a.values, a.offsets).host_sizes()


def test_a_batch_goes_to_a_device_without_waiting():
    crops = np.full((3, 4, 4, 3), 7, dtype=np.uint8)
    windows = [Window(0, 1, np.ones(9, dtype=np.float32), crops[:n], n, 0, {}) for n in (2, 0, 3)]
    batch = Batch.pack(windows)
    with no_waits():
        audio, video = inputs_of(batch, "meta")
    assert (audio.sizes, video.sizes) == ((9, 9, 9), (2, 0, 3))
    assert (audio.values.device.type, video.offsets.device.type) == ("meta", "meta")
    on_host = inputs_of(batch)
    assert on_host[1].offsets.tolist() == [0, 2, 2, 5]
    assert torch.equal(moved(on_host[1].values, "cpu"), torch.from_numpy(batch.crops))


def test_union_has_gradients():
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    union([Ragged(a, torch.tensor([0, 1, 2])), Ragged(b, torch.tensor([0, 0, 1]))]).values.sum().backward()
    assert torch.equal(a.grad, torch.ones(2, 3))
    assert torch.equal(b.grad, torch.ones(1, 3))


@given(lengths_lists, st.integers(1, 5), st.sampled_from([1, 4]))
def test_slots_leave_gaps(lengths, gap, align):
    layout = slots(lengths, gap, align)
    offsets = offsets_from(torch.tensor(lengths))
    taken = sets_of(Ragged(torch.from_numpy(layout.places), offsets))
    end = 0
    for start, places, n in zip(layout.starts.tolist(), taken, lengths, strict=True):
        assert start >= end
        assert start % align == 0
        assert places.tolist() == list(range(start, start + n))
        end = start + n + gap
    assert layout.total >= end
    axis = spread(torch.ones(sum(lengths), 2), torch.from_numpy(layout.places), layout.total)
    assert axis.shape == (layout.total, 2)
    assert axis.sum() == 2 * sum(lengths)


@given(lengths_lists, st.integers(0, 3))
def test_sets_side_by_side(lengths, gap):
    layout = slots(lengths, gap)
    rows = side_by_side(layout.starts, lengths)
    assert rows.shape == (len(lengths), max(lengths))
    taken = iter(layout.places.tolist())
    for length, row in zip(lengths, rows.tolist(), strict=True):
        expected = [next(taken) for _ in range(length)]
        assert row[:length] == expected
        assert row[length:] == expected[-1:] * (len(row) - length) if length else min(row, default=0) >= 0
    assert rows.max() < max(layout.total, 1) if rows.numel() else True


@given(lengths_lists)
def test_owners_are_those_of_the_offsets(lengths):
    offsets = offsets_from(torch.tensor(lengths))
    assert owners(lengths).tolist() == set_index(offsets).tolist()


@given(st.lists(st.sampled_from([0, 1, 3, 3, 8]), min_size=1, max_size=7))
def test_attention_stays_within_sets(lengths):
    offsets = offsets_from(torch.tensor(lengths))
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 2, 4, generator=generator)
    got = sets_of(Ragged(ragged_attention(q, k, v, lengths), offsets))
    rows = zip(*(sets_of(Ragged(t, offsets)) for t in (q, k, v)), got, strict=True)
    for qs, ks, vs, out in rows:
        weights = (torch.einsum("qhd,khd->hqk", qs, ks) / 2).softmax(-1)
        assert torch.allclose(out, torch.einsum("hqk,khd->qhd", weights, vs), atol=1e-6)


def test_rotation_depends_on_distance_alone():
    angles = rotary_angles([2, 10], 8)
    assert torch.equal(angles[:2], angles[2:4])
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotate(t.expand(12, 1, 8), angles)[:, 0] for t in (q, k))
    products = turned_q[2:] @ turned_k[2:].T  # [10, 10]
    for distance in range(-9, 10):
        same = products.diagonal(distance)
        assert torch.allclose(same, same[:1].expand_as(same), atol=1e-5)
    assert products[0].std() > 1e-2
