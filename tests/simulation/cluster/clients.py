"""Small Kafka clients for the simulation: they speak the real protocol, one request at a time, and record what they saw."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from raftlog.environment import Network
from raftlog.errors import ErrorCode
from raftlog.ids import TopicPartition
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.batches import Record, decode_records, encode_batch
from raftlog.protocol.messages import ApiKey, Fields
from tests.simulation.cluster.history import Recorder
from tests.simulation.cluster.schedule import Tempo

VERSION: Final = {
    ApiKey.PRODUCE: 9,
    ApiKey.FETCH: 12,
    ApiKey.LIST_OFFSETS: 7,
    ApiKey.METADATA: 12,
    ApiKey.OFFSET_COMMIT: 8,
    ApiKey.OFFSET_FETCH: 8,
    ApiKey.OFFSET_DELETE: 0,
    ApiKey.INIT_PRODUCER_ID: 4,
    ApiKey.FIND_COORDINATOR: 4,
    ApiKey.CREATE_TOPICS: 7,
    ApiKey.DELETE_TOPICS: 6,
    ApiKey.DELETE_RECORDS: 2,
    ApiKey.INCREMENTAL_ALTER_CONFIGS: 1,
    ApiKey.ALTER_PARTITION_REASSIGNMENTS: 1,
    ApiKey.JOIN_GROUP: 3,
    ApiKey.SYNC_GROUP: 3,
    ApiKey.HEARTBEAT: 3,
    ApiKey.LEAVE_GROUP: 3,
    ApiKey.CONSUMER_GROUP_HEARTBEAT: 1,
}
EARLIEST: Final = -2  # As timestamps of ListOffsets.
LATEST: Final = -1
CONNECT_MS_MAX: Final = 2_000
REQUEST_MS_MAX: Final = 5_000
PAUSE_MS_MAX: Final = 200
SURELY_REFUSED: Final = frozenset(
    {
        ErrorCode.not_enough_replicas,
        ErrorCode.unknown_topic_or_partition,
        ErrorCode.fenced_leader_epoch,
        ErrorCode.invalid_record,
        ErrorCode.invalid_timestamp,
    }
)


BATCH_RECORDS_MAX: Final = 4
PADDED_SHARE: Final = 0.3
HASTY_SHARE: Final = 0.2  # Of an idempotent producer's batches: it gives them up soon, while they may still be on their way.
HASTY_MS: Final = (20, 2_000)


class Oracle(Protocol):
    """What a client can't know and the simulation can: used to judge answers, and to tell topics of one name apart."""

    def topic_id(self, topic: str) -> uuid.UUID | None:
        """Of the newest committed topic of that name."""

    def epoch_at(self, port: int, topic: str, partition: int) -> int:
        """The partition's leader epoch as the node at `port` knows it; -1 when it knows none or does not run."""

    def mark(self, topic: str, partition: int) -> int:
        """The highest high watermark that was seen of it at any node so far."""

    def runs(self, port: int) -> bool:
        """Whether the node at `port` runs."""

    def is_deposed(self, port: int, topic: str, partition: int) -> bool:
        """Whether the cluster has committed another leader epoch of the partition than the node at `port` knows of."""


class Gone(Exception):
    """Whom the client needs can't be reached or found just now."""


class Refused(Gone):
    """The node that was asked says that it is the wrong one."""


class OutOfRange(Refused):
    """What is to be read is not there: its log begins later, or ends before."""


