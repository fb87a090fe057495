"""The messages between voters as bytes: fixed layouts, sizes bounded, nothing that could run code.

A frame is the connection's generation, a sequence number, the kind of the message and its fields. `FrameSender` and
`FrameReceiver` make reordering, duplication and loss within a connection impossible to overlook.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from raftlog.environment import Buffer
from raftlog.errors import RaftlogError

Message: TypeAlias = dict[str, Any]  # As pysyncobj has them: plain values by name.
Entry: TypeAlias = tuple[bytes, int, int]  # Command, index, term.

ENTRY_BYTES_MAX: Final = 8 * 1024 * 1024  # One batch of records; proposals beyond it are refused.
APPEND_BYTES_MAX: Final = 1024 * 1024  # Entries are gathered into one message up to this size; one entry always fits.
SNAPSHOT_CHUNK_BYTES_MAX: Final = 1024 * 1024
FRAME_BYTES_MAX: Final = ENTRY_BYTES_MAX + 2 * APPEND_BYTES_MAX
ENTRIES_PER_MESSAGE_MAX: Final = 4096
NO_INDEX: Final = -1

_FRAME: Final = struct.Struct(">qqb")
_REQUEST_VOTE: Final = struct.Struct(">qqq")
_RESPONSE_VOTE: Final = struct.Struct(">q")
_APPEND: Final = struct.Struct(">qqqqi")
_ENTRY: Final = struct.Struct(">qi")
_HEARTBEAT: Final = struct.Struct(">qq")
_NEXT_INDEX: Final = struct.Struct(">qq??")
_SNAPSHOT_CHUNK: Final = struct.Struct(">qqqqqqi")
_SNAPSHOT_PROGRESS: Final = struct.Struct(">qqq")

KIND_REQUEST_VOTE: Final = 1
KIND_RESPONSE_VOTE: Final = 2
KIND_APPEND: Final = 3
KIND_HEARTBEAT: Final = 4  # An append to a voter whose place in the log only a snapshot can reach.
KIND_NEXT_INDEX: Final = 5
KIND_SNAPSHOT_CHUNK: Final = 6
KIND_SNAPSHOT_PROGRESS: Final = 7
KIND_KEEPALIVE: Final = 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bounds of one voter, in bytes."""

    snapshot_bytes: int  # A snapshot is taken after so many bytes of entries.
    segment_bytes: int  # A segment of the log takes no more entries beyond this size.
    append_bytes: int = APPEND_BYTES_MAX
    chunk_bytes: int = SNAPSHOT_CHUNK_BYTES_MAX


class MalformedMessage(RaftlogError):
    """A frame of another voter is not what it should be: the connection is closed, with one log line."""


class FrameSender:
    """Numbers the frames of one connection."""

    __slots__ = ("_generation", "_sequence")

    def __init__(self, generation: int) -> None:
        self._generation = generation
        self._sequence = 0

    def encode(self, message: Message) -> bytes:
        kind, body = encode_message(message)
        self._sequence += 1
        return _FRAME.pack(self._generation, self._sequence, kind) + body


class FrameReceiver:
    """Takes the frames of one connection in order and once."""

    __slots__ = ("_generation", "_in_order", "_sequence")

    def __init__(self, generation: int, *, in_order: bool = True) -> None:
        self._generation = generation
        self._sequence = 0
        self._in_order = in_order

    def decode(self, frame: Buffer) -> Message | None:
        """The message, or None for a duplicate. Raises MalformedMessage, also when a frame before it is missing."""
        try:
            generation, sequence, kind = _FRAME.unpack_from(frame)
        except struct.error:
            raise MalformedMessage(f"a frame of {len(frame)} bytes is too short") from None
        if self._in_order:
            if generation != self._generation or sequence <= self._sequence:
                return None
            if sequence != self._sequence + 1:
                raise MalformedMessage(f"frame {sequence} came after frame {self._sequence}")
            self._sequence = sequence
        return decode_message(kind, memoryview(frame)[_FRAME.size :])


def encode_message(message: Message) -> tuple[int, bytes]:
    """(kind, bytes) of a message."""
    kind = message["type"]
    if kind == "append_entries":
        if "prevLogIdx" in message:
            return KIND_APPEND, _encode_append(message)
        return KIND_HEARTBEAT, _HEARTBEAT.pack(message["term"], message["commit_index"])
    if kind == "next_node_idx":
        return KIND_NEXT_INDEX, _NEXT_INDEX.pack(message["term"], message["next_node_idx"], message["reset"], message["success"])
    if kind == "request_vote":
        return KIND_REQUEST_VOTE, _REQUEST_VOTE.pack(message["term"], message["last_log_index"], message["last_log_term"])
    if kind == "response_vote":
        return KIND_RESPONSE_VOTE, _RESPONSE_VOTE.pack(message["term"])
    if kind == "snapshot_chunk":
        numbers = (message[name] for name in ("term", "end_offset", "epoch", "index", "position", "total_bytes"))
        return KIND_SNAPSHOT_CHUNK, _SNAPSHOT_CHUNK.pack(*numbers, len(message["data"])) + message["data"]
    if kind == "snapshot_progress":
        return KIND_SNAPSHOT_PROGRESS, _SNAPSHOT_PROGRESS.pack(message["term"], message["end_offset"], message["position"])
    assert kind == "keepalive", kind
    return KIND_KEEPALIVE, b""


