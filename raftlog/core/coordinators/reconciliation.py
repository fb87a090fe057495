"""How a member of a consumer group gets from what it has to what the target assignment gives it.

First it gives up what is no longer its own, at its old epoch; then it takes the new epoch and whatever of its target is free;
then it waits for what others still own. So no partition is ever assigned while somebody owns it.
Source: KIP-848, "Reconciliation of the group".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raftlog.core.coordinators.assignors import Place
from raftlog.core.coordinators.consumer_records import CurrentAssignment, MemberState, Partitions
from raftlog.errors import FencedMemberEpoch
from raftlog.ids import TopicId


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """One look at one member.

    `owned` is what the member says it has (None: it did not say). `subscribed` is not None when its subscription has just
    changed: what it has outside of it is given up at once, whether the target knows yet or not.
    """

    member_id: str
    current: CurrentAssignment
    target_epoch: int
    target: Partitions
    owners: Mapping[Place, str]
    owned: Partitions | None
    subscribed: frozenset[TopicId] | None = None

    def next(self) -> CurrentAssignment:
        """Where the member is now; the same object where nothing moves. Raises FencedMemberEpoch."""
        current = self.current
        if current.state is MemberState.STABLE:
            if current.epoch != self.target_epoch:
                return self._towards_target(current.epoch)
            return self._without_unsubscribed()
        if current.state is MemberState.UNREVOKED:
            if self._holds(current.revoking):
                return self._without_unsubscribed()
            # A change of its subscription may have brought it here before the target followed.
            return self._towards_target(min(current.epoch + 1, self.target_epoch))
        if current.state is MemberState.UNRELEASED:
            return self._towards_target(current.epoch)
        if self.owned is None or self.owned:
            raise FencedMemberEpoch("The consumer group member is in an unknown state. The member must abandon all its partitions and rejoin.")
        return self._towards_target(self.target_epoch)

    def _holds(self, partitions: Partitions) -> bool:
        """Whether the member may still have any of them."""
        if self.owned is None:
            return True
        return any(self.owned.get(topic_id, frozenset()) & numbers for topic_id, numbers in partitions.items())

    def _towards_target(self, epoch: int) -> CurrentAssignment:
        """`epoch` is what it stays at while it has something to give up."""
        kept: dict[TopicId, frozenset[int]] = {}
        revoking: dict[TopicId, frozenset[int]] = {}
        free: dict[TopicId, frozenset[int]] = {}
        is_unreleased = False
        for topic_id in self.target.keys() | self.current.assigned.keys():
            target = self.target.get(topic_id, frozenset())
            if self.subscribed is not None and topic_id not in self.subscribed:
                target = frozenset()
            assigned = self.current.assigned.get(topic_id, frozenset())
            missing = target - assigned
            released = frozenset(number for number in missing if self.owners.get((topic_id, number)) in (None, self.member_id))
            is_unreleased = is_unreleased or released != missing
            for gathered, numbers in ((kept, assigned & target), (revoking, assigned - target), (free, released)):
                if numbers:
                    gathered[topic_id] = numbers
        if revoking and self._holds(revoking):
            return self._moved(epoch, MemberState.UNREVOKED, kept, revoking)
        state = MemberState.UNRELEASED if is_unreleased else MemberState.STABLE
        return self._moved(self.target_epoch, state, _united(kept, free), {})

    def _without_unsubscribed(self) -> CurrentAssignment:
        """At the same epoch, less what it is not subscribed to any more."""
        if self.subscribed is None:
            return self.current
        kept = {topic_id: numbers for topic_id, numbers in self.current.assigned.items() if topic_id in self.subscribed}
        dropped = {topic_id: numbers for topic_id, numbers in self.current.assigned.items() if topic_id not in self.subscribed}
        revoking = _united(self.current.revoking, dropped)
        if not dropped:
            return self.current
        if self._holds(revoking):
            return self._moved(self.current.epoch, MemberState.UNREVOKED, kept, revoking)
        return self._moved(self.current.epoch, self.current.state, kept, {})

    def _moved(self, epoch: int, state: MemberState, assigned: Partitions, revoking: Partitions) -> CurrentAssignment:
        current = self.current
        previous_epoch = current.previous_epoch if epoch == current.epoch else current.epoch
        moved = replace(current, epoch=epoch, previous_epoch=previous_epoch, state=state, assigned=assigned, revoking=revoking)
        return current if moved == current else moved


def _united(first: Partitions, second: Partitions) -> Partitions:
    return {topic_id: first.get(topic_id, frozenset()) | second.get(topic_id, frozenset()) for topic_id in first.keys() | second.keys()}
