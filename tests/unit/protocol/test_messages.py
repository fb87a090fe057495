"""Every message of every version against kio's own reader and writer; names, defaults and headers."""

from __future__ import annotations

import random
import uuid
from unittest import mock

import pytest
from kio.index import load_request_schema, load_response_schema
from kio.schema.index import api_key_map, schema_name_map
from kio_messages import kio_bytes, message, plain

from raftlog.protocol import apis, messages
from raftlog.protocol.messages import ApiKey, MalformedFrame
from raftlog.protocol.plans import family
from raftlog.protocol.wire import TAGGED_FIELDS_MAX

ALL = sorted(messages.API_VERSIONS_ALL.items())
INSTANCES_PER_VERSION = 6


@pytest.mark.parametrize(("api_key", "versions"), ALL, ids=[messages.api_name(key) for key, _ in ALL])
def test_every_version_round_trips_and_agrees_with_kio(api_key: int, versions: tuple[int, int]) -> None:
    for version in range(versions[0], versions[1] + 1):
        for is_request in (True, False):
            plan = family(api_key, is_request).plan(version)
            for seed in range(INSTANCES_PER_VERSION):
                context = (api_key, version, is_request, seed)
                values = message(plan, random.Random(str(context)))
                out = bytearray()
                plan.write(out, values)
                body = bytes(out)
                # Read by kio, written by kio: the same bytes.
                assert kio_bytes(api_key, version, body, is_request=is_request) == body, context
                if is_request:
                    decoded = messages.decode_request(api_key, version, memoryview(body))
                else:
                    frame = messages.encode_response(api_key, version, 77, values)
                    correlation_id, decoded = messages.decode_response(api_key, version, frame)
                    assert correlation_id == 77
                assert plain(decoded) == plain(values), context
                # What was decoded can be encoded as it is.
                again = bytearray()
                plan.write(again, decoded)
                assert again == body, context


def test_versions_are_those_kio_has() -> None:
    for api_key, (low, high) in ALL:
        known = schema_name_map[api_key_map[api_key]]
        assert low >= min(known), api_key
        assert high <= max(known), api_key


def test_flexible_versions_and_header_versions_are_kios() -> None:
    for api_key, (low, high) in ALL:
        for version in range(low, high + 1):
            request, response = load_request_schema(api_key, version), load_response_schema(api_key, version)
            assert messages.has_flexible_header(api_key, version) == request.__flexible__, (api_key, version)
            assert messages.has_flexible_header(api_key, version) == (request.__header_schema__.__version__ == 2), (api_key, version)
            header = messages.encode_response_header(api_key, version, 1)
            assert len(header) == 4 + response.__header_schema__.__version__, (api_key, version)


def test_every_key_has_a_name() -> None:
    assert {int(key) for key in ApiKey} == {*(key for key, _ in ALL), ApiKey.RAFTLOG_RAFT}
    for api_key, _ in ALL:
        assert ApiKey(api_key).name.lower() == api_key_map[api_key]
    assert apis.api_name(9999) == "api key 9999"


@pytest.mark.parametrize(("version", "client_id"), [(0, "client"), (0, None), (12, "käfka"), (12, ""), (12, None)])
def test_request_header(version: int, client_id: str | None) -> None:
    frame = messages.encode_request(ApiKey.METADATA, version, 12, client_id, {"topics": ()})
    header = messages.parse_request_header(frame)
    assert header[:4] == (ApiKey.METADATA, version, 12, client_id)
    assert messages.decode_request(ApiKey.METADATA, version, memoryview(frame)[header.body_offset :]).topics == ()


def test_request_header_skips_tagged_fields_it_does_not_know() -> None:
    frame = bytearray(messages.encode_request_header(ApiKey.METADATA, 12, 1, "c"))
    assert frame.pop() == 0
    frame += bytes((2, 0, 3)) + b"abc" + bytes((200, 1, 0)) + b"body"
    assert messages.parse_request_header(frame).body_offset == len(frame) - 4


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\3\0\x0c\0\0",
        b"\0\3\0\x0c\0\0\0\1\0\5ab",
        b"\0\3\0\x0c\0\0\0\1\0\2\xff\xfe\0",
        b"\0\3\0\x0c\0\0\0\1\xff\xff",
        b"\0\3\0\x0c\0\0\0\1\xff\xff\1\0\5a",
    ],
)
def test_malformed_request_headers(frame: bytes) -> None:
    with pytest.raises(MalformedFrame):
        messages.parse_request_header(frame)


def test_a_body_that_is_cut_is_malformed_and_what_follows_one_is_passed_over() -> None:
    body = messages.encode_request_body(ApiKey.HEARTBEAT, 4, {"group_id": "g", "generation_id": 1, "member_id": "m"})
    for cut in range(len(body)):
        with pytest.raises(MalformedFrame):
            messages.decode_request(ApiKey.HEARTBEAT, 4, body[:cut])
    assert messages.decode_request(ApiKey.HEARTBEAT, 4, body + b"\0").group_id == "g"


def test_librdkafkas_request_for_all_topics_is_understood() -> None:
    request = messages.decode_request(ApiKey.METADATA, 13, b"\0\0\0\0\1\0\0")
    assert request.topics is None


