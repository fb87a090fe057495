"""The creation of `__consumer_offsets`, when the first client looks for a coordinator.

It gets `offsets.topic.replication.factor` replicas, or as many as there are brokers: fewer than the setting asks for is
what somebody with a single node on a laptop expects, but a broker that merely starts a little later is waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

from raftlog.broker.metadata import MetadataFollower
from raftlog.config import Settings
from raftlog.core.metadata.image import MetadataImage
from raftlog.environment import Clock
from raftlog.errors import ApiError, CoordinatorNotAvailable, ErrorCode, RequestTimedOut
from raftlog.ids import GROUP_METADATA_TOPIC, NO_NODE
from raftlog.protocol.apis import ApiKey

CREATE_TIMEOUT_MS: Final = 10_000
LEADERS_WAIT_MS: Final = 2_000  # FindCoordinator waits so long for the topic; then its client asks again.
MISSING_BROKERS_PATIENCE_MS: Final = 5_000  # Brokers that the configuration names get so long to appear.
RETRY_PAUSE_MS: Final = 100

logger = logging.getLogger(__name__)


class ControllerRequests(Protocol):
    """What is needed of `broker.channel.ControllerChannel`."""

    async def request(self, api_key: int, fields: Mapping[str, Any], *, timeout_ms: int) -> Any: ...


class OffsetsTopic:
    """Creates the topic once; later calls of `ensure` cost a look at the image."""

    def __init__(self, settings: Settings, *, metadata: MetadataFollower, channel: ControllerRequests, clock: Clock) -> None:
        self._settings = settings
        self._metadata = metadata
        self._channel = channel
        self._clock = clock
        self._creating: asyncio.Task[None] | None = None

    async def ensure(self) -> None:
        """Return when the topic has leaders. Raises CoordinatorNotAvailable when it has none within LEADERS_WAIT_MS."""
        if _is_ready(self._metadata.image):
            return
        if GROUP_METADATA_TOPIC not in self._metadata.image.topics and self._creating is None:
            self._creating = asyncio.get_running_loop().create_task(self._create(), name=f"create {GROUP_METADATA_TOPIC}")
            self._creating.add_done_callback(self._created)
        try:
            await self._metadata.wait_for(_is_ready, timeout_ms=LEADERS_WAIT_MS)
        except RequestTimedOut:
            if GROUP_METADATA_TOPIC not in self._metadata.image.topics:
                raise CoordinatorNotAvailable(f"{GROUP_METADATA_TOPIC} is being created") from None
            # Some partition lacks a leader, not necessarily the one that is asked for.

    async def close(self) -> None:
        if self._creating is not None:
            self._creating.cancel()
            await asyncio.wait([self._creating])

    def _created(self, task: asyncio.Task[None]) -> None:
        self._creating = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("%s could not be created: %s", GROUP_METADATA_TOPIC, error)

    async def _create(self) -> None:
        """Raises RequestTimedOut, CoordinatorNotAvailable; the next client that asks starts anew."""
        replicas = await self._replica_count()
        topic = {
            "name": GROUP_METADATA_TOPIC,
            "num_partitions": self._settings.offsets_topic_num_partitions,
            "replication_factor": replicas,
            "assignments": (),
            "configs": offsets_topic_configs(self._settings),
        }
        fields = {"topics": (topic,), "timeout": CREATE_TIMEOUT_MS, "validate_only": False}
        answer = await self._channel.request(ApiKey.CREATE_TOPICS, fields, timeout_ms=CREATE_TIMEOUT_MS)
        for result in answer.topics:
            if result.error_code not in (ErrorCode.none, ErrorCode.topic_already_exists):
                raise CoordinatorNotAvailable(f"{ErrorCode(result.error_code).name}: {result.error_message}")

    async def _replica_count(self) -> int:
        """As many live brokers as the setting asks for, or as have come when patience ends."""
        settings = self._settings
        deadline_ms = self._clock.monotonic_ms() + MISSING_BROKERS_PATIENCE_MS
        while True:
            image = self._metadata.image
            # On combined nodes the voters tell how many brokers there will be before the last has registered.
            expected = max(len(image.brokers), len(settings.voters) if settings.is_controller else 0)
            wanted = min(settings.offsets_topic_replication_factor, expected)
            live = sum(not broker.fenced for broker in image.brokers.values())
            if live >= wanted or (live and self._clock.monotonic_ms() >= deadline_ms):
                return min(live, settings.offsets_topic_replication_factor)
            try:
                await self._metadata.wait_for(lambda newer, seen=image: newer is not seen, timeout_ms=RETRY_PAUSE_MS)  # type: ignore[misc]
            except ApiError:
                if self._clock.monotonic_ms() >= deadline_ms + CREATE_TIMEOUT_MS:
                    raise CoordinatorNotAvailable("no broker is live") from None


def offsets_topic_configs(settings: Settings) -> list[dict[str, str]]:
    """For CreateTopics: of each group and offset only the last record counts."""
    configs = {"cleanup.policy": "compact", "segment.bytes": str(settings.offsets_topic_segment_bytes)}
    return [{"name": name, "value": value} for name, value in configs.items()]


def _is_ready(image: MetadataImage) -> bool:
    topic = image.topics.get(GROUP_METADATA_TOPIC)
    return topic is not None and all(partition.leader != NO_NODE for partition in topic.partitions.values())
