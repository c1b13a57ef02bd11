"""Labelled clips listed in a CSV, and how samples are divided: into splits, or into folds."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from training.data import DataError, Sample, check, emotion_index, valence_number
from training.media import file_hash

COLUMNS = ("file", "emotion", "valence", "speaker", "split")

PARTS: Mapping[str, float] = MappingProxyType({"train": 0.8, "val": 0.1, "test": 0.1})
"""Splits that are made where a manifest has none, and their shares of the clips."""


@dataclass(frozen=True)
class VideoFile:
    """A clip that lies in a file."""

    path: Path

    def key(self) -> str:
        """SHA-256 of the file's content, in hexadecimal.

        Raises:
            DataError: the file cannot be read.
        """
        return file_hash(self.path)

    def open(self) -> Path:
        """The path, for `Engine.predict`."""
        return self.path


def read_manifest(
    csv_file: str | Path, media_root: str | Path | None = None, *, seed: int = 0
) -> tuple[list[Sample], list[str]]:
    """Read a CSV (UTF-8, commas) with a header and the columns file, emotion, valence, speaker, split.

    A row has an emotion, a valence in [-5, 5], or both; speaker may be empty. Without a column split, the splits
    of `PARTS` are made by `split_speakers`, over all rows: they stay as they are when a clip is missing.

    Args:
        csv_file: the manifest. A sample's name is its cell in the column file.
        media_root: folder that the files are relative to; None is the folder of the CSV.
        seed: of the splits that are made here.

    Returns:
        The samples whose clip exists, and a sentence about each one left out.

    Raises:
        DataError: a file that is no such CSV, a label or split that is none, the same clip twice, a speaker in two
            splits, or no clip at all. Rows are counted as a spreadsheet does: the header is row 1.
    """
    csv_file = Path(csv_file)
    root = csv_file.parent if media_root is None else Path(media_root)
    header, rows = read_table(csv_file, required=("file",), optional=COLUMNS)
    if not {"emotion", "valence"} & set(header):
        raise DataError(f"{csv_file}: columns: got {', '.join(header)}, expected emotion, valence or both")
    if media_root is not None and not root.is_dir():
        raise DataError(f"{root}: media root: got no such folder")

    samples, seen = [], dict[Path, int]()
    for number, row in rows:
        try:
            sample = _sample(row, root, has_split="split" in header)
        except DataError as error:
            raise DataError(f"{csv_file}: row {number}: {error}") from error
        clip = _resolved(sample)
        if clip in seen:
            raise DataError(f"{csv_file}: row {number}: {sample.name}: got the clip of row {seen[clip]} again")
        seen[clip] = number
        samples.append(sample)
    try:
        if samples and "split" not in header:
            samples = split_speakers(samples, seed=seed)
        check(samples)
    except DataError as error:
        raise DataError(f"{csv_file}: {error}") from error
    return leave_out_missing(str(csv_file), samples)


def read_table(
    csv_file: Path, required: Sequence[str], optional: Sequence[str] | None = None
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and rows of a CSV (UTF-8, with or without BOM), each row with its number; the header is row 1.

    Blank lines are passed over. White space around a cell is dropped, except in file names.

    Args:
        required: columns that must be there.
        optional: further columns that may be there; None lets any other be there.

    Raises:
        DataError: not a readable CSV in UTF-8, a column missing, unknown or twice, or a row of another length.
    """
    if csv_file.is_dir():
        raise DataError(f"{csv_file}: got a folder, expected a CSV file")
    try:
        text = csv_file.read_bytes().decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{error.object[error.start]:02x} in line {line}"
        raise DataError(f"{csv_file}: encoding: got {got}, expected UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{csv_file}: got text that is no CSV ({error})") from error
    except OSError as error:
        raise DataError(f"{csv_file}: cannot read the CSV: {error.strerror}") from error
    filled = [(number, cells) for number, cells in enumerate(lines, start=1) if cells]
    if not filled:
        raise DataError(f"{csv_file}: got an empty file, expected a header with the columns {', '.join(required)}")

    header = [cell.strip() for cell in filled[0][1]]
    known = header if optional is None else [*required, *optional]
    unknown = [repr(name) for name in header if name not in known]
    if unknown:
        expected = ", ".join(dict.fromkeys(known))
        raise DataError(f"{csv_file}: columns: got unknown {', '.join(unknown)}, expected only {expected}")
    missing = [name for name in required if name not in header]
    if missing:
        raise DataError(f"{csv_file}: columns: got {', '.join(header)}, expected {', '.join(missing)} too")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{csv_file}: columns: got {', '.join(twice)} twice")

    rows = []
    for number, cells in filled[1:]:
        if len(cells) != len(header):
            raise DataError(f"{csv_file}: row {number}: got {len(cells)} cells, expected {len(header)}")
        pairs = zip(header, cells, strict=True)
        rows.append((number, {name: cell if name == "file" else cell.strip() for name, cell in pairs}))
    return header, rows


