"""Whatever comes over the wire costs its sender one answer or its connection, and nobody else anything.

Every API and version that a node advertises gets requests that are nonsense within their schema, and ones that are broken.
Beside it an ordinary producer and an ordinary consumer work on, and may not see one error.
HOSTILE_SEED repeats a run, HOSTILE_ROUNDS makes it longer.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import uuid
import zlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hostile_node import (
    HOST,
    MEMORY_GROWTH_BYTES_MAX,
    RAFT_API_KEY,
    ROUNDS,
    SEED,
    LogWatch,
    advertised,
    ask,
    exchange,
    fault_of,
    frame,
    memory_bytes,
    port_of,
    send,
    watching,
)
from hostile_requests import KNOWN_TOPIC, NODE_ID, HostileRequests, good_batch

from raftlog.core.log import intake
from raftlog.errors import ErrorCode
from raftlog.protocol import batches
from raftlog.protocol.apis import ApiKey, api_name
from raftlog.protocol.batches import Compression, Record, crc32c, encode_batch
from raftlog.protocol.messages import decode_response, encode_request
from raftlog.testing import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(1, {"group.initial.rebalance.delay.ms": 0, "auto.create.topics.enable": False}) as running:
        yield running


@pytest.fixture
def watched(cluster: Cluster) -> Iterator[LogWatch]:
    with watching(cluster) as watch:
        yield watch


@pytest.fixture(params=["broker", "controller"])
def port(request: pytest.FixtureRequest, cluster: Cluster) -> int:
    """Of one of the node's listeners."""
    return port_of(cluster, request.param)


def test_every_api_and_version(cluster: Cluster, port: int, watched: LogWatch) -> None:
    chance = random.Random(SEED)
    versions = [(api_key, version) for api_key, (low, high) in advertised(port).items() for version in range(low, high + 1)]
    assert len(versions) > 20
    faults: list[str] = []
    for _ in range(ROUNDS):
        requests = HostileRequests(chance, topic_id=target(cluster))
        for api_key, version in versions:
            valid = requests.well_formed(api_key, version)
            answer = send(port, valid, api_key=api_key)
            if fault := fault_of(api_key, version, answer):
                faults.append(f"{api_name(api_key)} v{version} {fault}: {valid[:300]!r}")
            for _ in range(2):
                send(port, requests.spoiled(valid), api_key=None)
    assert not faults, f"seed {SEED}: {len(faults)} faults:\n" + "\n".join(faults[:30])
    assert advertised(port)


def test_garbage_between_frames(port: int, watched: LogWatch) -> None:
    chance = random.Random(SEED)
    good = frame(encode_request(ApiKey.API_VERSIONS, 0, 1, "hostile", {}))
    for size in (1, 3, 4, 5, 100, 70_000):
        for _ in range(5):
            received = exchange(port, good + chance.randbytes(size) + good)
            if size > 100 and not received:
                continue  # What it did not read yet makes the kernel drop what it had sent.
            assert struct.unpack_from(">i", received, 4)[0] == 1, f"seed {SEED}: the first request is answered"


@pytest.mark.parametrize("size", [-1, -(2**31), 2**31 - 1, 100 * 2**20 + 1])
def test_announced_sizes(port: int, watched: LogWatch, size: int) -> None:
    assert exchange(port, struct.pack(">i", size) + b"x" * 100, half_close=False) == b""


def test_a_large_announced_size_costs_no_memory(port: int, watched: LogWatch) -> None:
    """100 MiB are allowed and announced on each of many connections, and never sent."""
    before = memory_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            opened = stack.enter_context(socket.create_connection((HOST, port)))
            opened.sendall(struct.pack(">i", 100 * 2**20) + b"\0\3\0\1")
        assert advertised(port)
        assert memory_bytes() - before < MEMORY_GROWTH_BYTES_MAX


def test_one_byte_at_a_time_and_never_the_last(port: int, watched: LogWatch) -> None:
    whole = frame(encode_request(ApiKey.METADATA, 1, 1, "slow", {"topics": None})) if port else b""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((HOST, port))) for _ in range(100)]
        for byte in whole[:-1]:
            for each in slow:
                each.sendall(bytes((byte,)))
        assert advertised(port)


