"""The examples that read a pipe and that run in an event loop, as processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from merfast import Engine

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """The command line program."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    if found is None:
        pytest.skip("needs ffmpeg's command line: pip install 'merfast[examples]', or apt-get install ffmpeg")
    return found


@pytest.fixture(scope="module")
def timeline(face_clip: Path) -> list[dict]:
    return [p.to_dict() for p in Engine().timeline(face_clip, window=1.0, hop=0.5)]


def start(program: str, *arguments: str, **pipes) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **pipes)


@pytest.mark.parametrize(
    "options",
    [
        ["-c:v", "rawvideo", "-pix_fmt", "yuv420p", "-c:a", "pcm_f32le", "-f", "nut"],
        ["-c:v", "rawvideo", "-pix_fmt", "yuv420p", "-c:a", "pcm_f32le", "-f", "matroska"],
        ["-c", "copy", "-f", "matroska"],
    ],
    ids=["raw in NUT", "raw in Matroska", "packets in Matroska"],
)
def test_a_pipe_from_ffmpeg_gives_the_windows_of_the_file(options, ffmpeg, face_clip, timeline) -> None:
    command = [ffmpeg, "-v", "error", "-nostdin", "-i", str(face_clip), *options, "-"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as source,
        start("ffmpeg_pipe.py", "--window", "1", "--hop", "0.5", stdin=source.stdout) as program,
    ):
        source.stdout.close()
        out, problems = program.communicate(timeout=240)
        assert program.returncode == 0, problems.decode()
        assert source.wait(60) == 0
    windows = [json.loads(line) for line in out.splitlines()]
    assert len(windows) == len(timeline)
    for got, wanted in zip(windows, timeline, strict=True):
        assert (got["start"], got["end"]) == pytest.approx((wanted["start"], wanted["end"]), abs=0.1)
        assert got["modalities"] == wanted["modalities"] == ["audio", "video"]
        assert got["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-4)


def test_a_pipe_with_pictures_alone(ffmpeg, face_clip) -> None:
    command = [ffmpeg, "-v", "error", "-nostdin", "-i", str(face_clip), "-an", "-c:v", "rawvideo", "-f", "nut", "-"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as source,
        start("ffmpeg_pipe.py", "--window", "1", "--hop", "1", stdin=source.stdout) as program,
    ):
        source.stdout.close()
        out, problems = program.communicate(timeout=240)
        assert program.returncode == 0, problems.decode()
    windows = [json.loads(line) for line in out.splitlines()]
    assert [w["modalities"] for w in windows] == [["video"]] * 3


def test_a_pipe_that_breaks_off_gives_what_came(ffmpeg, face_clip) -> None:
    options = ["-c:v", "rawvideo", "-pix_fmt", "yuv420p", "-c:a", "pcm_f32le", "-f", "nut"]
    whole = subprocess.run(
        [ffmpeg, "-v", "error", "-i", str(face_clip), *options, "-"], capture_output=True, check=True
    )
    with start("ffmpeg_pipe.py", "--window", "1", "--hop", "0.5", stdin=subprocess.PIPE) as program:
        out, _ = program.communicate(whole.stdout[: len(whole.stdout) * 7 // 10], timeout=240)
    windows = [json.loads(line) for line in out.splitlines()]
    assert [w["start"] for w in windows[:2]] == pytest.approx([0.0, 0.5], abs=0.05)
    assert 1.5 < windows[-1]["end"] < 2.0


def test_a_pipe_without_media_is_an_error() -> None:
    with start("ffmpeg_pipe.py", stdin=subprocess.PIPE) as program:
        out, problems = program.communicate(b"this is not a film" * 1000, timeout=240)
    assert program.returncode == 1
    assert out == b""
    assert problems.startswith(b"ffmpeg_pipe: ")
    assert b"Traceback" not in problems


def test_many_streams_in_one_event_loop(face_clip, tmp_path) -> None:
    sources = [tmp_path / f"{i}.mp4" for i in range(3)]
    for source in sources:
        shutil.copy(face_clip, source)
    missing = tmp_path / "missing.mp4"
    with start("asyncio_streams.py", "--speed", "0", *map(str, [*sources, missing])) as program:
        out, problems = program.communicate(timeout=240)
    assert program.returncode == 1
    assert str(missing) in problems.decode()
    assert b"Traceback" not in problems
    lines = out.decode().splitlines()
    assert all(line.startswith("Prediction(") for line in lines)
    assert [sum(str(source) in line for line in lines) for source in sources] == [1, 1, 1]


def test_streams_as_they_play_in_one_event_loop(face_clip) -> None:
    with start("asyncio_streams.py", str(face_clip)) as program:
        out, problems = program.communicate(timeout=240)
    assert program.returncode == 0, problems.decode()
    assert len(out.splitlines()) == 1
