"""The two sides of `benchmarks.pipeline`, each in a process of its own that answers its parent's requests.

    python -m benchmarks.pipeline_sides reference|engine --work FOLDER ...

A request is a line of text, an answer a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

BEGAN = time.perf_counter()  # before anything large is imported
# ruff: noqa: E402

import numpy as np
import torch
from torch import Tensor

from benchmarks.pipeline_inputs import CROPS, FACE, VOICE, Media, read_clips
from merfast.types import SAMPLE_RATE

Answer = tuple[np.ndarray, np.ndarray]
"""Posterior `[n, 6]` and valence `[n]` of n clips."""


class Side(Protocol):
    """Something that predicts clips."""

    def predict(self, clips: Sequence[Media]) -> Answer: ...


class Stopwatch:
    """Seconds of parts; on a GPU the clock is read when its work is done."""

    def __init__(self, device: str) -> None:
        self.on = False
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait: Callable[[], None] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] += time.perf_counter() - began


class Reference:
    """What research scripts do: transformers, fp32, eager, one clip at a time, with all hidden states.

    All states are kept, stacked, and gathered by attention. What follows is merfast's reference in torch.
    """

    def __init__(self, root: Path, device: str, watch: Stopwatch) -> None:
        import transformers

        from merfast import bundle as bundles
        from merfast.compiled import Described
        from merfast.models.checkpoints import Checkpoint

        self.device, self.watch = device, watch
        folders = {name: bundles.encoder_folder(root, name) for name in (VOICE, FACE)}
        self.hubert = transformers.HubertModel.from_pretrained(folders[VOICE]).eval().to(device)
        self.vit = transformers.ViTModel.from_pretrained(folders[FACE], add_pooling_layer=False).eval().to(device)
        self.extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folders[VOICE])
        settings = json.loads((folders[FACE] / "preprocessor_config.json").read_text())
        # The image processor's arithmetic; it would go through Pillow, crop by crop. The crops have the right size.
        self.mean, self.deviation = (
            torch.tensor(settings[name], device=device).view(3, 1, 1) for name in ("image_mean", "image_std")
        )
        # Fusion alone: the encoders are only described to it.
        processor = {VOICE: self.extractor.to_dict(), FACE: settings}
        described = {
            name: Checkpoint(modality, Described(model.config.to_dict()), processor[name])
            for name, modality, model in ((VOICE, "audio", self.hubert), (FACE, "video", self.vit))
        }
        self.fused = bundles.load(root, described=described).model.to(device)

    def predict(self, clips: Sequence[Media]) -> Answer:
        with torch.inference_mode():
            each = [self.one(clip) for clip in clips]
        return np.concatenate([p for p, _ in each]), np.concatenate([v for _, v in each])

    def one(self, clip: Media) -> Answer:
        from merfast.ops.ragged import Ragged

        with self.watch.part(VOICE):
            samples = self.extractor(clip.audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
            voice = self.gather(VOICE, self.states(self.hubert(samples.to(self.device), output_hidden_states=True))[0])
        with self.watch.part(FACE):
            crops = torch.from_numpy(clip.crops).to(self.device).permute(0, 3, 1, 2).contiguous()
            pixels = (crops / 255 - self.mean) / self.deviation
            # The CLS token of each layer, of which all tokens are there.
            face = self.gather(FACE, self.states(self.vit(pixels, output_hidden_states=True))[1])
        features = {n: Ragged(x, torch.tensor([0, len(x)], device=x.device)) for n, x in ((VOICE, voice), (FACE, face))}
        posterior, valence = self.fused.average(self.fused.fuse(features))
        return posterior.cpu().numpy(), valence.cpu().numpy()

    @staticmethod
    def states(out: Any) -> tuple[Tensor, Tensor]:
        """States 1 to L: of the first row `[L, T, D]`, and the first vectors of all rows `[L, B, D]`."""
        states = [*out.hidden_states[1:-1], out.last_hidden_state]
        return torch.stack([s[0] for s in states]), torch.stack([s[:, 0] for s in states])

    def gather(self, stream: str, states: Tensor) -> Tensor:
        """States `[L, T, D]` -> their sum `[T, D]`, weighted by a softmax over the layers."""
        layers = self.fused.foundations[stream].network.layers
        energies = torch.tanh(states @ layers.weight.T + layers.bias) @ layers.score  # [L, T]
        return (energies.softmax(0)[..., None] * states).sum(0)


class Fast:
    """`Engine.predict`."""

    def __init__(self, root: Path, device: str, watch: Stopwatch, **options: Any) -> None:
        import merfast

        self.watch = watch
        self.clip_of = merfast.Clip.from_arrays
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", merfast.UntrainedWarning)
            self.engine = merfast.Engine(root, device=device, detector="none", **options)
        model = self.engine.bundle.model
        self.crops: list[int] = []
        encode = model.encode

        def watched(audio: Any, crops: Any) -> Any:
            self.crops += crops.host_sizes() if watch.on else []
            return encode(audio, crops)

        model.encode = watched
        for name, encoder in model.foundations.items():
            encoder.forward = _timed(watch, name, encoder.forward)
            encoder.run = _timed(watch, f"{name} network", encoder.run)

    def predict(self, clips: Sequence[Media]) -> Answer:
        items = [
            self.clip_of(c.crops, fps=CROPS / c.seconds, audio=c.audio, sample_rate=SAMPLE_RATE, faces="given")
            for c in clips
        ]
        out = self.engine.predict(items)
        if self.watch.on:
            assert self.crops == [CROPS] * len(clips), f"the encoder saw {self.crops} crops"
        return np.stack([p.probabilities for p in out]), np.array([p.valence for p in out])


def _timed(watch: Stopwatch, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*inputs: Any) -> Any:
        with watch.part(name):
            return call(*inputs)

    return timed


def memory(device: str) -> dict[str, float]:
    """Most memory that this process had, in MiB: resident (VmHWM), and torch's on the GPU."""
    status = Path("/proc/self/status").read_text()
    found = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmHWM", "RssAnon", "RssFile")}  # type: ignore[index]
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def serve(side: Side, watch: Stopwatch, clips: Sequence[Media], first: Media, device: str) -> Iterator[dict[str, Any]]:
    """An answer for each request on stdin."""

    def run(what: Sequence[Media]) -> dict[str, Any]:
        began = time.perf_counter()
        posterior, valence = side.predict(what)
        return {
            "seconds": time.perf_counter() - began,
            "posterior": posterior.astype(float).tolist(),
            "valence": valence.astype(float).tolist(),
        }

    for line in sys.stdin:
        match line.strip():
            case "one":  # clip of 4 s
                yield run([first])
            case "all":
                yield run(clips)
            case "parts":
                watch.on = True
                yield run(clips) | {"parts": dict(watch.seconds)}
                watch.on = False
            case "memory":
                yield memory(device)
            case other:
                raise ValueError(f"request: got {other!r}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline_sides")
    parser.add_argument("side", choices=["reference", "engine"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--runtime", default="auto")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(options.threads)
    root, watch = options.work / "bundle", Stopwatch(options.device)
    clips, (first,) = read_clips(options.work / "clips", options.clips), read_clips(options.work / "first", 1)
    imported = time.perf_counter()
    side: Any
    if options.side == "reference":
        side, plan = Reference(root, options.device, watch), "transformers fp32, eager, clip by clip"
    else:
        chosen = {"precision": options.precision, "runtime": options.runtime, "threads": options.threads}
        side = Fast(root, options.device, watch, **chosen)
        plan = str(side.engine.plan)
    ready = time.perf_counter()
    started = {"import": imported - BEGAN, "start": ready - imported, "plan": plan, **memory(options.device)}
    print(json.dumps(started), file=answers)
    for answer in serve(side, watch, clips, first, options.device):
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