def test_thousands_of_connections_that_close_at_once(port: int, watched: LogWatch) -> None:
    request = frame(encode_request(ApiKey.API_VERSIONS, 0, 1, "hostile", {}))
    for number in range(3000):
        opened = socket.create_connection((HOST, port))
        if number % 3 == 1:
            opened.sendall(request[: number % len(request)])
        elif number % 3 == 2:
            opened.sendall(request)
        if number % 2:  # A reset instead of an orderly end.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        opened.close()
    assert advertised(port)


def test_a_client_that_asks_and_never_reads(cluster: Cluster, port: int, watched: LogWatch) -> None:
    request = frame(encode_request(ApiKey.API_VERSIONS, 0, 1, "hostile", {}))
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            deaf = stack.enter_context(socket.create_connection((HOST, port)))
            deaf.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                for _ in range(2000):
                    deaf.sendall(request * 50)
        assert advertised(port)


def test_the_private_raft_api(cluster: Cluster, watched: LogWatch) -> None:
    """Whoever is no voter of this cluster is refused, whatever it says."""
    chance = random.Random(SEED)
    port = port_of(cluster, "controller")
    cluster_id = cluster.cluster_id.encode()
    hello = struct.pack(">iiq16sB", NODE_ID, NODE_ID, 1, bytes(16), len(cluster_id)) + cluster_id
    header = struct.pack(">hhih", RAFT_API_KEY, 0, 5, -1)
    requests = HostileRequests(chance, topic_id=uuid.UUID(int=1))
    for _ in range(200):
        send(port, header + requests.spoiled(hello), api_key=None)
    answer = exchange(port, frame(header + hello) + frame(b"\0" * 17) + frame(b"\xff" * 40))
    assert struct.unpack_from(">ih", answer, 4) == (5, 1), "no other voter exists, so none is accepted"
    send(port, header + hello[:-1] + b"\n" * 2**20, api_key=None)
    assert advertised(port)


LARGE_BYTES = 100_000


def batch(*, length: int | None = None, crc: int | None = None, sealed: bool = True, **header: int) -> bytes:
    """A good batch of two records with other header fields; `sealed`: its CRC is that of what it became."""
    content = bytearray(good_batch())
    layouts = {"base_offset": (0, ">q"), "magic": (16, ">b"), "attributes": (21, ">h"), "last_delta": (23, ">i"), "count": (57, ">i")}
    layouts |= {"producer_id": (43, ">q"), "producer_epoch": (51, ">h"), "sequence": (53, ">i")}
    for name, value in header.items():
        position, layout = layouts[name]
        struct.pack_into(layout, content, position, value)
    if sealed:
        struct.pack_into(">I", content, 17, crc32c(memoryview(content)[21:]))
    if crc is not None:
        struct.pack_into(">I", content, 17, crc)
    if length is not None:
        struct.pack_into(">i", content, 8, length)
    return bytes(content)


def old_message(magic: int) -> bytes:
    """A message set of format 0 or 1; its timestamp has every bit set that format 2 has other uses for."""
    body = struct.pack(">bb", magic, 0) + (b"\x7f" * 8 if magic else b"") + struct.pack(">i", -1) + struct.pack(">i", 20) + b"v" * 20
    message = struct.pack(">I", zlib.crc32(body)) + body
    return struct.pack(">qi", 0, len(message)) + message


