"""`merfast live`: its lines at any width, JSON, real-time pace, and how it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live_servers import serving, transport_stream
from rich.console import Console

import merfast
from merfast import cli, cli_live, cli_table
from merfast.types import EMOTIONS, Prediction

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}


@pytest.fixture(scope="session")
def talk(face_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.5 s of MPEG-TS."""
    return transport_stream(face_clip, tmp_path_factory.mktemp("live") / "talk.ts")


def window(k: int, valence: float = 0.0, **changes) -> Prediction:
    values = np.full(6, 0.02, dtype=np.float32)
    values[k % 6] = 0.9
    modalities = ("audio", "video")
    p = Prediction("talk.mp4", float(k), k + 4.0, EMOTIONS[k % 6], values, valence, modalities, 1.0, track=0)
    return replace(p, **changes)


def empty(k: int) -> Prediction:
    nothing, missing = np.full(6, np.nan, dtype=np.float32), {"audio": "silent", "video": "no face found"}
    return Prediction("talk.mp4", float(k), k + 4.0, None, nothing, float("nan"), (), 0.0, missing)


def lines_of(predictions: list[Prediction], width: int = 80, encoding: str = "utf-8") -> list[str]:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    show = cli_live.LiveLines(Console(file=out, width=width, highlight=False, soft_wrap=True), "talk.mp4")
    for prediction in predictions:
        show.add(prediction)
    out.seek(0)
    return out.read().splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 200])
def test_lines_fit_the_width(width: int, encoding: str) -> None:
    windows = [window(k, -5.0 + k / 4) for k in range(30)]
    lines = lines_of([*windows, empty(30), window(3600, 5.0)], width, encoding)
    assert all(len(line) < max(width, 41) for line in lines)
    assert lines[0] == "talk.mp4"
    rows = lines[2:]
    assert all(len(line.split()) >= 4 for line in rows[:3])
    assert rows[5].split()[:2] == ["0:09.0", "surprise"]
    assert lines[-1].split()[:2] == ["1:00:04", "neutral"]
    bars, used = width >= 72, width >= 80
    assert ("neu ang hap sad wor sur" in lines[1]) == bars
    assert rows[0].endswith("face+voice") == used
    assert any("silent; no face" in line for line in rows) == bars
    # Valence rises, so its sparkline does.
    spark = re.search(r"\+0\.\d\d (\S+)", rows[22])
    assert spark is not None
    levels = "▁▂▃▄▅▆▇█" if encoding == "utf-8" else "_.-=+*#@"
    ranks = [levels.index(c) for c in spark[1]]
    assert len(ranks) >= 8
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


def test_columns_are_below_their_headings() -> None:
    lines = lines_of([window(k, 1.0) for k in range(6)])
    header, rows = lines[1], lines[2:]
    for k, emotion in enumerate(EMOTIONS):
        assert rows[k][header.index(emotion[:3]) :].startswith("██▊")
        assert rows[k][header.index("emotion") :].startswith(emotion)
        assert f"{emotion:<8} 90%" in rows[k]
    assert all(len(line) == 79 for line in rows)


def test_the_heading_comes_again() -> None:
    lines = lines_of([window(k) for k in range(2 * cli_live.HEADER_EVERY + 1)])
    assert sum("valence" in line for line in lines) == 3


def test_windows_with_nothing_are_gaps() -> None:
    lines = lines_of([window(0, 3.0), empty(1), window(2, -3.0)])
    assert "silent; no face found" in lines[-2]
    assert "█ ▁" in lines[-1]


def test_other_faces_and_warnings_have_lines_of_their_own() -> None:
    other = window(2, track=7, others=())
    lines = lines_of([window(1, others=(other,), warnings=("3 damaged packets were \x1b[2Jskipped",))])
    assert lines[-2].split()[:3] == ["face", "7", "happy"]
    assert lines[-1] == "  warning: 3 damaged packets were \N{REPLACEMENT CHARACTER}[2Jskipped"


@pytest.mark.parametrize(("valence", "level"), [(-5, 0), (-3, 0), (-0.01, 3), (0.01, 4), (2.99, 7), (3, 7), (5, 7)])
def test_levels_of_the_sparkline(valence: float, level: int) -> None:
    assert cli_live._level(valence, 8) == level


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4, "0:04.0"), (59.96, "1:00.0"), (3599.9, "59:59.9"), (3600, "1:00:00"), (36_061, "10:01:01")],
)
def test_times(seconds: float, text: str) -> None:
    assert cli_table.clock_text(seconds) == text


# The command itself.


