"""From request to handler and back: ApiVersions, versions nobody has, and errors in the shape of each API's response."""

from __future__ import annotations

import asyncio
import logging
import types
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from raftlog.errors import MESSAGE_CHARS_MAX, ApiError, ErrorCode, InvalidRequest, NotController
from raftlog.network.connection import RequestContext
from raftlog.protocol import messages
from raftlog.protocol.messages import API_VERSIONS_ALL, API_VERSIONS_BROKER, ApiKey, Fields, MalformedFrame
from raftlog.server.router import Router, error_fields

FEATURES = {
    "supported_features": [
        {"name": "metadata.version", "min_version": 21, "max_version": 29},
        {"name": "group.version", "min_version": 0, "max_version": 1},
    ],
    "finalized_features_epoch": 12,
    "finalized_features": [{"name": "metadata.version", "max_version_level": 25, "min_version_level": 25}],
}


def metadata(context: RequestContext, request: Fields) -> Mapping[str, Any]:
    return {"cluster_id": context.client_id}


def router(handlers: Mapping[int, Any] | None = None, raw: Mapping[int, Any] | None = None) -> Router:
    return Router(handlers or {ApiKey.METADATA: metadata}, raw or {}, API_VERSIONS_BROKER, features=lambda: FEATURES)


def ask(target: Router, api_key: int, version: int, fields: Mapping[str, Any] | None = None) -> Any:
    """Dispatch one request; the decoded response, by the version it was asked in."""
    frame = messages.encode_request(api_key, version, 5, "me", fields or {})
    response = dispatch(target, frame)
    correlation_id, decoded = messages.decode_response(api_key, version, response)
    assert correlation_id == 5
    return decoded


def dispatch(target: Router, frame: bytes) -> bytes:
    header = messages.parse_request_header(frame)
    connection: Any = types.SimpleNamespace(peer="127.0.0.1:9")
    context = RequestContext(connection, *header[:4], "PLAINTEXT")
    response = target.dispatch(context, memoryview(frame)[header.body_offset :])

    async def finish() -> Any:
        return await response  # type: ignore[misc]

    if not isinstance(response, list | tuple):
        response = asyncio.run(finish())
    assert response is not None
    return b"".join(response)


@pytest.mark.parametrize("version", range(5))
def test_api_versions_lists_what_has_a_handler(version: int) -> None:
    raw = {ApiKey.PRODUCE: lambda context, body: None, ApiKey.FETCH: lambda context, body: None, ApiKey.RAFTLOG_RAFT: lambda context, body: None}
    fields = {"client_software_name": "librdkafka", "client_software_version": "2.6.0"}
    answer = ask(router(raw=raw), ApiKey.API_VERSIONS, version, fields)
    assert answer.error_code == 0
    table = {api.api_key: (api.min_version, api.max_version) for api in answer.api_keys}
    # Produce is served from v3 on; old librdkafka compresses only where it is told of v0.
    assert table == {ApiKey.PRODUCE: (0, 13), ApiKey.FETCH: (4, 18), ApiKey.METADATA: (0, 13), ApiKey.API_VERSIONS: (0, 4)}
    if version >= 3:
        names = [feature.name for feature in answer.supported_features]
        assert names == (["metadata.version", "group.version"] if version >= 4 else ["metadata.version"])
        assert answer.finalized_features_epoch == 12
        assert answer.finalized_features[0].max_version_level == 25


@pytest.mark.parametrize("version", [5, 99, -1])
def test_api_versions_of_an_unknown_version_is_answered_in_version_0(version: int) -> None:
    frame = messages.encode_request_header(ApiKey.API_VERSIONS, version, 5, "future") + b"whatever comes then"
    correlation_id, answer = messages.decode_response(ApiKey.API_VERSIONS, 0, dispatch(router(), frame))
    assert (correlation_id, answer.error_code) == (5, ErrorCode.unsupported_version)
    assert {api.api_key for api in answer.api_keys} == {ApiKey.METADATA, ApiKey.API_VERSIONS}


def test_api_versions_with_an_ill_named_client() -> None:
    for name, version in (("", "1"), ("-x", "1"), ("ok", "a b")):
        fields = {"client_software_name": name, "client_software_version": version}
        assert ask(router(), ApiKey.API_VERSIONS, 4, fields).error_code == ErrorCode.invalid_request


@pytest.mark.parametrize(("api_key", "version"), [(ApiKey.METADATA, 14), (ApiKey.METADATA, -1), (ApiKey.HEARTBEAT, 4), (777, 0), (-1, 0)])
def test_what_is_not_advertised_ends_the_connection(api_key: int, version: int) -> None:
    frame = messages.encode_request_header(api_key, version, 5, "me") + b"\0"
    with pytest.raises(MalformedFrame, match=f"v{version} is not supported"):
        dispatch(router(), frame)


