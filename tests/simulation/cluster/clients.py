"""Small Kafka clients for the simulation: they speak the real protocol, one request at a time, and record what they saw."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from raftlog.environment import Network
from raftlog.errors import ErrorCode
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.batches import Record, decode_records, encode_batch
from raftlog.protocol.messages import ApiKey, Fields
from tests.simulation.cluster.history import Recorder

VERSION: Final = {
    ApiKey.PRODUCE: 9,
    ApiKey.FETCH: 12,
    ApiKey.METADATA: 12,
    ApiKey.OFFSET_COMMIT: 8,
    ApiKey.OFFSET_FETCH: 8,
    ApiKey.INIT_PRODUCER_ID: 4,
    ApiKey.FIND_COORDINATOR: 4,
    ApiKey.CREATE_TOPICS: 7,
    ApiKey.DELETE_TOPICS: 6,
}
CONNECT_MS_MAX: Final = 2_000
REQUEST_MS_MAX: Final = 5_000
PAUSE_MS_MAX: Final = 200
SURELY_REFUSED: Final = frozenset(
    {ErrorCode.not_enough_replicas, ErrorCode.unknown_topic_or_partition, ErrorCode.fenced_leader_epoch, ErrorCode.invalid_record}
)


class Gone(Exception):
    """Whom the client needs can't be reached or found just now."""


class Client:
    """Connections and what is known of the cluster; subclasses do the work. `process` names it in the history."""

    def __init__(self, process: str, network: Network, bootstrap: Callable[[], Sequence[int]], recorder: Recorder, chance: random.Random) -> None:
        self.process = process
        self.recorder = recorder
        self.chance = chance
        self._network = network
        self._bootstrap = bootstrap
        self._connections: dict[int, PeerConnection] = {}
        self._leaders: dict[tuple[str, int], int] = {}
        self._ports: dict[int, int] = {}

    async def pause(self, ms_max: int = PAUSE_MS_MAX) -> None:
        await asyncio.sleep(self.chance.uniform(1, ms_max) / 1000)

    async def ask(self, port: int, api_key: int, fields: dict[str, Any], *, timeout_ms: int = REQUEST_MS_MAX) -> Fields:
        """Raises PeerUnreachable: the request may have had its effect."""
        connection = self._connections.get(port)
        if connection is None or connection.closed:
            connection = await PeerConnection.open(self._network, "127.0.0.1", port, client_id=self.process, timeout_ms=CONNECT_MS_MAX)
            self._connections[port] = connection
        return await connection.request(api_key, fields, version=VERSION[ApiKey(api_key)], timeout_ms=timeout_ms)

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
                self._leaders[topic, found.partition_index] = found.leader_id
        leader = self._leaders.get((topic, partition), -1)
        if leader not in self._ports:
            self._leaders.pop((topic, partition), None)
            raise Gone(f"{topic}-{partition} has no leader")
        return self._ports[leader]

    def forget_leader(self, topic: str, partition: int) -> None:
        self._leaders.pop((topic, partition), None)


class Admin(Client):
    async def create_topic(self, topic: str, *, partitions: int, replicas: int, configs: dict[str, str]) -> None:
        """Insist until the topic is there."""
        wanted = {
            "name": topic,
            "num_partitions": partitions,
            "replication_factor": replicas,
            "configs": [{"name": name, "value": value} for name, value in configs.items()],
        }
        while True:
            try:
                answer = await self.ask_anyone(ApiKey.CREATE_TOPICS, {"topics": [wanted], "timeout": REQUEST_MS_MAX})
                if answer.topics[0].error_code in (ErrorCode.none, ErrorCode.topic_already_exists):
                    return
            except Gone:
                pass
            await self.pause()


