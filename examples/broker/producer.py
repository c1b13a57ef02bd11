"""Publish the sound and the pictures of many files or URLs to Kafka, as fast as they play.

    python examples/broker/producer.py door=door.mp4 desk=rtsp://camera/1 --servers 127.0.0.1:9092

Sound goes out in blocks of 0.1 s as mono float32, pictures as JPEG. JPEG and not the file's own packets, because each
stands alone: a consumer can start at any message, as after a restart, and a damaged one costs one picture, where
packets of H.264 need all since the last key frame. The price is work in this program, and more bytes; --fps says how
many pictures are worth it (the packaged bundle looks at 5 a second).
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import av
import cv2
import numpy as np
from confluent_kafka import KafkaError, Message, Producer

import messages
from messages import Piece

BLOCK = 0.1
"""Seconds of sound in a message."""


def pieces(stream: str, source: str, fps: float, quality: int) -> Iterator[Piece]:
    """All of one source, in the order of the container.

    Raises:
        OSError, av.FFmpegError: the source cannot be read, or no further.
    """
    take, last, due = uuid.uuid4().hex[:12], 0.0, -math.inf
    with av.open(source) as container:
        tracks = [*container.streams.video[:1], *container.streams.audio[:1]]
        rate = container.streams.audio[0].rate if container.streams.audio else 0
        mono = (
            av.AudioResampler(format="fltp", layout="mono", rate=rate, frame_size=round(rate * BLOCK)) if rate else None
        )
        for packet in container.demux(tracks):
            for frame in packet.decode():
                if isinstance(frame, av.AudioFrame) and mono is not None:
                    for block in mono.resample(frame):
                        last = block.time or 0.0
                        yield Piece(stream, take, "sound", last, rate, block.to_ndarray().astype("<f4").tobytes())
                elif isinstance(frame, av.VideoFrame) and frame.time is not None and frame.time > due:
                    # The first in each 1/fps of the clock, so that 10 of 25 a second are 10, and not every third.
                    due = (math.floor(frame.time * fps + 1e-6) + 1) / fps - 1e-6
                    last = max(last, frame.time)
                    yield Piece(stream, take, "frame", frame.time, 0, jpeg(frame, quality))
        if mono is not None:
            for block in mono.resample(None):
                yield Piece(stream, take, "sound", block.time or last, rate, block.to_ndarray().astype("<f4").tobytes())


def jpeg(frame: av.VideoFrame, quality: int) -> bytes:
    """The picture, upright where the file says how it lies; pixels are taken for square."""
    picture = np.rot90(frame.to_ndarray(format="bgr24"), round(frame.rotation / 90))
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(picture, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise OSError(f"{frame} cannot be written as JPEG")
    return data.tobytes()


def publish(
    producer: Producer, stream: str, source: str, given: argparse.Namespace, stop: threading.Event
) -> str | None:
    """Publish one source, as fast as it plays or as asked for; what went wrong, if anything."""
    problem: list[str] = []

    def report(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            problem.append(str(error))

    begun, first, last = time.monotonic(), None, None
    try:
        for piece in pieces(stream, source, given.fps, given.quality):
            first, last = first or piece, piece
            wait = begun + (piece.time - first.time) / given.speed - time.monotonic() if given.speed else 0.0
            if stop.wait(max(0.0, wait)) or problem:
                break
            send(producer, piece, report)
    except (OSError, av.FFmpegError) as error:
        problem.append(f"{stream}: {error}")
    if last is not None:
        send(producer, Piece(stream, last.take, "end", last.time), report)
    elif not problem:
        problem.append(f"{stream}: has neither sound nor pictures")
    return problem[0] if problem else None


def send(producer: Producer, piece: Piece, report: Callable[[KafkaError | None, Message], None]) -> None:
    """Hand one piece to the client's own queue; wait while that is full."""
    while True:
        try:
            producer.produce(messages.MEDIA, piece.payload, key=piece.stream, headers=piece.headers, on_delivery=report)
        except BufferError:
            producer.poll(0.1)
        else:
            producer.poll(0)
            return


def parse() -> argparse.Namespace:
    about = "Publish sound and pictures of files or URLs to Kafka, each as a stream of its own."
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("sources", nargs="+", metavar="NAME=SOURCE", help="a stream's name, and a file or URL")
    parser.add_argument("--servers", default="127.0.0.1:9092", help="of Kafka, host:port,... (default %(default)s)")
    parser.add_argument("--partitions", type=int, default=4, help="of topics that are new (default %(default)s)")
    parser.add_argument("--speed", type=float, default=1.0, help="1 is as it plays, 0 as fast as can be (default 1)")
    parser.add_argument("--fps", type=float, default=10.0, help="pictures a second, at most (default %(default)g)")
    parser.add_argument("--quality", type=int, default=90, help="of JPEG, 1 to 100 (default %(default)s)")
    arguments = parser.parse_args()
    arguments.sources = [source.partition("=")[::2] for source in arguments.sources]
    names = [name for name, _ in arguments.sources]
    if not all(name and source for name, source in arguments.sources) or len({*names}) < len(names):
        parser.error("sources: expected NAME=SOURCE, each name once")
    if arguments.fps <= 0 or arguments.speed < 0:
        parser.error(f"--fps {arguments.fps:g}, --speed {arguments.speed:g}: expected above 0, and 0 or more")
    return arguments


def main() -> int:
    given = parse()
    messages.create_topics(given.servers, given.partitions)
    producer = Producer({"bootstrap.servers": given.servers, "enable.idempotence": True, "linger.ms": 5})
    stop = threading.Event()
    with ThreadPoolExecutor(len(given.sources)) as threads:
        running = [threads.submit(publish, producer, name, source, given, stop) for name, source in given.sources]
        try:
            problems = [one.result() for one in running]
        except KeyboardInterrupt:
            stop.set()
            problems = [one.result() for one in running]
    if left := producer.flush(60):
        problems.append(f"{left} messages could not be delivered")
    for problem in problems:
        if problem:
            print(f"producer: {problem}", file=sys.stderr)
    return int(any(problems))


if __name__ == "__main__":
    sys.exit(main())
