"""The benchmarks' own client: single writes over a plain socket, and many of them pipelined."""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

from local_cluster import HOST, LocalCluster, Node, wait_until
from raftlog_cli.errors import CliError
from raftlog_cli.wire import WireClient, check

from raftlog.protocol.batches import Record, encode_batch
from raftlog.protocol.messages import encode_request

PRODUCE: Final = 0
PRODUCE_VERSION: Final = 9  # The last that names topics rather than giving their ids is 12.
CREATE_TOPICS: Final = 19
CLIENT_ID: Final = "bench"
WINDOW: Final = 50  # Requests in flight, below what a server takes from one connection before it pushes back.
TIMEOUT_MS: Final = 30_000
CORRELATION_ID_AT: Final = 4  # In a request's header, after its key and version.
SAMPLE_TIMEOUT_S: Final = 60.0


def create_topic(client: WireClient, name: str, *, partitions: int = 1, replicas: int = 1, assignment: list[list[int]] | None = None) -> None:
    """CreateTopics (key 19). Raises CliError with the broker's reason."""
    topic: dict[str, object] = {"name": name, "num_partitions": partitions, "replication_factor": replicas}
    if assignment is not None:
        replicas_of = [{"partition_index": index, "broker_ids": nodes} for index, nodes in enumerate(assignment)]
        topic |= {"num_partitions": -1, "replication_factor": -1, "assignments": replicas_of}
    answer = client.request(CREATE_TOPICS, {"topics": [topic], "timeout": TIMEOUT_MS})
    for item in answer.topics:
        check(item.error_code, item.error_message)


def one_record(value: bytes = b"x") -> bytes:
    return bytes(encode_batch([Record(0, time.time_ns() // 1_000_000, None, value)]))


def write(client: WireClient, topic: str, *, partition: int = 0, acks: int = -1) -> None:
    """One record, acknowledged. Raises CliError."""
    data = [{"name": topic, "partition_data": [{"index": partition, "records": one_record()}]}]
    answer = client.request(PRODUCE, {"transactional_id": None, "acks": acks, "timeout": TIMEOUT_MS, "topic_data": data}, version_max=PRODUCE_VERSION)
    for response in answer.responses:
        for item in response.partition_responses:
            check(item.error_code, getattr(item, "error_message", None))


def write_to_leader(cluster: LocalCluster, topic: str, *, partition: int = 0, acks: int = -1) -> None:
    """One acknowledged record, sent to whoever leads. Raises CliError."""
    leader = cluster.leaders(topic)[partition]
    if leader not in cluster.nodes:
        raise CliError(f"{topic}-{partition} has no leader")
    with cluster.client(cluster.nodes[leader]) as client:
        write(client, topic, partition=partition, acks=acks)


def first_write(cluster: LocalCluster, topic: str, *, acks: int) -> None:
    """Create a topic as soon as the cluster takes it and get one record acknowledged. Raises CliError after a minute."""
    replicas = len(cluster.nodes) if acks == -1 else 1

    def create() -> bool:
        with cluster.client() as client:
            try:
                create_topic(client, topic, replicas=replicas)
            except CliError as error:
                if "exists" not in str(error):
                    raise
        return True

    wait_until(create, what="a topic to be created", timeout_s=SAMPLE_TIMEOUT_S)
    wait_until(lambda: write_to_leader(cluster, topic, acks=acks) is None, what="a write to be acknowledged", timeout_s=SAMPLE_TIMEOUT_S)


def pipelined_writes(node: Node, topic: str, count: int) -> None:
    """`count` produce requests of one small record each to partition 0, acks=1, WINDOW in flight. Raises CliError."""
    data = [{"name": topic, "partition_data": [{"index": 0, "records": one_record(b"v" * 100)}]}]
    fields = {"transactional_id": None, "acks": 1, "timeout": TIMEOUT_MS, "topic_data": data}
    frame = bytearray(encode_request(PRODUCE, PRODUCE_VERSION, 0, CLIENT_ID, fields))
    frame[:0] = struct.pack(">i", len(frame))
    sent = received = 0
    pending = bytearray()
    with socket.create_connection((HOST, node.port), timeout=SAMPLE_TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while received < count:
            outgoing = bytearray()
            while sent < count and sent - received < WINDOW:
                struct.pack_into(">i", frame, 4 + CORRELATION_ID_AT, sent)
                outgoing += frame
                sent += 1
            connection.sendall(outgoing)
            part = connection.recv(1 << 16)
            if not part:
                raise CliError(f"{node.address} closed the connection after {received} responses; its log is {node.log}")
            pending += part
            while len(pending) >= 8 and len(pending) >= 4 + (size := struct.unpack_from(">i", pending)[0]):
                if struct.unpack_from(">i", pending, 4)[0] != received:
                    raise CliError(f"response {received} came out of order")
                del pending[: 4 + size]
                received += 1
