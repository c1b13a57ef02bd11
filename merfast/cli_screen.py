"""Keeps the view of `merfast live` on a terminal, and leaves the terminal as it was."""

from __future__ import annotations

import io
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from types import FrameType, TracebackType
from typing import Literal, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from merfast.cli_table import writes_blocks
from merfast.cli_view import LiveView
from merfast.types import Prediction

PICTURES = 12.5
"""Pictures a second while something moves; else there is one."""

Pace = Literal["live", "file", "fast"]

_KEPT = 100  # messages that are shown again at the end


def can_show() -> bool:
    """Whether standard output is a terminal that can move its cursor and show blocks."""
    console = Console()
    return console.is_terminal and not console.is_dumb_terminal and writes_blocks(console)


class LiveScreen:
    """Fills the terminal's second screen while it is entered; after that there is a line of summary on the first.

    What is written to standard error meanwhile, if that is a terminal, is shown as a warning, and written at the end.

    Args:
        source: what is watched.
        pace: of "live", latency is how much later a window came than the promptest one so far; of "file", later than it
            would have ended if the file had begun to play when this was entered; with "fast", how many times faster
            than real time all was.
    """

    def __init__(self, source: str, pace: Pace) -> None:
        self._pace = pace
        self._lock = threading.Lock()
        self._view = LiveView(source, "x real time" if pace == "fast" else "s late")
        self._console = Console(highlight=False)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=self._picture,
        )
        self._news = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._draw, name="merfast-screen", daemon=True)
        self._restore = ExitStack()
        self._started, self._promptest = 0.0, math.inf

    def __enter__(self) -> LiveScreen:
        self._messages = _Messages(self._warn)
        if sys.stderr.isatty():
            self._restore.callback(self._messages.write_again, sys.stderr)
            self._restore.enter_context(redirect_stderr(self._messages))
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, _terminate)
            self._restore.callback(signal.signal, signal.SIGTERM, before)
        self._started = time.monotonic()
        self._live.start(refresh=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._news.set()
        self._thread.join()
        try:
            self._live.stop()
        finally:
            self._restore.close()
        self._console.print(Text(self._view.summary()), soft_wrap=True)

    def __call__(self, prediction: Prediction) -> None:
        """Show a window."""
        now = time.monotonic()
        passed = now - self._started
        self._promptest = min(self._promptest, passed - prediction.end)
        with self._lock:
            self._view.add(prediction, self._late(prediction.end, passed), now)
        self._news.set()

    def _late(self, end: float, passed: float) -> float:
        if self._pace == "fast":
            return end / passed
        return passed - end - self._promptest if self._pace == "live" else max(0.0, passed - end)

    def _warn(self, message: str) -> None:
        with self._lock:
            self._view.warn(message, time.monotonic())
        self._news.set()

    def _draw(self) -> None:
        while not self._over:
            self._live.refresh()
            time.sleep(1 / PICTURES)
            with self._lock:
                moves = self._view.moves(time.monotonic())
            if not moves:
                # The clock goes on every second; what comes in between is shown when it comes.
                self._news.wait(1.0 - time.time() % 1.0)
            self._news.clear()

    def _picture(self) -> Group:
        with self._lock:
            width, height = self._console.size
            return Group(*self._view.lines(width, height, time.monotonic(), time.strftime("%H:%M:%S")))


class _Messages(io.TextIOBase):
    """Standard error while the screen is in use: keeps lines, and hands each on."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._lines.append(line)
            self._show(line)
        return len(text)

    def write_again(self, file: TextIO) -> None:
        for line in (*self._lines, *filter(None, [self._begun])):
            print(line, file=file)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
