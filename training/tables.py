"""Tables of results: Markdown for the documents, rich for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real

from rich.console import Console
from rich.table import Table
from rich.text import Text

ABSENT = "\N{EN DASH}"


def markdown(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """An aligned Markdown table without a line end after the last row; columns of numbers are flush right.

    Args:
        rows: what each row has in which column; None, or no such key, is shown as an en dash.
        columns: keys in the order to show. `"f1:.1%"` shows the key `f1` in the format `.1%`; without a format,
            floats have three digits after the point.

    Raises:
        ValueError: no columns, a column that no row has, or a format that does not fit its values.
    """
    heads, cells, right = _cells(rows, columns)
    lines = [[_escaped(c) for c in line] for line in (heads, *cells)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(heads))]
    dashes = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    lines.insert(1, dashes)
    padded = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def show(rows: Sequence[Mapping[str, object]], columns: Sequence[str], title: str) -> None:
    """Print the table that `markdown` makes to the standard output, in colour where that is a terminal.

    Raises:
        ValueError: as `markdown`.
    """
    heads, cells, right = _cells(rows, columns)
    table = Table(title=Text(title), title_justify="left")
    for head, flush in zip(heads, right, strict=True):
        table.add_column(Text(head), justify="right" if flush else "left")
    for line in cells:
        table.add_row(*(Text(c) for c in line))
    Console().print(table)


def _cells(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str]
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Heads, `[rows][columns]` texts, and which columns hold numbers alone."""
    if not columns:
        raise ValueError("columns: got none, expected at least one")
    keys, formats = zip(*((key, spec) for key, _, spec in (c.partition(":") for c in columns)), strict=True)
    for key in keys:
        if rows and not any(key in row for row in rows):
            raise ValueError(f"columns: got {key!r}, expected one of {sorted({k for row in rows for k in row})}")
    cells = [[_text(k, row.get(k), f) for k, f in zip(keys, formats, strict=True)] for row in rows]
    values = [[row[k] for row in rows if row.get(k) is not None] for k in keys]
    return list(keys), cells, [bool(column) and all(_is_number(v) for v in column) for column in values]


def _text(key: str, value: object, spec: str) -> str:
    if value is None:
        return ABSENT
    if _is_number(value):
        try:
            return format(value, spec or ("" if isinstance(value, Integral) else ".3f"))
        except ValueError as error:
            raise ValueError(f"{key}: got the format {spec!r}, expected one for {value!r} ({error})") from None
    return str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _escaped(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", "\\|")
