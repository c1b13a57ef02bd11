"""Passes through the model: results against the model itself, pipelining of passes, and what streams wait for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import merfast
from merfast import bundle as bundles
from merfast.clip import Clip
from merfast.config import EngineConfig
from merfast.inference import Inference, Pending
from merfast.models import inputs_of
from merfast.plan import make_plan
from merfast.runtime.streams import WorkStream
from merfast.types import SAMPLE_RATE, Batch, Failure, Prediction, Window

ROOT = bundles.directory(None)


def window(seconds: float, seed: int = 0, crops: int = 3, size: int = 48) -> Window:
    random = np.random.default_rng(seed)
    audio = random.standard_normal(int(seconds * SAMPLE_RATE), dtype=np.float32) * 0.1
    pictures = random.integers(0, 256, (crops, size, size, 3), dtype=np.uint8)
    return Window(0.0, seconds, audio, pictures, crops, 0, {})


def clip(seconds: float, seed: int = 0) -> Clip:
    w = window(seconds, seed, crops=int(5 * seconds))
    return Clip.from_arrays(w.crops, fps=5, audio=w.audio, sample_rate=SAMPLE_RATE, faces="given", name=f"clip {seed}")


def inference(root: Path = ROOT, batch_seconds: float = 64.0) -> Inference:
    config = bundles.read_config(root)
    plan = make_plan(EngineConfig(device="cpu", detector="none"), config)
    return Inference(root, config, plan, threads=1, batch_seconds=batch_seconds)


def test_results_are_the_models_in_passes_of_so_many_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [window(s, i, crops=i % 3) for i, s in enumerate([1.0, 2.5, 0.5, 4.0, 1.0, 1.0, 1.0])]
    made = inference(batch_seconds=3.0)
    model = bundles.load(ROOT).model
    packed: list[list[float]] = []
    pack = Batch.pack

    def watched(of: Any) -> Batch:
        packed.append([w.end for w in of])
        return pack(of)

    monkeypatch.setattr(Batch, "pack", watched)
    results = made.start(windows).result()
    assert packed == [[1.0], [2.5, 0.5], [4.0], [1.0, 1.0, 1.0]]  # a long one goes alone
    assert made.start([]).result() == []
    with torch.inference_mode():
        posterior, valence = model(*inputs_of(pack(windows)))
    assert len(results) == len(windows)
    for (p, v), expected_p, expected_v in zip(results, posterior.numpy(), valence.tolist(), strict=True):
        np.testing.assert_allclose(p, expected_p, rtol=0, atol=1e-5)
        assert abs(v - expected_v) <= 1e-4
        assert p.dtype == np.float32


def test_results_are_read_in_any_order_and_by_many_threads() -> None:
    made = inference()
    windows = [window(1.0 + i / 8, i) for i in range(8)]
    expected = made.start(windows).result()
    pending = [made.start([w]) for w in windows]
    for i in reversed(range(8)):
        for _ in range(2):
            np.testing.assert_allclose(pending[i].result()[0][0], expected[i][0], rtol=0, atol=1e-5)
    with ThreadPoolExecutor(4) as pool:
        for got, (posterior, _) in zip(pool.map(lambda w: made.start([w]).result(), windows), expected, strict=True):
            np.testing.assert_allclose(got[0][0], posterior, rtol=0, atol=1e-5)


def test_weights_of_nan_are_said_where_the_result_is_read() -> None:
    made = inference()
    with torch.no_grad():
        made.bundle.model.structures["flat"].gather.score.fill_(torch.nan)
    made.bundle.model.accelerate(None)
    pending = made.start([window(1.0)])
    with pytest.raises(merfast.BundleError, match=r"its weights give predictions of NaN"):
        pending.result()


# Pipelining: what a GPU is given to do while results are read. On the CPU the order alone can be shown.


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Writes down starts and results, as "start 1", "result 1"."""
    said: list[str] = []
    numbers: dict[Pending, int] = {}
    start, result = Inference.start, Pending.result

    def started(self: Inference, windows: Any) -> Pending:
        pending = start(self, windows)
        numbers[pending] = len(numbers) + 1
        said.append(f"start {numbers[pending]}")
        return pending

    def read(self: Pending) -> Any:
        said.append(f"result {numbers[self]}")
        return result(self)

    monkeypatch.setattr(Inference, "start", started)
    monkeypatch.setattr(Pending, "result", read)
    return said


