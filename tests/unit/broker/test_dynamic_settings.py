"""Settings that change at run time: who hears of it, and what a replica's log and partition are configured to then."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from pathlib import Path
from typing import Any

import pytest
from replica_harness import one_broker

from raftlog.broker.dynamic_settings import DynamicSettings
from raftlog.config import Settings
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage
from raftlog.ids import TopicPartition

STATIC = Settings(node_id=1, controller_quorum_voters=("1@h:1",))


class Metadata:
    """Commits configs of brokers, one by one."""

    def __init__(self, dynamic: DynamicSettings) -> None:
        self.image = MetadataImage()
        self._dynamic = dynamic

    def set(self, resource: str, name: str, value: str | None, *, kind: int = r.RESOURCE_BROKER) -> None:
        record = r.ConfigRecord(resource_type=kind, resource_name=resource, name=name, value=value)
        self.image, delta = self.image.apply_batch([record], offset=self.image.offset + 1, epoch=1)
        self._dynamic.apply_metadata(self.image, delta)


def test_parts_hear_of_what_changes_for_this_node() -> None:
    dynamic = DynamicSettings(STATIC)
    metadata = Metadata(dynamic)
    heard: list[Settings] = []
    dynamic.subscribe(heard.append)
    metadata.set("", "message.max.bytes", "7")
    metadata.set("1", "message.max.bytes", "8")
    metadata.set("", "message.max.bytes", "9")  # Its own counts.
    metadata.set("2", "message.max.bytes", "10")
    metadata.set("t", "max.message.bytes", "11", kind=r.RESOURCE_TOPIC)
    metadata.set("1", "message.max.bytes", None)
    metadata.set("", "message.max.bytes", None)
    assert [settings.message_max_bytes for settings in heard] == [7, 8, 9, STATIC.message_max_bytes]
    assert dynamic.current == dynamic.static == STATIC


def test_a_part_that_comes_later_hears_of_what_differs_already() -> None:
    dynamic = DynamicSettings(STATIC)
    unchanged: list[Settings] = []
    dynamic.subscribe(unchanged.append)
    assert not unchanged
    Metadata(dynamic).set("", "max.connections", "5")
    late: list[Settings] = []
    dynamic.subscribe(late.append)
    assert [settings.max_connections for settings in late] == [5]


@pytest.mark.parametrize(("name", "value"), [("node.id", "5"), ("message.max.bytes", "x"), ("no.such", "1"), ("num.partitions", "2")])
def test_what_no_broker_of_this_release_takes_is_ignored(name: str, value: str) -> None:
    dynamic = DynamicSettings(STATIC)
    Metadata(dynamic).set("1", name, value)
    assert dynamic.current == STATIC


def test_a_part_that_fails_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    dynamic = DynamicSettings(STATIC)
    heard: list[Settings] = []

    def fail(settings: Settings) -> None:
        raise ValueError("no")

    dynamic.subscribe(fail)
    dynamic.subscribe(heard.append)
    with caplog.at_level(logging.INFO):
        Metadata(dynamic).set("", "max.connections", "5")
    assert len(heard) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "max.connections is now 5, before 2147483647",
        "a part of this node does not follow the settings: ValueError: no",
    ]


def test_logs_and_partitions_take_other_defaults_but_keep_their_topics_overrides(tmp_path: Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,))
            controller.configure("t", "segment.bytes", "5000")

            def found() -> tuple[Any, ...]:
                log = broker.logs.logs[TopicPartition("t", 0)]
                partition = broker.manager._hosted.by_name[TopicPartition("t", 0)]
                return log.config.segment_bytes, log.config.max_message_bytes, log.config.retention_ms, partition.min_insync_replicas

            assert found() == (5000, 1048588, 604_800_000, 1)
            changes = {"log_segment_bytes": 9000, "message_max_bytes": 7, "log_retention_ms": 8, "min_insync_replicas": 2}
            broker.manager.reconfigure(dataclasses.replace(broker.settings, **changes))
            assert found() == (5000, 7, 8, 2)
            controller.configure("t", "retention.ms", "6")
            controller.create_topic("later", (1,), topic_id=uuid.UUID(int=77))
            assert found() == (5000, 7, 6, 2)
            assert broker.logs.logs[TopicPartition("later", 0)].config.max_message_bytes == 7

    asyncio.run(main())