class Client:
    """Connections and what is known of the cluster; subclasses do the work. `process` names it in the history."""

    def __init__(
        self,
        process: str,
        network: Network,
        bootstrap: Callable[[], Sequence[int]],
        recorder: Recorder,
        chance: random.Random,
        oracle: Oracle,
        tempo: Tempo | None = None,
    ) -> None:
        self.process = process
        self.oracle = oracle
        self.recorder = recorder
        self.chance = chance
        self.tempo = tempo
        self._network = network
        self._bootstrap = bootstrap
        self._connections: dict[int, PeerConnection] = {}
        self._leaders: dict[tuple[str, int], tuple[int, int]] = {}  # (leader, leader epoch)
        self._ports: dict[int, int] = {}
        self.coordinators: dict[str, int] = {}  # Ports, by group.

    async def pause(self, ms_max: int = PAUSE_MS_MAX) -> None:
        """Between requests: up to so many ms where the tempo is high, longer where it is low."""
        calm_s = self.tempo.calm_s(asyncio.get_running_loop().time()) if self.tempo is not None else 0.0
        await asyncio.sleep(calm_s * self.chance.uniform(0.5, 1) + self.chance.uniform(1, ms_max) / 1000)

    async def connection(self, port: int) -> PeerConnection:
        """Raises PeerUnreachable."""
        connection = self._connections.get(port)
        if connection is None or connection.closed:
            connection = await PeerConnection.open(self._network, "127.0.0.1", port, client_id=self.process, timeout_ms=CONNECT_MS_MAX)
            self._connections[port] = connection
        return connection

    async def ask(self, port: int, api_key: int, fields: dict[str, Any], *, timeout_ms: int = REQUEST_MS_MAX, version: int | None = None) -> Fields:
        """Raises PeerUnreachable: the request may have had its effect."""
        connection = await self.connection(port)
        version = VERSION[ApiKey(api_key)] if version is None else version
        return await connection.request(api_key, fields, version=version, timeout_ms=timeout_ms)

    async def ask_anyone(self, api_key: int, fields: dict[str, Any], *, timeout_ms: int = REQUEST_MS_MAX) -> Fields:
        ports = list(self._bootstrap())
        self.chance.shuffle(ports)
        for port in ports:
            try:
                return await self.ask(port, api_key, fields, timeout_ms=timeout_ms)
            except PeerUnreachable:
                continue
        raise Gone("no broker answers")

    async def leader_port(self, topic: str, partition: int) -> int:
        """Raises Gone."""
        if (topic, partition) not in self._leaders:
            answer = await self.ask_anyone(ApiKey.METADATA, {"topics": [{"name": topic}], "allow_auto_topic_creation": False})
            self._ports = {broker.node_id: broker.port for broker in answer.brokers}
            for found in answer.topics[0].partitions:
                self._leaders[topic, found.partition_index] = (found.leader_id, found.leader_epoch)
        leader, _ = self._leaders.get((topic, partition), (-1, -1))
        if leader not in self._ports:
            self._leaders.pop((topic, partition), None)
            raise Gone(f"{topic}-{partition} has no leader")
        return self._ports[leader]

    def port_of(self, node_id: int) -> int | None:
        """By the metadata asked for last."""
        return self._ports.get(node_id)

    def leader_epoch(self, topic: str, partition: int) -> int:
        return self._leaders.get((topic, partition), (-1, -1))[1]

    def forget_leader(self, topic: str, partition: int) -> None:
        self._leaders.pop((topic, partition), None)


