"""Topics and partitions: created, deleted, added. Each topic of a request succeeds or fails on its own.

Source: Kafka's ReplicationControlManager and ControllerApis, with their messages; KIP-4, KIP-195, KIP-516, KIP-525.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, Final

from raftlog.config import Settings
from raftlog.config_types import text_of
from raftlog.core.controller.placement import Chance, place
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.configs import BrokerConfigs, ConfigSource
from raftlog.core.metadata.image import MetadataImage, Partition, Topic, partition_record
from raftlog.errors import (
    ApiError,
    ErrorCode,
    InvalidConfig,
    InvalidPartitions,
    InvalidReplicaAssignment,
    InvalidReplicationFactor,
    InvalidRequest,
    InvalidTopic,
    TopicAlreadyExists,
    UnknownTopicId,
    UnknownTopicOrPartition,
    error_for,
)
from raftlog.ids import DIRECTORY_MIGRATING, DIRECTORY_UNASSIGNED, METADATA_TOPIC, RESERVED_UUIDS_MAX, NodeId, TopicId, TopicName
from raftlog.topic_config import KEYS, check, check_together

TOPIC_NAME_CHARACTERS_MAX: Final = 249
PARTITIONS_PER_REQUEST_MAX: Final = 10_000  # Kafka's bound of the records that one request may make.
COLLISION_PROBES_MAX: Final = 256  # Beyond so many spellings of a name, looking through all names is cheaper.

_LEGAL: Final = re.compile(r"[a-zA-Z0-9._-]+")


def check_topic_name(name: TopicName) -> None:
    """Raises InvalidTopic, with Kafka's message, for a name that no topic may have."""
    problem = None
    if not name:
        problem = "the empty string is not allowed"
    elif name in (".", ".."):
        problem = f"'{name}' is not allowed"
    elif len(name) > TOPIC_NAME_CHARACTERS_MAX:
        problem = f"the length of '{name}' is longer than the max allowed length {TOPIC_NAME_CHARACTERS_MAX}"
    elif not _LEGAL.fullmatch(name):
        problem = f"'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
    if problem is not None:
        raise InvalidTopic(f"Topic name is invalid: {problem}")


def decide_create_topics(image: MetadataImage, request: Any, *, settings: Settings, chance: Chance) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """CreateTopics v2-v7 (key 19), `validate_only` included. Topics of one request are placed as if created one by one."""
    counts = Counter(topic.name for topic in request.topics)
    records: list[r.MetadataRecord] = []
    results: list[dict[str, Any]] = []
    seen: set[TopicName] = set()
    working = image
    defaults = _default_configs(BrokerConfigs.of(settings, image, settings.node_id))
    for topic in request.topics:
        if topic.name in seen:
            continue
        seen.add(topic.name)
        try:
            if counts[topic.name] > 1:
                raise InvalidRequest("Duplicate topic name.")
            created, result = _create(working, topic, settings=settings, defaults=defaults, chance=chance)
        except ApiError as error:
            results.append({"name": topic.name, **_failure(error)})
            continue
        if len(records) + len(created) > PARTITIONS_PER_REQUEST_MAX:
            raise error_for(ErrorCode.policy_violation, "Excessively large number of partitions per request.")
        results.append(result)
        records.extend(created)
        working, _ = working.apply_batch(created, offset=working.offset + len(created), epoch=working.epoch)
    return Decision([] if request.validate_only else records, {"topics": results})


def _create(
    image: MetadataImage, topic: Any, *, settings: Settings, defaults: Sequence[dict[str, Any]], chance: Chance
) -> tuple[list[r.MetadataRecord], dict[str, Any]]:
    """The records of one new topic and its part of the reply; `defaults` is what it says of configs that are not given."""
    _check_new_name(image, topic.name)
    configs = _checked_configs(topic.configs)
    manual = bool(topic.assignments)
    placements = _manual_assignments(image, topic) if manual else _automatic_assignments(image, topic, settings=settings, chance=chance)
    partitions = [_new_partition(image, replicas) for replicas in placements]
    topic_id = new_uuid(chance)
    records: list[r.MetadataRecord] = [r.TopicRecord(name=topic.name, topic_id=topic_id)]
    for name, value in configs.items():
        records.append(r.ConfigRecord(resource_type=r.RESOURCE_TOPIC, resource_name=topic.name, name=name, value=value))
    records.extend(partition_record(topic_id, partition_id, partition) for partition_id, partition in enumerate(partitions))
    return records, _created(topic.name, topic_id, partitions, _effective_configs(defaults, configs))


