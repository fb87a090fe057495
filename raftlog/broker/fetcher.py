"""A replica fetcher: of one broker that leads partitions followed here, with one connection and one fetch under way.

A fetch waits at the leader until there is data. When partitions are added meanwhile, or one's back-off ends, a second
fetch goes out on the same connection at once: the leader then answers the first, so nobody waits for the long poll.
Fetches are incremental (KIP-227): after the first one each names only what changed at this end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Final

from raftlog.broker.fetch_answers import REQUEST_TIMEOUT_MS, FetchAnswers
from raftlog.broker.followed import Session, Slot
from raftlog.broker.hosted import HostedPartitions
from raftlog.broker.partition import Partition
from raftlog.config import Settings
from raftlog.core.replication.fetch_sessions import EPOCH_MAX, FINAL_EPOCH, INITIAL_EPOCH, NO_SESSION, next_epoch
from raftlog.core.replication.follower import backoff_ms
from raftlog.core.replication.throttle import Throttle
from raftlog.environment import Environment
from raftlog.errors import ErrorCode, RaftlogError, error_for
from raftlog.ids import LeaderEpoch, NodeId, TopicId
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.fetch import FetchResponse, parse_fetch_response
from raftlog.protocol.replica_fetch import FETCH_VERSION, encode_replica_fetch

CONNECT_TIMEOUT_MS: Final = 5000
FETCHES_IN_FLIGHT_MAX: Final = 4  # To one leader; more than one only while partitions are added.
SIZE_BYTES_MIN: Final = 1

_SESSION_ERRORS: Final = frozenset(
    {ErrorCode.fetch_session_id_not_found, ErrorCode.invalid_fetch_session_epoch, ErrorCode.fetch_session_topic_id_error}
)

logger = logging.getLogger(__name__)


class LeaderFetcher:
    """Fetches from one broker what it leads."""

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        hosted: HostedPartitions,
        leader: NodeId,
        throttle: Throttle,
        on_storage_error: Callable[[Exception], object],
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._hosted = hosted
        self._leader = leader
        self._throttle = throttle
        self._answers = FetchAnswers(settings, self, own_id=hosted.node_id, leader=leader, on_storage_error=on_storage_error)
        self._slots: dict[TopicId, dict[int, Slot]] = {}
        self._untold: dict[Slot, None] = {}  # Those of which the leader does not know, or not how far they are.
        self._session: Session | None = None
        self._ended: Session | None = None  # The next full fetch tells the leader so.
        self._opening: PeerConnection | None = None  # Where a request for a session is under way.
        self._endpoint: tuple[str, int] | None = None
        self._peer: PeerConnection | None = None
        self._main: asyncio.Task[None] | None = None
        self._extra: set[asyncio.Task[None]] = set()
        self._due = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._in_flight = 0
        self._has_news = False
        self._is_overdue = False  # A fetch must overtake, but too many are under way.
        self._connect_failures = 0
        self._is_stopped = False

    @property
    def is_idle(self) -> bool:
        return not self._slots

    def add(self, partition: Partition, leader_epoch: LeaderEpoch) -> None:
        slot = Slot(partition, leader_epoch)
        self._slots.setdefault(partition.topic_id, {})[partition.name.partition] = slot
        self._untold[slot] = None
        self._has_news = True

    def remove(self, partition: Partition) -> None:
        siblings = self._slots.get(partition.topic_id, {})
        slot = siblings.pop(partition.name.partition, None)
        if not siblings:
            self._slots.pop(partition.topic_id, None)
        if slot is not None:
            self._untold.pop(slot, None)
            if self._session is not None:
                self._session.leave_out(slot)

    def log_start_moved(self, partition: Partition) -> None:
        slot = self._slots.get(partition.topic_id, {}).get(partition.name.partition)
        if slot is not None:
            self.changed(slot)

    def changed(self, slot: Slot) -> None:
        """The leader is to be told anew how far this log is."""
        slot.forget()
        self.look_again(slot)

    def look_again(self, slot: Slot) -> None:
        """The next request has something to say of it: how far the log is, or that it is to be left out for a while."""
        if self._has(slot):
            self._untold[slot] = None

    def _has(self, slot: Slot) -> bool:
        siblings = self._slots.get(slot.partition.topic_id)
        return siblings is not None and siblings.get(slot.partition.name.partition) is slot

    def _all_slots(self) -> Iterator[Slot]:
        for siblings in self._slots.values():
            yield from siblings.values()

    def run(self, endpoint: tuple[str, int] | None) -> None:
        """Fetch from `endpoint` what was added; None: the leader's address is not known."""
        if endpoint != self._endpoint:
            self._endpoint = endpoint
            self._connect_failures = 0
            if self._peer is not None:
                self._peer.close()
        if not self._slots and self._peer is not None:
            self._peer.close()  # It lost its leads, so it may be dead or cut off: nobody shall wait for its answer.
        if endpoint is not None and self._main is None:
            self._main = asyncio.get_running_loop().create_task(self._loop())
        if self._has_news:
            self._has_news = False
            self._connect_failures = 0
            self.kick()

    def stop(self) -> None:
        self._is_stopped = True
        for task in (self._main, *self._extra):
            if task is not None:
                task.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        if self._peer is not None:
            self._peer.close()

    async def stopped(self) -> None:
        await asyncio.gather(*(task for task in (self._main, *self._extra) if task is not None), return_exceptions=True)

    # --- The rounds ---

    async def _loop(self) -> None:
        while not self._is_stopped:
            try:
                await self._until_due()
                peer = await self._connected()
                await self._round(peer)
            except PeerUnreachable as error:
                await self._pause(error)
            except RaftlogError as error:
                logger.warning("fetching from node %d: %s", self._leader, error)
                await self._pause(None)
            except Exception:
                logger.exception("fetching from node %d failed", self._leader)
                await self._pause(None)

    async def _until_due(self) -> None:
        while self._endpoint is None or not self._has_due():
            self._due.clear()
            await self._due.wait()

    def _has_due(self) -> bool:
        now = asyncio.get_running_loop().time()
        return any(slot.is_due(now) for slot in self._all_slots())

    async def _connected(self) -> PeerConnection:
        if self._peer is None or self._peer.closed:
            assert self._endpoint is not None
            host, port = self._endpoint
            self._peer = await PeerConnection.open(
                self._environment.network,
                host,
                port,
                client_id=f"broker-{self._hosted.node_id}-fetcher",
                timeout_ms=CONNECT_TIMEOUT_MS,
            )
        return self._peer

    async def _pause(self, error: PeerUnreachable | None) -> None:
        """After a failed connection or request; ends early when the leader gets a new address or new partitions."""
        self._connect_failures += 1
        if error is not None and self._connect_failures == 1 and self._slots:
            logger.info("node %d can't be fetched from: %s", self._leader, error)
        self._due.clear()
        try:
            pause_ms = backoff_ms(self._connect_failures, wait_ms_max=self._settings.replica_fetch_backoff_ms)
            async with asyncio.timeout(pause_ms / 1000):
                await self._due.wait()
        except TimeoutError:
            pass

    def kick(self) -> None:
        """Something is due now: wake the loop, or overtake the fetch that waits at the leader."""
        self._due.set()
        peer = self._peer
        if peer is None or peer.closed or not self._in_flight:
            return
        if self._in_flight >= FETCHES_IN_FLIGHT_MAX:
            self._is_overdue = True
        else:
            self.spawn(self._extra_round(peer))

    def spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run it beside the rounds, until this fetcher stops."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._extra.add(task)
        task.add_done_callback(self._extra.discard)

    async def _extra_round(self, peer: PeerConnection) -> None:
        try:
            await self._round(peer)
        except RaftlogError:
            pass  # The main loop meets the same connection.
        except Exception:
            logger.exception("fetching from node %d failed", self._leader)

    async def _round(self, peer: PeerConnection) -> None:
        """One fetch of all that is due: ask, append, and note what failed."""
        self._hold_back()
        session = self._session
        if session is not None and (session.peer is not peer or session.epoch == EPOCH_MAX):
            self._end(session)
            session = None
        full = session is None
        if session is None:
            session = Session(peer, closing=self._ended)
            body = self._ask_all(session)
        else:
            body = self._ask_changed(session)
        if body is None:
            return
        epoch = session.epoch
        session.epoch = next_epoch(epoch)
        try:
            answer = await self._ask(peer, body, opens=full and epoch == INITIAL_EPOCH)
        except BaseException:
            self._end(session)
            raise
        if answer.error_code in _SESSION_ERRORS:
            self._end(session)
            return
        if answer.error_code:
            raise error_for(answer.error_code)
        self._connect_failures = 0
        if not full and answer.session_id != session.id:
            self._end(session)
        elif epoch == INITIAL_EPOCH and answer.session_id != NO_SESSION and not peer.closed:
            session.id = answer.session_id
            self._begin(session)
        self._take_all(session, epoch, answer)

    def _begin(self, session: Session) -> None:
        """The leader remembers from now on what `session.told` says; tell it what happened since."""
        self._session = session
        now = asyncio.get_running_loop().time()
        for slot in list(session.told):
            if not self._has(slot):
                session.leave_out(slot)
        for slot in self._all_slots():
            if slot.is_due(now) and session.is_answer_to(slot, INITIAL_EPOCH) and not slot.is_outdated():
                self._untold.pop(slot, None)
            else:
                self._untold[slot] = None

    def _end(self, session: Session) -> None:
        """What the leader knows is not certain any more: the next fetch is a full one."""
        if self._session is session:
            self._session = None
            self._ended = session

    def _ask_all(self, session: Session) -> bytes | None:
        """A full fetch; it asks for a session unless another one does. None: nothing is due."""
        if self._opening is session.peer:
            session.epoch = FINAL_EPOCH
        asked: dict[TopicId, list[bytes]] = {}
        now = asyncio.get_running_loop().time()
        for topic_id, siblings in self._slots.items():
            for slot in siblings.values():
                if slot.is_due(now):
                    encoded = slot.encode(self._settings.replica_fetch_max_bytes)
                    session.tell(slot, encoded)
                    asked.setdefault(topic_id, []).append(encoded)
        return self._encode(session, asked, {}) if asked else None

    def _ask_changed(self, session: Session) -> bytes | None:
        """The next fetch of a session. None: nothing is due."""
        asked: dict[TopicId, list[bytes]] = {}
        now = asyncio.get_running_loop().time()
        for slot in list(self._untold):
            if not slot.is_due(now):
                session.leave_out(slot)
                continue
            encoded = slot.encode(self._settings.replica_fetch_max_bytes)
            session.tell(slot, encoded)
            session.gone.pop(slot.key, None)
            asked.setdefault(slot.partition.topic_id, []).append(encoded)
            del self._untold[slot]
        if not session.told:
            self._end(session)
            return None
        forgotten: dict[TopicId, list[int]] = {}
        for topic_id, index in session.gone:
            forgotten.setdefault(topic_id, []).append(index)
        session.gone.clear()
        return self._encode(session, asked, forgotten)

    def _encode(self, session: Session, asked: Mapping[TopicId, list[bytes]], forgotten: Mapping[TopicId, list[int]]) -> bytes:
        settings = self._settings
        return encode_replica_fetch(
            asked.items(),
            wait_ms_max=settings.replica_fetch_wait_max_ms,
            size_bytes_min=SIZE_BYTES_MIN,
            size_bytes_max=settings.replica_fetch_response_max_bytes,
            replica_id=self._hosted.node_id,
            replica_epoch=self._hosted.own_broker_epoch,
            session=(session.id, session.epoch),
            forgotten=forgotten,
        )

    async def _ask(self, peer: PeerConnection, body: bytes, *, opens: bool) -> FetchResponse:
        if opens:
            self._opening = peer
        self._in_flight += 1
        try:
            response = await peer.request_raw(ApiKey.FETCH, FETCH_VERSION, (body,), timeout_ms=REQUEST_TIMEOUT_MS)
        finally:
            self._in_flight -= 1
            if opens and self._opening is peer:
                self._opening = None
            if self._is_overdue:
                self._is_overdue = False
                self.kick()
        return parse_fetch_response(response, FETCH_VERSION)

    def _take_all(self, session: Session, epoch: int, answer: FetchResponse) -> None:
        for topic, partitions in answer.topics:
            assert not isinstance(topic, str)
            slots = self._slots.get(topic, {})
            for fetched in partitions:
                slot = slots.get(fetched.partition)
                # Else it was removed, added anew in another leader epoch, or its log changed since the leader was told of it.
                if slot is not None and session.is_answer_to(slot, epoch):
                    if slot.partition.is_throttled_follower:
                        self._throttle.record(len(fetched.records), now_ms=self._environment.clock.monotonic_ms())
                    self._answers.take(session.peer, slot, fetched)
                    if len(fetched.records):
                        self._move_to_end(topic, fetched.partition, slot)

    def _move_to_end(self, topic_id: TopicId, index: int, slot: Slot) -> None:
        """The leader serves in the order asked: one that catches up must not use up the response's size every time."""
        siblings = self._slots.get(topic_id)
        if siblings is not None and siblings.get(index) is slot:
            siblings[index] = siblings.pop(index)
            self._slots[topic_id] = self._slots.pop(topic_id)

    def _hold_back(self) -> None:
        """Leave out what is throttled and not in sync, while throttled partitions fetched too much of late."""
        pause_ms = self._throttle.pause_ms(now_ms=self._environment.clock.monotonic_ms())
        if not pause_ms:
            return
        now = asyncio.get_running_loop().time()
        for slot in self._all_slots():
            if slot.partition.is_throttled_follower and slot.is_due(now) and not self._is_in_sync(slot):
                self._leave_out(slot, pause_ms)

    def _is_in_sync(self, slot: Slot) -> bool:
        state = self._hosted.image.partition(slot.partition.name)
        return state is not None and self._hosted.node_id in state.isr

    def back_off(self, slot: Slot) -> None:
        """Leave the partition out for a while; then fetch it without waiting for the round under way."""
        slot.failures += 1
        self._leave_out(slot, backoff_ms(slot.failures, wait_ms_max=self._settings.replica_fetch_backoff_ms))

    def _leave_out(self, slot: Slot, pause_ms: int) -> None:
        self.look_again(slot)
        loop = asyncio.get_running_loop()
        slot.paused_until = loop.time() + pause_ms / 1000
        if self._alarm is None or self._alarm.cancelled() or self._alarm.when() > slot.paused_until:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_at(slot.paused_until, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        loop = asyncio.get_running_loop()
        paused = [slot.paused_until for slot in self._all_slots() if slot.paused_until > loop.time()]
        if paused:
            self._alarm = loop.call_at(min(paused), self._ring)
        self.kick()