def test_a_body_that_can_not_be_decoded_ends_the_connection() -> None:
    with pytest.raises(MalformedFrame, match="Metadata v12 can't be decoded"):
        dispatch(router(), messages.encode_request_header(ApiKey.METADATA, 12, 5, "me") + b"\x05abc")


@pytest.mark.parametrize("is_async", [False, True])
def test_handlers_answer_now_or_later(is_async: bool) -> None:
    async def later(context: RequestContext, request: Fields) -> Mapping[str, Any]:
        return metadata(context, request)

    target = router({ApiKey.METADATA: later if is_async else metadata})
    assert ask(target, ApiKey.METADATA, 12).cluster_id == "me"


@pytest.mark.parametrize("is_async", [False, True])
def test_errors_of_handlers_become_responses(is_async: bool, caplog: Any) -> None:
    def failing(error: Exception) -> Any:
        async def later(context: RequestContext, request: Fields) -> Mapping[str, Any]:
            raise error

        def now(context: RequestContext, request: Fields) -> Mapping[str, Any]:
            raise error

        return router({ApiKey.CREATE_TOPICS: later if is_async else now, ApiKey.HEARTBEAT: later if is_async else now})

    refused = ask(failing(NotController("go elsewhere")), ApiKey.CREATE_TOPICS, 7, {"topics": [{"name": "a"}, {"name": "b"}]})
    assert [(t.name, t.error_code, t.error_message) for t in refused.topics] == [
        ("a", ErrorCode.not_controller, "go elsewhere"),
        ("b", ErrorCode.not_controller, "go elsewhere"),
    ]
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        failed = ask(failing(KeyError("bug")), ApiKey.HEARTBEAT, 4, {"group_id": "g", "member_id": "m"})
    assert failed.error_code == ErrorCode.unknown_server_error
    assert [record.getMessage() for record in caplog.records] == ["Heartbeat v4 from 127.0.0.1:9 failed: KeyError: 'bug'"]


def test_a_reply_that_can_not_be_encoded_is_our_error() -> None:
    assert ask(router({ApiKey.HEARTBEAT: lambda c, r: {"no_such_field": 1}}), ApiKey.HEARTBEAT, 4).error_code == ErrorCode.unknown_server_error


TOPIC_ID = uuid.UUID(int=99)
TOPICS = {
    ApiKey.LIST_OFFSETS: {"topics": [{"name": "t", "partitions": [{"partition_index": 1}, {"partition_index": 2}]}]},
    ApiKey.OFFSET_COMMIT: {"topics": [{"name": "t", "topic_id": TOPIC_ID, "partitions": [{"partition_index": 1}, {"partition_index": 2}]}]},
    ApiKey.OFFSET_FOR_LEADER_EPOCH: {"topics": [{"topic": "t", "partitions": [{"partition": 1}, {"partition": 2}]}]},
    ApiKey.DELETE_RECORDS: {"topics": [{"name": "t", "partitions": [{"partition_index": 1}, {"partition_index": 2}]}]},
    ApiKey.TXN_OFFSET_COMMIT: {"topics": [{"name": "t", "partitions": [{"partition_index": 1}, {"partition_index": 2}]}]},
    ApiKey.METADATA: {"topics": [{"name": "x"}, {"name": "y"}]},
    ApiKey.CREATE_PARTITIONS: {"topics": [{"name": "x"}, {"name": "y"}]},
    ApiKey.DESCRIBE_GROUPS: {"groups": ["x", "y"]},
    ApiKey.DELETE_GROUPS: {"groups_names": ["x", "y"]},
    ApiKey.DESCRIBE_CONFIGS: {"resources": [{"resource_type": 2, "resource_name": "x"}, {"resource_type": 2, "resource_name": "y"}]},
    ApiKey.INCREMENTAL_ALTER_CONFIGS: {"resources": [{"resource_type": 2, "resource_name": "x"}, {"resource_type": 2, "resource_name": "y"}]},
}
ITEMS = {
    ApiKey.METADATA: "topics",
    ApiKey.CREATE_PARTITIONS: "results",
    ApiKey.DESCRIBE_GROUPS: "groups",
    ApiKey.DELETE_GROUPS: "results",
    ApiKey.DESCRIBE_CONFIGS: "results",
    ApiKey.INCREMENTAL_ALTER_CONFIGS: "responses",
}


def refusal(api_key: int, version: int, fields: Mapping[str, Any]) -> Fields:
    request = messages.decode_request(api_key, version, messages.encode_request_body(api_key, version, fields))
    answer = error_fields(api_key, version, request, code=ErrorCode.invalid_request, message="no")
    return messages.decode_response(api_key, version, messages.encode_response(api_key, version, 5, answer))[1]


