"""What the tests with hostile requests share: the node's log and memory under watch, an ordinary client beside, the wire."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import struct
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer
from hostile_requests import NODE_ID

from raftlog.protocol.apis import API_VERSIONS_ALL, ApiKey
from raftlog.protocol.messages import Fields, MalformedFrame, decode_response, encode_request
from raftlog.testing import Cluster

SEED = int(os.environ.get("HOSTILE_SEED", random.SystemRandom().getrandbits(32)))
ROUNDS = int(os.environ.get("HOSTILE_ROUNDS", "4"))  # Each sends one well-formed and two spoiled requests per API and version.
HOST = "127.0.0.1"
ANSWER_TIMEOUT_S = 20.0
BYSTANDER_TIMEOUT_S = 60.0
MEMORY_GROWTH_BYTES_MAX = 150 * 2**20
WAITS_FOR_OTHERS = frozenset({ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP})  # As long as the request itself allows, which may be weeks.
WAIT_FOR_OTHERS_S = 0.2
MAY_CLOSE = WAITS_FOR_OTHERS | {ApiKey.PRODUCE, ApiKey.FETCH}  # Produce with acks=0; a fetch that waits when its client ends.
RAFT_API_KEY = 32001
UNKNOWN_SERVER_ERROR = -1
LINE_CHARS_MAX = 1500


CLIENTS = ("kafka", "aiokafka")  # They log into the same process, and may outlive the cluster of a test before.


class LogWatch(logging.Handler):
    """What the node logs: tracebacks, handlers that failed and lines that are more than one are collected."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.lines = 0
        self.longest = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO or record.name.partition(".")[0] in CLIENTS:
            return
        text = record.getMessage()
        self.lines += 1
        self.longest = max(self.longest, len(text))
        refused_a_voter = record.name == "raftlog.quorum.transport"
        if record.exc_info or "\n" in text or len(text) > LINE_CHARS_MAX or (record.levelno >= logging.ERROR and not refused_a_voter):
            cause = f": {record.exc_info[1]!r}" if record.exc_info else ""
            self.faults.append(f"{record.name}: {text[:500]!r}{cause}")
            if record.exc_info and record.exc_info[1] is not None:
                self.faults.append("".join(traceback.format_exception(record.exc_info[1]))[-2000:])


class Bystander:
    """An ordinary client at work: every record it was promised comes back, in order, and nothing is ever refused."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._topic = topic
        self._errors: list[str] = []
        client = {"bootstrap.servers": bootstrap_servers, "error_cb": lambda error: self._errors.append(str(error)), "socket.timeout.ms": 30_000}
        self._producer = Producer({**client, "enable.idempotence": True, "linger.ms": 5})
        self._consumer = Consumer({**client, "group.id": topic, "auto.offset.reset": "earliest"})
        self._consumer.subscribe([topic])
        self._sent = self._acknowledged = self._consumed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="bystander", daemon=True)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2 * BYSTANDER_TIMEOUT_S)
        self._consumer.close()

    def check(self) -> int:
        """Stop, and tell how many records went through. Raises AssertionError."""
        self.__exit__()
        assert not self._errors, self._errors[:10]
        assert self._sent == self._acknowledged == self._consumed, (self._sent, self._acknowledged, self._consumed)
        return self._consumed

    def _work(self) -> None:
        while not self._stop.is_set():
            self._producer.produce(self._topic, value=str(self._sent), on_delivery=self._delivered)
            self._sent += 1
            self._producer.poll(0)
            self._consume(0.01)
        if self._producer.flush(BYSTANDER_TIMEOUT_S):
            self._errors.append("not everything was acknowledged")
        deadline_s = time.monotonic() + BYSTANDER_TIMEOUT_S
        while self._consumed < self._sent and time.monotonic() < deadline_s:
            self._consume(0.1)

    def _consume(self, timeout_s: float) -> None:
        message = self._consumer.poll(timeout_s)
        if message is None:
            return
        if message.error() is not None:
            self._errors.append(str(message.error()))
        elif message.value() != str(self._consumed).encode():
            self._errors.append(f"record {self._consumed} reads {message.value()!r}")
        self._consumed += 1

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._errors.append(str(error))
        self._acknowledged += 1


@contextlib.contextmanager
def watching(cluster: Cluster) -> Iterator[LogWatch]:
    """Around a test: the ordinary client and the log; both are checked at the end."""
    print(f"HOSTILE_SEED={SEED}")
    watch = LogWatch()
    logging.getLogger().addHandler(watch)
    before = memory_bytes()
    try:
        topic = f"bystander-{uuid.uuid4().hex[:8]}"
        cluster.create_topic(topic, partitions=1, replicas=1)
        with Bystander(cluster.bootstrap_servers, topic) as bystander:
            yield watch
            assert bystander.check() > 0, f"seed {SEED}"
    finally:
        logging.getLogger().removeHandler(watch)
    assert not watch.faults, f"seed {SEED}: {len(watch.faults)} faults:\n" + "\n".join(list(dict.fromkeys(watch.faults))[:30])
    assert memory_bytes() - before < MEMORY_GROWTH_BYTES_MAX, f"seed {SEED}"


def port_of(cluster: Cluster, listener: str) -> int:
    node = cluster.node(NODE_ID)
    role = node.broker if listener == "broker" else node.controller
    assert role is not None
    (found,) = role.listeners.values()
    return found.port


# On the wire.


def frame(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + content


def send(port: int, content: bytes, *, api_key: int | None, half_close: bool = True) -> bytes | None:
    """Send one frame; the answer frame's content, or None when the node closed the connection (or would wait for others)."""
    if not half_close:
        with socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S) as opened, opened.makefile("rb") as stream:
            opened.sendall(frame(content))
            return stream.read(struct.unpack(">i", stream.read(4))[0])
    waits = api_key in WAITS_FOR_OTHERS or api_key is None
    received = exchange(port, frame(content), patience_s=WAIT_FOR_OTHERS_S if waits else None)
    return received[4:] if received else None


