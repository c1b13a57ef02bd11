"""Run the encoders once over all clips: `python -m training.features RECIPE --data FOLDER --work FOLDER`.

Stop it at any time; the same command goes on where it was. Clips that cannot be read are named, listed in
`features/skipped.csv` in the working folder, and left out of training and scores.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence

import torch

from training.data import DataError
from training.project import SKIPPED, Project, arguments, project_of, run
from training.start import prepare_start


def make_features(project: Project) -> None:
    """Make all features that are missing.

    Raises:
        DataError: the data cannot be used, or no clip of a split could be read.
    """
    skipped: dict[str, str] = {}
    for split, samples in project.noise_splits.items():
        noise = project.store.noise(samples)
        for variant in project.variants[split]:
            found = 0
            with project.progress() as bar:
                task = bar.add_task(f"{split}, {variant.name}", total=len(samples))
                for made in project.store.make(samples, variant, noise, workers=project.workers):
                    bar.advance(task)
                    found += made.found
                    if made.replaced:
                        project.say(f"made anew: {made.replaced}")
                    if made.error and made.name not in skipped:
                        skipped[made.name] = made.error
                        project.say(f"skipped: {made.error}")
            project.say(f"{split}, {variant.name}: {len(samples)} clips, {found} of them made before")
        if all(s.name in skipped for s in samples):
            raise DataError(f"split {split!r}: got no clip that can be read, of {len(samples)}")
    file = project.work / "features" / SKIPPED
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(("name", "error"))
        writer.writerows(sorted(skipped.items()))


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__).parse_args(argv)
    torch.set_num_threads(1)

    def step() -> None:
        project = project_of(options)
        prepare_start(project)
        make_features(project)

    return run(step)


if __name__ == "__main__":
    raise SystemExit(main())
