"""What the live benchmarks share: sources, the engine, options, reports."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import merfast
from benchmarks import pipeline_floors, videos
from benchmarks.gpu_report import commit_of

ROOT = Path(__file__).resolve().parent.parent
SIZE = 640, 360
KEYFRAMES = 25
"""Frames from one keyframe to the next: a second, so that windows can be cut out of files without decoding."""


def parser_of(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all live benchmarks have."""
    parser = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=(doc or "").splitlines()[0])
    place = os.environ.get("MERFAST_DATA")
    text = "folder of real clips and YuNet's file (MERFAST_DATA); the demo's portrait and the default detector without"
    parser.add_argument("--data", type=Path, default=Path(place) if place else None, help=text)
    parser.add_argument("--work", type=Path, help="folder for the clips, which are kept and taken again")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write")
    return parser


def sources_of(folder: Path, data: Path | None, count: int, seconds: float) -> list[str]:
    """So many different clips of 360p."""
    say(f"making {count} clips of {seconds:g} s, unless they are there")
    shapes = [(*SIZE, seconds)] * count
    return [str(file) for file in videos.write_videos(folder, shapes, data, seed=7000, keyframes=KEYFRAMES)]


def make_engine(data: Path | None, **options: Any) -> merfast.Engine:
    """The packaged bundle on the CPU; torch gets one thread, as streams are what runs side by side."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", merfast.UntrainedWarning)
        return merfast.Engine(device="cpu", detector_model=videos.yunet_of(data), **options)


def write(path: Path | None, options: argparse.Namespace, engine: merfast.Engine, report: Mapping[str, Any]) -> None:
    """The report as JSON, with what ran and where."""
    if path is None:
        return
    about = {
        "commit": commit_of(ROOT),
        "machine": pipeline_floors.machine("cpu"),
        "cores": len(os.sched_getaffinity(0)),
        "options": {k: str(v) for k, v in vars(options).items() if k not in ("data", "work", "out")},
        "plan": str(engine.plan),
    }
    path.write_text(json.dumps(about | dict(report), indent=1) + "\n")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
