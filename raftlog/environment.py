"""What a node takes from outside: clock, chance, disk and network, as arguments.

The production ones (`SystemClock`, `storage.files.OsFiles`, `network.listener.OsNetwork`) are thin. A simulation hands
in its own and runs the same node under a virtual clock. Besides these, drivers use only the running event loop
(`loop.time()`, `asyncio.sleep`, tasks), which a simulation replaces as a whole.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview


class Clock(Protocol):
    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch: for timestamps that people and clients see, never for time-outs."""

    def monotonic_ms(self) -> int:
        """Milliseconds since an arbitrary start; never goes back: for sessions, lags and time-outs."""


class File(Protocol):
    """One open file. Blocking calls touch the page cache only, or are made during recovery; the `async` ones may wait."""

    def size(self) -> int: ...

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all of `buffers` at byte `offset` in one call. Raises StorageError (disk full, I/O error, short write)."""

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` bytes from byte `offset`; fewer only at the end of the file. May block on a cold disk."""

    def read_at_cached(self, offset: int, size_bytes: int) -> Buffer | None:
        """As `read_at`, but None where it would have to wait for the disk (RWF_NOWAIT)."""

    async def read_at_cold(self, offset: int, size_bytes: int) -> bytes:
        """As `read_at`, off the event loop."""

    def truncate(self, size_bytes: int) -> None:
        """Cut it or fill it up with zeros; what was reserved beyond is given back."""

    def reserve(self, size_bytes: int) -> None:
        """Have the disk keep room for so many bytes from the start, where it can; the file's size stays what it is."""

    def sync(self) -> None:
        """fdatasync, blocking: for the Raft journal, where nothing may be said before it, and for recovery."""

    async def sync_later(self) -> None:
        """fdatasync off the event loop."""

    def close(self) -> None: ...


class Space(NamedTuple):
    """How large a file system is, and how much of it can still be written."""

    total_bytes: int
    usable_bytes: int


class Files(Protocol):
    """The only way to the disk. Paths are strings. Every failure is a StorageError that names the path."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing."""

    def exists(self, path: str) -> bool: ...

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted; empty when it does not exist."""

    def make_directory(self, path: str) -> None:
        """Create it with its parents; existing is fine."""

    def rename(self, source: str, target: str) -> None:
        """Atomic; replaces a target file."""

    def remove(self, path: str) -> None:
        """Remove one file; missing is fine."""

    async def remove_later(self, path: str) -> None:
        """As `remove`, off the event loop."""

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; missing is fine."""

    def sync_directory(self, path: str) -> None: ...

    async def sync_directory_later(self, path: str) -> None:
        """As `sync_directory`, off the event loop."""

    def read(self, path: str) -> bytes:
        """The whole of a small file."""

    def replace(self, path: str, content: bytes) -> None:
        """Atomically and durably set a small file's content: temporary file, fsync, rename, fsync of the directory."""

    async def replace_later(self, path: str, content: bytes) -> None:
        """As `replace`, off the event loop."""

    async def space_later(self, path: str) -> Space:
        """Of the file system that holds a directory, off the event loop."""

    def lock(self, path: str) -> Callable[[], None]:
        """Take an exclusive lock file (`.lock`), returning its release. Raises StorageError when another process has it."""


class Network(Protocol):
    """asyncio's stream-less sockets, as far as raftlog uses them."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> ListeningSocket: ...

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Raises OSError when nobody answers there."""


class ListeningSocket(Protocol):
    port: int  # The actual one, where 0 was asked for.

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Environment:
    clock: Clock
    random: random.Random
    files: Files
    network: Network
