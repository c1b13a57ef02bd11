"""Reading results that were written as JSON: an array, or a line for each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merfast.attention import Attention, StreamAttention
from merfast.errors import ConfigError, MerfastError
from merfast.types import EMOTIONS, MODALITIES, Failure, Prediction

SUFFIXES = (".json", ".jsonl")
"""Of files that `read_results` reads."""


def read_results(path: str | Path) -> list[Prediction | Failure]:
    """What `merfast predict --json` or `merfast live --json` wrote: `to_dict` of results.

    Args:
        path: a JSON array, or JSON lines; empty lines are skipped.

    Raises:
        ConfigError: it cannot be read, or an entry is no result; the message names the line or entry.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from error
    if text.lstrip().startswith("["):
        entries = [(f"entry {i}", value) for i, value in enumerate(_parsed(text, str(file)))]
    else:
        lines = [(f"line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        entries = [(where, _parsed(line, f"{file}: {where}")) for where, line in lines]
    out = []
    for where, value in entries:
        try:
            out.append(result_from_dict(value))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            got = f"missing {error}" if isinstance(error, KeyError) else error
            raise ConfigError(f"{file}: {where}: {got}, expected a result as `to_dict` gives it") from error
    return out


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON ({error})") from error


def result_from_dict(data: Mapping[str, Any]) -> Prediction | Failure:
    """The result that `to_dict` was called on, as far as its digits go.

    Raises:
        KeyError, TypeError, ValueError: an entry is missing or not what it must be.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"got {type(data).__name__}")
    if "error" in data:
        span = [None if data.get(name) is None else _finite(data[name], name) for name in ("start", "end")]
        return Failure(str(data["source"]), MerfastError(str(data["error"])), *span)
    given = data["probabilities"]
    probabilities = np.array([_number(given[emotion]) for emotion in EMOTIONS], dtype=np.float32)
    emotion = data["emotion"]
    if emotion is not None and (emotion not in EMOTIONS or not np.isfinite(probabilities).all()):
        raise ValueError(f"got emotion {emotion!r} with {probabilities.tolist()}")
    start, end = _finite(data["start"], "start"), _finite(data["end"], "end")
    if end < start:
        raise ValueError(f"got a start of {start} and an end of {end}")
    attention = data.get("attention")
    return Prediction(
        source=str(data["source"]),
        start=start,
        end=end,
        emotion=emotion,
        probabilities=probabilities,
        valence=_number(data["valence"]),
        modalities=tuple(m for m in MODALITIES if m in data["modalities"]),
        face_coverage=_finite(data["face_coverage"], "face_coverage"),
        missing={str(m): str(why) for m, why in data.get("missing", {}).items()},
        track=None if data.get("track") is None else int(data["track"]),
        windows=_parts(data.get("windows", ())),
        others=_parts(data.get("others", ())),
        warnings=tuple(str(w) for w in data.get("warnings", ())),
        attention=None if attention is None else _attention(attention),
    )


def _parts(values: Sequence[Mapping[str, Any]]) -> tuple[Prediction, ...]:
    parts = [result_from_dict(value) for value in values]
    return tuple(p for p in parts if isinstance(p, Prediction))


def _attention(streams: Mapping[str, Mapping[str, Any]]) -> Attention:
    out = {}
    for name, stream in streams.items():
        if stream["modality"] not in MODALITIES:
            raise ValueError(f"got modality {stream['modality']!r}, expected one of {', '.join(MODALITIES)}")
        spans = np.array(stream["spans"], dtype=np.float64).reshape(-1, 2)
        weights = np.array(stream["weights"], dtype=np.float32)
        out[name] = StreamAttention(stream["modality"], _finite(stream["share"], "share"), spans, weights)
    return Attention(out)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _finite(value: Any, name: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"got {name} {value!r}, expected a finite number")
    return number