class Producer(Client):
    """Sends one unique value at a time to one partition; idempotent ones insist on it until it is settled or time is up."""

    insist_ms = 20_000

    def __init__(self, *args: Any, topic: str, partition: int, acks: int, idempotent: bool) -> None:
        super().__init__(*args)
        self.topic = topic
        self.partition = partition
        self.acks = acks
        self.idempotent = idempotent
        self._producer: tuple[int, int] | None = None
        self._sequence = 0

    async def run(self, *, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            if self.idempotent and self._producer is None and not await self._init_producer():
                await self.pause()
                continue
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
        return True

    async def _send_one(self) -> None:
        value = self.recorder.next_value()
        operation = self.recorder.invoke(
            "send",
            self.process,
            partition=f"{self.topic}-{self.partition}",
            value=value,
            acks={-1: "all"}.get(self.acks, str(self.acks)),
            ordered=self.idempotent,
            idempotent=self.idempotent,
        )
        outcome, offset = await self._settle(self._batch(value))
        self.recorder.end(operation, outcome, **({"offset": offset} if offset >= 0 else {}))
        if self.idempotent:
            if outcome == "ok":
                self._sequence += 1
            else:
                self._producer = None  # Nobody knows which sequence the broker has: begin anew, as clients do.

    def _batch(self, value: int) -> bytes:
        record = Record(0, 1_700_000_000_000, None, str(value).encode(), ())
        if self._producer is None:
            return encode_batch([record])
        return encode_batch([record], producer_id=self._producer[0], producer_epoch=self._producer[1], base_sequence=self._sequence)

    async def _settle(self, batch: bytes) -> tuple[str, int]:
        """(outcome, offset or -1); a plain producer tries once, so that it makes no duplicates itself."""
        deadline_s = asyncio.get_running_loop().time() + self.insist_ms / 1000
        maybe_happened = False
        while asyncio.get_running_loop().time() < deadline_s:
            try:
                port = await self.leader_port(self.topic, self.partition)
            except Gone:
                await self.pause()
                continue
            try:
                code, offset = await self._produce(port, batch)
            except PeerUnreachable:
                code, offset = ErrorCode.unknown_server_error, -1
            if code == ErrorCode.none:
                return "ok", offset
            self.forget_leader(self.topic, self.partition)
            maybe_happened = maybe_happened or code not in SURELY_REFUSED
            if not self.idempotent or code in (ErrorCode.out_of_order_sequence_number, ErrorCode.unknown_producer_id):
                break
            await self.pause()
        return ("info" if maybe_happened else "fail"), -1

    async def _produce(self, port: int, batch: bytes) -> tuple[int, int]:
        fields = {
            "transactional_id": None,
            "acks": self.acks,
            "timeout": REQUEST_MS_MAX - 1000,
            "topic_data": [{"name": self.topic, "partition_data": [{"index": self.partition, "records": batch}]}],
        }
        answer = await self.ask(port, ApiKey.PRODUCE, fields)
        result = answer.responses[0].partition_responses[0]
        return result.error_code, result.base_offset


class Consumer(Client):
    """Reads one partition from its beginning, and commits its position to a group that only it uses."""

    def __init__(self, *args: Any, topic: str, partition: int, group: str | None = None) -> None:
        super().__init__(*args)
        self.topic = topic
        self.partition = partition
        self.group = group
        self.position = 0

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.partition}"

    async def run(self, *, until_s: float) -> None:
        while asyncio.get_running_loop().time() < until_s:
            await self.poll()
            if self.group is not None and self.chance.random() < 0.2:
                await self.commit()
            if self.group is not None and self.chance.random() < 0.1:
                await self.read_committed_offset()
            await self.pause(300)

    async def poll(self) -> list[tuple[str, int, int]]:
        operation = self.recorder.invoke("poll", self.process)
        try:
            _, records = await self.fetch()
        except (Gone, PeerUnreachable):
            self.forget_leader(self.topic, self.partition)
            self.recorder.end(operation, "info")
            return []
        self.recorder.end(operation, "ok", records=records)
        return records

    async def fetch(self) -> tuple[int, list[tuple[str, int, int]]]:
        """(high watermark, records from `position` on); the position moves on. Raises Gone, PeerUnreachable."""
        port = await self.leader_port(self.topic, self.partition)
        target = {"partition": self.partition, "current_leader_epoch": -1, "fetch_offset": self.position, "partition_max_bytes": 1 << 20}
        fields = {
            "replica_id": -1,
            "max_wait": 100,
            "min_bytes": 1,
            "max_bytes": 1 << 22,
            "isolation_level": 0,
            "topics": [{"topic": self.topic, "partitions": [target]}],
        }
        answer = await self.ask(port, ApiKey.FETCH, fields)
        found = answer.responses[0].partitions[0]
        if found.error_code != ErrorCode.none:
            raise Gone(f"fetch of {self.name}: {found.error_code!r}")
        records = [
            (self.name, record.offset, int(record.value or b"0")) for record in decode_records(found.records or b"") if record.offset >= self.position
        ]
        if records:
            self.position = records[-1][1] + 1
        return found.high_watermark, records

    async def read_to_end(self) -> None:
        """The final read, when all faults are healed: insists until the end is reached."""
        self.position = 0
        operation = self.recorder.invoke("final_read", self.process, partition=self.name)
        everything: list[tuple[str, int, int]] = []
        while True:
            try:
                high_watermark, records = await self.fetch()
            except (Gone, PeerUnreachable):
                self.forget_leader(self.topic, self.partition)
                await self.pause()
                continue
            everything += records
            if self.position >= high_watermark:
                break
        self.recorder.end(operation, "ok", records=everything)

    async def _coordinator(self) -> int:
        answer = await self.ask_anyone(ApiKey.FIND_COORDINATOR, {"key_type": 0, "coordinator_keys": [self.group]})
        found = answer.coordinators[0]
        if found.error_code != ErrorCode.none:
            raise Gone(f"no coordinator: {found.error_code!r}")
        port: int = found.port
        return port

    async def commit(self) -> None:
        operation = self.recorder.invoke("commit", self.process, group=self.group, offsets={self.name: self.position})
        target = {"partition_index": self.partition, "committed_offset": self.position, "committed_metadata": ""}
        fields = {
            "group_id": self.group,
            "generation_id_or_member_epoch": -1,
            "member_id": "",
            "topics": [{"name": self.topic, "partitions": [target]}],
        }
        try:
            port = await self._coordinator()
        except Gone:
            self.recorder.end(operation, "fail")
            return
        try:
            answer = await self.ask(port, ApiKey.OFFSET_COMMIT, fields)
            code = answer.topics[0].partitions[0].error_code
            self.recorder.end(operation, "ok" if code == ErrorCode.none else "info")
        except PeerUnreachable:
            self.recorder.end(operation, "info")

    async def read_committed_offset(self) -> None:
        operation = self.recorder.invoke("committed", self.process, group=self.group)
        wanted = {"group_id": self.group, "topics": [{"name": self.topic, "partition_indexes": [self.partition]}]}
        try:
            answer = await self.ask(await self._coordinator(), ApiKey.OFFSET_FETCH, {"groups": [wanted]})
        except (Gone, PeerUnreachable):
            self.recorder.end(operation, "info")
            return
        group = answer.groups[0]
        if group.error_code != ErrorCode.none or group.topics[0].partitions[0].error_code != ErrorCode.none:
            self.recorder.end(operation, "info")
            return
        self.recorder.end(operation, "ok", offsets={self.name: group.topics[0].partitions[0].committed_offset})
