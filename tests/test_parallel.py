"""One engine over several devices: equal results in order, items to whoever is free, errors, and threads that end.

The CPU, named several times, stands for GPUs.
"""

from __future__ import annotations

import io
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_files import write_wav

import merfast
from merfast import bundle, cli
from merfast.clip import Clip
from merfast.demo import babble
from merfast.media.windows import WindowSpec
from merfast.parallel import Crew
from merfast.pipeline import prefetch_each
from merfast.trace import Tracer
from merfast.types import Failure, Prediction

pytestmark = pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")

RATE = 24_000
SECONDS = 60  # that a test waits for what must come


@pytest.fixture(scope="module")
def pair() -> merfast.Engine:
    return merfast.Engine(device=["cpu", "cpu"], detector="haar", threads=2)


@pytest.fixture(scope="module")
def one() -> merfast.Engine:
    return merfast.Engine(device="cpu", detector="haar", threads=2)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """WAV files of different sounds, 1 to 2 s."""
    folder, whole = tmp_path_factory.mktemp("sounds"), babble(6.0)
    cuts = [(i * RATE // 4, i * RATE // 4 + RATE + i * 2000) for i in range(12)]
    return [write_wav(folder / f"{i}.wav", whole[a:b], RATE).read_bytes() for i, (a, b) in enumerate(cuts)]


class Slow(io.BytesIO):
    """A file that does something before it is first read."""

    def __init__(self, content: bytes, before: Callable[[], object]) -> None:
        super().__init__(content)
        self._before: Callable[[], object] | None = before

    def read(self, size: int | None = -1, /) -> bytes:
        before, self._before = self._before, None
        if before is not None:
            before()
        return super().read(size)


def same(a: Prediction | Failure, b: Prediction | Failure) -> None:
    assert isinstance(a, Prediction)
    assert isinstance(b, Prediction)
    assert (a.modalities, a.start, a.end) == (b.modalities, b.start, b.end)
    assert np.abs(a.probabilities - b.probabilities).max() <= 1e-5
    assert abs(a.valence - b.valence) <= 1e-5


def threads_left() -> list[str]:
    """Threads of the engine that are still there after a while."""
    for _ in range(100):
        names = [t.name for t in threading.enumerate() if t.name == "merfast-prefetch"]
        if not names:
            break
        time.sleep(0.05)
    return names


def test_the_plan_shows_all_devices(pair: merfast.Engine, one: merfast.Engine) -> None:
    steps = {s.step: (s.implementation, s.reason) for s in pair.plan.steps}
    assert steps["device"] == ("cpu, cpu", "chosen; an item goes to the first that has room")
    assert pair.plan.steps[1:] == one.plan.steps[1:]
    assert pair.config.devices == ("cpu", "cpu")
    assert repr(pair) == "Engine('merfast-mini', cpu, cpu)"
    assert pair.bundle.config == one.bundle.config
    assert merfast.Engine(device=("cpu",), detector="none").plan.choice("device") == "cpu"


def test_results_are_those_of_one_engine(
    pair: merfast.Engine, one: merfast.Engine, face_clip: Path, sounds: list[bytes]
) -> None:
    long = Clip.from_arrays(audio=np.tile(babble(6.0), 6).astype(np.float32), sample_rate=RATE)  # 36 s: three windows
    items = [face_clip, long, *sounds, face_clip]
    done: list[int] = []
    with Tracer() as tracer:
        results = pair.predict(iter(items), progress=done.append)
    for got, expected in zip(results, one.predict(items), strict=True):
        same(got, expected)
    assert done == list(range(1, len(items) + 1))
    assert len(results[1].windows) == 3
    assert len({s.thread for s in tracer.spans if s.name == "pack"}) == 2  # both were at work
    assert results[2].source == "<bytes #2>"


def test_order_is_kept_whatever_items_take(pair: merfast.Engine, one: merfast.Engine, sounds: list[bytes]) -> None:
    pauses = random.Random(5)
    expected = one.predict(sounds)
    for _ in range(3):
        items = [Slow(s, lambda: time.sleep(pauses.random() / 10)) for s in sounds]
        for got, wanted in zip(pair.predict(items), expected, strict=True):
            same(got, wanted)


def test_a_long_item_does_not_hold_others_up(pair: merfast.Engine, sounds: list[bytes]) -> None:
    read = threading.Semaphore(0)
    late: list[int] = []

    def wait_for_the_others() -> None:
        late.extend(i for i in range(1, len(sounds)) if not read.acquire(timeout=SECONDS))

    items = [Slow(sounds[0], wait_for_the_others), *(Slow(s, read.release) for s in sounds[1:])]
    assert len(pair.predict(items)) == len(sounds)
    assert late == []


class Stuck:
    """A worker that is busy with its first item until it is told to go on."""

    ahead = 16

    def __init__(self, go_on: threading.Event) -> None:
        self.taken: list[object] = []
        self._go_on = go_on

    def readers(self, sources: Sequence[object], spec: object, *, every_face: bool) -> list[object]:
        return list(sources)

    def predict(self, readers: Iterable[Any], *, go_on: bool, ahead: Callable[[], int], read: object) -> Iterator[Any]:
        for item, stage in prefetch_each(readers, lambda item: iter([item]), ahead=ahead, size=1):
            self.taken.append(item)
            assert list(stage) == [item]
            assert self._go_on.wait(SECONDS)
            yield item

    def timeline(self, reader: object) -> Iterator[Any]:
        raise NotImplementedError


def test_few_items_wait_behind_a_long_one() -> None:
    go_on, free = threading.Event(), threading.Event()
    free.set()
    workers = [Stuck(go_on), Stuck(free)]
    items: list[Any] = list(range(40))
    seen: list[Any] = []
    stream = Crew(workers, ahead=16).predict(items, WindowSpec(1, 1), every_face=False, go_on=False)
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    enough = 40 - 8  # all but what the other one may have opened when it got stuck
    deadline = time.monotonic() + 10
    while len(workers[1].taken) < enough and time.monotonic() < deadline:
        time.sleep(0.01)
    done = len(workers[1].taken)
    go_on.set()
    reader.join()
    assert seen == items
    assert done >= enough


def test_reading_ends_when_nobody_waits_for_it(pair: merfast.Engine, tmp_path: Path, sounds: list[bytes]) -> None:
    half_hour = np.tile(babble(6.0), 300).astype(np.float32)
    content = write_wav(tmp_path / "long.wav", half_hour[::3], RATE // 3).read_bytes()
    go_on = threading.Event()

    class Gate(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert self.tell() < 1_000_000 or go_on.wait(SECONDS)
            return super().read(size)

    def broken(done: int) -> None:
        raise ZeroDivisionError

    file = Gate(content)
    with pytest.raises(ZeroDivisionError):
        pair.predict([sounds[0], file], progress=broken)
    go_on.set()
    assert threads_left() == []
    assert file.tell() < len(content) // 2


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_more_devices_than_items(count: int, one: merfast.Engine, sounds: list[bytes]) -> None:
    many = merfast.Engine(device="cpu,cpu , cpu", detector="none")
    results = many.predict(sounds[:count])
    assert len(results) == count
    for got, expected in zip(results, one.predict(sounds[:count]), strict=True):
        same(got, expected)
    assert threads_left() == []


def test_failures_take_their_place(pair: merfast.Engine, one: merfast.Engine, sounds: list[bytes]) -> None:
    items = [b"", sounds[0], "nowhere.mp4", sounds[1], sounds[2], b"no media at all", 3.5]
    results = pair.predict(items, on_error="return")  # type: ignore[list-item]
    expected = one.predict(items, on_error="return")  # type: ignore[list-item]
    assert [r.ok for r in results] == [False, True, False, True, True, False, False]
    for a, b in zip(results, expected, strict=True):
        if isinstance(b, Failure):
            assert a.to_dict() == b.to_dict()
        else:
            same(a, b)
    with pytest.raises(merfast.MediaError, match=r"nowhere\.mp4: no such file"):
        pair.predict([*sounds, "nowhere.mp4", *sounds])
    assert threads_left() == []
    assert len(pair.predict(sounds)) == len(sounds)  # it can still be used
    with pytest.raises(merfast.ConfigError, match="faces: got 'some'"):
        pair.predict([], faces="some")


def test_an_error_of_the_caller_ends_all_threads(pair: merfast.Engine, sounds: list[bytes]) -> None:
    def broken(done: int) -> None:
        if done == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pair.predict(sounds, progress=broken)
    assert threads_left() == []


def test_ctrl_c_ends_all_threads(pair: merfast.Engine, sounds: list[bytes]) -> None:
    main = threading.main_thread().ident
    assert main is not None
    go_on = threading.Event()

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        go_on.wait(SECONDS)  # so that the interrupt comes while results are waited for

    items = [Slow(sounds[0], interrupt), *(Slow(s, lambda: go_on.wait(SECONDS)) for s in sounds[1:])]
    with pytest.raises(KeyboardInterrupt):
        pair.predict(items)
    go_on.set()
    assert threads_left() == []
    same(pair.predict(sounds[:1])[0], pair.predict(sounds[:1])[0])


def test_several_callers_share_the_devices(pair: merfast.Engine, one: merfast.Engine, sounds: list[bytes]) -> None:
    expected = one.predict(sounds)
    results: dict[int, list[Prediction]] = {}

    def call(number: int) -> None:
        results[number] = pair.predict(sounds)

    callers = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert sorted(results) == [0, 1, 2, 3]
    for each in results.values():
        for got, wanted in zip(each, expected, strict=True):
            same(got, wanted)


def test_timelines_are_shared_out(pair: merfast.Engine, one: merfast.Engine, face_clip: Path) -> None:
    workers = pair._crew._workers  # type: ignore[union-attr]
    used: list[int] = []

    def watched(number: int) -> Callable[..., Iterator[Prediction]]:
        original = type(workers[number]).timeline

        def timeline(reader: object) -> Iterator[Prediction]:
            used.append(number)
            return original(workers[number], reader)  # type: ignore[arg-type]

        return timeline

    for number, worker in enumerate(workers):
        worker.timeline = watched(number)  # type: ignore[method-assign]
    try:
        lines = [pair.timeline(face_clip, window=1, hop=0.5) for _ in range(2)]
        assert used == []  # nothing is read, and nobody busy, before it is asked for
        first = [next(line) for line in lines]
        assert used == [0, 1]
        rest = [[start, *line] for start, line in zip(first, lines, strict=True)]
        closed = pair.timeline(face_clip, window=1, hop=0.5)
        next(closed)
        closed.close()  # type: ignore[attr-defined]
        next(pair.timeline(face_clip, window=1, hop=0.5))
        assert used == [0, 1, 0, 0]  # who is done, or closed, has nothing to do
    finally:
        for worker in workers:
            del worker.timeline  # type: ignore[attr-defined]
    for windows in rest:
        for got, expected in zip(windows, one.timeline(face_clip, window=1, hop=0.5), strict=True):
            same(got, expected)
    with pytest.raises(merfast.ConfigError, match="window"):
        pair.timeline(face_clip, window=99)
    with pytest.raises(merfast.ConfigError, match="faces"):
        pair.timeline(face_clip, faces="some")
    assert threads_left() == []


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (["cpu", "tpu"], "got 'tpu', among 'cpu,tpu', expected 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        ("cpu,", "got '', among 'cpu,'"),
        ([], "got '', expected 'auto'"),
        ([0, 1], r"got \[0, 1\], expected a string like 'cpu'"),
        (["auto", "cpu"], "got 'auto', among 'auto,cpu', expected each device by name"),
        (["cpu", "cuda:0"], "got 'cpu,cuda:0', expected devices of one kind"),
        (["cuda:0", "cuda:1", "cuda:0"], "got 'cuda:0,cuda:1,cuda:0', expected each GPU once"),
        ("cuda,cuda:0", "got 'cuda,cuda:0', expected each GPU once"),
    ],
)
def test_devices_that_do_not_go_together(device: list[str] | str, message: str) -> None:
    with pytest.raises(merfast.ConfigError, match=message):
        merfast.Engine(device=device)


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(merfast.UnavailableError, match=r"device 'cuda:7[67]': found"):
        merfast.Engine(device=["cuda:76", "cuda:77"])


def test_several_devices_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--device", "cpu,cpu", "--detector", "haar"]) == 0
    assert "cpu, cpu" in capsys.readouterr().out
    assert cli.main(["compile", str(bundle.directory(None)), "--device", "cpu,cpu"]) == 2
    assert "--device: got 'cpu,cpu', expected one" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_several_gpus_agree_with_one(face_clip: Path, sounds: list[bytes]) -> None:
    items = [face_clip, *sounds]
    both = merfast.Engine(device=["cuda:0", "cuda:1"], detector="haar")
    assert both.plan.choice("device") == "cuda:0, cuda:1"
    for got, expected in zip(both.predict(items), merfast.Engine(device="cuda:0").predict(items), strict=True):
        assert isinstance(got, Prediction)
        assert isinstance(expected, Prediction)
        assert np.abs(got.probabilities - expected.probabilities).max() <= 2e-3
