"""MER 2023 as its organisers hand it out, and as their baseline code prepares it.

What is known of the layout comes from the organisers' public code, github.com/zeroQiaoba/MERTools: at commit fb8dda0
`MERBench/toolkit/preprocess/mer2023.py`, which writes `label-6way.npz`, `MER2024/toolkit/dataloader/mer2023.py`, which
reads it, and `MER2023/README.md`; at 2fa6194 `main-baseline.py`, the first baseline:

- handed out: the folders train, test1, test2, test3 of clips, and `train-label.csv`, `test1-label.csv` and so on with
  the columns name, discrete, valence. A clip's file is called after its name, with an extension of three letters.
- prepared: `video/` with the clips of all splits, and `label-6way.npz`, whose entries train_corpus, test1_corpus,
  test2_corpus and test3_corpus are pickled dicts: name of the clip -> {"emo": label, "val": number}.
- No valence is written as -10 or as an empty string. test3 has no valence at all.
- The first baseline gives every clip of a test set "neutral" and -10: its labels were not out yet.
- test1, test2, test3 are the tracks MER-MULTI, MER-NOISE, MER-SEMI.
- Five folds over train, by clip and at random (`training.manifest.folds(samples, 5)` does it in the same way); the
  three test sets are never trained on. There are no speaker labels, so that folds may share speakers.

Not confirmed, for want of the data set, which is given out under an agreement only: that clips end in .avi or .mp4, and
the folders `mer2023train/` and `test-labels/` that the archives seem to unpack into (both from other people's scripts);
whether the CSVs have further columns (any others are passed over); whether every clip of test2 has a valence.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from training.data import DataError, Sample, check, emotion_index, valence_number
from training.manifest import VideoFile, leave_out_missing, read_table

SPLITS = ("train", "test1", "test2", "test3")
LABELS = "label-6way.npz"
CLIP_SUFFIXES = (".avi", ".mp4")
NO_VALENCE = -10.0
"""What the baseline writes where there is no valence."""

LARGEST = 1 << 28
"""Bytes that one entry of the npz may have; 80 000 labels are below 1 << 23."""

Label = Mapping[str, object]
Corpus = Mapping[str, Label]


def read_mer2023(root: str | Path, labels: str | Path | None = None) -> tuple[list[Sample], list[str]]:
    """Read the clips and labels of MER 2023; splits are "train", "test1", "test2" and "test3", those that are there.

    Clips are looked for in `root/video`, `root/SPLIT`, `root/mer2023train/SPLIT` and `root`, in this order.

    Args:
        root: folder of the data set, handed out or prepared.
        labels: `label-6way.npz`, one CSV named SPLIT-label.csv, or a folder of such CSVs. None looks in `root` for
            the npz, and for CSVs there, in `mer2023train` and in `test-labels`.

    Returns:
        The samples whose clip exists, without speakers, and a sentence about each clip left out, and about each
        split whose labels are the baseline's placeholders.

    Raises:
        DataError: no labels, labels in two places, a file that is not what its name says, an npz that holds
            anything but dicts of labels, a label outside the six, or no clip at all.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: got no such folder, expected the folder of MER 2023")
    samples: list[Sample] = []
    notes: list[str] = []
    sources = _label_files(root, None if labels is None else Path(labels))
    for source, split in sources:
        corpora = {split: _read_csv(source)} if split else _read_npz(source)
        for name, corpus in corpora.items():
            if _placeholders(corpus):
                notes.append(
                    f"{name}: left out: {source} has 'neutral' and -10 for all {len(corpus)} clips, which the baseline "
                    "writes for labels that are not out"
                )
                continue
            clips = _clips(root, name)
            folder = root / ("video" if (root / "video").is_dir() else name)
            samples += [_sample(source, name, clip, label, clips, folder) for clip, label in corpus.items()]
    where = ", ".join(str(source) for source, _ in sources)
    try:
        check(samples)
    except DataError as error:
        raise DataError(f"{where}: {error}{''.join(f'; {note}' for note in notes)}") from error
    kept, skipped = leave_out_missing(where, samples)
    return kept, notes + skipped