def _created(name: TopicName, topic_id: TopicId, partitions: Sequence[Partition], configs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "topic_id": topic_id,
        "error_code": ErrorCode.none,
        "error_message": None,
        "topic_config_error_code": 0,
        "num_partitions": len(partitions),
        "replication_factor": len(partitions[0].replicas),
        "configs": configs,
    }


def describe_created(image: MetadataImage, topic: Topic, *, settings: Settings) -> dict[str, Any]:
    """What the reply to CreateTopics would have said of a topic that is there now."""
    defaults = _default_configs(BrokerConfigs.of(settings, image, settings.node_id))
    configs = _effective_configs(defaults, dict(image.topic_configs(topic.name)))
    return _created(topic.name, topic.topic_id, list(topic.partitions.values()), configs)


def _check_new_name(image: MetadataImage, name: TopicName) -> None:
    check_topic_name(name)
    if name == METADATA_TOPIC:
        raise InvalidRequest(f"Creation of internal topic {METADATA_TOPIC} is prohibited.")
    if name in image.topics:
        raise TopicAlreadyExists(f"Topic '{name}' already exists.")
    existing = _colliding(image, name)
    if existing is not None:
        raise InvalidTopic(f"Topic '{name}' collides with existing topic: {existing}")


def _colliding(image: MetadataImage, name: TopicName) -> TopicName | None:
    """A topic whose name differs only in '.' for '_' or the reverse: metrics could not tell them apart."""
    parts = re.split(r"[._]", name)
    if len(parts) == 1:
        return None
    spellings: Iterable[TopicName]
    if 2 ** (len(parts) - 1) <= COLLISION_PROBES_MAX:
        spellings = ("".join(part + mark for part, mark in zip(parts, (*marks, ""), strict=True)) for marks in product("._", repeat=len(parts) - 1))
        return next((spelling for spelling in spellings if spelling in image.topics), None)
    unified = name.replace(".", "_")
    return next((existing for existing in image.topics if existing.replace(".", "_") == unified), None)


def _checked_configs(configs: Iterable[Any]) -> dict[str, str]:
    values: dict[str, str] = {}
    nulls = [config.name for config in configs if config.value is None]
    if nulls:
        raise InvalidConfig(f"Null value not supported for topic configs: {','.join(nulls)}")
    for config in configs:
        check(config.name)(config.value)
        values[config.name] = config.value
    check_together(values)
    return values


def _default_configs(configs: BrokerConfigs) -> list[dict[str, Any]]:
    """What a topic is configured to that overrides nothing, for the reply (KIP-525), sorted by name."""
    in_force = configs.in_force()
    entries = []
    for name, key in sorted(KEYS.items()):
        values = configs.topic(key, {})
        source = values[0].source if values else ConfigSource.DEFAULT
        value = text_of(key.default_by(in_force))
        entries.append({"name": name, "value": value, "read_only": False, "config_source": source, "is_sensitive": key.is_sensitive})
    return entries


def _effective_configs(defaults: Sequence[dict[str, Any]], overrides: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {**entry, "value": overrides[entry["name"]], "config_source": ConfigSource.TOPIC} if entry["name"] in overrides else entry
        for entry in defaults
    ]


def _automatic_assignments(image: MetadataImage, topic: Any, *, settings: Settings, chance: Chance) -> list[tuple[NodeId, ...]]:
    factor, partitions = topic.replication_factor, topic.num_partitions
    if factor < -1 or factor == 0:
        raise InvalidReplicationFactor("Replication factor must be larger than 0, or -1 to use the default value.")
    if partitions < -1 or partitions == 0:
        raise InvalidPartitions("Number of partitions was set to an invalid non-positive value.")
    factor = settings.default_replication_factor if factor == -1 else factor
    partitions = settings.num_partitions if partitions == -1 else partitions
    if partitions > PARTITIONS_PER_REQUEST_MAX:
        raise error_for(ErrorCode.policy_violation, "Excessively large number of partitions per request.")
    return _placed(image, partitions=partitions, factor=factor, chance=chance)


