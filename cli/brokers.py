"""A cluster over the wire: each question goes to the broker that has the answer, and again where that has just changed.

For what confluent-kafka's AdminClient lacks, or does not say in full. Works with any Kafka cluster: versions are negotiated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from raftlog.ids import TopicPartition

from .errors import CliError, Refused, Unreachable
from .session import RETRY_PAUSE_S, Session
from .wire import METADATA, WireClient, check

if TYPE_CHECKING:
    from raftlog.protocol.messages import Fields

FIND_COORDINATOR: Final = 10
GROUP_KEY_TYPE: Final = 0
SERVER_SHARE: Final = 0.8

# LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, NOT_CONTROLLER,
# KAFKA_STORAGE_ERROR, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, OFFSET_NOT_AVAILABLE
PASSING_CODES: Final = frozenset({5, 6, 14, 15, 16, 41, 56, 74, 75, 78})
NO_PARTITION: Final = Refused(3, "no such partition")
NO_LEADER: Final = Refused(5, "no leader at the moment")

T = TypeVar("T")


class Brokers:
    """Connections to the brokers of one cluster, opened when they are first needed and kept until `close`."""

    def __init__(self, session: Session) -> None:
        self.timeout_s = session.timeout_s
        self._session = session
        self._clients: dict[int | None, WireClient] = {}  # None: the bootstrap server that answered.
        self._addresses: dict[int, tuple[str, int]] = {}

    def __enter__(self) -> Brokers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for node_id in list(self._clients):
            self._forget(node_id)

    @property
    def timeout_ms(self) -> int:
        """What requests with a time-out of their own are given: so much less that the server's word on it arrives in time."""
        return max(1, int(self.timeout_s * 1000 * SERVER_SHARE))

    def ask(
        self, api_key: int, fields: Mapping[str, Any], *, node_id: int | None = None, version_min: int = 0, version_max: int | None = None
    ) -> Fields:
        """The answer of one broker, of any one when `node_id` is None. Raises Unreachable, CliError."""
        try:
            return self.client(node_id).request(api_key, fields, version_min=version_min, version_max=version_max)
        except Unreachable:
            self._forget(node_id)
            raise

    def client(self, node_id: int | None = None) -> WireClient:
        """The connection to one broker, to any one when `node_id` is None. Raises Unreachable, CliError."""
        client = self._clients.get(node_id)
        if client is None:
            address = self._session.reach() if node_id is None else self._address(node_id)
            client = self._clients[node_id] = WireClient(*address, timeout_s=self.timeout_s)
        return client

    def metadata(self, topics: Iterable[str] | None = None) -> Fields:
        """Metadata (key 3) of these topics, of all when None; a topic that does not exist is not created by asking."""
        named = None if topics is None else [{"name": name} for name in topics]
        answer = self.ask(METADATA, {"topics": named, "allow_auto_topic_creation": False})
        self._addresses = {broker.node_id: (broker.host, broker.port) for broker in answer.brokers}
        return answer

    def node_ids(self) -> list[int]:
        """The brokers that serve at the moment."""
        return sorted(broker.node_id for broker in self.metadata(()).brokers)

    def ask_controller(self, api_key: int, fields: Mapping[str, Any], *, version_min: int = 0) -> Fields:
        """The answer of the broker that metadata names as the controller: in KRaft one that forwards, before it the controller itself."""

        def ask() -> Fields:
            controller = self.metadata(()).controller_id
            answer = self.ask(api_key, fields, node_id=controller if controller >= 0 else None, version_min=version_min)
            if getattr(answer, "error_code", 0) in PASSING_CODES:
                check(answer.error_code, getattr(answer, "error_message", None))
            return answer

        return self.patiently(ask)

    def coordinator(self, group: str) -> tuple[int, str, int]:
        """Id, host and port of a group's coordinator. Raises Refused, Unreachable."""
        answer = self.ask(FIND_COORDINATOR, {"key": group, "key_type": GROUP_KEY_TYPE, "coordinator_keys": [group]})
        found = answer.coordinators[0] if getattr(answer, "coordinators", ()) else answer
        check(found.error_code, found.error_message)
        self._addresses[found.node_id] = (found.host, found.port)
        return found.node_id, found.host, found.port

    def ask_coordinator(self, group: str, api_key: int, fields: Mapping[str, Any], *, version_max: int | None = None) -> Fields:
        """The answer of a group's coordinator; `check` it inside `patiently`, for it may just be moving."""
        return self.ask(api_key, fields, node_id=self.coordinator(group)[0], version_max=version_max)

    def patiently(self, ask: Callable[[], T]) -> T:
        """What `ask` returns, asked again within the time-out while leaders, coordinators or connections are changing."""
        deadline_s = time.monotonic() + self.timeout_s
        while True:
            try:
                return ask()
            except (Unreachable, Refused) as error:
                if not is_passing(error) or time.monotonic() + RETRY_PAUSE_S >= deadline_s:
                    raise
            time.sleep(RETRY_PAUSE_S)

    def ask_leaders(
        self,
        partitions: Iterable[TopicPartition],
        ask: Callable[[int, Sequence[TopicPartition]], Mapping[TopicPartition, T]],
        *,
        patience_s: float | None = None,
    ) -> dict[TopicPartition, T | CliError]:
        """What the leaders say of each partition: `ask` puts the question to one node about those that it leads.

        A partition that is just changing its leader is asked for again for `patience_s`, for the time-out when None.
        """
        deadline_s = time.monotonic() + (self.timeout_s if patience_s is None else min(patience_s, self.timeout_s))
        outcomes: dict[TopicPartition, T | CliError] = {}
        pending = list(partitions)
        while pending:
            outcomes.update(self._ask_leaders_once(pending, ask))
            pending = [partition for partition in pending if is_passing(outcomes[partition])]
            if pending and time.monotonic() + RETRY_PAUSE_S >= deadline_s:
                break
            if pending:
                time.sleep(RETRY_PAUSE_S)
        return outcomes

    def _ask_leaders_once(
        self, partitions: Sequence[TopicPartition], ask: Callable[[int, Sequence[TopicPartition]], Mapping[TopicPartition, T]]
    ) -> dict[TopicPartition, T | CliError]:
        outcomes: dict[TopicPartition, T | CliError] = {}
        led: dict[int, list[TopicPartition]] = {}
        leaders = self._leaders({partition.topic for partition in partitions})
        for partition in partitions:
            leader = leaders.get(partition, NO_PARTITION)
            if isinstance(leader, CliError):
                outcomes[partition] = leader
            else:
                led.setdefault(leader, []).append(partition)
        for node_id, items in led.items():
            try:
                outcomes.update(ask(node_id, items))
            except Unreachable as error:
                outcomes.update(dict.fromkeys(items, error))
        return outcomes

    def _leaders(self, topics: Iterable[str]) -> dict[TopicPartition, int | CliError]:
        answer = self.patiently(lambda: self.metadata(sorted(topics)))
        return {
            TopicPartition(topic.name, partition.partition_index): partition.leader_id if partition.leader_id in self._addresses else NO_LEADER
            for topic in answer.topics
            for partition in topic.partitions
        }

    def _address(self, node_id: int) -> tuple[str, int]:
        if node_id not in self._addresses:
            self.metadata(())
        if node_id not in self._addresses:
            raise CliError(f"no broker {node_id} at the moment; there are {', '.join(map(str, sorted(self._addresses)))}")
        return self._addresses[node_id]

    def _forget(self, node_id: int | None) -> None:
        client = self._clients.pop(node_id, None)
        if client is not None:
            client.close()


def is_passing(outcome: object) -> bool:
    """Whether this is a problem that time may solve."""
    return isinstance(outcome, Unreachable) or (isinstance(outcome, Refused) and outcome.code in PASSING_CODES)
