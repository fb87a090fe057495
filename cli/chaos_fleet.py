"""The client processes of a chaos run: which there are, their start, replacement and end. What they do is in chaos_clients."""

from __future__ import annotations

import dataclasses
import importlib.util
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from .chaos_clients import FINAL_TIMEOUT_S, FLUSH_TIMEOUT_S, Spec
from .supervisor import NodeProcess

LIBRDKAFKA: Final = "librdkafka"
AIOKAFKA: Final = "aiokafka"
GROUP: Final = "chaos-readers"
NUMBERS_PER_CLIENT: Final = 1000  # A producer that had to be replaced within its process takes the next of its numbers.
CONSUMER_PROTOCOL: Final = "consumer"  # KIP-848's: a group of its own.
STOP_TIMEOUT_S: Final = FLUSH_TIMEOUT_S + 15.0
FINAL_GRACE_S: Final = 20.0
POLL_S: Final = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class ClientKind:
    """A client that a run has, its share of the writes for producers."""

    role: str
    library: str
    name: str
    share: float = 0.0
    acks: str = "all"
    idempotent: bool = True
    protocol: str = "classic"  # Of its group.
    rack: str = ""


KINDS: Final = (
    ClientKind("producer", LIBRDKAFKA, "rd-idempotent", 0.35),
    ClientKind("producer", LIBRDKAFKA, "rd-plain", 0.2, idempotent=False),
    ClientKind("producer", LIBRDKAFKA, "rd-acks1", 0.1, acks="1", idempotent=False),
    ClientKind("producer", AIOKAFKA, "aio-idempotent", 0.35),
    ClientKind("poller", LIBRDKAFKA, "rd-poller"),
    ClientKind("poller", AIOKAFKA, "aio-poller"),
    ClientKind("member", LIBRDKAFKA, "rd-member-1"),
    ClientKind("member", LIBRDKAFKA, "rd-member-2"),
    ClientKind("observer", LIBRDKAFKA, "rd-observer"),
    ClientKind("member", LIBRDKAFKA, "rd-consumer-1", protocol=CONSUMER_PROTOCOL),
    ClientKind("member", LIBRDKAFKA, "rd-consumer-2", protocol=CONSUMER_PROTOCOL),
    ClientKind("observer", LIBRDKAFKA, "rd-consumer-observer", protocol=CONSUMER_PROTOCOL),
)
FINAL_KINDS: Final = (
    ClientKind("final", LIBRDKAFKA, "rd-final"),
    ClientKind("final", LIBRDKAFKA, "rd-consumer-final", protocol=CONSUMER_PROTOCOL),
    ClientKind("final", AIOKAFKA, "aio-final"),
)


def has_aiokafka() -> bool:
    return importlib.util.find_spec("aiokafka") is not None


class Fleet:
    """All clients of a run. `observes`: whether the group's offsets are read during the faults too; `racks` get a consumer each."""

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        topic: str,
        partitions: int,
        history: Path,
        log: Path,
        rate_per_s: float,
        observes: bool,
        racks: Sequence[str] = (),
    ) -> None:
        self.libraries = (LIBRDKAFKA, AIOKAFKA) if has_aiokafka() else (LIBRDKAFKA,)
        self._base = Spec("", "", "", 0, bootstrap_servers, topic, partitions, str(history), GROUP)
        self._log = log
        self._observes = observes
        kinds = [kind for kind in KINDS if kind.library in self.libraries and (observes or kind.role != "observer")]
        kinds += (ClientKind("near", LIBRDKAFKA, f"rd-near-{rack}", rack=rack) for rack in racks)
        share = sum(kind.share for kind in kinds)
        self._rates = {kind: rate_per_s * kind.share / share for kind in kinds}
        self._running: dict[ClientKind, NodeProcess] = {}
        self._count = 0

    def start(self) -> None:
        for kind in self._rates:
            self._running[kind] = self._start(kind)

    def replace_all(self) -> None:
        """SIGKILL to every client, and another in the place of each."""
        for client in self._running.values():
            assert client.process is not None
            client.process.kill()
            client.process.wait()
        self.start()

    def revive(self) -> list[str]:
        """Start those anew that ended by themselves, which none should. Returns a line for each."""
        lines = []
        for kind, client in list(self._running.items()):
            if client.process is not None and (code := client.process.poll()) is not None:
                lines.append(f"client {client.address} ended by itself with status {code}: {client.last_log_line()}")
                self._running[kind] = self._start(kind)
        return lines

    def stop(self, pump: Callable[[float], None]) -> list[str]:
        """SIGTERM to all, then wait while `pump` runs; SIGKILL for those who do not end. Returns a line for each of these."""
        clients, self._running = list(self._running.values()), {}
        for client in clients:
            assert client.process is not None
            client.process.send_signal(signal.SIGTERM)
        return self._wait(clients, timeout_s=STOP_TIMEOUT_S, pump=pump, statuses=(0, None))

    def read_finally(self, pump: Callable[[float], None]) -> list[str]:
        """Have each library read everything. Returns a line for each that could not."""
        clients = [self._start(kind) for kind in FINAL_KINDS if kind.library in self.libraries]
        return self._wait(clients, timeout_s=FINAL_TIMEOUT_S + FINAL_GRACE_S, pump=pump, statuses=(0,))

    def kill(self) -> None:
        for client in self._running.values():
            if client.process is not None and client.process.poll() is None:
                client.process.kill()
                client.process.wait()
        self._running.clear()

    def _start(self, kind: ClientKind) -> NodeProcess:
        self._count += 1
        name = f"{kind.name}.{self._count}"
        spec = dataclasses.replace(
            self._base,
            role=kind.role,
            group=GROUP if kind.protocol != CONSUMER_PROTOCOL else f"{GROUP}-{CONSUMER_PROTOCOL}",
            protocol=kind.protocol,
            library=kind.library,
            name=name,
            number=self._count * NUMBERS_PER_CLIENT,
            rate_per_s=self._rates.get(kind, 0.0),
            acks=kind.acks,
            idempotent=kind.idempotent,
            rack=kind.rack,
        )
        client = NodeProcess(self._count, name, ["chaos", "client", spec.to_json()], self._log)
        client.start(now_s=time.monotonic())
        return client

    def _wait(self, clients: Sequence[NodeProcess], *, timeout_s: float, pump: Callable[[float], None], statuses: Sequence[int | None]) -> list[str]:
        deadline_s = time.monotonic() + timeout_s
        lines = []
        for client in clients:
            process = client.process
            assert process is not None
            while process.poll() is None and time.monotonic() < deadline_s:
                pump(POLL_S)
            if process.poll() is None:
                process.kill()
                lines.append(f"client {client.address} did not end in {timeout_s:.0f} s and was killed")
            elif process.returncode not in statuses:
                lines.append(f"client {client.address} ended with status {process.returncode}; its log is {self._log}")
        _reap(clients)
        return lines


def _reap(clients: Sequence[NodeProcess]) -> None:
    for client in clients:
        if client.process is not None:
            try:
                client.process.wait(1.0)
            except subprocess.TimeoutExpired:  # In the kernel's hands; it does not hold the run up.
                continue
