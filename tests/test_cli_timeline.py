"""`merfast timeline`, and the files that it and `merfast predict` write: complete, or as much as there was."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from live_servers import serving, transport_stream
from test_cli import environment
from test_exports import cues, eaf_tiers, praat_tiers
from timelines import timeline, window

import merfast
from merfast import cli, cli_output, exports
from merfast.errors import BundleError, MediaError

KINDS = (*cli_output.TABLES, *cli_output.ANNOTATIONS)
NAME = 'it\'s a "talk" & 100 %, ünï.mp4'


@pytest.fixture(scope="session")
def talk(face_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip of 2.5 s, under an odd name."""
    return Path(shutil.copy(face_clip, tmp_path_factory.mktemp("odd names") / NAME))


def outputs(folder: Path, kinds: tuple[str, ...] = KINDS) -> list[str]:
    return [part for kind in kinds for part in ("-o", str(folder / f"out{kind}"))]


def starts(file: Path) -> list[float | None]:
    """Where the rows of a file, or its annotations, begin; read by each kind's own library."""
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as text:
            return [float(row["start"]) if row["start"] else None for row in csv.DictReader(text)]
    if file.suffix == ".json":
        return [p.get("start") for p in json.loads(file.read_text(encoding="utf-8"))]
    if file.suffix == ".jsonl":
        return [json.loads(line).get("start") for line in file.read_text(encoding="utf-8").splitlines()]
    if file.suffix == ".parquet":
        pd = pytest.importorskip("pandas")
        return [None if pd.isna(start) else start for start in pd.read_parquet(file)["start"]]
    if file.suffix == ".vtt":
        return [float(start[-6:]) for start, *_ in cues(file)]
    tiers = (eaf_tiers if file.suffix == ".eaf" else praat_tiers)(file)
    return [start for start, *_ in tiers["emotion"]]


