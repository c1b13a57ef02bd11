"""Docstrings of merfast as mkdocstrings wants them: an entry for each of several names that share one."""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*\n?(?:(?P=indent) +\S.*\n?)*)", flags=re.MULTILINE
)
"""As in `start, end: seconds`, with the lines that go on further in."""


class SharedEntries(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SHARED.sub(_split, obj.docstring.value)


def _split(entry: re.Match[str]) -> str:
    text = entry["text"] if entry["text"].endswith("\n") else f"{entry['text']}\n"
    return "".join(f"{entry['indent']}{name}: {text}" for name in entry["names"].split(", "))
