"""Topics that come into being because somebody asked for them: a client by Metadata, a coordinator for its own log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final

from raftlog.broker.channel import ControllerChannel
from raftlog.broker.offsets_topic import offsets_topic_configs
from raftlog.config import Settings
from raftlog.errors import ApiError, ErrorCode
from raftlog.ids import GROUP_METADATA_TOPIC, TopicName

CREATE_TOPICS: Final = 19
CREATE_TIMEOUT_MS: Final = 30_000  # Kafka's request.timeout.ms.
TOPICS_IN_FLIGHT_MAX: Final = 1000  # More names are not asked for now; clients ask again.

logger = logging.getLogger(__name__)


class AutoTopics:
    """Asks the active controller to create topics, each name at most once at a time; who asked does not wait."""

    def __init__(self, settings: Settings, channel: ControllerChannel) -> None:
        self._settings = settings
        self._channel = channel
        self._in_flight: set[TopicName] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def create(self, names: Iterable[TopicName]) -> None:
        """Have those of `names` created that are not being created already; the outcome shows in the metadata.

        The names must be legal. A refusal is logged; asking again tries again.
        """
        room = TOPICS_IN_FLIGHT_MAX - len(self._in_flight)
        wanted = [name for name in names if name not in self._in_flight][:room]
        if not wanted:
            return
        self._in_flight.update(wanted)
        task = asyncio.get_running_loop().create_task(self._create(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _create(self, names: list[TopicName]) -> None:
        try:
            fields = {"topics": [self._creatable(name) for name in names], "timeout": CREATE_TIMEOUT_MS, "validate_only": False}
            answer = await self._channel.request(CREATE_TOPICS, fields, timeout_ms=CREATE_TIMEOUT_MS)
            for topic in answer.topics:
                code = ErrorCode(topic.error_code)
                if code not in (ErrorCode.none, ErrorCode.topic_already_exists):
                    logger.info("topic %s was not created on demand: %s %s", topic.name, code.name, topic.error_message or "")
        except ApiError as error:
            logger.info("topics %s were not created on demand: %s", ", ".join(names), error)
        finally:
            self._in_flight.difference_update(names)

    def _creatable(self, name: TopicName) -> dict[str, Any]:
        settings = self._settings
        if name == GROUP_METADATA_TOPIC:
            return {
                "name": name,
                "num_partitions": settings.offsets_topic_num_partitions,
                "replication_factor": settings.offsets_topic_replication_factor,
                "assignments": [],
                "configs": offsets_topic_configs(settings),
            }
        return {
            "name": name,
            "num_partitions": settings.num_partitions,
            "replication_factor": settings.default_replication_factor,
            "assignments": [],
            "configs": [],
        }
