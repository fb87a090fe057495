"""Length-prefixed frames: a receive buffer in which they are parsed in place, and the prefix of those sent.

Pure: whoever owns the socket asks for `space()`, reports what was `received(...)` and takes `next_frame()` until None.
Source: https://kafka.apache.org/protocol#protocol_common (4-byte big-endian size, then the message).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from raftlog.environment import Buffer
from raftlog.errors import RaftlogError

FRAME_LENGTH: Final = Struct(">i")
RECEIVE_BUFFER_BYTES: Final = 64 * 1024  # Of a connection at rest; holds many small requests or a usual batch.
RECEIVE_BUFFER_KEPT_BYTES_MAX: Final = 1024 * 1024  # A buffer that grew beyond is let go as soon as its frame was taken.
RECEIVE_SPACE_BYTES_MIN: Final = 16 * 1024  # Less room than this is not worth a system call.


class MalformedFrame(RaftlogError):
    """What a peer sent is not a message of the protocol; its connection can't be used any further."""


def frame_prefix(buffers: Sequence[Buffer]) -> bytes:
    """The 4 bytes that go before a frame with this content."""
    return FRAME_LENGTH.pack(sum(map(len, buffers)))


class FrameBuffer:
    """Bytes received and not yet taken, and the frames in them.

    One buffer serves all frames of a connection; it exists from the first `space()` until `release()`. It grows to the size
    of a frame that does not fit, as that arrives and bounded by `size_bytes_max`. A frame that is handed out is a view of
    it, valid until the next `space()`.
    """

    __slots__ = ("_buffer", "_end", "_size_bytes_max", "_start", "_view")

    def __init__(self, size_bytes_max: int) -> None:
        self._size_bytes_max = size_bytes_max
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes received that no taken frame covers."""
        return self._end - self._start

    def space(self) -> memoryview:
        """Where to receive into; never empty. Ends the validity of frames handed out before."""
        start, end = self._start, self._end
        if start == end:
            if not RECEIVE_BUFFER_BYTES <= len(self._buffer) <= RECEIVE_BUFFER_KEPT_BYTES_MAX:
                self._replace(RECEIVE_BUFFER_BYTES)
            self._start = self._end = 0
            return self._view
        pending = end - start
        missing = max(self._frame_end() - end, 1)
        if len(self._buffer) - end < min(missing, RECEIVE_SPACE_BYTES_MIN):
            # Grown as bytes arrive, not by what a peer says will come: an announced size costs no memory.
            self._replace(max(RECEIVE_BUFFER_BYTES, min(pending + missing, 4 * pending)))
        return self._view[self._end :]

    def received(self, size_bytes: int) -> None:
        """Count `size_bytes` bytes that were put at the start of the last `space()`."""
        self._end += size_bytes
        assert self._end <= len(self._buffer)

    def next_frame(self) -> memoryview | None:
        """The next whole frame without its length, or None. Raises MalformedFrame for a length that is not allowed."""
        start, end = self._start, self._end
        if end - start < 4:
            return None
        size: int = FRAME_LENGTH.unpack_from(self._buffer, start)[0]
        if not 0 <= size <= self._size_bytes_max:
            raise self._refusal(size)
        frame_end = start + 4 + size
        if frame_end > end:
            return None
        self._start = frame_end
        return self._view[start + 4 : frame_end]

    def release(self) -> None:
        """Give the memory back, if nothing is pending: for a connection that is quiet."""
        if self._start == self._end and self._buffer:
            self._replace(0)

    def _frame_end(self) -> int:
        """Where the frame that begins at `_start` ends, as far as its length is known."""
        if self._end - self._start < 4:
            return self._start + 4
        size: int = FRAME_LENGTH.unpack_from(self._buffer, self._start)[0]
        if not 0 <= size <= self._size_bytes_max:
            raise self._refusal(size)
        return self._start + 4 + size

    def _refusal(self, size_bytes: int) -> MalformedFrame:
        return MalformedFrame(f"a frame of {size_bytes} bytes; at most {self._size_bytes_max} are allowed")

    def _replace(self, size_bytes: int) -> None:
        """Move what is pending to the start of a buffer of `size_bytes`.

        A new one each time: views of the old one may still be alive, and they must not see other bytes.
        """
        pending = bytes(self._view[self._start : self._end])
        self._buffer = bytearray(size_bytes)
        self._view = memoryview(self._buffer)
        self._buffer[: len(pending)] = pending
        self._start, self._end = 0, len(pending)
