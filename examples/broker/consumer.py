"""Predict every stream that is published to Kafka, with one engine and one session for each; publish the results.

    python examples/broker/consumer.py --servers 127.0.0.1:9092

Several of these share the partitions, as members of one consumer group. What is promised, and how:

- An offset is committed once nothing before it is needed again: the broker has all windows made of it. A consumer that
  is killed and started again, or whose partitions go to another one, reads from there. So no window is lost.
- Results go to the partition of the same number, each with its take and the window's number. Before reading media from
  a partition a consumer reads what was published last, and goes on after that. So no window is published twice, and
  windows lie where they would have lain. (A member that hangs for longer than --session-timeout and then wakes up may
  publish a few that another has published: drop what has the stream, take and window of another.)
- A window in which tracking of faces had to start anew, after a restart, may be predicted a little differently.
- A message that cannot be used goes to the errors topic under its stream's key, with its offset; it may be reported
  again after a restart. The rest of its stream, and all other streams, go on.
- When the engine has too much to do, this program reads less, and what waits, waits in the broker: nothing is refused.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from merfast import Engine
from merfast.errors import MerfastError

import messages
from partitions import Partition, recall
from takes import Record, Take

PUBLISH, COMMIT = 0.05, 1.0
"""Seconds from one look for results to the next, and from one commit to the next."""


class Service:
    """Between the broker and the engine."""

    def __init__(self, engine: Engine, given: argparse.Namespace) -> None:
        self._engine, self._given = engine, given
        self._partitions: dict[int, Partition] = {}
        self._producer = Producer({"bootstrap.servers": given.servers, "enable.idempotence": True, "linger.ms": 5})
        self._consumer = Consumer(
            self._options(given.group) | {"session.timeout.ms": round(1000 * given.session_timeout)}
        )
        self.stopping = False

    def _options(self, group: str) -> dict[str, str | int | float | bool]:
        return {
            "bootstrap.servers": self._given.servers,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }

    def run(self) -> None:
        """Until `stopping` is set.

        Raises:
            KafkaException: the broker refuses something; what is not committed will be read again.
        """
        self._consumer.subscribe(
            [messages.MEDIA], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        publish = commit = time.monotonic()
        try:
            while not self.stopping:
                # One at a time: of a batch some may be of partitions that were taken away meanwhile.
                message = self._consumer.poll(PUBLISH)
                if message is not None:
                    self._take(message)
                self._producer.poll(0)
                now = time.monotonic()
                if now >= publish + PUBLISH:
                    self._publish()
                    publish = now
                if now >= commit + COMMIT:
                    self._close_idle()
                    self._commit()
                    commit = now
        finally:
            self._consumer.close()  # which revokes, and so commits

    def _take(self, message: Message) -> None:
        failed, partition, offset = message.error(), message.partition(), message.offset()
        if failed is not None:
            if failed.code() in (KafkaError._PARTITION_EOF, KafkaError._ALL_BROKERS_DOWN) or failed.retriable():
                return
            raise KafkaException(failed)
        assert partition is not None
        assert offset is not None
        there = self._partitions[partition]
        there.position = offset + 1
        try:
            piece = messages.read(message)
            record = there.records.get((piece.stream, piece.take))
            if record is not None and record.ended is not None:
                if offset > record.ended:
                    raise ValueError(f"take {piece.take!r} has ended")
                return  # published before a restart
            self._open(there, piece, record).push(piece, offset)
        except (ValueError, MerfastError) as error:
            stream = messages.stream_of(message)
            what = {"stream": stream, "partition": partition, "offset": offset, "error": str(error)}
            self._producer.produce(messages.ERRORS, json.dumps(what), key=stream)

    def _open(self, there: Partition, piece: messages.Piece, record: Record | None) -> Take:
        key = piece.stream, piece.take
        if key not in there.takes:
            for (stream, _), other in there.takes.items():
                if stream == piece.stream:
                    other.close()  # its producer went away without a word, and began anew
            given = self._given
            session = self._engine.session(window=given.window, hop=given.hop, name=piece.stream, overload="wait")
            there.takes[key] = Take(piece.stream, piece.take, session, given.hop, record)
        return there.takes[key]

    def _publish(self) -> None:
        for there in self._partitions.values():
            for take in list(there.takes.values()):
                results, ended = take.next_windows()
                for result in results:
                    self._send(there, take, result)
                if ended and not take.said_ended:
                    take.said_ended = True
                    self._send(there, take, take.ended())

    def _send(self, there: Partition, take: Take, values: dict[str, Any]) -> None:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise KafkaException(error)
            at = message.offset()
            assert at is not None
            key, record = Record.parse(value, at)
            there.records[key], there.results_at = record, at + 1
            take.published(record)
            if record.ended is not None:
                there.takes.pop(key, None)

        value = json.dumps(values).encode()
        self._producer.produce(messages.RESULTS, value, take.stream, there.number, on_delivery=delivered)

    def _close_idle(self) -> None:
        late = time.monotonic() - self._given.idle
        for there in self._partitions.values():
            for take in there.takes.values():
                if take.last_time < late:
                    take.close()

    def _commit(self) -> None:
        if self._producer.flush(30):
            raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT, "results could not be published for 30 s"))
        offsets = [offset for there in self._partitions.values() for offset in there.offsets()]
        if offsets:
            self._consumer.commit(offsets=offsets, asynchronous=False)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for number in (p.partition for p in partitions):
            start = consumer.committed([TopicPartition(messages.RESULTS, number)], 30)[0].offset
            records, after = recall(self._options(f"{self._given.group}-reader"), number, start)
            self._partitions[number] = Partition(number, records, after)

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._commit()
        self._lost(_, partitions)

    def _lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        for number in (p.partition for p in partitions):
            there = self._partitions.pop(number, None)
            for take in there.takes.values() if there is not None else ():
                take.session.cancel()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predict every stream that is published to Kafka.")
    parser.add_argument("--servers", default="127.0.0.1:9092", help="of Kafka, host:port,... (default %(default)s)")
    parser.add_argument("--group", default="merfast", help="of consumers that share the work (default %(default)s)")
    parser.add_argument("--partitions", type=int, default=4, help="of topics that are new (default %(default)s)")
    parser.add_argument("--window", type=float, default=4.0, help="seconds (default %(default)g)")
    parser.add_argument("--hop", type=float, default=1.0, help="seconds between windows' starts (default %(default)g)")
    parser.add_argument("--bundle", help="a bundle's folder (default: the packaged one)")
    parser.add_argument("--detector-model", help="YuNet's ONNX file (default: as the engine finds one)")
    parser.add_argument("--idle", type=float, default=300.0, help="seconds without a message, then a take has ended")
    parser.add_argument("--session-timeout", type=float, default=10.0, help="seconds until a dead member is noticed")
    return parser.parse_args()


def main() -> None:
    given = parse()
    messages.create_topics(given.servers, given.partitions)
    with Engine(given.bundle, detector_model=given.detector_model) as engine:
        service = Service(engine, given)

        def stop(*_: object) -> None:
            service.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        service.run()


if __name__ == "__main__":
    main()