def exchange(port: int, sent: bytes, *, half_close: bool = True, patience_s: float | None = None) -> bytes:
    """All that the node sends until it closes. Raises AssertionError when it does not within the time-out.

    The client ends its side, so that the node neither waits for more nor for anything that only a reader of it needs.
    With `patience_s` it gives up after so long.
    """
    received = bytearray()
    with socket.create_connection((HOST, port)) as opened:
        opened.settimeout(patience_s or ANSWER_TIMEOUT_S)
        try:
            opened.sendall(sent)
            if half_close:
                opened.shutdown(socket.SHUT_WR)
            while piece := opened.recv(2**20):
                received += piece
        except (ConnectionResetError, BrokenPipeError, OSError) as error:
            if isinstance(error, TimeoutError):
                assert patience_s is not None, f"seed {SEED}: neither an answer nor an end: {sent[:200]!r}"
    return bytes(received)


def advertised(port: int) -> dict[int, tuple[int, int]]:
    answer = send(port, encode_request(ApiKey.API_VERSIONS, 3, 1, "c", {"client_software_name": "a", "client_software_version": "1"}), api_key=18)
    assert answer is not None
    _, fields = decode_response(ApiKey.API_VERSIONS, 3, answer)
    # Of Produce older versions are told than are served: no schema of them is left.
    return {item.api_key: (max(item.min_version, API_VERSIONS_ALL[item.api_key][0]), item.max_version) for item in fields.api_keys}


def ask(port: int, api_key: int, version: int, fields: dict[str, Any]) -> Any:
    answer = send(port, encode_request(api_key, version, 1, "hostile", fields), api_key=api_key, half_close=False)
    assert answer is not None
    return decode_response(api_key, version, answer)[1]


def fault_of(api_key: int, version: int, answer: bytes | None) -> str:
    """What is wrong with this answer to a request that its schema allows; empty when nothing is."""
    if answer is None:
        return "" if api_key in MAY_CLOSE else "is not answered"
    try:
        _, fields = decode_response(api_key, version, answer)
    except MalformedFrame as error:
        return f"is answered by {answer[:300]!r}, {error}"
    return "is an unknown server error" if UNKNOWN_SERVER_ERROR in codes_in(fields) else ""


def codes_in(fields: Any) -> Iterator[int]:
    if isinstance(fields, tuple):
        for item in fields:
            yield from codes_in(item)
    elif isinstance(fields, Fields):
        for name, value in vars(fields).items():
            if name == "error_code":
                yield int(value)
            else:
                yield from codes_in(value)


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
