"""The server's end of a connection: requests parsed where they were received, answered in the order they came.

`FrameConnection` is what both ends share: frames in, back-pressure, close callbacks, the upgrade to raw frames.
`ServerConnection` hands each request to a dispatcher. Memory per connection is bounded: at most
REQUESTS_IN_FLIGHT_MAX requests are open, none is read while the peer does not take its responses, and a frame is at
most `size_bytes_max` long.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias, cast

from raftlog.environment import Buffer
from raftlog.protocol.apis import api_name
from raftlog.protocol.frames import FRAME_LENGTH, FrameBuffer, MalformedFrame, frame_prefix
from raftlog.protocol.messages import parse_request_header

REQUESTS_IN_FLIGHT_MAX: Final = 64  # Open requests per connection: a slow disk must push back on clients, not fill memory.
WRITE_BUFFER_BYTES_MAX: Final = 256 * 1024  # Unsent bytes above which a connection takes no more requests.
JOIN_BYTES_MAX: Final = 16 * 1024  # Responses up to so many bytes together are copied into one buffer.
RAW_SEND_BUFFER_BYTES_MAX: Final = 64 * 1024 * 1024  # Unsent bytes above which an upgraded connection counts as dead.

# The content of a response frame, without its length; None: nothing is sent (Produce with acks=0).
Response: TypeAlias = Sequence[Buffer] | None
OnFrame: TypeAlias = Callable[[bytes], None]
OnClose: TypeAlias = Callable[[], None]
Send: TypeAlias = Callable[[Sequence[Buffer]], None]

_log = logging.getLogger(__name__)


class RequestContext:
    """Whose request it is and how it is to be answered."""

    __slots__ = ("api_key", "api_version", "cancel_on_close", "client_id", "connection", "correlation_id", "holds_connection", "listener")

    def __init__(
        self,
        connection: ServerConnection,
        api_key: int,
        api_version: int,
        correlation_id: int,
        client_id: str | None,
        listener: str,
    ) -> None:
        self.connection = connection
        self.api_key = api_key
        self.api_version = api_version
        self.correlation_id = correlation_id
        self.client_id = client_id
        self.listener = listener
        # A handler that only waits and reads sets it, to be cancelled when the client goes; others run to their end.
        self.cancel_on_close = False
        # A handler sets it whose response may be large and late: the next request is taken when that was written. So one
        # connection holds one such response at most; clients that pipeline behind a fetch wait for it with Kafka, too.
        self.holds_connection = False

    def release_connection(self) -> None:
        """The next request may be taken, though this one is not answered yet."""
        self.holds_connection = False
        self.connection.take_frames()


# Called with a request's context and body. The body is the receive buffer, valid until the call returns. Raises
# MalformedFrame for what can't be answered: the connection is closed then.
Dispatcher: TypeAlias = Callable[[RequestContext, memoryview], Response | Awaitable[Response]]


class FrameConnection(asyncio.BufferedProtocol):
    """A connection that receives frames; a subclass says what a frame is by `_handle_frame`."""

    def __init__(self, *, size_bytes_max: int) -> None:
        self._frames = FrameBuffer(size_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._on_close: list[OnClose] | None = []
        self._on_frame: OnFrame | None = None
        self._is_write_paused = False
        self._is_read_paused = False
        self._is_draining = False
        self._is_half_closed = False  # The peer sends nothing more, but we still have something to send.
        self.active_at = self._loop.time()  # Seconds of the loop's clock when something was received last.
        self.peer = "unknown"

    @property
    def is_closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def is_upgraded(self) -> bool:
        return self._on_frame is not None

    def set_buffer_sizes(self, *, send_bytes: int, receive_bytes: int) -> None:
        """Set SO_SNDBUF and SO_RCVBUF; -1 leaves the system's. Nothing where the transport has no socket."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is not None and send_bytes > 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        if sock is not None and receive_bytes > 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)

    def release_memory(self) -> None:
        """Give the receive buffer back until something arrives."""
        self._frames.release()

    def on_close(self, callback: OnClose) -> None:
        """Call `callback` once when the peer is gone: it closed, it ended its side, or the connection was lost or closed."""
        if self._on_close is None:
            self._loop.call_soon(callback)
        else:
            self._on_close.append(callback)

    def remove_on_close(self, callback: OnClose) -> None:
        """Forget a callback that `on_close` was given; one that is unknown or was called already is fine."""
        if self._on_close is not None and callback in self._on_close:
            self._on_close.remove(callback)

    def upgrade(self, on_frame: OnFrame, on_close: OnClose) -> Send:
        """Take the connection over: each later frame goes to `on_frame`, and the function returned sends one.

        Responses of earlier requests must not be outstanding, but for the one being handled. Sending on a closed
        connection does nothing; more than RAW_SEND_BUFFER_BYTES_MAX unsent bytes close it.
        """
        self._on_frame = on_frame
        self.on_close(on_close)
        self._loop.call_soon(self._drain)
        return self._send_raw

    def close(self, reason: str | None = None) -> None:
        """Close after what was written is sent; one log line when there is a `reason`."""
        if self._transport is not None and not self._transport.is_closing():
            if reason is not None:
                _log.warning("closing the connection of %s: %s", self.peer, reason)
            self._transport.close()

    def abort(self) -> None:
        """Close at once, dropping what was not sent."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        self.peer = format_address(transport.get_extra_info("peername"))

    def get_buffer(self, sizehint: int) -> memoryview:
        try:
            return self._frames.space()
        except MalformedFrame as error:
            # The length was checked when its four bytes came; this is only reached while closing.
            self.close(str(error))
            self._frames = FrameBuffer(0)
            return self._frames.space()

    def buffer_updated(self, nbytes: int) -> None:
        self._frames.received(nbytes)
        self.active_at = self._loop.time()
        self._drain()

    def eof_received(self) -> bool | None:
        self._call_on_close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._call_on_close()

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._update_reading()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._update_reading()
        self._drain()

    # For subclasses.

    def _handle_frame(self, frame: memoryview) -> None:
        """One frame; `frame` is valid during the call. Raises MalformedFrame to close the connection."""
        raise NotImplementedError

    def _may_take_frames(self) -> bool:
        """False: leave what comes in the buffer and the kernel, until `_update_reading` and `_drain` are called."""
        return self._on_frame is not None or not self._is_write_paused

    def _flush(self) -> None:
        """Send what `_handle_frame` left to be sent."""

    def _drain(self) -> None:
        if self._is_draining or self._transport is None:
            return
        self._is_draining = True
        try:
            while not self._transport.is_closing() and self._may_take_frames():
                frame = self._frames.next_frame()
                if frame is None:
                    break
                if self._on_frame is not None:
                    self._on_frame(bytes(frame))
                else:
                    self._handle_frame(frame)
                if self._transport is None:
                    return
            self._flush()
        except MalformedFrame as error:
            self._flush()
            self.close(str(error))
        finally:
            self._is_draining = False
        self._update_reading()

    def _update_reading(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._is_half_closed:
            return
        may_read = self._may_take_frames()
        if may_read and self._is_read_paused:
            self._is_read_paused = False
            transport.resume_reading()
        elif not may_read and not self._is_read_paused:
            self._is_read_paused = True
            transport.pause_reading()

    def _write(self, buffers: list[Buffer]) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        else:
            self._transport.writelines(buffers)

    def _send_raw(self, buffers: Sequence[Buffer]) -> None:
        self._write([frame_prefix(buffers), *buffers])
        if self._transport is not None and self._transport.get_write_buffer_size() > RAW_SEND_BUFFER_BYTES_MAX:
            _log.warning("%s does not take what it is sent: connection aborted", self.peer)
            self._transport.abort()

    def _call_on_close(self) -> None:
        callbacks, self._on_close = self._on_close, None
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                _log.exception("a callback at the end of the connection of %s failed", self.peer)


class _Slot:
    """A request whose response is not there yet, or waits for that of an earlier request."""

    __slots__ = ("context", "future", "is_done", "response")

    def __init__(self, context: RequestContext) -> None:
        self.context = context
        self.future: asyncio.Future[Response] | None = None
        self.is_done = False
        self.response: Response = None


class ServerConnection(FrameConnection):
    """One client's connection to a listener."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        listener_name: str,
        size_bytes_max: int,
        on_open: Callable[[ServerConnection], None] | None = None,
        on_lost: Callable[[ServerConnection], None] | None = None,
    ) -> None:
        super().__init__(size_bytes_max=size_bytes_max)
        self._dispatch = dispatcher
        self._listener_name = listener_name
        self._on_open = on_open
        self._on_lost = on_lost
        self.software = ("", "")  # The client's name and version, once ApiVersions has told them.
        self._slots: deque[_Slot] = deque()
        self._outgoing: list[Buffer] = []
        self._outgoing_bytes = 0

    @property
    def requests_in_flight(self) -> int:
        """Requests taken whose responses were not written yet."""
        return len(self._slots)

    def abandon(self) -> None:
        """Close at once and cancel every handler that still works for this connection: the node stops."""
        for slot in self._slots:
            if slot.future is not None:
                slot.future.cancel()
        self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._on_open is not None:
            self._on_open(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_waits()
        self._outgoing.clear()
        if self._on_lost is not None:
            self._on_lost(self)

    def eof_received(self) -> bool | None:
        """A client that ended only its side still gets its responses; one that is gone costs a failing write."""
        super().eof_received()
        self._is_half_closed = True
        self._cancel_waits()
        return bool(self._slots)

    def take_frames(self) -> None:
        """Go on with what has come meanwhile: a request does not hold the connection any more."""
        self._drain()

    def _cancel_waits(self) -> None:
        for slot in tuple(self._slots):
            if slot.context.cancel_on_close and slot.future is not None:
                slot.future.cancel()

    def _may_take_frames(self) -> bool:
        if self._on_frame is not None:
            return True
        slots = self._slots
        return not self._is_write_paused and len(slots) < REQUESTS_IN_FLIGHT_MAX and not (slots and slots[-1].context.holds_connection)

    def _handle_frame(self, frame: memoryview) -> None:
        api_key, api_version, correlation_id, client_id, body_offset = parse_request_header(frame)
        context = RequestContext(self, api_key, api_version, correlation_id, client_id, self._listener_name)
        try:
            response = self._dispatch(context, frame[body_offset:])
        except MalformedFrame:
            raise
        except Exception as error:
            _log.exception("%s from %s failed without a response", api_name(api_key), self.peer)
            raise MalformedFrame(f"{api_name(api_key)} v{api_version} failed: {error}") from error
        if response is None or isinstance(response, list | tuple):
            if self._slots:
                slot = _Slot(context)
                slot.is_done, slot.response = True, response
                self._slots.append(slot)
            elif response is not None:
                self._queue(response)
        else:
            self._wait_for(context, response)  # type: ignore[arg-type]

    def _wait_for(self, context: RequestContext, response: Awaitable[Response]) -> None:
        slot = _Slot(context)
        slot.future = asyncio.ensure_future(response)
        self._slots.append(slot)
        slot.future.add_done_callback(lambda future: self._finish(slot, future))

    def _finish(self, slot: _Slot, future: asyncio.Future[Response]) -> None:
        slot.is_done, slot.future = True, None
        if not future.cancelled():
            error = future.exception()
            if isinstance(error, MalformedFrame):
                self.close(str(error))
            elif error is not None:
                _log.error("%s from %s failed without a response", api_name(slot.context.api_key), self.peer, exc_info=error)
                self.close(f"{api_name(slot.context.api_key)} failed: {error}")
            else:
                slot.response = future.result()
        slots = self._slots
        while slots and slots[0].is_done:
            ready = slots.popleft().response
            if ready is not None:
                self._queue(ready)
        self._drain()
        if self._is_half_closed and not slots:
            self.close()

    def _queue(self, response: Sequence[Buffer]) -> None:
        if len(response) == 1:
            size = len(response[0])
            self._outgoing.append(FRAME_LENGTH.pack(size))
            self._outgoing.append(response[0])
        else:
            size = sum(map(len, response))
            self._outgoing.append(FRAME_LENGTH.pack(size))
            self._outgoing.extend(response)
        self._outgoing_bytes += size
        if self._outgoing_bytes > WRITE_BUFFER_BYTES_MAX:
            self._flush()

    def _flush(self) -> None:
        """Write the responses gathered so far in one call."""
        if self._outgoing:
            buffers, size, self._outgoing, self._outgoing_bytes = self._outgoing, self._outgoing_bytes, [], 0
            # Small ones are copied: one buffer is cheaper for the loop than two per response.
            self._write([b"".join(buffers)] if size <= JOIN_BYTES_MAX else buffers)


def format_address(address: Any) -> str:
    """`ip:port` of a socket address."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address) if address else "unknown"
