"""Half an hour's worth of clips through one engine: does anything grow?

    python -m benchmarks.memory_loop --device cuda --size large --out memory.json
    python -m benchmarks.memory_loop --size tiny --clips 60         # on the CPU

Clips of several sizes and lengths, 4 s on average, come in a random order, in calls of several. After each call the
process and the GPU are looked at. Each quantity gets a line by least squares, over all looks after the first fifth of
the clips, and is flat if that line rises by no more than `BOUNDS` over the whole loop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import merfast
from benchmarks import end_to_end, pipeline_floors, pipeline_inputs, videos
from benchmarks.gauges import Gpu, footprint
from benchmarks.gpu_report import commit_of
from benchmarks.pipeline import say

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [
    (width, height, seconds)
    for width, height in ((1280, 720), (640, 480), (854, 480), (480, 854), (1920, 1080))
    for seconds in (2.0, 3.4, 4.6, 6.0)
]
"""Width, height and seconds of the clips."""

MEAN_SECONDS = sum(seconds for _, _, seconds in SHAPES) / len(SHAPES)
MOST = 24
"""Clips in a call, at most."""

BOUNDS = {
    "gpu allocated": 16.0,
    "gpu reserved": 128.0,
    "gpu used": 128.0,
    "resident": 64.0,
    "threads": 1.0,
    "files": 1.0,
}
"""What a quantity may rise by over the loop, in MiB or by number: allocators keep what they once had."""

Look = Mapping[str, float]


def growth(looks: Sequence[Look]) -> dict[str, float]:
    """Quantity -> by how much it rises over the whole loop, going by the line through its later looks.

    Args:
        looks: of which each says in "clips" how many were done.

    Raises:
        ValueError: fewer than three looks after the first fifth of the clips.
    """
    last = looks[-1]["clips"]
    late = [look for look in looks if look["clips"] > last / 5]
    if len(late) < 3:
        raise ValueError(
            f"looks after the first fifth: got {len(late)}, expected 3 at least: more clips, smaller calls"
        )
    done = np.array([look["clips"] for look in late])
    names = [name for name in looks[-1] if name != "clips"]
    return {name: float(np.polyfit(done, [look[name] for look in late], 1)[0] * last) for name in names}


def rising(rises: Mapping[str, float]) -> list[str]:
    """Quantities that are not flat."""
    return [name for name, rise in rises.items() if not rise <= BOUNDS[name]]


def loop(engine: merfast.Engine, files: Sequence[Path], clips: int, device: str, most: int = MOST) -> list[Look]:
    """Predict so many clips, in calls of `most` at most, and look after each call."""
    gpu, random = Gpu(device), np.random.default_rng(0)
    looks: list[Look] = []
    order: list[Path] = []
    done = 0
    while done < clips:
        count = min(clips - done, int(random.integers(max(1, most // 3), most + 1)))
        while len(order) < count:
            order += [files[i] for i in random.permutation(len(files))]
        call, order = order[:count], order[count:]
        out = engine.predict(call)
        assert all(np.isfinite(p.probabilities).all() for p in out)
        done += count
        looks.append({"clips": float(done), **footprint(device, gpu)})
    return looks


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 1 if something rises."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory_loop", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", default="base", choices=list(pipeline_inputs.SIZES), help="of both models")
    parser.add_argument("--clips", type=int, default=round(1800 / MEAN_SECONDS), help="to predict")
    parser.add_argument("--most", type=int, default=MOST, help="clips in a call")
    parser.add_argument("--files", type=int, default=len(SHAPES), help="shapes of clips, the first so many")
    parser.add_argument("--precision", help="bf16 on a GPU, fp32 on the CPU")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--data", type=Path, help="folder of real clips and YuNet's file; the demo's portrait without")
    parser.add_argument("--work", type=Path, help="folder for bundle and clips, which are kept and taken again")
    parser.add_argument("--short", action="store_true", help="too short to tell: exit status 0 whatever rises")
    parser.add_argument("--prepare", action="store_true", help="only make what is to be in --work")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    precision = options.precision or ("fp32" if options.device == "cpu" else "bf16")
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).absolute()
        say("making clips and bundle, unless they are there")
        if not (work / "bundle").exists():
            end_to_end.prepare(work, options.size, 12, options.device, options.data)
        files = videos.write_videos(work / "varied", SHAPES[: options.files], options.data, seed=5000)
        if options.prepare:
            return 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", merfast.UntrainedWarning)
            engine = merfast.Engine(
                work / "bundle",
                device=options.device,
                precision=precision,
                runtime=options.runtime,
                detector_model=videos.yunet_of(options.data),
            )
        began = time.perf_counter()
        looks = loop(engine, files, options.clips, options.device, options.most)
        seconds = time.perf_counter() - began
    rises = growth(looks)
    bad = rising(rises)
    minutes = options.clips * sum(s for _, _, s in SHAPES[: options.files]) / len(SHAPES[: options.files]) / 60
    row = {
        "what": f"{minutes:.0f} minutes of clips in a loop, HuBERT-{options.size} and ViT-{options.size}, {precision}",
        "result": "memory, threads and open files flat" if not bad else f"rising: {', '.join(bad)}",
        "against": ", ".join(f"{name} {rise:+.1f}" for name, rise in rises.items() if name.startswith("gpu"))
        or f"resident {rises['resident']:+.1f}",
    }
    row["against"] += " MiB over the loop"
    print(f"{row['what']} ({options.clips} clips, {seconds:.1f} s): {row['result']}")
    for name, rise in rises.items():
        print(f"{name}: {looks[-1][name]:.0f} at the end, {rise:+.2f} over the loop, at most {BOUNDS[name]:g} is flat")
    if options.out is not None:
        report = {
            "commit": commit_of(ROOT),
            "machine": pipeline_floors.machine(options.device),
            "clips": options.clips,
            "seconds": seconds,
            "threads_of_torch": torch.get_num_threads(),
            "cores": len(os.sched_getaffinity(0)),
            "plan": str(engine.plan),
            "looks": looks,
            "growth": rises,
            "bounds": BOUNDS,
            "flat": not bad,
            "headlines": [row],
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if bad and not options.short else 0


if __name__ == "__main__":
    sys.exit(main())
