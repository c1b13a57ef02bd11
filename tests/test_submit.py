"""Requests of many callers on one engine: shared passes, turns, limits, and errors that stay with their request."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merfast
from merfast.clip import Clip
from merfast.errors import ConfigError, DeadlineError, MediaError, OverloadedError
from merfast.inference import Inference, Pending
from merfast.types import Failure, Prediction, Window


def clip(seconds: float = 1.0, seed: int = 0) -> Clip:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * 16_000)).astype(np.float32) * 0.1
    return Clip.from_arrays(audio=noise, sample_rate=16_000, name=f"clip {seed}")


class Gate(io.BytesIO):
    """A file that is not read on before it is opened."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reached, self.opened = threading.Event(), threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.reached.set()
        assert self.opened.wait(60)
        return super().read(size)


@pytest.fixture
def engine() -> Iterator[merfast.Engine]:
    """With two readers."""
    with merfast.Engine(device="cpu", threads=1, detector="none", max_queue=8) as engine:
        yield engine


@pytest.fixture
def gates(engine: merfast.Engine, face_clip: Path) -> Iterator[list[Gate]]:
    """Both readers wait at one."""
    gates = [Gate(face_clip.read_bytes()) for _ in range(2)]
    futures = [engine.submit(gate) for gate in gates]
    for gate in gates:
        assert gate.reached.wait(30)
    yield gates
    for gate in gates:
        gate.opened.set()
    for future in futures:
        assert future.result(60).emotion


def open_all(gates: list[Gate]) -> None:
    for gate in gates:
        gate.opened.set()


def order(futures: dict[str, Future[Prediction]]) -> list[str]:
    """Names in the order in which they were answered."""
    done: list[str] = []
    for name, future in futures.items():
        future.add_done_callback(lambda _, name=name: done.append(name))
    for future in futures.values():
        future.result(60)
    return done


def test_results_are_those_of_predict(engine: merfast.Engine, face_clip: Path) -> None:
    items = [face_clip, clip(2.0), clip(20.0, 1), face_clip.read_bytes(), clip(0.5, 2)]
    futures = [engine.submit(item) for item in items]
    for future, expected in zip(futures, engine.predict(items), strict=True):
        got = future.result(60)
        assert np.abs(got.probabilities - expected.probabilities).max() < 1e-5
        assert (got.end, len(got.windows)) == (expected.end, len(expected.windows))


def test_an_item_that_fails_harms_no_other(engine: merfast.Engine, tmp_path: Path) -> None:
    silent = Clip.from_arrays(audio=np.zeros(16_000, np.float32), sample_rate=16_000, name="silent")
    futures = [engine.submit(item) for item in (clip(), tmp_path / "none.mp4", silent, b"junk", clip(1.0, 1))]
    for place, message in ((1, "none.mp4: no such file"), (2, "silent: holds nothing"), (3, "cannot be read as media")):
        with pytest.raises(MediaError, match=message):
            futures[place].result(60)
    assert futures[0].result(60).emotion
    assert futures[4].result(60).emotion


