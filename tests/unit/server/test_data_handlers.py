"""Produce, Fetch and InitProducerId between the wire and a replica manager that says what it is told to say."""

from __future__ import annotations

import asyncio
import types
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from raftlog import config
from raftlog.broker.reads import EpochEnd, Fetched, FetchLimits, FetchTarget, Isolation, TimestampedOffset
from raftlog.broker.sessions import SessionAnswer, SessionRequest
from raftlog.core.log.producers import AppendedBatch, ProducerState
from raftlog.core.metadata.entities import BrokerEndpoint
from raftlog.errors import (
    ErrorCode,
    FetchSessionIdNotFound,
    InvalidFetchSessionEpoch,
    NotLeaderOrFollower,
    OffsetNotAvailable,
    RequestTimedOut,
    UnknownTopicOrPartition,
)
from raftlog.ids import TopicPartition
from raftlog.network.connection import RequestContext
from raftlog.protocol import messages
from raftlog.protocol.batches import Compression, Record, encode_batch
from raftlog.protocol.messages import API_VERSIONS_BROKER, ApiKey, MalformedFrame
from raftlog.server.handlers.data import DataHandlers
from raftlog.server.handlers.log_queries import LogQueryHandlers
from raftlog.server.router import Router
from raftlog.storage.log import Appended

TOPIC_ID = uuid.UUID(int=1234)
BATCH = encode_batch([Record(0, 1000, None, b"value", ())])


class Replicas:
    """Leads partition 0 of topic "t" and hosts nothing else; node 2 leads partition 1."""

    def __init__(self) -> None:
        self.appended: list[tuple[TopicPartition, bytes, int, int]] = []
        self.append_result: Any = Appended(40, 40, -1, 70)
        self.fetched: list[tuple[FetchLimits, Sequence[FetchTarget]]] = []
        self.requests: list[SessionRequest] = []
        self.fetch_result: Any = [Fetched(ErrorCode.none, 10, 10, 0, BATCH)]

    def topic_name(self, topic_id: uuid.UUID) -> str | None:
        return "t" if topic_id == TOPIC_ID else None

    def leader_of(self, partition: TopicPartition) -> tuple[int, int]:
        return (2, 7) if partition == ("t", 1) else (-1, -1)

    def log_start_offset(self, partition: TopicPartition) -> int:
        return 3

    def _check(self, partition: TopicPartition) -> None:
        if partition == ("t", 1):
            raise NotLeaderOrFollower("node 2 leads it")
        if partition != ("t", 0):
            raise UnknownTopicOrPartition

    def append(self, partition: TopicPartition, records: Any, *, acks: int, timeout_ms: int) -> Any:
        self._check(partition)
        self.appended.append((partition, bytes(records), acks, timeout_ms))
        if isinstance(self.append_result, Exception):
            raise self.append_result
        return self.append_result

    @property
    def sessions(self) -> Any:
        return types.SimpleNamespace(fetch=self.fetch)

    def fetch(self, limits: FetchLimits, request: SessionRequest) -> Any:
        """In session 9 at epoch 4 nothing is new; there is no other."""
        self.fetched.append((limits, request.targets))
        self.requests.append(request)
        if request.epoch > 0:
            if request.session_id != 9:
                raise FetchSessionIdNotFound("none")
            if request.epoch != 4:
                raise InvalidFetchSessionEpoch("4")
            return SessionAnswer(9, ())

        def answer(results: Any) -> SessionAnswer:
            return SessionAnswer(0 if request.epoch else 9, list(zip(request.targets, results, strict=True)))

        if isinstance(self.fetch_result, list):
            return answer(self.fetch_result)

        async def later() -> SessionAnswer:
            return answer(await self.fetch_result)

        return later()

    def producers(self, partition: TopicPartition) -> list[tuple[int, ProducerState]]:
        self._check(partition)
        state = ProducerState(3)
        state.batches.append(AppendedBatch(4, 6, 10, 12, 777))
        state.last_timestamp_ms = 777
        return [(55, state), (56, ProducerState(0))]

    async def list_offset(self, partition: TopicPartition, timestamp_ms: int, **options: Any) -> TimestampedOffset:
        self._check(partition)
        if timestamp_ms == 9999:
            raise OffsetNotAvailable("the mark lags")
        return TimestampedOffset(100 if timestamp_ms < 0 else 50, timestamp_ms, options["leader_epoch"])

    def end_offset_for_epoch(self, partition: TopicPartition, epoch: int, *, leader_epoch: int) -> EpochEnd:
        self._check(partition)
        return EpochEnd(epoch - 1, 12)


