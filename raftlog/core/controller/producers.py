"""Blocks of producer ids, each given to one broker once. Source: KIP-730."""

from __future__ import annotations

from typing import Any, Final

from raftlog.core.controller.brokers import check_broker_epoch
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ApiError, ErrorCode, error_for

BLOCK_SIZE: Final = 1000
PRODUCER_ID_END: Final = 2**63 - 1


def decide_allocate_producer_ids(image: MetadataImage, request: Any) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """AllocateProducerIds v0 (key 67): the next BLOCK_SIZE ids. Raises StaleBrokerEpoch, UnknownServerError when none are left."""
    check_broker_epoch(image, request.broker_id, request.broker_epoch)
    start = image.next_producer_id
    if start > PRODUCER_ID_END - BLOCK_SIZE:
        exhausted: ApiError = error_for(ErrorCode.unknown_server_error, "Exhausted all producerIds")
        raise exhausted
    record = r.ProducerIdsRecord(broker_id=request.broker_id, broker_epoch=request.broker_epoch, next_producer_id=start + BLOCK_SIZE)
    return Decision([record], {"error_code": ErrorCode.none, "producer_id_start": start, "producer_id_len": BLOCK_SIZE})
