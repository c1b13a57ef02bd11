"""Readers of the mini recipe's data: a folder of acted speech, and FER2013 faces. Neither is part of the project.

The folder holds `speech/manifest.csv` (file, corpus, speaker, emotion, intensity, seconds; the files beside it) with
RAVDESS (doi 10.1371/journal.pone.0196391), EmoDB (doi 10.21437/Interspeech.2005-446) and nEMO (arXiv 2404.06292), and
`fer2013.npz` (arXiv 1307.0414): `images` uint8 `[N, 48, 48]`, `labels` into `names`, `split` Training or PublicTest.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from merfast.types import EMOTIONS
from training.data import DataError, check_disjoint

CLASSES = {
    **dict.fromkeys(("neutral", "calm"), "neutral"),
    **dict.fromkeys(("anger", "angry"), "angry"),
    **dict.fromkeys(("happiness", "happy"), "happy"),
    **dict.fromkeys(("sadness", "sad"), "sad"),
    **dict.fromkeys(("fear", "fearful"), "worried"),  # a stand-in: none of these sets has "worried"
    **dict.fromkeys(("surprised", "surprise"), "surprise"),
}
"""The sets' own names of emotions -> ours."""

LEFT_OUT = frozenset({"disgust", "boredom"})
COLUMNS = ("file", "corpus", "speaker", "emotion", "intensity", "seconds")

PLEASURE = {"neutral": 0.0, "angry": -0.51, "happy": 0.81, "sad": -0.63, "worried": -0.64, "surprise": 0.40}
"""Mean pleasure in [-1, 1] of the emotions' words (Russell & Mehrabian 1977, doi 10.1016/0092-6566(77)90037-X)."""

INTENSITY = {"strong": 1.0, "": 0.8, "normal": 0.6}
"""Factor of the pseudo-labels by acted intensity; the numbers are ours."""


@dataclass(frozen=True)
class Utterance:
    """One sentence of one speaker.

    Attributes:
        file: audio file.
        corpus, speaker: names; a speaker's name begins with that of the corpus.
        emotion: index into `EMOTIONS`.
        intensity: a key of `INTENSITY`.
        seconds: duration.
    """

    file: Path
    corpus: str
    speaker: str
    emotion: int
    intensity: str
    seconds: float

    @property
    def valence(self) -> float:
        """Pseudo-label in [-5, 5]: the emotion's norm times the intensity."""
        return 5.0 * PLEASURE[EMOTIONS[self.emotion]] * INTENSITY[self.intensity]


def read_speech(folder: Path) -> list[Utterance]:
    """The utterances of `folder/manifest.csv` whose emotion is one of the six.

    Raises:
        DataError: no manifest, a missing column or file, an emotion or intensity that is not known.
    """
    manifest = folder / "manifest.csv"
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read: {error.strerror or error}") from error
    out: list[Utterance] = []
    for number, row in enumerate(rows, start=2):
        where = f"{manifest}, line {number}"
        if missing := [column for column in COLUMNS if row.get(column) is None]:
            raise DataError(f"{where}: got no {', '.join(missing)}")
        label = row["emotion"]
        if label in LEFT_OUT:
            continue
        if label not in CLASSES:
            expected = ", ".join([*CLASSES, *sorted(LEFT_OUT)])
            raise DataError(f"{where}: emotion: got {label!r}, expected one of {expected}")
        if row["intensity"] not in INTENSITY:
            raise DataError(f"{where}: intensity: got {row['intensity']!r}, expected normal, strong or nothing")
        file = folder / row["file"]
        if not file.is_file():
            raise DataError(f"{where}: {file}: no such file")
        try:
            seconds = float(row["seconds"])
        except ValueError:
            raise DataError(f"{where}: seconds: got {row['seconds']!r}, expected a number") from None
        emotion = EMOTIONS.index(CLASSES[label])
        out.append(Utterance(file, row["corpus"], row["speaker"], emotion, row["intensity"], seconds))
    if not out:
        raise DataError(f"{manifest}: got no utterance of the six emotions")
    return out


def speakers_by_corpus(utterances: Sequence[Utterance]) -> dict[str, list[str]]:
    """Corpus -> its speakers, sorted."""
    found: dict[str, set[str]] = defaultdict(set)
    for utterance in utterances:
        found[utterance.corpus].add(utterance.speaker)
    return {corpus: sorted(speakers) for corpus, speakers in sorted(found.items())}


def fold_of(utterances: Sequence[Utterance], folds: int) -> dict[str, int]:
    """Speaker -> fold: each corpus's sorted speakers are dealt out in turn.

    Raises:
        DataError: a corpus has fewer speakers than there are folds.
    """
    out: dict[str, int] = {}
    for corpus, speakers in speakers_by_corpus(utterances).items():
        if len(speakers) < folds:
            raise DataError(f"{corpus}: got {len(speakers)} speakers, expected at least as many as folds ({folds})")
        out |= {speaker: index % folds for index, speaker in enumerate(speakers)}
    return out


def split_speech(
    utterances: Sequence[Utterance], val: Sequence[str], test: Sequence[str]
) -> dict[str, list[Utterance]]:
    """ "train", "val" and "test" utterances, by speaker.

    Raises:
        DataError: a speaker is unknown, or in two splits.
    """
    check_disjoint([(f"speaker {s!r}", "val") for s in val] + [(f"speaker {s!r}", "test") for s in test])
    known = {u.speaker for u in utterances}
    if unknown := sorted({*val, *test} - known):
        raise DataError(f"speakers: got {', '.join(unknown)}, which the data do not have")
    where = dict.fromkeys(known, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    out: dict[str, list[Utterance]] = {"train": [], "val": [], "test": []}
    for utterance in utterances:
        out[where[utterance.speaker]].append(utterance)
    return out


@dataclass(frozen=True, eq=False)
class Faces:
    """Grey pictures of faces.

    Attributes:
        images: `[N, 48, 48]` uint8.
        labels: `[N]` int64, indices into `EMOTIONS`.
        ids: `[N]` hash of each picture's pixels, in hexadecimal.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, rows: npt.NDArray[np.int64]) -> Faces:
        """Those of the pictures."""
        return Faces(self.images[rows], self.labels[rows], tuple(self.ids[i] for i in rows))


def read_faces(file: Path, val: float, seed: int) -> dict[str, Faces]:
    """ "train", "val" and "test" pictures of the six emotions: test is PublicTest, val a random part of Training.

    Args:
        file: `fer2013.npz`.
        val: fraction of Training that is held out.
        seed: of the choice.

    Raises:
        DataError: not such a file, or a picture is in two splits.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels, names, split = (arrays[k] for k in ("images", "labels", "names", "split"))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: cannot be read as FER2013: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(labels):
        raise DataError(f"{file}: images: got {images.dtype} {list(images.shape)}, expected uint8 [N, 48, 48]")
    own = np.array([EMOTIONS.index(CLASSES[str(n)]) if str(n) in CLASSES else -1 for n in names])[labels]
    ids = tuple(hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images)
    everything = Faces(images, own.astype(np.int64), ids)
    public = np.flatnonzero((split == "PublicTest") & (own >= 0))
    rest = np.flatnonzero((split == "Training") & (own >= 0))
    held = np.random.default_rng(seed).random(len(rest)) < val
    parts = {"train": rest[~held], "val": rest[held], "test": public}
    out = {name: everything.pick(rows) for name, rows in parts.items()}
    check_disjoint((f"picture {i}", name) for name, faces in out.items() for i in faces.ids)
    return out