def test_all_kinds_at_once(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["timeline", str(talk), "--window", "1", "--hop", "0.5", "--smoothing", "2", "--detector", "haar"]
    assert cli.main([*arguments, *outputs(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    engine = merfast.Engine(detector="haar")
    expected = list(engine.timeline(talk, window=1.0, hop=0.5, smoothing=2.0))
    header, name, *rows = captured.out.splitlines()
    assert header.split()[:2] == ["seconds", "emotion"]
    assert name == str(talk)
    assert [row.split()[:2] for row in rows] == [[f"{p.start:.1f}-{p.end:.1f}", p.emotion] for p in expected]
    for kind in cli_output.TABLES:
        assert starts(tmp_path / f"out{kind}") == [0, 0.5, 1, 1.5]
    for kind in cli_output.ANNOTATIONS:
        assert starts(tmp_path / f"out{kind}") == [0, 0.75, 1.25, 1.75]
    pd = pytest.importorskip("pandas")
    table, frame = pd.read_parquet(tmp_path / "out.parquet"), merfast.to_frame(expected)
    pd.testing.assert_frame_equal(table, frame, rtol=0, atol=1e-5)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f"out{kind}" for kind in KINDS)


def test_quiet(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["timeline", str(talk), "--detector", "none", "--quiet"]
    assert cli.main([*arguments, "-o", str(tmp_path / "OUT.VTT")]) == 0
    assert capsys.readouterr().out == ""
    assert len(cues(tmp_path / "OUT.VTT")) == 1
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert "--quiet needs -o FILE" in capsys.readouterr().err


def test_predict_writes_tables(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    arguments = ["predict", str(talk), str(broken), "--detector", "haar", "--quiet"]
    assert cli.main([*arguments, *outputs(tmp_path, cli_output.TABLES)]) == 1
    assert capsys.readouterr().out == ""
    for kind in cli_output.TABLES:
        assert starts(tmp_path / f"out{kind}") == [0, None]
    assert cli.main([*arguments, "--csv", str(tmp_path / "old.csv")]) == 1
    assert (tmp_path / "old.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()
    assert cli.main([*arguments, "--window", "1", "-o", str(tmp_path / "windows.jsonl")]) == 1
    assert starts(tmp_path / "windows.jsonl") == [0, 1, 2, None]
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "timeline {talk} -o a.xlsx",
            "a.xlsx: got the ending '.xlsx', expected one of .csv, .json, .jsonl, .parquet, ",
        ),
        ("timeline {talk} -o a.xlsx", ".parquet, .eaf, .TextGrid, .vtt"),
        ("predict {talk} -o table", "table: got no ending, expected one of .csv, .json, .jsonl, .parquet"),
        ("predict {talk} -o a.vtt", ".jsonl, .parquet (.vtt is for merfast timeline)"),
        ("timeline {talk} -o a.csv -o ./a.csv", "-o: got one file twice, expected different ones: a.csv, a.csv"),
        ("timeline {talk} -o no/a.csv", "no/a.csv: cannot be written there, expected a file in an existing folder"),
        ("timeline {talk} -o folder.csv", "folder.csv: cannot be written there"),
        ("timeline talk.json -o talk.json", "talk.json: is one of the files to predict"),
        ("timeline {talk} -o a.csv --window 99", "window: got 99.0"),
        ("timeline {talk} -o a.csv --smoothing 0", "smoothing: got 0.0"),
    ],
)
def test_wrong_outputs(
    arguments: str, message: str, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    for name in ("a.csv", "talk.json"):
        Path(name).write_text("precious")
    words = [str(talk) if word == "{talk}" else word for word in arguments.split()]
    assert cli.main([*words, "--detector", "none"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert Path("a.csv").read_text() == Path("talk.json").read_text() == "precious"
    assert sorted(os.listdir()) == ["a.csv", "folder.csv", "talk.json"]


def test_parquet_without_pyarrow(talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["timeline", str(talk), "--detector", "none", *outputs(tmp_path)]) == 2
    assert "pip install 'merfast[tables]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def play(monkeypatch: pytest.MonkeyPatch, windows: Iterator, talk: Path, folder: Path, *more: str) -> int:
    """Run the command on these windows instead of the engine's."""
    monkeypatch.setattr(merfast.Engine, "timeline", lambda *_, **__: (w for w in windows))
    return cli.main(["timeline", str(talk), "--detector", "none", "--quiet", *outputs(folder), *more])


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (BundleError("NaN"), 2), (MediaError("talk.mp4", "ends in the middle"), 1), (None, 0)],
)
def test_what_was_predicted_before_the_end_is_kept(
    error: BaseException | None, status: int, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for kind in KINDS:
        (tmp_path / f"out{kind}").write_text("old")
    seen = []

    def windows():
        yield from timeline(3)
        seen.append({f.name: f.read_text() for f in tmp_path.iterdir() if f.suffix != ".parquet"})
        if error is not None:
            raise error

    assert play(monkeypatch, windows(), talk, tmp_path) == status
    ends = [None] if status == 1 else []
    for kind in cli_output.TABLES:
        assert starts(tmp_path / f"out{kind}") == [0, 1, 2, *ends]
    for kind in cli_output.ANNOTATIONS:
        assert starts(tmp_path / f"out{kind}") == [0, 2.5, 3.5]
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f"out{kind}" for kind in KINDS)
    # Meanwhile files kept what they had, and those beside them had what there was.
    (meanwhile,) = seen
    assert {meanwhile[f"out{kind}"] for kind in KINDS if kind != ".parquet"} == {"old"}
    assert len(list(csv.DictReader(io.StringIO(meanwhile["out.csv.part"])))) == 3
    assert [json.loads(line)["start"] for line in meanwhile["out.jsonl.part"].splitlines()] == [0, 1, 2]
    if status == 1:
        with (tmp_path / "out.csv").open() as text:
            assert list(csv.DictReader(text))[-1]["error"] == "ends in the middle"


def test_nothing_replaces_nothing(talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """An item that fails at once is a row in tables; of annotations there is no file, and an old one stays."""
    (tmp_path / "out.vtt").write_text("old")

    def windows():
        raise MediaError(str(talk), "is damaged")
        yield

    assert play(monkeypatch, windows(), talk, tmp_path) == 1
    assert [starts(tmp_path / f"out{kind}") for kind in cli_output.TABLES] == [[None]] * 4
    assert (tmp_path / "out.vtt").read_text() == "old"

    def stopped():
        raise KeyboardInterrupt
        yield

    before = (tmp_path / "out.csv").read_text()
    assert play(monkeypatch, stopped(), talk, tmp_path) == 130
    assert (tmp_path / "out.csv").read_text() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([*(f"out{k}" for k in cli_output.TABLES), "out.vtt"])


def test_links_stay_links(talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "there" / "real.csv")
    assert play(monkeypatch, iter(timeline(2)), talk, tmp_path) == 0
    assert (tmp_path / "out.csv").is_symlink()
    assert starts(tmp_path / "there" / "real.csv") == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(kind: str, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / f"full{kind}").symlink_to("/dev/full")
    assert play(monkeypatch, iter(timeline(3)), talk, tmp_path, "-o", str(tmp_path / f"full{kind}")) == 2
    assert f"full{kind}: cannot be written (No space left on device)" in capsys.readouterr().err
    assert Path("/dev/full").is_char_device()


def test_a_pipe_is_written_directly(talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    read: list[str] = []

    def windows():
        for p in timeline(3):
            yield p
            while len(read) < p.start + 1:  # each line is there before the next window
                time.sleep(0.001)

    def reading() -> None:
        with (tmp_path / "pipe.jsonl").open() as pipe:
            for line in pipe:
                read.append(line)  # noqa: PERF402

    reader = threading.Thread(target=reading, daemon=True)
    reader.start()
    assert play(monkeypatch, windows(), talk, tmp_path, "-o", str(tmp_path / "pipe.jsonl")) == 0
    reader.join(10)
    assert [json.loads(line)["start"] for line in read] == [0, 1, 2]
    assert (tmp_path / "pipe.jsonl").is_fifo()


def test_a_long_timeline_is_not_kept(tmp_path: Path) -> None:
    """Of tables a row group at most is kept, and of annotations a few numbers for each window."""
    with ExitStack() as stack:
        files = [stack.enter_context(cli_output.OutputFile(tmp_path / f"out{kind}", kind)) for kind in KINDS]
        given = []
        for k in range(3000):
            prediction = window(k, k + 4)
            given.append(weakref.ref(prediction))
            for file in files:
                file.add(prediction)
        del prediction
        gc.collect()
        assert sum(ref() is not None for ref in given) == 0
        assert len((tmp_path / "out.csv.part").read_text().splitlines()) == 3001
        assert (tmp_path / "out.parquet.part").stat().st_size > 10_000  # its first row group
    assert [len(starts(tmp_path / f"out{kind}")) for kind in KINDS] == [3000] * len(KINDS)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_no_half_of_a_result(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dumps(value: dict, **options) -> str:
        if value["start"] == at - 1:
            signal.raise_signal(signal.SIGINT)
        return json.dumps(value, **options)

    monkeypatch.setattr(cli_output, "json", SimpleNamespace(dumps=dumps))

    def write(kind: str) -> None:
        with cli_output.OutputFile(tmp_path / f"out{kind}", kind) as file:
            for p in timeline(3):
                file.add(p)

    for kind in (".json", ".jsonl"):
        with pytest.raises(KeyboardInterrupt):
            write(kind)
        assert starts(tmp_path / f"out{kind}") == [0, 1][:at]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_waits_for_the_last_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def text(annotations: exports.Annotations) -> str:
        signal.raise_signal(signal.SIGINT)
        return exports.vtt_text(annotations)

    monkeypatch.setattr(cli_output, "vtt_text", text)
    with pytest.raises(KeyboardInterrupt), cli_output.OutputFile(tmp_path / "out.vtt", ".vtt") as file:
        file.add(window(0, 4))
    assert starts(tmp_path / "out.vtt") == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal leaves it, whatever this process inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_a_stream_stalls(face_clip: Path, tmp_path: Path) -> None:
    stream = transport_stream(face_clip, tmp_path / "talk.ts")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from merfast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    with serving("http", stream, tmp_path, speed=3.0, stall=1e9) as url:
        command = [
            sys.executable,
            "-c",
            code,
            "timeline",
            url,
            "--window",
            "0.5",
            "--hop",
            "0.25",
            "--detector",
            "none",
        ]
        command += outputs(tmp_path)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        ) as process:
            assert process.stdout is not None
            for _ in range(3):  # header, name, a window
                process.stdout.readline()
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "merfast: interrupted\n")
    count = 1 + sum(line[:1].isdigit() for line in out.splitlines())
    for kind in KINDS:
        assert len(starts(tmp_path / f"out{kind}")) in (count, count + 1)  # the table's line comes last
    assert not list(tmp_path.glob("*.part"))
