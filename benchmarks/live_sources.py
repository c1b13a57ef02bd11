"""How long after a window has been sent its prediction is there, over HTTP, HLS and RTSP from servers on this machine.

    python -m benchmarks.live_sources [--windows 20] [--kinds http,hls,rtsp]

The server is in the same process, and sends the demo clip in real time, over and over. HLS is late by its segments:
players and FFmpeg begin three of them before the newest (here 0.4 s each).
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import merfast
from merfast.demo import make_clip
from tests.live_servers import Pace, stream, transport_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="http,hls,rtsp", help="which (http,hls,rtsp)")
    parser.add_argument("--windows", type=int, default=20, help="windows of 4 s, one a second, from each (20)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = merfast.Engine()
    with tempfile.TemporaryDirectory() as folder:
        talk = transport_stream(make_clip(Path(folder, "talk.mp4")), Path(folder, "talk.ts"))
        list(engine.timeline(talk))
        for kind in options.kinds.split(","):
            place = Path(folder, kind)
            place.mkdir()
            pace = Pace()
            with stream(kind, talk, place, pace) as url:
                windows = engine.timeline(url, window=4.0, hop=1.0)
                late = [pace.sent - p.end for p in islice(windows, options.windows)]
                windows.close()  # type: ignore[attr-defined]
            middle, high = np.percentile(late, [50, 95])
            print(f"{kind:5} first {late[0]:.2f} s, median {middle:.2f} s, 95 % {high:.2f} s after it was sent")


if __name__ == "__main__":
    main()
