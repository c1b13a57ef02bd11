"""Attention followed back through the structures, against their formulas."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_waits import no_waits
from ragged_inputs import EYES, FACE, TONE, VOICE, pick
from test_afg_attention import by_formula
from test_models import CASES, features_of, model_of
from torch import Tensor

from merfast.config import FusionConfig, StreamConfig
from merfast.models.fusion import STRUCTURES, Structure, explain
from merfast.ops import afg_cpu
from merfast.ops.ragged import Ragged

FUSION = FusionConfig(dim=16, attention_dim=8, heads=2)
HEADS = 2


def sets_of(x: Ragged, values: Tensor) -> list[Tensor]:
    return [values[a:b] for a, b in zip(x.offsets[:-1].tolist(), x.offsets[1:].tolist(), strict=True)]


def drawn(data: st.DataObject, streams: tuple[StreamConfig, ...]) -> dict[str, Ragged]:
    sets = data.draw(st.integers(1, 4))
    rows = st.lists(st.integers(0, 5), min_size=sets, max_size=sets)
    return features_of(streams, [data.draw(rows) for _ in streams])


@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_weights_make_the_vector(kind: str, streams: tuple[StreamConfig, ...], data: st.DataObject) -> None:
    """In both, each head's slice is the sum of what it looks at, times its weight."""
    torch.manual_seed(0)
    structure = STRUCTURES[kind](streams, FUSION)
    features = drawn(data, streams)
    with torch.inference_mode():
        (vector,), (weights,) = explain([structure], features)
        assert torch.equal(vector, structure(features))
        rows = {n: structure.project[n](x.values).view(-1, HEADS, 16 // HEADS) for n, x in features.items()}
        for b in range(len(vector)):
            parts = [(sets_of(x, rows[n])[b], sets_of(x, weights[n])[b]) for n, x in features.items()]
            if sum(len(w) for _, w in parts):
                made = sum((w[:, :, None] * r).sum(0) for r, w in parts).flatten()
                torch.testing.assert_close(made, vector[b], rtol=0, atol=1e-5)
                total = sum(w.sum(0) for _, w in parts)
                torch.testing.assert_close(total, torch.ones(HEADS), rtol=0, atol=1e-5)


def shares(module: torch.nn.Module, rows: Tensor, guide: Tensor | None = None) -> Tensor:
    """`[N, heads]` of one set."""
    return by_formula(rows, torch.tensor([0, len(rows)]), module.weights, guide).float()


def guided(structure: Structure, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """One clip's `[N, heads]` by modality, from the formula; `rows` of both modalities, projected."""
    frames, vectors = {}, {}
    for m, other in (("audio", "video"), ("video", "audio")):
        if not len(rows[m]):
            continue
        offsets = torch.tensor([0, len(rows[other])])
        guide = structure.gather_guide[other](Ragged(rows[other], offsets))
        frames[m] = shares(structure.gather_frames[m], rows[m], guide)
        vectors[m] = structure.gather_frames[m](Ragged(rows[m], torch.tensor([0, len(rows[m])])), guide)
    if not vectors:
        return {m: of[:, :HEADS] for m, of in rows.items()}
    if len(vectors) == 2:
        vectors["product"] = vectors["audio"] * vectors["video"]
    elements = dict(zip(vectors, shares(structure.gather_elements, torch.cat(list(vectors.values()))), strict=True))
    half = elements.get("product", torch.zeros(HEADS)) / 2
    return {m: frames[m] * (elements[m] + half) if m in frames else rows[m][:, :HEADS] for m in rows}


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_product_counts_for_both(data: st.DataObject) -> None:
    torch.manual_seed(0)
    streams = (VOICE, FACE, TONE, EYES)
    structure = STRUCTURES["guided"](streams, FUSION)
    features = drawn(data, streams)
    with torch.inference_mode():
        (vector,), (weights,) = explain([structure], features)
        assert torch.equal(vector, structure(features))
        for b in range(len(vector)):
            projected = {n: sets_of(x, structure.project[n](x.values))[b] for n, x in features.items()}
            rows = {m: torch.cat([projected[n] for n in structure.names[m]]) for m in ("audio", "video")}
            for m, expected in guided(structure, rows).items():
                got = torch.cat([sets_of(features[n], weights[n])[b] for n in structure.names[m]])
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kernels", ["reference", *afg_cpu.isas()])
def test_a_clips_weights_sum_to_one(kernels: str, streams: tuple[StreamConfig, ...]) -> None:
    model = model_of(*streams, weights=(1.0, 2.0, 5.0))
    if kernels != "reference":
        model.accelerate(partial(afg_cpu.prepare_group, isa=kernels))
    lengths = [[70, 0, 300, 0, 2], [3, 5, 0, 0, 1], [9, 0, 0, 0, 300], [4, 0, 7, 0, 1]][: len(streams)]
    features = features_of(streams, lengths)
    beyond = {n: Ragged(torch.cat([x.values, x.values[:2]]), x.offsets) for n, x in features.items()}
    with torch.inference_mode():
        plain = model.fuse(beyond)
        vectors, weights = model.explain(beyond)
        each = explain(model.structures.values(), beyond)[1]
    assert torch.equal(vectors, plain)
    totals = sum(torch.stack([part.sum() for part in sets_of(x, weights[n])]) for n, x in features.items())
    has = torch.stack([x.lengths for x in features.values()]).sum(0) > 0
    torch.testing.assert_close(totals, has.float(), rtol=0, atol=1e-5)
    for name, x in features.items():
        assert not weights[name][len(x.values) :].any()
        mixed = sum(of[name].mean(1) * part for of, part in zip(each, (0.125, 0.25, 0.625), strict=True))
        torch.testing.assert_close(weights[name], mixed, rtol=0, atol=1e-6)


def test_weights_do_not_depend_on_the_batch() -> None:
    streams = (VOICE, FACE, TONE, EYES)
    model = model_of(*streams)
    features = features_of(streams, [[7, 0, 3], [1, 5, 0], [2, 2, 0], [0, 0, 4]])
    with torch.inference_mode():
        _, together = model.explain(features)
        for b in range(3):
            _, alone = model.explain({n: pick(x, [b]) for n, x in features.items()})
            for name, x in features.items():
                torch.testing.assert_close(alone[name], sets_of(x, together[name])[b], rtol=0, atol=1e-6)


@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
def test_nothing_waits_for_the_device(streams: tuple[StreamConfig, ...]) -> None:
    model = model_of(*streams).to("meta")
    given = features_of(streams, [[5, 0, 3]] * len(streams))
    features = {n: Ragged(x.values.to("meta"), x.offsets.to("meta"), (5, 0, 3)) for n, x in given.items()}
    with torch.inference_mode(), no_waits():
        vectors, _ = model.explain(features)
    assert vectors.device.type == "meta"


def test_no_clips_at_all() -> None:
    offsets = torch.zeros(1, dtype=torch.int64)
    features = {s.name: Ragged(torch.zeros(0, s.dim), offsets) for s in (VOICE, FACE)}
    with torch.inference_mode():
        vectors, weights = model_of(VOICE, FACE).explain(features)
    assert vectors.shape == (3, 0, 16)
    assert {n: w.shape for n, w in weights.items()} == {"voice": (0,), "face": (0,)}
