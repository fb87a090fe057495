"""A topic's configuration: Kafka's names, each with the broker setting that gives its default.

Source: https://kafka.apache.org/documentation/#topicconfigs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from raftlog.config import Settings
from raftlog.errors import InvalidConfig

INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Definition:
    """One topic config: its name and type, the broker setting its default comes from, its check and its documentation."""

    name: str
    kind: type
    synonym: str
    doc: str
    minimum: int | None = None
    maximum: int | None = None
    one_of: tuple[str, ...] | None = None

    def parse(self, text: str) -> Any:
        """The typed value. Raises InvalidConfig with Kafka's wording for an ill-typed or out-of-range one."""
        problem = f"Invalid value {text} for configuration {self.name}: "
        if self.kind is bool:
            if text.lower() not in ("true", "false"):
                raise InvalidConfig(problem + "Expected value to be either true or false")
            return text.lower() == "true"
        if self.kind is int:
            try:
                number = int(text)
            except ValueError:
                raise InvalidConfig(problem + "Not a number") from None
            if self.minimum is not None and number < self.minimum:
                raise InvalidConfig(problem + f"Value must be at least {self.minimum}")
            maximum = INT64_MAX if self.maximum is None else self.maximum
            if number > maximum:
                raise InvalidConfig(problem + f"Value must be no more than {maximum}")
            return number
        if self.one_of is not None and not set(text.split(",")) <= set(self.one_of):
            raise InvalidConfig(problem + f"must be one of: {', '.join(self.one_of)}")
        return text


_ALL: Final = (
    Definition("segment.bytes", int, "log.segment.bytes", "A segment is rolled at this size.", 1024, 2**31 - 1),
    Definition("segment.ms", int, "log.roll.ms", "A segment is rolled at this age of its first record.", 1),
    Definition("retention.ms", int, "log.retention.ms", "Segments whose newest record is older are deleted; -1: never.", -1),
    Definition("retention.bytes", int, "log.retention.bytes", "Oldest segments beyond this size are deleted; -1: never.", -1),
    Definition("cleanup.policy", tuple, "log.cleanup.policy", "What becomes of old segments: they are deleted.", one_of=("delete",)),
    Definition("index.interval.bytes", int, "log.index.interval.bytes", "Bytes of log between two index entries.", 0),
    Definition("segment.index.bytes", int, "log.index.size.max.bytes", "Largest index file.", 96),
    Definition("message.timestamp.type", str, "log.message.timestamp.type", "Whose clock stamps records.", one_of=("CreateTime", "LogAppendTime")),
    Definition("max.message.bytes", int, "message.max.bytes", "Largest batch that is accepted, in bytes.", 0),
    Definition("flush.messages", int, "log.flush.interval.messages", "Records after which a partition is fsynced.", 1),
    Definition("min.insync.replicas", int, "min.insync.replicas", "Members the ISR must have for acks=all.", 1),
    Definition("unclean.leader.election.enable", bool, "unclean.leader.election.enable", "Let a replica outside the ISR lead; loses data."),
)
DEFINITIONS: Final[Mapping[str, Definition]] = {definition.name: definition for definition in _ALL}


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """The effective configuration of one topic: its overrides over the broker's settings."""

    segment_bytes: int
    segment_ms: int
    retention_ms: int
    retention_bytes: int
    cleanup_policy: str
    index_interval_bytes: int
    segment_index_bytes: int
    message_timestamp_type: str
    max_message_bytes: int
    flush_messages: int
    min_insync_replicas: int
    unclean_leader_election_enable: bool

    @classmethod
    def resolve(cls, settings: Settings, overrides: Mapping[str, str]) -> TopicConfig:
        """The effective configuration. Raises InvalidConfig for an unknown name or a bad value."""
        values: dict[str, Any] = {
            name.replace(".", "_"): getattr(settings, definition.synonym.replace(".", "_")) for name, definition in DEFINITIONS.items()
        }
        for name, text in overrides.items():
            values[name.replace(".", "_")] = check(name)(text)
        return cls(**values)


def check(name: str) -> Callable[[str], Any]:
    """The parser of one topic config. Raises InvalidConfig when the name is unknown."""
    if name not in DEFINITIONS:
        raise InvalidConfig(f"Unknown topic config name: {name}")
    return DEFINITIONS[name].parse
