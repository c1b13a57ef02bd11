"""`Inference`: a bundle and a plan on one device, windows in, posteriors and valences out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from merfast import compiled
from merfast.attention import Attention
from merfast.config import BundleConfig
from merfast.errors import BundleError
from merfast.explain import attention_of
from merfast.models.fusion_network import CLIPS, FusionNetwork, rows_of, run_padded
from merfast.models.model import inputs_of
from merfast.ops import afg_cpu, decode_cpu, group_norm_gelu_cpu
from merfast.ops.afg import Prepare
from merfast.ops.decode import PrepareDecode
from merfast.ops.group_norm_gelu import PrepareNorm
from merfast.plan import Plan
from merfast.reuse import Reuse
from merfast.runtime.cuda_graphs import GraphedRunner, rows_bucket
from merfast.runtime.spec import Runner
from merfast.runtime.streams import Arriving, WorkStream
from merfast.trace import span
from merfast.types import EMOTIONS, SAMPLE_RATE, Batch, Window

Result = tuple[np.ndarray, float]
"""Posterior `[6]` and valence of a window."""

_CPU_SECONDS = 16.0  # of media that go through foundation models at a time on the CPU: more takes memory, no less time

# Fusion of so much is in a CUDA graph; more keeps the GPU busy without one.
_GRAPH_CLIPS, _GRAPH_ROWS = 64, 8192
_FUSION_GRAPHS = 64  # sizes go up to powers of two: these are more than windows of usual lengths need

_WARM_SECONDS = 4.0  # length of the windows that a GPU is made ready with


@dataclass
class _Pass:
    """B windows that go through the model together.

    Attributes:
        count: B.
        windows: they, if any of them asks for the attention of its prediction, else nothing.
        sizes: then, stream name -> number of feature vectors of each window.
        arriving: predictions `[B, 7]`, and behind them the weights of each stream's feature vectors.
    """

    count: int
    windows: Sequence[Window] = ()
    sizes: dict[str, list[int]] = field(default_factory=dict)
    arriving: Arriving = field(init=False)

    def wait(self) -> tuple[Tensor, list[Tensor]]:
        """`[B, 7]`, and the weights `[N]` of each stream, once they are there."""
        width, rows = len(EMOTIONS) + 1, [sum(sizes) for sizes in self.sizes.values()]
        table, *weights = torch.split(self.arriving.wait().flatten(), [self.count * width, *rows])
        return table.view(-1, width), weights


class Pending:
    """Windows on their way through the model; `Inference.start` makes it."""

    def __init__(self, config: BundleConfig, passes: Sequence[_Pass]) -> None:
        self._config, self._passes = config, passes

    def wait(self) -> None:
        """Wait for the device to be done with these windows, and for nothing that was started later."""
        for each in self._passes:
            each.arriving.wait()

    def result(self) -> list[Result]:
        """Posterior `[6]` and valence of each window, in order.

        Raises:
            BundleError: the bundle's weights give NaN.
        """
        out: list[Result] = []
        for each in self._passes:
            with span("result"):
                rows, _ = each.wait()
            if not bool(rows.isfinite().all()):
                raise BundleError(f"bundle {self._config.name!r}: its weights give predictions of NaN")
            array = rows.numpy().copy()  # not the pinned memory, which is scarce
            out += [(row[: len(EMOTIONS)], float(row[-1])) for row in array]
        return out

    def attention(self) -> list[Attention | None]:
        """Of each window's prediction, in order; None where it was not asked for."""
        out: list[Attention | None] = []
        for each in self._passes:
            if not each.windows:
                out += [None] * each.count
                continue
            _, weights = each.wait()
            rows = {name: torch.split(w, sizes) for (name, sizes), w in zip(each.sizes.items(), weights, strict=True)}
            for b, window in enumerate(each.windows):
                own = {name: parts[b].numpy() for name, parts in rows.items()}
                out.append(attention_of(window, own, self._config) if window.explain else None)
        return out


