"""What clients do with consumer groups: offsets, and a small member that joins, shares partitions out, polls and commits."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, NamedTuple

from raftlog.errors import ErrorCode
from raftlog.network.peers import PeerUnreachable
from raftlog.protocol.messages import ApiKey
from tests.simulation.cluster.clients import Client, Consumer, Gone

Partition = tuple[str, int]
OFFSETS_TOPIC: Final = "__consumer_offsets"
OFFSETS_PARTITIONS: Final = 2
SESSION_MS: Final = 6000
HEARTBEAT_S: Final = 0.7
# The coordinator names these before it writes anything.
NOT_COMMITTED: Final = frozenset(
    {
        ErrorCode.illegal_generation,
        ErrorCode.unknown_member_id,
        ErrorCode.rebalance_in_progress,
        ErrorCode.stale_member_epoch,
        ErrorCode.group_id_not_found,
    }
)


def offsets_partition(group: str) -> int:
    """Which partition of the offsets topic keeps the group: the hash that Java gives an ASCII string."""
    value = 0
    for letter in group:
        value = (31 * value + ord(letter)) % 2**32
    return abs(value - 2**32 if value >= 2**31 else value) % OFFSETS_PARTITIONS


async def coordinator_of(client: Client, group: str) -> int:
    """Its port, kept until it refuses. Raises Gone."""
    known = client.coordinators.get(group)
    if known is not None:
        return known
    answer = await client.ask_anyone(ApiKey.FIND_COORDINATOR, {"key_type": 0, "coordinator_keys": [group]})
    found = answer.coordinators[0]
    if found.error_code != ErrorCode.none:
        raise Gone(f"no coordinator: {found.error_code!r}")
    port: int = found.port
    client.coordinators[group] = port
    return port


async def commit_offsets(
    client: Client, group: str, offsets: dict[Partition, int], *, generation: int = -1, member_id: str = "", version: int | None = None
) -> ErrorCode:
    operation = client.recorder.invoke("commit", client.process, group=group, offsets={f"{t}-{p}": offset for (t, p), offset in offsets.items()})
    try:
        port = await coordinator_of(client, group)
    except Gone:
        client.recorder.end(operation, "fail")
        return ErrorCode.coordinator_not_available
    newest_generation = client.recorder.generations.get(group, -1)
    topics: dict[str, list[dict[str, Any]]] = {}
    for (topic, partition), offset in offsets.items():
        topics.setdefault(topic, []).append({"partition_index": partition, "committed_offset": offset, "committed_metadata": ""})
    fields = {
        "group_id": group,
        "generation_id_or_member_epoch": generation,
        "member_id": member_id,
        "topics": [{"name": topic, "partitions": partitions} for topic, partitions in topics.items()],
    }
    try:
        answer = await client.ask(port, ApiKey.OFFSET_COMMIT, fields, version=version)
    except PeerUnreachable:
        client.coordinators.pop(group, None)
        client.recorder.end(operation, "info")
        return ErrorCode.request_timed_out
    codes = {item.error_code for topic in answer.topics for item in topic.partitions}
    code: ErrorCode = max(codes)
    if code != ErrorCode.none:
        client.coordinators.pop(group, None)
    if code == ErrorCode.none and generation < newest_generation:
        client.recorder.complain(f"{client.process} committed in generation {generation} of {group}, whose generation {newest_generation} had begun")
    client.recorder.end(operation, "ok" if codes == {ErrorCode.none} else "fail" if codes <= NOT_COMMITTED else "info")
    return code


class FoundOffsets(NamedTuple):
    """What a coordinator answered, -1 where there is no offset.

    `is_deposed`: as in Kafka, a coordinator that was deposed and can't know it yet answers with what it knew: such an answer
    is not judged. One that knows better and still answers is.
    """

    offsets: dict[Partition, int]
    is_deposed: bool


async def read_offsets(client: Client, group: str, partitions: list[Partition]) -> dict[Partition, int] | None:
    """The group's offsets, -1 where there is none; None when they could not be had."""
    operation = client.recorder.invoke("committed", client.process, group=group)
    found = await fetch_offsets(client, group, partitions)
    if found is None:
        client.recorder.end(operation, "info")
        return None
    told = {f"{topic}-{partition}": offset for (topic, partition), offset in found.offsets.items()}
    client.recorder.end(operation, "info" if found.is_deposed else "ok", offsets=told)
    return found.offsets


async def fetch_offsets(client: Client, group: str, partitions: list[Partition]) -> FoundOffsets | None:
    """None when they could not be had."""
    topics: dict[str, list[int]] = {}
    for topic, partition in partitions:
        topics.setdefault(topic, []).append(partition)
    wanted = {"group_id": group, "topics": [{"name": topic, "partition_indexes": indexes} for topic, indexes in topics.items()]}
    try:
        port = await coordinator_of(client, group)
        is_deposed = client.oracle.is_deposed(port, OFFSETS_TOPIC, offsets_partition(group))
        answer = await client.ask(port, ApiKey.OFFSET_FETCH, {"groups": [wanted]})
    except (Gone, PeerUnreachable):
        client.coordinators.pop(group, None)
        return None
    found = answer.groups[0]
    items = [(topic.name, item) for topic in found.topics for item in topic.partitions]
    if found.error_code != ErrorCode.none or any(item.error_code != ErrorCode.none for _, item in items):
        client.coordinators.pop(group, None)
        return None
    return FoundOffsets({(topic, item.partition_index): item.committed_offset for topic, item in items}, is_deposed)