BAD_BATCHES: dict[str, tuple[bytes | None, ErrorCode]] = {
    "null": (None, ErrorCode.invalid_record),
    "nothing": (b"", ErrorCode.invalid_record),
    "cut in the header": (good_batch()[:40], ErrorCode.corrupt_message),
    "cut in a record": (good_batch()[:-1], ErrorCode.corrupt_message),
    "bad crc": (batch(crc=1), ErrorCode.corrupt_message),
    "bits flipped": (good_batch()[:-1] + b"\xee", ErrorCode.corrupt_message),
    "length negative": (batch(length=-1), ErrorCode.corrupt_message),
    "length smallest": (batch(length=-(2**31)), ErrorCode.corrupt_message),
    "length zero": (batch(length=0), ErrorCode.corrupt_message),
    "length largest": (batch(length=2**31 - 1), ErrorCode.corrupt_message),
    "two batches": (good_batch() * 2, ErrorCode.invalid_record),
    "garbage behind": (good_batch() + b"garbage", ErrorCode.invalid_record),
    "format 0": (old_message(0), ErrorCode.unsupported_for_message_format),
    "format 1": (old_message(1), ErrorCode.unsupported_for_message_format),
    "format 1, two": (old_message(1) * 2, ErrorCode.unsupported_for_message_format),
    "format 3": (batch(magic=3), ErrorCode.corrupt_message),
    "format -1": (batch(magic=-1), ErrorCode.corrupt_message),
    "no records": (batch(count=0, last_delta=-1), ErrorCode.invalid_record),
    "count negative": (batch(count=-1), ErrorCode.invalid_record),
    "count too large": (batch(count=2**31 - 1), ErrorCode.invalid_record),
    "offset delta too large": (batch(last_delta=2**31 - 1), ErrorCode.invalid_record),
    "offset delta negative": (batch(last_delta=-2), ErrorCode.invalid_record),
    "base offset": (batch(base_offset=5), ErrorCode.invalid_record),
    "control batch": (batch(attributes=0x20), ErrorCode.invalid_record),
    "unknown compression": (batch(attributes=0x07), ErrorCode.invalid_record),
    "producer without a sequence": (batch(producer_id=5, producer_epoch=0, sequence=-1), ErrorCode.invalid_record),
    "too large": (encode_batch([Record(0, 0, None, bytes(LARGE_BYTES + 1))]), ErrorCode.message_too_large),
}


def produced(port: int, records: bytes | None, *, topic: str, partition: int = 0, acks: int = -1) -> tuple[ErrorCode, int]:
    """The code and the base offset of the answer to Produce v9."""
    topics = [{"name": topic, "partition_data": [{"index": partition, "records": records}]}]
    fields = {"transactional_id": None, "acks": acks, "timeout": 5000, "topic_data": topics}
    answer = send(port, encode_request(ApiKey.PRODUCE, 9, 1, "hostile", fields), api_key=ApiKey.PRODUCE, half_close=False)
    assert answer is not None
    (found,) = decode_response(ApiKey.PRODUCE, 9, answer)[1].responses[0].partition_responses
    return found.error_code, found.base_offset


def test_malformed_record_batches(cluster: Cluster, watched: LogWatch) -> None:
    port = port_of(cluster, "broker")
    topic = f"batches-{uuid.uuid4().hex[:8]}"
    cluster.create_topic(topic, partitions=1, replicas=1, config={"max.message.bytes": LARGE_BYTES})
    answers = {name: produced(port, records, topic=topic)[0] for name, (records, _) in BAD_BATCHES.items()}
    assert answers == {name: code for name, (_, code) in BAD_BATCHES.items()}
    assert produced(port, good_batch(), topic=topic) == (ErrorCode.none, 0), "nothing of them was written"
    assert produced(port, good_batch(), topic=topic, acks=2)[0] is ErrorCode.invalid_required_acks
    assert produced(port, good_batch(), topic=topic, partition=7)[0] is ErrorCode.unknown_topic_or_partition
    assert produced(port, good_batch(), topic=topic, partition=-1)[0] is ErrorCode.unknown_topic_or_partition
    assert produced(port, good_batch(), topic="no such topic")[0] is ErrorCode.unknown_topic_or_partition


@pytest.mark.parametrize("version", [0, 1, 2])
def test_produce_of_long_ago_ends_the_connection(cluster: Cluster, watched: LogWatch, version: int) -> None:
    """ApiVersions tells of it, for old librdkafka's sake; nobody sends it."""
    body = struct.pack(">hii", 1, 1000, 1) + struct.pack(">h6si", 6, b"target", 1) + struct.pack(">ii", 0, 0)
    content = struct.pack(">hhih", ApiKey.PRODUCE, version, 7, -1) + body
    assert exchange(port_of(cluster, "broker"), frame(content), half_close=False) == b""


