"""Incremental fetch sessions: what a fetcher asked for last is remembered, so it tells, and is told, only what changed.

A session keeps the partitions asked for, and of each what the fetcher was told. Which of them must be looked at again is
kept as well (`stale`), so that a fetch costs what changed rather than what is followed. Source: KIP-227, KIP-516.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from raftlog.errors import FetchSessionIdNotFound, FetchSessionTopicIdError, InvalidFetchSessionEpoch
from raftlog.ids import Offset, TopicId, TopicName

NO_SESSION: Final = 0
INITIAL_EPOCH: Final = 0  # Of a full fetch that asks for a new session.
FINAL_EPOCH: Final = -1  # Of a full fetch that asks for none.
EPOCH_MAX: Final = 2**31 - 1
EVICTION_MS: Final = 120_000  # A session younger than this keeps its slot from larger ones; one unused for longer loses it to any.
NOT_TOLD: Final[Offset] = -1

Key: TypeAlias = tuple[TopicName | TopicId, int]


class Asked(Protocol):
    """What a request asks of one partition."""

    @property
    def topic(self) -> TopicName | TopicId: ...
    @property
    def partition(self) -> int: ...


Target = TypeVar("Target", bound=Asked)


class SessionPartition(Generic[Target]):
    """One partition of a session: how it is asked for, and what the fetcher was told of it last."""

    __slots__ = ("high_watermark", "is_at_end", "key", "log_start_offset", "target", "watched")

    def __init__(self, key: Key, target: Target, *, high_watermark: Offset = NOT_TOLD, log_start_offset: Offset = NOT_TOLD) -> None:
        self.key = key
        self.target = target
        self.high_watermark = high_watermark
        self.log_start_offset = log_start_offset
        self.is_at_end = False  # The fetcher had all of the log when it fetched last. Only followers are looked at so.
        self.watched: Any = None  # What the driver follows for it.

    def must_tell(self, *, is_error: bool, has_data: bool, high_watermark: Offset, log_start_offset: Offset) -> bool:
        """Whether this outcome belongs into the response, which is taken to arrive. `has_data`: records or a diverging epoch."""
        told = (self.high_watermark, self.log_start_offset)
        self.high_watermark = NOT_TOLD if is_error else high_watermark  # When the error is over, that is news.
        self.log_start_offset = log_start_offset
        return is_error or has_data or told != (high_watermark, log_start_offset)


class FetchSession(Generic[Target]):
    """One session. `epoch` is what its next request must carry."""

    __slots__ = ("by_topic_id", "created_ms", "epoch", "id", "partitions", "privileged", "size", "stale", "used_ms")

    def __init__(self, session_id: int, *, privileged: bool, by_topic_id: bool, now_ms: int) -> None:
        """`privileged`: a follower's."""
        self.id = session_id
        self.privileged = privileged
        self.by_topic_id = by_topic_id
        self.created_ms = self.used_ms = now_ms
        self.epoch = next_epoch(INITIAL_EPOCH)
        self.partitions: dict[Key, SessionPartition[Target]] = {}
        # To be looked at by the next request, who waits longest first: a fetcher that catches up with one partition must
        # not keep the others from their share of a response.
        self.stale: dict[SessionPartition[Target], None] = {}
        self.size = 0  # Partitions at the last use, by which its worth is measured.

    def update(self, asked: Iterable[Target], forgotten: Iterable[Key]) -> list[SessionPartition[Target]]:
        """Take what a request changes, the forgotten ones last; those that went."""
        for target in asked:
            key = (target.topic, target.partition)
            found = self.partitions.get(key)
            if found is None:
                found = self.partitions[key] = SessionPartition(key, target)
            else:
                found.target = target
                if self.privileged:
                    found.high_watermark = NOT_TOLD  # A follower may have dropped an answer to what it asked before.
            self.stale[found] = None
        removed = []
        for key in forgotten:
            gone = self.partitions.pop(key, None)
            if gone is not None:
                self.stale.pop(gone, None)
                removed.append(gone)
        return removed

    def take_stale(self) -> list[SessionPartition[Target]]:
        """What is to be looked at now. Nothing is stale after that."""
        taken = list(self.stale)
        self.stale.clear()
        return taken

    def look_again(self, partition: SessionPartition[Target]) -> None:
        """Its outcome may be another next time although nothing was told of it. It goes to the end of the row."""
        if self.partitions.get(partition.key) is partition:
            self.stale.pop(partition, None)
            self.stale[partition] = None

    def look_at_all(self) -> None:
        for partition in self.partitions.values():
            self.stale[partition] = None


