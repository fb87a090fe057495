"""When the active controller last heard from each broker. Not replicated: a new active controller starts it afresh."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raftlog.ids import BrokerEpoch, NodeId


@dataclass(slots=True)
class Session:
    """`connected`: how many open connections have carried a heartbeat. `gone`: the last of them closed; `lost`: and it was too long ago."""

    epoch: BrokerEpoch
    contact_ms: int
    connected: int = 0
    heard: bool = False  # Whether this controller itself has heard from the broker.
    gone: bool = False
    lost: bool = False


class Sessions:
    """Times are monotonic ms."""

    def __init__(self, *, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._sessions: dict[NodeId, Session] = {}

    def restart(self, brokers: Iterable[tuple[NodeId, BrokerEpoch]], *, now_ms: int) -> None:
        """Forget all, and give each broker a full session from now on."""
        self._sessions = {node_id: Session(epoch, now_ms) for node_id, epoch in brokers}

    def touch(self, node_id: NodeId, epoch: BrokerEpoch, *, now_ms: int) -> Session:
        """The broker was heard from; a session of an older epoch is replaced."""
        session = self._sessions.get(node_id)
        if session is None or session.epoch != epoch:
            session = self._sessions[node_id] = Session(epoch, now_ms)
        session.contact_ms = now_ms
        session.heard = True
        session.gone = session.lost = False
        return session

    def get(self, node_id: NodeId) -> Session | None:
        return self._sessions.get(node_id)

    def remove(self, node_id: NodeId) -> None:
        self._sessions.pop(node_id, None)

    def is_alive(self, node_id: NodeId, *, now_ms: int) -> bool:
        session = self._sessions.get(node_id)
        return session is not None and not session.lost and now_ms < session.contact_ms + self._timeout_ms

    def is_held(self, node_id: NodeId, *, now_ms: int) -> bool:
        """Whether a process is known to stand behind the registration, so that no other one may take it over."""
        session = self._sessions.get(node_id)
        return session is not None and session.heard and not session.gone and self.is_alive(node_id, now_ms=now_ms)

    def expired(self, node_ids: Iterable[NodeId], *, now_ms: int) -> list[NodeId]:
        """Those of `node_ids` whose session is over."""
        return [node_id for node_id in node_ids if not self.is_alive(node_id, now_ms=now_ms)]