class Channel:
    """A controller that gives blocks of two producer ids, or errors."""

    def __init__(self) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self.errors: list[Exception | ErrorCode] = []

    async def request(self, api_key: int, fields: Mapping[str, Any], *, timeout_ms: int) -> Any:
        assert api_key == ApiKey.ALLOCATE_PRODUCER_IDS
        self.requests.append(fields)
        await asyncio.sleep(0)
        code = ErrorCode.none
        if self.errors:
            error = self.errors.pop(0)
            if isinstance(error, Exception):
                raise error
            code = error
        return types.SimpleNamespace(error_code=code, producer_id_start=1000 * len(self.requests), producer_id_len=2)


class World:
    def __init__(self) -> None:
        self.replicas = Replicas()
        self.channel = Channel()
        self.closed: list[Callable[[], None]] = []
        endpoints = {"PLAINTEXT": BrokerEndpoint("node-2", 9092, 0)}
        brokers = {
            1: types.SimpleNamespace(epoch=55, endpoints={}, rack=None),
            2: types.SimpleNamespace(epoch=56, endpoints=endpoints, rack="b"),
        }
        settings = config.load("node.id=1\ncontroller.quorum.voters=1@h:1\nlisteners=PLAINTEXT://:1,CONTROLLER://:2\nfetch.max.bytes=5000\n")
        parts: Any = {
            "replicas": self.replicas,
            "metadata": types.SimpleNamespace(image=types.SimpleNamespace(brokers=brokers)),
            "channel": self.channel,
            "environment": None,
        }
        data = DataHandlers(settings=settings, **parts)
        queries = LogQueryHandlers(replicas=parts["replicas"])
        self.router = Router({**data.handlers(), **queries.handlers()}, data.raw_handlers(), API_VERSIONS_BROKER)
        self.context: RequestContext | None = None

    def begin(self, api_key: int, version: int, fields: Mapping[str, Any]) -> Any:
        frame = messages.encode_request(api_key, version, 5, "me", fields)
        header = messages.parse_request_header(frame)
        connection: Any = types.SimpleNamespace(peer="127.0.0.1:9")
        self.context = RequestContext(connection, *header[:4], "PLAINTEXT")
        return self.router.dispatch(self.context, memoryview(frame)[header.body_offset :])

    async def ask(self, api_key: int, version: int, fields: Mapping[str, Any]) -> Any:
        response = self.begin(api_key, version, fields)
        if isinstance(response, Awaitable):
            response = await response
        return messages.decode_response(api_key, version, b"".join(response))[1]


def produce_fields(*partitions: tuple[int, bytes | None], version: int = 12, acks: int = 1, **more: Any) -> dict[str, Any]:
    topic: dict[str, Any] = {"partition_data": [{"index": index, "records": records} for index, records in partitions]}
    topic.update({"topic_id": TOPIC_ID} if version >= 13 else {"name": "t"})
    return {"acks": acks, "timeout": 1500, "topic_data": [topic], **more}


