"""The production `environment.Files`: the operating system's files. The only module that opens one.

Reads of the data path try the page cache first (`preadv` with RWF_NOWAIT) and leave the disk to aiofiles' threads; writes
go to the page cache, so they don't wait for the disk either.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Final

from aiofiles.ospath import wrap

from raftlog.environment import Buffer, Space
from raftlog.errors import StorageError

_RWF_NOWAIT: Final = getattr(os, "RWF_NOWAIT", None)  # Linux only; elsewhere a cached read may block.
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)

# What a file system without RWF_NOWAIT, or one whose page is not there, answers.
_WOULD_WAIT: Final = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})

_KEEP_SIZE: Final = 1  # Linux's FALLOC_FL_KEEP_SIZE.
_fdatasync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)

logger = logging.getLogger(__name__)


@functools.cache
def _reserver() -> Callable[[int, int], int] | None:
    """What takes a descriptor and bytes and returns an errno, 0 where all went well; None where there is no such system call.

    os.posix_fallocate can't leave the size as it is. Few nodes need it, so ctypes does not cost the start of all.
    """
    import ctypes

    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None:
        return None
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return lambda fd, size_bytes: ctypes.get_errno() if fallocate(fd, _KEEP_SIZE, 0, size_bytes) else 0


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("no room is kept for log segments although preallocate is set: %s", reason)


def _failure(verb: str, path: str, error: OSError) -> StorageError:
    return StorageError(f"can't {verb} {path}: {error.strerror or error}")


class OsFile:
    """One open file; see `environment.File`."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        try:
            written = os.pwritev(self._fd, buffers, offset)
        except OSError as error:
            raise _failure("write", self._path, error) from error
        expected = sum(map(len, buffers))
        if written != expected:
            self._write_rest(offset + written, b"".join(buffers)[written:])

    def _write_rest(self, offset: int, rest: bytes) -> None:
        """Finish a short write: a signal, or a nearly full disk, which then says so."""
        while rest:
            try:
                written = os.pwrite(self._fd, rest, offset)
            except OSError as error:
                raise _failure("write", self._path, error) from error
            if written == 0:
                raise StorageError(f"can't write {self._path}: short write")
            offset += written
            rest = rest[written:]

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        try:
            data = os.pread(self._fd, size_bytes, offset)
            while 0 < len(data) < size_bytes:
                more = os.pread(self._fd, size_bytes - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise _failure("read", self._path, error) from error
        return data

    def read_at_cached(self, offset: int, size_bytes: int) -> Buffer | None:
        if _RWF_NOWAIT is None:
            return self.read_at(offset, size_bytes)
        buffer = bytearray(size_bytes)
        try:
            size = os.preadv(self._fd, (buffer,), offset, _RWF_NOWAIT)
        except OSError as error:
            if error.errno in _WOULD_WAIT:
                return None
            raise _failure("read", self._path, error) from error
        if size == size_bytes:
            return buffer  # Not made bytes: that would copy it once more.
        if offset + size < self.size():
            return None  # The rest is not in the page cache.
        del buffer[size:]
        return buffer

    def _duplicate(self) -> OsFile:
        """For a thread: this file may be closed, and its descriptor taken by another, before the thread is done."""
        try:
            return OsFile(self._path, os.dup(self._fd))
        except OSError as error:
            raise _failure("open", self._path, error) from error

    async def read_at_cold(self, offset: int, size_bytes: int) -> bytes:
        copy = self._duplicate()
        try:
            data: bytes = await _read_later(copy, offset, size_bytes)
            return data
        finally:
            copy.close()

    def truncate(self, size_bytes: int) -> None:
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            raise _failure("truncate", self._path, error) from error

    def reserve(self, size_bytes: int) -> None:
        reserve = _reserver()
        if reserve is None:
            _say_once("this operating system can't")
        elif error_number := reserve(self._fd, size_bytes):
            _say_once(os.strerror(error_number))

    def sync(self) -> None:
        try:
            _fdatasync(self._fd)
        except OSError as error:
            raise _failure("sync", self._path, error) from error

    async def sync_later(self) -> None:
        copy = self._duplicate()
        try:
            await _sync_later(copy)
        finally:
            copy.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_read_later: Final = wrap(OsFile.read_at)
_sync_later: Final = wrap(OsFile.sync)


class OsFiles:
    """The operating system's files; see `environment.Files`."""

    def open(self, path: str, *, create: bool = False) -> OsFile:
        flags = os.O_RDWR | _CLOEXEC | (os.O_CREAT if create else 0)
        try:
            return OsFile(path, os.open(path, flags, 0o644))
        except OSError as error:
            raise _failure("open", path, error) from error

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def list(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failure("list", path, error) from error

    def make_directory(self, path: str) -> None:
        try:
            try:
                os.mkdir(path)
            except FileExistsError:
                pass
            except FileNotFoundError:  # Rare; looking for the parents first would cost every new partition a call.
                os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise _failure("create directory", path, error) from error

    def rename(self, source: str, target: str) -> None:
        try:
            os.replace(source, target)
        except OSError as error:
            raise _failure("rename", source, error) from error

    def remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _failure("remove", path, error) from error

    async def remove_later(self, path: str) -> None:
        await _remove_later(self, path)

    def remove_tree(self, path: str) -> None:
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _failure("remove", path, error) from error

    def sync_directory(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | _CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise _failure("sync directory", path, error) from error

    async def sync_directory_later(self, path: str) -> None:
        await _sync_directory_later(self, path)

    def read(self, path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise _failure("read", path, error) from error

    def replace(self, path: str, content: bytes) -> None:
        temporary = f"{path}.{threading.get_ident()}.tmp"  # Two threads never write the same one.
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise _failure("write", path, error) from error
        self.sync_directory(os.path.dirname(path) or ".")

    async def replace_later(self, path: str, content: bytes) -> None:
        await _replace_later(self, path, content)

    def space(self, path: str) -> Space:
        try:
            found = os.statvfs(path)
        except OSError as error:
            raise _failure("look at the space of", path, error) from error
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    async def space_later(self, path: str) -> Space:
        space: Space = await _space_later(self, path)
        return space

    def lock(self, path: str) -> Callable[[], None]:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | _CLOEXEC, 0o644)
        except OSError as error:
            raise _failure("open", path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise StorageError(f"{path} is locked: another node uses this directory") from None
            raise _failure("lock", path, error) from error
        return lambda: os.close(fd)


_sync_directory_later: Final = wrap(OsFiles.sync_directory)
_replace_later: Final = wrap(OsFiles.replace)
_remove_later: Final = wrap(OsFiles.remove)
_space_later: Final = wrap(OsFiles.space)
