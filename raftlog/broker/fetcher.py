"""Replica fetchers: for each broker that leads partitions followed here, one connection and one fetch under way.

A fetch waits at the leader until there is data. When partitions are added meanwhile, or one's back-off ends, a second
fetch goes out on the same connection at once: the leader then answers the first, so nobody waits for the long poll.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final

from raftlog.broker.hosted import HostedPartitions
from raftlog.broker.partition import Partition
from raftlog.broker.reads import EARLIEST_TIMESTAMP_MS, LATEST_TIMESTAMP_MS
from raftlog.config import Settings
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.replication.follower import FollowerState, OutOfRange, backoff_ms, repair_out_of_range, truncation_offset
from raftlog.environment import Environment
from raftlog.errors import ApiError, CorruptMessage, ErrorCode, InvalidRecord, KafkaStorageError, RaftlogError, StorageError, error_for
from raftlog.ids import NO_LEADER_EPOCH, NO_NODE, LeaderEpoch, NodeId, Offset, TopicId
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.fetch import FetchedPartition, parse_fetch_response
from raftlog.protocol.replica_fetch import FETCH_VERSION, encode_partition, encode_replica_fetch

CONNECT_TIMEOUT_MS: Final = 5000
REQUEST_TIMEOUT_MS: Final = 30_000  # Beyond the longest wait at the leader: it hangs. Kafka's replica.socket.timeout.ms.
FETCHES_IN_FLIGHT_MAX: Final = 4  # To one leader; more than one only while partitions are added.
SIZE_BYTES_MIN: Final = 1

_NEWS: Final = frozenset({ErrorCode.unknown_leader_epoch, ErrorCode.not_leader_or_follower, ErrorCode.fenced_leader_epoch})

logger = logging.getLogger(__name__)


class Slot:
    """One followed partition in one leader epoch: what to ask for, encoded once for as long as it holds."""

    __slots__ = ("_asked", "encoded", "failures", "is_repairing", "leader_epoch", "partition", "paused_until")

    def __init__(self, partition: Partition, leader_epoch: LeaderEpoch) -> None:
        self.partition = partition
        self.leader_epoch = leader_epoch
        self.failures = 0
        self.paused_until = 0.0  # In the loop's time, seconds.
        self.is_repairing = False  # The leader's range is being asked for.
        self.encoded = b""
        self._asked: tuple[Offset, Offset] | None = None

    def encode(self, size_bytes_max: int) -> bytes:
        """The request's part. The same object as last time as long as the log has not changed, so `is` tells."""
        log = self.partition.log
        asked = (log.log_end_offset, log.log_start_offset)
        if asked != self._asked:
            self._asked = asked
            # The last record's epoch, not the latest known one: of that there may be no record, after a leadership without any.
            last_epoch = log.epochs.epoch_at(asked[0] - 1) if asked[0] > asked[1] else NO_LEADER_EPOCH
            self.encoded = encode_partition(
                self.partition.name.partition,
                leader_epoch=self.leader_epoch,
                fetch_offset=asked[0],
                last_fetched_epoch=last_epoch,
                log_start_offset=asked[1],
                size_bytes_max=size_bytes_max,
            )
        return self.encoded

    def forget(self) -> None:
        """The log changed: whatever is under way was asked before that."""
        self._asked = None
        self.encoded = b""


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
        self._slots.setdefault(partition.topic_id, {})[partition.name.partition] = Slot(partition, leader_epoch)
        self._has_news = True

    def remove(self, partition: Partition) -> None:
        siblings = self._slots.get(partition.topic_id, {})
        siblings.pop(partition.name.partition, None)
        if not siblings:
            self._slots.pop(partition.topic_id, None)

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
        return any(slot.paused_until <= now and not slot.is_repairing for slot in self._all_slots())

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
        now = asyncio.get_running_loop().time()
        settings = self._settings
        asked: dict[TopicId, dict[int, bytes]] = {}
        for topic_id, siblings in self._slots.items():
            due = {
                index: slot.encode(settings.replica_fetch_max_bytes)
                for index, slot in siblings.items()
                if slot.paused_until <= now and not slot.is_repairing
            }
            if due:
                asked[topic_id] = due
        if not asked:
            return
        body = encode_replica_fetch(
            [(topic_id, list(due.values())) for topic_id, due in asked.items()],
            wait_ms_max=settings.replica_fetch_wait_max_ms,
            size_bytes_min=SIZE_BYTES_MIN,
            size_bytes_max=settings.replica_fetch_response_max_bytes,
            replica_id=self._hosted.node_id,
            replica_epoch=self._hosted.own_broker_epoch,
        )
        self._in_flight += 1
        try:
            response = await peer.request_raw(ApiKey.FETCH, FETCH_VERSION, (body,), timeout_ms=REQUEST_TIMEOUT_MS)
        finally:
            self._in_flight -= 1
            if self._is_overdue:
                self._is_overdue = False
                self._kick()
        answer = parse_fetch_response(response, FETCH_VERSION)
        if answer.error_code:
            raise error_for(answer.error_code)
        self._connect_failures = 0
        for topic, partitions in answer.topics:
            assert not isinstance(topic, str)
            slots, due = self._slots.get(topic, {}), asked.get(topic, {})
            for fetched in partitions:
                slot = slots.get(fetched.partition)
                # Another object: removed, added anew in another leader epoch, or its log changed since it was asked for.
                if slot is not None and slot.encoded is due.get(fetched.partition):
                    self._take(peer, slot, fetched)
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
                if len(fetched.records):
                    slot.forget()
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
        slot.forget()

    def _refused(self, peer: PeerConnection, slot: Slot, code: ErrorCode) -> None:
        if code == ErrorCode.offset_out_of_range:
            slot.is_repairing = True
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
                slot.forget()
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
