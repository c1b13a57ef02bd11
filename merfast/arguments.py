"""What `Engine` is given, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from merfast.errors import ConfigError, UnavailableError
from merfast.media.source import Source, is_file_object


def joined(device: str | Sequence[str]) -> str:
    """Several devices in one string, as on the command line; what is neither is left to the config to refuse."""
    several = isinstance(device, (list, tuple)) and all(isinstance(name, str) for name in device)
    return ",".join(device) if several else device  # type: ignore[return-value]


_process: int | None = None


def check_process() -> None:
    """torch's thread pools do not survive a fork: what needs them would wait for ever."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise UnavailableError(
            "this process was forked from one with an Engine, where torch's threads hang: start processes with "
            "multiprocessing's 'spawn' or 'forkserver' method, and make an Engine in each"
        )


def check_explain(explain: object) -> bool:
    """The option, if it is one."""
    if not isinstance(explain, bool):
        raise ConfigError(f"explain: got {explain!r}, expected True or False")
    return explain


def checked(items: Iterable[Source], on_error: str) -> list[Source]:
    """A batch, where it is one."""
    single = isinstance(items, (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray)) or is_file_object(items)
    if single or not isinstance(items, Iterable):
        raise ConfigError(f"items: got {type(items).__name__}, expected a list, as in predict([item])")
    check_process()
    if on_error not in ("raise", "return"):
        raise ConfigError(f"on_error: got {on_error!r}, expected 'raise' or 'return'")
    sources = list(items)
    _check_distinct(sources)
    return sources


def _check_distinct(sources: Sequence[Source]) -> None:
    seen: dict[int, int] = {}
    for i, source in enumerate(sources):
        first = seen.setdefault(id(source), i) if is_file_object(source) else i
        if first != i:
            raise ConfigError(f"items: {i} is the same open file as {first}, expected each to be read once")


def check_session(*, name: object, overload: object, on_result: object, priority: object) -> None:
    """Check what `Engine.session` was given.

    Raises:
        ConfigError: a value that cannot be used.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"name: got {name!r}, expected a text")
    if overload not in ("reject", "wait"):
        raise ConfigError(f"overload: got {overload!r}, expected 'reject' or 'wait'")
    if on_result is not None and not callable(on_result):
        raise ConfigError(f"on_result: got {on_result!r}, expected a callable")
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise ConfigError(f"priority: got {priority!r}, expected a whole number")