def test_callers_share_passes(engine: merfast.Engine, gates: list[Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    held, go_on = threading.Event(), threading.Event()
    original = Inference.start

    def counted(self: Inference, windows: list[Window]) -> Pending:
        passes.append(len(windows))
        if len(passes) == 1:
            held.set()
            assert go_on.wait(30)
        return original(self, windows)

    monkeypatch.setattr(Inference, "start", counted)
    gates[0].opened.set()  # one reader goes on, and its pass is held up
    assert held.wait(30)
    futures = [engine.submit(clip(1.0, i), source=i) for i in range(5)]
    ready = engine._schedulers[0]._ready
    while len(ready) < 5:
        assert not any(future.done() for future in futures)
    go_on.set()
    for future in futures:
        future.result(60)
    assert passes == [1, 5]


def test_a_pass_that_fails_is_tried_again_one_by_one(
    engine: merfast.Engine, gates: list[Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Inference.start

    def poisoned(self: Inference, windows: list[Window]) -> Pending:
        if any(w.end == 2.0 for w in windows):
            raise RuntimeError("poison")
        return original(self, windows)

    monkeypatch.setattr(Inference, "start", poisoned)
    futures = [engine.submit(clip(seconds, i)) for i, seconds in enumerate((1.0, 2.0, 3.0))]
    open_all(gates)
    assert futures[0].result(60).emotion
    assert futures[2].result(60).emotion
    with pytest.raises(merfast.MerfastError, match=r"clip 1: .*poison"):
        futures[1].result(60)


def test_priority_then_fairness(engine: merfast.Engine, gates: list[Gate]) -> None:
    futures = {f"much {i}": engine.submit(clip(), source="much") for i in range(4)}
    futures["little"] = engine.submit(clip(), source="little")
    futures["urgent"] = engine.submit(clip(), source="much", priority=1)
    gates[0].opened.set()
    done = order(futures)
    assert done[0] == "urgent"
    assert done.index("little") <= 2


def test_more_than_may_wait_is_refused(engine: merfast.Engine, gates: list[Gate]) -> None:
    futures = [engine.submit(clip(1.0, i)) for i in range(6)]
    with pytest.raises(OverloadedError, match="engine: got a request while 8 wait, expected fewer than 8"):
        engine.submit(clip())
    assert futures[3].cancel()  # which makes room
    futures.append(engine.submit(clip()))
    open_all(gates)
    for i, future in enumerate(futures):
        if i == 3:
            with pytest.raises(CancelledError):
                future.result(60)
        else:
            assert future.result(60).emotion
    assert engine.drain(60)
    assert engine._schedulers[0].waiting == 0


def test_deadlines(engine: merfast.Engine, gates: list[Gate]) -> None:
    late = engine.submit(clip(), deadline=0.001)
    early = engine.submit(clip(), deadline=600.0)
    threading.Event().wait(0.01)
    open_all(gates)
    with pytest.raises(DeadlineError, match=r"clip 0: was not predicted within 0.001 s"):
        late.result(60)
    assert early.result(60).emotion


def test_what_cannot_be_done_in_time_is_refused_at_once(engine: merfast.Engine, gates: list[Gate]) -> None:
    engine._schedulers[0]._interval = 10.0  # seconds that a request has taken of late
    with pytest.raises(OverloadedError, match="a deadline in 1 s, while 2 others wait that take about 30 s"):
        engine.submit(clip(), deadline=1.0)


def test_a_request_is_over_when_its_engine_is_closed(face_clip: Path) -> None:
    engine = merfast.Engine(device="cpu", threads=1, detector="none")
    gate = Gate(face_clip.read_bytes())
    futures = [engine.submit(gate), engine.submit(clip())]
    assert gate.reached.wait(30)
    threading.Timer(0.2, gate.opened.set).start()
    engine.close()
    for future in futures:
        assert future.cancelled() or future.exception(60) is not None or future.result(60).emotion
    assert futures[0].cancelled()


def test_in_an_event_loop(engine: merfast.Engine, face_clip: Path, tmp_path: Path) -> None:
    items = [face_clip, *(clip(1.0, i) for i in range(30)), clip(20.0, 1)]  # more than may wait
    expected = engine.predict(items)

    async def main() -> None:
        got = await engine.predict_async(items)
        for a, b in zip(got, expected, strict=True):
            assert isinstance(a, Prediction)
            assert np.abs(a.probabilities - b.probabilities).max() < 1e-5
        mixed = await engine.predict_async([clip(), tmp_path / "none.mp4"], on_error="return")
        assert [r.ok for r in mixed] == [True, False]
        assert isinstance(mixed[1], Failure)
        with pytest.raises(MediaError, match="no such file"):
            await engine.predict_async([clip(), tmp_path / "none.mp4"])
        with pytest.raises(ConfigError, match="expected a list"):
            await engine.predict_async(face_clip)  # type: ignore[arg-type]

    asyncio.run(main())


def test_an_awaited_batch_can_be_cancelled(engine: merfast.Engine, gates: list[Gate]) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(engine.predict_async([clip(1.0, i) for i in range(5)]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert engine._schedulers[0].waiting == 2  # the gates
    open_all(gates)
    assert engine.drain(60)


def test_several_devices_share_requests(face_clip: Path) -> None:
    with merfast.Engine(device=["cpu", "cpu"], threads=2, detector="none") as engine:
        futures = [engine.submit(clip(1.0, i)) for i in range(8)]
        expected = engine.predict([clip(1.0, i) for i in range(8)])
        for future, one in zip(futures, expected, strict=True):
            assert np.abs(future.result(60).probabilities - one.probabilities).max() < 1e-5
        assert all(scheduler._threads for scheduler in engine._schedulers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": 0}, "deadline: got 0, expected seconds above 0"),
        ({"deadline": float("nan")}, "deadline: got nan"),
        ({"priority": 1.5}, "priority: got 1.5"),
        ({"faces": "some"}, "faces: got 'some'"),
    ],
)
def test_bad_options(engine: merfast.Engine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.submit(clip(), **options)
