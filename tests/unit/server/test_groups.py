"""The group APIs in every version they are served in, from the bytes of the request to those of the answer."""

from __future__ import annotations

import asyncio
import pathlib
import sys
import uuid
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "broker"))

from coordinator_fakes import GROUP, Broker1, image

from raftlog.core.metadata.entities import Topic
from raftlog.errors import ErrorCode
from raftlog.ids import GROUP_METADATA_TOPIC
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import API_VERSIONS_BROKER, ApiKey
from raftlog.protocol.messages import Fields, decode_response, encode_request
from raftlog.protocol.messages import parse_request_header as parse_header
from raftlog.server.handlers.consumer_groups import ConsumerGroupHandlers
from raftlog.server.handlers.groups import GROUP_OPERATIONS, GroupHandlers
from raftlog.server.router import Router
from raftlog.testing.virtual_time import run

KEYS = (
    ApiKey.FIND_COORDINATOR,
    ApiKey.JOIN_GROUP,
    ApiKey.SYNC_GROUP,
    ApiKey.HEARTBEAT,
    ApiKey.LEAVE_GROUP,
    ApiKey.OFFSET_COMMIT,
    ApiKey.OFFSET_FETCH,
    ApiKey.OFFSET_DELETE,
    ApiKey.LIST_GROUPS,
    ApiKey.DESCRIBE_GROUPS,
    ApiKey.DELETE_GROUPS,
    ApiKey.CONSUMER_GROUP_HEARTBEAT,
    ApiKey.CONSUMER_GROUP_DESCRIBE,
)
TOPIC_ID = uuid.UUID(int=4711)
PROTOCOLS = ({"name": "range", "metadata": b"\0\0\0\0\0\x01\0\x01t"}, {"name": "sticky", "metadata": b"\0\0\0\0\0\x01\0\x01t"})


def versions(key: ApiKey) -> list[int]:
    low, high = API_VERSIONS_BROKER[key]
    return list(range(low, high + 1))


def each_version(*keys: ApiKey) -> Any:
    return pytest.mark.parametrize(("key", "version"), [(key, version) for key in keys for version in versions(key)])


class Client:
    """Speaks to the router of one broker that has the topic `t` with two partitions."""

    def __init__(self, **settings: Any) -> None:
        start_image = image()
        partition = start_image.topics[GROUP_METADATA_TOPIC].partitions[0]
        topic = Topic(name="t", topic_id=TOPIC_ID, partitions={0: partition, 1: partition})
        object.__setattr__(start_image, "topics", start_image.topics.changed({"t": topic}))
        object.__setattr__(start_image, "topic_names", start_image.topic_names.changed({TOPIC_ID: "t"}))
        self.broker = Broker1(start_image=start_image, **settings)
        object.__setattr__(start_image, "features", {"group.version": 1})
        handlers = GroupHandlers(coordinators=self.broker.groups, metadata=self.broker.metadata)
        consumers = ConsumerGroupHandlers(coordinators=self.broker.groups, metadata=self.broker.metadata)
        self.router = Router({**handlers.handlers(), **consumers.handlers()}, {}, API_VERSIONS_BROKER)
        self.connection: Any = SimpleNamespace(peer="127.0.0.1:5555")

    async def ask(self, key: ApiKey, version: int, /, **fields: Any) -> Fields:
        frame = encode_request(key, version, 7, "client", fields)
        header = parse_header(frame)
        context = RequestContext(self.connection, key, version, header.correlation_id, header.client_id, "PLAINTEXT")
        answer = self.router.dispatch(context, memoryview(frame)[header.body_offset :])
        response = await answer if isinstance(answer, Awaitable) else answer
        assert response is not None
        correlation_id, decoded = decode_response(key, version, b"".join(response))
        assert correlation_id == 7
        return decoded

    async def join(self, version: int = 9, member_id: str = "", **fields: Any) -> Fields:
        values = {"group_id": GROUP, "session_timeout": 10_000, "rebalance_timeout": 20_000, "protocol_type": "consumer", "protocols": PROTOCOLS}
        values |= {"member_id": member_id, **fields}
        if version < 1:
            del values["rebalance_timeout"]
        return await self.ask(ApiKey.JOIN_GROUP, version, **values)

    async def joined(self, version: int = 9) -> Fields:
        answer = await self.join(version)
        if answer.error_code == ErrorCode.member_id_required:
            answer = await self.join(version, answer.member_id)
        assert answer.error_code == ErrorCode.none
        return answer

    async def sync(self, joined: Fields, version: int = 5, assignment: bytes = b"all") -> Fields:
        assignments = ({"member_id": joined.member_id, "assignment": assignment},)
        fields = {"group_id": GROUP, "generation_id": joined.generation_id, "member_id": joined.member_id, "assignments": assignments}
        return await self.ask(ApiKey.SYNC_GROUP, version, **fields)

    async def member(self) -> Fields:
        joined = await self.joined()
        assert (await self.sync(joined)).error_code == ErrorCode.none
        return joined

    async def commit(self, version: int, *, joined: Fields | None = None, name: str = "t", topic_id: uuid.UUID = TOPIC_ID, offset: int = 5) -> Fields:
        partitions = [{"partition_index": index, "committed_offset": offset, "committed_metadata": "note"} for index in (1, 9)]
        topic = {"topic_id": topic_id} if version >= 10 else {"name": name}
        fields: dict[str, Any] = {
            "group_id": GROUP,
            "generation_id_or_member_epoch": -1,
            "member_id": "",
            "topics": [{**topic, "partitions": partitions}],
        }
        if joined is not None:
            fields |= {"generation_id_or_member_epoch": joined.generation_id, "member_id": joined.member_id}
        if 2 <= version <= 4:
            fields["retention_time"] = -1
        return await self.ask(ApiKey.OFFSET_COMMIT, version, **fields)

    async def fetch(self, version: int, *, wants_all: bool = False, group_id: str = GROUP) -> Fields:
        topic = {"topic_id": TOPIC_ID} if version >= 10 else {"name": "t"}
        topics = None if wants_all else [{**topic, "partition_indexes": [0, 1]}]
        if version >= 8:
            answer = await self.ask(ApiKey.OFFSET_FETCH, version, groups=[{"group_id": group_id, "topics": topics}], require_stable=True)
            return answer.groups[0]
        return await self.ask(ApiKey.OFFSET_FETCH, version, group_id=group_id, topics=topics)