class Admin(Client):
    """`unanswered` counts requests that may still have their effect, at any time until their connection is given up."""

    unanswered = 0

    async def create_topic(self, topic: str, *, partitions: int, replicas: int, configs: dict[str, str]) -> uuid.UUID:
        """Insist until the topic is there, made by this request or by an earlier one; its id."""
        wanted = {
            "name": topic,
            "num_partitions": partitions,
            "replication_factor": replicas,
            "configs": [{"name": name, "value": value} for name, value in configs.items()],
        }
        while True:
            answer = await self._insist(ApiKey.CREATE_TOPICS, {"topics": [wanted], "timeout": REQUEST_MS_MAX})
            found: uuid.UUID | None = None
            if answer.topics[0].error_code == ErrorCode.none:
                found = answer.topics[0].topic_id
            elif answer.topics[0].error_code == ErrorCode.topic_already_exists:
                found = self.oracle.topic_id(topic)  # A broker that is behind would name the topic before.
            if found is not None:
                return found
            await self.pause()

    async def delete_topic(self, topic_id: uuid.UUID) -> None:
        """Insist until the topic is gone. Not by its name: a request that comes late would delete the next one of that name."""
        fields = {"topics": [{"name": None, "topic_id": topic_id}], "timeout": REQUEST_MS_MAX}
        while True:
            answer = await self._insist(ApiKey.DELETE_TOPICS, fields)
            if answer.responses[0].error_code in (ErrorCode.none, ErrorCode.unknown_topic_id):
                return
            await self.pause()

    async def reassign(self, targets: dict[TopicPartition, tuple[int, ...] | None]) -> list[ErrorCode]:
        """Ask once for other replicas, None: those before; what is said of each partition. Raises Gone: it may have had its effect."""
        topics = [{"name": name.topic, "partitions": [{"partition_index": name.partition, "replicas": to}]} for name, to in targets.items()]
        answer = await self.ask_anyone(ApiKey.ALTER_PARTITION_REASSIGNMENTS, {"topics": topics, "timeout": REQUEST_MS_MAX})
        return [ErrorCode(answer.error_code or topic.partitions[0].error_code) for topic in answer.responses]

    async def _insist(self, api_key: ApiKey, fields: dict[str, Any]) -> Fields:
        """Ask one after the other until somebody answers."""
        while True:
            ports = list(self._bootstrap())
            self.chance.shuffle(ports)
            for port in ports:
                try:
                    return await self.ask(port, api_key, fields)
                except PeerUnreachable:
                    self.unanswered += 1
            await self.pause()


