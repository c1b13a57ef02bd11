"""Recordings: merged with torch.profiler's trace, summed up by stage, and written by `merfast profile`."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from trace_checks import check_events

from merfast import cli
from merfast.profiling import Recording, every_thread, gpu_events, gpu_uses, record, stages, union, waited_for_gpu
from merfast.trace import Span, Tracer, span

PID = os.getpid()


def tracer_of(*spans: tuple[str, int, float, float], duration: float = 100.0) -> Tracer:
    """A finished tracer: spans of (name, thread, start, end), in microseconds."""
    tracer = Tracer()
    tracer.start, tracer.end = 5_000_000, 5_000_000 + round(duration * 1000)
    for name, thread, *times in spans:
        start, end = (tracer.start + round(t * 1000) for t in times)
        tracer.spans.append(Span(name, thread, start, end, {}))
        tracer.threads[thread] = f"thread {thread}"
    return tracer


def complete(cat: str, name: str, pid: int, tid: int, ts: float, dur: float) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": {}}


# As torch.profiler writes them: microseconds after baseTimeNanoseconds; a GPU is a process, a stream a thread.
KINETO = {
    "schemaVersion": 1,
    "baseTimeNanoseconds": 4_000_000,
    "traceEvents": [
        {"ph": "M", "name": "process_name", "ts": 1.0, "pid": 0, "tid": 0, "args": {"name": "python"}},
        {"ph": "M", "name": "process_labels", "ts": 1.0, "pid": 0, "tid": 0, "args": {"labels": "GPU 0"}},
        {"ph": "M", "name": "process_name", "ts": 1.0, "pid": PID, "tid": 0, "args": {"name": "python"}},
        {"ph": "M", "name": "thread_name", "ts": 1.0, "pid": 0, "tid": 7, "args": {"name": "stream 7"}},
        {"ph": "M", "name": "thread_name", "ts": 1.0, "pid": PID, "tid": 1, "args": {"name": "thread 1 (python)"}},
        {"ph": "M", "name": "process_sort_index", "ts": 1.0, "pid": "Spans", "tid": 0, "args": {"sort_index": 9}},
        complete("cpu_op", "aten::mm", PID, 1, 1009, 5),
        complete("user_annotation", "fuse", PID, 1, 1008, 20),
        complete("cuda_runtime", "cudaLaunchKernel", PID, 1, 1012, 3),
        complete("cuda_runtime", "cudaStreamSynchronize", PID, 1, 1050, 25),
        complete("kernel", "gemm", 0, 7, 1020, 30),
        complete("kernel", "softmax", 0, 13, 1040, 20),
        complete("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 0, 9, 1055, 15),
        complete("gpu_user_annotation", "fuse", 0, 7, 1020, 30),
        {"ph": "s", "id": 3, "pid": PID, "tid": 1, "ts": 1012, "cat": "ac2g", "name": "ac2g"},
        {"ph": "f", "id": 3, "pid": 0, "tid": 7, "ts": 1020, "cat": "ac2g", "name": "ac2g", "bp": "e"},
        {"ph": "s", "id": 4, "pid": PID, "tid": 1, "ts": 1013, "cat": "ac2g", "name": "ac2g"},
        {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": 1100},
    ],
}


def test_work_of_gpus_is_merged_at_its_time() -> None:
    tracer = tracer_of(("fuse", 1, 8, 30))
    events = gpu_events(KINETO, tracer)
    rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    (beside,) = (tid for pid, tid in rows if pid == PID)
    assert rows == {(0, 7): "stream 7", (PID, beside): "thread 1: calls of CUDA"}
    assert beside != 1
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["GPU 0"]
    assert [(e["name"], e["tid"], e["ts"]) for e in events if e["ph"] == "X"] == [
        ("cudaLaunchKernel", beside, 12),
        ("gemm", 7, 20),
        ("fuse", 7, 20),
        ("softmax", 13, 40),
        ("cudaStreamSynchronize", beside, 50),
        ("Memcpy HtoD (Pinned -> Device)", 9, 55),
    ]
    assert [(e["ph"], e["pid"], e["tid"], e["ts"]) for e in events if e["ph"] in "sf"] == [
        ("s", PID, beside, 12),
        ("f", 0, 7, 20),
    ]


def test_use_of_a_gpu_and_what_it_waited_for() -> None:
    tracer = tracer_of(("read", 1, 0, 90), ("decode", 1, 0, 30), ("faces", 1, 60, 90), ("fuse", 2, 5, 15))
    recording = Recording(tracer, gpu_events(KINETO, tracer))
    (use,) = gpu_uses(recording)  # kernels 20 to 60, a copy 55 to 70
    assert (use.number, use.kernels, use.copies, use.busy) == pytest.approx((0, 0.4, 0.15, 0.5))
    assert use.waited == pytest.approx({"decode": 0.2, "faces": 0.2, "fuse": 0.1, "read": 0.0})
    assert list(use.waited)[-1] == "read"
    assert waited_for_gpu(recording) == 25
    assert {s.path: s.gpu for s in stages(recording)}["fuse",] == 30
    assert gpu_uses(Recording(tracer)) == []


def test_stages_are_summed_up_where_they_nest() -> None:
    tracer = tracer_of(
        ("read", 1, 10, 60),
        ("decode", 1, 10, 20),
        ("decode", 1, 30, 40),
        ("read", 2, 40, 80),
        ("decode", 2, 50, 60),
        ("decode", 3, 90, 95),
        ("first", 4, 0, 1),
    )
    found = stages(Recording(tracer))
    assert [s.path for s in found] == [("first",), ("read",), ("read", "decode"), ("decode",)]
    read, decode = found[1:3]
    assert (read.calls, read.total, read.own, read.share) == pytest.approx((2, 90, 60, 0.7))
    assert (decode.calls, decode.total, decode.own, decode.share) == pytest.approx((3, 30, 30, 0.3))
    assert union([(3, 4), (1, 2), (2, 2.5), (3.5, 3.6)]) == [(1, 2.5), (3, 4)]


def test_torch_profiler_has_the_same_clock_and_sees_all_threads(tmp_path: Path) -> None:
    from torch.profiler import ProfilerActivity, profile, record_function

    def work() -> None:
        with span("work"):
            time.sleep(0.01)

    seen = profile(activities=[ProfilerActivity.CPU], experimental_config=every_thread())
    with seen, Tracer(record_function) as tracer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    seen.export_chrome_trace(str(tmp_path / "torch.json"))
    exported = json.loads((tmp_path / "torch.json").read_text())
    (theirs,) = (e for e in exported["traceEvents"] if e["name"] == "work")
    (mine,) = check_events(tracer.events())
    assert (theirs["pid"], theirs["tid"]) == (mine["pid"], mine["tid"])
    theirs.update(cat="kernel", pid=0, tid=7)  # so that it is kept
    (merged,) = (e for e in gpu_events(exported, tracer) if e["ph"] == "X")
    assert abs(merged["ts"] - mine["ts"]) < 100_000  # another clock would be off by far more
    assert abs(merged["dur"] - mine["dur"]) < 100_000


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_recording_through_torch_profiler_gives_the_same_spans() -> None:
    def run() -> None:
        with span("outer"), span("inner"):
            pass

    names = [[s.path for s in stages(record(run, cuda=cuda))] for cuda in (False, True)]
    assert names[0] == names[1] == [("outer",), ("outer", "inner")]


@pytest.mark.cuda
def test_a_gpu_shows_in_the_trace(face_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace.json"
    assert cli.main(["profile", str(face_clip), "-o", str(file), "--device", "cuda", "--detector", "haar"]) == 0
    events = json.loads(file.read_text())["traceEvents"]
    assert {"kernel", "gpu_memcpy", "cuda_runtime", "gpu_user_annotation"} <= {e.get("cat") for e in events}
    named = {e["name"] for e in events if e.get("cat") == "gpu_user_annotation"}
    assert {"encode face", "fuse"} <= named
    spans = [e for e in events if e.get("cat") == "merfast"]
    kernels = [e for e in events if e.get("cat") == "kernel"]
    first, last = min(s["ts"] for s in spans), max(s["ts"] + s["dur"] for s in spans)
    assert all(first - 1000 <= k["ts"] <= last + 1000 for k in kernels)  # one clock
    assert "GPU 0: busy" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "opener"), [("trace.json", open), ("trace.json.gz", gzip.open)])
def test_command_writes_a_trace_and_shows_a_table(
    name: str, opener: Any, face_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    options = ["--device", "cpu", "--detector", "haar", "--repeat", "2", "--warm-up", "0"]
    assert cli.main(["profile", str(face_clip), str(face_clip), "-o", str(file), *options]) == 0
    with opener(file, "rt") as content:
        trace = json.load(content)
    complete = check_events(trace["traceEvents"])
    assert [e["args"] for e in complete if e["name"] == "predict"] == [{"run": 0}, {"run": 1}]
    assert sum(e["name"] == "read" for e in complete) == 4
    assert (trace["otherData"]["plan: device"], trace["otherData"]["clips"]) == ("cpu", f"{face_clip}, {face_clip}")
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["stage", "calls", "total", "ms", "own", "ms", "of", "the", "time"]
    cells = {line.split("  ")[0].strip() or line.strip().split("  ")[0]: line.split() for line in lines[1:20]}
    assert {"predict", "read", "decode", "detect", "crop", "encode voice", "fuse", "result"} <= cells.keys()
    assert (cells["predict"][1], cells["read"][1]) == ("2", "4")
    assert "2 runs of 2 clips" in out
    assert "The model waited for media in" in out
    assert "GPU" not in out
    assert f"{len(trace['traceEvents'])} events are in {file}" in out
    assert "ui.perfetto.dev" in lines[-1]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["{missing}"], 1, "missing.mp4: no such file"),
        (["{folder}"], 1, "is a directory, expected a media file"),
        (["{clip}", "-o", "{folder}"], 2, "expected a file in an existing folder"),
        (["{clip}", "-o", "{folder}/no/trace.json"], 2, "expected a file in an existing folder"),
        (["{clip}", "-o", "{clip}"], 2, "is one of the clips"),
        (["{clip}", "-o", "/dev/full", "--warm-up", "0", "--repeat", "1"], 2, "/dev/full: cannot be written (No space"),
        (["{clip}", "--device", "cuda:77"], 2, "device 'cuda:77'"),
        (["{text}"], 1, "letter.mp4: cannot be read as media"),
    ],
)
def test_errors_of_the_command(
    options: list[str],
    status: int,
    message: str,
    face_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "letter.mp4"
    text.write_text("not a film " * 100)
    before = face_clip.read_bytes()
    places = {"missing": tmp_path / "missing.mp4", "folder": tmp_path, "clip": face_clip, "text": text}
    arguments = [o.format(**places) for o in options]
    assert cli.main(["profile", *arguments, "--detector", "haar"]) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "trace.json").exists()
    assert face_clip.read_bytes() == before


@pytest.mark.parametrize("option", ["--repeat=0", "--warm-up=-1", "--repeat=many"])
def test_usage_errors(option: str, face_clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["profile", str(face_clip), option])
    assert stopped.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err
