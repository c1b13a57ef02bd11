"""The one training loop. An epoch depends on (seed, epoch) alone, so a killed run goes on as if never stopped."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from merfast.files import replace_file
from training.data import DataError

M = TypeVar("M", bound=nn.Module)

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.csv"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW or SGD with a warm-up, then a cosine down to zero.

    Attributes:
        epochs: at most; fewer with early stopping.
        lr: highest learning rate.
        warmup: fraction of all steps in which the rate rises linearly.
        weight_decay: not on biases and other vectors.
        optimiser: "adamw" or "sgd" (Nesterov, momentum 0.9).
        ema: decay of the moving average of the weights, which is what is evaluated and kept; 0 without one.
        clip: largest norm of the gradient; 0 without a limit.
        patience: epochs without a better score before stopping; 0 always runs all epochs and keeps the last weights.
        precision: "fp32", or "bf16" for autocast; "auto" is bf16 on a GPU.
    """

    epochs: int = 20
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    optimiser: str = "adamw"
    ema: float = 0.0
    clip: float = 1.0
    patience: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.lr > 0 or not 0 <= self.warmup < 1 or not 0 <= self.ema < 1:
            raise DataError(f"schedule: expected epochs above 0, lr above 0, warmup and ema in [0, 1), got {self}")
        for name, choices in (("optimiser", ("adamw", "sgd")), ("precision", ("auto", "fp32", "bf16"))):
            if getattr(self, name) not in choices:
                raise DataError(f"schedule {name}: got {getattr(self, name)!r}, expected one of {', '.join(choices)}")

    def rate(self, progress: float) -> float:
        """Learning rate at a fraction of the whole run in [0, 1]."""
        if progress < self.warmup:
            return self.lr * max(progress / self.warmup, 1e-3)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass
class _State:
    """What a checkpoint holds besides tensors."""

    fingerprint: str
    epoch: int = 0  # epochs done
    best: float = -math.inf
    best_epoch: int = 0
    finished: bool = False
    history: list[dict[str, float]] = None  # type: ignore[assignment]


def fit(
    model: M,
    schedule: Schedule,
    *,
    folder: Path,
    seed: int,
    batches: Callable[[int, torch.Generator], Iterable[Any]],
    steps: int,
    loss: Callable[[nn.Module, Any], Tensor | dict[str, Tensor]],
    score: Callable[[nn.Module, int], dict[str, float]] | None = None,
    select: str = "score",
    fingerprint: str = "",
    progress: Callable[[str], None] | None = None,
) -> M:
    """Train `model`; returns a copy with the kept weights, in evaluation mode.

    After each epoch everything is written to one file in `folder`; called again, it goes on from there, and the result
    is the same to the bit as without the interruption (same machine, same number of threads).

    Args:
        model: on its device, with the weights to start from.
        schedule: see there.
        folder: for the checkpoint and the log.
        seed: with the epoch's number, all that randomness comes from; torch's global generator is seeded too.
        batches: epoch and generator -> the epoch's batches.
        steps: batches in an epoch.
        loss: model and batch -> the loss, or named terms of which "loss" is minimised and all are logged.
        score: the weights to be judged and the epoch -> named scores; with `patience`, `select` is maximised.
        select: the score that counts.
        fingerprint: what the run depends on; a checkpoint with another one is refused.
        progress: called with a line after each epoch.

    Raises:
        DataError: the folder holds another run's checkpoint or a damaged one, or the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    optimiser = _optimiser(model, schedule)
    average = copy.deepcopy(model) if schedule.ema else model
    best = copy.deepcopy(average).eval()
    state = _State(fingerprint, history=[])
    parts: dict[str, nn.Module] = {"model": model, "best": best}
    if schedule.ema:
        parts["average"] = average
    if (folder / CHECKPOINT).exists():
        state = _restore(folder / CHECKPOINT, parts, optimiser, fingerprint)
    autocast = schedule.precision == "bf16" or (schedule.precision == "auto" and device.type == "cuda")
    while not state.finished:
        epoch = state.epoch
        mixed = (seed * 1_000_003 + epoch * 7919 + 17) % 2**31
        torch.manual_seed(mixed)
        generator = torch.Generator().manual_seed(mixed)
        model.train()
        sums: dict[str, float] = {}
        done = 0
        for batch in batches(epoch, generator):
            step = epoch * steps + done
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step / (schedule.epochs * steps))
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                terms = loss(model, batch)
            terms = terms if isinstance(terms, dict) else {"loss": terms}
            optimiser.zero_grad(set_to_none=True)
            terms["loss"].backward()  # type: ignore[no-untyped-call]
            if schedule.clip:
                nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            optimiser.step()
            if schedule.ema:
                _follow(average, model, min(schedule.ema, (1 + step) / (10 + step)))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach())
            done += 1
        row = {"epoch": float(epoch + 1), "lr": schedule.rate((epoch + 1) / schedule.epochs)}
        row |= {name: total / max(done, 1) for name, total in sums.items()}
        if not done or not math.isfinite(row["loss"]):
            raise DataError(f"{folder}: epoch {epoch + 1}: got a loss of {row.get('loss')}, expected a finite one")
        average.eval()
        if score is not None:
            row |= score(average, epoch)
        state.history.append(row)
        state.epoch = epoch + 1
        value = row.get(select, -math.inf) if schedule.patience else float(epoch)
        if value > state.best:
            state.best, state.best_epoch = value, state.epoch
            best.load_state_dict(average.state_dict())
        stale = schedule.patience and state.epoch - state.best_epoch >= schedule.patience
        state.finished = bool(stale) or state.epoch == schedule.epochs
        _save(folder / CHECKPOINT, parts, optimiser, state)
        _write_log(folder / LOG, state.history)
        if progress is not None:
            progress("  ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return best


def _optimiser(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    wide = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    thin = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": wide, "weight_decay": schedule.weight_decay}, {"params": thin, "weight_decay": 0.0}]
    if schedule.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=schedule.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=schedule.lr)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, new in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(new)


def _save(file: Path, parts: dict[str, nn.Module], optimiser: torch.optim.Optimizer, state: _State) -> None:
    tensors = {f"{part}/{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    for index, entry in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(t) for name, t in entry.items() if t is not None}
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    replace_file(file, safetensors.torch.save(tensors, {"state": json.dumps(asdict(state))}))


def _restore(file: Path, parts: dict[str, nn.Module], optimiser: torch.optim.Optimizer, fingerprint: str) -> _State:
    try:
        with safetensors.safe_open(file, "pt") as entries:
            state = _State(**json.loads(entries.metadata()["state"]))
            tensors = {name: entries.get_tensor(name) for name in entries.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: damaged checkpoint ({error}): delete it to train anew") from error
    if state.fingerprint != fingerprint:
        raise DataError(
            f"{file}: checkpoint of another run: got fingerprint {state.fingerprint!r}, expected {fingerprint!r}; "
            "delete it or choose another folder"
        )
    for part, module in parts.items():
        prefix = f"{part}/"
        module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    entry: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser/"):
            _, index, key = name.split("/")
            entry.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": entry, "param_groups": optimiser.state_dict()["param_groups"]})
    return state


def _write_log(file: Path, history: list[dict[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in history)
    replace_file(file, text.getvalue().encode())
