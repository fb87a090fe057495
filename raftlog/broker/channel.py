"""A broker's way to the active controller: finds it, keeps one connection to it, and tries again until the time is up.

Who the active controller is comes from `controller_is` (the local quorum on a combined node, the metadata fetches on a
broker-only node); as long as nobody knows, the voters are asked in turn, and NOT_CONTROLLER moves on to the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from raftlog.config import Settings, Voter
from raftlog.environment import Buffer, Environment
from raftlog.errors import ErrorCode, NotController, RequestTimedOut
from raftlog.ids import NO_NODE, NodeId
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.messages import Fields, encode_request_header

ENVELOPE: Final = 58
RETRY_PAUSE_MS_MIN: Final = 10  # After a failed try; doubles up to the maximum. A change of leadership ends it at once.
RETRY_PAUSE_MS_MAX: Final = 100
CONNECT_TIMEOUT_MS: Final = 1000  # A controller that does not accept for so long is passed over.
TRY_TIMEOUT_MS: Final = 10_000  # One try; a controller that hangs must not use up the whole time of a request.

logger = logging.getLogger(__name__)


class ClientContext(Protocol):
    """What `forward` needs of a RequestContext."""

    @property
    def api_key(self) -> int: ...
    @property
    def api_version(self) -> int: ...
    @property
    def correlation_id(self) -> int: ...
    @property
    def client_id(self) -> str | None: ...
    @property
    def connection(self) -> Any: ...


class Forwarded(NamedTuple):
    """The response frame to a client's request; `is_repeat`: an earlier try may have been carried out unheard."""

    frame: Buffer
    is_repeat: bool


