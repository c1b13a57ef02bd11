"""Recording where the time goes: spans of all threads, and what torch.profiler sees of GPUs, in one trace.

torch.profiler's times are nanoseconds since the Unix epoch, as those of `trace` are: microseconds after the file's own
`baseTimeNanoseconds`. The two clocks agree to some tens of microseconds only, so calls of CUDA are shown beside the
thread that made them, on a row of their own: they would not always lie within its spans.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merfast.trace import Tracer, naming

WAIT_INPUT, WAIT_ROOM = "wait for input", "wait for room"
"""Stages in which a reader of a queue waits for what comes, and a writer for room."""

Event = dict[str, Any]
Interval = tuple[float, float]
"""Start and end, in microseconds since the start of the recording."""

_KERNELS, _COPIES = ("kernel",), ("gpu_memcpy", "gpu_memset")
_GPU_STAGES = "gpu_user_annotation"  # from the first to the last kernel that a span launched, on one stream
_CALLS = ("cuda_runtime", "cuda_driver")
_BESIDE = 1 << 24  # above all thread numbers (Linux has up to 2^22)


@dataclass
class Recording:
    """What happened between two moments.

    Attributes:
        tracer: spans of the CPU's threads.
        gpu: trace events of the GPUs and of calls of CUDA; empty without a GPU.
    """

    tracer: Tracer
    gpu: list[Event] = field(default_factory=list)

    @property
    def duration(self) -> float:
        """Microseconds."""
        return (self.tracer.end - self.tracer.start) / 1e3

    def write(self, path: Path, about: Mapping[str, object]) -> int:
        """Write Chrome's trace JSON, compressed if the name ends in .gz; returns the number of events.

        Raises:
            OSError: the file cannot be written.
        """
        events = [*self.tracer.events(), *self.gpu]
        text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(about)})
        content = text.encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return len(events)


def record(run: Callable[[], object], *, cuda: bool) -> Recording:
    """Run something and record it.

    Args:
        run: what to record.
        cuda: whether GPUs are at work.

    Raises:
        RuntimeError: something else is being recorded.
    """
    if not cuda:
        with Tracer() as tracer:
            run()
        return Recording(tracer)
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, experimental_config=every_thread()) as seen:
        with Tracer(record_function) as tracer:
            run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="merfast-") as folder:
        file = Path(folder, "torch.json")
        seen.export_chrome_trace(str(file))
        exported = json.loads(file.read_text(encoding="utf-8", errors="replace"), strict=False)
    return Recording(tracer, gpu_events(exported, tracer))


def every_thread() -> Any:
    """What makes torch.profiler see the ranges of all threads, and not only of the one that started it."""
    from torch._C._profiler import _ExperimentalConfig

    return _ExperimentalConfig(profile_all_threads=True)


def gpu_events(exported: Mapping[str, Any], tracer: Tracer) -> list[Event]:
    """What of torch.profiler's trace is not in the spans: the GPUs' work, calls of CUDA, and the arrows between.

    Args:
        exported: the trace's JSON.
        tracer: that collected spans meanwhile; times become microseconds since its start.
    """
    shift = (exported.get("baseTimeNanoseconds", 0) - tracer.start) / 1e3
    events = [e for e in exported["traceEvents"] if "ts" in e or e["ph"] == "M"]
    work = [e for e in events if e.get("cat") in (*_KERNELS, *_COPIES, _GPU_STAGES)]
    calls = [e for e in events if e.get("cat") in _CALLS]
    gpus = {e["pid"] for e in work}
    caller = {e["tid"]: e["pid"] for e in calls}
    out: list[Event] = [e for e in events if e["ph"] == "M" and e["pid"] in gpus and e["name"] != "process_name"]
    out += [naming("process_name", number, 0, f"GPU {number}") for number in sorted(gpus)]
    for thread, process in caller.items():
        name = f"{tracer.threads.get(thread, thread)}: calls of CUDA"
        out.append(naming("thread_name", process, thread + _BESIDE, name))
    for e in sorted((*work, *calls, *_arrows(events, gpus, caller)), key=lambda e: float(e["ts"])):
        beside = {} if e["pid"] in gpus else {"tid": e["tid"] + _BESIDE}
        out.append({**e, **beside, "ts": e["ts"] + shift})
    return out


def _arrows(events: Iterable[Event], gpus: set[Any], caller: Mapping[Any, Any]) -> Iterator[Event]:
    """From calls to what they started, where both are kept."""
    arrows = [e for e in events if e.get("cat") == "ac2g" and (e["pid"] in gpus or e["tid"] in caller)]
    ends = [{e["id"] for e in arrows if e["ph"] == kind} for kind in "sf"]
    yield from (e for e in arrows if e["id"] in ends[0] & ends[1])


@dataclass
class Stage:
    """Spans of one name below the same others.

    Attributes:
        path: names from the outermost one to its own.
        calls: number of spans.
        total: their microseconds, threads added up.
        own: microseconds in which none below it ran, threads added up.
        share: of the recording in which at least one thread was in it, in [0, 1].
        gpu: microseconds of what its spans launched, from the first to the last of each, streams added up.
    """

    path: tuple[str, ...]
    calls: int = 0
    total: float = 0.0
    own: float = 0.0
    share: float = 0.0
    gpu: float = 0.0


def stages(recording: Recording) -> list[Stage]:
    """All stages, each followed by those below it, in the order in which they first began."""
    found: dict[tuple[str, ...], Stage] = {}
    taken: dict[tuple[str, ...], list[Interval]] = {}
    for path, (start, end), own in _nested(recording.tracer):
        stage = found.setdefault(path, Stage(path))
        stage.calls += 1
        stage.total += end - start
        stage.own += _length(own)
        taken.setdefault(path, []).append((start, end))
    launched: dict[str, float] = {}
    for e in recording.gpu:
        if e.get("cat") == _GPU_STAGES:
            launched[e["name"]] = launched.get(e["name"], 0.0) + e["dur"]
    for path, stage in found.items():
        stage.share = _length(union(taken[path])) / recording.duration
        stage.gpu = launched.get(path[-1], 0.0)
    first = {path: min(taken[path]) for path in found}
    return sorted(found.values(), key=lambda s: [first[s.path[:n]] for n in range(1, len(s.path) + 1)])


@dataclass(frozen=True)
class GpuUse:
    """How one GPU spent a recording; shares of its duration, in [0, 1].

    Attributes:
        number: of the GPU.
        kernels, copies: shares in which such work ran.
        busy: share in which either ran.
        waited: stage -> share in which the GPU had nothing to do while a thread was in it (and in none below it), the
            largest first.
    """

    number: int
    kernels: float
    copies: float
    busy: float
    waited: dict[str, float]


def gpu_uses(recording: Recording) -> list[GpuUse]:
    """What every GPU that did something did, and what the CPU was doing while it did nothing."""
    own: dict[str, list[Interval]] = {}
    for path, _, intervals in _nested(recording.tracer):
        own.setdefault(path[-1], []).extend(intervals)
    work = [e for e in recording.gpu if e.get("cat") in (*_KERNELS, *_COPIES)]
    out = []
    for number in sorted({e["pid"] for e in work}):
        mine = [(e["cat"], (e["ts"], e["ts"] + e["dur"])) for e in work if e["pid"] == number]
        kernels, copies = (union(i for kind, i in mine if kind in kinds) for kinds in (_KERNELS, _COPIES))
        busy = union([*kernels, *copies])
        edges = [0.0, *(t for interval in busy for t in interval), recording.duration]
        idle = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        waited = {name: _overlap(union(i), idle) / recording.duration for name, i in own.items()}
        in_kernels, in_copies, in_either = (_length(i) / recording.duration for i in (kernels, copies, busy))
        largest = dict(sorted(waited.items(), key=lambda item: -item[1]))
        out.append(GpuUse(number, in_kernels, in_copies, in_either, largest))
    return out


def waited_for_gpu(recording: Recording) -> float:
    """Microseconds that threads spent in calls of CUDA that wait for a GPU, added up."""
    return sum(float(e["dur"]) for e in recording.gpu if e.get("cat") in _CALLS and "Synchronize" in e["name"])


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times without overlaps, in order."""
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], end)
        else:
            out.append((start, end))
    return out


def _length(intervals: Sequence[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def _overlap(a: Sequence[Interval], b: Sequence[Interval]) -> float:
    """Length of what is in both; each without overlaps, in order."""
    total, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total


def _nested(tracer: Tracer) -> Iterator[tuple[tuple[str, ...], Interval, list[Interval]]]:
    """Each span with its path and its own intervals: those in which no span below it ran."""
    for thread in tracer.threads:
        above: list[tuple[tuple[str, ...], Interval, list[Interval]]] = []
        spans = [s for s in tracer.spans if s.thread == thread]
        for s in sorted(spans, key=lambda s: (s.start, -s.end)):
            start, end = (s.start - tracer.start) / 1e3, (s.end - tracer.start) / 1e3
            while above and above[-1][1][1] <= start:
                yield above.pop()
            if above:
                own = above[-1][2]
                before, after = own.pop()
                own += [(before, start), (min(end, after), after)]
            above.append(((*(above[-1][0] if above else ()), s.name), (start, end), [(start, end)]))
        yield from above
