"""Which replicas a partition has, had and shall have while it is reassigned: plain set algebra, without brokers.

Two lists say all there is to say of a reassignment: the replicas without `adding` are those there were before it, and the
replicas without `removing` are those asked for. So it can be finished, or taken back, from what the partition says of itself.
Source: KIP-455; Kafka's PartitionReassignmentReplicas and PartitionReassignmentRevert. Unlike there, what an earlier
reassignment was still adding stays in `adding` when another one takes its place: taking that back restores what was first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from raftlog.core.metadata.image import Partition
from raftlog.errors import InvalidReplicaAssignment
from raftlog.ids import NodeId


class Assignment(NamedTuple):
    """A partition's replicas in the order of preference; those being added and those to go are among them."""

    replicas: tuple[NodeId, ...]
    adding: tuple[NodeId, ...] = ()
    removing: tuple[NodeId, ...] = ()


class Reverted(NamedTuple):
    """`unclean`: no replica that stays is in sync, so one of them would be declared to be."""

    assignment: Assignment
    isr: tuple[NodeId, ...]
    unclean: bool


def assignment_of(partition: Partition) -> Assignment:
    return Assignment(partition.replicas, partition.adding, partition.removing)


def reassigned(partition: Partition, target: Sequence[NodeId]) -> Assignment:
    """On the way to `target`: its replicas first, in their order, then those to go. It may be complete at once."""
    going = without(partition.replicas, target)
    replicas = (*target, *going)
    return Assignment(replicas, adding=without(replicas, partition.original_replicas), removing=going)


def reverted(partition: Partition) -> Reverted:
    """As before the reassignment under way. Raises InvalidReplicaAssignment where there is nothing to go back to."""
    replicas = partition.original_replicas
    if not replicas:
        raise InvalidReplicaAssignment("Invalid replica assignment: addingReplicas contains all replicas.")
    isr = without(partition.isr, partition.adding)
    return Reverted(Assignment(replicas), isr or replicas[:1], unclean=not isr)


def completed(assignment: Assignment, isr: Iterable[NodeId]) -> tuple[Assignment, tuple[NodeId, ...]] | None:
    """The assignment and ISR with which the reassignment ends, once all that shall stay are in sync; None until then."""
    if not (assignment.adding or assignment.removing):
        return None
    replicas = without(assignment.replicas, assignment.removing)
    remaining = without(isr, assignment.removing)
    if not replicas or not set(replicas) <= set(remaining):
        return None
    return Assignment(replicas), remaining


def without(replicas: Iterable[NodeId], taken: Collection[NodeId]) -> tuple[NodeId, ...]:
    return tuple(node_id for node_id in replicas if node_id not in taken)
