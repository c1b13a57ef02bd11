"""Predictions as tables: rows, pandas frames, CSV and Parquet, all with the same columns in the same order."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeAlias

from merfast.errors import ConfigError, MediaError, UnavailableError
from merfast.types import EMOTIONS, Failure, Prediction

if TYPE_CHECKING:
    import pandas as pd
    from pyarrow import parquet

Row: TypeAlias = dict[str, Any]

COLUMNS = {
    "source": "string",
    "start": "float64",
    "end": "float64",
    "emotion": "category",
    **dict.fromkeys(EMOTIONS, "float64"),
    "valence": "float64",
    "modalities": "string",
    "face_coverage": "float64",
    "missing": "string",
    "track": "Int64",
    "main": "bool",
    "attention_audio": "float64",
    "attention_video": "float64",
    "warnings": "string",
    "error": "string",
}
"""Column -> dtype in pandas. `to_frame` says what they hold."""

ROW_GROUP = 2048
"""Rows that are collected before they are written to Parquet."""


def rows(result: Prediction | Failure, *, windows: bool = False) -> Iterator[Row]:
    """The rows of one result: its own and those of its other faces, all `COLUMNS` in order, None for what is unknown.

    Args:
        result: of `Engine.predict`, `timeline` or a session.
        windows: give the parts of an item that was cut, instead of the item; other faces have none.
    """
    if isinstance(result, Failure):
        error = result.error.reason if isinstance(result.error, MediaError) else str(result.error)
        known = {"source": result.source, "start": result.start, "end": result.end, "main": True, "error": error}
        yield dict.fromkeys(COLUMNS) | {name: _text(v) if isinstance(v, str) else v for name, v in known.items()}
        return
    for prediction in (result, *result.others):
        for part in prediction.windows if windows and prediction.windows else (prediction,):
            yield _row(part, main=prediction is result)


def _row(p: Prediction, *, main: bool) -> Row:
    known = p.emotion is not None
    shares = {} if p.attention is None else {"audio": 0.0, "video": 0.0} | p.attention.modalities
    return {
        "source": _text(p.source),
        "start": p.start,
        "end": p.end,
        "emotion": p.emotion,
        **dict(zip(EMOTIONS, p.probabilities.tolist() if known else [None] * len(EMOTIONS), strict=True)),
        "valence": p.valence if known else None,
        "modalities": "+".join(p.modalities),
        "face_coverage": p.face_coverage,
        "missing": _text("; ".join(f"{m}: {reason}" for m, reason in p.missing.items())) or None,
        "track": p.track,
        "main": main,
        "attention_audio": shares.get("audio"),
        "attention_video": shares.get("video"),
        "warnings": _text("; ".join(p.warnings)) or None,
        "error": None,
    }


def _text(text: str) -> str:
    """Names of files need not be text in any encoding; columns have to be."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_frame(predictions: Iterable[Prediction | Failure], *, windows: bool = False) -> pd.DataFrame:
    """Predictions as a pandas DataFrame, a row for each prediction, each of its other faces, and each failure.

    Columns, in this order:

    - `source` (string): name of the item.
    - `start`, `end` (float64): seconds, half-open.
    - `emotion` (category of the six, in the order of `EMOTIONS`): missing where there was neither face nor sound.
    - `neutral`, `angry`, `happy`, `sad`, `worried`, `surprise` (float64): probabilities.
    - `valence` (float64): in [-5, 5].
    - `modalities` (string): what was used, "audio+video", "audio", "video" or "".
    - `face_coverage` (float64): fraction of the frames with this face.
    - `missing` (string): why something was not used, as in "video: no face found".
    - `track` (Int64): number of the face.
    - `main` (bool): False for the other faces that `faces="all"` gives.
    - `attention_audio`, `attention_video` (float64): shares of the attention, with `explain=True`.
    - `warnings` (string): joined by "; ".
    - `error` (string): why an item or window failed; missing where it did not.

    Args:
        predictions: of `Engine.predict`, `timeline` or a session.
        windows: give a row to each part of a long item, instead of one to the item; other faces have no parts.

    Raises:
        ConfigError: predictions are not what they are said to be.
        UnavailableError: pandas is not installed.
    """
    if isinstance(predictions, Prediction | Failure) or not isinstance(predictions, Iterable):
        raise ConfigError(f"predictions: got {type(predictions).__name__}, expected several, as a list or iterator")
    found = []
    for result in predictions:
        if not isinstance(result, Prediction | Failure):
            raise ConfigError(f"predictions: got {type(result).__name__} among them, expected Prediction or Failure")
        found.append(rows(result, windows=windows))
    return _frame(list(chain.from_iterable(found)))


def _frame(table: Sequence[Row]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise UnavailableError("a frame needs pandas, which is not installed: pip install 'merfast[tables]'") from None
    emotions = pd.CategoricalDtype(EMOTIONS)
    types = COLUMNS | {"emotion": emotions}
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in table], dtype=kind) for name, kind in types.items()},
    )


class CsvWriter:
    """Writes rows as CSV as they come; what is unknown stays empty, and numbers have six decimals at most."""

    def __init__(self, out: TextIO) -> None:
        self._rows = csv.DictWriter(out, list(COLUMNS), restval="", lineterminator="\n")
        self._rows.writeheader()

    def add(self, result: Prediction | Failure) -> None:
        for row in rows(result):
            self._rows.writerow({name: _cell(value) for name, value in row.items()})

    def finish(self) -> None:
        pass


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return round(value, 6) if isinstance(value, float) else value


class ParquetWriter:
    """Writes rows as Parquet, a row group at a time; pandas reads what `to_frame` would give.

    Raises:
        UnavailableError: pyarrow or pandas is not installed.
    """

    def __init__(self, out: IO[bytes]) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("pyarrow"):
                raise
            message = "Parquet needs pyarrow, which is not installed: pip install 'merfast[tables]'"
            raise UnavailableError(message) from None
        self._out = out
        self._schema = pa.Schema.from_pandas(_frame([]), preserve_index=False)
        self._to_table = pa.Table.from_pandas
        self._open = parquet.ParquetWriter
        self._writer: parquet.ParquetWriter | None = None
        self._rows: list[Row] = []

    def add(self, result: Prediction | Failure) -> None:
        self._rows += rows(result)
        if len(self._rows) >= ROW_GROUP:
            self._write()

    def finish(self) -> None:
        self._write().close()

    def _write(self) -> parquet.ParquetWriter:
        if self._writer is None:
            self._writer = self._open(self._out, self._schema)
        self._writer.write_table(self._to_table(_frame(self._rows), self._schema, preserve_index=False))
        self._rows = []
        return self._writer
