"""Connections between voters: frames on the controller listener, one connection per pair, re-opened when it is lost.

The voter with the greater id dials. It asks with the private API key; the answer turns the connection into one of Raft frames,
which counts once the dialler's first frame has come. Every connection has a generation, and frames are numbered within it, so
that messages come in order and once, and nothing of an old connection comes after a new one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

from raftlog.environment import Network
from raftlog.errors import ApiError, RaftlogError
from raftlog.ids import NodeId
from raftlog.network.connection import RequestContext, Response, Send
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.apis import ApiKey
from raftlog.quorum.identity import VoterIdentity
from raftlog.quorum.messages import FRAME_BYTES_MAX, FrameReceiver, FrameSender, MalformedMessage, Message

RAFT_API_KEY: Final = int(ApiKey.RAFTLOG_RAFT)
RAFT_API_VERSION: Final = 0
DIAL_TIMEOUT_MS: Final = 2000
REDIAL_MS_MIN: Final = 10  # Pause after a lost or failed connection, doubled up to the maximum.
REDIAL_MS_MAX: Final = 200
REFUSED_PAUSE_MS: Final = 2000  # A refusal does not pass by itself.
KEEPALIVE_MS: Final = 1000  # A connection on which nothing was sent for so long gets a frame.
SILENCE_MS_MAX: Final = 4000  # A connection on which nothing came for so long is dead.
REFUSED_REASONS_MAX: Final = 100  # Reasons remembered, so as not to log them again.

# Dialler, whom it wants, generation, the dialler's log id, the one it knows of whom it wants, length of the cluster id.
_HELLO: Final = struct.Struct(">iiq16s16sB")
_WELCOME: Final = struct.Struct(">h16s")  # Status and log id; a refusal's reason follows.
_CORRELATION_ID: Final = struct.Struct(">i")
_ACCEPTED: Final = 0
_REFUSED: Final = 1
_NOT_READY: Final = 2

_log = logging.getLogger(__name__)


class LinksOwner(Protocol):
    """Who takes part by these connections. Called on the event loop."""

    def link_opened(self, peer: NodeId) -> None: ...

    def link_closed(self, peer: NodeId) -> None: ...

    def received(self, peer: NodeId, message: Message) -> None:
        """Raises MalformedMessage to have the connection closed."""


class VoterRefused(RaftlogError):
    """Another voter will not speak to this one, or this one not to it; says why."""


class _Link:
    """One connection to one voter."""

    def __init__(self, peer: NodeId, generation: int, *, in_order: bool) -> None:
        self.peer = peer
        self.sender = FrameSender(generation)
        self.receiver = FrameReceiver(generation, in_order=in_order)
        self.send: Send
        self.abort: Callable[[], None]
        self.lost = asyncio.Event()
        self.sent_s = self.received_s = asyncio.get_running_loop().time()


class Links:
    """This voter's connections to all others."""

    def __init__(
        self,
        *,
        network: Network,
        chance: random.Random,
        cluster_id: str,
        node_id: NodeId,
        addresses: Mapping[NodeId, tuple[str, int]],
        identity: VoterIdentity,
        owner: LinksOwner,
    ) -> None:
        self._network = network
        self._chance = chance
        self._cluster_id = cluster_id.encode()
        self._node_id = node_id
        self._addresses = {peer: address for peer, address in addresses.items() if peer != node_id}
        self._identity = identity
        self._owner = owner
        self._links: dict[NodeId, _Link] = {}
        self._half_open: dict[_Link, None] = {}  # Accepted, the dialler's first frame not yet seen.
        self._tasks: list[asyncio.Task[None]] = []
        self._refusals: dict[NodeId, str] = {}  # Why others refuse this voter; logged once each.
        self._refused: set[str] = set()  # Why this voter refused others; logged once each.
        self._is_open = False

    def start(self) -> None:
        self._is_open = True
        loop = asyncio.get_running_loop()
        for peer in sorted(self._addresses):
            if peer < self._node_id:
                self._tasks.append(loop.create_task(self._keep_dialling(peer), name=f"raft dial {self._node_id} to {peer}"))
        if self._addresses:
            self._tasks.append(loop.create_task(self._keep_alive(), name=f"raft keep-alive {self._node_id}"))

    async def close(self) -> None:
        self._is_open = False
        for task in self._tasks:
            task.cancel()
        for link in (*self._links.values(), *self._half_open):
            link.abort()
        self._links.clear()
        self._half_open.clear()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()

    def send(self, peer: NodeId, message: Message) -> None:
        """Send on the open connection; without one the message is dropped, which Raft expects of a network."""
        link = self._links.get(peer)
        if link is not None:
            link.sent_s = asyncio.get_running_loop().time()
            link.send([link.sender.encode(message)])

    # --- the dialling side --------------------------------------------------------------------------------------------

    async def _keep_dialling(self, peer: NodeId) -> None:
        pause_ms = REDIAL_MS_MIN
        while True:
            try:
                link = await self._dial(peer)
                pause_ms = REDIAL_MS_MIN
                self._refusals.pop(peer, None)
                await link.lost.wait()
            except VoterRefused as refusal:
                self._log_refusal(peer, str(refusal))
                pause_ms = REFUSED_PAUSE_MS
            except (PeerUnreachable, ApiError) as error:
                _log.debug("voter %d can't reach voter %d: %s", self._node_id, peer, error)
            await asyncio.sleep(pause_ms * self._chance.uniform(0.5, 1.0) / 1000)
            pause_ms = min(2 * pause_ms, REDIAL_MS_MAX)

    async def _dial(self, peer: NodeId) -> _Link:
        """Raises PeerUnreachable, VoterRefused."""
        host, port = self._addresses[peer]
        connection = await PeerConnection.open(self._network, host, port, client_id=f"raft-{self._node_id}", timeout_ms=DIAL_TIMEOUT_MS)
        try:
            generation = self._chance.getrandbits(62)
            own, known = self._identity.own.bytes, self._identity.known(peer).bytes
            hello = _HELLO.pack(self._node_id, peer, generation, own, known, len(self._cluster_id)) + self._cluster_id
            welcome = await connection.request_raw(RAFT_API_KEY, RAFT_API_VERSION, [hello], timeout_ms=DIAL_TIMEOUT_MS)
            self._check_welcome(peer, welcome)
        except BaseException:
            connection.close()
            raise
        link = _Link(peer, generation, in_order=True)
        link.abort = connection.close
        link.send = connection.upgrade(lambda frame: self._take(link, frame), lambda: self._lose(link))
        link.send([link.sender.encode({"type": "keepalive"})])
        self._open(link)
        return link

    def _check_welcome(self, peer: NodeId, welcome: memoryview) -> None:
        try:
            status, log_id = _WELCOME.unpack_from(welcome)
        except struct.error:
            raise PeerUnreachable(f"voter {peer} does not answer as a voter") from None
        reason = bytes(welcome[_WELCOME.size :]).decode(errors="replace")
        if status == _NOT_READY:
            raise PeerUnreachable(reason)
        if status != _ACCEPTED:
            raise VoterRefused(f"voter {peer} refuses this one: {reason}")
        refusal = self._identity.admit(peer, uuid.UUID(bytes=log_id))
        if refusal is not None:
            raise VoterRefused(refusal)

    # --- the accepting side -------------------------------------------------------------------------------------------

    def handle(self, context: RequestContext, body: memoryview) -> Response:
        """The private API: a voter wants this connection for Raft frames."""
        correlation_id = _CORRELATION_ID.pack(context.correlation_id)
        try:
            peer, generation = self._check_hello(bytes(body))
        except VoterRefused as refusal:
            self._log_refused(context.connection.peer, str(refusal))
            return [correlation_id, _WELCOME.pack(_REFUSED, self._identity.own.bytes), str(refusal).encode()]
        if not self._is_open:
            return [correlation_id, _WELCOME.pack(_NOT_READY, self._identity.own.bytes), b"this voter is starting or stopping"]
        link = _Link(peer, generation, in_order=True)
        link.abort = context.connection.abort
        self._half_open[link] = None
        link.send = context.connection.upgrade(lambda frame: self._take(link, frame), lambda: self._lose(link))
        return [correlation_id, _WELCOME.pack(_ACCEPTED, self._identity.own.bytes)]

    def _check_hello(self, body: bytes) -> tuple[NodeId, int]:
        """(the dialler, generation). Raises VoterRefused."""
        try:
            peer, wanted, generation, log_id, known, length = _HELLO.unpack_from(body)
        except struct.error:
            raise VoterRefused("not a hello") from None
        cluster_id = body[_HELLO.size :]
        if len(cluster_id) != length:
            raise VoterRefused("not a hello")
        if cluster_id != self._cluster_id:
            raise VoterRefused(f"it belongs to cluster {cluster_id.decode(errors='replace')!r}, not to {self._cluster_id.decode()!r}")
        if wanted != self._node_id:
            raise VoterRefused(f"it looks for voter {wanted}, and this is voter {self._node_id}")
        if peer not in self._addresses:
            raise VoterRefused(f"node {peer} is not among the voters {sorted((*self._addresses, self._node_id))}")
        if self._is_open:
            refusal = self._identity.recognize(uuid.UUID(bytes=known)) or self._identity.admit(peer, uuid.UUID(bytes=log_id))
            if refusal is not None:
                raise VoterRefused(refusal)
        return peer, generation

    # --- both ---------------------------------------------------------------------------------------------------------

    def _open(self, link: _Link) -> None:
        old = self._links.pop(link.peer, None)
        if old is not None:
            old.abort()
            old.lost.set()
            self._owner.link_closed(link.peer)
        self._links[link.peer] = link
        _log.debug("voter %d is connected to voter %d", self._node_id, link.peer)
        self._owner.link_opened(link.peer)

    def _take(self, link: _Link, frame: bytes) -> None:
        if link in self._half_open:
            self._half_open.pop(link, None)
            self._open(link)
        if self._links.get(link.peer) is not link:
            return  # An old connection: what comes of it now is not delivered.
        link.received_s = asyncio.get_running_loop().time()
        try:
            if len(frame) > FRAME_BYTES_MAX:
                raise MalformedMessage(f"a frame of {len(frame)} bytes is too large")
            message = link.receiver.decode(frame)
            if message is not None and message["type"] != "keepalive":
                self._owner.received(link.peer, message)
        except MalformedMessage as error:
            _log.warning("closing the connection to voter %d: %s", link.peer, error)
            link.abort()

    def _lose(self, link: _Link) -> None:
        link.lost.set()
        self._half_open.pop(link, None)
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            _log.debug("voter %d lost the connection to voter %d", self._node_id, link.peer)
            self._owner.link_closed(link.peer)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(KEEPALIVE_MS / 1000)
            now_s = loop.time()
            for link in tuple(self._links.values()):
                if now_s - link.received_s > SILENCE_MS_MAX / 1000:
                    _log.warning("nothing came from voter %d for %d ms: closing the connection", link.peer, SILENCE_MS_MAX)
                    link.abort()
                elif now_s - link.sent_s >= KEEPALIVE_MS / 1000:
                    self.send(link.peer, {"type": "keepalive"})

    def _log_refused(self, where: str, reason: str) -> None:
        """One line for each reason, not for each attempt."""
        if reason not in self._refused:
            if len(self._refused) >= REFUSED_REASONS_MAX:
                self._refused.clear()
            self._refused.add(reason)
            _log.error("voter %d refused the one at %s: %s", self._node_id, where, reason)

    def _log_refusal(self, peer: NodeId, reason: str) -> None:
        if self._refusals.get(peer) != reason:
            self._refusals[peer] = reason
            _log.error("voter %d can't take part with voter %d: %s", self._node_id, peer, reason)
