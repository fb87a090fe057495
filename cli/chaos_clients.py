"""The clients of a chaos run, each a process of its own: `raftlog chaos client SPEC`, SPEC as JSON.

They write histories as things happen and retry nothing themselves; what the libraries do underneath is theirs. SIGTERM
ends a client in an orderly way. This module holds librdkafka's; aiokafka's are in chaos_aiokafka.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from .chaos_history import IDS_PER_PROCESS, Recorder
from .chaos_near import read_nearby

DELIVERY_TIMEOUT_MS: Final = 8000  # After that a write counts as unsure.
# librdkafka, once a write has timed out that may have been stored, sends those behind it again under a new producer epoch: they
# are then duplicates of its own making. So its idempotent producer must be more patient than any fault lasts.
IDEMPOTENT_DELIVERY_TIMEOUT_MS: Final = 120_000
# Nor may it give up a request itself: a write behind it may then overtake it on the way to the new leader, which refuses that
# one as out of order, and librdkafka again repeats under a new epoch what may be stored already (tests/conformance/FINDINGS.md).
IDEMPOTENT_REQUEST_TIMEOUT_MS: Final = 60_000
REQUEST_TIMEOUT_MS: Final = 4000
OUTSTANDING_MAX: Final = 400  # Writes without an answer per producer; beyond that it waits.
FLUSH_TIMEOUT_S: Final = 12.0
POLL_RECORDS_MAX: Final = 500
POLL_TIMEOUT_S: Final = 0.2
COMMIT_PAUSE_S: Final = 0.5
OBSERVE_PAUSE_S: Final = 1.0
ADMIN_TIMEOUT_S: Final = 6.0
FINAL_TIMEOUT_S: Final = 90.0
EXIT_INCOMPLETE: Final = 1


@dataclass(frozen=True, slots=True)
class Spec:
    """What one client is and does. `number` is unique in a run: ids and values follow from it."""

    role: str  # producer, poller, near, member, observer, final
    library: str  # librdkafka, aiokafka
    name: str
    number: int
    bootstrap_servers: str
    topic: str
    partitions: int
    history: str
    group: str
    rate_per_s: float = 50.0
    acks: str = "all"
    idempotent: bool = True
    protocol: str = "classic"  # Of its group: classic, or consumer (KIP-848).
    commits: bool = True  # Whether the final reads include the group's offsets.
    rack: str = ""  # Where it stands, if it reads from the replica there.

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def partition_name(self, partition: int) -> str:
        return f"{self.topic}-{partition}"


class Stop:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self._event.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __bool__(self) -> bool:
        return self._event.is_set()

    def sleep(self, seconds: float) -> None:
        self._event.wait(max(0.0, seconds))


def client_settings(spec: Spec, **more: Any) -> dict[str, Any]:
    return {
        "bootstrap.servers": spec.bootstrap_servers,
        "client.id": spec.name,
        "error_cb": lambda error: note(spec, str(error)),
        "reconnect.backoff.max.ms": 500,
        "topic.metadata.refresh.interval.ms": 5000,
        "socket.timeout.ms": REQUEST_TIMEOUT_MS + 1000,
        "logger": logging.getLogger("chaos"),
        **more,
    }


def note(spec: Spec, text: str) -> None:
    """A line for the log of the clients; nothing is judged by it."""
    print(f"{time.monotonic_ns()} {spec.name}: {text}", file=sys.stderr, flush=True)


def produce(spec: Spec, stop: Stop) -> int:
    """Send unique values to the partitions in turn; a producer that fails for good is replaced by another."""
    generation = 0
    values = iter(range(spec.number * IDS_PER_PROCESS, (spec.number + 1) * IDS_PER_PROCESS))
    while not stop:
        generation += 1
        # Another producer id, so another process as far as the order of its writes is concerned.
        recorder = Recorder(spec.history, process=f"{spec.name}/{generation}", number=spec.number + generation - 1)
        _Producing(spec, recorder).run(stop, lambda: next(values))
    return 0


class _Producing:
    """One librdkafka producer from its making to its end."""

    def __init__(self, spec: Spec, recorder: Recorder) -> None:
        from confluent_kafka import Producer

        self.spec, self.recorder = spec, recorder
        self.outstanding = 0
        self.is_fatal = False
        request_timeout_ms = IDEMPOTENT_REQUEST_TIMEOUT_MS if spec.idempotent else REQUEST_TIMEOUT_MS
        own: dict[str, Any] = {"socket.timeout.ms": request_timeout_ms + 1000} if spec.idempotent else {"retries": 0}
        self.producer = Producer(
            client_settings(spec, error_cb=self._on_error)
            | {
                "enable.idempotence": spec.idempotent,
                "acks": spec.acks,
                "linger.ms": 5,
                "message.timeout.ms": IDEMPOTENT_DELIVERY_TIMEOUT_MS if spec.idempotent else DELIVERY_TIMEOUT_MS,
                "request.timeout.ms": request_timeout_ms,
                **own,
            }
        )

    def run(self, stop: Stop, next_value: Callable[[], int]) -> None:
        due_s, turn = time.monotonic(), 0
        while not stop and not self.is_fatal:
            self.producer.poll(max(0.0, due_s - time.monotonic()))
            if time.monotonic() < due_s or self.outstanding >= OUTSTANDING_MAX:
                self.producer.poll(0.005)
                continue
            due_s = max(due_s + 1 / self.spec.rate_per_s, time.monotonic() - 1.0)
            self._send(turn % self.spec.partitions, next_value())
            turn += 1
        self.producer.flush(FLUSH_TIMEOUT_S)  # What has no answer by then may still happen: it stays open in the history.

    def _send(self, partition: int, value: int) -> None:
        spec = self.spec
        identity = self.recorder.invoke(
            "send",
            partition=spec.partition_name(partition),
            value=value,
            acks=spec.acks,
            # Without idempotence a request that its client gave up may be carried out after the next one.
            ordered=spec.idempotent,
            idempotent=spec.idempotent,
        )
        try:
            self.producer.produce(
                spec.topic, str(value).encode(), partition=partition, on_delivery=lambda error, message: self._end(identity, error, message)
            )
        except BufferError as error:
            self.recorder.end(identity, "fail", error=str(error))
            return
        self.outstanding += 1

    def _end(self, identity: int, error: Any, message: Any) -> None:
        self.outstanding -= 1
        if error is None:
            offset = message.offset()
            self.recorder.end(identity, "ok", **({"offset": offset} if offset is not None and offset >= 0 else {}))
        else:
            self.recorder.end(identity, "info", error=error.name())

    def _on_error(self, error: Any) -> None:
        note(self.spec, str(error))
        self.is_fatal = self.is_fatal or error.fatal()


def poll(spec: Spec, stop: Stop) -> int:
    """Read every partition from its beginning, without a group."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    recorder = Recorder(spec.history, process=spec.name, number=spec.number)
    consumer = Consumer(client_settings(spec) | {"group.id": f"{spec.group}-unused", "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(spec.topic, partition, OFFSET_BEGINNING) for partition in range(spec.partitions)])
    while not stop:
        take(spec, recorder, consumer)
    consumer.close()
    return 0


def take(spec: Spec, recorder: Recorder, consumer: Any, *, tell: Callable[[], dict[str, Any]] = dict) -> list[Any]:
    """Poll once; what came goes into the history, with what `tell` adds. Returns the messages."""
    began_ns = time.monotonic_ns()
    messages = []
    for message in consumer.consume(POLL_RECORDS_MAX, POLL_TIMEOUT_S):
        if message.error() is None:
            messages.append(message)
        else:
            note(spec, f"poll: {message.error()}")
    if messages:
        records = [[spec.partition_name(message.partition()), message.offset(), int(message.value())] for message in messages]
        recorder.whole("poll", began_ns=began_ns, records=records, **tell())
    return messages


def join(spec: Spec, stop: Stop) -> int:
    """Be a member of the group: poll what is assigned, commit what was polled."""
    from confluent_kafka import Consumer

    recorder = Recorder(spec.history, process=spec.name, number=spec.number)
    positions: dict[int, int] = {}

    def moved(_consumer: Any, _partitions: Any) -> None:
        positions.clear()
        recorder.reposition()

    own: dict[str, Any] = {"group.protocol": "consumer"} if spec.protocol == "consumer" else {"session.timeout.ms": 6000}
    consumer = Consumer(client_settings(spec) | {"group.id": spec.group, "enable.auto.commit": False, "auto.offset.reset": "earliest"} | own)
    consumer.subscribe([spec.topic], on_assign=moved, on_revoke=moved, on_lost=moved)
    due_s = time.monotonic()
    while not stop:
        for message in take(spec, recorder, consumer):
            positions[message.partition()] = message.offset() + 1
        if positions and time.monotonic() >= due_s:
            due_s = time.monotonic() + COMMIT_PAUSE_S
            commit(spec, recorder, consumer, dict(positions))
            positions.clear()
    consumer.close()
    return 0


def commit(spec: Spec, recorder: Recorder, consumer: Any, positions: Mapping[int, int]) -> None:
    """Commit and wait for the answer. Whatever goes wrong is unsure: librdkafka may have tried more than once."""
    from confluent_kafka import KafkaException, TopicPartition

    offsets = [TopicPartition(spec.topic, partition, offset) for partition, offset in positions.items()]
    identity = recorder.invoke(
        "commit", group=spec.group, offsets={spec.partition_name(partition): offset for partition, offset in positions.items()}
    )
    try:
        answers = consumer.commit(offsets=offsets, asynchronous=False)
    except KafkaException as error:
        recorder.end(identity, "info", error=error.args[0].name())
        return
    refused = next((answer.error for answer in answers or () if answer.error is not None), None)
    if refused is None:
        recorder.end(identity, "ok")
    else:
        recorder.end(identity, "info", error=refused.name())


def observe(spec: Spec, stop: Stop) -> int:
    """Read the group's offsets back from time to time, without being a member."""
    from confluent_kafka import Consumer

    recorder = Recorder(spec.history, process=spec.name, number=spec.number)
    consumer = Consumer(client_settings(spec) | {"group.id": spec.group, "enable.auto.commit": False})
    while not stop:
        read_committed_offsets(spec, recorder, consumer)
        stop.sleep(OBSERVE_PAUSE_S)
    consumer.close()
    return 0


def read_committed_offsets(spec: Spec, recorder: Recorder, consumer: Any) -> bool:
    """Whether the group's offsets could be read; then they are in the history."""
    from confluent_kafka import KafkaException, TopicPartition

    began_ns = time.monotonic_ns()
    asked = [TopicPartition(spec.topic, partition) for partition in range(spec.partitions)]
    try:
        answers = consumer.committed(asked, timeout=ADMIN_TIMEOUT_S)
    except KafkaException as error:
        note(spec, f"committed: {error}")
        return False
    offsets = {spec.partition_name(answer.partition): max(-1, answer.offset) for answer in answers if answer.error is None}
    recorder.whole("committed", began_ns=began_ns, group=spec.group, offsets=offsets)
    return len(offsets) == spec.partitions


def read_finally(spec: Spec, stop: Stop) -> int:
    """After all faults: read each partition whole, and the group's offsets. Status EXIT_INCOMPLETE when that can't be done in time."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

    recorder = Recorder(spec.history, process=spec.name, number=spec.number)
    consumer = Consumer(client_settings(spec) | {"group.id": spec.group, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    deadline_s = time.monotonic() + FINAL_TIMEOUT_S
    left = set(range(spec.partitions))
    commits_left = spec.commits
    while (left or commits_left) and time.monotonic() < deadline_s and not stop:
        if commits_left:
            commits_left = not read_committed_offsets(spec, recorder, consumer)
        for partition in sorted(left):
            began_ns = time.monotonic_ns()
            try:
                _, end = consumer.get_watermark_offsets(TopicPartition(spec.topic, partition), timeout=ADMIN_TIMEOUT_S)
                consumer.assign([TopicPartition(spec.topic, partition, OFFSET_BEGINNING)])
            except KafkaException as error:
                note(spec, f"final read: {error}")
                continue
            name = spec.partition_name(partition)
            records = [[name, message.offset(), int(message.value())] for message in _read_to(consumer, end, deadline_s)]
            if end == 0 or (records and records[-1][1] >= end - 1):
                recorder.whole("final_read", began_ns=began_ns, fields={"partition": name}, records=records)
                left.discard(partition)
    consumer.close()
    return EXIT_INCOMPLETE if left or commits_left else 0


def _read_to(consumer: Any, end: int, deadline_s: float) -> list[Any]:
    """The messages of the one assigned partition up to its end offset."""
    found: list[Any] = []
    while (not found or found[-1].offset() < end - 1) and end > 0 and time.monotonic() < deadline_s:
        found += [message for message in consumer.consume(POLL_RECORDS_MAX, POLL_TIMEOUT_S) if message.error() is None]
    return found


ROLES: Final[Mapping[str, Callable[[Spec, Stop], int]]] = {
    "producer": produce,
    "poller": poll,
    "near": read_nearby,
    "member": join,
    "observer": observe,
    "final": read_finally,
}


def run_client(fields: Mapping[str, Any]) -> int:
    """Be one client until SIGTERM, or until its work is done; the exit status."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    spec, stop = Spec(**fields), Stop()
    if spec.library == "aiokafka":
        from . import chaos_aiokafka

        return chaos_aiokafka.run(spec, stop)
    return ROLES[spec.role](spec, stop)
