"""The hand-packed Produce and Fetch against the schemas, byte for byte, in every version and in both directions."""

from __future__ import annotations

import random
import uuid
from typing import Any
from unittest import mock

import pytest
from kio_messages import kio_bytes, message

from raftlog.protocol import fetch, messages, produce
from raftlog.protocol.messages import MalformedFrame
from raftlog.protocol.plans import Fields, family

INSTANCES_PER_VERSION = 40


def generated(api_key: int, version: int, seed: int, *, is_request: bool) -> tuple[Fields, bytes]:
    """A random message as decoded Fields, and its bytes, which kio reads and writes the same."""
    plan = family(api_key, is_request).plan(version)
    out = bytearray()
    plan.write(out, message(plan, random.Random(f"{api_key} {version} {seed} {is_request}")))
    body = bytes(out)
    assert kio_bytes(api_key, version, body, is_request=is_request) == body
    if is_request:
        return messages.decode_request(api_key, version, body), body
    return messages.decode_response_body(api_key, version, body), body


def topic_of(fields: Fields, version: int, by_name: str) -> Any:
    return fields.topic_id if version >= 13 else getattr(fields, by_name)


def pair(fields: Fields, first: str, second: str) -> tuple[int, int]:
    return (getattr(fields, first), getattr(fields, second))


@pytest.mark.parametrize("version", range(3, 14))
def test_produce_request(version: int) -> None:
    for seed in range(INSTANCES_PER_VERSION):
        fields, body = generated(0, version, seed, is_request=True)
        request = produce.parse_produce_request(memoryview(body), version)
        assert (request.transactional_id, request.acks, request.timeout_ms) == (fields.transactional_id, fields.acks, fields.timeout), seed
        parsed = [(topic, [(index, None if r is None else bytes(r)) for index, r in partitions]) for topic, partitions in request.topics]
        expected = [(topic_of(t, version, "name"), [(p.index, p.records) for p in t.partition_data]) for t in fields.topic_data]
        assert parsed == expected, seed


@pytest.mark.parametrize("version", range(3, 14))
def test_produce_response(version: int) -> None:
    for seed in range(INSTANCES_PER_VERSION):
        fields, body = generated(0, version, seed, is_request=False)
        topics = []
        for topic in fields.responses:
            partitions = [
                produce.ProducedPartition(
                    item.index,
                    item.error_code,
                    item.base_offset,
                    item.log_append_time,
                    item.log_start_offset,
                    item.error_message if version >= 8 else "dropped",
                    [produce.RecordError(e.batch_index, e.batch_index_error_message) for e in item.record_errors],
                    pair(item.current_leader, "leader_id", "leader_epoch") if version >= 10 else (5, 6),
                )
                for item in topic.partition_responses
            ]
            topics.append((topic_of(topic, version, "name"), partitions))
        endpoints = [(e.node_id, e.host, e.port, e.rack) for e in fields.node_endpoints] if version >= 10 else [(1, "h", 2, None)]
        frame = produce.encode_produce_response(version, 9, topics, throttle_ms=fields.throttle_time, node_endpoints=endpoints)
        assert frame == messages.encode_response_header(0, version, 9) + body, seed


def asked(fields: Fields, version: int) -> fetch.FetchPartition:
    return fetch.FetchPartition(
        fields.partition,
        fields.current_leader_epoch,
        fields.fetch_offset,
        fields.last_fetched_epoch,
        fields.log_start_offset,
        fields.partition_max_bytes,
        fields.replica_directory_id,
        fields.high_watermark,
    )


@pytest.mark.parametrize("version", range(4, 19))
def test_fetch_request(version: int) -> None:
    for seed in range(INSTANCES_PER_VERSION):
        fields, body = generated(1, version, seed, is_request=True)
        request = fetch.parse_fetch_request(memoryview(body), version)
        state = (fields.replica_state.replica_id, fields.replica_state.replica_epoch) if version >= 15 else (fields.replica_id, -1)
        expected = fetch.FetchRequest(
            wait_ms_max=fields.max_wait,
            size_bytes_min=fields.min_bytes,
            topics=[(topic_of(t, version, "topic"), [asked(p, version) for p in t.partitions]) for t in fields.topics],
            size_bytes_max=fields.max_bytes,
            isolation_level=fields.isolation_level,
            replica_id=state[0],
            replica_epoch=state[1],
            session_id=fields.session_id if version >= 7 else 0,
            session_epoch=fields.session_epoch if version >= 7 else -1,
            forgotten=[(topic_of(t, version, "topic"), t.partitions) for t in fields.forgotten_topics_data],
            rack_id=fields.rack_id if version >= 11 else "",
            cluster_id=fields.cluster_id if version >= 12 else None,
        )
        assert request == expected, seed
        assert fetch.encode_fetch_request(version, request) == body, seed


def answered(fields: Fields, version: int) -> fetch.FetchedPartition:
    tagged = version >= 12
    aborted = fields.aborted_transactions
    return fetch.FetchedPartition(
        fields.partition_index,
        fields.error_code,
        fields.high_watermark,
        fields.last_stable_offset,
        fields.log_start_offset,
        fields.records or b"",
        None if aborted is None else [(a.producer_id, a.first_offset) for a in aborted],
        fields.preferred_read_replica,
        pair(fields.diverging_epoch, "epoch", "end_offset") if tagged else None,
        pair(fields.current_leader, "leader_id", "leader_epoch") if tagged else None,
        pair(fields.snapshot_id, "end_offset", "epoch") if tagged else None,
    )