def next_epoch(epoch: int) -> int:
    return 1 if epoch >= EPOCH_MAX else epoch + 1


class FetchSessions(Generic[Target]):
    """All sessions of a broker, at most `slots_max`."""

    def __init__(self, slots_max: int, *, choose_id: Callable[[], int]) -> None:
        """`choose_id` gives a random number from 1 to 2**31 - 1."""
        self._slots_max = slots_max
        self._choose_id = choose_id
        self._sessions: dict[int, FetchSession[Target]] = {}  # The longest unused first.

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, session_id: int, *, epoch: int, by_topic_id: bool) -> FetchSession[Target]:
        """Raises FetchSessionIdNotFound, InvalidFetchSessionEpoch, FetchSessionTopicIdError."""
        session = self._sessions.get(session_id)
        if session is None:
            raise FetchSessionIdNotFound(f"no fetch session {session_id}")
        if session.epoch != epoch:
            raise InvalidFetchSessionEpoch(f"fetch session {session_id} is at epoch {session.epoch}, not {epoch}")
        if session.by_topic_id != by_topic_id:
            raise FetchSessionTopicIdError(f"fetch session {session_id} names topics by {'id' if session.by_topic_id else 'name'}")
        return session

    def used(self, session: FetchSession[Target], *, now_ms: int) -> None:
        """A request of it was accepted."""
        del self._sessions[session.id]
        self._sessions[session.id] = session
        session.used_ms = now_ms
        session.size = len(session.partitions)
        session.epoch = next_epoch(session.epoch)

    def open(
        self, partitions: Sequence[SessionPartition[Target]], *, privileged: bool, by_topic_id: bool, now_ms: int
    ) -> tuple[FetchSession[Target] | None, FetchSession[Target] | None]:
        """A new session of what a full fetch was told, all of it stale, and the one that lost its slot for it.

        None where all slots are taken by sessions that are worth more.
        """
        evicted = None
        if len(self._sessions) >= self._slots_max:
            evicted = self._evictable(privileged=privileged, size=len(partitions), now_ms=now_ms)
            if evicted is None:
                return None, None
            del self._sessions[evicted.id]
        session_id = self._choose_id()
        while session_id in self._sessions or session_id == NO_SESSION:
            session_id = self._choose_id()
        session: FetchSession[Target] = FetchSession(session_id, privileged=privileged, by_topic_id=by_topic_id, now_ms=now_ms)
        session.partitions.update((partition.key, partition) for partition in partitions)
        session.size = len(session.partitions)
        session.look_at_all()
        self._sessions[session_id] = session
        return session, evicted

    def close(self, session_id: int) -> FetchSession[Target] | None:
        return self._sessions.pop(session_id, None)

    def _evictable(self, *, privileged: bool, size: int, now_ms: int) -> FetchSession[Target] | None:
        """One that is unused for long; else the least one that is worth less, by privilege and then by size.

        Only a new follower's session may take the slot of a young one, and only from a consumer's. All are gone through:
        0.1 ms, and only for full fetches while every slot is taken.
        """
        if not self._slots_max:
            return None
        oldest = next(iter(self._sessions.values()))
        if now_ms - oldest.used_ms > EVICTION_MS:
            return oldest
        candidates = [
            session
            for session in self._sessions.values()
            if session.used_ms - session.created_ms > EVICTION_MS or (privileged and not session.privileged)
        ]
        least = min(candidates, key=lambda session: (session.privileged, session.size, session.id), default=None)
        return least if least is not None and (least.privileged, least.size) < (privileged, size) else None
