"""Which log directory a voter has, and which ones it knows of the others: so that an emptied directory is noticed.

A voter that lost its log has also forgotten its votes and what it acknowledged. If it took part as if nothing had happened,
two leaders in one term and lost entries could follow. Each directory therefore has an id of its own, drawn when it is first
used; voters tell it when they connect, and refuse one whose id is not the one they met first.
"""

from __future__ import annotations

import json
import random
import uuid
from typing import Final

from raftlog.environment import Files
from raftlog.errors import StorageError
from raftlog.ids import NodeId

FILE: Final = "raftlog-voters.json"
UNKNOWN: Final = uuid.UUID(int=0)


class VoterIdentity:
    """The directory's own id, and those of the other voters as first met; kept durably in the directory."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._path = f"{directory}/{FILE}"
        self._known: dict[NodeId, uuid.UUID] = {}
        self.own = UNKNOWN

    def open(self, chance: random.Random) -> None:
        """Raises StorageError where the file is damaged."""
        if not self._files.exists(self._path):
            self.own = uuid.UUID(int=chance.getrandbits(128))
            self._write()
            return
        try:
            content = json.loads(self._files.read(self._path))
            self.own = uuid.UUID(content["log_id"])
            self._known = {int(node_id): uuid.UUID(text) for node_id, text in content["voters"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{self._path} is damaged: {error!r}") from None

    def known(self, node_id: NodeId) -> uuid.UUID:
        """The log id a voter was first met with; the zero uuid where it was not met yet."""
        return self._known.get(node_id, UNKNOWN)

    def recognize(self, known: uuid.UUID) -> str | None:
        """Where another voter knows this one with another log id than it has, the reason not to take part."""
        if known in (UNKNOWN, self.own):
            return None
        return f"this voter lost its metadata log: it has log id {self.own}, but was known with {known}; restore {self._path.rpartition('/')[0]}"

    def admit(self, node_id: NodeId, log_id: uuid.UUID) -> str | None:
        """Take note of a voter's log id; where it is known with another one, the reason to refuse it."""
        known = self._known.get(node_id)
        if known is None:
            self._known[node_id] = log_id
            self._write()
        elif known != log_id:
            return (
                f"voter {node_id} lost its metadata log: it has log id {log_id}, but was known with {known}. It could break promises "
                f"that it has forgotten, so it may not take part; restore its directory"
            )
        return None

    def _write(self) -> None:
        content = {"version": 1, "log_id": str(self.own), "voters": {str(node_id): str(known) for node_id, known in self._known.items()}}
        self._files.replace(self._path, json.dumps(content).encode())
