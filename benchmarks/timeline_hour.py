"""An hour of video through `Engine.timeline`: how fast, with how much memory, and is it what `predict` says?

    python -m benchmarks.timeline_hour --data folder --out hour.json
    python -m benchmarks.timeline_hour --minutes 1 --window 4 --hop 1         # a quick look
    python -m benchmarks.timeline_hour film.mp4

The hour is made of short clips, packets of one after those of the other with times that go on, so that the content
changes all the time. Memory is looked at every second, and must not grow from the third minute of the video on. Every
37th window is cut again, by another reader, and predicted as a clip of its face crops and its sound.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

import merfast
from benchmarks import live_inputs
from benchmarks.gauges import Gpu, footprint
from benchmarks.live_inputs import say
from merfast.live_players import play
from merfast.media.windows import WindowSpec
from merfast.pipeline import ItemReader
from merfast.types import SAMPLE_RATE, Prediction, Window

SETTLED = 120.0
"""Seconds of the video after which memory counts."""

BOUNDS = {"probabilities": 1e-4, "valence": 1e-4, "growth": 0.05, "real_time": 15.0}
"""Most that results may differ by and memory may grow by, and the least speed."""


def join(files: Sequence[str], out: Path, seconds: float) -> float:
    """Write the packets of files, one file after the other and again from the first, until it lasts so long.

    Nothing is decoded: the files must have the same codecs with the same parameters, as those of one encoder have.

    Returns:
        Seconds that it lasts.
    """
    with av.open(files[0]) as first, av.open(str(out), "w") as target:
        chosen = [*first.streams.video[:1], *first.streams.audio[:1]]
        streams = {s.type: target.add_stream_from_template(s) for s in chosen}
        offset = 0.0
        following = itertools.cycle(files)
        while offset < seconds:
            file, length = next(following), 0.0
            with av.open(file) as source:
                base = (source.start_time or 0) / av.time_base
                for packet in source.demux([*source.streams.video[:1], *source.streams.audio[:1]]):
                    if packet.dts is None or packet.pts is None or packet.time_base is None:
                        continue
                    length = max(length, float((packet.pts + (packet.duration or 0)) * packet.time_base) - base)
                    shift = round((offset - base) / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.type]
                    target.mux(packet)
            # A little more than it lasts: decoding times run ahead of showing times, and must rise.
            offset += length + 0.08
    return offset


@contextmanager
def looking(every: float, more: Callable[[], dict[str, float]] = dict) -> Iterator[list[dict[str, float]]]:
    """Looks at the process, with "seconds" since the beginning and what `more` says, while the body runs."""
    looks: list[dict[str, float]] = []
    over, began, gpu = threading.Event(), time.perf_counter(), Gpu("cpu")

    def one() -> None:
        looks.append({"seconds": time.perf_counter() - began, **more(), **footprint("cpu", gpu)})

    def look() -> None:
        one()
        while not over.wait(every):
            one()

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield looks
    finally:
        over.set()
        watcher.join()
        one()


def grown(looks: Sequence[Mapping[str, float]], settled: float, by: str = "media") -> float:
    """By what share the most memory after `settled` seconds exceeds that of the first look after it.

    Args:
        looks: at the process.
        settled: seconds.
        by: of what clock: "media" or "seconds".

    Returns:
        The share; NaN of fewer than two looks.
    """
    late = [look["resident"] for look in looks if look[by] >= settled]
    return max(late) / late[0] - 1 if len(late) > 1 else float("nan")


class Checked:
    """Windows that are cut again and predicted one by one, beside the timeline's own."""

    def __init__(self, engine: merfast.Engine, file: str, window: float, hop: float, every: int) -> None:
        self._engine, self._every, self._length = engine, every, window
        config, plan = engine.bundle.config, engine.plan
        spec = WindowSpec(window, hop)
        self._windows = iter(ItemReader(file, file, plan, config, spec, every_face=False, threads=1))
        self.probabilities: list[float] = []
        self.valences: list[float] = []
        self.starts: list[float] = []

    def compare(self, predictions: Sequence[Prediction]) -> None:
        """Read the file again, and predict every so-manieth window by itself."""
        count = 0
        for k, (group, prediction) in enumerate(zip(self._windows, predictions, strict=True)):
            window, count = group[0], count + 1
            if abs(window.start - prediction.start) > 1e-6 or abs(window.end - prediction.end) > 1e-6:
                raise ValueError(f"window {k}: got {prediction.start:g} s, expected {window.start:g} s")
            if k % self._every == 0 and window.modalities:
                (alone,) = self._engine.predict([clip_of(window, self._engine.bundle.config.preprocessing.frame_rate)])
                self.starts.append(window.start)
                self.probabilities.append(float(np.abs(alone.probabilities - prediction.probabilities).max()))
                self.valences.append(abs(alone.valence - prediction.valence))


def clip_of(window: Window, rate: float) -> merfast.Clip:
    """A window's own crops and sound as a clip."""
    options: dict[str, Any] = {}
    if len(window.crops):
        options |= {"frames": np.asarray(window.crops), "fps": rate, "faces": "given"}
    if len(window.audio):
        options |= {"audio": window.audio, "sample_rate": SAMPLE_RATE}
    return merfast.Clip.from_arrays(**options, name=f"{window.start:g}-{window.end:g}")