@pytest.mark.parametrize("version", range(3, 14))
def test_produce_is_appended_and_answered_without_waiting(version: int) -> None:
    world = World()
    response = world.begin(ApiKey.PRODUCE, version, produce_fields((0, BATCH), version=version))
    assert isinstance(response, list)
    _, answer = messages.decode_response(ApiKey.PRODUCE, version, b"".join(response))
    assert world.replicas.appended == [(TopicPartition("t", 0), BATCH, 1, 1500)]
    (topic,) = answer.responses
    assert (topic.topic_id if version >= 13 else topic.name) == (TOPIC_ID if version >= 13 else "t")
    (item,) = topic.partition_responses
    assert (item.index, item.error_code, item.base_offset, item.log_append_time) == (0, 0, 40, -1)
    if version >= 5:
        assert item.log_start_offset == 3


@pytest.mark.parametrize(("version", "code"), [(6, ErrorCode.unsupported_compression_type), (7, ErrorCode.none)])
def test_zstd_is_for_who_knows_it(version: int, code: ErrorCode) -> None:
    batch = encode_batch([Record(0, 1, None, b"v", ())], compression=Compression.ZSTD)
    answer = asyncio.run(World().ask(ApiKey.PRODUCE, version, produce_fields((0, batch), version=version)))
    assert answer.responses[0].partition_responses[0].error_code is code


def test_produce_errors_are_those_of_their_partition() -> None:
    async def main() -> None:
        world = World()
        transactional = encode_batch([Record(0, 1, None, b"v", ())], transactional=True, producer_id=1, producer_epoch=0, base_sequence=0)
        parts = ((1, BATCH), (0, BATCH), (2, BATCH), (0, None), (0, b""), (0, BATCH + BATCH), (0, transactional))
        answer = await world.ask(ApiKey.PRODUCE, 12, produce_fields(*parts))
        items = answer.responses[0].partition_responses
        assert [item.error_code.name for item in items] == [
            "not_leader_or_follower",
            "none",
            "unknown_topic_or_partition",
            "invalid_record",
            "invalid_record",
            "invalid_record",
            "transactional_id_authorization_failed",
        ]
        assert (items[0].current_leader.leader_id, items[0].current_leader.leader_epoch) == (2, 7)
        assert items[0].error_message == "node 2 leads it"
        assert items[2].error_message is None
        assert "exactly one record batch" in items[5].error_message
        assert [(node.node_id, node.host, node.port, node.rack) for node in answer.node_endpoints] == [(2, "node-2", 9092, "b")]
        assert len(world.replicas.appended) == 1

    asyncio.run(main())


def test_produce_to_an_unknown_topic_id() -> None:
    fields = produce_fields((0, BATCH), version=13)
    fields["topic_data"][0]["topic_id"] = uuid.UUID(int=77)
    answer = asyncio.run(World().ask(ApiKey.PRODUCE, 13, fields))
    assert answer.responses[0].partition_responses[0].error_code == ErrorCode.unknown_topic_id


def test_produce_with_a_transactional_id_is_refused() -> None:
    world = World()
    answer = asyncio.run(world.ask(ApiKey.PRODUCE, 12, produce_fields((0, BATCH), transactional_id="tx")))
    assert answer.responses[0].partition_responses[0].error_code == ErrorCode.transactional_id_authorization_failed
    assert not world.replicas.appended


def test_produce_that_fails_in_an_unforeseen_way(caplog: Any) -> None:
    world = World()
    world.replicas.append_result = RuntimeError("bug")
    answer = asyncio.run(world.ask(ApiKey.PRODUCE, 12, produce_fields((0, BATCH))))
    assert answer.responses[0].partition_responses[0].error_code == ErrorCode.unknown_server_error
    assert len(caplog.records) == 1


def test_produce_without_acks_is_silent_and_an_error_closes() -> None:
    world = World()
    assert world.begin(ApiKey.PRODUCE, 12, produce_fields((0, BATCH), acks=0)) is None
    with pytest.raises(MalformedFrame, match="acks=0 to 't', partition 1, failed: not_leader_or_follower"):
        world.begin(ApiKey.PRODUCE, 12, produce_fields((1, BATCH), acks=0))