def _placed(image: MetadataImage, *, partitions: int, factor: int, chance: Chance) -> list[tuple[NodeId, ...]]:
    try:
        return place(image, partitions=partitions, replication_factor=factor, chance=chance)
    except InvalidReplicationFactor as error:
        raise InvalidReplicationFactor(f"Unable to replicate the partition {factor} time(s): {error}") from None


def _manual_assignments(image: MetadataImage, topic: Any) -> list[tuple[NodeId, ...]]:
    if topic.replication_factor != -1:
        raise InvalidRequest("A manual partition assignment was specified, but replication factor was not set to -1.")
    if topic.num_partitions != -1:
        raise InvalidRequest("A manual partition assignment was specified, but numPartitions was not set to -1.")
    placements: dict[int, tuple[NodeId, ...]] = {}
    factor: int | None = None
    for assignment in topic.assignments:
        index = assignment.partition_index
        if index in placements:
            raise InvalidReplicaAssignment(f"Found multiple manual partition assignments for partition {index}")
        check_assignment(image, assignment.broker_ids, factor=factor)
        _check_online(image, assignment.broker_ids, partition_id=index)
        placements[index] = tuple(assignment.broker_ids)
        factor = len(assignment.broker_ids)
    if sorted(placements) != list(range(len(placements))):
        raise InvalidReplicaAssignment("partitions should be a consecutive 0-based integer sequence")
    return [placements[index] for index in range(len(placements))]


def check_assignment(image: MetadataImage, replicas: Sequence[NodeId], *, factor: int | None = None) -> None:
    """Raises InvalidReplicaAssignment when a partition can't be put on these brokers; `factor`: how many there must be."""
    start = "The manual partition assignment includes"
    if not replicas:
        raise InvalidReplicaAssignment(f"{start} an empty replica list.")
    for node_id in sorted(replicas):
        if node_id not in image.brokers:
            raise InvalidReplicaAssignment(f"{start} broker {node_id}, but no such broker is registered.")
        if replicas.count(node_id) > 1:
            raise InvalidReplicaAssignment(f"{start} the broker {node_id} more than once.")
    if factor is not None and len(replicas) != factor:
        raise InvalidReplicaAssignment(
            f"{start} a partition with {len(replicas)} replica(s), but this is not consistent with previous partitions, "
            f"which have {factor} replica(s)."
        )


def _check_online(image: MetadataImage, replicas: Sequence[NodeId], *, partition_id: int) -> None:
    if not any(image.brokers[node_id].active for node_id in replicas):
        raise InvalidReplicaAssignment(
            f"All brokers specified in the manual partition assignment for partition {partition_id} are fenced or in controlled shutdown."
        )


def _new_partition(image: MetadataImage, replicas: tuple[NodeId, ...]) -> Partition:
    """A partition on `replicas`, of which those that are up make the first ISR."""
    isr = tuple(node_id for node_id in replicas if image.brokers[node_id].active)
    assert isr
    directories = tuple(default_directory(image, node_id) for node_id in replicas)
    return Partition(replicas=replicas, isr=isr, leader=isr[0], leader_epoch=0, partition_epoch=0, directories=directories)


def default_directory(image: MetadataImage, node_id: NodeId) -> uuid.UUID:
    """A broker with one directory has the replica there; one with several chooses and reports it. Source: KIP-858."""
    directories = image.brokers[node_id].directories
    if not directories:
        return DIRECTORY_MIGRATING
    return directories[0] if len(directories) == 1 else DIRECTORY_UNASSIGNED


def new_uuid(chance: Chance) -> uuid.UUID:
    """A random id whose base64 form does not begin with '-', which command lines would take for an option."""
    while True:
        candidate = uuid.UUID(int=chance.getrandbits(128), version=4)
        if candidate.int >= RESERVED_UUIDS_MAX and candidate.int >> 122 != 62:
            return candidate


