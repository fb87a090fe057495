"""What goes into a turn of a consumer group and what comes out: settings, requests, replies, and what is to be written."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from raftlog.core.coordinators.consumer_records import MemberState, Partitions
from raftlog.core.coordinators.group import Group, Instant
from raftlog.core.coordinators.records import CoordinatorRecord
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.records import RESOURCE_GROUP
from raftlog.group_config import GroupConfig
from raftlog.ids import GroupId

Reply = TypeVar("Reply", covariant=True)


class MigrationPolicy(enum.Enum):
    """Which groups with members may be converted; empty ones always may (`group.consumer.migration.policy`)."""

    BIDIRECTIONAL = "bidirectional"
    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    DISABLED = "disabled"

    @property
    def may_upgrade(self) -> bool:
        return self in (MigrationPolicy.BIDIRECTIONAL, MigrationPolicy.UPGRADE)

    @property
    def may_downgrade(self) -> bool:
        return self in (MigrationPolicy.BIDIRECTIONAL, MigrationPolicy.DOWNGRADE)


class ConsumerLimits(NamedTuple):
    """The settings that govern consumer groups; the first of `assignors` is the default."""

    group_size_max: int
    session_timeout_ms: int
    heartbeat_interval_ms: int
    assignors: tuple[str, ...]
    migration_policy: MigrationPolicy
    classic_group_size_max: int
    regex_refresh_interval_ms: int


class Scene(NamedTuple):
    """What a turn is decided on besides the group itself."""

    limits: ConsumerLimits
    image: MetadataImage
    now: Instant

    def config_of(self, group_id: GroupId) -> GroupConfig:
        """What is configured of the group at this moment, else what is for all."""
        config = GroupConfig(self.limits.session_timeout_ms, self.limits.heartbeat_interval_ms)
        overrides = self.image.configs.get((RESOURCE_GROUP, group_id))
        return config if overrides is None else config.overridden(overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRequest:
    """ConsumerGroupHeartbeat. None, and -1 as a timeout: not changed since the last one. `topics` are sorted."""

    member_id: str
    member_epoch: int
    instance_id: str | None = None
    rack_id: str | None = None
    rebalance_timeout_ms: int = -1
    topics: tuple[str, ...] | None = None
    regex: str | None = None
    server_assignor: str | None = None
    owned: Partitions | None = None
    client_id: str = ""
    client_host: str = ""
    version: int = 1

    @property
    def is_full(self) -> bool:
        """Whether it says all there is to say, as members do when they join or are not sure of what was understood."""
        return self.rebalance_timeout_ms != -1 and (self.topics is not None or self.regex is not None) and self.owned is not None


class HeartbeatReply(NamedTuple):
    """`assignment` None: not changed since the last one."""

    member_id: str
    member_epoch: int
    heartbeat_interval_ms: int
    assignment: Partitions | None


class ConvertedGroup(NamedTuple):
    """The classic group that takes a consumer group's place, to rebalance at once or not."""

    group: Group
    is_rebalancing: bool


@dataclass(slots=True, kw_only=True)
class Outcome(Generic[Reply]):
    """Records that stand or fall together, and the reply once they are committed.

    A conversion takes `upgraded`, a classic group, away when the records are committed, or puts `downgraded` in place.
    """

    reply: Reply
    records: list[CoordinatorRecord] = field(default_factory=list)
    upgraded: Group | None = None
    downgraded: ConvertedGroup | None = None


class DescribedConsumer(NamedTuple):
    member_id: str
    instance_id: str | None
    rack_id: str | None
    member_epoch: int
    client_id: str
    client_host: str
    topics: tuple[str, ...]
    regex: str | None
    assigned: Partitions
    target: Partitions
    is_classic: bool
    state: MemberState


class DescribedConsumerGroup(NamedTuple):
    group_id: str
    state: str
    epoch: int
    assignment_epoch: int
    assignor: str
    members: tuple[DescribedConsumer, ...]
