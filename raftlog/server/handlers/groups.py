"""Groups: JoinGroup, SyncGroup, Heartbeat, LeaveGroup of the classic protocol; offsets, views and deletion of both protocols.

Versions: those of Kafka 4.2 (JoinGroup 0-9, OffsetCommit 2-10, OffsetFetch 1-10, FindCoordinator 0-6 ...). Differences to
Kafka: FindCoordinator waits up to two seconds for a topic that it has just had created, where Kafka answers at once.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

from raftlog.broker.coordinators import GroupCoordinators
from raftlog.broker.metadata import MetadataFollower
from raftlog.core.coordinators.events import JoinRequest, LeavingMember, SyncRequest
from raftlog.core.coordinators.group import MemberProtocol, State
from raftlog.core.coordinators.offsets import DEFAULT_RETENTION_MS, CommitRequest, TopicOffset
from raftlog.core.coordinators.records import OffsetValue
from raftlog.errors import ApiError, CoordinatorNotAvailable, ErrorCode, GroupIdNotFound, InvalidRequest, UnknownMemberId
from raftlog.ids import NO_NODE
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields
from raftlog.server.router import Handler

GROUP_KEY: Final = 0  # FindCoordinator's key types.
TRANSACTION_KEY: Final = 1
NO_OFFSET: Final = -1

# A bit set over AclOperation's numbers: what may be done to a group, all of it while nothing is authorized.
GROUP_OPERATIONS: Final = sum(1 << operation for operation in (3, 6, 8, 10, 11))
OPERATIONS_NOT_ASKED_FOR: Final = -(2**31)


class GroupHandlers:
    """Answers from this broker's coordinators. Topic names and ids are those of the newest image."""

    def __init__(self, *, coordinators: GroupCoordinators, metadata: MetadataFollower) -> None:
        self._coordinators = coordinators
        self._metadata = metadata

    def handlers(self) -> Mapping[int, Handler]:
        return {
            ApiKey.FIND_COORDINATOR: self.find_coordinator,
            ApiKey.JOIN_GROUP: self.join_group,
            ApiKey.SYNC_GROUP: self.sync_group,
            ApiKey.HEARTBEAT: self.heartbeat,
            ApiKey.LEAVE_GROUP: self.leave_group,
            ApiKey.OFFSET_COMMIT: self.offset_commit,
            ApiKey.OFFSET_FETCH: self.offset_fetch,
            ApiKey.OFFSET_DELETE: self.offset_delete,
            ApiKey.LIST_GROUPS: self.list_groups,
            ApiKey.DESCRIBE_GROUPS: self.describe_groups,
            ApiKey.DELETE_GROUPS: self.delete_groups,
        }

    # -- where

    async def find_coordinator(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer FindCoordinator v0-v6 (key 10): one key below v4, several from v4. Source: KIP-699.

        Transactions have no coordinator here, and clients are told what Kafka tells while it has none: ask again.
        """
        if context.api_version >= 4:
            return {"coordinators": [await self._find(context, request.key_type, key) for key in request.coordinator_keys]}
        answer = await self._find(context, request.key_type, request.key)
        del answer["key"]
        return answer

    async def _find(self, context: RequestContext, key_type: int, key: str) -> dict[str, Any]:
        try:
            if key_type == TRANSACTION_KEY:
                raise CoordinatorNotAvailable("transactions are not supported by this cluster")
            if key_type != GROUP_KEY:
                raise InvalidRequest(f"FindCoordinator knows no coordinator for keys of type {key_type}")
            node = await self._coordinators.find(key, context.listener)
        except ApiError as error:
            return {"key": key, "node_id": NO_NODE, "host": "", "port": -1, "error_code": error.code, "error_message": str(error)}
        return {"key": key, "node_id": node.node_id, "host": node.host, "port": node.port, "error_code": ErrorCode.none}

    # -- membership

    async def join_group(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer JoinGroup v0-v9 (key 11), when the generation is complete. Source: KIP-62, KIP-345, KIP-394, KIP-814."""
        version = context.api_version
        protocols = {protocol.name: MemberProtocol(protocol.name, bytes(protocol.metadata)) for protocol in reversed(request.protocols)}
        join = JoinRequest(
            member_id=request.member_id,
            group_instance_id=request.group_instance_id,
            client_id=context.client_id or "",
            client_host=client_host(context),
            session_timeout_ms=request.session_timeout,
            rebalance_timeout_ms=request.session_timeout if version == 0 else request.rebalance_timeout,
            protocol_type=request.protocol_type,
            protocols=tuple(reversed(protocols.values())),
            member_id_required=version >= 4,
            can_skip_assignment=version >= 9,
        )
        reply = await self._coordinators.join(request.group_id, join)
        members = [{"member_id": one.member_id, "group_instance_id": one.group_instance_id, "metadata": one.metadata} for one in reply.members]
        return {
            "error_code": reply.error,
            "generation_id": reply.generation,
            "protocol_type": reply.protocol_type,
            "protocol_name": reply.protocol if version >= 7 else reply.protocol or "",
            "leader": reply.leader,
            "skip_assignment": reply.skip_assignment,
            "member_id": reply.member_id,
            "members": members,
        }

    async def sync_group(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer SyncGroup v0-v5 (key 14), when the assignment is committed."""
        sync = SyncRequest(
            member_id=request.member_id,
            group_instance_id=request.group_instance_id,
            generation=request.generation_id,
            protocol_type=request.protocol_type,
            protocol=request.protocol_name,
            assignments={item.member_id: bytes(item.assignment) for item in request.assignments},
        )
        reply = await self._coordinators.sync(request.group_id, sync)
        return {
            "error_code": reply.error,
            "protocol_type": reply.protocol_type,
            "protocol_name": reply.protocol,
            "assignment": reply.assignment,
        }

    async def heartbeat(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer Heartbeat v0-v4 (key 12)."""
        try:
            await self._coordinators.heartbeat(
                request.group_id,
                member_id=request.member_id,
                group_instance_id=request.group_instance_id,
                generation=request.generation_id,
            )
        except ApiError as error:
            return {"error_code": error.code}
        return {"error_code": ErrorCode.none}

    async def leave_group(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer LeaveGroup v0-v5 (key 13): one member below v3, several from v3. Source: KIP-345, KIP-800 (reasons)."""
        is_batched = context.api_version >= 3
        members = [LeavingMember(request.member_id, None)]
        if is_batched:
            members = [LeavingMember(member.member_id, member.group_instance_id) for member in request.members]
        try:
            codes = await self._coordinators.leave(request.group_id, members)
        except UnknownMemberId as error:
            codes = [error.code] * len(members)
        except ApiError as error:
            return {"error_code": error.code, "members": ()}
        if not is_batched:
            return {"error_code": codes[0]}
        answers = [
            {"member_id": member.member_id, "group_instance_id": member.group_instance_id, "error_code": code}
            for member, code in zip(members, codes, strict=True)
        ]
        return {"error_code": ErrorCode.none, "members": answers}

    # -- offsets

    async def offset_commit(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer OffsetCommit v2-v10 (key 8), when the offsets are committed. Topics by id from v10 (KIP-848)."""
        offsets: list[TopicOffset] = []
        awaited: list[dict[str, Any]] = []  # The answers of `offsets`, in order.
        answers = []
        for topic in request.topics:
            name, unknown = self._topic(context.api_version, topic)
            known = self._partitions(name)
            partitions = []
            for item in topic.partitions:
                number = item.partition_index
                answer = {"partition_index": number, "error_code": unknown}
                partitions.append(answer)
                if name is not None and number in known:
                    offsets.append(TopicOffset(name, number, item.committed_offset, item.committed_leader_epoch, item.committed_metadata or ""))
                    awaited.append(answer)
            answers.append({**_identity(context.api_version, topic), "partitions": partitions})
        if offsets:
            for answer, code in zip(awaited, await self._commit(context.api_version, request, offsets), strict=True):
                answer["error_code"] = code
        return {"topics": answers}

    async def _commit(self, version: int, request: Fields, offsets: list[TopicOffset]) -> list[ErrorCode]:
        commit = CommitRequest(
            member_id=request.member_id,
            group_instance_id=request.group_instance_id,
            generation=request.generation_id_or_member_epoch,
            offsets=offsets,
            retention_ms=request.retention_time if version < 5 else DEFAULT_RETENTION_MS,
            version=version,
        )
        try:
            return await self._coordinators.commit_offsets(request.group_id, commit)
        except ApiError as error:
            return [error.code] * len(offsets)

    async def offset_fetch(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer OffsetFetch v1-v10 (key 9): one group below v8, several from v8; all topics where none is named.

        Source: KIP-98 (require_stable), KIP-709 (several groups), KIP-848 (member ids and epochs from v9, topic ids from v10).
        """
        version = context.api_version
        require_stable = bool(request.require_stable)
        if version >= 8:
            groups = [await self._fetch_group(version, group, require_stable) for group in request.groups]
            return {"groups": groups}
        answer = await self._fetch_group(version, request, require_stable)
        if version < 2 and answer["error_code"] != ErrorCode.none:
            failed = _no_offset(answer["error_code"])
            partitions = [[{"partition_index": number, **failed} for number in topic.partition_indexes] for topic in request.topics]
            return {"topics": [{"name": topic.name, "partitions": each} for topic, each in zip(request.topics, partitions, strict=True)]}
        del answer["group_id"]
        return answer

    async def _fetch_group(self, version: int, group: Fields, require_stable: bool) -> dict[str, Any]:
        group_id, topics = group.group_id, group.topics
        who = {"member_id": group.member_id, "member_epoch": group.member_epoch} if version >= 9 else {}
        try:
            stored = await self._coordinators.fetch_offsets(group_id, require_stable=require_stable, **who)
        except ApiError as error:
            return {"group_id": group_id, "topics": (), "error_code": error.code}
        answers = []
        if topics is None:
            answers = self._all_offsets(version, stored)
        else:
            for topic in topics:
                name, unknown = self._topic(version, topic)
                partitions = [
                    {"partition_index": partition, **(_fetched(stored.get((name, partition))) if name is not None else _no_offset(unknown))}
                    for partition in topic.partition_indexes
                ]
                answers.append({**_identity(version, topic), "partitions": partitions})
        return {"group_id": group_id, "topics": answers, "error_code": ErrorCode.none}

    def _all_offsets(self, version: int, stored: Mapping[tuple[str, int], OffsetValue]) -> list[dict[str, Any]]:
        """Every topic with an offset; from v10 those that still exist, since only they have an id."""
        by_topic: dict[str, list[dict[str, Any]]] = {}
        for (topic, partition), value in sorted(stored.items(), key=lambda item: item[0]):
            by_topic.setdefault(topic, []).append({"partition_index": partition, **_fetched(value)})
        known = self._metadata.image.topics
        if version < 10:
            return [{"name": name, "partitions": partitions} for name, partitions in by_topic.items()]
        return [{"topic_id": known[name].topic_id, "partitions": partitions} for name, partitions in by_topic.items() if name in known]

    async def offset_delete(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer OffsetDelete v0 (key 47). Source: KIP-496."""
        places: list[tuple[str, int]] = []
        awaited: list[dict[str, Any]] = []  # The answers of `places`, in order.
        answers = []
        for topic in request.topics:
            known = self._partitions(topic.name)
            partitions = []
            for item in topic.partitions:
                answer = {"partition_index": item.partition_index, "error_code": ErrorCode.unknown_topic_or_partition}
                partitions.append(answer)
                if item.partition_index in known:
                    places.append((topic.name, item.partition_index))
                    awaited.append(answer)
            answers.append({"name": topic.name, "partitions": partitions})
        try:
            codes = await self._coordinators.delete_offsets(request.group_id, places)
        except ApiError as error:
            return {"error_code": error.code, "topics": ()}
        for answer, code in zip(awaited, codes, strict=True):
            answer["error_code"] = code
        return {"error_code": ErrorCode.none, "topics": answers}

    # -- views

    def list_groups(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer ListGroups v0-v5 (key 16): this broker's groups, by state (v4, KIP-518) and type (v5, KIP-848) in any case."""
        states = frozenset(state.lower() for state in request.states_filter or ())
        types = frozenset(kind.lower() for kind in request.types_filter or ())
        try:
            groups = self._coordinators.list_groups(states=states, types=types)
        except ApiError as error:
            return {"error_code": error.code, "groups": ()}
        answers = [
            {"group_id": group.group_id, "protocol_type": group.protocol_type, "group_state": group.state, "group_type": group.group_type}
            for group in groups
        ]
        return {"error_code": ErrorCode.none, "groups": answers}

    def describe_groups(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeGroups v0-v6 (key 15). An unknown group is dead, and from v6 not found (KIP-1043)."""
        operations = GROUP_OPERATIONS if request.include_authorized_operations else OPERATIONS_NOT_ASKED_FOR
        return {"groups": [self._describe(context.api_version, group_id, operations) for group_id in request.groups]}

    def _describe(self, version: int, group_id: str, operations: int) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "error_code": ErrorCode.none,
            "group_id": group_id,
            "group_state": "",
            "protocol_type": "",
            "protocol_data": "",
            "members": (),
            "authorized_operations": OPERATIONS_NOT_ASKED_FOR,
        }
        try:
            group = self._coordinators.describe_group(group_id)
        except GroupIdNotFound as error:
            answer |= {"group_state": State.DEAD.value}
            return answer | ({"error_code": error.code, "error_message": str(error)} if version >= 6 else {})
        except ApiError as error:
            return answer | {"error_code": error.code, "error_message": str(error)}
        members = [
            {
                "member_id": member.member_id,
                "group_instance_id": member.group_instance_id,
                "client_id": member.client_id,
                "client_host": member.client_host,
                "member_metadata": member.metadata,
                "member_assignment": member.assignment,
            }
            for member in group.members
        ]
        return answer | {
            "group_state": group.state,
            "protocol_type": group.protocol_type,
            "protocol_data": group.protocol,
            "members": members,
            "authorized_operations": operations,
        }

    async def delete_groups(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DeleteGroups v0-v2 (key 42): empty groups only, with their offsets."""
        results = []
        for group_id in dict.fromkeys(request.groups_names):
            code = ErrorCode.none
            try:
                await self._coordinators.delete_group(group_id)
            except ApiError as error:
                code = error.code
            results.append({"group_id": group_id, "error_code": code})
        return {"results": results}

    # -- topics

    def _topic(self, version: int, topic: Fields) -> tuple[str | None, ErrorCode]:
        """The topic's name, by id from v10 of the offsets APIs; and what to answer where it is not known."""
        if version < 10:
            return topic.name, ErrorCode.unknown_topic_or_partition
        return self._metadata.image.topic_names.get(topic.topic_id), ErrorCode.unknown_topic_id

    def _partitions(self, name: str | None) -> Container[int]:
        topic = None if name is None else self._metadata.image.topics.get(name)
        return () if topic is None else topic.partitions


def client_host(context: RequestContext) -> str:
    """A client's address as Kafka shows it."""
    return "/" + context.connection.peer.rpartition(":")[0]


def _identity(version: int, topic: Fields) -> dict[str, Any]:
    """What names the topic in the answers of OffsetCommit and OffsetFetch: its name, its id from v10."""
    return {"topic_id": topic.topic_id} if version >= 10 else {"name": topic.name}


def _fetched(value: OffsetValue | None) -> dict[str, Any]:
    if value is None:
        return _no_offset(ErrorCode.none)
    return {
        "committed_offset": value.offset,
        "committed_leader_epoch": value.leader_epoch,
        "metadata": value.metadata,
        "error_code": ErrorCode.none,
    }


def _no_offset(code: ErrorCode) -> dict[str, Any]:
    return {"committed_offset": NO_OFFSET, "committed_leader_epoch": -1, "metadata": "", "error_code": code}
