"""A client that creates and deletes topics of the same name again and again, and writes to them meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tests.simulation.cluster.clients import Admin, Consumer, Producer

TOPIC: Final = "churn"
LIFE_S_MAX: Final = 6.0


class TopicChurn:
    """`name` is what the history calls the living topic's partition, "" while there is none that was acknowledged.

    `is_settled`: nothing that was asked for can happen later.
    """

    def __init__(self, *args: Any) -> None:
        self._args = args
        self._process = args[0]
        self._admin = Admin(*args)
        self._count = 0
        self.name = ""

    @property
    def is_settled(self) -> bool:
        return self._admin.unanswered == 0

    async def run(self, *, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        chance = self._admin.chance
        while loop.time() < until_s:
            self._count += 1
            topic_id = await self._admin.create_topic(TOPIC, partitions=1, replicas=3, configs={"min.insync.replicas": "2"})
            self.name = f"{TOPIC}-0 of life {self._count}"
            args = (f"{self._process}.{self._count}", *self._args[1:])
            producer = Producer(*args, topic=TOPIC, partition=0, acks=-1, idempotent=True, name=self.name)
            producer.insist_ms = 4_000
            await producer.run(until_s=min(until_s, loop.time() + chance.uniform(0.5, LIFE_S_MAX)))
            if loop.time() < until_s and chance.random() < 0.8:
                self.name = ""
                await self._admin.delete_topic(topic_id)
            else:
                break

    async def read_to_end(self) -> None:
        """The final read, where the topic was left alive."""
        if self.name:
            await Consumer("final churn", *self._args[1:], topic=TOPIC, partition=0, name=self.name).read_to_end()