def leave_out_missing(source: str, samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """Samples whose clip is a file that exists, and a sentence about each other one.

    Raises:
        DataError: no clip is left.
    """
    kept, skipped = [], []
    for sample in samples:
        path = sample.media.open()
        reason = _no_file(path) if isinstance(path, Path) else None
        if reason is None:
            kept.append(sample)
        else:
            skipped.append(f"{sample.name}: left out: {reason}")
    if not kept:
        first = f", first {skipped[0]}" if skipped else ""
        raise DataError(f"{source}: got no clip that exists, of {len(samples)}{first}")
    return kept, skipped


def split_speakers(samples: Sequence[Sample], parts: Mapping[str, float] = PARTS, seed: int = 0) -> list[Sample]:
    """The samples in the same order with new splits; the same samples and seed give the same splits in any order.

    A speaker, and likewise a group, is in one split only; a clip without a known speaker is its own speaker. Shares
    are met as closely as the sizes of the speakers allow, and no split stays empty.

    Args:
        parts: name and share of each split; the shares sum to 1.

    Raises:
        DataError: shares that are none, or fewer speakers than splits.
    """
    shares = list(parts.values())
    if not all(math.isfinite(share) and share > 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise DataError(f"parts: got {dict(parts)}, expected shares above 0 that sum to 1")
    units = _together(samples, seed)
    if len(units) < len(parts):
        raise DataError(f"splits: got {_count(units)}, expected at least {len(parts)} for {', '.join(parts)}")
    wanted = {name: share * len(samples) for name, share in parts.items()}
    empty = set(parts)
    chosen: dict[int, str] = {}
    for place, unit in enumerate(units):
        open_parts = empty if len(units) - place <= len(empty) else set(parts)
        part = max((name for name in parts if name in open_parts), key=lambda name: wanted[name])
        wanted[part] -= len(unit)
        empty.discard(part)
        chosen.update(dict.fromkeys(unit, part))
    return [replace(sample, split=chosen[index]) for index, sample in enumerate(samples)]


def folds(samples: Sequence[Sample], k: int, seed: int = 0) -> list[tuple[list[Sample], list[Sample]]]:
    """k pairs (train, validation) of the samples whose split is "train", for k-fold cross-validation.

    Every such sample is in the validation part of one pair and in the training part of all others, with its split
    unchanged. The two parts share no speaker and no group; a clip without a known speaker is its own speaker.

    Raises:
        DataError: k below 2, or fewer speakers than folds.
    """
    samples = [sample for sample in samples if sample.split == "train"]
    units = _together(samples, seed)
    if k < 2 or len(units) < k:
        raise DataError(f"folds: got {k} folds of {_count(units)}, expected 2 folds or more, and a speaker for each")
    sizes = [0] * k
    fold_of: dict[int, int] = {}
    for unit in units:
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(unit)
        fold_of.update(dict.fromkeys(unit, smallest))
    return [
        (
            [sample for index, sample in enumerate(samples) if fold_of[index] != fold],
            [sample for index, sample in enumerate(samples) if fold_of[index] == fold],
        )
        for fold in range(k)
    ]


def _sample(row: Mapping[str, str], root: Path, has_split: bool) -> Sample:
    name = row["file"]
    if not name.strip():
        raise DataError("file: got an empty cell")
    label = row.get("emotion", "")
    emotion = emotion_index(name, label) if label else None
    valence = valence_number(name, row.get("valence", ""))
    if emotion is None and valence is None:
        raise DataError(f"{name}: got neither an emotion nor a valence")
    # One speaker, however an editor encodes the accents.
    speaker = unicodedata.normalize("NFC", row.get("speaker", "")) or None
    split = row["split"] if has_split else "train"
    return Sample(name, VideoFile(root / name), emotion, valence, speaker, split)


def _resolved(sample: Sample) -> Path:
    """Where the clip lies, without links and dots: one clip has one such path."""
    path = sample.media.open()
    assert isinstance(path, Path)
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # a name too long, a zero byte, or links in a circle: no file
        return path


def _no_file(path: Path) -> str | None:
    """Why there is no clip at `path`, None if there is one."""
    try:
        if path.is_file():
            return None
        return f"{path} is a folder" if path.is_dir() else f"no file {path}"
    except OSError as error:
        return f"{path}: {error.strerror}"


def _together(samples: Sequence[Sample], seed: int) -> list[list[int]]:
    """Indices of samples that a split must not part, in an order that `seed` and their names decide."""
    parent = list(range(len(samples)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, sample in enumerate(samples):
        ties = [("group", group) for group in sample.groups]
        if sample.speaker is not None:
            ties.append(("speaker", sample.speaker))
        for tie in ties:
            parent[find(index)] = find(first.setdefault(tie, index))
    units: dict[int, list[int]] = defaultdict(list)
    for index in range(len(samples)):
        units[find(index)].append(index)

    def place(unit: Sequence[int]) -> str:
        # A hash, not `random`: the same in every version of Python.
        name = min(samples[index].name for index in unit)
        return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).hexdigest()

    return sorted(units.values(), key=place)


def _count(units: Sequence[Sequence[int]]) -> str:
    return f"{len(units)} speaker{'' if len(units) == 1 else 's'} (a clip without one counts as one)"
