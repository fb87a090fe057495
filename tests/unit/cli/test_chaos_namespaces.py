"""The namespaces of a chaos run: packets are dropped, lost and delayed, and nothing stays behind. Skipped where there can be none."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from raftlog_cli import chaos_namespaces
from raftlog_cli.chaos_links import CONTROLLER, REPLICATION, Slowness
from raftlog_cli.chaos_namespaces import CLIENTS, CLIENTS_NODE, Namespaces, address_of
from raftlog_cli.errors import CliError

CONTROLLER_PORT = 9093
OTHER_PORT = 9092
QUIET_S = 0.3
ARRIVES_S = 20.0  # The kernel repeats what was lost, later each time.

# Echoes on both ports in the node's namespace; says when it is ready.
ECHO = f"""
import socket, sys, threading
def serve(port):
    server = socket.create_server((sys.argv[1], port))
    def run():
        while True:
            connection, _ = server.accept()
            threading.Thread(target=echo, args=(connection,), daemon=True).start()
    threading.Thread(target=run, daemon=True).start()
def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
serve({CONTROLLER_PORT}); serve({OTHER_PORT})
print("ready", flush=True)
sys.stdin.read()
"""
# Says on one connection to the echo what it reads, and what comes back.
TALK = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
for line in sys.stdin:
    connection.sendall(line.encode())
    print(connection.recv(65536).decode().strip(), flush=True)
"""


@pytest.fixture
def net() -> Iterator[Namespaces]:
    """Nodes 1 and 2, each with its echo."""
    if (missing := chaos_namespaces.what_is_missing()) is not None:
        pytest.skip(missing)
    try:
        net = Namespaces([1, 2], controller_port=CONTROLLER_PORT, seed=1)
    except CliError as error:
        pytest.skip(str(error))
    started: list[subprocess.Popen[str]] = []
    try:
        started.extend(run_inside(net, node_id, ECHO, address_of(node_id)) for node_id in (1, 2))
        yield net
    finally:
        net.close()
        for process in started:
            process.kill()
            process.communicate()


def run_inside(net: Namespaces, node_id: int, program: str, *arguments: str) -> subprocess.Popen[str]:
    with net.inside(node_id):
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def connect(node_id: int) -> socket.socket:
    """From the clients' namespace."""
    return socket.create_connection((address_of(node_id), OTHER_PORT), ARRIVES_S)


def comes_back(connection: socket.socket, *, within_s: float) -> bool:
    connection.settimeout(within_s)
    try:
        return bool(connection.recv(100))
    except TimeoutError:
        return False


def test_a_cut_of_one_way_is_silence_until_it_is_healed(net: Namespaces) -> None:
    with connect(1) as first, connect(2) as second:
        net.cut([(1, CLIENTS_NODE)], kinds=[CLIENTS])
        first.sendall(b"the answer is lost")
        second.sendall(b"another node's is not")
        assert comes_back(second, within_s=ARRIVES_S)
        assert not comes_back(first, within_s=QUIET_S)
        net.heal()
        assert comes_back(first, within_s=ARRIVES_S)


def test_links_of_controllers_are_told_from_others(net: Namespaces) -> None:
    controller, other = (run_inside(net, 1, TALK, address_of(2), str(port)) for port in (CONTROLLER_PORT, OTHER_PORT))
    net.cut([(1, 2), (2, 1)], kinds=[CONTROLLER])
    say(controller)
    say(other)
    assert hears(other, within_s=ARRIVES_S)
    assert not hears(controller, within_s=QUIET_S)
    net.heal()
    assert hears(controller, within_s=ARRIVES_S)
    for talk in (controller, other):
        talk.kill()
        talk.communicate()


def say(talk: subprocess.Popen[str]) -> None:
    assert talk.stdin is not None
    print("hello", file=talk.stdin, flush=True)


def hears(talk: subprocess.Popen[str], *, within_s: float) -> bool:
    return bool(select.select([talk.stdout], [], [], within_s)[0])


def test_lost_packets_are_repeated_by_the_kernel(net: Namespaces) -> None:
    net.slow([(CLIENTS_NODE, 1), (1, CLIENTS_NODE)], Slowness(loss=0.3), kinds=[CLIENTS])
    with connect(1) as connection:
        for _ in range(5):
            connection.sendall(b"sometimes twice")
            assert comes_back(connection, within_s=ARRIVES_S)


def test_packets_are_delayed_each_way(net: Namespaces) -> None:
    with connect(1) as connection:
        net.slow([(CLIENTS_NODE, 1), (1, CLIENTS_NODE)], Slowness(delay_s=0.1), kinds=[CLIENTS])
        net.slow([(1, 2)], Slowness(delay_s=9.0), kinds=[REPLICATION])  # Nobody's business here.
        began_s = time.monotonic()
        connection.sendall(b"there and back")
        assert comes_back(connection, within_s=ARRIVES_S)
        assert time.monotonic() - began_s >= 0.2


def test_nothing_stays_behind() -> None:
    home = os.readlink("/proc/thread-self/ns/net") if sys.platform == "linux" else ""
    if (missing := chaos_namespaces.what_is_missing()) is not None:
        pytest.skip(missing)
    files = len(os.listdir("/proc/self/fd"))
    try:
        net = Namespaces([1], controller_port=CONTROLLER_PORT, seed=1)
    except CliError as error:
        pytest.skip(str(error))
    assert os.readlink("/proc/thread-self/ns/net") != home
    net.close()
    assert os.readlink("/proc/thread-self/ns/net") == home
    assert len(os.listdir("/proc/self/fd")) <= files


def test_whoever_is_not_root_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CliError, match="need root") as caught:
        Namespaces([1], controller_port=CONTROLLER_PORT, seed=1)
    assert "\n" not in str(caught.value)