def test_produce_with_all_acks_waits_for_each_partition() -> None:
    async def main() -> None:
        world = World()
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(3)]
        results = iter([*futures, Appended(99, 99, -1, 70)])
        world.replicas.append = lambda *arguments, **options: next(results)  # type: ignore[assignment]
        response = world.begin(ApiKey.PRODUCE, 12, produce_fields((0, BATCH), (0, BATCH), (0, BATCH), (0, BATCH), acks=-1))
        assert isinstance(response, asyncio.Future)
        assert world.context is not None
        assert world.context.cancel_on_close
        futures[2].set_result(Appended(7, 7, -1, 70))
        futures[0].set_exception(RequestTimedOut("not replicated"))
        await asyncio.sleep(0)
        assert not response.done()
        futures[1].set_result(Appended(6, 6, 5000, 70))
        answer = messages.decode_response(ApiKey.PRODUCE, 12, b"".join(await response))[1]
        items = answer.responses[0].partition_responses
        assert [(item.error_code, item.base_offset, item.log_append_time) for item in items] == [
            (ErrorCode.request_timed_out, -1, -1),
            (0, 6, 5000),
            (0, 7, -1),
            (0, 99, -1),
        ]

    asyncio.run(main())


def test_a_client_that_goes_while_it_waits_for_acks_breaks_nothing() -> None:
    async def main() -> None:
        world = World()
        future = asyncio.get_running_loop().create_future()
        world.replicas.append_result = future
        response = world.begin(ApiKey.PRODUCE, 12, produce_fields((0, BATCH), acks=-1))
        response.cancel()
        future.set_result(Appended(7, 7, -1, 70))  # The append itself was not cancelled.
        await asyncio.sleep(0)

    asyncio.run(main())


def fetch_fields(version: int = 12, *partitions: int, **more: Any) -> dict[str, Any]:
    items = [
        {"partition": index, "current_leader_epoch": 4, "fetch_offset": 9, "log_start_offset": 2, "partition_max_bytes": 700} for index in partitions
    ]
    topic: dict[str, Any] = {"partitions": items or [{"partition": 0, "fetch_offset": 9, "partition_max_bytes": 700}]}
    topic.update({"topic_id": TOPIC_ID} if version >= 13 else {"topic": "t"})
    return {"max_wait": 500, "min_bytes": 1, "max_bytes": 9000, "topics": [topic], **more}


@pytest.mark.parametrize("version", range(4, 19))
def test_fetch_is_answered_at_once_when_there_is_something(version: int) -> None:
    world = World()
    response = world.begin(ApiKey.FETCH, version, fetch_fields(version))
    assert isinstance(response, list)
    _, answer = messages.decode_response(ApiKey.FETCH, version, b"".join(response))
    (topic,) = answer.responses
    assert (topic.topic_id if version >= 13 else topic.topic) == (TOPIC_ID if version >= 13 else "t")
    (item,) = topic.partitions
    assert (item.error_code, item.high_watermark, item.last_stable_offset, item.records) == (0, 10, 10, BATCH)
    assert item.aborted_transactions is None
    limits, targets = world.replicas.fetched[0]
    rack = "" if version >= 11 else None
    # fetch.max.bytes is lower.
    assert limits == FetchLimits(wait_ms_max=500, size_bytes_min=1, size_bytes_max=5000, rack=rack, listener="PLAINTEXT", reads_zstd=version >= 10)
    assert targets == [FetchTarget(TOPIC_ID if version >= 13 else "t", 0, 9, 700)]


def test_fetch_of_a_follower() -> None:
    world = World()
    fields = fetch_fields(17, 0, replica_state={"replica_id": 3, "replica_epoch": 88}, isolation_level=0, session_epoch=-1)
    asyncio.run(world.ask(ApiKey.FETCH, 17, fields))
    limits, targets = world.replicas.fetched[0]
    assert (limits.replica_id, limits.replica_epoch, limits.size_bytes_max) == (3, 88, 9000)
    assert targets == [FetchTarget(TOPIC_ID, 0, 9, 700, 4, -1, 2)]


