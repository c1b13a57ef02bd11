"""Follow many streams in one event loop, with one engine: `async for` over a session of each.

    python examples/asyncio_streams.py door.mp4 desk.mp4 rtsp://camera/1

Here each stream is decoded in a thread of its own, as it plays. Where the media is in the loop's hands already (aiortc,
websockets), push it there: pushing only stores, and takes microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import av

from merfast import Engine
from merfast.errors import MerfastError, UsageError
from merfast.session import Session


def play(session: Session, source: str, speed: float) -> None:
    """Decode and push a file or URL, `speed` times as fast as it plays, or as fast as can be if that is 0.

    Raises:
        OSError, av.FFmpegError: it cannot be read.
        MerfastError: the session does not take it.
    """
    begun, first = time.monotonic(), None
    try:
        with av.open(source) as container:
            tracks = [*container.streams.video[:1], *container.streams.audio[:1]]
            rate = container.streams.audio[0].rate if container.streams.audio else 0
            mono = av.AudioResampler(format="fltp", layout="mono", rate=rate or None)
            for frame in container.decode(*tracks):
                if not isinstance(frame, (av.VideoFrame, av.AudioFrame)) or frame.time is None:
                    continue
                first = frame.time if first is None else first
                if speed:
                    time.sleep(max(0.0, begun + (frame.time - first) / speed - time.monotonic()))
                if isinstance(frame, av.VideoFrame):
                    session.push_frame(frame, frame.time)
                else:
                    for block in mono.resample(frame):
                        session.push_audio(block.to_ndarray()[0], rate, block.time)
    except UsageError:
        pass  # closed from outside, while this thread slept
    finally:
        session.close()  # also where it broke off: what came is predicted


async def follow(engine: Engine, source: str, speed: float, threads: ThreadPoolExecutor) -> bool:
    """Print one stream's windows until it ends; whether it could be read."""
    # As it plays, a window that is late is refused, and said so; otherwise the file is held back.
    session = engine.session(name=source, overload="reject" if speed else "wait")
    playing = asyncio.get_running_loop().run_in_executor(threads, play, session, source, speed)
    try:
        async for result in session:
            print(result, flush=True)
        await playing
    except (MerfastError, OSError, av.FFmpegError) as error:
        print(f"{source}: {error}", file=sys.stderr)
        return False
    finally:
        session.cancel()  # which ends the thread, too, where this task is cancelled
    return True


async def follow_all(sources: list[str], speed: float, bundle: str | None) -> bool:
    with Engine(bundle) as engine, ThreadPoolExecutor(len(sources)) as threads:
        done = await asyncio.gather(*(follow(engine, source, speed, threads) for source in sources))
    return all(done)


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the windows of many files or URLs, as they play.")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a file or URL; each is one stream")
    parser.add_argument("--speed", type=float, default=1.0, help="1 is as it plays, 0 as fast as can be (default 1)")
    parser.add_argument("--bundle", help="a bundle's folder (default: the packaged one)")
    given = parser.parse_args()
    try:
        return 0 if asyncio.run(follow_all(given.sources, given.speed, given.bundle)) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
