"""One recipe with its data and its working folder: what all steps share."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from merfast.errors import MerfastError
from training.composites import average_neutral, make_composites
from training.corpora import Faces, Utterance, read_faces, read_speech, split_speech
from training.corrupt import Corruption
from training.data import DataError, Sample, check
from training.fusion import FeatureSet
from training.manifest import folds, read_manifest
from training.mer2023 import read_mer2023
from training.recipe import Recipe, read_recipe
from training.store import FeatureStore, Variant

SKIPPED = "skipped.csv"


@dataclass(frozen=True)
class Part:
    """Which clips train and which validate: one of the folds, or the whole."""

    name: str
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]


class Project:
    """A recipe, its data folder and its working folder.

    Args:
        recipe: what to do.
        data: folder of the data.
        work: folder for everything that is made.
        detector_model: YuNet's file, for clips.
        workers: processes side by side.
    """

    def __init__(
        self, recipe: Recipe, data: Path, work: Path, *, detector_model: Path | None = None, workers: int = 1
    ) -> None:
        self.recipe, self.data, self.work = recipe, data, work
        self.detector_model, self.workers = detector_model, workers
        self.console = Console(stderr=True)

    @property
    def start(self) -> Path:
        """Bundle with the encoders as they are used, its fusion untrained."""
        return self.work / "start"

    @cached_property
    def samples(self) -> list[Sample]:
        """All clips; those that are skipped are named on the terminal.

        Raises:
            DataError: the data cannot be used.
        """
        recipe = self.recipe
        if recipe.kind == "composites":
            samples = self._composites()
        else:
            if recipe.kind == "manifest":
                samples, skipped = read_manifest(
                    self.data / (recipe.clips.labels or "manifest.csv"), seed=recipe.clips.seed
                )
            else:
                labels = self.data / recipe.clips.labels if recipe.clips.labels else None
                samples, skipped = read_mer2023(self.data, labels)
            for line in skipped:
                self.say(f"skipped: {line}")
        check(samples)
        return samples

    @cached_property
    def faces(self) -> dict[str, Faces]:
        """FER2013's pictures by split, for the mini recipe."""
        return read_faces(self.data / "fer2013.npz", self.recipe.composites.faces_held_out, self.recipe.seed)

    @cached_property
    def utterances(self) -> list[Utterance]:
        """All utterances, for the mini recipe."""
        return read_speech(self.data / "speech")

    @cached_property
    def speech(self) -> dict[str, list[Utterance]]:
        """Utterances by split, for the mini recipe."""
        return split_speech(self.utterances, self.recipe.composites.val_speakers, self.recipe.composites.test_speakers)

    def _composites(self) -> list[Sample]:
        recipe = self.recipe.composites
        neutral = average_neutral(self.faces["train"])
        counts = {"train": recipe.train, "val": recipe.val, "test": len(self.faces["test"])}
        return [
            sample
            for split, count in counts.items()
            for sample in make_composites(
                self.faces[split], self.speech[split], neutral, split, count, recipe.motion, self.recipe.seed
            )
        ]

    @property
    def parts(self) -> list[Part]:
        """What is trained on what: one part, or one for each fold."""
        train = [s for s in self.samples if s.split == "train"]
        if self.recipe.clips.folds and self.recipe.kind != "composites":
            pairs = folds(self.samples, self.recipe.clips.folds, self.recipe.clips.seed)
            return [Part(f"fold{k}", tuple(a), tuple(b)) for k, (a, b) in enumerate(pairs)]
        val = [s for s in self.samples if s.split == "val"]
        if not train or not val:
            raise DataError(
                f"splits: got {len(train)} clips to train on and {len(val)} in 'val', expected some of both"
            )
        return [Part("whole", tuple(train), tuple(val))]

    @property
    def tests(self) -> dict[str, list[Sample]]:
        """Test sets by name."""
        out: dict[str, list[Sample]] = {}
        for sample in self.samples:
            if sample.split not in ("train", "val"):
                out.setdefault(sample.split, []).append(sample)
        return out

    @cached_property
    def store(self) -> FeatureStore:
        """The feature cache.

        Raises:
            BundleError: the encoders are not made yet.
        """
        detector = self.recipe.features.detector
        return FeatureStore(self.work / "features", self.start, detector=detector, detector_model=self.detector_model)

    @property
    def noise_splits(self) -> dict[str, list[Sample]]:
        """Split -> clips that lend their speech as noise: of the same split, so that speakers stay apart."""
        out: dict[str, list[Sample]] = {}
        for sample in self.samples:
            out.setdefault(sample.split, []).append(sample)
        return out

    @property
    def variants(self) -> dict[str, list[Variant]]:
        """Split -> renderings: training's own corruption for "train", MER-NOISE's for the test sets."""
        clean, seed = Variant(), self.recipe.seed
        noisy = [Variant("noisy", self.recipe.features.train_corruption, seed)] if self.recipe.features.noisy else []
        test = Variant("noise", Corruption(), seed)
        corrupted = {"train": noisy, "val": []}
        return {split: [clean, *corrupted.get(split, [test])] for split in self.noise_splits}

    def skipped(self) -> set[str]:
        """Names of the clips whose features could not be made."""
        file = self.work / "features" / SKIPPED
        if not file.exists():
            return set()
        with file.open(encoding="utf-8", newline="") as lines:
            return {row["name"] for row in csv.DictReader(lines)}

    def features(self, samples: Sequence[Sample], variant: Variant) -> tuple[list[Sample], FeatureSet]:
        """Cached features of the clips, and the clips that have some.

        Raises:
            DataError: an entry is missing, though its clip was not skipped, or damaged.
        """
        skipped = self.skipped()
        kept = [s for s in samples if s.name not in skipped]
        if not kept:
            raise DataError(f"features: got none of {len(samples)} clips, all were skipped")
        return kept, FeatureSet.of(kept, [self.store.read(s, variant) for s in kept])

    def say(self, line: str) -> None:
        """A line on the terminal, standard error."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def progress(self) -> Progress:
        """A progress bar on standard error."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=self.console)


def arguments(doc: str | None, extra: Sequence[tuple[str, dict[str, object]]] = ()) -> argparse.ArgumentParser:
    """The parser that all steps share."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="TOML file, such as training/recipes/mini.toml")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--yunet", type=Path, default=None, help="YuNet's ONNX file, to find faces in clips")
    parser.add_argument("--workers", type=int, default=2, help="processes side by side (2)")
    for flag, options in extra:
        parser.add_argument(flag, **options)  # type: ignore[arg-type]
    return parser


def project_of(options: argparse.Namespace) -> Project:
    """The project that the command line describes."""
    recipe = read_recipe(options.recipe)
    return Project(recipe, options.data, options.work, detector_model=options.yunet, workers=options.workers)


def run(step: object, *parts: object) -> int:
    """Run a step; a merfast error becomes one line and exit status 1."""
    try:
        step(*parts)  # type: ignore[operator]
    except MerfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
