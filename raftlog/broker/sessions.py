"""Serves Fetch within sessions: looks only at partitions that the request names or that something happened to.

A session hears of its partitions as a parked fetch does, but goes on hearing between fetches (`SessionWatch`). With 333
partitions followed and one that changes, a follower's fetch costs 0.1 ms instead of 2 ms on each side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from raftlog.broker.fetches import FetchService
from raftlog.broker.partition import Partition
from raftlog.broker.purgatory import NEVER, FetchWait, Waiter
from raftlog.broker.reads import Fetched, FetchLimits, FetchTarget
from raftlog.core.replication import fetch_sessions
from raftlog.core.replication.fetch_sessions import FINAL_EPOCH, INITIAL_EPOCH, NO_SESSION, FetchSession, Key, SessionPartition
from raftlog.core.replication.leader import LeaderState
from raftlog.environment import Environment
from raftlog.errors import ErrorCode
from raftlog.ids import NO_NODE, Offset

SESSION_ID_BITS: Final = 31


class Connection(Hashable, Protocol):
    """What is needed of `network.connection.ServerConnection`."""

    def on_close(self, callback: Callable[[], None]) -> None: ...
    def remove_on_close(self, callback: Callable[[], None]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """What a Fetch says of its session, and of partitions within it. `forgotten` are left out from now on."""

    session_id: int
    epoch: int
    by_topic_id: bool
    targets: Sequence[FetchTarget]
    forgotten: Sequence[Key]
    connection: Connection


class SessionAnswer(NamedTuple):
    """`session_id` 0: there is no session, and what was asked for is answered in full."""

    session_id: int
    items: Sequence[tuple[FetchTarget, Fetched]]


class SessionWatch(Waiter):
    """Follows a session's partitions for it. Its places are the session's partitions."""

    __slots__ = ("fetched_ms", "is_watching", "replica_epoch", "round", "session")

    def __init__(self, session: FetchSession[FetchTarget], limits: FetchLimits, *, fetched_ms: int) -> None:
        super().__init__(limits)
        self.session = session
        self.stale = session.stale
        self.replica_epoch = limits.replica_epoch
        self.fetched_ms = fetched_ms  # When its last fetch came.
        self.round: SessionRound | None = None  # The fetch that is parked, or was last.
        self.connection: Connection | None = None
        self.is_watching = True  # Unless its connection is gone.

    def attach(self, connection: Connection) -> None:
        """Watch only while the connection lasts: a session that nobody uses must cost the data path nothing."""
        if self.connection is not connection:
            if self.connection is not None:
                self.connection.remove_on_close(self.rest)
            self.connection = connection
            connection.on_close(self.rest)

    def rest(self) -> None:
        """Watch nothing. When the session is used again, all of its partitions are looked at."""
        self.is_watching = False
        for place in self.session.partitions.values():
            self.unwatch(place)

    def close(self) -> None:
        self.rest()
        if self.connection is not None:
            self.connection.remove_on_close(self.rest)

    def watch(self, place: SessionPartition[FetchTarget], partition: Partition | None) -> None:
        if place.watched is not partition:
            self.unwatch(place)
            place.watched = partition
            if partition is not None:
                partition.fetch_waits(self.is_follower)[self, place] = None

    def unwatch(self, place: SessionPartition[FetchTarget]) -> None:
        partition: Partition | None = place.watched
        if partition is None:
            return
        place.watched = None
        partition.fetch_waits(self.is_follower).pop((self, place), None)
        if partition.leading is not None:
            self.log_grows(place, partition.leading, partition.log.log_end_offset)

    def log_grows(self, place: SessionPartition[FetchTarget], leading: LeaderState, log_end_offset: Offset) -> None:
        """A follower that stood at the end had all of the log at its last fetch, though that did not name the partition."""
        if place.is_at_end:
            place.is_at_end = False
            leading.still_caught_up(self.replica_id, broker_epoch=self.replica_epoch, fetched_ms=self.fetched_ms, leader_end_offset=log_end_offset)

    def parked(self) -> None:
        assert self.round is not None
        self.size_bytes = self.round.size_bytes
        self.size_bytes_awaited = self.round.limits.size_bytes_min

    def unparked(self) -> None:
        self.size_bytes_awaited = NEVER

    def due(self) -> None:
        assert self.round is not None
        self.round.take(self.session.take_stale())
        self.round.due()


class SessionRound(FetchWait):
    """One fetch of a session: the partitions it looks at grow with what happens while it waits."""

    __slots__ = ("_places", "_watch")

    def __init__(
        self, watch: SessionWatch, limits: FetchLimits, places: list[SessionPartition[FetchTarget]], on_due: Callable[[FetchWait], None]
    ) -> None:
        super().__init__(limits, [place.target for place in places], on_due)
        self._watch = watch
        self._places = places

    def waits_for_anything(self) -> bool:
        return True

    def begun(self) -> None:
        for index, (place, target, partition, result) in enumerate(zip(self._places, self.targets, self.partitions, self.results, strict=True)):
            self._watch.watch(place, None if index in self.held_back else partition)
            place.is_at_end = self.is_follower and _is_fine(result) and partition is not None and target.fetch_offset >= partition.log.log_end_offset

    def take(self, stale: Sequence[SessionPartition[FetchTarget]]) -> None:
        """Something happened to these since the fetch began."""
        known = {place: index for index, place in enumerate(self._places)}
        targets = list(self.targets)
        for place in stale:
            index = known.get(place)
            if index is None:
                partition: Partition | None = place.watched
                if partition is None:
                    self._watch.session.look_again(place)
                    continue
                index = len(targets)
                targets.append(place.target)
                self._places.append(place)
                self.partitions.append(partition)
                self.results.append(partition.fetched(b""))
            self.stale[index] = None
        self.targets = targets

    def answer(self) -> SessionAnswer:
        """What is news to the fetcher. What may be news next time is kept as stale."""
        session = self._watch.session
        items = []
        for place, target, partition, result in zip(self._places, self.targets, self.partitions, self.results, strict=True):
            has_data = len(result.records) > 0 or result.diverging is not None or result.preferred_read_replica != NO_NODE
            is_error = result.error_code is not ErrorCode.none
            if place.must_tell(is_error=is_error, has_data=has_data, high_watermark=result.high_watermark, log_start_offset=result.log_start_offset):
                items.append((target, result))
            if is_error or has_data or not self._has_all(partition, target):
                session.look_again(place)
        return SessionAnswer(session.id, items)

    def _has_all(self, partition: Partition | None, target: FetchTarget) -> bool:
        """Whether nothing more comes of this partition until something happens to it. A follower's admission is more."""
        if partition is None:
            return False
        if not self.is_follower:
            return target.fetch_offset >= partition.high_watermark
        return partition.leading is not None and target.fetch_offset >= partition.log.log_end_offset and self.replica_id in partition.leading.isr

    def abandoned(self) -> None:
        """Its connection went while it waited, so nothing was told."""
        for place in self._places:
            self._watch.session.look_again(place)


