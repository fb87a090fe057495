"""A broker-only node's reading of the metadata log: an observer that fetches from the quorum's leader.

It keeps the image in memory only: after a restart it starts from the newest snapshot again.
Source: KIP-595, KIP-630.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from raftlog.broker.metadata import MetadataFollower
from raftlog.config import Settings, Voter
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage, difference
from raftlog.environment import Buffer, Environment
from raftlog.errors import ApiError, ErrorCode, RaftlogError
from raftlog.ids import METADATA_TOPIC, METADATA_TOPIC_ID, NO_NODE, BrokerEpoch, LeaderEpoch, NodeId, Offset
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.batches import decode_batch, iterate_batches
from raftlog.protocol.fetch import FetchedPartition, FetchPartition, FetchRequest, encode_fetch_request, parse_fetch_response

FETCH_WAIT_MS: Final = 500  # Long poll, as JVM brokers have it.
FETCH_TIMEOUT_MS: Final = 2000  # A leader that does not answer for so long is given up for another.
FETCH_BYTES_MAX: Final = 8 * 1024 * 1024
SNAPSHOT_PIECE_BYTES: Final = 1024 * 1024
SNAPSHOT_BYTES_MAX: Final = 4 * 1024 * 1024 * 1024
CONNECT_TIMEOUT_MS: Final = 1000
RETRY_PAUSE_MS: Final = 50

logger = logging.getLogger(__name__)


class DamagedMetadata(RaftlogError):
    """The leader sent what can't be metadata: the image could not be trusted any more."""


class WrongCluster(RaftlogError):
    """The controllers are those of another cluster: this broker's directory or its configuration is."""


