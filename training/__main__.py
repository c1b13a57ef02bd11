"""All steps of a recipe, from data to bundle: `python -m training RECIPE --data FOLDER --work FOLDER --out BUNDLE`.

Stopped at any time, the same command goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from training.encoders import train_encoders
from training.evaluate import write_scores
from training.export import export
from training.features import make_features
from training.project import Project, arguments, project_of, run
from training.start import prepare_start
from training.train import train


def main(argv: Sequence[str] | None = None) -> int:
    extra: list[tuple[str, dict[str, object]]] = [
        ("--out", {"type": Path, "required": True, "help": "directory of the bundle"}),
        ("--ablations", {"action": "store_true", "help": "train and score the ablations too"}),
    ]
    options = arguments(__doc__, extra).parse_args(argv)
    torch.set_num_threads(1)
    return run(lambda: everything(project_of(options), options.out, options.ablations))


def everything(project: Project, out: Path, ablations: bool) -> None:
    """Run all steps, and keep how long each took in `timing.json`."""
    timing: dict[str, float] = {}

    def timed(name: str, started: float) -> float:
        timing[name] = round(time.monotonic() - started, 1)
        project.say(f"{name}: {timing[name]:.0f} s")
        (project.work / "timing.json").write_text(json.dumps(timing, indent=2) + "\n", encoding="utf-8")
        return time.monotonic()

    project.work.mkdir(parents=True, exist_ok=True)
    now = time.monotonic()
    if project.recipe.kind == "composites":
        train_encoders(project)
        now = timed("encoders", now)
    prepare_start(project)
    make_features(project)
    now = timed("features", now)
    train(project)
    now = timed("train", now)
    write_scores(project, ablations=ablations)
    now = timed("evaluate", now)
    export(project, out)
    timed("export", now)


if __name__ == "__main__":
    raise SystemExit(main())