class LoneConsumer(Consumer):
    """A consumer with assigned partitions that keeps its position in a group that only it uses."""

    def __init__(self, *args: Any, topic: str, partition: int, group: str) -> None:
        super().__init__(*args, topic=topic, partition=partition)
        self.group = group

    async def after_poll(self) -> None:
        if self.chance.random() < 0.2:
            await commit_offsets(self, self.group, {(self.topic, self.partition): self.position})
        if self.chance.random() < 0.1:
            await read_offsets(self, self.group, [(self.topic, self.partition)])


class Auditor(Client):
    """Reads all groups' offsets, from the coordinators that it once found for as long as they answer."""

    def __init__(self, *args: Any, groups: list[tuple[str, list[Partition]]]) -> None:
        super().__init__(*args)
        self._groups = groups

    async def run(self, *, until_s: float) -> None:
        while asyncio.get_running_loop().time() < until_s:
            await read_offsets(self, *self.chance.choice(self._groups))
            await self.pause(500)


class Rejoin(Exception):
    """The member must join anew."""


class Member(Client):
    """A member of a group: its generation's leader shares the partitions out; each commits what it has read."""

    def __init__(self, *args: Any, group: str, topic: str, partitions: int) -> None:
        super().__init__(*args)
        self._args = args
        self.group = group
        self.topic = topic
        self.partitions = partitions
        self._member_id = ""
        self._generation = -1

    async def run(self, *, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            try:
                port = await coordinator_of(self, self.group)
                await self._consume(port, await self._join(port), until_s)
            except (Gone, PeerUnreachable, Rejoin):
                self.coordinators.pop(self.group, None)
                await self.pause()
            if self.chance.random() < 0.1:
                self._member_id = ""  # It crashed, and its successor knows nothing of it.

    async def _join(self, port: int) -> list[int]:
        """The partitions it gets. Raises Rejoin, PeerUnreachable."""
        fields: dict[str, Any] = {
            "group_id": self.group,
            "session_timeout": SESSION_MS,
            "rebalance_timeout": SESSION_MS,
            "member_id": self._member_id,
            "protocol_type": "consumer",
            "protocols": [{"name": "range", "metadata": b""}],
        }
        joined = await self.ask(port, ApiKey.JOIN_GROUP, fields, timeout_ms=2 * SESSION_MS)
        if joined.error_code != ErrorCode.none:
            self._refused(joined.error_code)
        self._member_id, self._generation = joined.member_id, joined.generation_id
        members = [member.member_id for member in joined.members]
        shares = {member: [p for p in range(self.partitions) if p % len(members) == place] for place, member in enumerate(members)}
        synced = await self.ask(
            port,
            ApiKey.SYNC_GROUP,
            {
                "group_id": self.group,
                "generation_id": self._generation,
                "member_id": self._member_id,
                "assignments": [{"member_id": member, "assignment": json.dumps(share).encode()} for member, share in shares.items()],
            },
            timeout_ms=2 * SESSION_MS,
        )
        if synced.error_code != ErrorCode.none:
            self._refused(synced.error_code)
        assigned: list[int] = json.loads(bytes(synced.assignment))
        self.recorder.assigned(self.group, self._generation, f"{self.process}/{self._member_id}", [f"{self.topic}-{p}" for p in assigned])
        return assigned

    def _refused(self, code: ErrorCode) -> None:
        if code in (ErrorCode.unknown_member_id, ErrorCode.fenced_instance_id):
            self._member_id = ""
        raise Rejoin(code.name)

    async def _consume(self, port: int, assigned: list[int], until_s: float) -> None:
        """Poll and commit until the group is rebalanced. Raises Rejoin, PeerUnreachable."""
        self.recorder.end(self.recorder.invoke("reposition", self.process), "ok")
        offsets = await read_offsets(self, self.group, [(self.topic, p) for p in assigned]) if assigned else {}
        if offsets is None:
            raise Rejoin("its offsets are not known")
        consumers = {}
        for p in assigned:
            consumers[p] = Consumer(*self._args, topic=self.topic, partition=p)
            consumers[p].position = max(offsets[self.topic, p], 0)
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            for consumer in consumers.values():
                await consumer.poll()
            if consumers and self.chance.random() < 0.7:
                positions = {(self.topic, p): consumer.position for p, consumer in consumers.items()}
                code = await commit_offsets(self, self.group, positions, generation=self._generation, member_id=self._member_id)
                if code in NOT_COMMITTED:
                    self._refused(code)
            await asyncio.sleep(HEARTBEAT_S)
            if self.chance.random() < 0.03:
                await asyncio.sleep(1.5 * SESSION_MS / 1000)  # So busy that the group goes on without it, and it does not know.
                continue
            fields = {"group_id": self.group, "generation_id": self._generation, "member_id": self._member_id}
            beat = await self.ask(port, ApiKey.HEARTBEAT, fields)
            if beat.error_code != ErrorCode.none:
                self._refused(beat.error_code)
            if self.chance.random() < 0.03:
                await self.ask(port, ApiKey.LEAVE_GROUP, {"group_id": self.group, "member_id": self._member_id})
                self._member_id = ""
                raise Rejoin("it left")
