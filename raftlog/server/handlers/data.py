"""Fetch and InitProducerId, and in `produce.py` Produce: what producers and fetchers do all day.

Fetch v4-v18, InitProducerId v0-v5.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Final

from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.producer_ids import ControllerRequests, ProducerIds
from raftlog.broker.reads import FetchLimits, FetchTarget, Isolation
from raftlog.broker.replicas import ReplicaManager
from raftlog.broker.sessions import SessionAnswer, SessionRequest
from raftlog.config import Settings
from raftlog.environment import Environment
from raftlog.errors import (
    ErrorCode,
    FetchSessionIdNotFound,
    FetchSessionTopicIdError,
    InvalidFetchSessionEpoch,
    InvalidRequest,
    TransactionalIdAuthorizationFailed,
)
from raftlog.ids import NO_NODE, NodeId
from raftlog.network.connection import RequestContext, Response
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.batches import NO_PRODUCER_EPOCH, NO_PRODUCER_ID
from raftlog.protocol.fetch import RACKS_FROM, TOPIC_IDS_FROM, FetchedPartition, FetchRequest, encode_fetch_response, parse_fetch_request
from raftlog.protocol.messages import Fields
from raftlog.protocol.produce import Topic
from raftlog.server.handlers.produce import NO_TRANSACTIONS, ProduceHandler, endpoints_of
from raftlog.server.router import Handler, RawHandler

if TYPE_CHECKING:
    pass

ZSTD_FROM: Final = 10  # Fetch: KIP-110.
LAST_PRODUCER_FROM: Final = 3  # InitProducerId: a producer says which id and epoch it had.

_HINTED: Final = frozenset({ErrorCode.not_leader_or_follower, ErrorCode.fenced_leader_epoch})
_OK: Final = ErrorCode.none

logger = logging.getLogger(__name__)


class DataHandlers:
    """Between the wire and the ReplicaManager. Nothing here waits but for it and for blocks of producer ids."""

    def __init__(
        self,
        *,
        settings: Settings,
        environment: Environment,
        replicas: ReplicaManager,
        channel: ControllerRequests,
        metadata: MetadataFollower,
    ) -> None:
        self._settings = settings
        self._replicas = replicas
        self._metadata = metadata
        self.bytes_out = 0  # Of records, to consumers.
        self.replication_bytes_out = 0  # And to followers.
        self._produce = ProduceHandler(replicas, metadata)
        self._producer_ids = ProducerIds(node_id=settings.node_id, channel=channel, metadata=metadata)

    def handlers(self) -> Mapping[int, Handler]:
        return {ApiKey.INIT_PRODUCER_ID: self.init_producer_id}

    def raw_handlers(self) -> Mapping[int, RawHandler]:
        return {ApiKey.PRODUCE: self._produce.produce, ApiKey.FETCH: self.fetch}

    # -- Fetch

    def fetch(self, context: RequestContext, body: memoryview) -> Response | Awaitable[Response]:
        """Answer Fetch v4-v18 (key 1) of consumers and followers; may wait as long as the request allows.

        Errors are per partition; FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH and FETCH_SESSION_TOPIC_ID_ERROR are
        for the whole. Within a session only what is new is told (KIP-227).
        """
        request = parse_fetch_request(body, context.api_version)
        targets = [
            FetchTarget(
                topic,
                asked.partition,
                asked.fetch_offset,
                asked.size_bytes_max,
                asked.leader_epoch,
                asked.last_fetched_epoch,
                asked.log_start_offset,
            )
            for topic, partitions in request.topics
            for asked in partitions
        ]
        session = SessionRequest(
            session_id=request.session_id,
            epoch=request.session_epoch,
            by_topic_id=context.api_version >= TOPIC_IDS_FROM,
            targets=targets,
            forgotten=[(topic, index) for topic, indexes in request.forgotten for index in indexes],
            connection=context.connection,
        )
        try:
            answer = self._replicas.sessions.fetch(self._limits(context, request), session)
        except (FetchSessionIdNotFound, InvalidFetchSessionEpoch, FetchSessionTopicIdError) as error:
            return encode_fetch_response(context.api_version, context.correlation_id, (), error_code=error.code)
        if isinstance(answer, SessionAnswer):
            return self._encode_fetched(context, request, answer)
        context.cancel_on_close = True
        # A follower sends its next fetch behind one that waits when it has more to ask for; that answers the waiting one.
        context.holds_connection = request.replica_id < 0
        return self._finish_fetch(context, request, answer)

    def _limits(self, context: RequestContext, request: FetchRequest) -> FetchLimits:
        size_bytes_max = request.size_bytes_max
        if request.replica_id < 0:
            size_bytes_max = min(size_bytes_max, self._settings.fetch_max_bytes)
        return FetchLimits(
            wait_ms_max=request.wait_ms_max,
            size_bytes_min=min(request.size_bytes_min, size_bytes_max),
            size_bytes_max=size_bytes_max,
            replica_id=request.replica_id,
            replica_epoch=request.replica_epoch,
            isolation=Isolation.READ_COMMITTED if request.isolation_level == Isolation.READ_COMMITTED else Isolation.READ_UNCOMMITTED,
            rack=request.rack_id if request.replica_id < 0 and context.api_version >= RACKS_FROM else None,
            listener=context.listener,
            reads_zstd=context.api_version >= ZSTD_FROM,
        )

    async def _finish_fetch(self, context: RequestContext, request: FetchRequest, pending: Awaitable[SessionAnswer]) -> Response:
        return self._encode_fetched(context, request, await pending)

    def _encode_fetched(self, context: RequestContext, request: FetchRequest, answer: SessionAnswer) -> Response:
        # Without transactions none is aborted; a reader of committed records is told so, another is told nothing.
        aborted = () if request.isolation_level == Isolation.READ_COMMITTED else None
        leaders: set[NodeId] = set()
        size_bytes = 0
        topics: list[tuple[Topic, list[FetchedPartition]]] = []
        for target, fetched in answer.items:
            error_code, high_watermark, last_stable_offset, log_start_offset, records, diverging, leader_id, leader_epoch, nearest = fetched
            size_bytes += len(records)
            leader = None
            if leader_id != NO_NODE and error_code in _HINTED:
                leader = (leader_id, leader_epoch)
                leaders.add(leader_id)
            if not topics or (topics[-1][0] is not target.topic and topics[-1][0] != target.topic):
                topics.append((target.topic, []))
            topics[-1][1].append(
                FetchedPartition(
                    target.partition,
                    error_code,
                    high_watermark,
                    last_stable_offset,
                    log_start_offset,
                    records,
                    aborted,
                    nearest,
                    diverging,
                    leader,
                )
            )
        if request.replica_id < 0:
            self.bytes_out += size_bytes
        else:
            self.replication_bytes_out += size_bytes
        endpoints = endpoints_of(self._metadata.image, leaders, context.listener) if leaders else []
        return encode_fetch_response(context.api_version, context.correlation_id, topics, session_id=answer.session_id, node_endpoints=endpoints)

    # -- InitProducerId

    async def init_producer_id(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer InitProducerId v0-v5 (key 22) of an idempotent producer: a new id, epoch 0. Source: KIP-98, KIP-360.

        From v3 on a producer says which id and epoch it had: one without transactions gets a new id all the same, as in Kafka.
        Raises InvalidRequest for an id without an epoch or an epoch without an id, TransactionalIdAuthorizationFailed for a
        producer that names a transactional id.
        """
        if context.api_version >= LAST_PRODUCER_FROM and (request.producer_id == NO_PRODUCER_ID) != (request.producer_epoch == NO_PRODUCER_EPOCH):
            raise InvalidRequest(f"producer id {request.producer_id} does not go with epoch {request.producer_epoch}")
        if request.transactional_id is not None:
            logger.info("client %s asks for transactions: %s", context.client_id, NO_TRANSACTIONS)
            raise TransactionalIdAuthorizationFailed(NO_TRANSACTIONS)
        return {"error_code": _OK, "producer_id": await self._producer_ids.take(), "producer_epoch": 0}
