"""Passes through the model on a GPU: the CPU's results, no waits before a result is read, graphs, threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fusion_network import ROWS, plain
from test_inference import ROOT, window
from test_models import CASES, features_of, model_of

from merfast import bundle as bundles
from merfast.config import EngineConfig
from merfast.inference import Inference
from merfast.models.fusion_network import FusionNetwork, run_padded
from merfast.ops.ragged import Ragged
from merfast.plan import make_plan
from merfast.runtime.cuda_graphs import GraphedRunner, rows_bucket
from merfast.runtime.streams import WorkStream
from merfast.types import Window

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of tiny HuBERT and ViT."""
    pytest.importorskip("transformers", reason="needs transformers")
    import tiny_checkpoints as tiny

    from merfast.create import create

    folder = tmp_path_factory.mktemp("tiny")
    audio, video = (tiny.write(folder / name, name) for name in ("hubert", "vit"))
    create(folder / "bundle", audio=[audio], video=[video], layer="afg")
    return folder / "bundle"


def inference(root: Path, device: str, **options: str) -> Inference:
    config = bundles.read_config(root)
    plan = make_plan(EngineConfig(device=device, detector="none", **options), config)
    return Inference(root, config, plan, threads=1, batch_seconds=16.0)


def windows_for(made: Inference) -> list[Window]:
    size = made.bundle.config.preprocessing.crop_size
    return [window(1.0 + i % 5, i, crops=i % 4, size=size) for i in range(12)]


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("bundle", ["packaged", "foundation"])
def test_a_pass_waits_for_nothing_and_gives_what_the_cpu_gives(
    bundle: str, kernels: str, request: pytest.FixtureRequest
) -> None:
    root = ROOT if bundle == "packaged" else request.getfixturevalue("foundation")
    gpu, cpu = inference(root, "cuda", kernels=kernels), inference(root, "cpu", kernels="reference")
    windows = windows_for(gpu)
    expected = cpu.start(windows).result()
    for turn in range(3):
        if turn == 0:
            pending = gpu.start(windows)  # captures graphs, which waits
        else:
            with no_synchronisation():
                pending = gpu.start(windows)
        for (posterior, valence), (want, said) in zip(pending.result(), expected, strict=True):
            assert np.abs(posterior - want).max() <= 2e-3  # convolutions may use TF32
            assert abs(valence - said) <= 2e-2


def test_threads_share_a_stream() -> None:
    made = inference(ROOT, "cuda")
    windows = windows_for(made)
    expected = made.start(windows).result()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            each = list(pool.map(lambda w: made.start([w]).result()[0], windows))
            for (posterior, _), (want, _) in zip(each, expected, strict=True):
                assert np.abs(posterior - want).max() <= 2e-3


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("streams", CASES.values(), ids=CASES)
@torch.inference_mode()
def test_fusion_in_graphs_is_fusion(streams: tuple[object, ...], kernels: str) -> None:
    model = model_of(*streams).cuda()
    if kernels == "triton":
        from merfast.ops import afg_triton, decode_triton

        model.accelerate(afg_triton.prepare_group, decode_triton.prepare)
    network = FusionNetwork(model)
    runner = GraphedRunner(network, network.spec, dict.fromkeys(network.spec.least, 64), length=rows_bucket)
    shapes = [ROWS, [[3], [0], [0], [1]], [[40, 9], [1, 1], [1, 0], [3, 3]], [[50, 1, 1, 1, 1, 1], *[[0] * 6] * 3]]
    for _ in range(2):  # the second time by replaying, with other buckets used between
        for lengths in shapes:
            made = features_of(streams, lengths[: len(streams)])
            features = {n: Ragged(x.values.cuda(), x.offsets.cuda()) for n, x in made.items()}
            for flat in runner._flat[1:]:
                flat.fill_(torch.nan)
            torch.testing.assert_close(run_padded(runner, features), plain(model, features), rtol=1e-5, atol=1e-5)
    assert len(runner.buckets) == len(shapes)


def test_results_arrive_while_later_work_runs() -> None:
    stream = WorkStream(torch.device("cuda", torch.cuda.current_device()))
    x = torch.zeros(1 << 20, device="cuda")
    torch.cuda.synchronize()

    def work(value: float) -> torch.Tensor:
        torch.cuda._sleep(50_000_000)
        return (x + value).sum()[None]

    arriving = [stream.submit(lambda v=v: work(float(v))) for v in range(1, 5)]  # type: ignore[misc]
    for v, each in enumerate(arriving, 1):
        assert each.wait().item() == v * (1 << 20)
        assert each.wait().is_pinned()
