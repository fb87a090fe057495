"""Who leads a partition and who is in its ISR: the change of one partition, and of all that a broker's coming or going touches.

Every change is a PartitionChangeRecord, or nothing where all stays as it is. A leader comes from the ISR; from outside of it
only where the topic allows unclean elections. The ISR never becomes empty: its last member stays in it, without a leader.
Whatever change brings a reassignment's last replica into the ISR also ends the reassignment.
Source: Kafka's PartitionChangeBuilder and ReplicationControlManager; KIP-455, KIP-460, KIP-704, KIP-841, KIP-858.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import Any, Final

from raftlog.config import Settings
from raftlog.core.controller.assignments import Assignment, assignment_of, completed
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage, Partition
from raftlog.errors import ErrorCode, InvalidRequest
from raftlog.ids import DIRECTORY_LOST, DIRECTORY_MIGRATING, DIRECTORY_UNASSIGNED, NO_NODE, NodeId, TopicId

UNCLEAN_CONFIG: Final = "unclean.leader.election.enable"
ELECTIONS_MAX: Final = 1000  # Leaders moved by one look for imbalance: it must not hold up everything else.


class Election(enum.Enum):
    """What an election may do: keep the leader if it can stay; rather have the preferred one; or leave the ISR at need."""

    ONLINE = "online"
    PREFERRED = "preferred"
    UNCLEAN = "unclean"


def change_partition(
    partition: Partition,
    *,
    topic_id: TopicId,
    partition_id: int,
    acceptable: Callable[[NodeId], bool],
    election: Election,
    isr: Sequence[NodeId] | None = None,
    recovery_state: int | None = None,
    assignment: Assignment | None = None,
    directory: Callable[[NodeId], uuid.UUID] | None = None,
) -> r.PartitionChangeRecord | None:
    """The record that gives the partition this ISR, recovery state and assignment (None: as before) and a leader if one can be had.

    `acceptable` says whether a replica could lead if the ISR allows it. An empty `isr` leaves the ISR as it is, and nobody
    in it leads. `directory` says where an `assignment`'s new replicas go.
    """
    target_isr = partition.isr if isr is None else tuple(isr)
    target = assignment or assignment_of(partition)
    target, target_isr = completed(target, target_isr) or (target, target_isr)
    leader, unclean = _elect(partition, target.replicas, target_isr, acceptable, election)
    leader_change = r.NO_LEADER_CHANGE if leader == partition.leader else leader
    new_isr: tuple[NodeId, ...] | None = None
    new_state = -1
    if unclean and leader != partition.leader:
        new_isr = (leader,)
        if partition.recovery_state != r.RECOVERING:
            new_state = r.RECOVERING
    elif target_isr and target_isr != partition.isr:
        new_isr = target_isr
    if recovery_state is not None and recovery_state != partition.recovery_state and new_state < 0:
        new_state = recovery_state
    if leader_change == r.NO_LEADER_CHANGE and not set(partition.replicas) <= set(target.replicas):
        leader_change = leader  # A replica goes: a new leader epoch tells it, and whoever still fetches as one, that it has gone.
    if leader_change == r.NO_LEADER_CHANGE and new_isr is None and new_state < 0 and target == assignment_of(partition):
        return None
    return r.PartitionChangeRecord(
        partition_id=partition_id,
        topic_id=topic_id,
        isr=new_isr,
        leader=leader_change,
        leader_recovery_state=new_state,
        # Without the feature for eligible leader replicas, those that an earlier state left are cleared by any change.
        eligible_leader_replicas=() if partition.elr else None,
        last_known_elr=() if partition.last_known_elr else None,
        **_assignment_changes(partition, target, directory),
    )


def _assignment_changes(partition: Partition, target: Assignment, directory: Callable[[NodeId], uuid.UUID] | None) -> dict[str, Any]:
    """The fields of the record that make the partition's assignment `target`."""
    changes: dict[str, Any] = {}
    if target.replicas != partition.replicas:
        present = dict(zip(partition.replicas, partition.directories, strict=False))
        chosen = directory or (lambda _: DIRECTORY_UNASSIGNED)
        changes["replicas"] = target.replicas
        changes["directories"] = tuple(present[node_id] if node_id in present else chosen(node_id) for node_id in target.replicas)
    if target.adding != partition.adding:
        changes["adding_replicas"] = target.adding
    if target.removing != partition.removing:
        changes["removing_replicas"] = target.removing
    return changes


