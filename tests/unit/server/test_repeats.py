"""A request that was put to a controller twice is answered as if it had been put once."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftlog.broker.channel import Forwarded
from raftlog.config import Settings
from raftlog.core.controller.topics import decide_create_partitions, decide_create_topics, decide_delete_topics
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.features import bootstrap_records
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ErrorCode
from raftlog.protocol.messages import ApiKey, decode_request, decode_response, encode_request, encode_response, parse_request_header
from raftlog.server.handlers import repeats
from raftlog.server.handlers.topics import ForwardingHandlers

SETTINGS = Settings(node_id=1, controller_quorum_voters=("1@h:1",))
DIRECTORY = uuid.UUID(int=1000)
VERSIONS = {ApiKey.CREATE_TOPICS: 7, ApiKey.DELETE_TOPICS: 6, ApiKey.CREATE_PARTITIONS: 3}
DECIDERS: Mapping[int, Callable[[MetadataImage, Any], Decision[Any, Any]]] = {
    ApiKey.CREATE_TOPICS: lambda image, request: decide_create_topics(image, request, settings=SETTINGS, chance=random.Random(1)),
    ApiKey.DELETE_TOPICS: lambda image, request: decide_delete_topics(image, request, settings=SETTINGS),
    ApiKey.CREATE_PARTITIONS: lambda image, request: decide_create_partitions(image, request, chance=random.Random(1)),
}


def topic(name: str, *, partitions: int = 3, factor: int = 1, retention_ms: str = "3600000") -> dict[str, Any]:
    configs = [{"name": "retention.ms", "value": retention_ms}]
    return {"name": name, "num_partitions": partitions, "replication_factor": factor, "assignments": [], "configs": configs}


def creation(*topics: dict[str, Any]) -> dict[str, Any]:
    return {"topics": list(topics), "timeout": 1000, "validate_only": False}


def placed(name: str, *places: list[int]) -> dict[str, Any]:
    assignments = [{"partition_index": index, "broker_ids": nodes} for index, nodes in enumerate(places)]
    return {"name": name, "num_partitions": -1, "replication_factor": -1, "assignments": assignments, "configs": []}


def widening(name: str, count: int) -> dict[str, Any]:
    return {"topics": [{"name": name, "count": count, "assignments": None}], "timeout": 1000, "validate_only": False}


def deletion(**which: Any) -> dict[str, Any]:
    return {"topics": [which], "timeout": 1000}


def request_of(api_key: int, fields: dict[str, Any]) -> Any:
    frame = encode_request(api_key, VERSIONS[ApiKey(api_key)], 1, "me", fields)
    return decode_request(api_key, VERSIONS[ApiKey(api_key)], memoryview(frame)[parse_request_header(frame).body_offset :])


def heard(api_key: int, reply: Any) -> Any:
    return decode_response(api_key, VERSIONS[ApiKey(api_key)], encode_response(api_key, VERSIONS[ApiKey(api_key)], 1, reply))[1]


def applied(image: MetadataImage, records: Any) -> MetadataImage:
    records = list(records)
    return image.apply_batch(records, offset=image.offset + len(records), epoch=1)[0]


@pytest.fixture
def image() -> MetadataImage:
    """One broker, and the topic `old` of two partitions."""
    image = applied(MetadataImage(), bootstrap_records())
    broker = r.RegisterBrokerRecord(
        broker_id=1, incarnation_id=uuid.UUID(int=1), broker_epoch=1, end_points=(), features=(), rack=None, fenced=False, log_dirs=(DIRECTORY,)
    )
    image = applied(image, [broker])
    return applied(image, DECIDERS[ApiKey.CREATE_TOPICS](image, request_of(ApiKey.CREATE_TOPICS, creation(topic("old", partitions=2)))).records)


def repeated(api_key: int, before: MetadataImage, fields: dict[str, Any], *, meanwhile: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """The answer that nobody heard, and that to the second try; `meanwhile` is what was asked for first, the same unless it is given."""
    request = request_of(api_key, fields)
    first = DECIDERS[api_key](before, request if meanwhile is None else request_of(api_key, meanwhile))
    after = applied(before, first.records)
    answer = heard(api_key, DECIDERS[api_key](after, request).reply)
    names = repeats.suspects(api_key, before, request, answer)
    assert not names or repeats.shows(api_key, request, names)(after)
    assert not names or not repeats.shows(api_key, request, names)(before)
    if names:
        repeats.own_up(api_key, names, before, after, request, answer, settings=SETTINGS)
    return heard(api_key, first.reply), heard(api_key, answer)


@pytest.mark.parametrize(
    ("api_key", "fields"),
    [
        (ApiKey.CREATE_TOPICS, creation(topic("new"), topic("other", partitions=-1, factor=-1))),
        (ApiKey.CREATE_TOPICS, creation(placed("new", [1], [1]))),
        (ApiKey.DELETE_TOPICS, deletion(name="old")),
        (ApiKey.CREATE_PARTITIONS, widening("old", 5)),
    ],
)
def test_what_the_first_try_has_done_is_no_error_of_the_second(image: MetadataImage, api_key: int, fields: dict[str, Any]) -> None:
    first, second = repeated(api_key, image, fields)
    assert first == second
    items = getattr(second, {ApiKey.CREATE_TOPICS: "topics", ApiKey.DELETE_TOPICS: "responses"}.get(ApiKey(api_key), "results"))
    assert items and all(item.error_code == ErrorCode.none for item in items)


def test_a_topic_that_is_deleted_by_its_id(image: MetadataImage) -> None:
    topic_id = image.topics["old"].topic_id
    first, second = repeated(ApiKey.DELETE_TOPICS, image, deletion(name=None, topic_id=topic_id))
    assert first == second
    assert [(item.name, item.topic_id, item.error_code) for item in second.responses] == [("old", topic_id, ErrorCode.none)]


def test_what_was_there_before_is_an_error(image: MetadataImage) -> None:
    _, answer = repeated(ApiKey.CREATE_TOPICS, image, creation(topic("old", partitions=2)))
    assert [item.error_code for item in answer.topics] == [ErrorCode.topic_already_exists]
    _, answer = repeated(ApiKey.DELETE_TOPICS, image, deletion(name="never"))
    assert [item.error_code for item in answer.responses] == [ErrorCode.unknown_topic_or_partition]
    _, answer = repeated(ApiKey.CREATE_PARTITIONS, image, widening("old", 2))
    assert [item.error_code for item in answer.results] == [ErrorCode.invalid_partitions]


@pytest.mark.parametrize("other", [topic("new", partitions=4), topic("new", retention_ms="1000"), placed("new", [1])])
def test_another_topic_of_the_name_is_an_error(image: MetadataImage, other: dict[str, Any]) -> None:
    _, answer = repeated(ApiKey.CREATE_TOPICS, image, creation(topic("new")), meanwhile=creation(other))
    assert [item.error_code for item in answer.topics] == [ErrorCode.topic_already_exists]


@pytest.mark.parametrize("is_repeat", [False, True])
def test_a_broker_owns_up_only_to_what_it_has_sent_twice(image: MetadataImage, is_repeat: bool) -> None:
    """The refusal that a controller gave; the broker's image shows the topic by the time that it comes."""
    fields, version = creation(topic("new")), VERSIONS[ApiKey.CREATE_TOPICS]
    frame = encode_request(ApiKey.CREATE_TOPICS, version, 1, "me", fields)
    body = memoryview(frame)[parse_request_header(frame).body_offset :]
    request = request_of(ApiKey.CREATE_TOPICS, fields)
    first = DECIDERS[ApiKey.CREATE_TOPICS](image, request)
    after = applied(image, first.records)
    refusal = encode_response(ApiKey.CREATE_TOPICS, version, 7, DECIDERS[ApiKey.CREATE_TOPICS](after, request).reply)

    class Metadata:
        def __init__(self) -> None:
            self.image = image

        async def wait_for(self, shown: Callable[[MetadataImage], bool], *, timeout_ms: int) -> MetadataImage:
            assert shown(self.image), "what the controller told of is there"
            return self.image

    metadata = Metadata()

    class Channel:
        async def forward(self, context: Any, body: bytes, *, timeout_ms: int) -> Forwarded:
            metadata.image = after
            return Forwarded(refusal, is_repeat)

    async def main() -> Any:
        handlers = ForwardingHandlers(SETTINGS, channel=cast(Any, Channel()), metadata=cast(Any, metadata))
        context = SimpleNamespace(api_key=ApiKey.CREATE_TOPICS, api_version=version, correlation_id=7)
        return await handlers.forward(cast(Any, context), body)

    (answered,) = asyncio.run(main())
    correlation_id, answer = decode_response(ApiKey.CREATE_TOPICS, version, answered)
    assert correlation_id == 7
    assert (answer == heard(ApiKey.CREATE_TOPICS, first.reply)) is is_repeat
    assert [item.error_code for item in answer.topics] == [ErrorCode.none if is_repeat else ErrorCode.topic_already_exists]


def test_more_partitions_than_asked_for_are_an_error(image: MetadataImage) -> None:
    _, answer = repeated(ApiKey.CREATE_PARTITIONS, image, widening("old", 3), meanwhile=widening("old", 4))
    assert [item.error_code for item in answer.results] == [ErrorCode.invalid_partitions]