def _encode_append(message: Message) -> bytes:
    entries: list[Entry] = message["entries"]
    previous = message["prevLogIdx"]
    previous_term = message["prevLogTerm"]
    if previous is None:
        previous = previous_term = NO_INDEX
    parts = [_APPEND.pack(message["term"], message["commit_index"], previous, previous_term, len(entries))]
    for command, _, term in entries:
        parts += (_ENTRY.pack(term, len(command)), command)
    return b"".join(parts)


def decode_message(kind: int, body: memoryview) -> Message:
    """Raises MalformedMessage for an unknown kind, wrong sizes, and numbers that no voter would send."""
    try:
        return _decode(kind, body)
    except struct.error:
        raise MalformedMessage(f"a message of kind {kind} is cut off after {len(body)} bytes") from None


def _decode(kind: int, body: memoryview) -> Message:
    if kind == KIND_APPEND:
        return _decode_append(body)
    if kind == KIND_NEXT_INDEX:
        term, next_index, reset, success = _NEXT_INDEX.unpack(body)
        return {"type": "next_node_idx", "term": term, "next_node_idx": next_index, "reset": reset, "success": success}
    if kind == KIND_HEARTBEAT:
        term, commit_index = _HEARTBEAT.unpack(body)
        return {"type": "append_entries", "term": term, "commit_index": commit_index, "serialized": None}
    if kind == KIND_REQUEST_VOTE:
        term, last_index, last_term = _REQUEST_VOTE.unpack(body)
        return {"type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term}
    if kind == KIND_RESPONSE_VOTE:
        return {"type": "response_vote", "term": _RESPONSE_VOTE.unpack(body)[0]}
    if kind == KIND_SNAPSHOT_CHUNK:
        return _decode_chunk(body)
    if kind == KIND_SNAPSHOT_PROGRESS:
        term, end_offset, position = _SNAPSHOT_PROGRESS.unpack(body)
        return {"type": "snapshot_progress", "term": term, "end_offset": end_offset, "position": position}
    if kind == KIND_KEEPALIVE and not body:
        return {"type": "keepalive"}
    raise MalformedMessage(f"unknown kind of message {kind}")


def _decode_append(body: memoryview) -> Message:
    term, commit_index, previous, previous_term, count = _APPEND.unpack_from(body)
    if not 0 <= count <= ENTRIES_PER_MESSAGE_MAX or (previous == NO_INDEX and count):
        raise MalformedMessage(f"an append of {count} entries after {previous}")
    entries: list[Entry] = []
    position = _APPEND.size
    entry_term_before = previous_term
    for index in range(previous + 1, previous + 1 + count):
        entry_term, size_bytes = _ENTRY.unpack_from(body, position)
        position += _ENTRY.size
        command = bytes(body[position : position + size_bytes])
        position += size_bytes
        if not 0 < size_bytes <= ENTRY_BYTES_MAX or len(command) != size_bytes or not entry_term_before <= entry_term <= term:
            raise MalformedMessage(f"entry {index} of term {entry_term} and {size_bytes} bytes, in an append of term {term}")
        entry_term_before = entry_term
        entries.append((command, index, entry_term))
    if position != len(body):
        raise MalformedMessage(f"{len(body) - position} bytes too many in an append")
    known = previous != NO_INDEX
    return {
        "type": "append_entries",
        "term": term,
        "commit_index": commit_index,
        "prevLogIdx": previous if known else None,
        "prevLogTerm": previous_term if known else None,
        "entries": entries,
    }


def _decode_chunk(body: memoryview) -> Message:
    term, end_offset, epoch, index, position, total_bytes, size_bytes = _SNAPSHOT_CHUNK.unpack_from(body)
    data = bytes(body[_SNAPSHOT_CHUNK.size :])
    if len(data) != size_bytes or not 0 < size_bytes <= SNAPSHOT_CHUNK_BYTES_MAX or not 0 <= position <= total_bytes - size_bytes:
        raise MalformedMessage(f"a snapshot chunk of {size_bytes} bytes at {position} of {total_bytes}")
    return {
        "type": "snapshot_chunk",
        "term": term,
        "end_offset": end_offset,
        "epoch": epoch,
        "index": index,
        "position": position,
        "total_bytes": total_bytes,
        "data": data,
    }
