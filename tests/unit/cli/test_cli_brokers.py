"""Questions that find the broker that answers, against brokers that this test plays: moved leaders, lost connections, time that runs out."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from raftlog_cli.brokers import Brokers
from raftlog_cli.config_queries import Change, Resource, alter_configs
from raftlog_cli.errors import CliError, Refused, Unreachable
from raftlog_cli.offset_queries import LATEST, MAX_TIMESTAMP, OffsetAt, list_offsets
from raftlog_cli.session import Session
from raftlog_cli.topic_queries import describe_topic

from raftlog.ids import TopicPartition
from raftlog.protocol.messages import decode_request, encode_response, parse_request_header

LIST_OFFSETS, METADATA, API_VERSIONS, ALTER_CONFIGS, DESCRIBE_TOPIC_PARTITIONS = 2, 3, 18, 44, 75
OFFERED = {LIST_OFFSETS: (1, 6), METADATA: (1, 9), API_VERSIONS: (0, 3), ALTER_CONFIGS: (0, 1), DESCRIBE_TOPIC_PARTITIONS: (0, 0)}
FIRST, SECOND = TopicPartition("t", 0), TopicPartition("t", 1)

# From the API key and the request's fields to the response's; None closes the connection.
Answer = Callable[[int, Any], Mapping[str, Any] | None]


class Played:
    """A broker that answers as it is told, on any number of connections."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[int] = []
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listening.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while size := connection.recv(4, socket.MSG_WAITALL):
                frame = connection.recv(struct.unpack(">i", size)[0], socket.MSG_WAITALL)
                header = parse_request_header(frame)
                key, version = header.api_key, header.api_version
                if key == API_VERSIONS:
                    fields: Mapping[str, Any] | None = {
                        "api_keys": [{"api_key": each, "min_version": low, "max_version": high} for each, (low, high) in OFFERED.items()]
                    }
                else:
                    self.asked.append(key)
                    fields = self._answer(key, decode_request(key, version, memoryview(frame)[header.body_offset :]))
                if fields is None:
                    return
                content = encode_response(key, version, header.correlation_id, fields)
                connection.sendall(struct.pack(">i", len(content)) + content)


@contextlib.contextmanager
def played(*answers: Answer, nodes: list[Played] | None = None, timeout_s: float = 10) -> Iterator[Brokers]:
    """Brokers 1, 2 …, of which the first is the bootstrap server; `nodes` gets them."""
    nodes = [] if nodes is None else nodes
    nodes += map(Played, answers)
    try:
        with Brokers(Session(f"127.0.0.1:{nodes[0].port}", timeout_s=timeout_s)) as brokers:
            yield brokers
    finally:
        for node in nodes:
            node.close()


def metadata_of(nodes: Sequence[Played], leaders: Mapping[int, int]) -> dict[str, Any]:
    return {
        "brokers": [{"node_id": place, "host": "127.0.0.1", "port": node.port} for place, node in enumerate(nodes, 1)],
        "controller_id": 1,
        "topics": [{"name": "t", "partitions": [{"partition_index": number, "leader_id": leader} for number, leader in leaders.items()]}],
    }


def offsets_of(request: Any, *, error_code: int = 0) -> dict[str, Any]:
    """Partition N has offset 10 + N."""
    return {
        "topics": [
            {
                "name": topic.name,
                "partitions": [
                    {"partition_index": item.partition_index, "offset": 10 + item.partition_index, "timestamp": 5, "error_code": error_code}
                    for item in topic.partitions
                ],
            }
            for topic in request.topics
        ]
    }


def test_each_leader_is_asked_and_a_moved_one_is_found_again() -> None:
    nodes: list[Played] = []
    leaders = {0: 1, 1: 2}

    def first(key: int, request: Any) -> Mapping[str, Any]:
        return metadata_of(nodes, leaders) if key == METADATA else offsets_of(request)

    def second(key: int, request: Any) -> Mapping[str, Any]:
        leaders[1] = 1  # It says so once it is asked, as a deposed leader does.
        return offsets_of(request, error_code=6)

    with played(first, second, nodes=nodes) as brokers:
        assert list_offsets(brokers, {FIRST: LATEST, SECOND: LATEST}) == {FIRST: OffsetAt(10, 5), SECOND: OffsetAt(11, 5)}
        assert nodes[1].asked == [LIST_OFFSETS]