@pytest.mark.parametrize("version", range(4, 19))
def test_fetch_response(version: int) -> None:
    for seed in range(INSTANCES_PER_VERSION):
        plan = family(1, False).plan(version)
        values = message(plan, random.Random(f"1 {version} {seed} False"))
        for topic in values["responses"]:
            for item in topic["partitions"]:
                item["records"] = item["records"] or b""  # We never send null records.
        out = bytearray()
        plan.write(out, values)
        body = bytes(out)
        assert kio_bytes(1, version, body, is_request=False) == body
        fields = messages.decode_response_body(1, version, body)
        topics = [(topic_of(t, version, "topic"), [answered(p, version) for p in t.partitions]) for t in fields.responses]
        endpoints = [(e.node_id, e.host, e.port, e.rack) for e in fields.node_endpoints] if version >= 16 else [(1, "h", 2, None)]
        buffers = fetch.encode_fetch_response(
            version,
            9,
            topics,
            throttle_ms=fields.throttle_time,
            error_code=fields.error_code if version >= 7 else 0,
            session_id=fields.session_id if version >= 7 else 0,
            node_endpoints=endpoints,
        )
        assert b"".join(buffers) == messages.encode_response_header(1, version, 9) + body, seed
        again = fetch.parse_fetch_response(memoryview(body), version)
        assert again.throttle_ms == fields.throttle_time
        assert (again.error_code, again.session_id) == ((fields.error_code, fields.session_id) if version >= 7 else (0, 0))
        assert again.node_endpoints == (endpoints if version >= 16 else [])
        none = (-1, -1)
        for (topic, parsed), (expected_topic, expected) in zip(again.topics, topics, strict=True):
            assert topic == expected_topic
            for got, wanted in zip(parsed, expected, strict=True):
                assert got._replace(records=bytes(got.records))[:8] == wanted[:8], seed
                assert tuple(value or none for value in got[8:]) == tuple(value or none for value in wanted[8:]), seed


def test_large_records_are_passed_through_and_not_copied() -> None:
    records = memoryview(bytearray(fetch.RECORDS_COPIED_BYTES_MAX + 1))
    buffers = fetch.encode_fetch_response(17, 1, [("t", [fetch.FetchedPartition(0, 0, records=records)])])
    assert any(buffer is records for buffer in buffers)


def test_records_of_a_produce_request_are_views_of_it() -> None:
    fields = {"acks": 1, "timeout": 5, "topic_data": [{"name": "t", "partition_data": [{"index": 3, "records": b"abc"}]}]}
    body = bytearray(messages.encode_request_body(0, 9, fields))
    records = produce.parse_produce_request(memoryview(body), 9).topics[0][1][0][1]
    assert records is not None
    body[body.index(b"abc")] = ord("x")
    assert bytes(records) == b"xbc"


@pytest.mark.parametrize(("api_key", "versions"), [(0, (3, 8, 9, 13)), (1, (4, 7, 11, 12, 18))])
def test_every_cut_is_malformed_and_a_surplus_is_ignored(api_key: int, versions: tuple[int, ...]) -> None:
    parse = produce.parse_produce_request if api_key == 0 else fetch.parse_fetch_request
    for version in versions:
        _, body = generated(api_key, version, 3, is_request=True)
        for cut in range(0, len(body), 1 + len(body) // 400):
            with pytest.raises(MalformedFrame):
                parse(memoryview(body)[:cut], version)
        assert parse(memoryview(body + b"\0"), version) == parse(memoryview(body), version)


def test_random_bytes_are_malformed_or_parsed_but_nothing_else() -> None:
    for seed in range(2000):
        chance = random.Random(seed)
        body = memoryview(chance.randbytes(chance.randrange(120)))
        try:
            for parse, version in (
                (produce.parse_produce_request, chance.randint(3, 13)),
                (fetch.parse_fetch_request, chance.randint(4, 18)),
                (fetch.parse_fetch_response, chance.randint(4, 18)),
            ):
                try:
                    parse(body, version)
                except MalformedFrame:
                    continue
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


@pytest.mark.parametrize("version", [3, 9, 13])
def test_produce_has_so_many_partitions_at_most(version: int) -> None:
    def body(topics: int, partitions: int) -> memoryview:
        named = {"topic_id": uuid.UUID(int=5)} if version >= 13 else {"name": "t"}
        data = [{**named, "partition_data": [{"index": 0, "records": None}] * partitions}] * topics
        return memoryview(messages.encode_request_body(0, version, {"transactional_id": None, "acks": 1, "timeout": 1, "topic_data": data}))

    with mock.patch.object(produce, "PARTITIONS_PER_REQUEST_MAX", 20):
        assert len(produce.parse_produce_request(body(2, 9), version).topics) == 2
        for topics, partitions in ((2, 11), (1, 21), (21, 0)):
            with pytest.raises(MalformedFrame, match="at most"):
                produce.parse_produce_request(body(topics, partitions), version)


@pytest.mark.parametrize("version", [4, 12, 17])
def test_fetch_names_so_many_partitions_at_most(version: int) -> None:
    def body(topics: int, partitions: int, forgotten: int = 0) -> memoryview:
        topic = uuid.UUID(int=5) if version >= 13 else "t"
        asked = [(topic, [fetch.FetchPartition(0, -1, 0, -1, -1, 1)] * partitions)] * topics
        request = fetch.FetchRequest(1, 1, asked, forgotten=[(topic, [0] * forgotten)] if forgotten else [])
        return memoryview(fetch.encode_fetch_request(version, request))

    with mock.patch.object(fetch, "PARTITIONS_PER_REQUEST_MAX", 20):
        assert len(fetch.parse_fetch_request(body(2, 10), version).topics) == 2
        for case in ((2, 11), (1, 21), (21, 0), *(((1, 1, 21),) if version >= 7 else ())):
            with pytest.raises(MalformedFrame, match="at most"):
                fetch.parse_fetch_request(body(*case), version)
