"""Network namespaces between the nodes of a chaos run, for root on Linux: real loss of packets, clients' links included.

Every node has a namespace of its own, and the clients share one, that of the run itself. Each has one interface, a TUN
device, whose other end is here: the run is the switch between them. A packet is dropped, delayed or passed on by who sends
it, who is to get it, and which listener it belongs to; what TCP makes of that is the kernels' own doing. Nothing is
installed in the system: the addresses exist only inside, and namespaces end with the last process and file that holds
them, however the run ends. (Queueing disciplines and nftables can't do more, and netem is missing from many kernels.)
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from .chaos_links import CALL_TIMEOUT_S, CONTROLLER, KINDS, REPLICATION, Slowness
from .errors import CliError

CLIENTS: Final = "clients"  # The kind of links between nodes and clients.
CLIENTS_NODE: Final = 0  # Who the clients are, where nodes are numbered from 1.
NETWORK: Final = "10.213.77"
INTERFACE: Final = "link0"
PACKET_BYTES_MAX: Final = 65535
PACKETS_AT_ONCE_MAX: Final = 64  # Read from one device before the others have their turn.

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_TUN_WITHOUT_HEADER: Final = 0x0001 | 0x1000
_IP_VERSION: Final = 4
_TCP: Final = 6

T = TypeVar("T")


def address_of(node_id: int) -> str:
    return f"{NETWORK}.{node_id + 1}"


def what_is_missing() -> str | None:
    """Why there can be no namespaces here, in one line; None when there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root; without it leave out --network: proxies do the same but for real loss of packets"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (package iproute2)"
    if not os.path.exists("/dev/net/tun"):
        return "network namespaces need /dev/net/tun"
    return None


@dataclass(slots=True)
class _Port:
    """One namespace: an open file that stands for it, and this end of its device."""

    namespace: int
    device: int


class _Way:
    """From one node to another for one kind of links. Packets keep their order, however their delays are drawn."""

    __slots__ = ("due_s", "is_cut", "slowness")

    def __init__(self) -> None:
        self.is_cut = False
        self.slowness: Slowness | None = None
        self.due_s = 0.0


class Namespaces:
    """The namespaces of a run and the switch between them, in a thread of its own; see `chaos_links.Links`.

    `controller_port` is that of every node's controller listener. Must be made and closed by the main thread, which lives
    in the clients' namespace from then on: processes and threads that it starts do, too.
    """

    def __init__(self, node_ids: Iterable[int], *, controller_port: int, seed: int) -> None:
        """Raises CliError where it can't be done."""
        if (missing := what_is_missing()) is not None:
            raise CliError(missing)
        self._chance = random.Random(seed)
        self._controller_port = controller_port
        self._ways: dict[tuple[int, int, str], _Way] = {}
        self._ports: dict[int, _Port] = {}
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            for node_id in (CLIENTS_NODE, *node_ids):
                self._ports[node_id] = _in_thread(lambda node_id=node_id: _make_port(node_id))  # type: ignore[misc]
        except (OSError, subprocess.CalledProcessError) as error:
            self._close_files()
            raise CliError(f"no network namespaces here: {error}") from None
        self._by_address = {bytes(map(int, address_of(node_id).split("."))): node_id for node_id in self._ports}
        self._loop = asyncio.new_event_loop()
        for node_id, port in self._ports.items():
            self._loop.add_reader(port.device, self._arrived, node_id, port.device)
        self._thread = threading.Thread(target=self._loop.run_forever, name="switch", daemon=True)
        self._thread.start()
        _enter(self._ports[CLIENTS_NODE].namespace)

    def close(self) -> None:
        """Go home. What still runs in the namespaces has no network from now on."""
        _enter(self._home)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()
        self._close_files()

    def _close_files(self) -> None:
        for port in self._ports.values():
            os.close(port.namespace)
            os.close(port.device)
        os.close(self._home)

    @contextlib.contextmanager
    def inside(self, node_id: int) -> Iterator[None]:
        """Processes that the calling thread starts meanwhile live in the node's namespace."""
        _enter(self._ports[node_id].namespace)
        try:
            yield
        finally:
            _enter(self._ports[CLIENTS_NODE].namespace)

    # --- faults ---

    def cut(self, pairs: Iterable[tuple[int, int]], *, kinds: Iterable[str] = KINDS) -> None:
        """Let nothing pass from the first node of each pair to the second."""

        def cut(way: _Way) -> None:
            way.is_cut = True

        self._each(pairs, kinds, cut)

    def slow(self, pairs: Iterable[tuple[int, int]], slowness: Slowness, *, kinds: Iterable[str] = KINDS) -> None:
        """Delay and lose what goes from the first node of each pair to the second."""

        def slow(way: _Way) -> None:
            way.slowness = slowness

        self._each(pairs, kinds, slow)

    def heal(self) -> None:
        """Everything passes again."""
        self._call(self._ways.clear)

    def _each(self, pairs: Iterable[tuple[int, int]], kinds: Iterable[str], change: Callable[[_Way], None]) -> None:
        wanted = [(source, target, kind) for source, target in pairs for kind in kinds]

        def apply() -> None:
            for key in wanted:
                change(self._ways.setdefault(key, _Way()))

        self._call(apply)

    def _call(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(run)
        if not done.wait(CALL_TIMEOUT_S):
            raise CliError("the switch between the namespaces does not answer")

    # --- packets ---

    def _arrived(self, source: int, device: int) -> None:
        for _ in range(PACKETS_AT_ONCE_MAX):
            try:
                packet = os.read(device, PACKET_BYTES_MAX)
            except OSError:
                return
            self._pass_on(source, packet)

    def _pass_on(self, source: int, packet: bytes) -> None:
        target = self._by_address.get(packet[16:20]) if packet[0] >> 4 == _IP_VERSION else None
        if target is None:
            return
        way = self._ways.get((source, target, self._kind_of(source, target, packet))) if self._ways else None
        if way is None:
            self._deliver(target, packet)
            return
        slowness = way.slowness or Slowness()
        if way.is_cut or self._chance.random() < slowness.loss:
            return
        delay_s = slowness.delay_s + self._chance.uniform(-slowness.jitter_s, slowness.jitter_s)
        way.due_s = max(way.due_s, self._loop.time() + max(0.0, delay_s))
        self._loop.call_at(way.due_s, self._deliver, target, packet)

    def _kind_of(self, source: int, target: int, packet: bytes) -> str:
        """Which listener the packet's connection belongs to."""
        if CLIENTS_NODE in (source, target):
            return CLIENTS
        header_end = 4 * (packet[0] & 0xF)
        if packet[9] != _TCP or len(packet) < header_end + 4:
            return REPLICATION
        ports = struct.unpack_from(">HH", packet, header_end)
        return CONTROLLER if self._controller_port in ports else REPLICATION

    def _deliver(self, target: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # A full device loses packets, as networks do.
            os.write(self._ports[target].device, packet)


def _make_port(node_id: int) -> _Port:
    """Make a namespace with one interface; called in a thread of its own, whose namespace it becomes. Raises OSError, CalledProcessError."""
    if _libc().unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _TUN_WITHOUT_HEADER))
    for command in (f"addr add {address_of(node_id)}/24 dev {INTERFACE}", f"link set {INTERFACE} up", "link set lo up"):
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)
    return _Port(namespace, device)


def _enter(namespace: int) -> None:
    """Move the calling thread there."""
    if _libc().setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread that ends with it."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