class Producer(Client):
    """Sends a batch of unique values at a time to one partition; idempotent ones insist on it until it is settled or time is up.

    `name` is the partition's in the history: another one for a topic that is created anew.
    """

    insist_ms = 20_000
    pause_ms_max = PAUSE_MS_MAX
    padding_bytes = 0  # Of a header that some batches get: they are large as they come, and compress well.

    def __init__(self, *args: Any, topic: str, partition: int, acks: int, idempotent: bool, name: str = "") -> None:
        super().__init__(*args)
        self.name = name or f"{topic}-{partition}"
        self.topic = topic
        self.partition = partition
        self.acks = acks
        self.idempotent = idempotent
        self.acknowledged = 0  # Batches.
        self.error = ErrorCode.none  # Of the last batch's last answer; unknown_server_error: none came.
        self._producer: tuple[int, int] | None = None
        self._sequence = 0

    async def run(self, *, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            if self.idempotent and self._producer is None and not await self._init_producer():
                await self.pause()
                continue
            await self._send_one()
            await self.pause(self.pause_ms_max)

    async def send_until_acknowledged(self) -> None:
        """Until the partition takes one batch again."""
        while not self.acknowledged:
            if (not self.idempotent or self._producer is not None) or await self._init_producer():
                await self._send_one()
            await self.pause()

    async def _init_producer(self) -> bool:
        fields = {"transactional_id": None, "transaction_timeout": 60000, "producer_id": -1, "producer_epoch": -1}
        try:
            answer = await self.ask_anyone(ApiKey.INIT_PRODUCER_ID, fields)
        except Gone:
            return False
        if answer.error_code != ErrorCode.none:
            return False
        self._producer, self._sequence = (answer.producer_id, answer.producer_epoch), 0
        self.recorder.producer_given(self.process, self._producer)
        return True

    async def _send_one(self) -> None:
        values = [self.recorder.next_value() for _ in range(self.chance.randint(1, BATCH_RECORDS_MAX))]
        operations = [
            self.recorder.invoke(
                "send",
                self.process,
                partition=self.name,
                value=value,
                acks={-1: "all"}.get(self.acks, str(self.acks)),
                ordered=self.idempotent,
                idempotent=self.idempotent,
            )
            for value in values
        ]
        outcome, offset = await self._settle(self._batch(values))
        self.acknowledged += outcome == "ok"
        for index, operation in enumerate(operations):
            told = {"offset": offset + index} if offset >= 0 else {"error": self.error.name} if outcome != "ok" else {}
            self.recorder.end(operation, outcome, **told)
        if self.idempotent:
            if outcome == "ok":
                self._sequence += len(values)
            elif self._producer is not None:
                # Nobody knows which sequence the broker has: begin anew in the next epoch, as clients do (KIP-360). What comes late is fenced.
                self._producer, self._sequence = (self._producer[0], self._producer[1] + 1), 0

    def _batch(self, values: Sequence[int]) -> bytes:
        padding = (("padding", bytes(self.padding_bytes)),) if self.padding_bytes and self.chance.random() < PADDED_SHARE else ()
        records = [Record(index, 1_700_000_000_000, None, str(value).encode(), padding) for index, value in enumerate(values)]
        if self._producer is None:
            return encode_batch(records)
        return encode_batch(records, producer_id=self._producer[0], producer_epoch=self._producer[1], base_sequence=self._sequence)

    async def _settle(self, batch: bytes) -> tuple[str, int]:
        """(outcome, offset or -1); a plain producer tries once, so that it makes no duplicates itself."""
        loop = asyncio.get_running_loop()
        is_hasty = self.idempotent and self.chance.random() < HASTY_SHARE
        deadline_s = loop.time() + (self.chance.randint(*HASTY_MS) if is_hasty else self.insist_ms) / 1000
        maybe_happened = False
        self.error = ErrorCode.unknown_server_error
        while (left_ms := int((deadline_s - loop.time()) * 1000)) > 0:
            try:
                port = await self.leader_port(self.topic, self.partition)
            except Gone:
                await self.pause()
                continue
            try:
                code, offset = await self._produce(port, batch, timeout_ms=min(left_ms, REQUEST_MS_MAX))
            except PeerUnreachable:
                code, offset = ErrorCode.unknown_server_error, -1
            self.error = ErrorCode(code)
            if code == ErrorCode.none:
                return "ok", offset
            self.forget_leader(self.topic, self.partition)
            maybe_happened = maybe_happened or code not in SURELY_REFUSED
            if not self.idempotent or code in (ErrorCode.out_of_order_sequence_number, ErrorCode.unknown_producer_id):
                break
            await self.pause()
        return ("info" if maybe_happened else "fail"), -1

    async def _produce(self, port: int, batch: bytes, *, timeout_ms: int) -> tuple[int, int]:
        fields = {
            "transactional_id": None,
            "acks": self.acks,
            "timeout": REQUEST_MS_MAX - 1000,
            "topic_data": [{"name": self.topic, "partition_data": [{"index": self.partition, "records": batch}]}],
        }
        if self.acks == 0:
            return await self._produce_unanswered(port, fields)
        answer = await self.ask(port, ApiKey.PRODUCE, fields, timeout_ms=timeout_ms)
        result = answer.responses[0].partition_responses[0]
        return result.error_code, result.base_offset

    async def _produce_unanswered(self, port: int, fields: dict[str, Any]) -> tuple[int, int]:
        connection = await self.connection(port)
        request = asyncio.ensure_future(connection.request(ApiKey.PRODUCE, fields, version=VERSION[ApiKey.PRODUCE], timeout_ms=REQUEST_MS_MAX))
        request.add_done_callback(self._unanswered_ended)
        return ErrorCode.none, -1

    def _unanswered_ended(self, request: asyncio.Future[Fields]) -> None:
        """No answer comes: the connection ends in time, or at once when its broker takes nothing. Then another one may lead."""
        if not request.cancelled() and request.exception() is not None:
            self.forget_leader(self.topic, self.partition)


class Consumer(Client):
    """Reads one partition from its beginning."""

    pause_ms_max = 300

    def __init__(self, *args: Any, topic: str, partition: int, name: str = "") -> None:
        super().__init__(*args)
        self.topic = topic
        self.partition = partition
        self.name = name or f"{topic}-{partition}"
        self.position = 0

    async def run(self, *, until_s: float) -> None:
        while asyncio.get_running_loop().time() < until_s:
            await self.poll()
            await self.after_poll()
            await self.pause(self.pause_ms_max)

    async def after_poll(self) -> None:
        """Nothing more for a consumer without a group."""

    async def poll(self) -> list[tuple[str, int, int]]:
        operation = self.recorder.invoke("poll", self.process)
        try:
            _, records = await self.fetch()
        except Refused:
            self.forget_leader(self.topic, self.partition)
            self.recorder.end(operation, "info")
            return []
        except (Gone, PeerUnreachable):
            if self.chance.random() < 0.5:  # The same node may lead again in a later epoch: what is known is tried once more.
                self.forget_leader(self.topic, self.partition)
            self.recorder.end(operation, "info")
            return []
        self.recorder.end(operation, "ok", records=records)
        return records

    async def first_offset(self) -> int:
        """Where the final read begins."""
        return 0

    async def fetch(self) -> tuple[int, list[tuple[str, int, int]]]:
        """(high watermark, records from `position` on); the position moves on. Raises Gone, PeerUnreachable."""
        port = await self.leader_port(self.topic, self.partition)
        found = await self.fetch_from(port)
        return found.high_watermark, self.take_records(found)

    async def fetch_from(self, port: int, *, rack: str = "") -> Fields:
        """One fetch from `position` on. Raises Refused, PeerUnreachable."""
        epoch = self.leader_epoch(self.topic, self.partition)
        own_epoch = self.oracle.epoch_at(port, self.topic, self.partition)
        target = {"partition": self.partition, "current_leader_epoch": epoch, "fetch_offset": self.position, "partition_max_bytes": 1 << 20}
        fields = {
            "replica_id": -1,
            "max_wait": 100,
            "min_bytes": 1,
            "max_bytes": 1 << 22,
            "isolation_level": 0,
            "topics": [{"topic": self.topic, "partitions": [target]}],
            "rack_id": rack,
        }
        answer = await self.ask(port, ApiKey.FETCH, fields)
        found = answer.responses[0].partitions[0]
        if found.error_code != ErrorCode.none:
            refusal = OutOfRange if found.error_code == ErrorCode.offset_out_of_range else Refused
            raise refusal(f"fetch of {self.name}: {found.error_code!r}")
        if epoch < own_epoch and self.name == f"{self.topic}-{self.partition}":
            self.recorder.complain(f"a fetch of {self.name} in leader epoch {epoch} was served in epoch {own_epoch}")
        return found

    def take_records(self, found: Fields) -> list[tuple[str, int, int]]:
        """What is new of an answer; the position moves on."""
        records = [
            (self.name, record.offset, int(record.value or b"0")) for record in decode_records(found.records or b"") if record.offset >= self.position
        ]
        if records:
            self.position = records[-1][1] + 1
        return records

    async def read_to_end(self) -> None:
        """The final read, when all faults are healed: insists until the end is reached, which is where ListOffsets says that it is.

        The mark of a fetch does not tell: that of a new leader may lie below what was acknowledged before it.
        """
        self.position = await self.first_offset()
        operation = self.recorder.invoke("final_read", self.process, partition=self.name)
        everything: list[tuple[str, int, int]] = []
        end_offset = -1
        while not 0 <= end_offset <= self.position:
            try:
                if end_offset < 0:
                    end_offset = await self.offset_at(LATEST, await self.leader_port(self.topic, self.partition))
                everything += (await self.fetch())[1]
            except (Gone, PeerUnreachable):
                self.forget_leader(self.topic, self.partition)
                await self.pause()
        self.recorder.end(operation, "ok", records=everything)

    async def offset_at(self, timestamp: int, port: int) -> int:
        """What ListOffsets says of EARLIEST or LATEST. Raises Refused, also where a new leader does not know yet (KIP-207), PeerUnreachable."""
        partition = {"partition_index": self.partition, "current_leader_epoch": self.leader_epoch(self.topic, self.partition), "timestamp": timestamp}
        fields = {"replica_id": -1, "isolation_level": 0, "topics": [{"name": self.topic, "partitions": [partition]}]}
        found = (await self.ask(port, ApiKey.LIST_OFFSETS, fields)).topics[0].partitions[0]
        if found.error_code != ErrorCode.none:
            raise Refused(f"ListOffsets of {self.name} at {timestamp}: {found.error_code!r}")
        offset: int = found.offset
        return offset
