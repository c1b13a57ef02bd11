"""Fusion over padded features: equal to the plain one whatever the padding holds, in graphs' buckets, without waits."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from no_waits import no_waits
from ragged_inputs import EYES, FACE, TONE, VOICE
from test_cuda_graphs import Plain
from test_models import CASES, features_of, model_of
from torch import Tensor

from merfast.models import FusedModel
from merfast.models.fusion import elements
from merfast.models.fusion_network import FusionNetwork, run_padded
from merfast.ops import afg_cpu, decode_cpu
from merfast.ops.ragged import Ragged
from merfast.runtime import cuda_graphs
from merfast.runtime.cuda_graphs import GraphedRunner, rows_bucket

ROWS = [[5, 0, 3, 0, 1], [2, 4, 0, 0, 1], [1, 1, 0, 0, 0], [0, 2, 0, 0, 9]]
"""Of each stream in each clip: one clip has all of them, one none."""


def plain(model: FusedModel, features: dict[str, Ragged]) -> Tensor:
    posterior, valence = model.average(model.fuse(features))
    return torch.cat([posterior, valence[:, None]], 1)


def accelerated(model: FusedModel, kernels: str) -> FusedModel:
    if kernels == "cpp":
        model.accelerate(afg_cpu.prepare_group, decode_cpu.prepare)
    return model


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30], ids=str)
@pytest.mark.parametrize("kernels", ["reference", "cpp"])
@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
def test_padding_may_hold_anything(streams: tuple[object, ...], kernels: str, garbage: float) -> None:
    model = accelerated(model_of(*streams), kernels)
    features = features_of(streams, ROWS[: len(streams)])
    lengths = torch.stack([x.lengths for x in features.values()], 1)
    more = torch.cat([lengths, lengths.new_zeros(3, len(streams))])
    rows = [torch.cat([x.values, torch.full_like(x.values[:1], garbage).expand(7, -1)]) for x in features.values()]
    with torch.inference_mode():
        expected = plain(model, features)
        got = FusionNetwork(model)(more, *rows)
    torch.testing.assert_close(got[:5], expected, rtol=0, atol=1e-6)
    assert got.isfinite().all()  # clips without anything, too: the same as one that is not padding
    torch.testing.assert_close(got[5:], expected[3].expand(3, -1), rtol=0, atol=1e-6)


def test_through_buckets_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_Recorder", Plain)
    streams = (VOICE, FACE, TONE, EYES)
    model = model_of(*streams)
    network = FusionNetwork(model)
    largest = dict.fromkeys(network.spec.least, 64)
    runner = GraphedRunner(network, network.spec, largest, length=rows_bucket)
    cases = [ROWS, [[3], [0], [0], [1]], [[9, 9, 9], [1, 1, 2], [1, 0, 0], [3, 3, 3]], [[70], [1], [0], [0]]]
    with torch.inference_mode():
        for lengths in (*cases, *cases):
            features = features_of(streams, lengths)
            for flat in runner._flat[1:]:
                flat.fill_(torch.nan)  # what a larger bucket left there
            torch.testing.assert_close(run_padded(runner, features), plain(model, features), rtol=0, atol=1e-6)
    names = ("clips", *(f"{s.name} rows" for s in streams))
    sizes = [(8, 16, 8, 2, 16), (1, 4, 1, 1, 1), (4, 32, 4, 1, 16)]  # 70 rows are beyond the largest
    assert runner.buckets == [dict(zip(names, of, strict=True)) for of in sizes]


@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
def test_fusion_waits_for_nothing(streams: tuple[object, ...]) -> None:
    model = deepcopy(model_of(*streams)).to("meta")
    made = features_of(streams, ROWS[: len(streams)])
    features = {name: Ragged(x.values.to("meta"), x.offsets.to("meta")) for name, x in made.items()}
    with torch.inference_mode(), no_waits():
        assert plain(model, features).shape == run_padded(FusionNetwork(model), features).shape == (5, 7)


def test_elements_that_are_absent_belong_to_no_set() -> None:
    vectors = [torch.arange(3)[:, None] + 10.0 * k for k in range(3)]
    present = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    made = elements(vectors, list(present.T))
    assert made.offsets.tolist() == [0, 2, 2, 4]
    assert made.values.flatten().tolist() == [0, 20, 2, 12, 10, 1, 11, 21, 22]
