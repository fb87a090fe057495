"""Groups of the consumer protocol (KIP-848): ConsumerGroupHeartbeat 0-1 and ConsumerGroupDescribe 0-1.

Both answer UNSUPPORTED_VERSION while the cluster has not finalized group.version 1, as Kafka does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from raftlog.broker.coordinators import GroupCoordinators
from raftlog.broker.metadata import MetadataFollower
from raftlog.core.coordinators.consumer_events import DescribedConsumer, HeartbeatRequest
from raftlog.core.coordinators.consumer_records import Partitions
from raftlog.errors import ApiError, ErrorCode
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields
from raftlog.server.handlers.groups import GROUP_OPERATIONS, OPERATIONS_NOT_ASKED_FOR, client_host
from raftlog.server.router import Handler

CLASSIC_MEMBER: Final = 0  # ConsumerGroupDescribe's member types.
CONSUMER_MEMBER: Final = 1


class ConsumerGroupHandlers:
    """Answers from this broker's coordinators. Topic names are those of the newest image."""

    def __init__(self, *, coordinators: GroupCoordinators, metadata: MetadataFollower) -> None:
        self._coordinators = coordinators
        self._metadata = metadata

    def handlers(self) -> Mapping[int, Handler]:
        return {
            ApiKey.CONSUMER_GROUP_HEARTBEAT: self.heartbeat,
            ApiKey.CONSUMER_GROUP_DESCRIBE: self.describe,
        }

    async def heartbeat(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer ConsumerGroupHeartbeat v0-v1 (key 68), once what it changes is committed. v1: regular expressions (KIP-848)."""
        version = context.api_version
        asked = HeartbeatRequest(
            member_id=request.member_id,
            member_epoch=request.member_epoch,
            instance_id=request.instance_id,
            rack_id=request.rack_id,
            rebalance_timeout_ms=request.rebalance_timeout,
            topics=None if request.subscribed_topic_names is None else tuple(sorted(set(request.subscribed_topic_names))),
            regex=request.subscribed_topic_regex if version >= 1 else None,
            server_assignor=request.server_assignor,
            owned=None if request.topic_partitions is None else _owned(request.topic_partitions),
            client_id=context.client_id or "",
            client_host=client_host(context),
            version=version,
        )
        try:
            reply = await self._coordinators.consumer_heartbeat(request.group_id, asked)
        except ApiError as error:
            return {"error_code": error.code, "error_message": str(error)}
        assignment = None if reply.assignment is None else {"topic_partitions": _by_topic_id(reply.assignment)}
        return {
            "error_code": ErrorCode.none,
            "member_id": reply.member_id,
            "member_epoch": reply.member_epoch,
            "heartbeat_interval": reply.heartbeat_interval_ms,
            "assignment": assignment,
        }

    def describe(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer ConsumerGroupDescribe v0-v1 (key 69). v1: member types (KIP-1099)."""
        operations = GROUP_OPERATIONS if request.include_authorized_operations else OPERATIONS_NOT_ASKED_FOR
        return {"groups": [self._describe(context.api_version, group_id, operations) for group_id in request.group_ids]}

    def _describe(self, version: int, group_id: str, operations: int) -> dict[str, Any]:
        try:
            group = self._coordinators.describe_consumer_group(group_id)
        except ApiError as error:
            return {
                "error_code": error.code,
                "error_message": str(error),
                "group_id": group_id,
                "group_state": "",
                "group_epoch": 0,
                "assignment_epoch": 0,
                "assignor_name": "",
                "members": (),
            }
        return {
            "error_code": ErrorCode.none,
            "group_id": group_id,
            "group_state": group.state,
            "group_epoch": group.epoch,
            "assignment_epoch": group.assignment_epoch,
            "assignor_name": group.assignor,
            "members": [self._member(version, member) for member in group.members],
            "authorized_operations": operations,
        }

    def _member(self, version: int, member: DescribedConsumer) -> dict[str, Any]:
        described = {
            "member_id": member.member_id,
            "instance_id": member.instance_id,
            "rack_id": member.rack_id,
            "member_epoch": member.member_epoch,
            "client_id": member.client_id,
            "client_host": member.client_host,
            "subscribed_topic_names": member.topics,
            "subscribed_topic_regex": member.regex or None,
            "assignment": {"topic_partitions": self._by_topic(member.assigned)},
            "target_assignment": {"topic_partitions": self._by_topic(member.target)},
        }
        return described | ({"member_type": CLASSIC_MEMBER if member.is_classic else CONSUMER_MEMBER} if version >= 1 else {})

    def _by_topic(self, partitions: Partitions) -> list[dict[str, Any]]:
        """With the names of the topics that still exist; the others are left out."""
        names = self._metadata.image.topic_names
        return [{**item, "topic_name": name} for item in _by_topic_id(partitions) if (name := names.get(item["topic_id"])) is not None]


def _owned(topics: tuple[Fields, ...]) -> Partitions:
    owned: dict[Any, frozenset[int]] = {}
    for topic in topics:
        owned[topic.topic_id] = owned.get(topic.topic_id, frozenset()).union(topic.partitions)
    return {topic_id: numbers for topic_id, numbers in owned.items() if numbers}


def _by_topic_id(partitions: Partitions) -> list[dict[str, Any]]:
    return [{"topic_id": topic_id, "partitions": sorted(numbers)} for topic_id, numbers in sorted(partitions.items(), key=lambda item: item[0].bytes)]
