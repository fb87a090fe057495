"""Producer ids for idempotent producers, from blocks that the controller gives out: each id once in the cluster's life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

from raftlog.broker.metadata import MetadataFollower
from raftlog.errors import ApiError, CoordinatorLoadInProgress, error_for
from raftlog.ids import NodeId, ProducerId
from raftlog.protocol.apis import ApiKey

BLOCK_TIMEOUT_MS: Final = 10_000  # How long a producer waits for a block; then it is told to try again.
WAITING_MAX: Final = 10_000  # Producers that wait for one block at the same time; more are told to try again.

logger = logging.getLogger(__name__)


class ControllerRequests(Protocol):
    async def request(self, api_key: int, fields: Mapping[str, Any], *, timeout_ms: int) -> Any: ...


class ProducerIds:
    """This broker's block. One that it did not use up when it stopped is lost, as in Kafka."""

    def __init__(self, *, node_id: NodeId, channel: ControllerRequests, metadata: MetadataFollower) -> None:
        self._node_id = node_id
        self._channel = channel
        self._metadata = metadata
        self._next: ProducerId = 0
        self._end: ProducerId = 0
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def take(self) -> ProducerId:
        """An id that nobody has. Raises CoordinatorLoadInProgress, which clients retry, while no controller gives a block."""
        if self._next == self._end:
            if self._waiting >= WAITING_MAX:
                raise CoordinatorLoadInProgress(f"{self._waiting} producers are waiting for producer ids")
            self._waiting += 1
            try:
                await self._wait_for_block()
            finally:
                self._waiting -= 1
        producer_id = self._next
        self._next += 1
        return producer_id

    async def _wait_for_block(self) -> None:
        async with self._lock:
            while self._next == self._end:
                try:
                    await self._allocate()
                except ApiError as error:
                    logger.warning("no producer ids from the controller: %s", error)
                    raise CoordinatorLoadInProgress(f"no producer ids from the controller: {error}") from error

    async def _allocate(self) -> None:
        broker = self._metadata.image.brokers.get(self._node_id)
        fields = {"broker_id": self._node_id, "broker_epoch": -1 if broker is None else broker.epoch}
        answer = await self._channel.request(ApiKey.ALLOCATE_PRODUCER_IDS, fields, timeout_ms=BLOCK_TIMEOUT_MS)
        if answer.error_code:
            raise error_for(answer.error_code)
        self._next = answer.producer_id_start
        self._end = answer.producer_id_start + answer.producer_id_len