def test_a_compression_bomb_is_stored_as_it_is(cluster: Cluster, watched: LogWatch) -> None:
    """What a batch would grow to is its readers' affair: the broker never opens it, garbage or bomb."""
    port = port_of(cluster, "broker")
    topic = f"bombs-{uuid.uuid4().hex[:8]}"
    cluster.create_topic(topic, partitions=1, replicas=1)
    record = Record(0, 0, None, bytes(64 * 2**20))
    bomb = encode_batch([record], compression=Compression.GZIP)
    garbage = batch(attributes=int(Compression.ZSTD))
    before = memory_bytes()
    with mock.patch.object(batches, "decompress") as opened, mock.patch.object(intake, "decompress_bounded") as opened_at_intake:
        for number in range(20):
            assert produced(port, bomb, topic=topic) == (ErrorCode.none, number)
        assert produced(port, garbage, topic=topic)[0] is ErrorCode.none
    assert not opened.called and not opened_at_intake.called
    assert memory_bytes() - before < len(record.value or b"")


def test_a_compression_bomb_is_let_go_where_it_would_be_converted(cluster: Cluster, watched: LogWatch) -> None:
    port = port_of(cluster, "broker")
    topic = f"bombs-{uuid.uuid4().hex[:8]}"
    cluster.create_topic(topic, partitions=1, replicas=1, config={"compression.type": "lz4", "max.message.bytes": LARGE_BYTES})
    before = memory_bytes()
    for codec in (Compression.GZIP, Compression.ZSTD, Compression.SNAPPY):
        small = encode_batch([Record(0, 0, None, bytes(LARGE_BYTES * 2))], compression=codec)
        bomb = encode_batch([Record(0, 0, None, bytes(64 * 2**20 if codec is not Compression.SNAPPY else 2**22))], compression=codec)
        assert produced(port, small, topic=topic)[0] is ErrorCode.none
        assert produced(port, bomb, topic=topic)[0] is ErrorCode.message_too_large
    for damaged in (batch(attributes=int(Compression.ZSTD)), batch(attributes=int(Compression.SNAPPY)), batch(attributes=int(Compression.GZIP))):
        assert produced(port, damaged, topic=topic)[0] is ErrorCode.invalid_record
    assert memory_bytes() - before < 64 * 2**20


def test_each_item_is_refused_with_its_own_code(cluster: Cluster, watched: LogWatch) -> None:
    """Kafka's codes, item by item: what is wrong with one item of a request does not touch the others."""
    port = port_of(cluster, "broker")
    target(cluster)
    codes = ErrorCode

    def new(name: str, **other: Any) -> dict[str, Any]:
        return {"name": name, "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": [], **other}

    topics = {
        "two": (new("two"), codes.invalid_request),
        KNOWN_TOPIC: (new(KNOWN_TOPIC), codes.topic_already_exists),
        "bad/name": (new("bad/name"), codes.invalid_topic_exception),
        "": (new(""), codes.invalid_topic_exception),
        "x" * 250: (new("x" * 250), codes.invalid_topic_exception),
        "none": (new("none", num_partitions=0), codes.invalid_partitions),
        "negative": (new("negative", num_partitions=-5), codes.invalid_partitions),
        "replicas": (new("replicas", replication_factor=100), codes.invalid_replication_factor),
        "config": (new("config", configs=[{"name": "nope", "value": "1"}]), codes.invalid_config),
        "value": (new("value", configs=[{"name": "retention.ms", "value": "abc"}]), codes.invalid_config),
        "null": (new("null", configs=[{"name": "retention.ms", "value": None}]), codes.invalid_config),
        "beyond": (new("beyond", configs=[{"name": "retention.ms", "value": "9" * 30}]), codes.invalid_config),
        "compact": (new("compact", configs=[{"name": "cleanup.policy", "value": "compact,shred"}]), codes.invalid_config),
        "good": (new("good", configs=[{"name": "cleanup.policy", "value": "delete"}]), codes.none),
    }
    asked = {"topics": [topics["two"][0], *(topic for topic, _ in topics.values())], "timeout": 5000, "validate_only": True}
    answer = ask(port, ApiKey.CREATE_TOPICS, 7, asked)
    assert {topic.name: topic.error_code for topic in answer.topics} == {name: code for name, (_, code) in topics.items()}
    huge = {"topics": [new("huge", num_partitions=2**31 - 1)], "timeout": 5000, "validate_only": False}
    assert ask(port, ApiKey.CREATE_TOPICS, 7, huge).topics[0].error_code is codes.policy_violation

    both = {"name": "both", "topic_id": uuid.UUID(int=9)}
    asked = {"topics": [{"name": "nope"}, {"name": None, "topic_id": uuid.UUID(int=5)}, both, {"name": None}], "timeout": 5000}
    deleted = [item.error_code for item in ask(port, ApiKey.DELETE_TOPICS, 6, asked).responses]
    assert deleted == [codes.unknown_topic_or_partition, codes.unknown_topic_id, codes.invalid_request, codes.invalid_request]

    numbers = [{"partition_index": number, "timestamp": -1} for number in (0, 0, 1, 9, -1)]
    listed = ask(port, ApiKey.LIST_OFFSETS, 7, {"replica_id": -1, "topics": [{"name": KNOWN_TOPIC, "partitions": numbers}]})
    assert [(item.partition_index, item.error_code) for item in listed.topics[0].partitions] == [
        *((0, codes.invalid_request), (0, codes.invalid_request), (1, codes.none)),
        *((9, codes.unknown_topic_or_partition), (-1, codes.unknown_topic_or_partition)),
    ]


