"""`raftlog up`: a whole cluster of real processes on this machine, supervised and shown."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from .errors import EXIT_FAILED, CliError, UsageProblem
from .nodefiles import (
    CONFIG_FILE,
    DATA_DIRECTORY,
    found_cluster_id,
    new_kafka_id,
    node_settings,
    prepare_data_directory,
    read_properties,
    write_properties,
)
from .session import Session, command
from .start import SetOption, parse_settings
from .supervisor import NodeProcess, NodeState, Supervisor
from .view import JsonView, LiveView, PlainView, View
from .watch import Watch

HOST: Final = "127.0.0.1"
BASE_PORT_DEFAULT: Final = 9092
NODES_DEFAULT: Final = 3
NODES_MAX: Final = 32
TICK_S: Final = 0.05
LOCK_FILE: Final = ".up.lock"
LOG_FILE: Final = "node.log"
REPLICATION_MAX: Final = 3


def register(app: typer.Typer) -> None:
    command(app, "up")(up)


def up(
    session: Session,
    nodes: Annotated[int | None, typer.Option("--nodes", "-n", min=1, max=NODES_MAX, help="Nodes of a new cluster; 3 when left out.")] = None,
    directory: Annotated[Path, typer.Option("--dir", "-d", help="Where the cluster's files are, or go.")] = Path("raftlog-data"),
    base_port: Annotated[
        int | None,
        typer.Option("--base-port", min=1, max=65535, help="First of 2 ports per node: one each for clients, then one each for controllers."),
    ] = None,
    overrides: SetOption = None,
) -> int:
    """Start a cluster on this machine, keep it running and show it; Ctrl-C stops it. The same directory brings it back."""
    started_s = time.monotonic()
    directory = directory.absolute()
    arguments = [part for name, value in parse_settings(overrides).items() for part in ("--set", f"{name}={value}")]
    with locked(directory):
        found = prepared_nodes(directory)
        if found and nodes is not None and nodes != len(found):
            raise UsageProblem(f"{directory} holds a cluster of {len(found)} nodes, not {nodes}")
        numbers = found or list(range(1, (nodes or NODES_DEFAULT) + 1))
        prepare(directory, numbers, base_port)
        addresses = {number: client_address(directory, number) for number in numbers}
        check_ports(directory, numbers)
        supervisor = Supervisor([node_process(directory, number, addresses[number], arguments) for number in numbers])
        return run(supervisor, addresses, make_view(session, supervisor, directory), started_s=started_s)


def run(supervisor: Supervisor, addresses: dict[int, tuple[str, int]], view: View, *, started_s: float) -> int:
    """Supervise until SIGINT or SIGTERM, or until no node is left. Returns the exit status."""
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: signals.append(received))
    watch = Watch(addresses)
    ready = False
    status = 0
    supervisor.start()
    watch.start()
    with view:
        while not signals:
            for event in supervisor.tick():
                view.event(event.kind, event.text, node=event.node_id)
                if event.kind in ("died", "given-up") and not ready and not event_is_kill(event.text):
                    raise_after_stop(supervisor, event.text)
            if not ready and watch.view is not None and watch.view.brokers >= set(addresses):
                ready = True
                servers = ",".join(f"{host}:{port}" for host, port in addresses.values())
                view.ready(servers, seconds=time.monotonic() - started_s)
            view.show(watch.view)
            if all(node.state is NodeState.GIVEN_UP for node in supervisor.nodes):
                status = EXIT_FAILED
                break
            time.sleep(TICK_S)
        view.event("stopping", "stopping")
        watch.close()
        for event in supervisor.stop(impatient=lambda: len(signals) > 1):
            view.event(event.kind, event.text, node=event.node_id)
        view.event("stopped", "stopped")
    return status


def event_is_kill(text: str) -> bool:
    """Whether a node was killed from outside rather than failing by itself."""
    return "killed by SIGKILL" in text or "killed by SIGTERM" in text


def raise_after_stop(supervisor: Supervisor, text: str) -> None:
    """A node that fails before the cluster was ever ready has a reason that a restart does not cure: stop all and say it."""
    supervisor.stop(impatient=lambda: False)
    raise CliError(text)


def prepared_nodes(directory: Path) -> list[int]:
    """The node ids that the directory holds, in order."""
    names = (path.parent.name.removeprefix("node-") for path in directory.glob(f"node-*/{CONFIG_FILE}"))
    return sorted(int(name) for name in names if name.isdigit())


def prepare(directory: Path, numbers: list[int], base_port: int | None) -> None:
    """Write what is missing of the nodes' files: a new cluster's all, none of an old one's unless its ports are to change."""
    ids = {number: found_cluster_id(directory / f"node-{number}" / DATA_DIRECTORY) for number in numbers}
    known = set(filter(None, ids.values()))
    if len(known) > 1:
        raise CliError(f"wrong cluster id: the nodes in {directory} belong to different clusters: {', '.join(sorted(known))}")
    cluster_id = known.pop() if known else new_kafka_id()
    first = base_port if base_port is not None else BASE_PORT_DEFAULT
    if first + 2 * len(numbers) - 1 > 65535:
        raise UsageProblem(f"--base-port {first} leaves no room for {2 * len(numbers)} ports")
    clients = {number: f"{HOST}:{first + i}" for i, number in enumerate(numbers)}
    voters = ",".join(f"{number}@{HOST}:{first + len(numbers) + i}" for i, number in enumerate(numbers))
    for number in numbers:
        node = directory / f"node-{number}"
        path = node / CONFIG_FILE
        before = read_properties(path)
        if not before or base_port is not None:
            more = {name: value for name, value in before.items() if name not in ("process.roles", "log.dirs")} or cluster_settings(len(numbers))
            wanted = node_settings(node_id=number, voters=voters, listener=clients[number], data=node / DATA_DIRECTORY, more={})
            pairs = more | wanted
            if pairs != before:
                write_properties(
                    path, pairs, heading=f"Node {number} of a cluster of {len(numbers)} that `raftlog up` made. Edit it while it is down."
                )
        prepare_data_directory(node / DATA_DIRECTORY, cluster_id=cluster_id, node_id=number)


