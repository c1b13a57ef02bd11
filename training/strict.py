"""Dataclasses from TOML tables: every key must be known, every value of the right type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from training.data import DataError

T = TypeVar("T")


def build(cls: type[T], table: Any, where: str) -> T:
    """An instance of the dataclass `cls` from a table; nested dataclasses, tuples, mappings and optional ones too.

    Raises:
        DataError: an unknown or missing key, or a value of another type; names it, with got and expected.
    """
    if not isinstance(table, Mapping):
        raise DataError(f"{where}: got {type(table).__name__}, expected a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - set(fields)):
        raise DataError(f"{where}: got unknown keys {', '.join(unknown)}, expected of {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    values = {name: _value(hints[name], value, f"{where}.{name}") for name, value in table.items()}
    needed = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in values]:
        raise DataError(f"{where}: got no {', '.join(missing)}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return _value(next(a for a in arguments if a is not types.NoneType), value, where)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise DataError(f"{where}: got {value!r}, expected a list")
        each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(each) != len(value):
            raise DataError(f"{where}: got {len(value)} values, expected {len(each)}")
        return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: got {value!r}, expected a table")
        return {k: v if arguments[1] is Any else _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{where}: got {value!r}, expected {kind.__name__}")
    return value