def test_the_data_path_refuses_item_by_item(cluster: Cluster, watched: LogWatch) -> None:
    port = port_of(cluster, "broker")
    topic_id = target(cluster)
    codes = ErrorCode

    def fetched(version: int, named: dict[str, Any], *numbers: int, **more: Any) -> list[tuple[int, ErrorCode]]:
        items = [{"partition": number, "fetch_offset": 0, "partition_max_bytes": 100, **more} for number in numbers]
        fields = {"replica_id": -1, "max_wait": 0, "min_bytes": 0, "max_bytes": 100, "topics": [{**named, "partitions": items}], "session_epoch": -1}
        answer = ask(port, ApiKey.FETCH, version, fields)
        assert answer.error_code is codes.none
        return [(item.partition_index, item.error_code) for topic in answer.responses for item in topic.partitions]

    unknown = codes.unknown_topic_or_partition
    assert fetched(12, {"topic": KNOWN_TOPIC}, 0, 9, -1, 0) == [(0, codes.none), (9, unknown), (-1, unknown), (0, codes.none)]
    assert fetched(12, {"topic": "nope"}, 0) == [(0, unknown)]
    assert fetched(13, {"topic_id": uuid.UUID(int=3)}, 0) == [(0, codes.unknown_topic_id)]
    assert fetched(13, {"topic_id": topic_id}, 0) == [(0, codes.none)]
    for offset in (2**63 - 1, -1, -(2**63)):
        assert fetched(12, {"topic": KNOWN_TOPIC}, 0, fetch_offset=offset) == [(0, codes.offset_out_of_range)]
    assert fetched(12, {"topic": KNOWN_TOPIC}, 0, current_leader_epoch=2**31 - 1) == [(0, codes.unknown_leader_epoch)]
    assert fetched(12, {"topic": KNOWN_TOPIC}, 0, partition_max_bytes=-1) == [(0, codes.none)]

    numbers = (0, 9, -1)
    asked = {"topics": [{"topic": KNOWN_TOPIC, "partitions": [{"partition": number, "leader_epoch": 0} for number in numbers]}]}
    ends = ask(port, ApiKey.OFFSET_FOR_LEADER_EPOCH, 4, {"replica_id": -1, **asked}).topics[0].partitions
    assert [item.error_code for item in ends] == [codes.none, unknown, unknown]
    asked = {"topics": [{"name": KNOWN_TOPIC, "partition_indexes": numbers}, {"name": "a/b", "partition_indexes": [0]}]}
    producers = ask(port, ApiKey.DESCRIBE_PRODUCERS, 0, asked).topics
    assert [[item.error_code for item in topic.partitions] for topic in producers] == [
        [codes.none, unknown, unknown],
        [codes.invalid_topic_exception],
    ]
    for before in ((5, -1), (-1, 5)):
        fields = {"transactional_id": None, "transaction_timeout": -1, "producer_id": before[0], "producer_epoch": before[1]}
        assert ask(port, ApiKey.INIT_PRODUCER_ID, 4, fields).error_code is codes.invalid_request


