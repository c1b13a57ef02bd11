"""Files that `merfast predict` and `merfast timeline` write results to, of the kind that the name's ending says."""

from __future__ import annotations

import argparse
import io
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Protocol, TextIO, TypeAlias

from merfast.errors import ConfigError
from merfast.exports import Annotations, eaf_text, textgrid_text, vtt_text
from merfast.tables import CsvWriter, ParquetWriter
from merfast.types import Failure, Prediction

TABLES = (".csv", ".json", ".jsonl", ".parquet")
"""Endings of files that hold any results."""

ANNOTATIONS = (".eaf", ".TextGrid", ".vtt")
"""Endings of files that hold one timeline."""


class Writer(Protocol):
    """What results are handed to as they come."""

    def add(self, result: Prediction | Failure) -> None: ...

    def finish(self) -> None: ...


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


class JsonLinesWriter:
    """Writes a line for each result (`to_dict`), as they come."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def add(self, result: Prediction | Failure) -> None:
        self._out.write(json.dumps(result.to_dict(), allow_nan=False) + "\n")

    def finish(self) -> None:
        pass


class AnnotationWriter:
    """Writes a timeline's annotations when all of it is there; it keeps the stretches only.

    Args:
        out: where to.
        text: makes the content of the file.
    """

    def __init__(self, out: TextIO, text: Callable[[Annotations], str]) -> None:
        self._out, self._text = out, text
        self._annotations = Annotations()

    def add(self, result: Prediction | Failure) -> None:
        self._annotations.add(result)

    def finish(self) -> None:
        self._out.write(self._text(self._annotations))


MakeWriter: TypeAlias = Callable[[IO[bytes], Path], Writer]


def _lines(out: IO[bytes]) -> TextIO:
    """Text that is in the file after each line, so that who looks at it sees all there is."""
    return io.TextIOWrapper(out, "utf-8", errors="backslashreplace", newline="", line_buffering=True)


_KINDS: Mapping[str, MakeWriter] = {
    ".csv": lambda out, _: CsvWriter(_lines(out)),
    ".json": lambda out, _: JsonWriter(_lines(out)),
    ".jsonl": lambda out, _: JsonLinesWriter(_lines(out)),
    ".parquet": lambda out, _: ParquetWriter(out),
    ".eaf": lambda out, path: AnnotationWriter(_lines(out), lambda found: eaf_text(found, path)),
    ".TextGrid": lambda out, _: AnnotationWriter(_lines(out), textgrid_text),
    ".vtt": lambda out, _: AnnotationWriter(_lines(out), vtt_text),
}


Output: TypeAlias = tuple[Path, str]
"""Where to, and one of the endings above."""


EXPLAIN = "add to files which moments of voice and face each prediction was gathered from"
"""What the option `--explain` does."""


def add_output(parser: argparse._ActionsContainer, kinds: Sequence[str]) -> None:
    """The option `-o`, which can be given several times."""
    text = f"write a file, too, of the kind that its name says: {', '.join(kinds)}; several with several -o. It is "
    text += "FILE.part until it is complete; Ctrl-C completes it with what there is"
    parser.add_argument("-o", "--output", action="append", default=[], metavar="FILE", help=text)


def output_of(name: str, kinds: Sequence[str]) -> Output:
    """The file of that name, and which of `kinds` its ending says, in capitals or not.

    Raises:
        ConfigError: it says none of them.
    """
    ending = Path(name).suffix
    for kind in kinds:
        if ending.lower() == kind.lower():
            return Path(name), kind
    got = f"the ending {ending!r}" if ending else "no ending"
    other = next((k for k in ANNOTATIONS if ending.lower() == k.lower()), None)
    hint = f" ({other} is for merfast timeline)" if other else ""
    raise ConfigError(f"{name}: got {got}, expected one of {', '.join(kinds)}{hint}")


def check_outputs(outputs: Sequence[Output], items: Sequence[str]) -> None:
    """Complain before the work, rather than after it.

    Raises:
        ConfigError: no file can be there, two are the same, or one is among the items to predict.
    """
    for path, _ in outputs:
        if not path.parent.is_dir() or path.is_dir():
            raise ConfigError(f"{path}: cannot be written there, expected a file in an existing folder")
        if any("://" not in item and Path(item).exists() and path.exists() and path.samefile(item) for item in items):
            raise ConfigError(f"{path}: is one of the files to predict")
    if len({path.resolve() for path, _ in outputs}) < len(outputs):
        raise ConfigError(f"-o: got one file twice, expected different ones: {', '.join(str(p) for p, _ in outputs)}")


class OutputFile:
    """A file of results. It is `NAME.part` until it is complete, and replaces the file of its name then.

    As a context manager it is completed at the end, also by Ctrl-C or an error; without any result it comes to nothing,
    and a file that was there stays. What is no regular file, such as a pipe, is written directly.

    Args:
        path: where to.
        kind: one of `TABLES` or `ANNOTATIONS`.

    Raises:
        ConfigError: it cannot be written.
        UnavailableError: something is not installed that this kind needs.
    """

    def __init__(self, path: Path, kind: str) -> None:
        regular = path.is_file() or not path.exists()
        self._path = path.resolve() if regular else path  # where a link leads to
        self._part = self._path.with_name(f"{self._path.name}.part") if regular else path
        self._kind, self._any = kind, False
        with self._explained():
            self._file = self._part.open("wb")
        try:
            with self._explained():
                self._writer = _KINDS[kind](self._file, path)
        except BaseException:
            self._close()
            raise

    def add(self, result: Prediction | Failure) -> None:
        """Write one result, or keep it until more can be written."""
        with self._whole(), self._explained():
            self._writer.add(result)
            self._any |= self._kind in TABLES or result.start is not None

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._any:
                with self._whole(), self._explained():
                    self._writer.finish()
                    self._file.flush()
                    if self._part != self._path:
                        self._part.replace(self._path)
        finally:
            self._close()

    def _close(self) -> None:
        """Close the file, and remove it if it is incomplete and holds nothing."""
        with suppress(OSError):
            self._file.close()
            if self._part != self._path and not self._any:
                self._part.unlink()

    def _whole(self) -> AbstractContextManager[None]:
        """Puts Ctrl-C off until what is written is whole; not for a pipe, which may never be read."""
        return uninterrupted() if self._part != self._path else nullcontext()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda *what: caught.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught and callable(before):
            before(*caught[0])
