"""Results read again from the JSON that `to_dict` and the command line write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merfast.attention import Attention, StreamAttention
from merfast.errors import ConfigError, MerfastError
from merfast.types import EMOTIONS, Failure, Prediction

SUFFIXES = (".json", ".jsonl")
"""Of files that `read_results` reads."""


def read_results(path: str | Path) -> list[Prediction | Failure]:
    """The results in a JSON file (one object, or an array of them) or in a file with one object a line (.jsonl).

    Raises:
        ConfigError: it cannot be read, or holds something else; the message names the place.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() == ".jsonl":
            objects = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            objects = json.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error})") from error
    out = []
    for number, each in enumerate(objects if isinstance(objects, list) else [objects]):
        try:
            out.append(result_of(each))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            got = f"missing {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{file}: result {number}: {got}, expected what merfast predict --json writes") from error
    return out


def result_of(data: Mapping[str, Any]) -> Prediction | Failure:
    """What `to_dict` gave this.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"got {type(data).__name__}")
    if "error" in data:
        return Failure(data["source"], MerfastError(data["error"]), data.get("start"), data.get("end"))
    return _prediction(data)


def _prediction(data: Mapping[str, Any]) -> Prediction:
    start, end, emotion = float(data["start"]), float(data["end"]), data["emotion"]
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise ValueError(f"got a start of {start} and an end of {end}")
    if emotion is not None and emotion not in EMOTIONS:
        raise ValueError(f"got emotion {emotion!r}")
    probabilities = [_number(data["probabilities"][e]) for e in EMOTIONS]
    return Prediction(
        source=str(data["source"]),
        start=start,
        end=end,
        emotion=emotion,
        probabilities=np.array(probabilities, dtype=np.float32),
        valence=_number(data["valence"]),
        modalities=tuple(m for m in ("audio", "video") if m in data["modalities"]),
        face_coverage=float(data["face_coverage"]),
        missing=dict(data["missing"]),
        track=data["track"],
        windows=tuple(_prediction(w) for w in data.get("windows", ())),
        others=tuple(_prediction(o) for o in data.get("others", ())),
        warnings=tuple(data.get("warnings", ())),
        attention=_attention(data["attention"]) if "attention" in data else None,
    )


def _attention(data: Mapping[str, Any]) -> Attention:
    return Attention(
        {
            name: StreamAttention(
                s["modality"],
                float(s["share"]),
                np.array(s["spans"], dtype=np.float64).reshape(-1, 2),
                np.array(s["weights"], dtype=np.float32),
            )
            for name, s in data.items()
        }
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