def raw_differences(
    engine: merfast.Engine, file: str, predictions: Mapping[float, Prediction], window: float
) -> list[float]:
    """Largest difference of a probability to `predict` on decoded frames, faces looked for anew, by window.

    Args:
        predictions: by start, windows that do not overlap.
    """
    starts, out = sorted(predictions), []
    frames: list[np.ndarray] = []
    times: list[float] = []
    sound: list[np.ndarray] = []
    rate, i = 0, 0
    for event in play(file, rounds=1):
        if i == len(starts):
            break
        start = starts[i]
        if event.start >= start + window and not event.rate:
            clip = merfast.Clip.from_arrays(
                np.stack(frames), times=times, audio=np.concatenate(sound)[: round(window * rate)], sample_rate=rate
            )
            (alone,) = engine.predict([clip])
            out.append(float(np.abs(alone.probabilities - predictions[start].probabilities).max()))
            frames, times, sound, i = [], [], [], i + 1
        elif event.rate and event.due > start:
            rate = event.rate
            sound.append(event.media[max(0, round((start - event.start) * rate)) :])
        elif not event.rate and event.start >= start - 1e-6:
            frames.append(event.media.to_ndarray(format="rgb24"))
            times.append(max(0.0, event.start - start))
    return out


def run(engine: merfast.Engine, file: str, window: float, hop: float, every: float) -> dict[str, Any]:
    """The timeline, with looks at the process."""
    predictions: list[Prediction] = []
    with looking(every, lambda: {"media": predictions[-1].end if predictions else 0.0}) as looks:
        cpu, wall = time.process_time(), time.perf_counter()
        for prediction in engine.timeline(file, window=window, hop=hop):
            if predictions and not prediction.start > predictions[-1].start:
                raise ValueError(f"windows out of order: {predictions[-1].start:g} s, then {prediction.start:g} s")
            predictions.append(prediction)
        seconds = time.perf_counter() - wall
        cores = (time.process_time() - cpu) / seconds
    return {"predictions": predictions, "looks": looks, "seconds": seconds, "cores": cores}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 1 if a bound is not kept."""
    parser = live_inputs.parser_of("timeline_hour", __doc__)
    parser.add_argument("file", nargs="?", help="long file; without it one is made")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--window", type=float, default=4.0)
    parser.add_argument("--hop", type=float, default=1.0)
    parser.add_argument("--every", type=int, default=37, help="windows that are compared: each so-manieth")
    parser.add_argument("--look", type=float, default=1.0, help="seconds from one look at memory to the next")
    parser.add_argument("--settled", type=float, default=SETTLED, help="seconds of video after which it counts")
    parser.add_argument("--clips", type=int, default=6, help="clips that the file is made of")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        file = options.file or str(_made(work, options))
        engine = live_inputs.make_engine(options.data)
        found = run(engine, file, options.window, options.hop, options.look)
        predictions: list[Prediction] = found.pop("predictions")
        say("cutting windows again, and predicting them one by one")
        checked = Checked(engine, file, options.window, options.hop, options.every)
        checked.compare(predictions)
        few = {p.start: p for p in predictions[:: options.every] if p.end - p.start > options.window - 1e-6}
        raw = raw_differences(engine, file, dict(list(few.items())[:20]), options.window)
    media = predictions[-1].end
    measured = {
        "real_time": media / found["seconds"],
        "growth": grown(found["looks"], options.settled),
        "probabilities": max(checked.probabilities, default=float("nan")),
        "valence": max(checked.valences, default=float("nan")),
    }
    kept = verdict(measured)
    for line in report_text(found, measured, kept, media, len(predictions), len(checked.starts), raw):
        print(line)
    report = {
        **found,
        "media_seconds": media,
        "windows": len(predictions),
        "measured": {k: v if np.isfinite(v) else None for k, v in measured.items()},
        "bounds": BOUNDS,
        "kept": kept,
        "compared": len(checked.starts),
        "raw_differences": raw,
    }
    live_inputs.write(options.out, options, engine, report)
    return 0 if all(kept.values()) else 1


def verdict(measured: Mapping[str, float]) -> dict[str, bool]:
    """Which bounds are kept; what was not measured is not."""
    return {
        name: bool(value >= BOUNDS[name] if name == "real_time" else value <= BOUNDS[name])
        for name, value in measured.items()
    }


def report_text(
    found: Mapping[str, Any],
    measured: Mapping[str, float],
    kept: Mapping[str, bool],
    media: float,
    windows: int,
    compared: int,
    raw: Sequence[float],
) -> list[str]:
    """Lines to print."""
    looks = found["looks"]
    words = {name: "kept" if ok else "NOT KEPT" for name, ok in kept.items()}
    peak, at_first = max(look["resident"] for look in looks), looks[0]["resident"]
    lines = [
        f"{media / 60:.1f} minutes, {windows} windows in {found['seconds']:.1f} s: {measured['real_time']:.1f} x real "
        f"time at {found['cores']:.2f} cores (at least {BOUNDS['real_time']:g}: {words['real_time']})",
        f"memory {at_first:.0f} MiB before, {peak:.0f} at most, {measured['growth']:+.1%} once it counts "
        f"(at most {BOUNDS['growth']:.0%}: {words['growth']})",
        f"{compared} windows cut again and predicted by themselves: probabilities differ by "
        f"{measured['probabilities']:.1e} (at most {BOUNDS['probabilities']:g}: {words['probabilities']}), valence by "
        f"{measured['valence']:.1e} ({words['valence']})",
    ]
    if raw:
        lines.append(f"for comparison, {len(raw)} windows of raw frames, faces looked for anew: up to {max(raw):.1e}")
    return lines


def _made(work: Path, options: argparse.Namespace) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    clips = live_inputs.sources_of(work, options.data, options.clips, 20.0)
    path = work / f"long-{options.minutes:g}m.mp4"
    if not path.exists():
        say(f"joining them to {options.minutes:g} minutes")
        part = path.with_name(f".{path.name}")
        join(clips, part, options.minutes * 60)
        part.replace(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