class ControllerChannel:
    """Requests to the active controller. Requests of one channel are pipelined on one connection."""

    def __init__(self, settings: Settings, environment: Environment, *, client_id: str) -> None:
        self._environment = environment
        self._client_id = client_id
        self._voters: dict[NodeId, Voter] = {voter.node_id: voter for voter in settings.voters}
        self._order = sorted(self._voters)
        self._turn = 0
        self._known = NO_NODE
        self._peer: PeerConnection | None = None
        self._peer_node = NO_NODE
        self._connecting: asyncio.Task[PeerConnection] | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._on_lost: Callable[[], None] | None = None

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the connection that is in use breaks, though nobody here closed it."""
        self._on_lost = callback

    @property
    def active_controller(self) -> NodeId:
        """The active controller as far as is known here, else NO_NODE."""
        return self._known

    def controller_is(self, node_id: NodeId) -> None:
        """The active controller is now `node_id` (NO_NODE: nobody is). Requests under way elsewhere are sent again to it."""
        if node_id == self._known:
            return
        self._known = node_id
        if node_id != NO_NODE:
            if self._peer is not None and self._peer_node != node_id:
                self._drop(self._peer)
            self._changed.set()

    async def request(self, api_key: int, fields: Mapping[str, Any], *, timeout_ms: int, version: int | None = None) -> Fields:
        """The active controller's answer, whatever errors other than NOT_CONTROLLER it holds.

        A request whose connection broke may have been carried out, and is sent again: send only what can be repeated.
        Raises RequestTimedOut when no active controller answered within `timeout_ms`.
        """
        answer, _ = await self._request(api_key, fields, timeout_ms=timeout_ms, version=version)
        return answer

    async def _request(self, api_key: int, fields: Mapping[str, Any], *, timeout_ms: int, version: int | None = None) -> tuple[Fields, bool]:
        """As `request`; and whether it was sent before the try that was answered."""
        was_sent = is_sent = False
        deadline_ms = self._environment.clock.monotonic_ms() + timeout_ms
        pause_ms = RETRY_PAUSE_MS_MIN
        problem = "no controller is known"
        while True:
            left_ms = deadline_ms - self._environment.clock.monotonic_ms()
            if left_ms <= 0 or self._closed:
                raise RequestTimedOut(f"no active controller answered within {timeout_ms} ms: {problem}")
            self._changed.clear()
            try:
                peer = await self._connected()
                was_sent, is_sent = is_sent, True
                answer = await peer.request(api_key, fields, version=version, timeout_ms=min(left_ms, TRY_TIMEOUT_MS))
                if getattr(answer, "error_code", ErrorCode.none) != ErrorCode.not_controller:
                    return answer, was_sent
                problem = f"node {self._peer_node} is not the active controller"
                self._not_controller(peer)
            except PeerUnreachable as error:
                problem = str(error)
                self._turn += 1
            await self._pause(min(pause_ms, max(left_ms, 1)))
            pause_ms = min(2 * pause_ms, RETRY_PAUSE_MS_MAX)

    async def forward(self, context: ClientContext, body: Buffer, *, timeout_ms: int) -> Forwarded:
        """Have the active controller carry out a client's request; its response frame is ready for that client.

        `body` is the request after its header and is not kept. Raises as `request`. Source: KIP-590.
        """
        header = encode_request_header(context.api_key, context.api_version, context.correlation_id, context.client_id)
        envelope = {
            "request_data": bytes(header) + bytes(body),
            "request_principal": ANONYMOUS,
            "client_host_address": host_address(context.connection.peer),
        }
        answer, is_repeat = await self._request(ENVELOPE, envelope, timeout_ms=timeout_ms)
        if answer.error_code != ErrorCode.none or answer.response_data is None:
            raise NotController(f"the controller refused the envelope: {ErrorCode(answer.error_code).name}")
        return Forwarded(answer.response_data, is_repeat)

    async def close(self) -> None:
        """Close the connection; requests under way fail with RequestTimedOut."""
        self._closed = True
        self._changed.set()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._peer is not None:
            self._drop(self._peer)

    async def _connected(self) -> PeerConnection:
        if self._peer is not None and not self._peer.closed:
            return self._peer
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        return await asyncio.shield(self._connecting)

    def _connect_ended(self, task: asyncio.Task[PeerConnection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # Its waiters have it; without any it must not be reported as never retrieved.

    async def _connect(self) -> PeerConnection:
        node_id = self._known if self._known in self._voters else self._order[self._turn % len(self._order)]
        voter = self._voters[node_id]
        peer = await PeerConnection.open(self._environment.network, voter.host, voter.port, client_id=self._client_id, timeout_ms=CONNECT_TIMEOUT_MS)
        if self._closed:
            peer.close()
            raise PeerUnreachable("this node is stopping")
        self._peer, self._peer_node = peer, node_id
        peer.on_close(lambda: self._lost(peer))
        return peer

    def _lost(self, peer: PeerConnection) -> None:
        if self._peer is peer and not self._closed and self._on_lost is not None:
            self._on_lost()

    def _not_controller(self, peer: PeerConnection) -> None:
        """Ask the next voter, unless this one is known to lead: then it is about to become active, and is asked again."""
        if self._known != self._peer_node:
            self._turn += 1
            self._drop(peer)

    def _drop(self, peer: PeerConnection) -> None:
        if self._peer is peer:
            self._peer, self._peer_node = None, NO_NODE
        peer.close()

    async def _pause(self, pause_ms: int) -> None:
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await self._changed.wait()
        except TimeoutError:
            return


def principal_data(kind: str, name: str) -> bytes:
    """An authenticated principal as Envelope carries it: int16 version 0, then DefaultPrincipalData v0."""
    parts = [text.encode() for text in (kind, name)]
    assert all(len(part) < 127 for part in parts)  # One-byte compact lengths.
    return b"\0\0" + b"".join(bytes([len(part) + 1]) + part for part in parts) + b"\0\0"


ANONYMOUS: Final = principal_data("User", "ANONYMOUS")


def host_address(peer: str) -> bytes:
    """The address in `ip:port` as Envelope carries it: 4 bytes, or 16 for IPv6."""
    import ipaddress  # Its import costs 3 ms, and only a forwarded request needs it.

    host = peer.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(host).packed
    except ValueError:
        return bytes(4)
