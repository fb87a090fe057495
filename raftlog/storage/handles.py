"""A bound on open files: thousands of segments share a few hundred descriptors, and idle ones give theirs back.

The second-chance algorithm rather than least-recently-used: a use costs one attribute assignment on the data path.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from raftlog.environment import File, Files

OPEN_FILES_MAX: Final = 256  # Three nodes in one process stay below the usual soft limit of 1,024, sockets included.


class Holder(Protocol):
    """Whoever keeps an open file until it is told to release it."""

    used: bool  # Set at each use.

    def release(self) -> None:
        """Close the file; the next use opens it again."""


class OpenFiles:
    """Opens files for holders and takes the longest unused ones back beyond `files_max`."""

    def __init__(self, files: Files, *, files_max: int = OPEN_FILES_MAX) -> None:
        assert files_max > 0
        self.files = files
        self._files_max = files_max
        self._holders: deque[Holder] = deque()

    def __len__(self) -> int:
        return len(self._holders)

    def open(self, path: str, holder: Holder, *, create: bool = False) -> File:
        """Raises StorageError."""
        file = self.files.open(path, create=create)
        while len(self._holders) >= self._files_max:
            oldest = self._holders.popleft()
            if oldest.used:
                oldest.used = False
                self._holders.append(oldest)
            else:
                oldest.release()
        self._holders.append(holder)
        return file

    def forget(self, holder: Holder) -> None:
        """The holder has closed its file itself."""
        self._holders.remove(holder)
