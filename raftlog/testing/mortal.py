"""An environment that can die: what `kill -9` does to a process, for a node that shares its process with the tests.

After `die` nothing that the node's objects still do reaches the disk or the network, whatever timers and tasks are left.
What was written before stays, as it does in the page cache of a machine that lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from raftlog.environment import Buffer, Environment, File, Files, ListeningSocket, Network, Space
from raftlog.errors import StorageError


class MortalEnvironment:
    """Wraps an environment for one life of one node; hand `.environment` to the node."""

    def __init__(self, environment: Environment) -> None:
        self._files = MortalFiles(environment.files)
        self._network = MortalNetwork(environment.network)
        self.environment = Environment(clock=environment.clock, random=environment.random, files=self._files, network=self._network)

    def die(self) -> None:
        """Cut the node off from disk and network: peers see their connections reset, locks are free again."""
        self._files.die()
        self._network.die()


class MortalFiles:
    """`environment.Files` until `die`; every call after that is a StorageError."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._dead = False
        self._open: dict[_MortalFile, None] = {}
        self._locks: list[Callable[[], None]] = []

    def die(self) -> None:
        self._dead = True
        for file in list(self._open):
            file.die()
        for release in list(self._locks):
            with contextlib.suppress(Exception):
                release()

    def forget(self, file: _MortalFile) -> None:
        self._open.pop(file, None)

    def open(self, path: str, *, create: bool = False) -> File:
        self._check(path)
        file = _MortalFile(self, self._files.open(path, create=create), path)
        self._open[file] = None
        return file

    def lock(self, path: str) -> Callable[[], None]:
        self._check(path)
        release = self._files.lock(path)

        def release_once() -> None:
            if release_once in self._locks:
                self._locks.remove(release_once)
                release()

        self._locks.append(release_once)
        return release_once

    def exists(self, path: str) -> bool:
        return self._alive(path).exists(path)

    def list(self, path: str) -> list[str]:
        return self._alive(path).list(path)

    def make_directory(self, path: str) -> None:
        self._alive(path).make_directory(path)

    def rename(self, source: str, target: str) -> None:
        self._alive(source).rename(source, target)

    def remove(self, path: str) -> None:
        self._alive(path).remove(path)

    async def remove_later(self, path: str) -> None:
        await self._alive(path).remove_later(path)

    def remove_tree(self, path: str) -> None:
        self._alive(path).remove_tree(path)

    def sync_directory(self, path: str) -> None:
        self._alive(path).sync_directory(path)

    async def sync_directory_later(self, path: str) -> None:
        await self._alive(path).sync_directory_later(path)

    def read(self, path: str) -> bytes:
        return self._alive(path).read(path)

    def replace(self, path: str, content: bytes) -> None:
        self._alive(path).replace(path, content)

    async def replace_later(self, path: str, content: bytes) -> None:
        await self._alive(path).replace_later(path, content)

    async def space_later(self, path: str) -> Space:
        return await self._alive(path).space_later(path)

    def _check(self, path: str) -> None:
        if self._dead:
            raise StorageError(f"this node was killed: {path}")

    def _alive(self, path: str) -> Files:
        self._check(path)
        return self._files


class _MortalFile:
    """`environment.File`; one indirection per call."""

    def __init__(self, owner: MortalFiles, file: File, path: str) -> None:
        self._owner = owner
        self._file: Any = file
        self._path = path

    def die(self) -> None:
        file, self._file = self._file, _DeadFile(self._path)
        with contextlib.suppress(Exception):
            file.close()

    def size(self) -> int:
        size: int = self._file.size()
        return size

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._file.write_at(offset, buffers)

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        found: bytes = self._file.read_at(offset, size_bytes)
        return found

    def read_at_cached(self, offset: int, size_bytes: int) -> bytes | None:
        found: bytes | None = self._file.read_at_cached(offset, size_bytes)
        return found

    async def read_at_cold(self, offset: int, size_bytes: int) -> bytes:
        found: bytes = await self._file.read_at_cold(offset, size_bytes)
        return found

    def reserve(self, size_bytes: int) -> None:
        self._file.reserve(size_bytes)

    def truncate(self, size_bytes: int) -> None:
        self._file.truncate(size_bytes)

    def sync(self) -> None:
        self._file.sync()

    async def sync_later(self) -> None:
        await self._file.sync_later()

    def close(self) -> None:
        self._owner.forget(self)
        self._file.close()


class _DeadFile:
    def __init__(self, path: str) -> None:
        self._path = path

    def close(self) -> None:
        return

    def __getattr__(self, name: str) -> Any:
        raise StorageError(f"this node was killed: {self._path}")


class MortalNetwork:
    """`environment.Network` until `die`; every call after that is an OSError."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._dead = False
        self._listening: list[ListeningSocket] = []
        self._transports: dict[asyncio.Transport, None] = {}

    def die(self) -> None:
        self._dead = True
        for listening in self._listening:
            with contextlib.suppress(Exception):
                listening.close()
        for transport in list(self._transports):
            transport.abort()

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> ListeningSocket:
        self._check()
        listening = await self._network.listen(lambda: self._watched(factory()), host, port)
        self._listening.append(listening)
        return listening

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        self._check()
        transport, protocol = await self._network.connect(lambda: self._watched(factory()), host, port)
        if self._dead:
            transport.abort()
        return transport, protocol

    def _check(self) -> None:
        if self._dead:
            raise ConnectionRefusedError("this node was killed")

    def _watched(self, protocol: asyncio.BaseProtocol) -> asyncio.BaseProtocol:
        """`protocol`, its transport known here while it is open. Its two methods are shadowed on the object."""
        made, lost = protocol.connection_made, protocol.connection_lost
        known: list[asyncio.Transport] = []

        def connection_made(transport: Any) -> None:
            known.append(transport)
            self._transports[transport] = None
            made(transport)

        def connection_lost(exc: Exception | None) -> None:
            for transport in known:
                self._transports.pop(transport, None)
            lost(exc)

        protocol.connection_made = connection_made  # type: ignore[method-assign]
        protocol.connection_lost = connection_lost  # type: ignore[method-assign]
        return protocol
