"""Train the mini recipe's encoders: `python -m training.encoders RECIPE --data FOLDER --work FOLDER`.

Face, voice and prosody branches, and the cross-validation of the latter two, are trained side by side, each in
a process of one thread, so that results do not depend on how many there are. Killed at any time, the same command
goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from training.branches import jobs, train_job
from training.data import DataError
from training.project import Project, arguments, project_of, run
from training.recipe import Recipe


def train_encoders(project: Project) -> None:
    """Train what is missing.

    Raises:
        DataError: the data cannot be used, or the recipe is of another kind.
    """
    if project.recipe.kind != "composites":
        raise DataError(f"encoders: got a recipe of kind {project.recipe.kind!r}, expected 'composites'")
    settings = (project.recipe, project.data, project.work)
    with ProcessPoolExecutor(project.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_job, *settings, name) for name in jobs(project)]):
            project.say(f"trained: {done.result()}")


def _job(recipe: Recipe, data: Path, work: Path, name: str) -> str:
    torch.set_num_threads(1)
    train_job(Project(recipe, data, work), name)
    return name


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__).parse_args(argv)
    return run(lambda: train_encoders(project_of(options)))


if __name__ == "__main__":
    raise SystemExit(main())