def _elect(
    partition: Partition, replicas: Sequence[NodeId], isr: Sequence[NodeId], acceptable: Callable[[NodeId], bool], election: Election
) -> tuple[NodeId, bool]:
    """The leader among `replicas` (NO_NODE: nobody can) and whether it comes from outside of the ISR."""
    candidates = (partition.leader, *replicas)
    if election is Election.PREFERRED:
        candidates = (replicas[0], *candidates)
    for node_id in candidates:
        if node_id in isr and acceptable(node_id):
            return node_id, False
    if election is Election.UNCLEAN:
        for node_id in replicas:
            if acceptable(node_id):
                return node_id, True
    return NO_NODE, False


def unclean_allowed(image: MetadataImage, settings: Settings, topic: str) -> bool:
    """Whether the topic lets a replica outside the ISR lead: its own config, else this controller's as a broker, dynamic or not."""
    text = image.topic_configs(topic).get(UNCLEAN_CONFIG) or image.broker_configs(settings.node_id).get(UNCLEAN_CONFIG)
    return settings.unclean_leader_election_enable if text is None else text.lower() == "true"


def may_lead(image: MetadataImage, partition: Partition, node_id: NodeId) -> bool:
    """Whether a broker is unfenced, not shutting down, and has its replica's directory online."""
    broker = image.brokers.get(node_id)
    return broker is not None and broker.active and _directory_online(image, partition, node_id)


def _may_lead_without(image: MetadataImage, partition: Partition, leaving: NodeId, node_id: NodeId) -> bool:
    return node_id != leaving and may_lead(image, partition, node_id)


def _may_lead_with(image: MetadataImage, partition: Partition, coming: NodeId, node_id: NodeId) -> bool:
    """As `may_lead`, while `coming` is still fenced in the image: its record precedes the elections'."""
    if node_id == coming:
        return _directory_online(image, partition, node_id)
    return may_lead(image, partition, node_id)


def _directory_online(image: MetadataImage, partition: Partition, node_id: NodeId) -> bool:
    if not partition.directories or node_id not in partition.replicas:
        return True
    directory = partition.directories[partition.replicas.index(node_id)]
    if directory in (DIRECTORY_UNASSIGNED, DIRECTORY_MIGRATING):
        return True
    return directory != DIRECTORY_LOST and directory in image.brokers[node_id].directories


def changes_without(
    image: MetadataImage, settings: Settings, node_id: NodeId, *, directories: Container[Any] | None = None
) -> Iterator[r.PartitionChangeRecord]:
    """Take a broker out of every ISR (but where it is the last member) and every leadership.

    With `directories`, only where its replica is in one of them.
    """
    if not image.load(node_id).replicas:
        return
    for name, topic in image.topics.items():
        election: Election | None = None
        for partition_id, partition in topic.partitions.items():
            if node_id not in partition.isr:
                continue
            if directories is not None and partition.directories[partition.replicas.index(node_id)] not in directories:
                continue
            if election is None:
                election = Election.UNCLEAN if unclean_allowed(image, settings, name) else Election.ONLINE
            change = change_partition(
                partition,
                topic_id=topic.topic_id,
                partition_id=partition_id,
                acceptable=partial(_may_lead_without, image, partition, node_id),
                election=election,
                isr=[member for member in partition.isr if member != node_id],
            )
            if change is not None:
                yield change


def changes_with(image: MetadataImage, settings: Settings, node_id: NodeId) -> Iterator[r.PartitionChangeRecord]:
    """Elect leaders for the partitions without one, now that a broker is (about to be) unfenced."""
    if not image.load(node_id).replicas:
        return
    for name, topic in image.topics.items():
        election: Election | None = None
        for partition_id, partition in topic.partitions.items():
            if partition.leader != NO_NODE or node_id not in partition.replicas:
                continue
            if election is None:
                election = Election.UNCLEAN if unclean_allowed(image, settings, name) else Election.ONLINE
            change = change_partition(
                partition,
                topic_id=topic.topic_id,
                partition_id=partition_id,
                acceptable=partial(_may_lead_with, image, partition, node_id),
                election=election,
            )
            if change is not None:
                yield change