def test_what_time_does_not_solve_is_said_at_once_and_what_it_may_when_it_is_over() -> None:
    nodes: list[Played] = []

    def answer(key: int, request: Any) -> Mapping[str, Any]:
        return metadata_of(nodes, {0: 1, 1: -1}) if key == METADATA else offsets_of(request, error_code=1)

    with played(answer, timeout_s=0.3, nodes=nodes) as brokers:
        found = list_offsets(brokers, {FIRST: LATEST, SECOND: LATEST, TopicPartition("gone", 0): LATEST})
    assert {str(key): str(problem) for key, problem in found.items()} == {
        "t-0": "offset out of range",
        "t-1": "no leader at the moment",
        "gone-0": "no such partition",
    }
    assert nodes[0].asked.count(LIST_OFFSETS) == 1


def test_a_connection_that_breaks_is_opened_again() -> None:
    nodes: list[Played] = []
    breaks = iter([True])

    def answer(key: int, request: Any) -> Mapping[str, Any] | None:
        if key == METADATA:
            return metadata_of(nodes, {0: 1})
        return None if next(breaks, False) else offsets_of(request)

    with played(answer, nodes=nodes) as brokers:
        assert list_offsets(brokers, {FIRST: LATEST}) == {FIRST: OffsetAt(10, 5)}


def test_a_server_that_is_gone_for_good_is_unreachable() -> None:
    with played(lambda _key, _request: None, timeout_s=0.3) as brokers, pytest.raises(Unreachable):
        brokers.patiently(brokers.metadata)


def test_a_version_that_the_server_lacks_is_named() -> None:
    nodes: list[Played] = []
    problem = "offers versions 1 to 6 of ListOffsets; this needs one of 7 to"
    with played(lambda _key, _request: metadata_of(nodes, {0: 1}), nodes=nodes) as brokers, pytest.raises(CliError, match=problem):
        list_offsets(brokers, {FIRST: MAX_TIMESTAMP})


def test_configs_of_one_broker_are_changed_there_and_others_by_the_controller() -> None:
    nodes: list[Played] = []

    def answer(key: int, request: Any) -> Mapping[str, Any]:
        if key == METADATA:
            return metadata_of(nodes, {})
        wrong = {"error_code": 40, "error_message": "too small"}
        responses = [
            {"resource_type": item.resource_type, "resource_name": item.resource_name, **(wrong if item.resource_name == "t" else {})}
            for item in request.resources
        ]
        return {"responses": responses}

    change = [Change("a", 0, "1")]
    with played(answer, answer, nodes=nodes) as brokers:
        found = alter_configs(brokers, {Resource("broker", "2"): change, Resource("broker", ""): change, Resource("topic", "t"): change})
    assert (nodes[0].asked.count(ALTER_CONFIGS), nodes[1].asked.count(ALTER_CONFIGS)) == (1, 1)
    assert (found[Resource("broker", "2")], found[Resource("broker", "")], str(found[Resource("topic", "t")])) == (None, None, "too small")


def test_a_topic_of_several_pages_is_put_together() -> None:
    def answer(key: int, request: Any) -> Mapping[str, Any]:
        assert key == DESCRIBE_TOPIC_PARTITIONS
        start = request.cursor.partition_index if request.cursor is not None else 0
        topic = {"name": "t", "partitions": [{"partition_index": start}, {"partition_index": start + 1}]}
        return {"topics": [topic], "next_cursor": {"topic_name": "t", "partition_index": 2} if start == 0 else None}

    with played(answer) as brokers:
        assert [partition.partition_index for partition in describe_topic(brokers, "t").partitions] == [0, 1, 2, 3]


def test_a_passing_refusal_is_asked_again() -> None:
    with played(lambda _key, _request: None) as brokers:
        answers = iter([Refused(15, "loading"), Refused(16, "moved"), "done"])

        def ask() -> str:
            answer = next(answers)
            if isinstance(answer, Refused):
                raise answer
            return answer

        assert brokers.patiently(ask) == "done"