def test_fetch_that_waits_and_answers_hints_and_divergence() -> None:
    async def main() -> None:
        world = World()
        world.replicas.fetch_result = asyncio.get_running_loop().create_future()
        pending = asyncio.ensure_future(world.begin(ApiKey.FETCH, 17, fetch_fields(17, 0, 1, 2, isolation_level=1)))
        assert world.context is not None
        assert world.context.cancel_on_close
        await asyncio.sleep(0)
        world.replicas.fetch_result.set_result(
            [
                Fetched(ErrorCode.none, 10, 10, 0, b"", EpochEnd(3, 8)),
                Fetched(ErrorCode.not_leader_or_follower, leader_id=2, leader_epoch=7),
                Fetched(ErrorCode.unknown_topic_id),
            ]
        )
        answer = messages.decode_response(ApiKey.FETCH, 17, b"".join(await pending or ()))[1]
        first, second, third = answer.responses[0].partitions
        assert (first.diverging_epoch.epoch, first.diverging_epoch.end_offset, first.aborted_transactions) == (3, 8, ())
        assert (second.current_leader.leader_id, second.current_leader.leader_epoch) == (2, 7)
        assert (third.error_code, third.high_watermark, third.records) == (ErrorCode.unknown_topic_id, -1, b"")
        assert [node.node_id for node in answer.node_endpoints] == [2]
        assert world.replicas.fetched[0][0].isolation is Isolation.READ_COMMITTED

    asyncio.run(main())


@pytest.mark.parametrize(
    ("session_id", "session_epoch", "code"),
    [(0, -1, "none"), (0, 0, "none"), (8, 4, "fetch_session_id_not_found"), (9, 4, "none"), (9, 5, "invalid_fetch_session_epoch")],
)
def test_fetch_sessions(session_id: int, session_epoch: int, code: str) -> None:
    world = World()
    forgotten = [{"topic": "t", "partitions": [3, 4]}]
    fields = fetch_fields(12, session_id=session_id, session_epoch=session_epoch, forgotten_topics_data=forgotten)
    answer = asyncio.run(world.ask(ApiKey.FETCH, 12, fields))
    assert (answer.error_code.name, answer.session_id) == (code, 9 if code == "none" and session_epoch >= 0 else 0)
    assert len(answer.responses) == (session_epoch <= 0)
    assert (world.replicas.requests[0].forgotten, world.replicas.requests[0].by_topic_id) == ([("t", 3), ("t", 4)], False)


def test_producer_ids_are_given_once_each_and_blocks_asked_for_once() -> None:
    async def main() -> None:
        world = World()
        answers = await asyncio.gather(*(world.ask(ApiKey.INIT_PRODUCER_ID, version, {"transaction_timeout": 1}) for version in range(6)))
        assert sorted(answer.producer_id for answer in answers) == [1000, 1001, 2000, 2001, 3000, 3001]
        assert {(answer.error_code, answer.producer_epoch) for answer in answers} == {(ErrorCode.none, 0)}
        assert world.channel.requests == [{"broker_id": 1, "broker_epoch": 55}] * 3

    asyncio.run(main())


def test_producer_ids_when_the_controller_has_none() -> None:
    async def main() -> None:
        world = World()
        world.channel.errors = [RequestTimedOut("nobody"), ErrorCode.stale_broker_epoch]
        for _ in range(2):
            answer = await world.ask(ApiKey.INIT_PRODUCER_ID, 5, {})
            assert (answer.error_code, answer.producer_id) == (ErrorCode.coordinator_load_in_progress, -1)
        assert (await world.ask(ApiKey.INIT_PRODUCER_ID, 5, {})).producer_id == 3000
        for before in ({"producer_id": 7}, {"producer_epoch": 0}):
            assert (await world.ask(ApiKey.INIT_PRODUCER_ID, 3, before)).error_code == ErrorCode.invalid_request
        assert (await world.ask(ApiKey.INIT_PRODUCER_ID, 3, {"producer_id": 7, "producer_epoch": 3})).producer_id == 3001
        assert (await world.ask(ApiKey.INIT_PRODUCER_ID, 5, {"transactional_id": "tx"})).error_code == ErrorCode.transactional_id_authorization_failed

    asyncio.run(main())


