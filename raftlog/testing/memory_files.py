"""An `environment.Files` in memory that forgets, as a disk does, what was not synced when the machine lost power.

A file's content is durable after `sync`, a name (created, renamed, removed) after `sync_directory`. `crash` keeps what is
durable, and of the rest what chance decides: names in the order in which they changed, up to some point; writes each
wholly, in part (a torn tail, sector by sector) or not at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from raftlog.environment import Buffer, File, Space
from raftlog.errors import StorageError

SECTOR_BYTES: Final = 512
SPACE_BYTES: Final = 1 << 30  # What it says it has; nobody is kept from writing more.

# Told before each operation ("write", "sync", "rename", ...) with the path; may raise StorageError, or end the node.
OperationHook = Callable[[str, str], None]


class _Inode:
    """A file's content: as it reads now, as it is on the disk, and the writes in between."""

    __slots__ = ("content", "durable", "reserved_bytes", "writes")

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = b""
        self.reserved_bytes = 0  # Also beyond the content.
        self.writes: list[tuple[int, bytes | None]] = []  # (offset, data), or (size, None) for a truncation.

    def sync(self) -> None:
        if self.writes:
            self.durable = bytes(self.content)
            self.writes.clear()

    def crash(self, chance: random.Random) -> None:
        """Keep each unsynced write wholly, in part or not, in its order."""
        content = bytearray(self.durable)
        for offset, data in self.writes:
            fate = chance.random()
            if fate < 0.4:
                continue
            if data is None:
                _resize(content, offset)
            elif fate < 0.7:
                _write(content, offset, data)
            else:
                for start in range(0, len(data), SECTOR_BYTES):
                    sector = data[start : start + SECTOR_BYTES]
                    if chance.random() < 0.5:
                        _write(content, offset + start, sector[: chance.randint(1, len(sector))])
        self.content = content
        self.durable = bytes(content)
        self.writes.clear()


def _resize(content: bytearray, size_bytes: int) -> None:
    if size_bytes < len(content):
        del content[size_bytes:]
    else:
        content.extend(bytes(size_bytes - len(content)))


def _write(content: bytearray, offset: int, data: Buffer) -> None:
    if offset > len(content):
        _resize(content, offset)
    content[offset : offset + len(data)] = data


class MemoryFile:
    """One open file; see `environment.File`. After a crash of its `MemoryFiles` every call raises StorageError."""

    __slots__ = ("_files", "_inode", "_life", "_path")

    def __init__(self, files: MemoryFiles, path: str, inode: _Inode) -> None:
        self._files = files
        self._path = path
        self._inode = inode
        self._life = files.life

    def _enter(self, operation: str) -> _Inode:
        self._files.enter(operation, self._path)
        if self._life != self._files.life:
            raise StorageError(f"can't {operation} {self._path}: opened before the crash")
        return self._inode

    def size(self) -> int:
        return len(self._inode.content)

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        inode = self._enter("write")
        for buffer in buffers:
            data = bytes(buffer)
            _write(inode.content, offset, data)
            inode.writes.append((offset, data))
            offset += len(data)

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        return bytes(self._enter("read").content[offset : offset + size_bytes])

    def read_at_cached(self, offset: int, size_bytes: int) -> bytes | None:
        return self.read_at(offset, size_bytes)

    async def read_at_cold(self, offset: int, size_bytes: int) -> bytes:
        return self.read_at(offset, size_bytes)

    def truncate(self, size_bytes: int) -> None:
        inode = self._enter("truncate")
        _resize(inode.content, size_bytes)
        inode.reserved_bytes = 0
        inode.writes.append((size_bytes, None))

    def reserve(self, size_bytes: int) -> None:
        """A kill leaves what is reserved, a loss of power may; neither is to be seen in the content."""
        self._enter("reserve").reserved_bytes = size_bytes

    def sync(self) -> None:
        self._enter("sync").sync()

    async def sync_later(self) -> None:
        self.sync()

    def close(self) -> None: ...


