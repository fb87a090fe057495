"""Asks the controller for changes of ISRs (AlterPartition v3): one request under way at a time, all that is pending in it."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, Protocol

from raftlog.broker.partition import Partition
from raftlog.core.replication.leader import IsrChange, Verdict
from raftlog.errors import ApiError, ErrorCode, RequestTimedOut
from raftlog.ids import BrokerEpoch, NodeId, TopicId

ALTER_PARTITION: Final = 56
REQUEST_TIMEOUT_MS: Final = 10_000
RETRY_PAUSE_MS: Final = 50
CHANGES_PER_REQUEST_MAX: Final = 2000

logger = logging.getLogger(__name__)


class ControllerRequests(Protocol):
    """What is needed of `broker.channel.ControllerChannel`."""

    async def request(self, api_key: int, fields: dict[str, Any], *, timeout_ms: int) -> Any:
        """The active controller's answer. Raises RequestTimedOut when none answered in time."""


class IsrChanges:
    """The queue of changes. A task exists only while something is pending."""

    def __init__(
        self,
        controller: ControllerRequests,
        node_id: NodeId,
        *,
        broker_epoch: Callable[[], BrokerEpoch],
        on_settled: Callable[[Partition], None],
    ) -> None:
        """`on_settled` is called after each change that was committed or given up: the high watermark may move."""
        self._controller = controller
        self._node_id = node_id
        self._broker_epoch = broker_epoch
        self._on_settled = on_settled
        self._pending: dict[Partition, IsrChange] = {}  # At most one per partition, by LeaderState's rule.
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def submit(self, partition: Partition, change: IsrChange) -> None:
        if self._closed:
            return
        self._pending[partition] = change
        if self._task is None:
            # It begins at the loop's next turn, so what one round of fetches causes goes out together.
            self._task = asyncio.get_running_loop().create_task(self._run())

    def abandon(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        task = self._task
        self.abandon()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._pending:
                batch = dict(list(self._pending.items())[:CHANGES_PER_REQUEST_MAX])
                for partition in batch:
                    del self._pending[partition]
                retry = await self._ask(batch)
                if retry:
                    for partition, change in retry.items():
                        self._pending.setdefault(partition, change)
                    await asyncio.sleep(RETRY_PAUSE_MS / 1000)
                    self._drop_stale()
        finally:
            self._task = None

    def _drop_stale(self) -> None:
        for partition, change in list(self._pending.items()):
            if partition.leading is None or partition.leading.pending is not change:
                del self._pending[partition]

    async def _ask(self, batch: dict[Partition, IsrChange]) -> dict[Partition, IsrChange]:
        """Ask for a batch; what must be asked again."""
        try:
            answer = await self._controller.request(ALTER_PARTITION, self._request(batch), timeout_ms=REQUEST_TIMEOUT_MS)
        except RequestTimedOut:
            return batch
        except ApiError as error:
            logger.warning("AlterPartition failed: %s", error)
            return batch
        if answer.error_code != ErrorCode.none:
            logger.info("AlterPartition was refused: %s", ErrorCode(answer.error_code).name)
            return batch
        answers = {(topic.topic_id, item.partition_index): item for topic in answer.topics for item in topic.partitions}
        retry = {}
        for partition, change in batch.items():
            item = answers.get((partition.topic_id, partition.name.partition))
            if self._settle(partition, change, item) is Verdict.RETRY:
                retry[partition] = change
        return retry

    def _settle(self, partition: Partition, change: IsrChange, item: Any) -> Verdict | None:
        leading = partition.leading
        if leading is None or leading.pending is not change:
            return None  # A record overtook the answer.
        code = ErrorCode.request_timed_out if item is None else ErrorCode(item.error_code)
        if code == ErrorCode.none:
            leading.change_committed(change, leader_epoch=item.leader_epoch, partition_epoch=item.partition_epoch, isr=item.isr)
            self._on_settled(partition)
            return None
        verdict = leading.change_refused(change, code)
        if verdict is Verdict.RESET:
            self._on_settled(partition)
        if verdict is not Verdict.AWAIT_METADATA:
            logger.info("%s: change of the ISR to %s was refused: %s", partition.name, [member for member, _ in change.isr], code.name)
        return verdict

    def _request(self, batch: dict[Partition, IsrChange]) -> dict[str, Any]:
        topics: dict[TopicId, list[dict[str, Any]]] = defaultdict(list)
        for partition, change in batch.items():
            topics[partition.topic_id].append(
                {
                    "partition_index": partition.name.partition,
                    "leader_epoch": change.leader_epoch,
                    "new_isr": tuple(member for member, _ in change.isr),
                    "new_isr_with_epochs": tuple({"broker_id": member, "broker_epoch": epoch} for member, epoch in change.isr),
                    "leader_recovery_state": 0,  # Whoever leads serves: recovered.
                    "partition_epoch": change.partition_epoch,
                }
            )
        return {
            "broker_id": self._node_id,
            "broker_epoch": self._broker_epoch(),
            "topics": tuple({"topic_id": topic_id, "partitions": tuple(items)} for topic_id, items in topics.items()),
        }
