"""What the engine gets in place of pysyncobj's own journal, transport, serializer and poller; names and shapes are pysyncobj's.

None of them does I/O: entries go to the journal, which its owner syncs, and messages to the engine's outbox.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftlog.ids import NodeId
from raftlog.quorum.journal import Journal
from raftlog.quorum.messages import Message
from raftlog.quorum.snapshots import Snapshot


class EngineJournal:
    """The journal by pysyncobj's names."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.add = journal.add
        self.deleteEntriesFrom = journal.truncate_from
        self.getCurrentTerm = lambda: journal.term
        self.getVotedForNodeId = lambda: journal.voted_for
        self.setCurrentTerm = journal.set_term

    def __getitem__(self, item: Any) -> Any:
        return self._journal.entries[item]

    def __len__(self) -> int:
        return len(self._journal.entries)

    def clear(self) -> None:
        raise AssertionError("the engine never clears the journal: snapshots are installed by its owner")

    def deleteEntriesTo(self, position: int) -> None:
        raise AssertionError("the engine never compacts the journal: its owner does")

    def setRaftCommitIndex(self, index: int) -> None:
        """Not kept: what is committed follows from the log and the next leader."""

    def getRaftCommitIndex(self) -> int:
        return self._journal.first_index

    def onOneSecondTimer(self) -> None: ...

    def _destroy(self) -> None: ...


class EngineTransport:
    """pysyncobj's Transport, without a network: it hands messages to the engine's outbox."""

    ready = True

    def __init__(self, send: Callable[[NodeId, Message], None]) -> None:
        self._send = send
        self.receive: Callable[[Any, Message], None]
        self.connect: Callable[[Any], None]
        self.disconnect: Callable[[Any], None]

    def setOnNodeConnectedCallback(self, callback: Callable[[Any], None]) -> None:
        self.connect = callback

    def setOnNodeDisconnectedCallback(self, callback: Callable[[Any], None]) -> None:
        self.disconnect = callback

    def setOnMessageReceivedCallback(self, callback: Callable[[Any, Message], None]) -> None:
        self.receive = callback

    def setOnReadonlyNodeConnectedCallback(self, callback: object) -> None: ...

    def setOnReadonlyNodeDisconnectedCallback(self, callback: object) -> None: ...

    def setOnUtilityMessageCallback(self, name: str, callback: object) -> None:
        """No message reaches these: they would change members and versions."""

    def send(self, node: Any, message: Message) -> bool:
        self._send(node.id, message)
        return True

    def destroy(self) -> None: ...


class EngineSerializer:
    """pysyncobj's Serializer, of which only the installation of a snapshot is left."""

    def __init__(self, install: Callable[[Snapshot], bool]) -> None:
        self._install = install

    def setTransmissionData(self, snapshot: Snapshot | None) -> bool:
        return snapshot is not None and self._install(snapshot)


class NullPoller:
    def poll(self, timeout: float) -> None: ...
