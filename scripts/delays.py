"""A stream consumer against a public Kafka client: the mean departure delay per carrier and scheduled hour.

Reads flights as JSON from one topic and writes each changed mean to another, keyed `carrier-hour`, so that the last
record of a key is its present value. Offsets are committed only after the results are acknowledged.
Run it by itself: python scripts/delays.py -b 127.0.0.1:9092 [--follow]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

SOURCE: Final = "flights"
TARGET: Final = "delays-by-carrier-hour"
GROUP: Final = "delays"
PUBLISH_EVERY_S: Final = 1.0
MESSAGES_PER_POLL_MAX: Final = 1000
FLUSH_TIMEOUT_S: Final = 60.0


@dataclass(slots=True)
class Delay:
    """The flights of one carrier in one scheduled hour of the day."""

    flights: int = 0
    cancelled: int = 0
    delay_min_sum: int = 0

    def add(self, delay_min: int | None) -> None:
        """Count one flight; a cancelled one has no delay."""
        if delay_min is None:
            self.cancelled += 1
        else:
            self.flights += 1
            self.delay_min_sum += delay_min

    @property
    def mean_min(self) -> float | None:
        return round(self.delay_min_sum / self.flights, 1) if self.flights else None


class Delays:
    """The aggregate so far, and which of it is not yet published."""

    def __init__(self) -> None:
        self.by_carrier_hour: dict[tuple[str, int], Delay] = {}
        self.changed: set[tuple[str, int]] = set()

    def add(self, flight: dict[str, Any]) -> None:
        key = flight["carrier"], flight["hour"]
        self.by_carrier_hour.setdefault(key, Delay()).add(flight["dep_delay"])
        self.changed.add(key)

    def take_changes(self) -> Iterable[tuple[str, str]]:
        """Key and JSON value of each mean that changed since the last call."""
        for carrier, hour in sorted(self.changed):
            delay = self.by_carrier_hour[carrier, hour]
            fields = {"carrier": carrier, "hour": hour, "flights": delay.flights, "cancelled": delay.cancelled, "mean_delay_min": delay.mean_min}
            yield f"{carrier}-{hour:02}", json.dumps(fields)
        self.changed.clear()


def transform(servers: str, *, source: str = SOURCE, target: str = TARGET, group: str = GROUP, follow: bool = False) -> int:
    """Run until the source's end, or for ever with `follow`. Returns how many flights were read."""
    create_topic(servers, target)
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "acks": "all", "linger.ms": 20})
    delays, ended, assigned = Delays(), set[int](), set[int]()

    def on_assign(_consumer: Consumer, partitions: list[Any]) -> None:
        assigned.update(partition.partition for partition in partitions)

    consumer.subscribe([source], on_assign=on_assign)
    count, published_s = 0, time.monotonic()
    try:
        while follow or not ended >= assigned or not assigned:
            for message in consumer.consume(MESSAGES_PER_POLL_MAX, 0.1):
                if is_flight(message, ended):
                    delays.add(json.loads(message.value()))
                    count += 1
            if time.monotonic() - published_s >= PUBLISH_EVERY_S:
                publish(producer, consumer, target, delays)
                published_s = time.monotonic()
        publish(producer, consumer, target, delays)
    finally:
        consumer.close()
    return count


def is_flight(message: Message, ended: set[int]) -> bool:
    """Whether it is a record; notes a partition's end in `ended`. Raises KafkaException for an error."""
    error = message.error()
    if error is None:
        ended.discard(message.partition())
        return True
    if error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    ended.add(message.partition())
    return False


def publish(producer: Producer, consumer: Consumer, target: str, delays: Delays) -> None:
    """Write what changed and wait for it; only then commit what it was made of."""
    failed: list[KafkaError] = []
    for key, value in delays.take_changes():
        producer.produce(target, key=key, value=value, on_delivery=lambda error, _message: failed.append(error) if error else None)
    if producer.flush(FLUSH_TIMEOUT_S) or failed:
        raise KafkaException(failed[0] if failed else KafkaError(KafkaError._TIMED_OUT))
    try:
        consumer.commit(asynchronous=False)
    except KafkaException as error:
        if error.args[0].code() != KafkaError._NO_OFFSET:  # Nothing was read since the last commit.
            raise


def create_topic(servers: str, name: str) -> None:
    """Create the topic with the cluster's default replication, unless it exists."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    (future,) = admin.create_topics([NewTopic(name, num_partitions=3)]).values()
    try:
        future.result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def latest_values(servers: str, *, topic: str = TARGET) -> dict[str, dict[str, Any]]:
    """The last value of each key of a topic, read from its beginning to its end."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "unused", "enable.auto.commit": False, "enable.partition.eof": True})
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    ended: set[int] = set()
    values: dict[str, dict[str, Any]] = {}
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    try:
        while not ended >= partitions.keys():
            for message in consumer.consume(MESSAGES_PER_POLL_MAX, 0.1):
                if is_flight(message, ended):
                    values[message.key().decode()] = json.loads(message.value())
    finally:
        consumer.close()
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-b", "--bootstrap-server", default="127.0.0.1:9092")
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--follow", action="store_true", help="keep on reading at the end")
    options = parser.parse_args()
    try:
        count = transform(options.bootstrap_server, source=options.source, target=options.target, follow=options.follow)
    except KeyboardInterrupt:
        return
    print(f"{count} flights read; results are in {options.target}")


if __name__ == "__main__":
    main()
