"""The other forms that `merfast predict` writes results in: a JSON array, and CSV."""

from __future__ import annotations

import csv
import json
from typing import TextIO

from merfast.errors import MediaError
from merfast.types import EMOTIONS, Failure, Prediction

CSV_COLUMNS = (
    "source",
    "start",
    "end",
    "emotion",
    *EMOTIONS,
    "valence",
    "modalities",
    "face_coverage",
    "missing",
    "track",
    "warnings",
    "error",
)


class JsonWriter:
    """Writes one array, an element for each result (`to_dict`), as they come."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._count = 0

    def add(self, result: Prediction | Failure) -> None:
        self._out.write(",\n" if self._count else "[\n")
        self._out.write(json.dumps(result.to_dict(), allow_nan=False))
        self._count += 1

    def finish(self) -> None:
        self._out.write("\n]\n" if self._count else "[]\n")


class CsvWriter:
    """Writes a row for each prediction, each of its other faces, and each failure; what is unknown stays empty."""

    def __init__(self, out: TextIO) -> None:
        self._rows = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
        self._rows.writeheader()

    def add(self, result: Prediction | Failure) -> None:
        if isinstance(result, Failure):
            error = result.error.reason if isinstance(result.error, MediaError) else str(result.error)
            self._rows.writerow({"source": result.source, "error": error})
            return
        for prediction in (result, *result.others):
            values = prediction.to_dict()
            values |= values.pop("probabilities")
            values["modalities"] = "+".join(prediction.modalities)
            values["missing"] = "; ".join(f"{m}: {reason}" for m, reason in prediction.missing.items())
            values["warnings"] = "; ".join(prediction.warnings)
            self._rows.writerow({name: values[name] for name in CSV_COLUMNS if name in values})