def test_json_lines_are_those_of_the_engine(face_clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--window", "1", "--hop", "0.5", "--smoothing", "2", "--detector", "haar"]
    assert cli.main(["live", str(face_clip), "--fast", "--json", *arguments]) == 0
    got = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    engine = merfast.Engine(detector="haar")
    expected = [p.to_dict() for p in engine.timeline(face_clip, window=1.0, hop=0.5, smoothing=2.0)]
    assert [g["start"] for g in got] == [e["start"] for e in expected]
    for g, e in zip(got, expected, strict=True):
        assert g["emotion"] == e["emotion"]
        assert g["probabilities"] == pytest.approx(e["probabilities"], abs=1e-5)


def test_a_file_is_shown_as_it_would_play(face_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(cli_live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cli_live.time, "sleep", sleep)
    shown = [now[0] for _ in cli_live._paced(iter([window(k) for k in range(4)]), str(face_clip))]
    assert shown == [104.0, 105.0, 106.0, 107.0]
    slept.clear()
    assert len(list(cli_live._paced(iter([window(9)]), "http://127.0.0.1/live.ts"))) == 1
    assert slept == []


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("no-such.mp4", 1, "no-such.mp4: no such file"),
        ("/dev/video999", 1, "/dev/video999: no such camera"),
        ("a.mp4 --window 99", 2, "window: got 99.0, expected"),
        ("a.mp4 --hop 0", 2, "hop: got 0.0, expected"),
        ("a.mp4 --smoothing -1", 2, "smoothing: got -1.0, expected"),
    ],
)
def test_what_cannot_be_watched(
    source: str, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert cli.main(["live", *source.split(), "--detector", "haar"]) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def merfast_live(*arguments: str, **options) -> subprocess.Popen:
    # SIGINT as a terminal leaves it, whatever this process inherited.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from merfast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "live", "--detector", "haar", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


def test_a_pipe_gets_plain_lines(face_clip: Path) -> None:
    with merfast_live(
        str(face_clip), "--window", "1", "--hop", "1", "--fast", stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert b"\x1b" not in out
    lines = out.decode().splitlines()
    assert lines[0] == str(face_clip)
    assert [line.split()[0] for line in lines[2:]] == ["0:01.0", "0:02.0", "0:02.5"]
    assert all(len(line) < 80 for line in lines[1:])


@pytest.mark.parametrize(("kind", "stall"), [("http", 1e9), ("http", 4.0), ("hls", 4.0), ("rtsp", 4.0)])
def test_ctrl_c_ends_it_with_its_status(kind: str, stall: float, talk: Path, tmp_path: Path) -> None:
    with serving(kind, talk, tmp_path, speed=3.0, stall=stall) as url:
        options = {"stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
        with merfast_live(url, "--window", "1", "--json", **options) as process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            time.sleep(1.5 if stall < 100 else 0.2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "merfast: interrupted\n"
    assert first["source"] == url
    assert all(json.loads(line)["emotion"] in EMOTIONS for line in out.splitlines())


def test_ctrl_c_while_nothing_answers(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/live.ts"
        with merfast_live(url, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
            client, _ = server.accept()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            client.close()
    assert (process.returncode, out, err) == (130, "", "merfast: interrupted\n")


def test_a_reader_that_goes_away_ends_it(talk: Path, tmp_path: Path) -> None:
    with (
        serving("http", talk, tmp_path, speed=5.0) as url,
        merfast_live(url, "--window", "1", stdout=subprocess.PIPE, env=ENVIRONMENT) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_lines_have_colours_in_a_terminal_and_none_in_a_dumb_one(term: str, face_clip: Path) -> None:
    master, slave = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": term, "COLUMNS": "80"}
    lines = ["--lines"] if term != "dumb" else []  # which shows lines unasked
    arguments = [str(face_clip), "--window", "1", "--fast", *lines]
    with merfast_live(*arguments, stdout=slave, stdin=slave, env=environment) as process:
        os.close(slave)
        seen = b""
        while True:
            ready, _, _ = select.select([master], [], [], 60)
            try:
                data = os.read(master, 4096) if ready else b""
            except OSError:  # the other end is closed
                break
            if not data:
                break
            seen += data
        assert process.wait(60) == 0
    os.close(master)
    assert (b"\x1b[" in seen) == (term != "dumb")
    codes = set(re.findall(rb"\x1b\[[0-9;]*(.)", seen))
    assert codes <= {b"m"}  # colours alone: the cursor is never moved
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode())
    assert "0:01.0" in plain
    assert "face+voice" in plain