def test_more_items_than_a_request_may_have(cluster: Cluster, watched: LogWatch) -> None:
    """A few bytes each: read one by one, they would hold everybody up for as long as it takes to answer a million requests."""
    port = port_of(cluster, "broker")
    topics = [{"name": ""}] * 2_000_000
    partitions = [{"index": 0, "records": None}] * 300_000
    produced = {"transactional_id": None, "acks": 1, "timeout": 1, "topic_data": [{"name": KNOWN_TOPIC, "partition_data": partitions}]}
    for api_key, version, fields in ((ApiKey.METADATA, 1, {"topics": topics}), (ApiKey.PRODUCE, 9, produced), (ApiKey.PRODUCE, 3, produced)):
        assert exchange(port, frame(encode_request(api_key, version, 1, "hostile", fields)), half_close=False) == b""
    assert advertised(port)


def test_many_partitions_asked_for_twice_hold_nobody_up(cluster: Cluster, watched: LogWatch) -> None:
    """Twice 20,000 in one request: what is compared pair by pair would take minutes."""
    port = port_of(cluster, "broker")
    numbers = [{"partition_index": number % 20_000, "timestamp": -1} for number in range(40_000)]
    answer = ask(port, ApiKey.LIST_OFFSETS, 7, {"replica_id": -1, "topics": [{"name": "nope", "partitions": numbers}]})
    assert {item.error_code for item in answer.topics[0].partitions} == {ErrorCode.invalid_request}


def test_groups_refuse_item_by_item(cluster: Cluster, watched: LogWatch) -> None:
    port = port_of(cluster, "broker")
    target(cluster)
    codes = ErrorCode
    wrong = ask(port, ApiKey.FIND_COORDINATOR, 4, {"key_type": 9, "coordinator_keys": ["a", "b"]})
    assert [item.error_code for item in wrong.coordinators] == [codes.invalid_request] * 2
    join = {"group_id": "refused", "session_timeout": 10_000, "rebalance_timeout": 1000, "member_id": "", "protocol_type": "consumer"}
    protocols = [{"name": "range", "metadata": b""}]
    while ask(port, ApiKey.HEARTBEAT, 4, {"group_id": "refused", "generation_id": 1, "member_id": "m"}).error_code is not codes.unknown_member_id:
        ask(port, ApiKey.FIND_COORDINATOR, 4, {"key_type": 0, "coordinator_keys": ["refused"]})  # Makes the topic that coordinators need.
    for change, code in (
        ({"group_id": "", "protocols": protocols}, codes.invalid_group_id),
        ({"session_timeout": 1, "protocols": protocols}, codes.invalid_session_timeout),
        ({"session_timeout": 2**31 - 1, "protocols": protocols}, codes.invalid_session_timeout),
        ({"member_id": "who", "protocols": protocols}, codes.unknown_member_id),
        ({"protocols": []}, codes.inconsistent_group_protocol),
    ):
        assert ask(port, ApiKey.JOIN_GROUP, 3, {**join, **change}).error_code is code
    partitions = [
        {"partition_index": 0, "committed_offset": 5, "committed_metadata": "x" * 5000},
        {"partition_index": 1, "committed_offset": 5, "committed_metadata": ""},
        {"partition_index": 9, "committed_offset": 5, "committed_metadata": ""},
    ]
    topics = [{"name": KNOWN_TOPIC, "partitions": partitions}]
    commit = {"group_id": "refused", "generation_id_or_member_epoch": -1, "member_id": "", "topics": topics}
    committed = ask(port, ApiKey.OFFSET_COMMIT, 8, commit).topics[0].partitions
    assert [item.error_code for item in committed] == [codes.offset_metadata_too_large, codes.none, codes.unknown_topic_or_partition]


def target(cluster: Cluster) -> uuid.UUID:
    """The id of the topic that the requests are about; it is made anew when one of them has deleted it."""

    def find() -> uuid.UUID | None:
        topic = cluster.node(NODE_ID).image.topics.get(KNOWN_TOPIC)
        return None if topic is None else topic.topic_id

    if (found := cluster.run(find)) is None:
        cluster.create_topic(KNOWN_TOPIC, partitions=2, replicas=1)
        found = cluster.run(find)
    assert found is not None
    return found