class OpeningFetch(FetchWait):
    """A full fetch that begins a session when it is answered."""

    __slots__ = ("_open",)

    def __init__(
        self,
        limits: FetchLimits,
        targets: Sequence[FetchTarget],
        on_due: Callable[[FetchWait], None],
        on_answer: Callable[[Sequence[tuple[FetchTarget, Fetched]]], int],
    ) -> None:
        super().__init__(limits, targets, on_due)
        self._open = on_answer

    def answer(self) -> SessionAnswer:
        items = list(zip(self.targets, self.results, strict=True))
        return SessionAnswer(self._open(items), items)


class FullFetch(FetchWait):
    """A full fetch outside of any session."""

    __slots__ = ()

    def answer(self) -> SessionAnswer:
        return SessionAnswer(NO_SESSION, list(zip(self.targets, self.results, strict=True)))


class SessionFetches:
    """The sessions of a broker, and the fetches within them."""

    def __init__(self, environment: Environment, fetches: FetchService, *, slots_max: int) -> None:
        self._clock = environment.clock
        self._fetches = fetches
        self._sessions: fetch_sessions.FetchSessions[FetchTarget] = fetch_sessions.FetchSessions(
            slots_max, choose_id=lambda: environment.random.getrandbits(SESSION_ID_BITS)
        )
        self._watches: dict[int, SessionWatch] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def fetch(self, limits: FetchLimits, request: SessionRequest) -> SessionAnswer | Awaitable[SessionAnswer]:
        """As FetchService.fetch. Raises FetchSessionIdNotFound, InvalidFetchSessionEpoch, FetchSessionTopicIdError.

        A fetch that is parked on the same connection is answered first.
        """
        self._fetches.purgatory.supersede(request.connection)
        if request.epoch in (INITIAL_EPOCH, FINAL_EPOCH):
            return self._fetch_all(limits, request)
        session = self._sessions.find(request.session_id, epoch=request.epoch, by_topic_id=request.by_topic_id)
        watch = self._watches[session.id]
        self._fetches.purgatory.release(watch)  # Of another connection, which is about to break, if it is parked.
        for place in session.update(request.targets, request.forgotten):
            watch.unwatch(place)
        if not session.partitions:
            self._close(session.id)
            return SessionAnswer(NO_SESSION, ())
        self._sessions.used(session, now_ms=self._clock.monotonic_ms())
        watch.attach(request.connection)
        if not watch.is_watching or watch.replica_epoch != limits.replica_epoch:
            session.look_at_all()  # The epoch of a broker that registered anew must be known of each of its replicas.
        watch.is_watching = True
        watch.replica_epoch = limits.replica_epoch
        watch.fetched_ms = self._clock.monotonic_ms()
        watch.round = current = SessionRound(watch, limits, session.take_stale(), self._fetches.answer)
        answer: SessionAnswer | Awaitable[SessionAnswer] = self._fetches.serve(current, waiter=watch)
        if current.future is not None:
            current.future.add_done_callback(lambda done: current.abandoned() if done.cancelled() else None)
        return answer

    def _fetch_all(self, limits: FetchLimits, request: SessionRequest) -> SessionAnswer | Awaitable[SessionAnswer]:
        if request.session_id != NO_SESSION:
            self._close(request.session_id)
        wait: FetchWait
        if request.epoch == FINAL_EPOCH:
            wait = FullFetch(limits, request.targets, self._fetches.answer)
        else:
            wait = OpeningFetch(limits, request.targets, self._fetches.answer, lambda items: self._open(limits, request, items))
        wait.connection = request.connection
        answer: SessionAnswer | Awaitable[SessionAnswer] = self._fetches.serve(wait)
        return answer

    def _open(self, limits: FetchLimits, request: SessionRequest, items: Sequence[tuple[FetchTarget, Fetched]]) -> int:
        """A session of what a full fetch was just told; its id, NO_SESSION where there is no slot for it."""
        now_ms = self._clock.monotonic_ms()
        places: list[SessionPartition[FetchTarget]] = [
            SessionPartition(
                (target.topic, target.partition),
                target,
                high_watermark=result.high_watermark,  # Of an error -1, which is no mark.
                log_start_offset=result.log_start_offset,
            )
            for target, result in items
        ]
        session, evicted = self._sessions.open(places, privileged=limits.is_follower, by_topic_id=request.by_topic_id, now_ms=now_ms)
        if evicted is not None:
            self._watches.pop(evicted.id).close()
        if session is None:
            return NO_SESSION
        watch = self._watches[session.id] = SessionWatch(session, limits, fetched_ms=now_ms)
        watch.attach(request.connection)
        return session.id

    def _close(self, session_id: int) -> None:
        if self._sessions.close(session_id) is not None:
            watch = self._watches.pop(session_id)
            self._fetches.purgatory.release(watch)
            watch.close()


def _is_fine(result: Fetched) -> bool:
    return result.error_code is ErrorCode.none and result.diverging is None