@pytest.mark.parametrize("api_key", [key for key in TOPICS if key not in ITEMS])
def test_refusals_name_each_partition_that_was_asked_for(api_key: int) -> None:
    low, high = API_VERSIONS_ALL[api_key]
    for version in range(low, high + 1):
        answer = refusal(api_key, version, TOPICS[api_key])
        (topic,) = answer.topics
        names = [value for name, value in vars(topic).items() if name in ("name", "topic", "topic_id")]
        assert names in (["t"], [TOPIC_ID]), version
        assert [vars(p).get("partition_index", vars(p).get("partition")) for p in topic.partitions] == [1, 2]
        assert {p.error_code for p in topic.partitions} == {ErrorCode.invalid_request}


@pytest.mark.parametrize("api_key", list(ITEMS))
def test_refusals_name_each_item_that_was_asked_for(api_key: int) -> None:
    low, high = API_VERSIONS_ALL[api_key]
    for version in range(low, high + 1):
        answer = refusal(api_key, version, TOPICS[api_key])
        if "error_code" in vars(answer):
            assert answer.error_code == ErrorCode.invalid_request
            continue
        items = getattr(answer, ITEMS[api_key])
        assert [next(value for value in vars(item).values() if value in ("x", "y")) for item in items] == ["x", "y"], version
        assert {item.error_code for item in items} == {ErrorCode.invalid_request}


def test_a_refusal_of_what_has_no_name() -> None:
    """Metadata v10 and v11: the request may name no topic, the response may not."""

    def refuse(context: RequestContext, request: Fields) -> Mapping[str, Any]:
        raise InvalidRequest("by name")

    refused = ask(router({ApiKey.METADATA: refuse}), ApiKey.METADATA, 11, {"topics": [{"name": None, "topic_id": TOPIC_ID}]})
    assert [(t.name, t.topic_id, t.error_code) for t in refused.topics] == [("", TOPIC_ID, ErrorCode.invalid_request)]


def test_a_message_that_quotes_what_a_client_sent_is_short() -> None:
    def refuse(context: RequestContext, request: Fields) -> Mapping[str, Any]:
        raise InvalidRequest(f"bad name {request.topics[0].name}")

    refused = ask(router({ApiKey.CREATE_TOPICS: refuse}), ApiKey.CREATE_TOPICS, 3, {"topics": [{"name": "x" * 32767}]})
    assert len(refused.topics[0].error_message) == MESSAGE_CHARS_MAX
    said = ask(router({ApiKey.DESCRIBE_CLUSTER: lambda c, r: {"error_message": "x" * 40_000}}), ApiKey.DESCRIBE_CLUSTER, 0)
    assert len(said.error_message) == MESSAGE_CHARS_MAX


def test_refusals_of_apis_that_changed_their_shape() -> None:
    for version in (1, 5):
        answer = refusal(ApiKey.DELETE_TOPICS, version, {"topic_names": ["x", "y"]})
        assert [(item.name, item.error_code) for item in answer.responses] == [("x", 42), ("y", 42)]
    answer = refusal(ApiKey.DELETE_TOPICS, 6, {"topics": [{"name": None, "topic_id": TOPIC_ID}]})
    assert [(item.name, item.topic_id, item.error_code) for item in answer.responses] == [(None, TOPIC_ID, 42)]
    assert refusal(ApiKey.FIND_COORDINATOR, 3, {"key": "g"}).error_code == 42
    answer = refusal(ApiKey.FIND_COORDINATOR, 4, {"coordinator_keys": ["g", "h"]})
    assert [(item.key, item.error_code, item.error_message) for item in answer.coordinators] == [("g", 42, "no"), ("h", 42, "no")]
    answer = refusal(ApiKey.OFFSET_FETCH, 8, {"groups": [{"group_id": "g"}]})
    assert [(item.group_id, item.error_code) for item in answer.groups] == [("g", 42)]


@pytest.mark.parametrize("api_key", sorted(API_VERSIONS_ALL))
def test_every_api_can_refuse_an_empty_request(api_key: int) -> None:
    low, high = API_VERSIONS_ALL[api_key]
    for version in range(low, high + 1):
        refusal(api_key, version, {})


def test_a_message_of_an_error_without_words() -> None:
    class Odd(ApiError):
        code = ErrorCode.invalid_request

    def refuse(context: RequestContext, request: Fields) -> Mapping[str, Any]:
        raise Odd

    answer = ask(router({ApiKey.FIND_COORDINATOR: refuse}), ApiKey.FIND_COORDINATOR, 3, {"key": "g"})
    assert (answer.error_code, answer.error_message) == (InvalidRequest.code, None)
