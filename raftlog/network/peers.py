"""The client's end of a connection to another node: pipelined requests, matched to responses by correlation id."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raftlog.environment import Buffer, Network
from raftlog.errors import ErrorCode, RaftlogError, UnsupportedVersion
from raftlog.network.connection import FrameConnection, OnClose, OnFrame, Send
from raftlog.protocol.apis import API_VERSIONS_ALL, ApiKey, api_name
from raftlog.protocol.frames import FRAME_LENGTH, MalformedFrame, frame_prefix
from raftlog.protocol.messages import (
    Fields,
    decode_response_body,
    encode_request_body,
    encode_request_header,
    response_body_offset,
)

PEER_REQUESTS_IN_FLIGHT_MAX: Final = 1024  # Unanswered requests per connection; a caller beyond that is out of control.
RESPONSE_BYTES_MAX: Final = 256 * 1024 * 1024  # Largest response taken: a fetch of many partitions and one large batch.
CLIENT_SOFTWARE: Final = {"client_software_name": "raftlog", "client_software_version": "0.1"}

_log = logging.getLogger(__name__)


class PeerUnreachable(RaftlogError):
    """No connection to a node, or it was lost or timed out before the answer came. The request may have had its effect."""


class _Request:
    __slots__ = ("api_key", "api_version", "future", "timer")

    def __init__(self, api_key: int, api_version: int, future: asyncio.Future[memoryview], timer: asyncio.TimerHandle) -> None:
        self.api_key = api_key
        self.api_version = api_version
        self.future = future
        self.timer = timer


class PeerConnection:
    """A connection that this node opened; close it when done. All times are in ms."""

    def __init__(self, protocol: _PeerProtocol, client_id: str | None) -> None:
        self._protocol = protocol
        self._client_id = client_id
        self._versions: dict[int, tuple[int, int]] = {}

    @classmethod
    async def open(cls, network: Network, host: str, port: int, *, client_id: str | None, timeout_ms: int) -> PeerConnection:
        """Connect and ask which versions the node has. Raises PeerUnreachable."""
        where = f"{host}:{port}"
        peer: PeerConnection | None = None
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                _, protocol = await network.connect(_PeerProtocol, host, port)
                assert isinstance(protocol, _PeerProtocol)
                peer = cls(protocol, client_id)
                await peer._ask_versions(timeout_ms=timeout_ms)
        except TimeoutError:
            raise PeerUnreachable(f"{where} did not answer in {timeout_ms} ms") from None
        except OSError as error:
            raise PeerUnreachable(f"can't connect to {where}: {error.strerror or error}") from error
        else:
            return peer
        finally:
            if peer is not None and not peer._versions:
                peer.close()

    @property
    def closed(self) -> bool:
        return self._protocol.is_closed

    @property
    def peer(self) -> str:
        """`ip:port` of the node."""
        return self._protocol.peer

    @property
    def versions(self) -> Mapping[int, tuple[int, int]]:
        """Lowest and highest version of each API the node has."""
        return self._versions

    def version_of(self, api_key: int) -> int:
        """The highest version both ends have. Raises UnsupportedVersion."""
        ours, theirs = API_VERSIONS_ALL.get(api_key), self._versions.get(api_key)
        if ours is None or theirs is None or min(ours[1], theirs[1]) < max(ours[0], theirs[0]):
            raise UnsupportedVersion(f"{self.peer} and this node have no version of {api_name(api_key)} in common")
        return min(ours[1], theirs[1])

    async def request(self, api_key: int, fields: Mapping[str, Any] | Fields, *, version: int | None = None, timeout_ms: int) -> Fields:
        """Ask and wait for the answer. Raises PeerUnreachable, UnsupportedVersion.

        An answer that does not come in time closes the connection: others on it would wait behind it.
        """
        api_version = self.version_of(api_key) if version is None else version
        body = encode_request_body(api_key, api_version, fields)
        response = await self.request_raw(api_key, api_version, [body], timeout_ms=timeout_ms)
        try:
            return decode_response_body(api_key, api_version, response)
        except MalformedFrame as error:
            self.close()
            raise PeerUnreachable(f"{self.peer}: {error}") from error

    async def request_raw(self, api_key: int, api_version: int, body: Sequence[Buffer], *, timeout_ms: int) -> memoryview:
        """As `request` with a body already encoded; gives the response's body, a copy of its own. Raises PeerUnreachable."""
        return await self._protocol.ask(api_key, api_version, body, client_id=self._client_id, timeout_ms=timeout_ms)

    def on_close(self, callback: OnClose) -> None:
        """Call `callback` once when the node closes the connection, or it is lost, or closed by `close`."""
        self._protocol.on_close(callback)

    def close(self) -> None:
        """Close; requests still waiting raise PeerUnreachable."""
        self._protocol.close()

    def upgrade(self, on_frame: OnFrame, on_close: OnClose) -> Send:
        """Take the connection over after a request of the private API was answered.

        Frames that came right behind that answer are kept until this is called. See `FrameConnection.upgrade`.
        """
        return self._protocol.upgrade(on_frame, on_close)

    async def _ask_versions(self, *, timeout_ms: int) -> None:
        """ApiVersions; a node that does not know our version of it answers in version 0 which ones it has (KIP-511)."""
        version = API_VERSIONS_ALL[ApiKey.API_VERSIONS][1]
        for _ in range(2):
            body = encode_request_body(ApiKey.API_VERSIONS, version, CLIENT_SOFTWARE)
            response = await self.request_raw(ApiKey.API_VERSIONS, version, [body], timeout_ms=timeout_ms)
            refused = int.from_bytes(response[:2], "big") == ErrorCode.unsupported_version
            try:
                answer = decode_response_body(ApiKey.API_VERSIONS, 0 if refused else version, response)
            except MalformedFrame as error:
                raise PeerUnreachable(f"{self.peer}: {error}") from error
            versions = {api.api_key: (api.min_version, api.max_version) for api in answer.api_keys}
            if not refused:
                if answer.error_code:
                    raise PeerUnreachable(f"{self.peer} refuses ApiVersions: {answer.error_code.name}")
                self._versions = versions
                return
            version = min(version - 1, versions.get(ApiKey.API_VERSIONS, (0, 0))[1])
        raise PeerUnreachable(f"{self.peer} has no version of ApiVersions in common with this node")


