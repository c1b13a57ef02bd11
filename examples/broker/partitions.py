"""What a consumer knows of one partition, and how it comes to know what others have published there."""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

import messages
from takes import Record, Take


class Partition:
    """The takes that lie in one partition of the media topic."""

    def __init__(self, number: int, records: dict[tuple[str, str], Record], results_at: int) -> None:
        self.number, self.records, self.results_at = number, records, results_at
        self.position = -1  # the next offset to read
        self.takes: dict[tuple[str, str], Take] = {}

    def offsets(self) -> list[TopicPartition]:
        """What to commit: where to read media from, and where in the results what then matters begins."""
        if self.position < 0:
            return []
        media = min((take.needed_from for take in self.takes.values()), default=self.position)
        # Of takes that have ended, what may be read again must be known to have been published.
        self.records = {key: r for key, r in self.records.items() if r.ended is None or r.ended >= media}
        results = min((record.at for record in self.records.values()), default=self.results_at)
        return [
            TopicPartition(messages.MEDIA, self.number, media),
            TopicPartition(messages.RESULTS, self.number, results),
        ]


def recall(
    options: dict[str, str | int | float | bool], number: int, start: int
) -> tuple[dict[tuple[str, str], Record], int]:
    """Read what the results say of each take, the last of it; and the offset after.

    Args:
        options: of the client, with "enable.partition.eof".
        number: of the partition.
        start: offset to begin with; the first one there is if that is later.

    Raises:
        KafkaException: the broker does not answer.
    """
    records: dict[tuple[str, str], Record] = {}
    reader = Consumer(options)
    try:
        low, high = reader.get_watermark_offsets(TopicPartition(messages.RESULTS, number), timeout=30)
        if max(low, start) >= high:
            return records, high
        reader.assign([TopicPartition(messages.RESULTS, number, max(low, start))])
        while True:
            message = reader.poll(30)
            if message is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no answer on {messages.RESULTS}"))
            failed, value, at = message.error(), message.value(), message.offset()
            if failed is not None and failed.code() == KafkaError._PARTITION_EOF:
                return records, high
            if failed is not None:
                raise KafkaException(failed)
            assert value is not None
            assert at is not None
            key, record = Record.parse(value, at)
            records[key], high = record, at + 1
    finally:
        reader.close()