def _label_files(root: Path, labels: Path | None) -> list[tuple[Path, str | None]]:
    """Label files, each with its split; an npz has all of them, and None."""
    if labels is not None and not labels.is_dir():
        split = labels.name.removesuffix("-label.csv")
        if labels.suffix != ".npz" and split not in SPLITS:
            raise DataError(f"{labels}: labels: got {labels.name!r}, expected {LABELS} or SPLIT-label.csv")
        return [(labels, None if labels.suffix == ".npz" else split)]
    folders = [labels] if labels is not None else [root, root / "mer2023train", root / "test-labels"]
    found: list[tuple[Path, str | None]] = []
    for split in SPLITS:
        files = [file for folder in folders if (file := folder / f"{split}-label.csv").exists()]
        if len(files) > 1:
            raise DataError(f"{root}: got {' and '.join(map(str, files))}, expected one; say which with labels")
        found += [(file, split) for file in files]
    npz = folders[0] / LABELS
    if npz.exists():
        if found:
            raise DataError(f"{root}: got {npz} and {found[0][0]}, expected one kind of labels; say which with labels")
        return [(npz, None)]
    if not found:
        looked = ", ".join(str(folder) for folder in folders)
        raise DataError(f"{root}: got no labels, expected {LABELS} or train-label.csv in one of {looked}")
    return found


def _clips(root: Path, split: str) -> dict[str, Path]:
    """Clips by name. The first folder that has a clip decides; in it, the name must be that of one file."""
    clips: dict[str, Path] = {}
    for folder in (root / "video", root / split, root / "mer2023train" / split, root):
        here: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in CLIP_SUFFIXES:
                here[path.stem].append(path)
        for name, paths in here.items():
            if name not in clips and len(paths) > 1:
                raise DataError(f"{name}: got {' and '.join(map(str, paths))}, expected one clip of this name")
            clips.setdefault(name, paths[0])
    return clips


def _sample(source: Path, split: str, name: str, label: Label, clips: Mapping[str, Path], folder: Path) -> Sample:
    try:
        if name == ".." or Path(name).name != name:
            raise DataError(f"{name}: got a path, expected the name of a clip without its folder")
        emotion = _emotion(name, label.get("emo"))
        valence = _valence(name, label.get("val"))
        if emotion is None and valence is None:
            raise DataError(f"{name}: got neither an emotion nor a valence")
        media = VideoFile(clips.get(name, folder / f"{name}.avi"))
        return Sample(name, media, emotion, valence, None, split)
    except DataError as error:
        raise DataError(f"{source}: {split}: {error}") from error


def _emotion(name: str, value: object) -> int | None:
    if _nothing(value):
        return None
    return emotion_index(name, value if isinstance(value, str) else repr(value))


def _valence(name: str, value: object) -> float | None:
    if _nothing(value):
        return None
    number = valence_number(name, str(value))
    return None if number == NO_VALENCE else number