class MetadataFetcher:
    """One task that fetches, applies, and publishes to a MetadataFollower."""

    def __init__(
        self,
        settings: Settings,
        environment: Environment,
        *,
        cluster_id: str,
        follower: MetadataFollower,
        on_leader: Callable[[NodeId], None],
        broker_epoch: Callable[[], BrokerEpoch],
    ) -> None:
        """`on_leader` hears which voter leads, and NO_NODE when that is not known any more."""
        self._settings = settings
        self._environment = environment
        self._cluster_id = cluster_id
        self._follower = follower
        self._on_leader = on_leader
        self._broker_epoch = broker_epoch
        self._voters: dict[NodeId, Voter] = {voter.node_id: voter for voter in settings.voters}
        self._order = sorted(self._voters)
        self._turn = 0
        self._leader = NO_NODE
        self._leader_epoch: LeaderEpoch = 0
        self._image = MetadataImage()
        self._task: asyncio.Task[None] | None = None
        self.high_watermark: Offset = -1  # As the leader said last; -1 before it said anything.

    def start(self) -> asyncio.Task[None]:
        """The task; it ends only with DamagedMetadata, WrongCluster or what else must stop the node."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="metadata-fetcher")
        return self._task

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            node_id = self._leader if self._leader in self._voters else self._order[self._turn % len(self._order)]
            voter = self._voters[node_id]
            try:
                peer = await PeerConnection.open(
                    self._environment.network,
                    voter.host,
                    voter.port,
                    client_id=f"raftlog-observer-{self._settings.node_id}",
                    timeout_ms=CONNECT_TIMEOUT_MS,
                )
                try:
                    while await self._fetch(peer, node_id):
                        pass
                finally:
                    peer.close()
            except (PeerUnreachable, ApiError) as error:
                logger.debug("metadata fetch from controller %d failed: %s", node_id, error)
                self._set_leader(NO_NODE, self._leader_epoch)
                self._turn += 1
            await asyncio.sleep(RETRY_PAUSE_MS / 1000)

    def _set_leader(self, node_id: NodeId, epoch: LeaderEpoch) -> None:
        self._leader_epoch = max(epoch, self._leader_epoch)
        if node_id != self._leader:
            self._leader = node_id
            self._on_leader(node_id)

    async def _fetch(self, peer: PeerConnection, node_id: NodeId) -> bool:
        """One fetch; whether to go on with this controller."""
        version = peer.version_of(ApiKey.FETCH)
        asked = FetchPartition(0, self._leader_epoch, self._image.offset, self._image.epoch, 0, FETCH_BYTES_MAX)
        request = FetchRequest(
            FETCH_WAIT_MS,
            1,
            [(METADATA_TOPIC_ID, [asked])],
            size_bytes_max=FETCH_BYTES_MAX,
            replica_id=self._settings.node_id,
            replica_epoch=self._broker_epoch(),
            session_epoch=-1,
            cluster_id=self._cluster_id,
        )
        body = await peer.request_raw(ApiKey.FETCH, version, [encode_fetch_request(version, request)], timeout_ms=FETCH_TIMEOUT_MS)
        response = parse_fetch_response(body, version)
        if response.error_code == ErrorCode.inconsistent_cluster_id:
            raise WrongCluster(f"wrong cluster id: {self._cluster_id} is not that of the controller at {peer.peer}")
        if response.error_code:
            raise PeerUnreachable(f"controller {node_id} refuses the fetch: {ErrorCode(response.error_code).name}")
        answer = response.topics[0][1][0]
        if answer.error_code in (ErrorCode.not_leader_or_follower, ErrorCode.fenced_leader_epoch, ErrorCode.unknown_leader_epoch):
            return self._redirected(node_id, answer)
        if answer.error_code:
            raise PeerUnreachable(f"controller {node_id} answers {ErrorCode(answer.error_code).name}")
        self._set_leader(node_id, self._leader_epoch)
        await self._take(peer, answer)
        return True

    def _redirected(self, node_id: NodeId, answer: FetchedPartition) -> bool:
        """The controller told who leads now; whether that is itself."""
        leader_id, epoch = answer.leader if answer.leader is not None else (NO_NODE, -1)
        if leader_id == node_id and answer.error_code == ErrorCode.fenced_leader_epoch:
            self._set_leader(node_id, epoch)
            return True
        known = leader_id if leader_id in self._voters and epoch >= self._leader_epoch else NO_NODE
        self._set_leader(known if known != node_id else NO_NODE, epoch)
        self._turn += 1
        return False

    async def _take(self, peer: PeerConnection, answer: FetchedPartition) -> None:
        self.high_watermark = max(self.high_watermark, answer.high_watermark)
        if answer.snapshot is not None:
            await self._load_snapshot(peer, *answer.snapshot)
        elif answer.diverging is not None:
            # Only committed entries were ever applied, so this means another log: begin from nothing.
            logger.error("the metadata log diverges from what was applied up to offset %d: reading it anew", self._image.offset)
            self._image = MetadataImage()
        elif len(answer.records):
            self._apply(answer.records)

    def _apply(self, content: Buffer) -> None:
        for header, batch in iterate_batches(content):
            if header.end_offset <= self._image.offset:
                continue  # The first batch may begin below the offset asked for.
            records = [] if header.is_control else _decoded(batch)
            image, delta = self._image.apply_batch(records, offset=header.end_offset, epoch=header.leader_epoch)
            restarted = self._follower.image.offset > image.offset
            self._image = image
            if not restarted:
                if self._follower.image is not image and self._follower.image.offset != header.base_offset:
                    delta = difference(self._follower.image, image)
                self._follower.publish(image, delta)

    async def _load_snapshot(self, peer: PeerConnection, end_offset: Offset, epoch: LeaderEpoch) -> None:
        content = await self._fetch_snapshot(peer, end_offset, epoch)
        records = [record for header, batch in iterate_batches(content) if not header.is_control for record in _decoded(batch)]
        self._image, _ = MetadataImage().apply_batch(records, offset=end_offset, epoch=epoch)
        if self._image.offset > self._follower.image.offset:
            self._follower.publish(self._image, difference(self._follower.image, self._image))
        logger.info("loaded the metadata snapshot %d-%d", end_offset, epoch)

    async def _fetch_snapshot(self, peer: PeerConnection, end_offset: Offset, epoch: LeaderEpoch) -> bytes:
        content = bytearray()
        while True:
            partition = {
                "partition": 0,
                "current_leader_epoch": self._leader_epoch,
                "snapshot_id": {"end_offset": end_offset, "epoch": epoch},
                "position": len(content),
            }
            fields = {
                "cluster_id": self._cluster_id,
                "replica_id": self._settings.node_id,
                "max_bytes": SNAPSHOT_PIECE_BYTES,
                "topics": [{"name": METADATA_TOPIC, "partitions": [partition]}],
            }
            response = await peer.request(ApiKey.FETCH_SNAPSHOT, fields, timeout_ms=FETCH_TIMEOUT_MS)
            code = ErrorCode(response.error_code)
            piece = response.topics[0].partitions[0] if response.topics else None
            if code is ErrorCode.none and piece is not None:
                code = ErrorCode(piece.error_code)
            if code is not ErrorCode.none or piece is None:
                raise PeerUnreachable(f"the snapshot {end_offset}-{epoch} can't be fetched: {code.name}")
            if piece.size > SNAPSHOT_BYTES_MAX or (not piece.unaligned_records and len(content) < piece.size):
                raise DamagedMetadata(f"the snapshot {end_offset}-{epoch} claims {piece.size} bytes and sends no more than {len(content)}")
            content += piece.unaligned_records
            if len(content) >= piece.size:
                return bytes(content)


def _decoded(batch: Buffer) -> Iterable[r.MetadataRecord]:
    return [r.decode(record.value) for record in decode_batch(batch) if record.value is not None]