def decide_elect_leaders(image: MetadataImage, request: Any) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """ElectLeaders v0-v2 (key 43): type 0 elects preferred leaders, 1 elects unclean ones where there is none.

    Without a list of partitions, all are tried, and those that need no election are left out of the reply.
    Raises InvalidRequest for another type. Source: KIP-460.
    """
    elections = {0: Election.PREFERRED, 1: Election.UNCLEAN}
    if request.election_type not in elections:
        raise InvalidRequest(f"Unknown election type {request.election_type}")
    election = elections[request.election_type]
    everything = request.topic_partitions is None
    if everything:
        wanted = [(name, list(topic.partitions)) for name, topic in image.topics.items()]
    else:
        wanted = [(topic.topic, list(topic.partitions)) for topic in request.topic_partitions]
    records: list[r.MetadataRecord] = []
    results = []
    for name, partition_ids in wanted:
        partition_results = []
        for partition_id in partition_ids:
            code, message = _elect_one(image, name, partition_id, election, records)
            if not (everything and code is ErrorCode.election_not_needed):
                partition_results.append({"partition_id": partition_id, "error_code": code, "error_message": message})
        results.append({"topic": name, "partition_result": partition_results})
    return Decision(records, {"error_code": ErrorCode.none, "replica_election_results": results})


def _elect_one(
    image: MetadataImage, name: str, partition_id: int, election: Election, records: list[r.MetadataRecord]
) -> tuple[ErrorCode, str | None]:
    topic = image.topics.get(name)
    if topic is None:
        return ErrorCode.unknown_topic_or_partition, f"No such topic as {name}"
    partition = topic.partitions.get(partition_id)
    if partition is None:
        return ErrorCode.unknown_topic_or_partition, f"No such partition as {name}-{partition_id}"
    settled = partition.leader == partition.preferred_leader if election is Election.PREFERRED else partition.leader != NO_NODE
    if settled:
        return ErrorCode.election_not_needed, "Leader election not needed for topic partition."
    change = change_partition(
        partition,
        topic_id=topic.topic_id,
        partition_id=partition_id,
        acceptable=lambda node: may_lead(image, partition, node),
        election=election,
    )
    if change is None or change.leader == r.NO_LEADER_CHANGE:
        if election is Election.PREFERRED:
            return ErrorCode.preferred_leader_not_available, "The preferred leader was not available."
        return ErrorCode.eligible_leaders_not_available, "Eligible topic partition leaders are not available."
    records.append(change)
    return ErrorCode.none, None


def decide_rebalance(image: MetadataImage, *, imbalance_percentage_max: int) -> Decision[r.MetadataRecord, None]:
    """Give leadership back to preferred leaders of which more than the percentage of partitions is led by others.

    At most ELECTIONS_MAX partitions. Source: `auto.leader.rebalance.enable`.
    """
    strayed: dict[NodeId, list[tuple[TopicId, int, Partition]]] = {}
    for topic in image.topics.values():
        for partition_id, partition in topic.partitions.items():
            preferred = partition.preferred_leader
            if partition.leader not in (preferred, NO_NODE) and preferred in partition.isr and may_lead(image, partition, preferred):
                strayed.setdefault(preferred, []).append((topic.topic_id, partition_id, partition))
    records: list[r.MetadataRecord] = []
    for node_id, partitions in sorted(strayed.items()):
        if len(partitions) * 100 <= imbalance_percentage_max * image.load(node_id).preferred:
            continue
        for topic_id, partition_id, _ in partitions[: ELECTIONS_MAX - len(records)]:
            records.append(r.PartitionChangeRecord(partition_id=partition_id, topic_id=topic_id, leader=node_id))
    return Decision(records, None)


def decide_unclean_elections(image: MetadataImage, settings: Settings) -> Decision[r.MetadataRecord, None]:
    """Elect leaders for partitions without one whose topics allow it from outside the ISR; at most ELECTIONS_MAX."""
    records: list[r.MetadataRecord] = []
    for name, topic in image.topics.items():
        if not unclean_allowed(image, settings, name):
            continue
        for partition_id, partition in topic.partitions.items():
            if partition.leader == NO_NODE and len(records) < ELECTIONS_MAX:
                _elect_one(image, name, partition_id, Election.UNCLEAN, records)
    return Decision(records, None)
