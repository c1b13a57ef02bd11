"""Annotate every clip of a folder, decode the outcome whole, and compare: pictures, duration, timestamps, speed.

python -m benchmarks.annotated FOLDER [--detector-model FILE]
Exit status 1 if a clip has another number of pictures, or another duration by more than one picture.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import av

from merfast.annotate import annotate
from merfast.cli import MEDIA_SUFFIXES
from merfast.engine import Engine
from merfast.errors import MediaError


def timing(path: Path) -> tuple[list[float], float, str]:
    """When each picture is shown and how long the file is, in seconds; the codec of its sound. All is decoded."""
    with av.open(str(path)) as media:
        start = (media.start_time or 0) / av.time_base
        frames = media.decode(*media.streams.video[:1], *media.streams.audio[:1])
        times = [f.time - start for f in frames if isinstance(f, av.VideoFrame) and f.time is not None]
        sound = media.streams.audio[0].codec_context.name if media.streams.audio else "none"
        return times, (media.duration or 0) / av.time_base, sound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--detector-model", type=Path)
    options = parser.parse_args()
    failed = 0
    print("| clip | pictures | seconds before, after | timestamps differ by | sound before, after | times real time |")
    print("| --- | --- | --- | --- | --- | --- |")
    with Engine(detector_model=options.detector_model, faces="all") as engine, tempfile.TemporaryDirectory() as place:
        for clip in sorted(p for p in options.folder.iterdir() if p.suffix.lower() in MEDIA_SUFFIXES):
            out = Path(place, "out.mp4")
            began = time.perf_counter()
            try:
                annotate(engine, clip, out)
            except MediaError as error:
                print(f"| {clip.name} | {error.reason} | | | | |")
                failed += 1
                continue
            took = time.perf_counter() - began
            (before, long, sound), (after, same, kept) = timing(clip), timing(out)
            good = len(before) == len(after) and abs(long - same) <= long / len(before)
            failed += not good
            off = max(abs(a - b) for a, b in zip(before, after, strict=False))
            count = str(len(after)) if len(before) == len(after) else f"**{len(before)}, {len(after)}**"
            cells = (
                clip.name,
                count,
                f"{long:.3f}, {same:.3f}",
                f"{off:.6f} s",
                f"{sound}, {kept}",
                f"{long / took:.1f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