class _PeerProtocol(FrameConnection):
    def __init__(self) -> None:
        super().__init__(size_bytes_max=RESPONSE_BYTES_MAX)
        self._requests: dict[int, _Request] = {}
        self._next_correlation_id = 0
        self._awaits_upgrade = False

    async def ask(self, api_key: int, api_version: int, body: Sequence[Buffer], *, client_id: str | None, timeout_ms: int) -> memoryview:
        if self.is_closed:
            raise PeerUnreachable(f"the connection to {self.peer} is closed")
        if len(self._requests) >= PEER_REQUESTS_IN_FLIGHT_MAX:
            raise PeerUnreachable(f"{len(self._requests)} requests to {self.peer} are unanswered")
        correlation_id = self._next_correlation_id
        self._next_correlation_id = (correlation_id + 1) & 0x7FFFFFFF
        future: asyncio.Future[memoryview] = self._loop.create_future()
        timer = self._loop.call_later(timeout_ms / 1000, self._time_out, correlation_id, timeout_ms)
        self._requests[correlation_id] = _Request(api_key, api_version, future, timer)
        frame = [encode_request_header(api_key, api_version, correlation_id, client_id), *body]
        self._write([frame_prefix(frame), *frame])
        return await future

    def upgrade(self, on_frame: OnFrame, on_close: OnClose) -> Send:
        self._awaits_upgrade = False
        return super().upgrade(on_frame, on_close)

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc is not None else ""
        super().connection_lost(exc)
        self._fail_all(f"the connection to {self.peer} was lost{reason}")

    def eof_received(self) -> bool | None:
        self._fail_all(f"{self.peer} closed the connection")
        return super().eof_received()

    def close(self, reason: str | None = None) -> None:
        super().close(reason)
        self._fail_all(reason or f"the connection to {self.peer} was closed")

    def _may_take_frames(self) -> bool:
        # Responses are taken even while our requests wait to be sent: a node that answers may be waiting for just that.
        return not self._awaits_upgrade

    def _handle_frame(self, frame: memoryview) -> None:
        if len(frame) < 4:
            raise MalformedFrame("a response is too short for its correlation id")
        correlation_id: int = FRAME_LENGTH.unpack_from(frame, 0)[0]
        request = self._requests.pop(correlation_id, None)
        if request is None:
            raise MalformedFrame(f"a response has correlation id {correlation_id}, which no request has")
        request.timer.cancel()
        content = memoryview(bytes(frame))
        body = content[response_body_offset(request.api_key, request.api_version, content) :]
        if request.api_key == ApiKey.RAFTLOG_RAFT:
            self._awaits_upgrade = True
        if not request.future.done():
            request.future.set_result(body)

    def _time_out(self, correlation_id: int, timeout_ms: int) -> None:
        request = self._requests[correlation_id]
        self.close(f"{api_name(request.api_key)} was not answered in {timeout_ms} ms")

    def _fail_all(self, reason: str) -> None:
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.timer.cancel()
            if not request.future.done():
                request.future.set_exception(PeerUnreachable(reason))
