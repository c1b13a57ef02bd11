"""The command line: what it prints, where, and with which exit status."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from media_files import write_wav
from rich.console import Console

import merfast
from merfast import __version__, cli, cli_output, cli_table, config, demo, tables
from merfast.bundle import load
from merfast.errors import MediaError, UnavailableError
from merfast.types import EMOTIONS, Failure, Prediction

POSTERIOR = (0.05, 0.62, 0.03, 0.1, 0.125, 0.075)


def prediction(source="a.mp4", start=0.0, end=4.0, probabilities=POSTERIOR, valence=-1.234, **changes) -> Prediction:
    values = np.array(probabilities, dtype=np.float32)
    known = bool(np.isfinite(values).all())
    arguments = {"modalities": ("audio", "video"), "face_coverage": 1.0, "track": 0} | changes
    return Prediction(source, start, end, EMOTIONS[values.argmax()] if known else None, values, valence, **arguments)


def empty(source="a.mp4", start=4.0, end=8.0) -> Prediction:
    missing = {"audio": "no sound in this stretch", "video": "no face found"}
    nan = float("nan")
    return prediction(source, start, end, [nan] * 6, nan, modalities=(), face_coverage=0.0, missing=missing, track=None)


def voice_only(source="b.wav") -> Prediction:
    return prediction(source, modalities=("audio",), face_coverage=0.0, missing={"video": "no video track"}, track=None)


FAILED = Failure("clips/broken.mp4", MediaError("clips/broken.mp4", "cannot be read as media (Invalid data)"))


def console_of(width: int, encoding: str = "utf-8") -> Console:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    return Console(file=out, width=width, highlight=False, soft_wrap=True)


def lines_of(console: Console) -> list[str]:
    console.file.seek(0)
    return console.file.read().splitlines()


def table_lines(results, width: int = 120, encoding: str = "utf-8") -> list[str]:
    console = console_of(width, encoding)
    table = cli_table.results_table(console, results)
    for result in results:
        table.add(result)
    return lines_of(console)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_table_fits_its_width(width):
    results = [prediction("some/folder/with/a/rather/long/name.mp4"), voice_only(), FAILED, empty("c.mp4", 0.0, 9.5)]
    lines = table_lines(results, width)
    assert all(len(line) <= max(width, 60) for line in lines), "\n".join(lines)
    text = " ".join(" ".join(lines).split())
    for expected in (
        "angry",
        "62",
        "-1.23",
        "face: no video track",
        "failed: cannot be read as media (Invalid data)",
    ):
        assert expected in text
    assert "e.mp4" in text


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_row_says_everything(width):
    header, row = table_lines([prediction()], width)
    assert header.split()[:3] == ["source", "seconds", "emotion"]
    assert header.split()[-3:] == ["valence", "face", "voice"]
    assert row.split()[:3] == ["a.mp4", "0.0-4.0", "angry"]
    assert row.split()[-3:] == ["-1.23", "100%", "yes"]
    digits = "".join(c if c.isdigit() or c in ".-" else " " for c in row).split()
    assert [int(d) for d in digits[3:9]] == [5, 62, 3, 10, 12, 8]


def test_bars_follow_the_probabilities():
    _, row = table_lines([prediction()], 200)
    cells = [row[row.index(number) :].split()[1] for number in (" 62 ", " 10 ")]
    assert cells == ["█████", "▊"]  # of eight
    _, row = table_lines([prediction()], 80)
    assert "▅62" in row
    assert "▁10" in row


def test_certainty_stays_two_digits():
    _, row = table_lines([prediction(probabilities=[0, 1, 0, 0, 0, 0])], 80)
    assert "█99" in row


def test_ascii_terminal():
    lines = table_lines([prediction("much/too/long/for/this/narrow/screen.mp4"), voice_only()], 80, "ascii")
    assert all(line.isascii() for line in lines)
    assert "~" in lines[1]


def test_note_stands_beside_the_row_where_there_is_room():
    assert table_lines([voice_only()], 80)[2].strip() == "face: no video track"
    assert "face: no video track" in table_lines([voice_only()], 160)[1]


def test_other_faces_and_parts():
    main = prediction(
        windows=(prediction(), prediction()), others=(prediction(track=3, valence=2.0),), warnings=("hm",)
    )
    lines = table_lines([main], 200)
    assert "average of 2 windows; warning: hm" in lines[1]
    assert lines[2].split()[:2] == ["face", "3"]
    assert "+2.00" in lines[2]


def test_timeline_names_the_source_once_and_repeats_no_reason():
    console = console_of(80)
    table = cli_table.timeline_table(console)
    for result in (empty("a.mp4", 0, 2), empty("a.mp4", 2, 4), prediction("a.mp4", 4, 6), empty("b.mp4", 0, 2), FAILED):
        table.add(result)
    lines = lines_of(console)
    assert lines.count("a.mp4") == lines.count("b.mp4") == 1
    assert sum("face: no face found" in line for line in lines) == 2
    assert lines[-2] == "clips/broken.mp4"
    assert lines[-1].strip().startswith("failed: cannot")


def test_timeline_names_other_faces():
    console = console_of(80)
    table = cli_table.timeline_table(console)
    table.add(prediction("a.mp4", 0, 2, others=(prediction("a.mp4", 0, 2, track=12),)))
    assert [line.split("  ")[0].strip() or line.split()[:2] for line in lines_of(console)[2:]] == [
        "0.0-2.0",
        ["face", "12"],
    ]


def test_names_cannot_move_the_cursor():
    lines = table_lines([prediction("evil\x1b[2J\n\r.mp4"), prediction("raw\udcff.mp4")])
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


def test_wide_characters_keep_the_columns():
    lines = table_lines([prediction("情感识别.mp4"), prediction("plain.mp4")], 80)
    assert cli_table.cell_len(lines[1]) == cli_table.cell_len(lines[2])


def test_json_of_everything():
    out = io.StringIO()
    writer = cli_output.JsonWriter(out)
    for result in (prediction(), empty(), FAILED):
        writer.add(result)
    writer.finish()
    first, second, third = json.loads(out.getvalue())
    assert first["probabilities"]["angry"] == pytest.approx(0.62)
    assert second["emotion"] is second["valence"] is None
    assert third == {"source": FAILED.source, "error": str(FAILED.error), "kind": "MediaError"}


def test_json_of_nothing():
    out = io.StringIO()
    cli_output.JsonWriter(out).finish()
    assert json.loads(out.getvalue()) == []


def test_csv_of_everything():
    out = io.StringIO()
    writer = tables.CsvWriter(out)
    for result in (prediction(others=(prediction(track=7),)), empty(), voice_only('a "b",\nc.wav'), FAILED):
        writer.add(result)
    out.seek(0)
    rows = list(csv.DictReader(out))
    columns = ["source", "start", "end", "emotion", *EMOTIONS, "valence"]
    columns += ["modalities", "face_coverage", "missing", "track", "main", "attention_audio", "attention_video"]
    assert list(rows[0]) == [*columns, "warnings", "error"]
    assert [r["main"] for r in rows] == ["true", "false", "true", "true", "true"]
    assert [r["track"] for r in rows] == ["0", "7", "", "", ""]
    assert [r["modalities"] for r in rows] == ["audio+video", "audio+video", "", "audio", ""]
    assert float(rows[0]["angry"]) == pytest.approx(0.62)
    assert rows[2]["emotion"] == rows[2]["valence"] == rows[2]["sad"] == ""
    assert rows[2]["missing"] == "audio: no sound in this stretch; video: no face found"
    assert rows[3]["source"] == 'a "b",\nc.wav'
    assert rows[4]["error"] == "cannot be read as media (Invalid data)"


def test_folders_are_searched(tmp_path):
    for name in ("b.mp4", "a.WAV", "sub/c.mkv", "notes.txt", ".hidden.mp4", ".cache/d.mp4"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    found = list(cli._expand([str(tmp_path), "rtsp://camera/1", "missing.xyz", str(tmp_path / "notes.txt")]))
    expected = [*(str(tmp_path / n) for n in ("a.WAV", "b.mp4", "sub/c.mkv")), "rtsp://camera/1", "missing.xyz"]
    assert found == [*expected, str(tmp_path / "notes.txt")]


# In this process, up to the exit status.


@pytest.fixture
def mixed(tmp_path, face_clip) -> Path:
    """A folder with a good clip, a sound file and a broken one."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(face_clip, folder / "1.mp4")
    write_wav(folder / "2.wav", demo.babble(1.5, 16_000))
    (folder / "3.mp4").write_bytes(b"not a video")
    return folder


