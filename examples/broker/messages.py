"""What producer and consumer agree on: the topics, and one message for each block of sound and each frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

MEDIA, RESULTS, ERRORS = "merfast-media", "merfast-results", "merfast-errors"

Kind = Literal["sound", "frame", "end"]


@dataclass(frozen=True)
class Piece:
    """One message of a stream.

    Attributes:
        stream: the stream's name, which is the message's key: so all of a stream lies in one partition, in order.
        take: which run of the stream this is. A producer that starts anew begins a new take, from its own time 0.
        kind: "sound", "frame", or "end", after which nothing follows in this take.
        time: seconds on the take's clock, of the frame or of the first sample; of "end", those of the last one.
        rate: of the sound in Hz; 0 for the other kinds.
        payload: mono samples in [-1, 1] as little-endian float32, or a JPEG.
    """

    stream: str
    take: str
    kind: Kind
    time: float
    rate: int = 0
    payload: bytes = b""

    @property
    def headers(self) -> list[tuple[str, str | bytes | None]]:
        return [("take", self.take), ("kind", self.kind), ("time", repr(self.time)), ("rate", str(self.rate))]


def stream_of(message: Message) -> str | None:
    """The stream that a message belongs to, as far as it says."""
    key = message.key()
    return key if isinstance(key, str) or key is None else key.decode(errors="replace")


def read(message: Message) -> Piece:
    """The piece in a message of the media topic.

    Raises:
        ValueError: it is none.
    """
    stream, headers = stream_of(message), dict(message.headers() or ())
    if not stream:
        raise ValueError("key: got none, expected the stream's name")
    text = {}
    for name in ("take", "kind", "time", "rate"):
        value = headers.get(name)
        if value is None:
            raise ValueError(f"headers: got {sorted(headers)}, expected {name!r} among them")
        text[name] = value if isinstance(value, str) else value.decode(errors="replace")
    kinds = get_args(Kind)
    if text["kind"] not in kinds:
        raise ValueError(f"kind: got {text['kind']!r}, expected one of {', '.join(kinds)}")
    try:
        time, rate = float(text["time"]), int(text["rate"])
    except ValueError:
        raise ValueError(f"time and rate: got {text['time']!r} and {text['rate']!r}, expected numbers") from None
    payload = message.value() or b""
    if not math.isfinite(time):
        raise ValueError(f"time: got {time}, expected seconds")
    if text["kind"] == "sound" and not (1 <= rate <= 1_000_000 and payload and len(payload) % 4 == 0):
        raise ValueError(
            f"sound: got {len(payload)} bytes at {rate} Hz, expected samples of 4 bytes at 1 to 1000000 Hz"
        )
    return Piece(stream, text["take"], text["kind"], time, rate, payload)  # type: ignore[arg-type]


def create_topics(servers: str, partitions: int) -> None:
    """Create the topics that are not there yet; results have as many partitions as media, errors one.

    Raises:
        ValueError: they are there with other numbers of partitions for media and results.
    """
    admin = AdminClient({"bootstrap.servers": servers})
    wanted: Sequence[tuple[str, int]] = ((MEDIA, partitions), (RESULTS, partitions), (ERRORS, 1))
    for done in admin.create_topics([NewTopic(name, number) for name, number in wanted]).values():
        try:
            done.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    topics = admin.list_topics(timeout=30).topics
    media, results = (len(topics[name].partitions) for name in (MEDIA, RESULTS))
    if media != results:
        raise ValueError(f"{RESULTS}: got {results} partitions, expected {media}, as many as {MEDIA} has")