def test_random_bytes_are_malformed_or_decoded_but_nothing_else() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        api_key, (low, high) = chance.choice(ALL)
        body = chance.randbytes(chance.randrange(80))
        try:
            messages.decode_request(api_key, chance.randint(low, high), body)
        except MalformedFrame:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


def test_fields_have_the_names_of_all_versions() -> None:
    old = messages.decode_request(ApiKey.FIND_COORDINATOR, 0, messages.encode_request_body(ApiKey.FIND_COORDINATOR, 0, {"key": "g"}))
    assert (old.key, old.key_type, old.coordinator_keys) == ("g", 0, ())
    new = messages.decode_request(ApiKey.FIND_COORDINATOR, 4, messages.encode_request_body(ApiKey.FIND_COORDINATOR, 4, {"coordinator_keys": ["g"]}))
    assert (new.key, new.coordinator_keys) == (None, ("g",))
    metadata = messages.decode_request(ApiKey.METADATA, 9, messages.encode_request_body(ApiKey.METADATA, 9, {"topics": [{"name": "t"}]}))
    assert metadata.topics[0].topic_id == uuid.UUID(int=0)
    assert metadata.topics is not None
    with pytest.raises(AttributeError, match=r"no version of metadata\.topics has a field 'nmae'"):
        _ = metadata.topics[0].nmae


def test_encoding_drops_names_of_other_versions_and_refuses_unknown_ones() -> None:
    response = {"throttle_time": 5, "topics": [{"name": "t", "topic_id": uuid.uuid4(), "partitions": [{"leader_epoch": 3, "leader_id": 1}]}]}
    _, old = messages.decode_response(ApiKey.METADATA, 0, messages.encode_response(ApiKey.METADATA, 0, 1, response))
    assert old.topics[0].partitions[0].leader_id == 1
    _, new = messages.decode_response(ApiKey.METADATA, 13, messages.encode_response(ApiKey.METADATA, 13, 1, response))
    assert (new.throttle_time, new.topics[0].partitions[0].leader_epoch, new.cluster_id) == (5, 3, None)
    with pytest.raises(AttributeError, match="no version of metadata has a field 'topicz'"):
        messages.encode_response(ApiKey.METADATA, 13, 1, {"topicz": ()})
    with pytest.raises(AttributeError, match="has a field 'x'"):
        messages.encode_response(ApiKey.METADATA, 13, 1, {"topics": [{"x": 1}]})


def test_ill_typed_values_name_their_field() -> None:
    with pytest.raises(ValueError, match="group_id=None"):
        messages.encode_request_body(ApiKey.HEARTBEAT, 4, {"group_id": None})


@pytest.mark.parametrize("version", [1, 12])
def test_a_request_has_so_many_items_at_most(version: int) -> None:
    def body(count: int) -> bytes:
        named = {"name": ""} if version < 10 else {"name": None, "topic_id": uuid.UUID(int=5)}
        return messages.encode_request_body(ApiKey.METADATA, version, {"topics": [named] * count})

    assert len(messages.decode_request(ApiKey.METADATA, version, body(1000)).topics) == 1000
    with mock.patch.object(messages, "ITEMS_PER_REQUEST_MAX", 1000):
        assert len(messages.decode_request(ApiKey.METADATA, version, body(1000)).topics) == 1000
        with pytest.raises(MalformedFrame, match="more than"):
            messages.decode_request(ApiKey.METADATA, version, body(1001))


def test_items_of_nested_lists_count_together() -> None:
    topics = [{"topic": "t", "partitions": [{"partition": number, "leader_epoch": 0} for number in range(10)]}] * 10
    body = messages.encode_request_body(ApiKey.OFFSET_FOR_LEADER_EPOCH, 4, {"replica_id": -1, "topics": topics})
    with mock.patch.object(messages, "ITEMS_PER_REQUEST_MAX", 110):
        assert len(messages.decode_request(ApiKey.OFFSET_FOR_LEADER_EPOCH, 4, body).topics) == 10
    with mock.patch.object(messages, "ITEMS_PER_REQUEST_MAX", 109), pytest.raises(MalformedFrame):
        messages.decode_request(ApiKey.OFFSET_FOR_LEADER_EPOCH, 4, body)


def test_what_was_asked_for_may_be_long() -> None:
    """A response is what this process asked for: of a million partitions, all are told."""
    with mock.patch.object(messages, "ITEMS_PER_REQUEST_MAX", 0):
        nodes = [{"node_id": number, "host": "h", "port": 1, "rack": None} for number in range(50)]
        body = messages.encode_response(ApiKey.METADATA, 1, 7, {"brokers": nodes, "controller_id": 1, "topics": []})
        assert len(messages.decode_response(ApiKey.METADATA, 1, body)[1].brokers) == 50


def test_a_section_has_so_many_tagged_fields_at_most() -> None:
    def frame(count: int) -> bytes:
        return b"\0\3\0\x0c\0\0\0\5\xff\xff" + bytes((count,)) + b"\x63\0" * count + b"\0\0\0\0"

    assert messages.parse_request_header(frame(TAGGED_FIELDS_MAX)).correlation_id == 5
    with pytest.raises(MalformedFrame, match="tagged fields"):
        messages.parse_request_header(frame(TAGGED_FIELDS_MAX + 1))
