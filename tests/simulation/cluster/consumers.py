"""Members of the consumer protocol (KIP-848): they heartbeat, take and give up what they are told to, poll and commit."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Final

from raftlog.errors import ErrorCode
from raftlog.network.peers import PeerUnreachable
from raftlog.protocol.messages import ApiKey, Fields
from tests.simulation.cluster.clients import Client, Consumer, Gone
from tests.simulation.cluster.groups import HEARTBEAT_S, OFFSETS_TOPIC, commit_offsets, coordinator_of, offsets_partition, read_offsets

SESSION_MS: Final = 6000
REBALANCE_MS: Final = 60_000  # Members give up at once: nobody is ever out for being slow at that.
CLAIM_S: Final = 0.5 * SESSION_MS / 1000  # A session lasts at least so long after its last heartbeat, by anybody's clock.
COMMIT_VERSION: Final = 9
# The coordinator says that this is no member of its, or not at this epoch: whatever it had is another's now.
FENCED: Final = frozenset({ErrorCode.unknown_member_id, ErrorCode.fenced_member_epoch, ErrorCode.group_id_not_found})


class ConsumerMember(Client):
    """A member that owns what it was told to own, until it gives it up, crashes, or its session may have ended.

    For so long it claims its partitions with the recorder, which knows of no two claims on one. As in Kafka, a coordinator
    that was deposed and can't know it yet still answers: by such an answer no claim is renewed.
    """

    def __init__(self, *args: Any, group: str, topic: str, by_regex: bool = False) -> None:
        super().__init__(*args)
        self._args = args
        self.group = group
        self.topic = topic
        self._subscription = {"subscribed_topic_names": [], "subscribed_topic_regex": topic} if by_regex else {"subscribed_topic_names": [topic]}
        self._topic_id: uuid.UUID | None = None
        self._consumers: dict[int, Consumer] = {}
        self._crash()

    def _crash(self) -> None:
        """Its successor has another member id and knows nothing."""
        self._give_up(set(self._consumers))
        self._member_id = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        self._epoch = 0

    @property
    def _name(self) -> str:
        return f"{self.process}/{self._member_id}"

    async def run(self, *, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            try:
                await self._live(await coordinator_of(self, self.group), until_s)
            except (Gone, PeerUnreachable):
                self.coordinators.pop(self.group, None)
                await self.pause()

    async def _live(self, port: int, until_s: float) -> None:
        """Heartbeat, poll and commit with one coordinator. Raises Gone, PeerUnreachable."""
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await self._heartbeat(port)
            for consumer in list(self._consumers.values()):
                await consumer.poll()
            if self._consumers and self.chance.random() < 0.7:
                await self._commit()
            await asyncio.sleep(HEARTBEAT_S)
            what = self.chance.random()
            if what < 0.03:
                await asyncio.sleep(1.5 * SESSION_MS / 1000)  # So busy that the group goes on without it, and it does not know.
                if self._consumers:
                    await self._commit()
            elif what < 0.06:
                self._crash()
            elif what < 0.09:
                await self._leave(port)

    async def _heartbeat(self, port: int) -> None:
        """Say all there is to say, so that the answer does too."""
        owned = [{"topic_id": self._topic_id, "partitions": sorted(self._consumers)}] if self._consumers else []
        asked_s = asyncio.get_running_loop().time()
        answer = await self._ask(port, self._epoch, rebalance_timeout=REBALANCE_MS, topic_partitions=owned, **self._subscription)
        if answer.error_code in FENCED:
            self._give_up(set(self._consumers))
            self._epoch = 0
            return
        if answer.error_code != ErrorCode.none:
            raise Gone(ErrorCode(answer.error_code).name)
        if answer.member_epoch < self._epoch:
            self.recorder.complain(f"{self._name} went back from epoch {self._epoch} to {answer.member_epoch}")
        self._epoch = answer.member_epoch
        topics = () if answer.assignment is None else answer.assignment.topic_partitions
        for topic in topics:
            self._topic_id = topic.topic_id
        assigned = {partition for topic in topics for partition in topic.partitions}
        self._give_up(set(self._consumers) - assigned)
        if not self.oracle.is_deposed(port, OFFSETS_TOPIC, offsets_partition(self.group)):
            self.recorder.claim(self.group, self._name, self._places(assigned), until_s=asked_s + CLAIM_S)
        await self._take(assigned - set(self._consumers))

    async def _take(self, partitions: set[int]) -> None:
        """Go on where the group has committed. Raises Gone when that is not known; the next heartbeat says that these are not owned."""
        if not partitions:
            return
        offsets = await read_offsets(self, self.group, [(self.topic, partition) for partition in sorted(partitions)])
        if offsets is None:
            raise Gone("its offsets are not known")
        self.recorder.end(self.recorder.invoke("reposition", self.process), "ok")
        for partition in sorted(partitions):
            consumer = Consumer(*self._args, topic=self.topic, partition=partition)
            consumer.position = max(offsets[self.topic, partition], 0)
            self._consumers[partition] = consumer

    def _give_up(self, partitions: set[int]) -> None:
        for partition in partitions:
            del self._consumers[partition]
        if partitions:
            self.recorder.disclaim(self.group, self._name, self._places(partitions))

    async def _commit(self) -> None:
        positions = {(self.topic, partition): consumer.position for partition, consumer in self._consumers.items()}
        asked_s = asyncio.get_running_loop().time()
        code = await commit_offsets(self, self.group, positions, generation=self._epoch, member_id=self._member_id, version=COMMIT_VERSION)
        if code == ErrorCode.none:
            self.recorder.owner_committed(self.group, self._name, self._places(set(self._consumers)), asked_s=asked_s)

    async def _leave(self, port: int) -> None:
        self._give_up(set(self._consumers))
        member_id, self._epoch = self._member_id, 0
        self._crash()
        await self._ask(port, -1, member_id=member_id)

    def _places(self, partitions: set[int]) -> list[str]:
        return [f"{self.topic}-{partition}" for partition in sorted(partitions)]

    async def _ask(self, port: int, epoch: int, **fields: Any) -> Fields:
        said = {"group_id": self.group, "member_id": self._member_id, "member_epoch": epoch, "topic_partitions": None, **fields}
        return await self.ask(port, ApiKey.CONSUMER_GROUP_HEARTBEAT, said)