def cluster_settings(nodes: int) -> dict[str, str]:
    """What suits a cluster of this size: as many replicas as Kafka's guides advise, one of which may be lost."""
    replicas = min(nodes, REPLICATION_MAX)
    return {
        "default.replication.factor": str(replicas),
        "offsets.topic.replication.factor": str(replicas),
        "min.insync.replicas": str(max(1, replicas - 1)),
    }


def client_address(directory: Path, number: int) -> tuple[str, int]:
    """Where clients reach a node, from its file. Raises CliError."""
    path = directory / f"node-{number}" / CONFIG_FILE
    return listeners_of(path)[0][1:]


def listeners_of(path: Path) -> list[tuple[str, str, int]]:
    """Name, host and port of each of a node's listeners, those of clients first. Raises CliError."""
    text = read_properties(path).get("listeners", "")
    found = []
    for part in text.split(","):
        name, _, address = part.strip().partition("://")
        host, _, port = address.rpartition(":")
        if not (host and port.isdigit()):
            raise CliError(f"{path}: listener {part!r} is not NAME://host:port")
        found.append((name, host.strip("[]"), int(port)))
    return sorted(found, key=lambda listener: listener[0] == "CONTROLLER")


def check_ports(directory: Path, numbers: list[int]) -> None:
    """Raise CliError for the first port that another process has: one line now instead of one in each node's log."""
    for number in numbers:
        for _, host, port in listeners_of(directory / f"node-{number}" / CONFIG_FILE):
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise CliError(f"port taken: {host}:{port} ({(error.strerror or '').lower()}); choose others with --base-port") from None


def node_process(directory: Path, number: int, address: tuple[str, int], arguments: list[str]) -> NodeProcess:
    node = directory / f"node-{number}"
    return NodeProcess(number, f"{address[0]}:{address[1]}", ["start", "-c", str(node / CONFIG_FILE), *arguments], node / LOG_FILE)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory for this `up` alone. Raises CliError naming the process that has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / LOCK_FILE, "a+", encoding="ascii")  # noqa: SIM115 - held until the end of `up`
    except OSError as error:
        raise CliError(f"{directory}: {(error.strerror or str(error)).lower()}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise CliError(f"{directory} is in use by another `raftlog up` (process {file.read().strip() or 'unknown'})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def make_view(session: Session, supervisor: Supervisor, directory: Path) -> View:
    shown: Any = JsonView if session.as_json else LiveView if sys.stdout.isatty() else PlainView
    view: View = shown(supervisor, where=shlex.quote(str(directory)))
    return view