def decide_delete_topics(image: MetadataImage, request: Any, *, settings: Settings) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """DeleteTopics v1-v6 (key 20), by name or by id. Raises TOPIC_DELETION_DISABLED where `delete.topic.enable` is false."""
    if not settings.delete_topic_enable:
        raise error_for(ErrorCode.topic_deletion_disabled, "Topic deletion is disabled.")
    none = uuid.UUID(int=0)
    asked: list[tuple[TopicName | None, TopicId]] = [(name, none) for name in request.topic_names or ()]
    asked += [(topic.name, topic.topic_id) for topic in request.topics or ()]
    counts = Counter(asked)
    by_name: dict[TopicId, Topic] = {}
    by_id: dict[TopicId, Topic] = {}
    results = []
    for name, topic_id in dict.fromkeys(asked):
        try:
            topic = _to_delete(image, name, topic_id, repeated=counts[name, topic_id] > 1)
        except ApiError as error:
            results.append({"name": name, "topic_id": topic_id, **_failure(error)})
            continue
        (by_id if name is None else by_name)[topic.topic_id] = topic
    records: list[r.MetadataRecord] = []
    for topic in {**by_id, **by_name}.values():
        result = {"name": topic.name, "topic_id": topic.topic_id, "error_code": ErrorCode.none, "error_message": None}
        if topic.topic_id in by_id and topic.topic_id in by_name:  # Asked for twice, if not in the same way: as a duplicate, it stays.
            result |= _failure(InvalidRequest("The provided topic name maps to an ID that was already supplied."))
        else:
            records.append(r.RemoveTopicRecord(topic_id=topic.topic_id))
        results.append(result)
    return Decision(records, {"responses": results})


def _to_delete(image: MetadataImage, name: TopicName | None, topic_id: TopicId, *, repeated: bool) -> Topic:
    if name is None and topic_id.int == 0:
        raise InvalidRequest("Neither topic name nor id were specified.")
    if name is not None and topic_id.int != 0:
        raise InvalidRequest("You may not specify both topic name and topic id.")
    if repeated:
        raise InvalidRequest("Duplicate topic name." if name is not None else "Duplicate topic id.")
    topic: Topic | None = image.topic_by_id(topic_id) if name is None else image.topics.get(name)
    if topic is not None:
        return topic
    if name is None:
        raise UnknownTopicId("This server does not host this topic ID.")
    raise UnknownTopicOrPartition("This server does not host this topic-partition.")


def decide_create_partitions(image: MetadataImage, request: Any, *, chance: Chance) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """CreatePartitions v0-v3 (key 37), `validate_only` included."""
    counts = Counter(topic.name for topic in request.topics)
    records: list[r.MetadataRecord] = []
    results = []
    for asked in {topic.name: topic for topic in request.topics}.values():
        try:
            if counts[asked.name] > 1:
                raise InvalidRequest("Duplicate topic name.")
            added = _add_partitions(image, asked, chance)
        except ApiError as error:
            results.append({"name": asked.name, **_failure(error)})
            continue
        records.extend(added)
        results.append({"name": asked.name, "error_code": ErrorCode.none, "error_message": None})
    return Decision([] if request.validate_only else records, {"results": results})


def _add_partitions(image: MetadataImage, asked: Any, chance: Chance) -> list[r.MetadataRecord]:
    topic: Topic | None = image.topics.get(asked.name)
    if topic is None:
        raise UnknownTopicOrPartition("This server does not host this topic-partition.")
    present = len(topic.partitions)
    if asked.count == present:
        raise InvalidPartitions(f"Topic already has {present} partition(s).")
    if asked.count < present:
        raise InvalidPartitions(f"The topic {asked.name} currently has {present} partition(s); {asked.count} would not be an increase.")
    if asked.count - present > PARTITIONS_PER_REQUEST_MAX:
        raise error_for(ErrorCode.policy_violation, "Excessively large number of partitions per request.")
    factor = len(next(iter(topic.partitions.values())).target_replicas)  # Not more because it is just being reassigned.
    if asked.assignments is None:
        placements = _placed(image, partitions=asked.count - present, factor=factor, chance=chance)
    else:
        if len(asked.assignments) != asked.count - present:
            raise InvalidReplicaAssignment(
                f"Attempted to add {asked.count - present} additional partition(s), but only {len(asked.assignments)} assignment(s) were specified."
            )
        placements = [tuple(assignment.broker_ids) for assignment in asked.assignments]
        for index, replicas in enumerate(placements):
            check_assignment(image, replicas, factor=factor)
            _check_online(image, replicas, partition_id=present + index)
    return [partition_record(topic.topic_id, present + index, _new_partition(image, replicas)) for index, replicas in enumerate(placements)]


def _failure(error: ApiError) -> dict[str, Any]:
    return {"error_code": error.code, "error_message": str(error)}
