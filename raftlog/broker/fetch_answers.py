"""What a leader answers for one followed partition: append it, cut the log where it parts, or find the leader's range again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

from raftlog.broker.followed import Slot
from raftlog.broker.reads import EARLIEST_TIMESTAMP_MS, LATEST_TIMESTAMP_MS
from raftlog.config import Settings
from raftlog.core.replication.follower import OutOfRange, repair_out_of_range, truncation_offset
from raftlog.errors import ApiError, CorruptMessage, ErrorCode, InvalidRecord, KafkaStorageError, RaftlogError, StorageError, error_for
from raftlog.ids import LeaderEpoch, NodeId, Offset
from raftlog.network.peers import PeerConnection
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.fetch import FetchedPartition

REQUEST_TIMEOUT_MS: Final = 30_000  # Beyond the longest wait at the leader: it hangs. Kafka's replica.socket.timeout.ms.

_NEWS: Final = frozenset({ErrorCode.unknown_leader_epoch, ErrorCode.not_leader_or_follower, ErrorCode.fenced_leader_epoch})

logger = logging.getLogger(__name__)


class Fetcher(Protocol):
    """What is told of a partition's answer: the fetcher that asked for it."""

    def changed(self, slot: Slot) -> None: ...
    def look_again(self, slot: Slot) -> None: ...
    def back_off(self, slot: Slot) -> None: ...
    def kick(self) -> None: ...
    def spawn(self, coroutine: Coroutine[None, None, None]) -> None: ...


class FetchAnswers:
    """Takes the answers of one leader, partition by partition."""

    def __init__(
        self, settings: Settings, fetcher: Fetcher, *, own_id: NodeId, leader: NodeId, on_storage_error: Callable[[Exception], object]
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._own_id = own_id
        self._leader = leader
        self._on_storage_error = on_storage_error

    def take(self, peer: PeerConnection, slot: Slot, fetched: FetchedPartition) -> None:
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
                    self._fetcher.changed(slot)
        except (KafkaStorageError, StorageError) as error:
            self._on_storage_error(error)
        except (CorruptMessage, InvalidRecord) as error:
            logger.error("%s: what node %d sent for offset %d is damaged: %s", partition.name, self._leader, partition.log.log_end_offset, error)
            self._fetcher.back_off(slot)
        except ApiError as error:
            logger.info("%s: %s", partition.name, error)
            self._fetcher.back_off(slot)

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
            self._fetcher.back_off(slot)  # Nothing was cut: asking the same again at once would spin.

    def _cut(self, slot: Slot, offset: Offset) -> None:
        if slot.partition.truncate_to(offset):
            logger.warning("%s: cut at %d, below the high watermark: an unclean election lost records", slot.partition.name, offset)
        self._fetcher.changed(slot)

    def _refused(self, peer: PeerConnection, slot: Slot, code: ErrorCode) -> None:
        if code == ErrorCode.offset_out_of_range:
            slot.is_repairing = True
            self._fetcher.look_again(slot)
            self._fetcher.spawn(self._repair(peer, slot))
            return
        if code not in _NEWS:  # Those come with every change of leader, when this end hears of it before the other.
            logger.info("%s: node %d refuses the fetch: %s", slot.partition.name, self._leader, code.name)
        self._fetcher.back_off(slot)

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
                self._fetcher.changed(slot)
            else:
                self._fetcher.back_off(slot)
        except (KafkaStorageError, StorageError) as error:
            self._on_storage_error(error)
        except RaftlogError as error:
            logger.info("%s: asking node %d for its range failed: %s", partition.name, self._leader, error)
            self._fetcher.back_off(slot)
        finally:
            slot.is_repairing = False
            self._fetcher.kick()

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
                "replica_id": self._own_id,
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
