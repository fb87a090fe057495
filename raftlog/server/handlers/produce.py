"""Produce: appends what producers bring, and answers when it is as safe as they ask for.

Produce v3-v13 (key 0). Difference to Kafka: there are no transactions yet, and what belongs to one is refused with
TRANSACTIONAL_ID_AUTHORIZATION_FAILED: of all codes the one that clients neither retry nor take for a mistake of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeAlias

from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.replicas import ReplicaManager
from raftlog.core.log.intake import MustOpen
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ApiError, ErrorCode, InvalidRecord, TransactionalIdAuthorizationFailed, UnknownTopicId, UnsupportedCompressionType
from raftlog.ids import NodeId, TopicPartition
from raftlog.network.connection import RequestContext, Response
from raftlog.protocol.batches import COMPRESSION_MASK, Compression
from raftlog.protocol.frames import MalformedFrame
from raftlog.protocol.produce import (
    NodeEndpoint,
    ProducedPartition,
    ProduceRequest,
    RecordError,
    Topic,
    encode_produce_response,
    parse_produce_request,
)
from raftlog.protocol.wire import INT32

if TYPE_CHECKING:
    from raftlog.storage.log import Appended

LEADER_HINTS_FROM: Final = 10  # The version since which a response tells who leads (KIP-951).
ZSTD_FROM: Final = 7  # KIP-110.
NO_TRANSACTIONS: Final = "transactions are not supported by this cluster"
OPENERS_MAX: Final = 2  # Threads of a process that open and compress batches; they take CPU from the event loop.

# Of the header of a record batch: bytes before what its length counts, where the length is, where its attributes are.
_LOG_OVERHEAD_BYTES: Final = 12
_LENGTH_START: Final = 8
_MAGIC_POSITION: Final = 16
_MAGIC: Final = 2
_ATTRIBUTES_LOW_BYTE: Final = 22
_TRANSACTIONAL: Final = 0x10

_OK: Final = ErrorCode.none

# Where a partition's outcome belongs in the response: a topic's list, and the index in it.
_Place: TypeAlias = tuple[list[ProducedPartition], int]
_ProducedTopics: TypeAlias = list[tuple[Topic, list[ProducedPartition]]]

# An append that waits for its acks.
_Waiting: TypeAlias = "tuple[_Place, TopicPartition, asyncio.Future[Appended]]"
# A batch that is opened elsewhere before it is appended.
_Late: TypeAlias = tuple[_Place, TopicPartition, MustOpen]

_openers: Final = ThreadPoolExecutor(OPENERS_MAX, thread_name_prefix="raftlog-opener")

logger = logging.getLogger(__name__)


class ProduceHandler:
    """Between the wire and the ReplicaManager."""

    def __init__(self, replicas: ReplicaManager, metadata: MetadataFollower) -> None:
        self._replicas = replicas
        self._metadata = metadata

    def produce(self, context: RequestContext, body: memoryview) -> Response | Awaitable[Response]:
        """Answer Produce v3-v13 (key 0); errors are per partition. With acks 0 and 1 it is done when this returns, but for
        large batches whose topic wants another codec: those are converted by threads first.

        With acks=0 nobody hears of an error, so it closes the connection: the client then asks for metadata, as with Kafka.
        """
        request = parse_produce_request(body, context.api_version)
        topics: _ProducedTopics = []
        waiting: list[_Waiting] = []
        late: list[_Late] = []
        for topic, partitions in request.topics:
            outcomes: list[ProducedPartition] = []
            topics.append((topic, outcomes))
            for index, records in partitions:
                try:
                    name = self._name(topic, index)
                    appended = self._append(name, request, records, context.api_version)
                except MustOpen as must_open:
                    late.append(((outcomes, len(outcomes)), name, must_open))
                    outcomes.append(ProducedPartition(index, _OK))
                    continue
                except Exception as error:
                    outcomes.append(self._refused(topic, index, error))
                    continue
                if isinstance(appended, asyncio.Future):
                    waiting.append(((outcomes, len(outcomes)), name, appended))
                    outcomes.append(ProducedPartition(index, _OK))
                else:
                    outcomes.append(self._produced(name, appended))
        if late:
            context.holds_connection = True  # Until they are appended: what comes behind may continue their sequence.
            return self._append_late(context, request, topics, waiting, late)
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

    def _append(self, name: TopicPartition, request: ProduceRequest, records: memoryview | None, version: int) -> Appended | asyncio.Future[Appended]:
        if records is None or len(records) <= _ATTRIBUTES_LOW_BYTE:
            raise InvalidRecord("a produce request must hold one record batch per partition, and this holds none")
        if records[_MAGIC_POSITION] != _MAGIC:  # Other formats have something else in those places; the log refuses them.
            return self._replicas.append(name, records, acks=request.acks, timeout_ms=request.timeout_ms)
        attributes = records[_ATTRIBUTES_LOW_BYTE]
        if request.transactional_id is not None or attributes & _TRANSACTIONAL:
            raise TransactionalIdAuthorizationFailed(NO_TRANSACTIONS)
        if version < ZSTD_FROM and attributes & COMPRESSION_MASK == Compression.ZSTD:
            raise UnsupportedCompressionType(f"Produce requests with version {version} are not allowed to use ZStandard compression")
        size_bytes = INT32.unpack_from(records, _LENGTH_START)[0] + _LOG_OVERHEAD_BYTES
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
        record_errors = [RecordError(*item) for item in error.record_errors]
        return ProducedPartition(index, error.code, error_message=str(error) or None, record_errors=record_errors, leader=leader)

    async def _append_late(
        self, context: RequestContext, request: ProduceRequest, topics: _ProducedTopics, waiting: list[_Waiting], late: Sequence[_Late]
    ) -> Response:
        """Append what must be opened before, then answer. The other appends of the request are done."""
        loop = asyncio.get_running_loop()
        for place, name, must_open in late:
            outcomes, index = place
            try:
                records = await loop.run_in_executor(_openers, must_open.open)
                appended = self._replicas.append(name, records, acks=request.acks, timeout_ms=request.timeout_ms, opened=True)
            except Exception as error:
                outcomes[index] = self._refused(name.topic, name.partition, error)
                continue
            if isinstance(appended, asyncio.Future):
                waiting.append((place, name, appended))
            else:
                outcomes[index] = self._produced(name, appended)
        context.release_connection()
        if waiting:
            return await self._wait_for_acks(context, topics, waiting)
        if request.acks == 0:
            _check_unacknowledged(topics)
            return None
        return [self._encode_produced(context, topics)]

    def _wait_for_acks(self, context: RequestContext, topics: _ProducedTopics, waiting: Sequence[_Waiting]) -> Awaitable[Response]:
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
                endpoints = endpoints_of(self._metadata.image, leaders, context.listener)
        return encode_produce_response(context.api_version, context.correlation_id, topics, node_endpoints=endpoints)


def endpoints_of(image: MetadataImage, node_ids: set[NodeId], listener: str) -> list[NodeEndpoint]:
    """Where clients of this listener reach those nodes."""
    brokers = image.brokers
    found: list[NodeEndpoint] = []
    for node_id in sorted(node_ids):
        broker = brokers.get(node_id)
        endpoint = broker.endpoints.get(listener) if broker is not None else None
        if broker is not None and endpoint is not None:
            found.append((node_id, endpoint.host, endpoint.port, broker.rack))
    return found


def _check_unacknowledged(topics: _ProducedTopics) -> None:
    for topic, outcomes in topics:
        for outcome in outcomes:
            if outcome.error_code:
                reason = ErrorCode(outcome.error_code).name
                raise MalformedFrame(f"Produce with acks=0 to {str(topic)!r}, partition {outcome.partition}, failed: {reason}")
