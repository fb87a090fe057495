"""aiokafka's clients of a chaos run: an idempotent producer, and a poller without a group. See chaos_clients."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from .chaos_clients import DELIVERY_TIMEOUT_MS, EXIT_INCOMPLETE, FINAL_TIMEOUT_S, OUTSTANDING_MAX, POLL_RECORDS_MAX, note
from .chaos_history import IDS_PER_PROCESS, Recorder

if TYPE_CHECKING:
    from .chaos_clients import Spec, Stop

RESTART_PAUSE_S: Final = 0.3
CLOSE_TIMEOUT_S: Final = 10.0
POLL_TIMEOUT_MS: Final = 200


def run(spec: Spec, stop: Stop) -> int:
    work = {"producer": _produce, "poller": _poll, "final": _read_finally}[spec.role]
    return asyncio.run(work(spec, stop))


async def _produce(spec: Spec, stop: Stop) -> int:
    """Send unique values to the partitions in turn. After a write that failed the producer is replaced.

    aiokafka goes on with the sequence numbers behind those of a batch that it gave up, so its later batches would be refused.
    """
    values = iter(range(spec.number * IDS_PER_PROCESS, (spec.number + 1) * IDS_PER_PROCESS))
    generation = 0
    while not stop:
        generation += 1
        recorder = Recorder(spec.history, process=f"{spec.name}/{generation}", number=spec.number + generation - 1)
        try:
            producer = await _started_producer(spec)
        except Exception as error:
            note(spec, f"start: {error!r}")
            await asyncio.sleep(RESTART_PAUSE_S)
            continue
        await _Producing(spec, recorder, producer).run(stop, values)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(producer.stop(), CLOSE_TIMEOUT_S)
    return 0


async def _started_producer(spec: Spec) -> Any:
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(
        bootstrap_servers=spec.bootstrap_servers,
        client_id=spec.name,
        acks=spec.acks,
        enable_idempotence=spec.idempotent,
        request_timeout_ms=DELIVERY_TIMEOUT_MS // 2,
        metadata_max_age_ms=5000,
        linger_ms=5,
    )
    try:
        await asyncio.wait_for(producer.start(), CLOSE_TIMEOUT_S)
    except BaseException:
        with contextlib.suppress(Exception):
            await producer.stop()
        raise
    return producer


class _Producing:
    """One aiokafka producer from its start to its first failure."""

    def __init__(self, spec: Spec, recorder: Recorder, producer: Any) -> None:
        self.spec, self.recorder, self.producer = spec, recorder, producer
        self.waiting: set[asyncio.Task[None]] = set()
        self.has_failed = False

    async def run(self, stop: Stop, values: Any) -> None:
        due_s, turn = time.monotonic(), 0
        while not stop and not self.has_failed:
            await asyncio.sleep(max(0.001, due_s - time.monotonic()))
            if len(self.waiting) >= OUTSTANDING_MAX:
                continue
            due_s = max(due_s + 1 / self.spec.rate_per_s, time.monotonic() - 1.0)
            await self._send(turn % self.spec.partitions, next(values))
            turn += 1
        if self.waiting:
            await asyncio.wait(self.waiting, timeout=CLOSE_TIMEOUT_S)

    async def _send(self, partition: int, value: int) -> None:
        spec = self.spec
        identity = self.recorder.invoke(
            "send", partition=spec.partition_name(partition), value=value, acks=spec.acks, ordered=spec.idempotent, idempotent=spec.idempotent
        )
        try:
            delivery = await self.producer.send(spec.topic, str(value).encode(), partition=partition)
        except Exception as error:
            self._failed(identity, error)
            return
        task = asyncio.ensure_future(self._end(identity, delivery))
        self.waiting.add(task)
        task.add_done_callback(self.waiting.discard)

    async def _end(self, identity: int, delivery: Any) -> None:
        try:
            metadata = await delivery
        except Exception as error:
            self._failed(identity, error)
        else:
            self.recorder.end(identity, "ok", **({"offset": metadata.offset} if metadata.offset is not None and metadata.offset >= 0 else {}))

    def _failed(self, identity: int, error: Exception) -> None:
        self.recorder.end(identity, "info", error=type(error).__name__)
        self.has_failed = True


def _consumer(spec: Spec) -> Any:
    """A consumer that never goes back to the beginning by itself.

    aiokafka sends no leader epochs and believes the metadata of a broker that is cut off from the quorum, so it asks a leader
    of the past for offsets that this one does not have. (librdkafka, which compares epochs, keeps "earliest" in chaos_clients.)
    """
    from aiokafka import AIOKafkaConsumer

    return AIOKafkaConsumer(
        bootstrap_servers=spec.bootstrap_servers,
        client_id=spec.name,
        enable_auto_commit=False,
        auto_offset_reset="none",
        request_timeout_ms=DELIVERY_TIMEOUT_MS,
        metadata_max_age_ms=5000,
    )


async def _poll(spec: Spec, stop: Stop) -> int:
    """Read every partition from its beginning, without a group; after an exception anew."""
    recorder = Recorder(spec.history, process=spec.name, number=spec.number)
    while not stop:
        consumer = _consumer(spec)
        recorder.reposition()
        try:
            await consumer.start()
            await _poll_until(stop, spec, recorder, consumer)
        except Exception as error:
            note(spec, f"poll: {error!r}")
            await asyncio.sleep(RESTART_PAUSE_S)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(consumer.stop(), CLOSE_TIMEOUT_S)
    return 0


async def _poll_until(stop: Stop, spec: Spec, recorder: Recorder, consumer: Any) -> None:
    from aiokafka import TopicPartition
    from aiokafka.errors import OffsetOutOfRangeError

    partitions = [TopicPartition(spec.topic, partition) for partition in range(spec.partitions)]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)  # Nothing of this topic is ever deleted.
    while not stop:
        began_ns = time.monotonic_ns()
        try:
            got = await consumer.getmany(timeout_ms=POLL_TIMEOUT_MS, max_records=POLL_RECORDS_MAX)
        except OffsetOutOfRangeError as error:
            note(spec, f"poll: {error!r}")
            for place, offset in error.args[0].items():  # Insist: what was read up to there must still be there.
                consumer.seek(place, offset)
            await asyncio.sleep(RESTART_PAUSE_S)
            continue
        records = [[spec.partition_name(item.partition), item.offset, int(item.value)] for items in got.values() for item in items]
        if records:
            recorder.whole("poll", began_ns=began_ns, records=records)


async def _read_finally(spec: Spec, stop: Stop) -> int:
    """After all faults: read each partition whole. Status EXIT_INCOMPLETE when that can't be done in time."""
    recorder = Recorder(spec.history, process=spec.name, number=spec.number)
    deadline_s = time.monotonic() + FINAL_TIMEOUT_S
    left = set(range(spec.partitions))
    while left and time.monotonic() < deadline_s and not stop:
        consumer = _consumer(spec)
        try:
            await consumer.start()
            for partition in sorted(left):
                began_ns = time.monotonic_ns()
                records = await asyncio.wait_for(_read_whole(spec, consumer, partition), max(1.0, deadline_s - time.monotonic()))
                recorder.whole("final_read", began_ns=began_ns, fields={"partition": spec.partition_name(partition)}, records=records)
                left.discard(partition)
        except Exception as error:
            note(spec, f"final read: {error!r}")
            await asyncio.sleep(RESTART_PAUSE_S)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(consumer.stop(), CLOSE_TIMEOUT_S)
    return EXIT_INCOMPLETE if left else 0


async def _read_whole(spec: Spec, consumer: Any, partition: int) -> list[list[Any]]:
    from aiokafka import TopicPartition

    place = TopicPartition(spec.topic, partition)
    consumer.assign([place])
    consumer.seek(place, 0)
    end = (await consumer.end_offsets([place]))[place]
    records: list[list[Any]] = []
    while end > 0 and (not records or records[-1][1] < end - 1):
        got = await consumer.getmany(place, timeout_ms=POLL_TIMEOUT_MS)
        records += [[spec.partition_name(partition), item.offset, int(item.value)] for items in got.values() for item in items]
    return records
