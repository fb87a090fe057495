"""Replica fetchers: for each broker that leads partitions followed here, one connection and one fetch under way.

A fetch waits at the leader until there is data. When partitions are added meanwhile, or one's back-off ends, a second
fetch goes out on the same connection at once: the leader then answers the first, so nobody waits for the long poll.
Fetches are incremental (KIP-227): after the first one each names only what changed at this end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from raftlog.broker.followed import Session, Slot
from raftlog.broker.hosted import HostedPartitions
from raftlog.broker.partition import Partition
from raftlog.broker.reads import EARLIEST_TIMESTAMP_MS, LATEST_TIMESTAMP_MS
from raftlog.config import Settings
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.replication.fetch_sessions import EPOCH_MAX, FINAL_EPOCH, INITIAL_EPOCH, NO_SESSION, next_epoch
from raftlog.core.replication.follower import FollowerState, OutOfRange, backoff_ms, repair_out_of_range, truncation_offset
from raftlog.environment import Environment
from raftlog.errors import ApiError, CorruptMessage, ErrorCode, InvalidRecord, KafkaStorageError, RaftlogError, StorageError, error_for
from raftlog.ids import NO_NODE, LeaderEpoch, NodeId, Offset, TopicId
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.fetch import FetchedPartition, FetchResponse, parse_fetch_response
from raftlog.protocol.replica_fetch import FETCH_VERSION, encode_replica_fetch

CONNECT_TIMEOUT_MS: Final = 5000
REQUEST_TIMEOUT_MS: Final = 30_000  # Beyond the longest wait at the leader: it hangs. Kafka's replica.socket.timeout.ms.
FETCHES_IN_FLIGHT_MAX: Final = 4  # To one leader; more than one only while partitions are added.
SIZE_BYTES_MIN: Final = 1

_NEWS: Final = frozenset({ErrorCode.unknown_leader_epoch, ErrorCode.not_leader_or_follower, ErrorCode.fenced_leader_epoch})

_SESSION_ERRORS: Final = frozenset(
    {ErrorCode.fetch_session_id_not_found, ErrorCode.invalid_fetch_session_epoch, ErrorCode.fetch_session_topic_id_error}
)

logger = logging.getLogger(__name__)


class ReplicaFetchers:
    """All fetchers of one broker."""

    def __init__(
        self, environment: Environment, settings: Settings, hosted: HostedPartitions, on_storage_error: Callable[[Exception], object]
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._hosted = hosted
        self._on_storage_error = on_storage_error
        self._fetchers: dict[NodeId, LeaderFetcher] = {}
        self._leader_of: dict[Partition, NodeId] = {}
        self._changed: dict[Partition, None] = {}
        self._closed = False

    def changed(self, partition: Partition) -> None:
        """Its leader or leader epoch is another, or it is gone; takes effect with the next `apply`."""
        self._changed[partition] = None

    def apply(self, image: MetadataImage) -> None:
        """Follow whom the changed partitions say, at the endpoints that `image` says."""
        if self._closed:
            return
        changed, self._changed = self._changed, {}
        for partition in changed:
            self._leave(partition)
            following = partition.following
            if following is not None and following.leader != NO_NODE and not partition.offline:
                self._follow(partition, following)
        for node_id, fetcher in list(self._fetchers.items()):
            if fetcher.is_idle and node_id not in image.brokers:
                del self._fetchers[node_id]
                fetcher.stop()
            else:
                fetcher.run(self._endpoint(image, node_id))

    def abandon(self) -> None:
        self._closed = True
        for fetcher in self._fetchers.values():
            fetcher.stop()

    def log_start_moved(self, partition: Partition) -> None:
        """Retention took what was at its beginning."""
        leader = self._leader_of.get(partition)
        if leader is not None:
            self._fetchers[leader].log_start_moved(partition)

    async def close(self) -> None:
        self.abandon()
        await asyncio.gather(*(fetcher.stopped() for fetcher in self._fetchers.values()))

    def _leave(self, partition: Partition) -> None:
        leader = self._leader_of.pop(partition, None)
        if leader is not None:
            self._fetchers[leader].remove(partition)

    def _follow(self, partition: Partition, following: FollowerState) -> None:
        fetcher = self._fetchers.get(following.leader)
        if fetcher is None:
            fetcher = LeaderFetcher(self._environment, self._settings, self._hosted, following.leader, self._on_storage_error)
            self._fetchers[following.leader] = fetcher
        fetcher.add(partition, following.leader_epoch)
        self._leader_of[partition] = following.leader

    def _endpoint(self, image: MetadataImage, node_id: NodeId) -> tuple[str, int] | None:
        broker = image.brokers.get(node_id)
        endpoint = None if broker is None else broker.endpoints.get(self._settings.inter_broker_listener_name)
        return None if endpoint is None else (endpoint.host, endpoint.port)


class LeaderFetcher:
    """Fetches from one broker what it leads."""

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        hosted: HostedPartitions,
        leader: NodeId,
        on_storage_error: Callable[[Exception], object],
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._hosted = hosted
        self._leader = leader
        self._on_storage_error = on_storage_error
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
            self._changed(slot)

    def _changed(self, slot: Slot) -> None:
        """The leader is to be told anew how far this log is."""
        slot.forget()
        self._look_again(slot)

    def _look_again(self, slot: Slot) -> None:
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
            self._kick()

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

    def _kick(self) -> None:
        """Something is due now: wake the loop, or overtake the fetch that waits at the leader."""
        self._due.set()
        peer = self._peer
        if peer is None or peer.closed or not self._in_flight:
            return
        if self._in_flight >= FETCHES_IN_FLIGHT_MAX:
            self._is_overdue = True
        else:
            task = asyncio.get_running_loop().create_task(self._extra_round(peer))
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
                self._kick()
        return parse_fetch_response(response, FETCH_VERSION)

    def _take_all(self, session: Session, epoch: int, answer: FetchResponse) -> None:
        for topic, partitions in answer.topics:
            assert not isinstance(topic, str)
            slots = self._slots.get(topic, {})
            for fetched in partitions:
                slot = slots.get(fetched.partition)
                # Else it was removed, added anew in another leader epoch, or its log changed since the leader was told of it.
                if slot is not None and session.is_answer_to(slot, epoch):
                    self._take(session.peer, slot, fetched)
                    if len(fetched.records):
                        self._move_to_end(topic, fetched.partition, slot)

    def _move_to_end(self, topic_id: TopicId, index: int, slot: Slot) -> None:
        """The leader serves in the order asked: one that catches up must not use up the response's size every time."""
        siblings = self._slots.get(topic_id)
        if siblings is not None and siblings.get(index) is slot:
            siblings[index] = siblings.pop(index)
            self._slots[topic_id] = self._slots.pop(topic_id)

    # --- One partition's answer ---

    def _take(self, peer: PeerConnection, slot: Slot, fetched: FetchedPartition) -> None:
        partition = slot.partition
        try:
            if fetched.error_code:
                self._refused(peer, slot, ErrorCode(fetched.error_code))
                return
            partition.require_follower(slot.leader_epoch)
            if fetched.diverging is not None:
                self._truncate(slot, *fetched.diverging)
            else:
                partition.append_as_follower(
                    fetched.records, leader_high_watermark=fetched.high_watermark, leader_start_offset=fetched.log_start_offset
                )
                slot.failures = 0
                if slot.is_outdated():
                    self._changed(slot)
        except (KafkaStorageError, StorageError) as error:
            self._on_storage_error(error)
        except (CorruptMessage, InvalidRecord) as error:
            logger.error("%s: what node %d sent for offset %d is damaged: %s", partition.name, self._leader, partition.log.log_end_offset, error)
            self._back_off(slot)
        except ApiError as error:
            logger.info("%s: %s", partition.name, error)
            self._back_off(slot)

    def _truncate(self, slot: Slot, diverging_epoch: LeaderEpoch, diverging_end_offset: Offset) -> None:
        partition = slot.partition
        log = partition.log
        offset = truncation_offset(
            diverging_epoch=diverging_epoch,
            diverging_end_offset=diverging_end_offset,
            end_offset_for_epoch=log.end_offset_for_epoch,
            log_end_offset=log.log_end_offset,
        )
        logger.info(
            "%s: cutting the log from %d to %d, where it parts from node %d's in leader epoch %d",
            partition.name,
            log.log_end_offset,
            offset,
            self._leader,
            diverging_epoch,
        )
        asked = slot.encoded
        self._cut(slot, offset)
        if slot.encode(self._settings.replica_fetch_max_bytes) == asked:
            self._back_off(slot)  # Nothing was cut: asking the same again at once would spin.

    def _cut(self, slot: Slot, offset: Offset) -> None:
        if slot.partition.truncate_to(offset):
            logger.warning("%s: cut at %d, below the high watermark: an unclean election lost records", slot.partition.name, offset)
        self._changed(slot)

    def _refused(self, peer: PeerConnection, slot: Slot, code: ErrorCode) -> None:
        if code == ErrorCode.offset_out_of_range:
            slot.is_repairing = True
            self._look_again(slot)
            task = asyncio.get_running_loop().create_task(self._repair(peer, slot))
            self._extra.add(task)
            task.add_done_callback(self._extra.discard)
            return
        if code not in _NEWS:  # Those come with every change of leader, when this end hears of it before the other.
            logger.info("%s: node %d refuses the fetch: %s", slot.partition.name, self._leader, code.name)
        self._back_off(slot)

    def _back_off(self, slot: Slot) -> None:
        """Leave the partition out for a while; then fetch it without waiting for the round under way."""
        slot.failures += 1
        self._look_again(slot)
        loop = asyncio.get_running_loop()
        pause = backoff_ms(slot.failures, wait_ms_max=self._settings.replica_fetch_backoff_ms) / 1000
        slot.paused_until = loop.time() + pause
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
        self._kick()

    async def _repair(self, peer: PeerConnection, slot: Slot) -> None:
        """The leader does not have what comes next: ask for its range, and cut the log or begin it anew."""
        partition = slot.partition
        try:
            end_offset = await self._leader_offset(peer, slot, LATEST_TIMESTAMP_MS)
            start_offset = await self._leader_offset(peer, slot, EARLIEST_TIMESTAMP_MS)
            partition.require_follower(slot.leader_epoch)
            repair = repair_out_of_range(log_end_offset=partition.log.log_end_offset, leader_start_offset=start_offset, leader_end_offset=end_offset)
            logger.info("%s: out of node %d's range: %s (offset %d)", partition.name, self._leader, repair.action.value, repair.offset)
            if repair.action is OutOfRange.TRUNCATE:
                self._cut(slot, repair.offset)
            elif repair.action is OutOfRange.START_AT:
                partition.start_at(repair.offset)
                self._changed(slot)
            else:
                self._back_off(slot)
        except (KafkaStorageError, StorageError) as error:
            self._on_storage_error(error)
        except RaftlogError as error:
            logger.info("%s: asking node %d for its range failed: %s", partition.name, self._leader, error)
            self._back_off(slot)
        finally:
            slot.is_repairing = False
            self._kick()

    async def _leader_offset(self, peer: PeerConnection, slot: Slot, timestamp_ms: int) -> Offset:
        name = slot.partition.name
        item = {
            "partition_index": name.partition,
            "current_leader_epoch": slot.leader_epoch,
            "timestamp": timestamp_ms,
        }
        answer = await peer.request(
            ApiKey.LIST_OFFSETS,
            {
                "replica_id": self._hosted.node_id,
                "isolation_level": 0,
                "topics": ({"name": name.topic, "partitions": (item,)},),
            },
            timeout_ms=REQUEST_TIMEOUT_MS,
        )
        found = answer.topics[0].partitions[0]
        if found.error_code:
            raise error_for(found.error_code)
        offset: Offset = found.offset
        return offset