def with_client(scenario: Callable[[Client], Awaitable[None]], *, elected: bool = True, **settings: Any) -> None:
    async def main() -> None:
        client = Client(**settings)
        if elected:
            await client.broker.elected()
        await scenario(client)
        await client.broker.groups.close()

    run(main())


def test_every_group_api_is_served():
    async def scenario(client: Client) -> None:
        assert set(KEYS) <= set(client.router.advertised)
        assert {key: client.router.advertised[key] for key in KEYS} == {key: API_VERSIONS_BROKER[key] for key in KEYS}

    with_client(scenario)


@each_version(ApiKey.FIND_COORDINATOR)
def test_find_coordinator(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        if version >= 4:
            answer = await client.ask(key, version, coordinator_keys=["a", "b"], key_type=0)
            assert [(one.key, one.node_id, one.host, one.port, one.error_code) for one in answer.coordinators] == [
                (name, 1, "127.0.0.1", 9001, 0) for name in ("a", "b")
            ]
            answer = (await client.ask(key, version, coordinator_keys=["tx"], key_type=1)).coordinators[0]
            assert (answer.error_code, answer.node_id, answer.port) == (ErrorCode.coordinator_not_available, -1, -1)
            answer = (await client.ask(key, version, coordinator_keys=["tx"], key_type=2)).coordinators[0]
            assert answer.error_code == ErrorCode.invalid_request
        else:
            answer = await client.ask(key, version, key="a")
            assert (answer.node_id, answer.host, answer.port, answer.error_code) == (1, "127.0.0.1", 9001, 0)

    with_client(scenario)


@each_version(ApiKey.JOIN_GROUP)
def test_join(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        first = await client.join(version)
        if version >= 4:
            assert (first.error_code, first.generation_id) == (ErrorCode.member_id_required, -1)
            assert first.member_id.startswith("client-")
            first = await client.join(version, first.member_id)
        assert (first.error_code, first.generation_id, first.protocol_name, first.leader) == (0, 1, "range", first.member_id)
        assert [(one.member_id, one.metadata) for one in first.members] == [(first.member_id, PROTOCOLS[0]["metadata"])]
        assert (await client.join(version, "stranger")).error_code == ErrorCode.unknown_member_id
        assert (await client.join(version, group_id="")).error_code == ErrorCode.invalid_group_id
        assert (await client.join(version, session_timeout=1)).error_code == ErrorCode.invalid_session_timeout
        assert (await client.join(version, protocol_type="other")).error_code == ErrorCode.inconsistent_group_protocol

    with_client(scenario)


@each_version(ApiKey.SYNC_GROUP)
def test_sync(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        joined = await client.joined()
        answer = await client.sync(joined, version)
        assert (answer.error_code, answer.assignment) == (0, b"all")
        if version >= 5:
            assert (answer.protocol_type, answer.protocol_name) == ("consumer", "range")
            wrong = {"group_id": GROUP, "generation_id": 1, "member_id": joined.member_id, "protocol_name": "sticky", "assignments": ()}
            assert (await client.ask(key, version, **wrong)).error_code == ErrorCode.inconsistent_group_protocol
        stale = {"group_id": GROUP, "generation_id": 9, "member_id": joined.member_id, "assignments": ()}
        assert (await client.ask(key, version, **stale)).error_code == ErrorCode.illegal_generation

    with_client(scenario)


@each_version(ApiKey.HEARTBEAT)
def test_heartbeat(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        joined = await client.member()
        fields = {"group_id": GROUP, "generation_id": 1, "member_id": joined.member_id}
        assert (await client.ask(key, version, **fields)).error_code == 0
        assert (await client.ask(key, version, **{**fields, "generation_id": 2})).error_code == ErrorCode.illegal_generation
        assert (await client.ask(key, version, **{**fields, "member_id": "x"})).error_code == ErrorCode.unknown_member_id
        assert (await client.ask(key, version, **{**fields, "group_id": ""})).error_code == ErrorCode.invalid_group_id

    with_client(scenario)


@each_version(ApiKey.LEAVE_GROUP)
def test_leave(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        joined = await client.member()
        if version < 3:
            assert (await client.ask(key, version, group_id=GROUP, member_id="x")).error_code == ErrorCode.unknown_member_id
            assert (await client.ask(key, version, group_id=GROUP, member_id=joined.member_id)).error_code == 0
            assert (await client.ask(key, version, group_id="other", member_id="x")).error_code == ErrorCode.unknown_member_id
        else:
            members = [{"member_id": name, "group_instance_id": None} for name in ("x", joined.member_id)]
            answer = await client.ask(key, version, group_id=GROUP, members=members)
            assert answer.error_code == 0
            assert [(one.member_id, one.error_code) for one in answer.members] == [("x", ErrorCode.unknown_member_id), (joined.member_id, 0)]
            answer = await client.ask(key, version, group_id="other", members=members[:1])
            assert (answer.error_code, answer.members[0].error_code) == (0, ErrorCode.unknown_member_id)
        assert client.broker.groups.describe_group(GROUP).state == "Empty"

    with_client(scenario)


@each_version(ApiKey.OFFSET_COMMIT)
def test_commit(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        joined = await client.member()
        answer = (await client.commit(version, joined=joined)).topics[0]
        assert answer.topic_id == TOPIC_ID if version >= 10 else answer.name == "t"
        assert [(one.partition_index, one.error_code) for one in answer.partitions] == [(1, 0), (9, _unknown(version))]
        answer = (await client.commit(version, joined=joined, name="nope", topic_id=uuid.UUID(int=1))).topics[0]
        assert [one.error_code for one in answer.partitions] == [_unknown(version)] * 2
        answer = (await client.commit(version)).topics[0]
        assert answer.partitions[0].error_code == ErrorCode.unknown_member_id
        joined.generation_id = 8
        answer = (await client.commit(version, joined=joined)).topics[0]
        assert answer.partitions[0].error_code == ErrorCode.illegal_generation

    with_client(scenario)


def _unknown(version: int) -> ErrorCode:
    return ErrorCode.unknown_topic_id if version >= 10 else ErrorCode.unknown_topic_or_partition


@each_version(ApiKey.OFFSET_COMMIT)
def test_commit_in_a_generation_of_no_group(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        stranger = Fields()
        stranger.generation_id, stranger.member_id = 3, "x"
        code = (await client.commit(version, joined=stranger)).topics[0].partitions[0].error_code
        assert code == (ErrorCode.group_id_not_found if version >= 9 else ErrorCode.illegal_generation)

    with_client(scenario)


@each_version(ApiKey.OFFSET_FETCH)
def test_fetch_offsets(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        await client.commit(9, offset=77)
        answer = await client.fetch(version)
        got = [(one.partition_index, one.committed_offset, one.metadata, one.error_code) for one in answer.topics[0].partitions]
        assert got == [(0, -1, "", 0), (1, 77, "note", 0)]
        if version >= 2:
            answer = await client.fetch(version, wants_all=True)
            assert [(one.partition_index, one.committed_offset) for one in answer.topics[0].partitions] == [(1, 77)]
            assert answer.topics[0].topic_id == TOPIC_ID if version >= 10 else answer.topics[0].name == "t"
            assert (await client.fetch(version, wants_all=True, group_id="other")).topics == ()

    with_client(scenario)


@each_version(ApiKey.OFFSET_FETCH)
def test_fetch_offsets_elsewhere(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        answer = await client.fetch(version)
        code = answer.topics[0].partitions[0].error_code if version < 2 else answer.error_code
        assert code == ErrorCode.not_coordinator

    with_client(scenario, elected=False)


def test_offsets_of_several_groups():
    async def scenario(client: Client) -> None:
        await client.commit(9, offset=77)
        groups = [{"group_id": name, "topics": None} for name in (GROUP, "other")]
        answer = await client.ask(ApiKey.OFFSET_FETCH, 9, groups=groups, require_stable=False)
        assert [(one.group_id, one.error_code, len(one.topics)) for one in answer.groups] == [(GROUP, 0, 1), ("other", 0, 0)]

    with_client(scenario)


def test_delete_offsets():
    async def scenario(client: Client) -> None:
        topics = [{"name": "t", "partitions": [{"partition_index": 1}, {"partition_index": 9}]}]
        answer = await client.ask(ApiKey.OFFSET_DELETE, 0, group_id=GROUP, topics=topics)
        assert (answer.error_code, answer.topics) == (ErrorCode.group_id_not_found, ())
        await client.commit(9)
        answer = await client.ask(ApiKey.OFFSET_DELETE, 0, group_id=GROUP, topics=topics)
        assert [one.error_code for one in answer.topics[0].partitions] == [0, ErrorCode.unknown_topic_or_partition]
        assert (await client.fetch(9, wants_all=True)).topics == ()

    with_client(scenario)


@each_version(ApiKey.LIST_GROUPS)
def test_list_groups(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        await client.member()
        answer = await client.ask(key, version)
        assert [(one.group_id, one.protocol_type) for one in answer.groups] == [(GROUP, "consumer")]
        if version >= 4:
            assert answer.groups[0].group_state == "Stable"
            assert len((await client.ask(key, version, states_filter=["STABLE"])).groups) == 1
            assert len((await client.ask(key, version, states_filter=["Empty"])).groups) == 0
        if version >= 5:
            assert answer.groups[0].group_type == "Classic"
            assert len((await client.ask(key, version, types_filter=["classic"])).groups) == 1
            assert len((await client.ask(key, version, types_filter=["consumer"])).groups) == 0

    with_client(scenario)


@each_version(ApiKey.DESCRIBE_GROUPS)
def test_describe_groups(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        joined = await client.member()
        asked = {"include_authorized_operations": True} if version >= 3 else {}
        known, unknown = (await client.ask(key, version, groups=[GROUP, "other"], **asked)).groups
        assert (known.error_code, known.group_state, known.protocol_type, known.protocol_data) == (0, "Stable", "consumer", "range")
        member = known.members[0]
        assert (member.member_id, member.client_id, member.client_host, member.member_assignment) == (
            joined.member_id,
            "client",
            "/127.0.0.1",
            b"all",
        )
        assert unknown.group_state == "Dead"
        assert unknown.error_code == (ErrorCode.group_id_not_found if version >= 6 else 0)
        if version >= 3:
            assert known.authorized_operations == GROUP_OPERATIONS

    with_client(scenario)


@each_version(ApiKey.DELETE_GROUPS)
def test_delete_groups(key: ApiKey, version: int):
    async def scenario(client: Client) -> None:
        joined = await client.member()
        answer = await client.ask(key, version, groups_names=[GROUP, "other"])
        assert [one.error_code for one in answer.results] == [ErrorCode.non_empty_group, ErrorCode.group_id_not_found]
        await client.ask(ApiKey.LEAVE_GROUP, 0, group_id=GROUP, member_id=joined.member_id)
        answer = await client.ask(key, version, groups_names=[GROUP])
        assert [(one.group_id, one.error_code) for one in answer.results] == [(GROUP, 0)]

    with_client(scenario)


def test_static_members_through_the_wire():
    async def scenario(client: Client) -> None:
        first = await client.join(9, group_instance_id="i")
        assert (first.error_code, first.skip_assignment) == (0, False)
        assert (await client.sync(first)).error_code == 0
        second = await client.join(9, group_instance_id="i")
        assert (second.error_code, second.skip_assignment, second.generation_id) == (0, True, 1)
        fields = {"group_id": GROUP, "generation_id": 1, "member_id": first.member_id, "group_instance_id": "i"}
        assert (await client.ask(ApiKey.HEARTBEAT, 4, **fields)).error_code == ErrorCode.fenced_instance_id

    with_client(scenario)


def test_a_client_that_goes_away_while_it_waits_costs_nobody_anything():
    async def scenario(client: Client) -> None:
        joined = await client.member()
        newcomer = await client.join()
        waiting = asyncio.ensure_future(client.join(9, newcomer.member_id))
        await asyncio.sleep(1)
        waiting.cancel()
        again = await client.join(9, joined.member_id)
        assert (again.generation_id, len(again.members)) == (2, 2)
        assert (await client.sync(again)).error_code == 0

    with_client(scenario)


@each_version(ApiKey.CONSUMER_GROUP_HEARTBEAT)
def test_consumer_group_heartbeat(key: ApiKey, version: int) -> None:
    async def scenario(client: Client) -> None:
        said = {"group_id": GROUP, "member_epoch": 0, "rebalance_timeout": 30_000, "subscribed_topic_names": ["t"], "topic_partitions": ()}
        joined = await client.ask(key, version, member_id="m" if version >= 1 else "", **said)
        assert (joined.error_code, joined.member_epoch, joined.heartbeat_interval) == (ErrorCode.none, 1, 5000)
        assert [(topic.topic_id, topic.partitions) for topic in joined.assignment.topic_partitions] == [(TOPIC_ID, (0, 1))]
        beat = {"group_id": GROUP, "member_id": joined.member_id, "topic_partitions": None}
        again = await client.ask(key, version, member_epoch=1, **beat)
        assert (again.error_code, again.assignment) == (ErrorCode.none, None)
        fenced = await client.ask(key, version, member_epoch=9, **beat)
        assert fenced.error_code == ErrorCode.fenced_member_epoch and "greater member epoch (9)" in fenced.error_message
        refused = await client.ask(key, version, member_id="x", server_assignor="none", **said)
        assert refused.error_code == ErrorCode.unsupported_assignor
        left = await client.ask(key, version, member_epoch=-1, **beat)
        assert (left.error_code, left.member_epoch) == (ErrorCode.none, -1)
        if version >= 1:
            bad = await client.ask(key, version, member_id="x", subscribed_topic_regex="(", **said)
            assert bad.error_code == ErrorCode.invalid_regular_expression

    with_client(scenario)


@each_version(ApiKey.CONSUMER_GROUP_DESCRIBE)
def test_consumer_group_describe(key: ApiKey, version: int) -> None:
    async def scenario(client: Client) -> None:
        said = {"member_epoch": 0, "rebalance_timeout": 30_000, "subscribed_topic_names": ["t"], "topic_partitions": (), "rack_id": "r"}
        await client.ask(ApiKey.CONSUMER_GROUP_HEARTBEAT, 1, group_id=GROUP, member_id="m", instance_id="i", **said)
        answer = await client.ask(key, version, group_ids=[GROUP, "unknown", ""], include_authorized_operations=True)
        found, unknown, empty = answer.groups
        assert (found.group_state, found.group_epoch, found.assignment_epoch, found.assignor_name) == ("Stable", 1, 1, "uniform")
        assert found.authorized_operations == GROUP_OPERATIONS
        (member,) = found.members
        assert (member.member_id, member.instance_id, member.rack_id, member.member_epoch) == ("m", "i", "r", 1)
        assert (member.client_id, member.client_host, member.subscribed_topic_names) == ("client", "/127.0.0.1", ("t",))
        for assignment in (member.assignment, member.target_assignment):
            assert [(topic.topic_id, topic.topic_name, topic.partitions) for topic in assignment.topic_partitions] == [(TOPIC_ID, "t", (0, 1))]
        if version >= 1:
            assert member.member_type == 1
        assert (unknown.error_code, unknown.group_id) == (ErrorCode.group_id_not_found, "unknown")
        assert empty.error_code in (ErrorCode.invalid_group_id, ErrorCode.not_coordinator)

        old = await client.ask(ApiKey.DESCRIBE_GROUPS, 5, groups=[GROUP])
        assert (old.groups[0].error_code, old.groups[0].group_state) == (ErrorCode.none, "Dead"), "to an old client it is not there"
        new = await client.ask(ApiKey.DESCRIBE_GROUPS, 6, groups=[GROUP])
        assert new.groups[0].error_code == ErrorCode.group_id_not_found and "is not a classic group" in new.groups[0].error_message
        listed = await client.ask(ApiKey.LIST_GROUPS, 5, states_filter=["STABLE"], types_filter=["Consumer"])
        assert [(group.group_id, group.group_state, group.group_type) for group in listed.groups] == [(GROUP, "Stable", "Consumer")]
        assert (await client.ask(ApiKey.LIST_GROUPS, 5, types_filter=["classic"])).groups == ()

    with_client(scenario)