class MemoryFiles:
    """See `environment.Files`. `on_operation` sees every operation first, to inject errors or the end of the node."""

    def __init__(self, on_operation: OperationHook | None = None) -> None:
        self.on_operation = on_operation
        self.life = 0  # Counts crashes.
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._name_changes: list[tuple[str, _Inode | None]] = []  # Not yet durable, in order; None: removed.
        self._directories: set[str] = set()
        self._locked: set[str] = set()

    def enter(self, operation: str, path: str) -> None:
        if self.on_operation is not None:
            self.on_operation(operation, path)

    def crash(self, chance: random.Random, *, lost: Callable[[str], bool] = lambda _path: True) -> None:
        """Lose power: open files end, and of what was not synced only a part, decided by `chance`, stays.

        `lost` says which paths are on the disk that loses; the others keep all.
        """
        self.life += 1
        self._locked.clear()
        names = dict(self._durable_names)
        kept = chance.randint(0, len(self._name_changes))
        for number, (path, inode) in enumerate(self._name_changes):
            if number < kept or not lost(path):
                _rename(names, path, inode)
        self._name_changes.clear()
        for inode in dict.fromkeys(inode for path, inode in names.items() if lost(path)):
            inode.crash(chance)
        self._names = names
        self._durable_names = dict(names)

    def open(self, path: str, *, create: bool = False) -> File:
        self.enter("open", path)
        inode = self._names.get(path)
        if inode is None:
            if not create:
                raise StorageError(f"can't open {path}: no such file")
            inode = _Inode()
            self._set_name(path, inode)
        return MemoryFile(self, path, inode)

    def exists(self, path: str) -> bool:
        return path in self._names or path in self._directories or any(name.startswith(path + "/") for name in self._names)

    def list(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        known = [*self._names, *self._directories]
        return sorted({name[len(prefix) :].split("/")[0] for name in known if name.startswith(prefix)})

    def make_directory(self, path: str) -> None:
        self._directories.add(path.rstrip("/"))

    def rename(self, source: str, target: str) -> None:
        self.enter("rename", target)
        if source in self._names:
            inode = self._names[source]
            self._set_name(target, inode)
            self._set_name(source, None)
            return
        moved = [name for name in self._names if name.startswith(source + "/")]
        if not moved and source not in self._directories:
            raise StorageError(f"can't rename {source}: no such file")
        for name in moved:
            self._set_name(target + name[len(source) :], self._names[name])
            self._set_name(name, None)
        self._directories = {target + name[len(source) :] if name == source or name.startswith(source + "/") else name for name in self._directories}

    def remove(self, path: str) -> None:
        self.enter("remove", path)
        if path in self._names:
            self._set_name(path, None)

    async def remove_later(self, path: str) -> None:
        self.remove(path)

    def remove_tree(self, path: str) -> None:
        self.enter("remove", path)
        for name in [name for name in self._names if name.startswith(path + "/")]:
            self._set_name(name, None)
        self._directories = {name for name in self._directories if name != path and not name.startswith(path + "/")}

    def sync_directory(self, path: str) -> None:
        self.enter("sync_directory", path)
        prefix = path.rstrip("/") + "/"
        rest = []
        for name, inode in self._name_changes:
            if name.startswith(prefix):
                _rename(self._durable_names, name, inode)
            else:
                rest.append((name, inode))
        self._name_changes = rest

    async def sync_directory_later(self, path: str) -> None:
        self.sync_directory(path)

    def read(self, path: str) -> bytes:
        self.enter("read", path)
        if path not in self._names:
            raise StorageError(f"can't read {path}: no such file")
        return bytes(self._names[path].content)

    def replace(self, path: str, content: bytes) -> None:
        self.enter("write", path)
        inode = _Inode()
        inode.content = bytearray(content)
        inode.writes.append((0, bytes(content)))
        self.enter("sync", path)
        inode.sync()
        self._set_name(path, inode)
        self.sync_directory(path.rpartition("/")[0])

    async def replace_later(self, path: str, content: bytes) -> None:
        self.replace(path, content)

    async def space_later(self, path: str) -> Space:
        used_bytes = sum(len(inode.content) for inode in self._names.values())
        return Space(SPACE_BYTES, max(SPACE_BYTES - used_bytes, 0))

    def reserved_bytes(self, path: str) -> int:
        """What a disk would keep for the file beside its content."""
        inode = self._names[path]
        return max(inode.reserved_bytes - len(inode.content), 0)

    def lock(self, path: str) -> Callable[[], None]:
        if path in self._locked:
            raise StorageError(f"{path} is locked by another process")
        self._locked.add(path)
        return lambda: self._locked.discard(path)

    def _set_name(self, path: str, inode: _Inode | None) -> None:
        _rename(self._names, path, inode)
        self._name_changes.append((path, inode))


def _rename(names: dict[str, _Inode], path: str, inode: _Inode | None) -> None:
    if inode is None:
        names.pop(path, None)
    else:
        names[path] = inode
