"""The two sides of `benchmarks.end_to_end`, each in a process of its own that answers its parent's requests.

    python -m benchmarks.end_to_end_sides reference|engine --work FOLDER ...

A request is a line "clips N" or "passes N", an answer a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import merfast
from benchmarks.gauges import Gpu, Sampled
from benchmarks.pipeline_inputs import Media
from benchmarks.pipeline_sides import Answer, Reference, Stopwatch
from benchmarks.videos import read_windows, yunet_of
from merfast.bundle import read_config


class ReferenceFromFiles:
    """Clip by clip: decoding, faces and crops on the CPU as merfast does them there, then `pipeline_sides.Reference`.

    Research scripts convert every picture, and many detect in every picture; here the reading is merfast's own, with
    all threads, so that both sides do the same work.
    """

    def __init__(self, root: Path, device: str, data: Path | None, threads: int) -> None:
        self.config, self.data, self.threads = read_config(root), data, threads
        self.models = Reference(root, device, Stopwatch(device))

    def predict(self, clips: Sequence[Path]) -> Answer:
        each = []
        for clip in clips:
            (window,) = read_windows(clip, self.config, self.data, self.threads)
            with torch.inference_mode():
                each.append(self.models.one(Media(window.audio, window.crops)))
        return np.concatenate([p for p, _ in each]), np.concatenate([v for _, v in each])


class EngineFromFiles:
    """`Engine.predict` on paths."""

    def __init__(self, root: Path, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", merfast.UntrainedWarning)
            self.engine = merfast.Engine(root, **options)

    def predict(self, clips: Sequence[Path]) -> Answer:
        out = self.engine.predict(clips)
        for p in out:
            assert set(p.modalities) == {"audio", "video"}, f"{p.source}: used {p.modalities}, missing {p.missing}"
        return np.stack([p.probabilities for p in out]), np.array([p.valence for p in out])


def answer(
    request: str, side: ReferenceFromFiles | EngineFromFiles, clips: Sequence[Path], sampled: Sampled
) -> dict[str, Any]:
    """For "clips N" predictions of the first N; for "passes N" the time of all, so many times over, in one call."""
    what, _, number = request.partition(" ")
    if what == "clips":
        posterior, valence = side.predict(clips[: int(number)])
        return {"posterior": posterior.astype(float).tolist(), "valence": valence.astype(float).tolist()}
    if what == "passes":
        items = [*clips] * int(number)
        _, seconds = sampled.run(lambda: side.predict(items))
        return {"seconds": seconds, "clips": len(items), "utilisation": sampled.means}
    raise ValueError(f"request: got {request!r}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.end_to_end_sides")
    parser.add_argument("side", choices=["reference", "engine"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--decoder", default="auto")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    root, data = options.work / "bundle", options.data
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    side: ReferenceFromFiles | EngineFromFiles
    if options.side == "reference":
        side = ReferenceFromFiles(root, options.device, data, options.threads)
        plan = "decoding, faces and crops on the CPU, then transformers in fp32, eager; clip by clip"
    else:
        fast = EngineFromFiles(
            root,
            device=options.device,
            threads=options.threads,
            detector_model=yunet_of(data),
            precision=options.precision,
            runtime=options.runtime,
            decoder=options.decoder,
        )
        side, plan = fast, str(fast.engine.plan)
    clips = sorted((options.work / "clips").glob("*.mp4"))[: options.clips]
    gpu = Gpu(options.device)
    side.predict(clips[:2])
    print(json.dumps({"plan": plan, "unseen": gpu.missing}), file=answers)
    sampled = Sampled(gpu)
    for line in sys.stdin:
        print(json.dumps(answer(line.strip(), side, clips, sampled)), file=answers)


if __name__ == "__main__":
    main()
