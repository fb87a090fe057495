"""A topic's configuration: Kafka's names, each with the broker settings that give its default.

A field's name is the config's name with `_` for `.`. Its type and its valid values are those of the setting it has its
default from; where there is none, the field says them. A config that has no effect is not here.
Source: https://kafka.apache.org/documentation/#topicconfigs
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from raftlog.config import KEYS as SETTING_KEYS
from raftlog.config import Settings
from raftlog.config_types import ConfigKey, ConfigType
from raftlog.errors import InvalidConfig

MS_PER_MINUTE: Final = 60_000
MS_PER_HOUR: Final = 60 * MS_PER_MINUTE

_REPLICA: Final = re.compile(r"[0-9]+:[0-9]+")


class Synonym(NamedTuple):
    """A broker setting that a topic config has its default from, and what its value is multiplied with."""

    setting: str
    factor: int = 1


def of(setting: str, *more: Synonym, doc: str) -> Any:
    """A config with its default from `setting`, or, while that is unset, from the first of `more` that is set."""
    return dataclasses.field(metadata={"doc": doc, "synonyms": (Synonym(setting), *more)})


def own(
    default: Any,
    *,
    type: ConfigType,
    doc: str,
    minimum: float | None = None,
    maximum: float | None = None,
    one_of: tuple[str, ...] | None = None,
    check: Callable[[Any], str | None] | None = None,
) -> Any:
    """A config without a setting behind it."""
    validation = {"minimum": minimum, "maximum": maximum, "one_of": one_of, "check": check}
    return dataclasses.field(metadata={"doc": doc, "synonyms": (), "type": type, "default": default, **validation})


def _throttled_replicas_problem(replicas: tuple[str, ...]) -> str | None:
    if replicas == ("*",) or all(map(_REPLICA.fullmatch, replicas)):
        return None
    return "must be the literal '*' or a list of replicas in the following format: [partitionId]:[brokerId],[partitionId]:[brokerId],..."


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """The effective configuration of one topic: its overrides over the broker's settings."""

    segment_bytes: int = of("log.segment.bytes", doc="A segment is rolled at this size.")
    preallocate: bool = of("log.preallocate", doc="Keep room on the disk for all of a new segment at once (Linux); it is given back at the roll.")
    segment_ms: int = of("log.roll.ms", Synonym("log.roll.hours", MS_PER_HOUR), doc="A segment is rolled at this age of its first record.")
    segment_jitter_ms: int = of(
        "log.roll.jitter.ms",
        Synonym("log.roll.jitter.hours", MS_PER_HOUR),
        doc="Up to so much earlier is a segment rolled, so that not all are at once.",
    )
    retention_ms: int = of(
        "log.retention.ms",
        Synonym("log.retention.minutes", MS_PER_MINUTE),
        Synonym("log.retention.hours", MS_PER_HOUR),
        doc="Segments whose newest record is older are deleted; -1: never.",
    )
    retention_bytes: int = of("log.retention.bytes", doc="Oldest segments beyond this size are deleted; -1: never.")
    cleanup_policy: tuple[str, ...] = of("log.cleanup.policy", doc="What becomes of old segments: delete, compact or both.")
    min_cleanable_dirty_ratio: float = of("log.cleaner.min.cleanable.ratio", doc="Share of the log that must be dirty before it is compacted.")
    delete_retention_ms: int = of("log.cleaner.delete.retention.ms", doc="How long a tombstone stays after it was first compacted.")
    min_compaction_lag_ms: int = of("log.cleaner.min.compaction.lag.ms", doc="A record is not compacted before it has this age.")
    max_compaction_lag_ms: int = of("log.cleaner.max.compaction.lag.ms", doc="The log is compacted when its oldest dirty record has this age.")
    index_interval_bytes: int = of("log.index.interval.bytes", doc="Bytes of log between two index entries.")
    segment_index_bytes: int = of("log.index.size.max.bytes", doc="Largest index file.")
    message_timestamp_type: str = of("log.message.timestamp.type", doc="Whose clock stamps records.")
    message_timestamp_before_max_ms: int = of(
        "log.message.timestamp.before.max.ms", doc="How far a record's timestamp may lie before the broker's time."
    )
    message_timestamp_after_max_ms: int = of(
        "log.message.timestamp.after.max.ms", doc="How far a record's timestamp may lie after the broker's time."
    )
    compression_type: str = of("compression.type", doc="The codec in which records are stored; producer: the one they come in.")
    compression_gzip_level: int = of("compression.gzip.level", doc="The level of compression.type gzip; -1: the codec's own default.")
    compression_lz4_level: int = of("compression.lz4.level", doc="The level of compression.type lz4.")
    compression_zstd_level: int = of("compression.zstd.level", doc="The level of compression.type zstd.")
    max_message_bytes: int = of("message.max.bytes", doc="Largest batch that is accepted, in bytes.")
    flush_messages: int = of("log.flush.interval.messages", doc="Records after which a partition is fsynced.")
    file_delete_delay_ms: int = of("log.segment.delete.delay.ms", doc="How long the files of a segment that retention deleted stay on the disk.")
    flush_ms: int = of("log.flush.interval.ms", Synonym("log.flush.scheduler.interval.ms"), doc="Longest that records wait to be fsynced.")
    min_insync_replicas: int = of("min.insync.replicas", doc="Members the ISR must have for acks=all.")
    unclean_leader_election_enable: bool = of("unclean.leader.election.enable", doc="Let a replica outside the ISR lead; loses data.")
    leader_replication_throttled_replicas: tuple[str, ...] = own(
        (),
        type=ConfigType.LIST,
        check=_throttled_replicas_problem,
        doc="Replicas, as partition:broker or * for all, that send to those out of sync at no more than leader.replication.throttled.rate.",
    )
    follower_replication_throttled_replicas: tuple[str, ...] = own(
        (),
        type=ConfigType.LIST,
        check=_throttled_replicas_problem,
        doc="Replicas, as partition:broker or * for all, that catch up at no more than follower.replication.throttled.rate.",
    )

    @property
    def deletes(self) -> bool:
        """Whether old records are deleted, by time, by size or on request."""
        return "delete" in self.cleanup_policy

    @property
    def compacts(self) -> bool:
        """Whether of each key only the last record is kept."""
        return "compact" in self.cleanup_policy

    @property
    def segment_ms_max(self) -> int:
        """The age at which a segment is rolled: what is to be compacted by then must not be in the active one."""
        return min(self.segment_ms, self.max_compaction_lag_ms) if "compact" in self.cleanup_policy else self.segment_ms

    @classmethod
    def resolve(cls, settings: Settings, overrides: Mapping[str, str]) -> TopicConfig:
        """The effective configuration. Overrides that this release does not know, or whose value it refuses, don't count."""
        values = {key.field: key.default_by(settings) for key in KEYS.values()}
        for name, text in overrides.items():
            key = KEYS.get(name)
            if key is None:
                continue  # A controller of another release, or a JVM's, may have accepted it.
            try:
                values[key.field] = key.parse(text)
            except InvalidConfig:
                continue
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicKey(ConfigKey):
    """One topic config: its key, the field of TopicConfig that holds it, and the settings it has its default from."""

    field: str
    synonyms: tuple[Synonym, ...]

    def default_by(self, settings: Settings) -> Any:
        """The value of a topic that does not override it, on a broker with these settings."""
        for setting, factor in self.synonyms:
            value = getattr(settings, SETTING_KEYS[setting].field)
            if value is not None:
                return value if factor == 1 or value < 0 else value * factor  # -1 is without end in any unit.
        return self.default


def _keys() -> dict[str, TopicKey]:
    keys = {}
    for field in dataclasses.fields(TopicConfig):
        properties = dict(field.metadata)
        if properties["synonyms"]:
            source = SETTING_KEYS[properties["synonyms"][0].setting]
            properties |= {name: getattr(source, name) for name in ("type", "default", "minimum", "maximum", "one_of", "check")}
        name = field.name.replace("_", ".")
        keys[name] = TopicKey(name=name, field=field.name, **properties)
    return keys


KEYS: Final[Mapping[str, TopicKey]] = _keys()


def check(name: str) -> Callable[[str], Any]:
    """The parser of one topic config. Raises InvalidConfig when the name is unknown."""
    if name not in KEYS:
        raise InvalidConfig(f"Unknown topic config name: {name}")
    return KEYS[name].parse


def check_together(overrides: Mapping[str, str]) -> None:
    """Whether values that are each valid go together. Raises InvalidConfig."""
    names = "min.compaction.lag.ms", "max.compaction.lag.ms"
    least, most = (KEYS[name].parse(overrides[name]) if name in overrides else KEYS[name].default for name in names)
    if least > most:
        raise InvalidConfig(f"conflict topic config setting {names[0]} ({least}) > {names[1]} ({most})")
