"""A client that commits offsets for groups without members and deletes them again (OffsetDelete).

Each offset is a register that only this client writes, one request at a time. What was acknowledged last, a commit or a
deletion, is what a read must give; what became of a request without an answer nobody knows, so after one the client goes on
with another group, lest it comes late. The groups that were left are still read.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from raftlog.errors import ErrorCode
from raftlog.network.peers import PeerUnreachable
from raftlog.protocol.messages import ApiKey
from tests.simulation.cluster.clients import Client, Gone
from tests.simulation.cluster.groups import OFFSETS_TOPIC, Partition, commit_offsets, coordinator_of, fetch_offsets, offsets_partition

NO_OFFSET: Final = -1
PAUSE_MS_MAX: Final = 1_500


class OffsetEraser(Client):
    """The offsets of partitions 0 and 1 of `topic`."""

    def __init__(self, *args: Any, topic: str) -> None:
        super().__init__(*args)
        self._places: list[Partition] = [(topic, 0), (topic, 1)]
        self._groups: list[dict[Partition, set[int]]] = []  # What a read may give: one value, until a request had no answer.
        self._next_offset = 0
        self._leave()

    def _leave(self) -> None:
        self._groups.append({place: {NO_OFFSET} for place in self._places})

    def _name(self, index: int) -> str:
        return f"erased-{index}"

    async def run(self, *, until_s: float) -> None:
        while asyncio.get_running_loop().time() < until_s:
            await self.pause(PAUSE_MS_MAX)
            index = len(self._groups) - 1
            try:
                await self._turn(index)
            except (Gone, PeerUnreachable):
                self.coordinators.pop(self._name(index), None)

    async def _turn(self, index: int) -> None:
        chance = self.chance
        places = self._places if chance.random() < 0.3 else [chance.choice(self._places)]
        match chance.choices(("commit", "delete", "read"), (4, 4, 3))[0]:
            case "commit":
                await self._commit(index, places)
            case "delete":
                await self._delete(index, places)
            case _:
                await self._read(chance.randint(max(0, index - 3), index))

    async def _commit(self, index: int, places: list[Partition]) -> None:
        await coordinator_of(self, self._name(index))
        offsets = {}
        for place in places:
            self._next_offset += 1
            offsets[place] = self._next_offset
        code = await commit_offsets(self, self._name(index), offsets)
        self._settle(index, offsets, is_sure=code == ErrorCode.none)

    async def _delete(self, index: int, places: list[Partition]) -> None:
        """A coordinator that was deposed and can't know it yet may find nothing to delete, and says so without asking anybody, as Kafka's."""
        group = self._name(index)
        port = await coordinator_of(self, group)
        is_deposed = self.oracle.is_deposed(port, OFFSETS_TOPIC, offsets_partition(group))
        operation = self.recorder.invoke("delete_offsets", self.process, group=group, partitions=[f"{topic}-{number}" for topic, number in places])
        topics = [{"name": topic, "partitions": [{"partition_index": number} for name, number in places if name == topic]} for topic, _ in places[:1]]
        code = ErrorCode.request_timed_out
        try:
            answer = await self.ask(port, ApiKey.OFFSET_DELETE, {"group_id": group, "topics": topics})
            code = max((ErrorCode(item.error_code) for topic in answer.topics for item in topic.partitions), default=ErrorCode(answer.error_code))
        except PeerUnreachable:
            self.coordinators.pop(group, None)
        if code == ErrorCode.group_id_not_found and not is_deposed:
            self._judge(index, dict.fromkeys(places, NO_OFFSET))
        elif code not in (ErrorCode.none, ErrorCode.group_id_not_found):
            self.coordinators.pop(group, None)
        is_sure = code in (ErrorCode.none, ErrorCode.group_id_not_found) and not is_deposed
        self.recorder.end(operation, "ok" if is_sure else "info", error=code.name)
        self._settle(index, dict.fromkeys(places, NO_OFFSET), is_sure=is_sure)

    def _settle(self, index: int, offsets: dict[Partition, int], *, is_sure: bool) -> None:
        for place, offset in offsets.items():
            self._groups[index][place] = {offset} if is_sure else self._groups[index][place] | {offset}
        if not is_sure:
            self._leave()

    async def _read(self, index: int) -> bool:
        """Whether there was an answer that may be judged."""
        found = await fetch_offsets(self, self._name(index), self._places)
        if found is None or found.is_deposed:
            return False
        self._judge(index, found.offsets)
        return True

    def _judge(self, index: int, offsets: dict[Partition, int]) -> None:
        for place, offset in offsets.items():
            allowed = self._groups[index][place]
            if offset not in allowed:
                self.recorder.complain(f"group {self._name(index)} has {offset} for {place[0]}-{place[1]}, it can only have {sorted(allowed)}")

    async def read_to_end(self) -> None:
        """All groups, when all is healed; insists."""
        for index in range(len(self._groups)):
            while not await self._read(index):
                await self.pause()