def test_predict_table(mixed, capsys):
    assert cli.main(["predict", str(mixed)]) == 1
    captured = capsys.readouterr()
    for expected in ("1.mp4", "2.wav", "3.mp4", "failed: cannot be read", "face: no video track", "100%"):
        assert expected in captured.out
    assert captured.err.count("untrained") == (not load().config.trained)
    assert "1 of 3 failed" in captured.err


def test_predict_json(mixed, capsys):
    assert cli.main(["predict", str(mixed / "1.mp4"), str(mixed / "2.wav"), "--json", "--detector", "haar"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["source"] == str(mixed / "1.mp4")
    assert first["modalities"] == ["audio", "video"]
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert second["missing"] == {"video": "no video track"}


def test_predict_csv_file_and_table(mixed, tmp_path, capsys):
    file = tmp_path / "out.csv"
    assert cli.main(["predict", str(mixed), "--csv", str(file)]) == 1
    assert "1.mp4" in capsys.readouterr().out
    first = file.read_text()
    assert cli.main(["predict", str(mixed), "--csv", str(file), "--quiet"]) == 1
    assert capsys.readouterr().out == ""
    assert file.read_text() == first
    rows = list(csv.DictReader(io.StringIO(first)))
    assert [Path(r["source"]).name for r in rows] == ["1.mp4", "2.wav", "3.mp4"]
    assert [bool(r["error"]) for r in rows] == [False, False, True]


def test_long_lists_are_written_in_portions(mixed, tmp_path, monkeypatch, capsys):
    """What was done before a run was stopped is there."""
    monkeypatch.setattr(cli, "_PORTION", 2)
    file = tmp_path / "out.csv"
    items = [mixed / "2.wav", mixed / "3.mp4", mixed / "2.wav", mixed / "nowhere.wav", mixed / "2.wav"]
    assert cli.main(["predict", *map(str, items), "--csv", str(file)]) == 1
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [r["source"] for r in rows] == [str(i) for i in items]
    assert [bool(r["error"]) for r in rows] == [False, True, False, True, False]
    captured = capsys.readouterr()
    assert "2 of 5 failed" in captured.err
    assert captured.out.count("2.wav") == 3

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    calls = iter([merfast.Engine.predict, stop])
    monkeypatch.setattr(merfast.Engine, "predict", lambda *a, **o: next(calls)(*a, **o))
    assert cli.main(["predict", *map(str, items), "--csv", str(file)]) == 130
    assert len(list(csv.DictReader(io.StringIO(file.read_text())))) == 2


def test_windows(mixed, capsys):
    assert cli.main(["predict", str(mixed), "--window", "1", "--csv", "-"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    good = [(float(r["start"]), float(r["end"])) for r in rows if r["source"].endswith("1.mp4")]
    assert good[:2] == [(0, 1), (1, 2)]
    assert good[-1][1] == pytest.approx(2.5, abs=0.1)
    assert rows[-1]["error"]
    assert cli.main(["predict", str(mixed / "2.wav"), "--window", "1", "--hop", "0.25", "--json"]) == 0
    starts = [p["start"] for p in json.loads(capsys.readouterr().out)]
    assert starts[:3] == [0, 0.25, 0.5]


def test_wrong_window_leaves_an_existing_file(mixed, tmp_path, capsys):
    file = tmp_path / "out.csv"
    file.write_text("precious")
    assert cli.main(["predict", str(mixed), "--window", "99", "--csv", str(file)]) == 2
    assert file.read_text() == "precious"


def test_plan_and_info(capsys):
    assert cli.main(["plan", "--device", "cpu", "--detector", "haar", "--kernels", "reference"]) == 0
    captured = capsys.readouterr()
    assert "haar" in captured.out
    assert captured.err == ""
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in ("bundle", "trained", "streams", "structures", "parameters", "metrics", "licence", "provenance"):
        assert expected in out


def test_demo(tmp_path, capsys, face_clip):
    kept = tmp_path / "kept.mp4"
    assert cli.main(["demo", "-o", str(kept), "--detector", "haar"]) == 0
    captured = capsys.readouterr()
    assert kept.stat().st_size > 10_000
    assert "Grace Hopper" in captured.out
    assert str(kept) in captured.out
    assert ("UNTRAINED" in captured.out) == (not load().config.trained)
    assert captured.err == ""


def test_fetch(capsys, monkeypatch, tmp_path):
    from merfast.media import yunet

    monkeypatch.setattr(yunet, "fetch", lambda source: Path("/cache") / source.name)
    assert cli.main(["fetch", "yunet", "--from", "x.onnx"]) == 0
    assert capsys.readouterr().out == "/cache/x.onnx\n"

    def offline(source):
        raise UnavailableError("no way\nthere")

    monkeypatch.setattr(yunet, "fetch", offline)
    assert cli.main(["fetch", "yunet"]) == 2
    assert capsys.readouterr().err == "merfast: no way there\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{clip}", "--bundle", "{empty}"], "config.json: missing"),
        (["{clip}", "--device", "tpu"], "device: got 'tpu'"),
        (["{clip}", "--detector-model", "{empty}/none.onnx"], "none.onnx"),
        (["{clip}", "--threads", "0"], "threads: got 0"),
        (["{clip}", "--window", "1e6"], "window: got"),
        (["{clip}", "--window", "1", "--hop", "-1"], "hop: got"),
        (["{clip}", "{empty}"], "this folder holds no media files"),
        (["{clip}", "--csv", "{empty}/none/x.csv"], "cannot be written there"),
        (["{clip}", "--csv", "{empty}"], "cannot be written there"),
        (["{clip}", "--csv", "{clip}"], "one of the files to predict"),
    ],
)
def test_wrong_options(arguments, message, tmp_path, face_clip, capsys):
    values = {"clip": str(face_clip), "empty": str(tmp_path)}
    assert cli.main(["predict", *(a.format(**values) for a in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("merfast: ")
    assert message in last


@pytest.mark.parametrize(
    "arguments",
    [[], ["predict"], ["predict", "x", "--hop", "1"], ["predict", "x", "--json", "--csv", "-"], ["fetch", "x"]],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: merfast" in capsys.readouterr().err


def test_help_names_every_choice(capsys):
    with pytest.raises(SystemExit):
        cli.main(["predict", "--help"])
    text = capsys.readouterr().out
    for option in ("decoder", "detector", "kernels", "faces"):
        for choice in config._CHOICES[option]:
            assert choice in text, f"--{option} {choice}"


# As a process of its own.


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "merfast", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment(), **options
    )


def environment() -> dict[str, str]:
    root = str(Path(cli.__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_process_json_stdout_is_clean(mixed):
    done = run("predict", mixed, "--json")
    assert done.returncode == 1
    results = json.loads(done.stdout)
    assert [Path(r["source"]).name for r in results] == ["1.mp4", "2.wav", "3.mp4"]
    assert "error" in results[2]
    assert "Traceback" not in done.stderr
    assert all(line.startswith("merfast: ") for line in done.stderr.splitlines())


def test_process_version_and_light_help():
    assert run("--version").stdout == f"merfast {__version__}\n"
    code = (
        "import sys; from merfast.cli import _parser; _parser(); print({'torch', 'cv2', 'av', 'rich'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == "set()"


def test_process_broken_pipe(face_clip):
    command = [sys.executable, "-m", "merfast", "predict", str(face_clip), "--window", "0.1", "--hop", "0.002"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(60) == 141
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_process_interrupted(face_clip):
    # SIGINT as a terminal leaves it, whatever this process inherited.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from merfast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-u", "-c", code, "predict", str(face_clip), "--window", "0.1", "--hop", "0.0005"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.endswith("merfast: interrupted\n")
