"""The small blocking client, against a server that this test plays."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

import pytest
from raftlog_cli.errors import CliError, Unreachable
from raftlog_cli.watch import summarise
from raftlog_cli.wire import DESCRIBE_QUORUM, METADATA, WireClient, describe_quorum

from raftlog.protocol.messages import decode_response, encode_response, parse_request_header


def serve(answer: Callable[[int, int, int], bytes]) -> int:
    """Listen for one connection and answer each frame by api key, version and correlation id. Returns the port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listening, listening.accept()[0] as connection, contextlib.suppress(ConnectionError):
            while size := connection.recv(4, socket.MSG_WAITALL):
                frame = connection.recv(struct.unpack(">i", size)[0], socket.MSG_WAITALL)
                header = parse_request_header(frame)
                connection.sendall(answer(header.api_key, header.api_version, header.correlation_id))

    threading.Thread(target=run, daemon=True).start()
    port: int = listening.getsockname()[1]
    return port


def framed(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + content


def versions(key: int, low: int, high: int) -> dict[str, object]:
    return {"api_keys": [{"api_key": key, "min_version": low, "max_version": high}]}


def test_versions_are_negotiated_and_the_answer_is_decoded() -> None:
    partition = {
        "partition_index": 0,
        "leader_id": 2,
        "leader_epoch": 5,
        "high_watermark": 9,
        "current_voters": [{"replica_id": 2, "log_end_offset": 9}],
    }

    def answer(key: int, version: int, correlation_id: int) -> bytes:
        if key == DESCRIBE_QUORUM:
            assert version == 1
            fields: dict[str, object] = {"topics": [{"topic_name": "__cluster_metadata", "partitions": [partition]}]}
        else:
            fields = versions(DESCRIBE_QUORUM, 0, 1)
        return framed(encode_response(key, version, correlation_id, fields))

    with WireClient("127.0.0.1", serve(answer), timeout_s=5) as client:
        found = describe_quorum(client)
    assert (found.leader_id, found.leader_epoch, [voter.replica_id for voter in found.current_voters]) == (2, 5, [2])


def test_an_api_that_is_not_offered_is_named() -> None:
    port = serve(lambda key, version, correlation_id: framed(encode_response(key, version, correlation_id, versions(0, 0, 3))))
    with WireClient("127.0.0.1", port, timeout_s=5) as client, pytest.raises(CliError, match="does not offer"):
        client.request(METADATA, {"topics": None})


def test_what_is_no_kafka_server_is_told_so() -> None:
    with WireClient("127.0.0.1", serve(lambda *_: b"HTTP/1.1 400"), timeout_s=5) as client, pytest.raises(CliError, match="does not speak Kafka"):
        client.request(METADATA, {"topics": None})


def test_a_server_that_goes_away_is_unreachable() -> None:
    with WireClient("127.0.0.1", serve(lambda *_: b"\0\0"), timeout_s=0.2) as client, pytest.raises(Unreachable, match=r"no answer in 0\.2 s"):
        client.request(METADATA, {"topics": None})


def test_a_cluster_is_summed_up_from_its_metadata() -> None:
    def partition(index: int, leader: int, isr: list[int]) -> dict[str, object]:
        return {"partition_index": index, "leader_id": leader, "replica_nodes": [1, 2], "isr_nodes": isr}

    topics = [{"name": "t", "partitions": [partition(0, 1, [1, 2]), partition(1, 1, [1]), partition(2, -1, [2])]}]
    frame = encode_response(METADATA, 12, 1, {"brokers": [{"node_id": 1, "host": "h", "port": 1}], "topics": topics})
    view = summarise(decode_response(METADATA, 12, frame)[1], controller=1)
    assert (view.partitions, view.under_replicated, view.leaderless) == (3, 2, 1)
    assert (view.leads[1], view.in_sync[2], view.brokers) == (2, 2, frozenset({1}))
