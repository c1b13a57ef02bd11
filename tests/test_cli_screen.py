"""`merfast live` on a pseudo-terminal: what it writes there, how often, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from live_servers import serving, transport_stream

from merfast.cli_screen import PICTURES

HIDE, SHOW, ENTER, LEAVE, HOME = b"\x1b[?25l", b"\x1b[?25h", b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[H"


class Terminal:
    """`merfast live` in a pseudo-terminal of `columns` by `rows`."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, before: str = "pass") -> None:
        self.seen = b""
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
        # SIGINT as a terminal leaves it, whatever this process inherited.
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"from merfast.cli import main; {before}; sys.exit(main(sys.argv[1:]))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "live", "--detector", "haar", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm-256color", "LANG": "C.UTF-8"},
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, until: Callable[[bytes], bool], seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not until(self.seen) and time.monotonic() < end:
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # the other end is closed
                    return
                if not data:
                    return
                self.seen += data

    def finish(self) -> int:
        self.read(lambda seen: False)
        return self.process.wait(30)


def pictures(seen: bytes) -> list[list[str]]:
    """Lines of what was drawn, one picture after the other, without colours."""
    within = seen[seen.index(ENTER) : seen.index(LEAVE) if LEAVE in seen else None]
    plain = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part.decode(errors="replace")) for part in within.split(HOME)[1:]]
    return [[line.rstrip() for line in part.split("\r\n")] for part in plain if part]


def left_clean(seen: bytes) -> bool:
    return (
        seen.count(ENTER) == seen.count(LEAVE) == 1
        and seen.rindex(SHOW) > seen.rindex(HIDE)
        and b"\x1b" not in seen[seen.index(LEAVE) + len(LEAVE) :].replace(SHOW, b"")
    )


def after(seen: bytes) -> list[str]:
    """Lines on the terminal's first screen, after the view."""
    return seen[seen.index(LEAVE) + len(LEAVE) :].replace(SHOW, b"").decode().split("\r\n")[:-1]


@pytest.fixture(scope="module")
def talk(face_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transport_stream(face_clip, tmp_path_factory.mktemp("screen") / "talk.ts")


def test_a_file_is_watched_to_its_end(face_clip: Path) -> None:
    with Terminal(str(face_clip), "--window", "1", "--hop", "0.5") as terminal:
        assert terminal.finish() == 0, terminal.seen[-2000:]
    assert left_clean(terminal.seen)
    drawn = pictures(terminal.seen)
    assert "waiting for the first window" in drawn[0]
    times = [m[1] for lines in drawn if (m := re.search(r"late  (0:0\d\.\d)", lines[0]))]
    assert list(dict.fromkeys(times))[:3] == ["0:01.0", "0:01.5", "0:02.0"]  # the end comes with the last window
    assert all(len(lines) <= 24 and max(map(len, lines)) <= 80 for lines in drawn)
    assert "● face 0" in "\n".join(drawn[-1])
    shares = [line.split()[1] for lines in drawn for line in lines if line.startswith("neutral ")]
    assert len(set(shares)) > 4  # more than there are windows: it moves
    (summary,) = after(terminal.seen)
    assert summary.startswith(f"{face_clip}: 0:02.5, 4 windows; ")
    assert summary.endswith("s late at the median")


def test_pictures_are_bounded(talk: Path, tmp_path: Path) -> None:
    with (
        serving("http", talk, tmp_path, speed=1.0) as url,
        Terminal(url, "--window", "1", "--hop", "0.1") as terminal,
    ):
        terminal.read(lambda seen: b"late" in seen)
        started, before = time.monotonic(), terminal.seen.count(HOME)
        terminal.read(lambda seen: time.monotonic() - started > 3.0)
        drawn, took = terminal.seen.count(HOME) - before, time.monotonic() - started
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.finish() == 130
    assert 3 <= drawn <= took * PICTURES + 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_the_terminal_clean(number: int, status: int, talk: Path, tmp_path: Path) -> None:
    with serving("http", talk, tmp_path, speed=1.0) as url, Terminal(url, "--window", "1") as terminal:
        terminal.read(lambda seen: b"late" in seen)
        terminal.process.send_signal(number)
        assert terminal.finish() == status
    assert left_clean(terminal.seen)
    lines = after(terminal.seen)
    assert lines[0].startswith(f"{url}: 0:0")
    assert lines[1:] == (["merfast: interrupted"] if number == signal.SIGINT else [])


def test_it_follows_the_size_of_the_terminal(talk: Path, tmp_path: Path) -> None:
    with (
        serving("http", talk, tmp_path, speed=1.0) as url,
        Terminal(url, "--window", "1", columns=120, rows=30) as terminal,
    ):
        terminal.read(lambda seen: b"late" in seen)
        assert len(pictures(terminal.seen)[0]) == 30
        terminal.resize(60, 8)
        terminal.read(lambda seen: len(pictures(seen)) > 2 and len(pictures(seen)[-2]) == 8, 20.0)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.finish() == 130
    last = pictures(terminal.seen)[-1]
    assert len(last) == 8
    assert max(map(len, last)) <= 60


def test_messages_are_shown_as_warnings_and_again_at_the_end(face_clip: Path) -> None:
    say = (
        "import merfast.cli_screen as s; add = s.LiveScreen.__call__; "
        "s.LiveScreen.__call__ = lambda self, p: (add(self, p), print('something odd', file=sys.stderr))[0]"
    )
    with Terminal(str(face_clip), "--window", "2", before=say) as terminal:
        assert terminal.finish() == 0
    assert left_clean(terminal.seen)
    assert any(line.endswith("something odd") for line in pictures(terminal.seen)[-1])
    lines = after(terminal.seen)
    assert lines[:-1] == ["something odd"] * 2
    assert lines[-1].endswith("2 warnings")


def test_an_error_leaves_the_terminal_clean(face_clip: Path, tmp_path: Path) -> None:
    whole = face_clip.read_bytes()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(whole[: len(whole) // 2])
    with Terminal(str(broken), "--window", "1", "--fast") as terminal:
        assert terminal.finish() == 1
    assert left_clean(terminal.seen)
    assert after(terminal.seen)[-1].startswith(f"merfast: {broken}: ")
