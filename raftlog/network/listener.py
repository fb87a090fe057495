"""Where a node listens: accepts connections, limits and ages them. Also the production network."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from raftlog.config import Settings
from raftlog.environment import ListeningSocket, Network
from raftlog.errors import RaftlogError
from raftlog.network.connection import Dispatcher, ServerConnection

IDLE_CHECKS_PER_LIMIT: Final = 10  # Idle connections are looked for this many times per connections.max.idle.ms.
ACCEPT_BACKLOG: Final = 1024  # Connections the kernel holds for us after a restart, when all clients come at once.
CLOSE_WAIT_MS_MAX: Final = 1000  # How long closing waits for responses to leave.

_log = logging.getLogger(__name__)


class Listener:
    """One listening socket and the connections accepted on it."""

    def __init__(self, network: Network, host: str, port: int, dispatcher: Dispatcher, *, listener_name: str, settings: Settings) -> None:
        self._network = network
        self._host = host
        self._port = port
        self._dispatcher = dispatcher
        self._name = listener_name
        self._settings = settings
        self._socket: ListeningSocket | None = None
        self._connections: dict[ServerConnection, None] = {}  # In order, so that a simulation repeats exactly.
        self._per_address: dict[str, int] = {}
        self._idle_timer: asyncio.TimerHandle | None = None
        self._all_closed: asyncio.Event | None = None
        self._is_full = False

    @property
    def port(self) -> int:
        """The actual port, where 0 was asked for; valid after `start`."""
        return self._port if self._socket is None else self._socket.port

    @property
    def connections(self) -> int:
        return len(self._connections)

    def reconfigure(self, settings: Settings) -> None:
        """The limits on connections hold for those that come from now on."""
        self._settings = settings
        self._is_full = False

    async def start(self) -> None:
        """Begin to accept. Raises RaftlogError, one line, when the address can't be had."""
        try:
            self._socket = await self._network.listen(self._accept, self._host, self._port)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RaftlogError(f"listener {self._name}: can't listen on {self._host}:{self._port}: {reason}") from error
        self._schedule_idle_check()

    async def close(self) -> None:
        """Stop accepting, cancel what handlers are doing, and close every connection once its responses have left."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._socket is not None:
            self._socket.close()
        if self._connections:
            self._all_closed = asyncio.Event()
            for connection in tuple(self._connections):
                connection.abandon()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), CLOSE_WAIT_MS_MAX / 1000)
            for connection in tuple(self._connections):
                connection.abort()
        if self._socket is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._socket.wait_closed(), CLOSE_WAIT_MS_MAX / 1000)

    def _accept(self) -> ServerConnection:
        return ServerConnection(
            self._dispatcher,
            listener_name=self._name,
            size_bytes_max=self._settings.socket_request_max_bytes,
            on_open=self._opened,
            on_lost=self._lost,
        )

    def _opened(self, connection: ServerConnection) -> None:
        self._connections[connection] = None
        address = connection.peer.rpartition(":")[0]
        of_address = self._per_address[address] = self._per_address.get(address, 0) + 1
        if len(self._connections) > self._settings.max_connections:
            self._refuse(connection, f"max.connections={self._settings.max_connections}")
            return
        if of_address > self._settings.max_connections_per_ip:
            self._refuse(connection, f"max.connections.per.ip={self._settings.max_connections_per_ip}")
            return
        self._is_full = False
        connection.set_buffer_sizes(send_bytes=self._settings.socket_send_buffer_bytes, receive_bytes=self._settings.socket_receive_buffer_bytes)

    def _refuse(self, connection: ServerConnection, limit: str) -> None:
        if not self._is_full:
            _log.warning("listener %s has %s: refusing %s", self._name, limit, connection.peer)
        self._is_full = True
        connection.close()

    def _lost(self, connection: ServerConnection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            address = connection.peer.rpartition(":")[0]
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]
        if self._all_closed is not None and not self._connections:
            self._all_closed.set()

    def _schedule_idle_check(self) -> None:
        interval_s = self._settings.connections_max_idle_ms / 1000 / IDLE_CHECKS_PER_LIMIT
        self._idle_timer = asyncio.get_running_loop().call_later(interval_s, self._check_idle)

    def _check_idle(self) -> None:
        """Close connections without a request for too long; those quiet for a while give their buffers back."""
        now_s = asyncio.get_running_loop().time()
        limit_s = self._settings.connections_max_idle_ms / 1000
        for connection in tuple(self._connections):
            idle_s = now_s - connection.active_at
            if idle_s > limit_s and not connection.requests_in_flight and not connection.is_upgraded:
                _log.debug("closing the idle connection of %s", connection.peer)
                connection.close()
            elif idle_s > limit_s / IDLE_CHECKS_PER_LIMIT:
                connection.release_memory()
        self._schedule_idle_check()


class OsNetwork:
    """The machine's TCP."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> ListeningSocket:
        """Raises OSError when the address can't be had."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(factory, host or None, port, reuse_address=True, backlog=ACCEPT_BACKLOG)
        return _OsListeningSocket(server)

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Raises OSError when nobody answers there."""
        return await asyncio.get_running_loop().create_connection(factory, host, port)


class _OsListeningSocket:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self.port: int = server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._server.close()

    async def wait_closed(self) -> None:
        await self._server.wait_closed()
