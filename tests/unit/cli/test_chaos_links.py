"""The proxies between the nodes of a chaos run: what is cut stays away, what is healed arrives, and who dials is told apart."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from raftlog_cli.chaos_cluster import free_ports
from raftlog_cli.chaos_links import CONTROLLER, HOST, REPLICATION, Links, Slowness

QUIET_S = 0.3
ARRIVES_S = 5.0


class Echo:
    """Sends back what it is sent; remembers it too."""

    def __init__(self) -> None:
        self.received = b""
        self._server = socket.create_server((HOST, 0))
        self._connections: list[socket.socket] = []
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in (self._server, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._connections.append(connection)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(65536):
                self.received += data
                connection.sendall(data)


class Net:
    """Node 2 behind a proxy for node 1's controller links, and behind one for everybody's replication links."""

    def __init__(self) -> None:
        self.links = Links(seed=1)
        self.echo = Echo()
        self.controller, self.replication = free_ports(2, random.Random())
        self.links.listen(port=self.controller, target_port=self.echo.port, target=2, kind=CONTROLLER, dialler=1)
        self.links.listen(port=self.replication, target_port=self.echo.port, target=2, kind=REPLICATION, dialler=None)

    def dial(self, port: int, first: bytes = b"") -> socket.socket:
        connection = socket.create_connection((HOST, port))
        connection.settimeout(ARRIVES_S)
        connection.sendall(first)
        return connection


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    yield net
    net.links.close()
    net.echo.close()


def frame(client_id: str) -> bytes:
    body = struct.pack(">hhih", 18, 3, 1, len(client_id)) + client_id.encode() + b"rest"
    return struct.pack(">i", len(body)) + body


def is_quiet(connection: socket.socket) -> bool:
    connection.settimeout(QUIET_S)
    try:
        return connection.recv(1) is None
    except TimeoutError:
        return True
    finally:
        connection.settimeout(ARRIVES_S)


def receive(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (part := connection.recv(size - len(found))):
        found += part
    return found


def test_bytes_pass_both_ways_in_order(net: Net) -> None:
    with net.dial(net.controller) as connection:
        sent = bytes(range(256)) * 2000
        threading.Thread(target=connection.sendall, args=(sent,)).start()
        assert receive(connection, len(sent)) == sent


def test_a_cut_swallows_until_it_is_healed(net: Net) -> None:
    with net.dial(net.controller, b"before") as connection:
        assert receive(connection, 6) == b"before"
        net.links.cut([(1, 2), (2, 1)])
        connection.sendall(b"after")
        assert is_quiet(connection)
        net.links.heal()
        assert receive(connection, 5) == b"after"


def test_one_way_only(net: Net) -> None:
    with net.dial(net.controller, b"1") as connection:
        assert receive(connection, 1) == b"1"
        net.links.cut([(2, 1)])
        connection.sendall(b"2")
        assert is_quiet(connection)
        assert net.echo.received == b"12"  # What node 1 says arrives; what node 2 answers does not.


def test_the_end_of_a_connection_is_not_heard_through_a_cut(net: Net) -> None:
    connection = net.dial(net.replication, frame("broker-1-fetcher"))
    receive(connection, len(frame("broker-1-fetcher")))
    net.links.cut([(2, 1)])
    net.echo.close()
    with connection:
        assert is_quiet(connection)


def test_a_new_connection_gets_no_answer_through_a_cut_and_is_not_lost_by_it(net: Net) -> None:
    net.links.cut([(1, 2)])
    with net.dial(net.controller, b"hello") as connection:
        assert is_quiet(connection)
        assert net.echo.received == b""
        net.links.heal()
        assert receive(connection, 5) == b"hello"


def test_who_dials_is_told_by_the_first_frame(net: Net) -> None:
    net.links.cut([(1, 2)], kinds=[REPLICATION])
    cut_off, free, stranger = frame("broker-1-fetcher"), frame("broker-3-fetcher"), frame("somebody")
    with net.dial(net.replication, cut_off) as one, net.dial(net.replication, free) as three, net.dial(net.replication, stranger) as unknown:
        assert receive(three, len(free)) == free
        assert receive(unknown, len(stranger)) == stranger
        assert is_quiet(one)
        with net.dial(net.controller, b"x") as other_kind:
            assert receive(other_kind, 1) == b"x"


def test_slow_links_delay_and_keep_the_order(net: Net) -> None:
    net.links.slow([(1, 2), (2, 1)], Slowness(delay_s=0.1, jitter_s=0.05))
    with net.dial(net.controller) as connection:
        began_s = time.monotonic()
        for number in range(10):
            connection.sendall(bytes([number]))
        assert receive(connection, 10) == bytes(range(10))
        assert time.monotonic() - began_s >= 0.1


def test_a_target_that_is_down_closes_the_connection(net: Net) -> None:
    net.echo.close()
    with net.dial(net.controller, b"x") as connection, contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""
