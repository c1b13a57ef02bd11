"""From 720p H.264 files to predictions: `Engine.predict` against what researchers run, on the same device.

    python -m benchmarks.end_to_end --device cuda --size large --clips 64 --out end-to-end.json
    python -m benchmarks.end_to_end --size tiny --clips 4 --passes 1      # on the CPU, to see that it is right

HuBERT and ViT have random weights; clips have 4 s at 25 frames a second, with one face and a voice. The reference works
clip by clip: decoding on the CPU with all threads, the same faces and crops, then transformers in fp32, eager, all
hidden states kept, the same fusion in torch. Each side has a process of its own, and they take turns; idle ones only
wait. The driver's utilisation of GPU and decode engines is sampled meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pipeline_floors, pipeline_inputs, videos
from benchmarks.gpu_report import commit_of
from benchmarks.pipeline import SPREAD, Worker, say
from merfast.config import BundleConfig
from merfast.types import Window

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, SECONDS = 1280, 720, 4.0
FRAME_RATE = 5.0
"""Crops a second, as in the packaged bundle."""

BUDGET = 0.05
"""Largest difference of a probability from the reference's: beyond it something is wrong, and no rounding."""

BUSY = 80.0
"""Percent from which on the GPU or the decode engines are what limits."""


def prepare(work: Path, size: str, clips: int, device: str, data: Path | None) -> list[Path]:
    """Clips and a bundle that tells them apart in a folder, unless they are there; returns the clips."""
    files = videos.write_videos(work / "clips", [(WIDTH, HEIGHT, SECONDS)] * clips, data)
    if not (work / "bundle").exists():

        def seen(config: BundleConfig) -> list[Window]:
            return [videos.read_windows(file, config, data, threads=1)[0] for file in files[:12]]

        pipeline_inputs.make_bundle(work / "bundle", size, frame_rate=FRAME_RATE, windows=seen, device=device)
    return files


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start both sides, let them take turns, and compare what they say of the first clips.

    Raises:
        ValueError: the reference says nearly the same of all clips.
    """
    common = ["--work", str(work), "--clips", str(options.clips), "--device", options.device]
    common += ["--threads", str(options.threads), *(["--data", str(options.data)] if options.data else [])]
    chosen = ["--precision", options.precision, "--runtime", options.runtime, "--decoder", options.decoder]
    few = min(options.clips, options.reference_clips)
    module = "benchmarks.end_to_end_sides"
    with ExitStack() as stack:
        # Both start before either is asked: starting is not timed.
        engine, reference = (
            stack.enter_context(Worker(name, [name, *arguments], module))
            for name, arguments in (
                ("engine", [*common, *chosen]),
                ("reference", [*common, "--clips", str(few)]),
            )
        )
        for side in (engine, reference):
            say(f"{side.name}: {side.started['plan']}")
        rates: dict[str, list[float]] = {"engine": [], "reference": []}
        until = time.monotonic() + options.most_seconds
        for turn in range(options.turns):
            if turn and time.monotonic() > until:
                break
            for side, passes in ((engine, options.passes), (reference, 1)):
                timed = side.ask(f"passes {passes}")
                rates[side.name].append(timed["clips"] / timed["seconds"])
                say(f"{side.name}: {timed['clips']} clips in {timed['seconds']:.2f} s ({turn + 1})")
                if side is engine:
                    utilisation = timed["utilisation"]  # of all turns so far
        fast, exact = (side.ask(f"clips {few}") for side in (engine, reference))
        started = engine.started
    difference = {name: float(np.abs(np.subtract(fast[name], exact[name])).max()) for name in fast}
    spread = float(np.ptp(exact["posterior"], axis=0).max())
    if few > 1 and not spread > SPREAD:
        raise ValueError(f"posteriors: got a range of {spread:.3f} over the clips, expected above {SPREAD}")
    ours, theirs = (statistics.median(rates[name]) for name in ("engine", "reference"))
    return {
        "clips_per_second": ours,
        "times_real_time": ours * SECONDS,
        "reference_clips_per_second": theirs,
        "speed_up": ours / theirs,
        "rates": rates,
        "utilisation": utilisation,
        "unseen": started["unseen"],
        "limit": limit(utilisation),
        "posterior_difference": difference["posterior"],
        "valence_difference": difference["valence"],
        "posterior_range": spread,
        "agrees": difference["posterior"] <= BUDGET,
        "plan": started["plan"],
    }


def limit(utilisation: Mapping[str, float]) -> str:
    """What limits, going by percent of the time in use: whichever of GPU and decode engines is busier, from `BUSY` on.

    Else it is neither of them; unknown where the driver says nothing.
    """
    if not utilisation:
        return "unknown"
    names = {"gpu": "the GPU", "decoder": "the decode engines"}
    busiest = max(utilisation, key=lambda name: utilisation[name])
    return names[busiest] if utilisation[busiest] >= BUSY else "neither GPU nor decode engines"


def headline(result: Mapping[str, Any], size: str, precision: str) -> dict[str, str]:
    """The row of this measurement in tables of headlines."""
    used = result["utilisation"]
    busy = f"GPU busy {used['gpu']:.0f} %, decode engines {used.get('decoder', 0):.0f} %" if "gpu" in used else ""
    return {
        "what": f"720p H.264 files of 4 s to predictions, HuBERT-{size} and ViT-{size}, {precision}",
        "result": f"{result['clips_per_second']:.1f} clips/s, {result['times_real_time']:.0f} x real time"
        + (f"; {busy}; the limit: {result['limit']}" if busy else ""),
        "against": f"{result['speed_up']:.1f} x transformers in fp32, clip by clip, on the same device; "
        f"probabilities within {result['posterior_difference']:.1e}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 0 if both sides agree."""
    parser = argparse.ArgumentParser(prog="benchmarks.end_to_end", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", default="base", choices=list(pipeline_inputs.SIZES), help="of both models")
    parser.add_argument("--clips", type=int, default=16, help="files, each with its own content")
    parser.add_argument("--passes", type=int, default=4, help="how many times over the engine gets them in one call")
    parser.add_argument("--reference-clips", type=int, default=16, help="of them, that the reference gets at most")
    parser.add_argument("--turns", type=int, default=3, help="of each side; the median counts")
    parser.add_argument("--most-seconds", type=float, default=math.inf, help="no further turn begins after so many")
    parser.add_argument("--precision", help="of the engine; bf16 on a GPU, fp32 on the CPU")
    parser.add_argument("--runtime", default="auto", help="of the engine")
    parser.add_argument("--decoder", default="auto", help="of the engine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    parser.add_argument("--data", type=Path, help="folder of real clips and YuNet's file; the demo's portrait without")
    parser.add_argument("--work", type=Path, help="folder for bundle and clips, which are kept and taken again")
    parser.add_argument("--prepare", action="store_true", help="only make what is to be in --work")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    options.precision = options.precision or ("fp32" if options.device == "cpu" else "bf16")
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).absolute()
        say("making clips and bundle, unless they are there")
        files = prepare(work, options.size, options.clips, options.device, options.data)
        if options.prepare:
            return 0
        result = measure(work, options)
        bits = 8 * sum(file.stat().st_size for file in files) / (SECONDS * len(files))
    row = headline(result, options.size, options.precision)
    print(f"{row['what']} ({bits / 1e6:.1f} Mbit/s):\n{row['result']}\n{row['against']}")
    if result["unseen"]:
        print(f"utilisation is unknown: {result['unseen']}")
    if not result["agrees"]:
        print(f"NOT AS THE REFERENCE: expected probabilities within {BUDGET}")
    if options.out is not None:
        kept = {name: str(value) for name, value in vars(options).items() if name not in ("out", "work", "data")}
        report = {
            "commit": commit_of(ROOT),
            "machine": pipeline_floors.machine(options.device),
            "options": kept,
            "bits_per_second": bits,
            **result,
            "headlines": [row],
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if result["agrees"] else 1


if __name__ == "__main__":
    sys.exit(main())
