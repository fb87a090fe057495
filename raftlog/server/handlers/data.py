"""Produce, Fetch and InitProducerId: what producers and fetchers do all day.

Produce v3-v13, Fetch v4-v18, InitProducerId v0-v5. Difference to Kafka: there are no transactions yet, and what belongs to
one is refused with TRANSACTIONAL_ID_AUTHORIZATION_FAILED: of all codes the one that clients neither retry nor take for a
mistake of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.producer_ids import ControllerRequests, ProducerIds
from raftlog.broker.reads import FetchLimits, FetchTarget, Isolation
from raftlog.broker.replicas import ReplicaManager
from raftlog.broker.sessions import SessionAnswer, SessionRequest
from raftlog.config import Settings
from raftlog.environment import Environment
from raftlog.errors import (
    ApiError,
    ErrorCode,
    FetchSessionIdNotFound,
    FetchSessionTopicIdError,
    InvalidFetchSessionEpoch,
    InvalidRecord,
    TransactionalIdAuthorizationFailed,
    UnknownTopicId,
)
from raftlog.ids import NO_NODE, NodeId, TopicPartition
from raftlog.network.connection import RequestContext, Response
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.fetch import TOPIC_IDS_FROM, FetchedPartition, FetchRequest, encode_fetch_response, parse_fetch_request
from raftlog.protocol.frames import MalformedFrame
from raftlog.protocol.messages import Fields
from raftlog.protocol.produce import NodeEndpoint, ProducedPartition, ProduceRequest, Topic, encode_produce_response, parse_produce_request
from raftlog.server.router import Handler, RawHandler

if TYPE_CHECKING:
    from raftlog.storage.log import Appended

LEADER_HINTS_FROM: Final = 10  # Produce: the version since which a response tells who leads (KIP-951).
NO_TRANSACTIONS: Final = "transactions are not supported by this cluster"

# Of the header of a record batch: bytes before what its length counts, where the length is, where its attributes are.
_LOG_OVERHEAD_BYTES: Final = 12
_LENGTH_START: Final = 8
_MAGIC_POSITION: Final = 16
_MAGIC: Final = 2
_ATTRIBUTES_LOW_BYTE: Final = 22
_TRANSACTIONAL: Final = 0x10

_HINTED: Final = frozenset({ErrorCode.not_leader_or_follower, ErrorCode.fenced_leader_epoch})
_OK: Final = ErrorCode.none

# Where a partition's outcome belongs in the response: a topic's list, and the index in it.
_Place: TypeAlias = tuple[list[ProducedPartition], int]
_ProducedTopics: TypeAlias = list[tuple[Topic, list[ProducedPartition]]]

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
        self._producer_ids = ProducerIds(node_id=settings.node_id, channel=channel, metadata=metadata)

    def handlers(self) -> Mapping[int, Handler]:
        return {ApiKey.INIT_PRODUCER_ID: self.init_producer_id}

    def raw_handlers(self) -> Mapping[int, RawHandler]:
        return {ApiKey.PRODUCE: self.produce, ApiKey.FETCH: self.fetch}

    # -- Produce

    def produce(self, context: RequestContext, body: memoryview) -> Response | Awaitable[Response]:
        """Answer Produce v3-v13 (key 0); errors are per partition. With acks 0 and 1 it is done when this returns.

        With acks=0 nobody hears of an error, so it closes the connection: the client then asks for metadata, as with Kafka.
        """
        request = parse_produce_request(body, context.api_version)
        topics: _ProducedTopics = []
        waiting: list[tuple[_Place, TopicPartition, asyncio.Future[Appended]]] = []
        for topic, partitions in request.topics:
            outcomes: list[ProducedPartition] = []
            topics.append((topic, outcomes))
            for index, records in partitions:
                try:
                    name = self._name(topic, index)
                    appended = self._append(name, request, records)
                except Exception as error:
                    outcomes.append(self._refused(topic, index, error))
                    continue
                if isinstance(appended, asyncio.Future):
                    waiting.append(((outcomes, len(outcomes)), name, appended))
                    outcomes.append(ProducedPartition(index, _OK))
                else:
                    outcomes.append(self._produced(name, appended))
        if waiting:
            return self._wait_for_acks(context, topics, waiting)
        if request.acks == 0:
            _check_unacknowledged(topics)
            return None
        return [self._encode_produced(context, topics)]

    def _name(self, topic: Topic, index: int) -> TopicPartition:
        if isinstance(topic, str):
            return TopicPartition(topic, index)
        name = self._replicas.topic_name(topic)
        if name is None:
            raise UnknownTopicId(f"no topic has id {topic}")
        return TopicPartition(name, index)

    def _append(self, name: TopicPartition, request: ProduceRequest, records: memoryview | None) -> Appended | asyncio.Future[Appended]:
        if records is None or len(records) <= _ATTRIBUTES_LOW_BYTE:
            raise InvalidRecord("a produce request must hold one record batch per partition, and this holds none")
        if records[_MAGIC_POSITION] != _MAGIC:  # Other formats have something else in those places; the log refuses them.
            return self._replicas.append(name, records, acks=request.acks, timeout_ms=request.timeout_ms)
        if request.transactional_id is not None or records[_ATTRIBUTES_LOW_BYTE] & _TRANSACTIONAL:
            raise TransactionalIdAuthorizationFailed(NO_TRANSACTIONS)
        size_bytes = int.from_bytes(records[_LENGTH_START:_LOG_OVERHEAD_BYTES], "big", signed=True) + _LOG_OVERHEAD_BYTES
        if _ATTRIBUTES_LOW_BYTE < size_bytes < len(records):
            raise InvalidRecord("a produce request must hold exactly one record batch per partition")
        return self._replicas.append(name, records, acks=request.acks, timeout_ms=request.timeout_ms)

    def _produced(self, name: TopicPartition, appended: Appended) -> ProducedPartition:
        # By its name again: while the batch waited for its acks, the partition may have gone.
        try:
            log_start_offset = self._replicas.log_start_offset(name)
        except ApiError:
            log_start_offset = -1
        return ProducedPartition(name.partition, _OK, appended.first_offset, appended.log_append_time_ms, log_start_offset)

    def _refused(self, topic: Topic, index: int, error: BaseException) -> ProducedPartition:
        if not isinstance(error, ApiError):
            logger.error("an append to %s-%d failed", topic, index, exc_info=error)
            return ProducedPartition(index, ErrorCode.unknown_server_error)
        leader = None
        if error.code is ErrorCode.not_leader_or_follower:
            leader = self._replicas.leader_of(self._name(topic, index))
        return ProducedPartition(index, error.code, error_message=str(error) or None, leader=leader)

    def _wait_for_acks(
        self,
        context: RequestContext,
        topics: _ProducedTopics,
        waiting: Sequence[tuple[_Place, TopicPartition, asyncio.Future[Appended]]],
    ) -> Awaitable[Response]:
        """Resolved by callbacks when the last of the appends is: no task per request."""
        context.cancel_on_close = True
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        left = len(waiting)

        def resolved(place: _Place, name: TopicPartition, future: asyncio.Future[Appended]) -> None:
            nonlocal left
            left -= 1
            outcomes, index = place
            error = asyncio.CancelledError() if future.cancelled() else future.exception()
            if error is None:
                outcomes[index] = self._produced(name, future.result())
            else:
                outcomes[index] = self._refused(name.topic, name.partition, error)
            if not left and not answer.done():
                answer.set_result([self._encode_produced(context, topics)])

        for place, name, future in waiting:
            future.add_done_callback(lambda done, place=place, name=name: resolved(place, name, done))  # type: ignore[misc]
        return answer

    def _encode_produced(self, context: RequestContext, topics: _ProducedTopics) -> bytes:
        endpoints: list[NodeEndpoint] = []
        if context.api_version >= LEADER_HINTS_FROM:
            leaders = {item.leader[0] for _, outcomes in topics for item in outcomes if item.leader is not None}
            if leaders:
                endpoints = self._endpoints(leaders, context.listener)
        return encode_produce_response(context.api_version, context.correlation_id, topics, node_endpoints=endpoints)

    def _endpoints(self, node_ids: set[NodeId], listener: str) -> list[NodeEndpoint]:
        """Where clients of this listener reach those nodes."""
        brokers = self._metadata.image.brokers
        found: list[NodeEndpoint] = []
        for node_id in sorted(node_ids):
            broker = brokers.get(node_id)
            endpoint = broker.endpoints.get(listener) if broker is not None else None
            if broker is not None and endpoint is not None:
                found.append((node_id, endpoint.host, endpoint.port, broker.rack))
        return found

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
            answer = self._replicas.sessions.fetch(self._limits(request), session)
        except (FetchSessionIdNotFound, InvalidFetchSessionEpoch, FetchSessionTopicIdError) as error:
            return encode_fetch_response(context.api_version, context.correlation_id, (), error_code=error.code)
        if isinstance(answer, SessionAnswer):
            return self._encode_fetched(context, request, answer)
        context.cancel_on_close = True
        # A follower sends its next fetch behind one that waits when it has more to ask for; that answers the waiting one.
        context.holds_connection = request.replica_id < 0
        return self._finish_fetch(context, request, answer)

    def _limits(self, request: FetchRequest) -> FetchLimits:
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
        )

    async def _finish_fetch(self, context: RequestContext, request: FetchRequest, pending: Awaitable[SessionAnswer]) -> Response:
        return self._encode_fetched(context, request, await pending)

    def _encode_fetched(self, context: RequestContext, request: FetchRequest, answer: SessionAnswer) -> Response:
        # Without transactions none is aborted; a reader of committed records is told so, another is told nothing.
        aborted = () if request.isolation_level == Isolation.READ_COMMITTED else None
        leaders: set[NodeId] = set()
        topics: list[tuple[Topic, list[FetchedPartition]]] = []
        for target, fetched in answer.items:
            error_code, high_watermark, last_stable_offset, log_start_offset, records, diverging, leader_id, leader_epoch = fetched
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
                    NO_NODE,
                    diverging,
                    leader,
                )
            )
        endpoints = self._endpoints(leaders, context.listener) if leaders else []
        return encode_fetch_response(context.api_version, context.correlation_id, topics, session_id=answer.session_id, node_endpoints=endpoints)

    # -- InitProducerId

    async def init_producer_id(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer InitProducerId v0-v5 (key 22) of an idempotent producer: a new id, epoch 0. Source: KIP-98, KIP-360.

        Raises TransactionalIdAuthorizationFailed for one that names a transactional id.
        """
        if request.transactional_id is not None:
            logger.info("client %s asks for transactions: %s", context.client_id, NO_TRANSACTIONS)
            raise TransactionalIdAuthorizationFailed(NO_TRANSACTIONS)
        return {"error_code": _OK, "producer_id": await self._producer_ids.take(), "producer_epoch": 0}


def _check_unacknowledged(topics: _ProducedTopics) -> None:
    for topic, outcomes in topics:
        for outcome in outcomes:
            if outcome.error_code:
                reason = ErrorCode(outcome.error_code).name
                raise MalformedFrame(f"Produce with acks=0 to {str(topic)!r}, partition {outcome.partition}, failed: {reason}")