def engine_of(ahead: int) -> merfast.Engine:
    engine = merfast.Engine(device="cpu", detector="none", batch_seconds=2.0)
    engine._workers[0].inference.ahead = ahead
    return engine


def values(results: list[Any]) -> list[Any]:
    return [(r.source, str(r.error) if isinstance(r, Failure) else r.probabilities.tolist()) for r in results]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_the_next_pass_is_started_before_a_result_is_read(ahead: int, said: list[str]) -> None:
    silent = Clip.from_arrays(audio=np.zeros(900, np.float32), sample_rate=SAMPLE_RATE, name="silent")
    items = [clip(1.0, 1), clip(1.2, 2), silent, clip(20.0, 3), "nowhere.mp4", clip(0.9, 4), clip(1.3, 5), clip(0.5, 6)]
    done: list[int] = []
    got = engine_of(ahead).predict(items, on_error="return", progress=done.append)  # type: ignore[arg-type]
    assert done == list(range(1, 9))
    passes = 5  # clips 1 and 2; both windows of clip 3, which are long; 4 and 5; 6
    order = [f"start {i}" for i in range(1, ahead + 1)]
    for i in range(1, passes + 1):
        order += [f"start {i + ahead}"] * (i + ahead <= passes) + [f"result {i}"]
    assert said == order
    said.clear()
    assert values(got) == values(engine_of(0).predict(items, on_error="return"))  # type: ignore[arg-type]
    assert [isinstance(g, Failure) for g in got] == [False, False, True, False, True, False, False, False]
    with pytest.raises(merfast.MediaError, match=r"nowhere\.mp4"):
        engine_of(ahead).predict(items[3:])  # type: ignore[arg-type]


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_timeline_gives_the_same_and_leaves_nothing_unread(ahead: int, said: list[str]) -> None:
    engine, item = engine_of(ahead), clip(24.0, 7)
    rows = list(engine.timeline(item, window=2.0, hop=1.0))
    expected = list(engine_of(0).timeline(item, window=2.0, hop=1.0))
    assert [(r.start, r.end) for r in rows] == [(r.start, r.end) for r in expected]
    for mine, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(mine.probabilities, other.probabilities, rtol=0, atol=1e-5)
    for which in ("start", "result"):
        numbers = [int(s.split()[1]) for s in said if s.startswith(which)]
        assert numbers == sorted(numbers) == list(range(1, len(numbers) + 1))
    under_way = 0
    for each in said:
        under_way += 1 if each.startswith("start") else -1
        assert 0 <= under_way <= ahead + 1


def test_a_timeline_that_breaks_gives_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from merfast.pipeline import ItemReader

    whole = ItemReader._windows

    def broken(self: ItemReader) -> Iterator[list[Window]]:
        for i, group in enumerate(whole(self)):
            if i == 5:
                raise merfast.MediaError(self.name, "breaks off")
            yield group

    monkeypatch.setattr(ItemReader, "_windows", broken)
    rows: list[Prediction] = []
    with pytest.raises(merfast.MediaError, match="breaks off"):
        rows.extend(engine_of(1).timeline(clip(12.0), window=1.0, hop=1.0))
    assert [r.start for r in rows] == [0.0, 1.0, 2.0, 3.0, 4.0]


# Streams.


class Device:
    """Stands for CUDA's streams and events, and writes down what they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        device = self

        class Stream:
            def __init__(self, name: object) -> None:
                self.name = name if isinstance(name, str) else "own"

            def wait_stream(self, other: Stream) -> None:
                device.said.append(f"{self.name} waits for {other.name}")

        class Event:
            def record(self, stream: Stream) -> None:
                device.said.append(f"event on {stream.name}")

            def synchronize(self) -> None:
                device.said.append("host waits")

        @contextmanager
        def current(stream: Stream) -> Iterator[None]:
            device.said.append(f"current {stream.name}")
            yield
            device.said.append("current caller's")

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", current)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("caller's"))


def test_only_the_result_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    queue = WorkStream(torch.device("cuda", 0))
    assert device.said == ["own waits for caller's"]
    device.said.clear()

    def work() -> torch.Tensor:
        device.said.append("work")
        return torch.arange(3)

    arriving = queue.submit(work)
    assert device.said == ["current own", "work", "event on own", "current caller's"]
    device.said.clear()
    assert arriving.wait().tolist() == [0, 1, 2]
    assert device.said == ["host waits"]


def test_on_the_cpu_work_is_done_at_once() -> None:
    assert WorkStream(torch.device("cpu")).submit(lambda: torch.arange(2)).wait().tolist() == [0, 1]