class Inference:
    """A bundle's model on the device of a plan; safe to use from many threads.

    On a GPU all work is queued on one stream that is not the default one (see `WorkStream`): threads take turns, pass
    by pass, and none of them waits for the GPU before `Pending.result`.

    It is made ready here for single windows of 4 s and for full passes of them: kernels are compiled, libraries loaded,
    CUDA graphs captured. Left to the first windows, that would be their latency, and every capture stops the passes of
    all threads.

    Args:
        root: directory of the bundle.
        config: of the bundle.
        plan: what runs each step.
        threads: of the CPU, for kernels and compiled encoders.
        batch_seconds: how many seconds of media go through the model at a time, at most (but one window at least).

    Attributes:
        bundle: with its model on the device.
        device: of torch.
        pass_seconds: `batch_seconds`, or less on the CPU with foundation models.
        ahead: how many starts should be made before the first of their results is read: 1 on a GPU, so that it has
            work while results are read and windows packed; 0 on the CPU, where `start` itself does the work.

    Raises:
        BundleError: the bundle is not one.
        UnavailableError: what compiling an encoder needs is not here.
    """

    def __init__(self, root: Path, config: BundleConfig, plan: Plan, *, threads: int, batch_seconds: float) -> None:
        self.device = torch.device(plan.choice("device"))
        targets = compiled.targets_of(config, plan, threads)
        self.bundle = compiled.load(root, config, targets, _norm_kernel(plan.choice("afg"), threads))
        self._model = self.bundle.model.to(self.device)
        gather = _gather_kernel(plan.choice("afg"), threads)
        self._model.accelerate(gather, _decode_kernel(plan.choice("joint decoding")))
        self._pictured = [s.name for s in config.streams if s.modality == "video"]
        slow = self.device.type == "cpu" and bool(self._model.foundations)
        self.pass_seconds = min(batch_seconds, _CPU_SECONDS) if slow else batch_seconds
        network = FusionNetwork(self._model)
        self._fusion: Runner = network
        self.ahead = 0
        if self.device.type == "cuda":
            self.ahead = 1
            largest = {CLIPS: _GRAPH_CLIPS, **{rows_of(s.name): _GRAPH_ROWS for s in config.streams}}
            self._fusion = GraphedRunner(
                network, network.spec, largest, device=self.device, length=rows_bucket, graphs=_FUSION_GRAPHS
            )
        self._work = WorkStream(self.device)  # after all that it uses
        if self.device.type == "cuda":
            self._warm_up()

    def start(self, windows: Sequence[Window]) -> Pending:
        """Queue windows, in passes of so many seconds at most; on the CPU, predict them.

        Crops on a device may be let go at once. The GPU waits for what makes them, where the windows say what that is.

        Args:
            windows: each with sound, face or both.
        """
        passes = []
        for part in self._passes(windows):
            passes.append(_Pass(len(part), part if any(w.explain for w in part) else ()))
            passes[-1].arriving = self._work.submit(partial(self._run, part, passes[-1]))
        return Pending(self.bundle.config, passes)

    def _passes(self, windows: Sequence[Window]) -> Iterator[list[Window]]:
        rest = list(windows)
        while rest:
            ends = np.cumsum([w.end - w.start for w in rest])
            count = max(1, int(np.searchsorted(ends, self.pass_seconds, side="right")))
            yield rest[:count]
            del rest[:count]

    @torch.inference_mode()
    def _run(self, windows: Sequence[Window], each: _Pass) -> Tensor:
        """What the pass is to bring, on the device."""
        with span("pack"):
            reuse = Reuse(windows)
            audio, crops = inputs_of(Batch.pack(reuse.windows), self.device)
        features = reuse.complete(self._model.encode(audio, crops), self._pictured)
        with span("fuse"):
            if not each.windows:
                return run_padded(self._fusion, features)
            each.sizes |= {name: list(x.host_sizes()) for name, x in features.items()}
            vectors, weights = self._model.explain(features)
            posterior, valence = self._model.average(vectors)
            rows = [weights[name][: sum(sizes)] for name, sizes in each.sizes.items()]
            return torch.cat([torch.cat([posterior, valence[:, None]], 1).flatten(), *rows])

    def example(self, seconds: float) -> Window:
        """A window of noise, to be made ready with."""
        preprocessing, noise = self.bundle.config.preprocessing, np.random.default_rng(0)
        count, size = max(1, round(seconds * preprocessing.frame_rate)), preprocessing.crop_size
        audio = noise.standard_normal(round(seconds * SAMPLE_RATE), dtype=np.float32) * 0.1
        crops = noise.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return Window(0.0, seconds, audio, crops, count, 0, {})

    def _warm_up(self) -> None:
        seconds = min(_WARM_SECONDS, self.bundle.config.preprocessing.max_window)
        window = self.example(seconds)
        for together in (1, min(_GRAPH_CLIPS, max(1, int(self.pass_seconds / seconds)))):
            self.start([window] * together).wait()


def _gather_kernel(choice: str, threads: int) -> Prepare | None:
    """What the gatherings run on, None for the reference."""
    if choice == "triton":
        from merfast.ops import afg_triton

        return afg_triton.prepare_group
    if choice.startswith("cpp-"):
        return partial(afg_cpu.prepare_group, isa=choice.removeprefix("cpp-"), threads=threads)
    return None


def _decode_kernel(choice: str) -> PrepareDecode | None:
    """What joint decoding runs on, None for the reference."""
    if choice == "triton":
        from merfast.ops import decode_triton

        return decode_triton.prepare
    return partial(decode_cpu.prepare, isa=choice.removeprefix("cpp-")) if choice.startswith("cpp-") else None


def _norm_kernel(choice: str, threads: int) -> PrepareNorm | None:
    """What the masked GroupNorm of speech models runs on, None for the reference."""
    if choice == "triton":
        from merfast.ops import group_norm_gelu_triton

        return group_norm_gelu_triton.prepare
    if choice.startswith("cpp-"):
        return partial(group_norm_gelu_cpu.prepare, isa=choice.removeprefix("cpp-"), threads=threads)
    return None