def list_fields(*asked: tuple[int, int]) -> dict[str, Any]:
    items = [{"partition_index": index, "current_leader_epoch": 4, "timestamp": timestamp} for index, timestamp in asked]
    return {"replica_id": -1, "topics": [{"name": "t", "partitions": items}]}


def test_list_offsets() -> None:
    async def main() -> None:
        world = World()
        for version in range(1, 12):
            answer = await world.ask(ApiKey.LIST_OFFSETS, version, list_fields((0, 1234), (1, 1234), (2, -1)))
            items = answer.topics[0].partitions
            assert [(item.error_code.value, item.offset, item.timestamp) for item in items] == [(0, 50, 1234), (6, -1, -1), (3, -1, -1)]
            for timestamp, since in ((-1, 1), (-2, 1), (-3, 7), (-4, 8), (-5, 9), (-6, 11), (-7, 99)):
                item = (await world.ask(ApiKey.LIST_OFFSETS, version, list_fields((0, timestamp)))).topics[0].partitions[0]
                if version < since:
                    assert item.error_code == ErrorCode.unsupported_version
                else:
                    assert (item.error_code, item.offset) == (ErrorCode.none, -1 if timestamp <= -5 else 100)
            item = (await world.ask(ApiKey.LIST_OFFSETS, version, list_fields((0, 9999)))).topics[0].partitions[0]
            assert item.error_code == (ErrorCode.leader_not_available if version < 5 else ErrorCode.offset_not_available)
        twice = (await world.ask(ApiKey.LIST_OFFSETS, 7, list_fields((0, 1), (0, 2)))).topics[0].partitions
        assert [item.error_code for item in twice] == [ErrorCode.invalid_request] * 2

    asyncio.run(main())


@pytest.mark.parametrize("version", [2, 3, 4])
def test_offset_for_leader_epoch(version: int) -> None:
    items = [{"partition": index, "leader_epoch": 6, "current_leader_epoch": 8} for index in (0, 1)]
    answer = asyncio.run(World().ask(ApiKey.OFFSET_FOR_LEADER_EPOCH, version, {"topics": [{"topic": "t", "partitions": items}]}))
    assert [vars(item) for item in answer.topics[0].partitions] == [
        {"error_code": ErrorCode.none, "partition": 0, "leader_epoch": 5, "end_offset": 12},
        {"error_code": ErrorCode.not_leader_or_follower, "partition": 1, "leader_epoch": -1, "end_offset": -1},
    ]


def test_describe_producers() -> None:
    topics = [
        {"name": "t", "partition_indexes": [0, 1, 0]},
        {"name": "none", "partition_indexes": [0]},
        {"name": "not/a/name", "partition_indexes": [0]},
    ]
    known, unknown, unnamed = asyncio.run(World().ask(ApiKey.DESCRIBE_PRODUCERS, 0, {"topics": topics})).topics
    first, second, third = known.partitions
    assert [vars(producer) for producer in first.active_producers] == [
        {
            "producer_id": 55,
            "producer_epoch": 3,
            "last_sequence": 6,
            "last_timestamp": 777,
            "coordinator_epoch": -1,
            "current_txn_start_offset": -1,
        },
        {
            "producer_id": 56,
            "producer_epoch": 0,
            "last_sequence": -1,
            "last_timestamp": -1,
            "coordinator_epoch": -1,
            "current_txn_start_offset": -1,
        },
    ]
    assert (second.error_code, second.error_message, second.active_producers) == (ErrorCode.not_leader_or_follower, "node 2 leads it", ())
    assert third.error_code is ErrorCode.none
    assert unknown.partitions[0].error_code is ErrorCode.unknown_topic_or_partition
    assert unnamed.partitions[0].error_code is ErrorCode.invalid_topic_exception
