"""What a client asks of the cluster itself: Metadata, DescribeCluster, DescribeTopicPartitions, from this broker's image."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from raftlog.broker.auto_topics import AutoTopics
from raftlog.broker.metadata import MetadataFollower
from raftlog.config import Settings
from raftlog.core.controller.topics import check_topic_name
from raftlog.core.metadata.image import MetadataDelta, MetadataImage, Partition, Topic
from raftlog.environment import Clock
from raftlog.errors import ErrorCode, InvalidRequest, InvalidTopic, RequestTimedOut
from raftlog.ids import INTERNAL_TOPICS, NO_NODE, NodeId, TopicName
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields
from raftlog.server.router import Handler

NO_TOPIC_ID: Final = UUID(int=0)
BROKERS: Final = 1  # DescribeCluster's endpoint types.
CONTROLLERS: Final = 2

LISTED_AFTER_FENCING_MS: Final = 5_000
SUSPECTED_MS: Final = 500  # A dead node is fenced before that; one that is not is no longer suspected.

# Bit sets over AclOperation's numbers: what may be done to a topic and to the cluster, all of it while nothing is authorized.
TOPIC_OPERATIONS: Final = sum(1 << operation for operation in (3, 4, 5, 6, 7, 8, 10, 11))
CLUSTER_OPERATIONS: Final = sum(1 << operation for operation in (5, 7, 8, 9, 10, 11, 12))
OPERATIONS_NOT_ASKED_FOR: Final = -(2**31)


class ClusterHandlers:
    """Answers from the newest image; only Metadata may set something going: the creation of a topic."""

    def __init__(
        self,
        settings: Settings,
        *,
        cluster_id: str,
        metadata: MetadataFollower,
        auto_topics: AutoTopics,
        chance: random.Random,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._suspects: dict[NodeId, int] = {}  # When the connection to each was lost, in ms.
        self._recently_fenced = RecentlyFenced(clock)
        metadata.subscribe(self._recently_fenced.follow)
        self._cluster_id = cluster_id
        self._metadata = metadata
        self._auto_topics = auto_topics
        self._chance = chance

    def handlers(self) -> Mapping[int, Handler]:
        return {
            ApiKey.METADATA: self.metadata,
            ApiKey.DESCRIBE_CLUSTER: self.describe_cluster,
            ApiKey.DESCRIBE_TOPIC_PARTITIONS: self.describe_topic_partitions,
        }

    def suspect(self, node_id: NodeId) -> None:
        """A connection to this node was lost: should its process be dead, its partitions are about to get other leaders."""
        self._suspects[node_id] = self._clock.monotonic_ms()

    def metadata(self, context: RequestContext, request: Fields) -> Mapping[str, Any] | Awaitable[Mapping[str, Any]]:
        """Answer Metadata v0-v13 (key 3): unfenced brokers (and those fenced just now), and the topics asked for.

        `controller_id` is a random live broker, as in KRaft: clients send it what the broker forwards.
        Source: KIP-4, KIP-516, KIP-700; an unknown topic is created where the client and auto.create.topics.enable allow it.
        """
        if self._suspects and (wait_ms := self._suspicion_ms()) > 0:
            return self._metadata_once_settled(context, request, wait_ms)
        return self._metadata_now(context, request)

    def _suspicion_ms(self) -> int:
        """How long a suspect that is not fenced is still waited for; 0 when there is none."""
        since_ms = self._clock.monotonic_ms() - SUSPECTED_MS
        self._suspects = {node_id: lost_ms for node_id, lost_ms in self._suspects.items() if lost_ms > since_ms and not self._is_fenced(node_id)}
        return max(self._suspects.values(), default=since_ms) - since_ms

    def _is_fenced(self, node_id: NodeId) -> bool:
        broker = self._metadata.image.brokers.get(node_id)
        return broker is None or broker.fenced

    async def _metadata_once_settled(self, context: RequestContext, request: Fields, wait_ms: int) -> Mapping[str, Any]:
        """Answer when the suspects are fenced, or were suspected for nothing.

        A client asks at the moment its leader dies. Told of the dead leader once more, it would ask again a second later.
        """
        suspects = tuple(self._suspects)
        with contextlib.suppress(RequestTimedOut):
            await self._metadata.wait_for(lambda _: all(map(self._is_fenced, suspects)), timeout_ms=wait_ms)
        return self._metadata_now(context, request)

    def _metadata_now(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        image = self._metadata.image
        version = context.api_version
        wants_all = request.topics is None or (version == 0 and not request.topics)
        if wants_all:
            topics = [_topic(image, image.topics[name], context.listener, version) for name in sorted(image.topics)]
        else:
            topics = self._topics_asked_for(image, request, context.listener, version)
        if request.include_topic_authorized_operations:
            for topic in topics:
                topic["topic_authorized_operations"] = TOPIC_OPERATIONS
        live = _live_brokers(image, context.listener)
        return {
            "brokers": live + self._recently_fenced.listed(image, context.listener),
            "cluster_id": self._cluster_id,
            "controller_id": self._random_broker(live),
            "topics": topics,
            "cluster_authorized_operations": (
                CLUSTER_OPERATIONS if getattr(request, "include_cluster_authorized_operations", False) else OPERATIONS_NOT_ASKED_FOR
            ),
        }

    def _topics_asked_for(self, image: MetadataImage, request: Fields, listener: str, version: int) -> list[dict[str, Any]]:
        by_id = [topic.topic_id for topic in request.topics if getattr(topic, "topic_id", NO_TOPIC_ID) not in (None, NO_TOPIC_ID)]
        if version < 12 and (by_id or any(topic.name is None for topic in request.topics)):
            raise InvalidRequest(f"Metadata v{version} names topics by name, not by id")
        answers = []
        names: list[TopicName] = []
        for topic_id in dict.fromkeys(by_id):
            name = image.topic_names.get(topic_id)
            if name is None:
                answers.append({"error_code": ErrorCode.unknown_topic_id, "name": None, "topic_id": topic_id, "partitions": []})
            else:
                names.append(name)
        if not by_id:
            names = list(dict.fromkeys(topic.name for topic in request.topics))
        missing = []
        for name in names:
            topic = image.topics.get(name)
            if topic is not None:
                answers.append(_topic(image, topic, listener, version))
                continue
            code = _why_missing(name)
            if code is ErrorCode.unknown_topic_or_partition:
                missing.append(name)
            answers.append(
                {
                    "error_code": code,
                    "name": name,
                    "topic_id": NO_TOPIC_ID,
                    "is_internal": name in INTERNAL_TOPICS,
                    "partitions": [],
                }
            )
        if missing and request.allow_auto_topic_creation and self._settings.auto_create_topics_enable:
            self._auto_topics.create(missing)
        return answers

    def describe_cluster(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeCluster v0-v2 (key 60) for brokers; controllers answer for themselves. Source: KIP-700, KIP-919, KIP-1073."""
        if request.endpoint_type != BROKERS:
            return {
                "error_code": ErrorCode.mismatched_endpoint_type,
                "error_message": f"the request was sent to an endpoint of type BROKER, but we wanted an endpoint of type {request.endpoint_type}",
                "endpoint_type": request.endpoint_type,
                "cluster_id": self._cluster_id,
                "brokers": [],
            }
        image = self._metadata.image
        live = _live_brokers(image, context.listener)
        brokers = [
            {"broker_id": node_id, "host": endpoint.host, "port": endpoint.port, "rack": broker.rack, "is_fenced": broker.fenced}
            for node_id, broker in sorted(image.brokers.items())
            if (endpoint := broker.endpoints.get(context.listener)) is not None and (request.include_fenced_brokers or not broker.fenced)
        ]
        return {
            "cluster_id": self._cluster_id,
            "endpoint_type": BROKERS,
            "controller_id": self._random_broker(live),
            "brokers": brokers,
            "cluster_authorized_operations": (CLUSTER_OPERATIONS if request.include_cluster_authorized_operations else OPERATIONS_NOT_ASKED_FOR),
        }

    def describe_topic_partitions(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeTopicPartitions v0 (key 75): topics in order of name, cut off at a limit with a cursor. Source: KIP-966."""
        image = self._metadata.image
        cursor = request.cursor
        asked = sorted({topic.name for topic in request.topics})
        names = asked or sorted(image.topics)
        start = 0
        if cursor is not None:
            names = [name for name in names if name >= cursor.topic_name]
            start = cursor.partition_index if names and names[0] == cursor.topic_name else 0
            if start < 0:
                raise InvalidRequest(f"cursor at partition {start}")
        room = max(1, min(request.response_partition_limit, self._settings.max_request_partition_size_limit))
        topics: list[dict[str, Any]] = []
        next_cursor: dict[str, Any] | None = None
        for name in names:
            if room == 0:
                next_cursor = {"topic_name": name, "partition_index": 0}
                break
            topic = image.topics.get(name)
            if topic is None:
                topics.append({"error_code": _why_missing(name), "name": name, "topic_id": NO_TOPIC_ID, "partitions": []})
                continue
            numbers = sorted(topic.partitions)[start:]
            partitions = []
            for number in numbers[:room]:
                partition = topic.partitions[number]
                answer = _partition(image, number, partition, context.listener)
                answer["error_code"] = ErrorCode.none
                partitions.append({**answer, "eligible_leader_replicas": partition.elr, "last_known_elr": partition.last_known_elr})
            topics.append(_topic_header(topic) | {"partitions": partitions, "topic_authorized_operations": TOPIC_OPERATIONS})
            if len(numbers) > room:
                next_cursor = {"topic_name": name, "partition_index": numbers[room]}
                break
            room -= len(numbers)
            start = 0
        return {"topics": topics, "next_cursor": next_cursor}

    def _random_broker(self, brokers: list[dict[str, Any]]) -> NodeId:
        if not brokers:
            return NO_NODE
        node_id: NodeId = self._chance.choice(brokers)["node_id"]
        return node_id


class RecentlyFenced:
    """The brokers that Metadata lists a little longer than they live.

    When the answer that names a partition's new leader no longer lists the old one, librdkafka 2.12 and later removes the
    old broker together with the partition that is just leaving it, and needs another second to look for a leader again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._fenced_ms: dict[NodeId, int] = {}
        self._unfenced: frozenset[NodeId] = frozenset()

    def follow(self, image: MetadataImage, delta: MetadataDelta) -> None:
        """Notice who is fenced in `image` and was not before."""
        if not delta.changed_brokers:
            return
        unfenced = frozenset(node_id for node_id, broker in image.brokers.items() if not broker.fenced)
        now_ms = self._clock.monotonic_ms()
        self._fenced_ms.update(dict.fromkeys(self._unfenced - unfenced, now_ms))
        self._unfenced = unfenced

    def listed(self, image: MetadataImage, listener: str) -> list[dict[str, Any]]:
        """Those fenced for less than LISTED_AFTER_FENCING_MS."""
        if not self._fenced_ms:
            return []
        since_ms = self._clock.monotonic_ms() - LISTED_AFTER_FENCING_MS
        self._fenced_ms = {node_id: fenced_ms for node_id, fenced_ms in self._fenced_ms.items() if fenced_ms > since_ms}
        return [entry for entry in _brokers(image, listener, fenced=True) if entry["node_id"] in self._fenced_ms]


def _why_missing(name: TopicName) -> ErrorCode:
    try:
        check_topic_name(name)
    except InvalidTopic as error:
        return error.code
    return ErrorCode.unknown_topic_or_partition


def _live_brokers(image: MetadataImage, listener: str) -> list[dict[str, Any]]:
    """The unfenced brokers that have this listener."""
    return _brokers(image, listener, fenced=False)


def _brokers(image: MetadataImage, listener: str, *, fenced: bool) -> list[dict[str, Any]]:
    return [
        {"node_id": node_id, "host": endpoint.host, "port": endpoint.port, "rack": broker.rack}
        for node_id, broker in sorted(image.brokers.items())
        if broker.fenced is fenced and (endpoint := broker.endpoints.get(listener)) is not None
    ]


def _topic_header(topic: Topic) -> dict[str, Any]:
    return {"error_code": ErrorCode.none, "name": topic.name, "topic_id": topic.topic_id, "is_internal": topic.name in INTERNAL_TOPICS}


def _topic(image: MetadataImage, topic: Topic, listener: str, version: int) -> dict[str, Any]:
    partitions = [_partition(image, number, partition, listener, version) for number, partition in sorted(topic.partitions.items())]
    return _topic_header(topic) | {"partitions": partitions}


def _partition(image: MetadataImage, number: int, partition: Partition, listener: str, version: int = 13) -> dict[str, Any]:
    """One partition. Version 0 leaves out brokers that are gone and says so; later ones list them as offline replicas."""
    code = ErrorCode.none
    leader = partition.leader
    broker = image.brokers.get(leader)
    if broker is None or listener not in broker.endpoints:
        leader = NO_NODE
        code = ErrorCode.listener_not_found if broker is not None and version >= 6 else ErrorCode.leader_not_available
    offline = [node_id for node_id in partition.replicas if not _reachable(image, node_id, listener)]
    replicas: Iterable[NodeId] = partition.replicas
    isr: Iterable[NodeId] = partition.isr
    if version == 0 and offline:
        replicas = [node_id for node_id in partition.replicas if node_id not in offline]
        isr = [node_id for node_id in partition.isr if node_id not in offline]
        code = ErrorCode.replica_not_available if code is ErrorCode.none else code
    return {
        "error_code": code,
        "partition_index": number,
        "leader_id": leader,
        "leader_epoch": partition.leader_epoch,
        "replica_nodes": replicas,
        "isr_nodes": isr,
        "offline_replicas": offline,
    }


def _reachable(image: MetadataImage, node_id: NodeId, listener: str) -> bool:
    broker = image.brokers.get(node_id)
    return broker is not None and not broker.fenced and listener in broker.endpoints