def _nothing(value: object) -> bool:
    """An empty cell, as the csv module, pandas (NaN) or the baseline leaves it."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _placeholders(corpus: Corpus) -> bool:
    """All of them neutral with valence -10: not labels, but what stands for labels that are not out."""

    def stands_in(label: Label) -> bool:
        try:
            return label.get("emo") == "neutral" and float(str(label.get("val"))) == NO_VALENCE
        except ValueError:
            return False

    return bool(corpus) and all(stands_in(label) for label in corpus.values())


def _read_csv(path: Path) -> Corpus:
    _, rows = read_table(path, required=("name", "discrete"))
    corpus: dict[str, Label] = {}
    for number, row in rows:
        name = row["name"]
        if not name or name in corpus:
            got = f"{name} twice" if name else "an empty cell"
            raise DataError(f"{path}: row {number}: name: got {got}, expected unique names")
        corpus[name] = {"emo": row["discrete"], "val": row.get("valence", "")}
    return corpus


def _read_npz(path: Path) -> dict[str, Corpus]:
    """Corpora by split, from pickled dicts that are read without running anything they name."""
    if not path.is_file():
        raise DataError(f"{path}: got no such file, expected {LABELS}")
    corpora = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                split = member.removesuffix("_corpus.npy")
                if split not in SPLITS:
                    known = ", ".join(f"{name}_corpus" for name in SPLITS)
                    raise DataError(f"{path}: got the entry {member!r}, expected only {known}")
                with archive.open(member) as file:
                    data = file.read(LARGEST + 1)
                if len(data) > LARGEST:
                    raise DataError(f"{path}: {member}: got more than {LARGEST} bytes")
                corpora[split] = _corpus(f"{path}: {member}", data)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: got a file that is no readable npz ({error})") from error
    return {split: corpora[split] for split in SPLITS if split in corpora}


def _corpus(where: str, data: bytes) -> Corpus:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except ValueError as error:
        raise DataError(f"{where}: got an entry that is no array of numpy's ({error})") from error
    if shape != () or not dtype.hasobject:
        raise DataError(f"{where}: got an array of shape {shape} and type {dtype}, expected a pickled dict")
    try:
        array = _Unpickler(where, file).load()
    except DataError:
        raise
    except Exception as error:  # damaged pickles raise nearly every kind
        raise DataError(f"{where}: got a pickle that cannot be read ({error})") from error
    labels = array.item() if isinstance(array, _Array) else None
    if not isinstance(labels, dict):
        raise DataError(f"{where}: got {type(labels).__name__}, expected a dict of labels")
    corpus: dict[str, Label] = {}
    for key, entry in labels.items():
        name = _plain(where, key)
        if not isinstance(name, str) or not name or not isinstance(entry, dict):
            raise DataError(f"{where}: got {name!r}: {type(entry).__name__}, expected the name of a clip and a dict")
        if name in corpus:
            raise DataError(f"{where}: {name}: got this name twice, expected unique names")
        values = {_plain(where, field): _plain(where, value) for field, value in entry.items()}
        corpus[name] = {str(field): value for field, value in values.items()}
    return corpus


def _plain(where: str, value: object) -> object:
    """A str, a number or None; everything else is no label."""
    if isinstance(value, _Scalar):
        return value.decode(where)
    if value is None or isinstance(value, str | float | int):
        return value
    raise DataError(f"{where}: got {type(value).__name__} in a label, expected text or a number")


# Note [Pickles]: numpy pickles a dict as an object array, and a number out of a data frame as one of its scalars. Their
# names are all that a pickle may mention here, and they lead to the stand-ins below, which only keep what they are
# given: nothing in the file can call a function, and numpy never sees a type or a state that the file made up. Each has
# a __setstate__, so that a pickle cannot set attributes of the classes themselves.


class _Dtype:
    """Stands in for numpy's dtype."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code
        self.order: object = "|"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = state[1]


class _Scalar:
    """Stands in for a number or text of numpy's type."""

    def __init__(self, dtype: object, data: object) -> None:
        self.dtype = dtype
        self.data = data

    def __setstate__(self, state: object) -> None:
        raise DataError("got a state for a number, expected none")

    def decode(self, where: str) -> object:
        code = f"{self.dtype.order}{self.dtype.code}" if isinstance(self.dtype, _Dtype) else ""
        if not isinstance(self.data, bytes) or not re.fullmatch(r"[<>|=]([fiu][248]|[iu]1|b1|U[1-9]\d{0,3})", code):
            raise DataError(
                f"{where}: got a number of type {code or type(self.dtype).__name__!r}, expected a plain one"
            )
        try:
            values = np.frombuffer(self.data, np.dtype(code))
            (value,) = values.tolist()
        except ValueError as error:
            raise DataError(f"{where}: got {len(self.data)} bytes for a number of type {code!r}") from error
        plain: object = value
        return plain


class _Array:
    """Stands in for numpy's object array of one item, and for the function that starts one."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def item(self) -> object:
        match self.state:
            case (_, (), _, _, [item]):
                found: object = item
                return found
        return None


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _Scalar,
}


class _Unpickler(pickle.Unpickler):
    """Unpickles builtin containers, text and numbers, and the stand-ins; see Note [Pickles]."""

    def __init__(self, where: str, file: io.BytesIO) -> None:
        super().__init__(file)
        self.where = where

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ALLOWED:
            raise DataError(f"{self.where}: refused: the pickle asks for {module}.{name}, expected plain labels only")
        return _ALLOWED[module, name]
