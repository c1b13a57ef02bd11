"""The training loop: what it learns, and that a killed run ends as if it had never been stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.data import DataError
from training.loop import CHECKPOINT, LOG, Schedule, fit

STEPS = 8


def batches(epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(STEPS):
        x = torch.randn(16, 4, generator=generator)
        yield x, x.sum(1, keepdim=True)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))


def run(folder: Path, schedule: Schedule, **changes: object) -> nn.Module:
    options: dict[str, object] = {"folder": folder, "seed": 3, "batches": batches, "steps": STEPS, "loss": loss}
    return fit(network(), schedule, **(options | changes))  # type: ignore[arg-type]


def test_it_learns(tmp_path: Path) -> None:
    schedule = Schedule(epochs=30, lr=2e-2, ema=0.9)
    (batch, *_) = batches(0, torch.Generator().manual_seed(1))
    trained = run(tmp_path, schedule)
    with torch.no_grad():
        assert loss(trained, batch) < 0.2 * loss(network().eval(), batch)
    lines = (tmp_path / LOG).read_text().splitlines()
    assert lines[0] == "epoch,lr,loss"
    assert len(lines) == 31
    assert lines[-1].split(",")[1] == "0"  # the cosine has come down


@pytest.mark.parametrize("schedule", [Schedule(epochs=9, ema=0.9), Schedule(epochs=9, optimiser="sgd", lr=0.01)])
def test_resumed_is_uninterrupted(tmp_path: Path, schedule: Schedule) -> None:
    whole = run(tmp_path / "whole", schedule)

    class StopError(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("epoch 4"):
            raise StopError

    with pytest.raises(StopError):
        run(tmp_path / "parts", schedule, progress=stop)
    resumed = run(tmp_path / "parts", schedule)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (tmp_path / "whole" / LOG).read_bytes() == (tmp_path / "parts" / LOG).read_bytes()


def test_a_process_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; sys.path[:0] = sys.argv[1:3]\n"
        "import test_training_loop as t; from training.loop import Schedule\n"
        "pause = lambda line: time.sleep(0.2)\n"
        "t.run(pathlib.Path(sys.argv[3]), Schedule(epochs=40, ema=0.9), progress=pause)\n"
    )
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", code, str(here), str(here.parent), str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    log = tmp_path / "killed" / LOG
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert log.read_text().count("\n") < 40
    schedule = Schedule(epochs=40, ema=0.9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed, whole = run(tmp_path / "killed", schedule), run(tmp_path / "whole", schedule)
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(tmp_path, Schedule(epochs=2))

    def never(epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("trained again")

    again = run(tmp_path, Schedule(epochs=2), batches=never)
    assert torch.equal(first[0].weight, again[0].weight)  # type: ignore[index]


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    kept: dict[int, Tensor] = {}

    def score(model: nn.Module, epoch: int) -> dict[str, float]:
        kept[epoch] = model[0].weight.clone()  # type: ignore[index]
        return {"score": float(-abs(epoch - 3))}

    best = run(tmp_path, Schedule(epochs=50, patience=4), score=score)
    assert sorted(kept) == list(range(8))  # best at 3, four more without a better one
    assert torch.equal(best[0].weight, kept[3])  # type: ignore[index]
    assert not torch.equal(kept[7], kept[3])


def test_the_log_can_stand_alone(tmp_path: Path) -> None:
    run(tmp_path, Schedule(epochs=2), score=lambda model, epoch: {"f1": 0.25 * epoch})
    assert (tmp_path / LOG).read_text().splitlines()[0] == "epoch,lr,loss,f1"


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Schedule(epochs=1), fingerprint="one")
    with pytest.raises(DataError, match=r"got fingerprint 'one', expected 'two'"):
        run(tmp_path, Schedule(epochs=1), fingerprint="two")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Schedule(epochs=1))
    file = tmp_path / CHECKPOINT
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"checkpoint\.safetensors: damaged checkpoint"):
        run(tmp_path, Schedule(epochs=1))


def test_a_loss_of_nan_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"epoch 1: got a loss of nan"):
        run(tmp_path, Schedule(epochs=3), loss=lambda model, batch: loss(model, batch) * float("nan"))
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": 0.0}, {"optimiser": "lion"}, {"precision": "fp8"}, {"ema": 1.0}]
)
def test_schedules_check_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"schedule.*got"):
        Schedule(**wrong)  # type: ignore[arg-type]
