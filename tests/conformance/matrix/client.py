"""What a client is asked for. Arguments and results are plain values, so that a client may be a program of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from .outcome import WAIT_S, Failure, NotOffered, wait_for


class Record(NamedTuple):
    """A record to be sent, or one that was read (then with all of its place and time). None as value is a tombstone."""

    key: str | None
    value: str | None
    headers: tuple[tuple[str, str], ...] = ()
    partition: int | None = None
    timestamp_ms: int | None = None
    offset: int | None = None


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True)
class Sending:
    """How records are sent."""

    acks: str = "all"
    codec: str = "none"
    idempotent: bool = False
    pause_ms: int = 0  # After each record.
    linger_ms: int = 5
    timeout_ms: int = 60_000  # So long it is tried.


@dataclass(frozen=True)
class Shape:
    """What a new topic is to be: `count` partitions with three replicas each, or those that are assigned."""

    count: int = 1
    assignment: Sequence[Sequence[int]] = ()
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Membership:
    """What a member of a group is to be.

    A topic that begins with ^ is a regular expression. `protocol` is classic (when empty) or consumer. Strategies are named
    range, roundrobin, sticky, cooperative-sticky, best first, or uniform of the consumer protocol; without any the client, or
    there the coordinator, has its choice.
    """

    topics: Sequence[str]
    group: str
    strategies: Sequence[str] = ()
    instance: str = ""
    protocol: str = ""
    session_ms: int = 8000  # Of a classic member.

    @property
    def pattern(self) -> str:
        """The regular expression, empty when topics are named."""
        return self.topics[0] if self.topics[0].startswith("^") else ""


class Refused(Exception):
    """The cluster, or the client on its behalf, refused; says why in the client's words."""


class Member:
    """A running member of a group, which commits what it reads. A context manager that closes it.

    `history` is all that it has held, change by change.
    """

    def __init__(self) -> None:
        self.history: list[frozenset[Place]] = [frozenset()]
        self.values: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def assigned(self) -> frozenset[Place]:
        return self.history[-1]

    @property
    def partitions(self) -> set[int]:
        return {place.partition for place in self.assigned}

    def holds(self, places: Iterable[tuple[str, int]]) -> None:
        """From now on it has these."""
        held = frozenset(Place(*place) for place in places)
        if held != self.assigned:
            self.history.append(held)

    def problem(self) -> str:
        """Why it ended by itself; empty while it has not."""
        return ""

    def close(self) -> None:
        """End it in an orderly way, if it has not ended. A static member keeps its place. Raises Failure."""
        raise NotImplementedError


class Client:
    """One client, driven by verbs. A verb that it lacks raises NotOffered, as all do here; one that is refused raises Refused."""

    name = ""
    version = ""
    is_fetched = False  # Whether `prepare` needs package registries.
    hashes_like_java = True  # Whether it has Java's way from a key to a partition.
    codecs: tuple[str, ...] = ("gzip", "snappy", "lz4", "zstd")  # What it can read.
    bootstrap_servers = ""

    def prepare(self, directory: Any) -> None:
        """Fetch and build what is needed in `directory`. Raises Skipped."""

    def start(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def stop(self) -> None:
        """Let go of what `start` and the verbs hold."""

    # Producing.

    def produce(self, topic: str, records: Sequence[Record], sending: Sending) -> list[str | None]:
        """Send all. Returns for each why it failed, None for one that was acknowledged (or sent, with acks 0)."""
        raise NotOffered

    # Consuming without a group.

    def read(self, topic: str, *, partitions: Sequence[int], start: int, count: int, rack: str = "", wait_ms: int = 500) -> list[Record]:
        """`count` records of the partitions, each from offset `start` on, -2 being the beginning."""
        raise NotOffered

    def seek(self, topic: str, *, count: int, back_to: int) -> list[int]:
        """Read `count` records of partition 0 from the beginning, seek, read one more. Returns their offsets."""
        raise NotOffered

    def pause(self, topic: str, *, count: int) -> list[list[int]]:
        """Pause partition 0 of 0 and 1, read `count`, resume it, read `count` more. Returns the partitions of the records, before and after."""
        raise NotOffered

    def offset_for(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """The first offset at or after the timestamp."""
        raise NotOffered

    # Groups.

    def member(self, wanted: Membership) -> Member:
        """Start one."""
        raise NotOffered

    def commit(self, group: str, place: Place, offset: int, metadata: str) -> None:
        """As a consumer commits, for a group without members."""
        raise NotOffered

    def committed(self, group: str, place: Place) -> tuple[int, str]:
        """Offset and metadata, as a consumer asks for them."""
        raise NotOffered

    # Administering.

    def create_topic(self, topic: str, shape: Shape, *, validate_only: bool = False) -> None:
        raise NotOffered

    def delete_topic(self, topic: str) -> None:
        raise NotOffered

    def add_partitions(self, topic: str, count: int) -> None:
        """So that it has `count`."""
        raise NotOffered

    def list_topics(self) -> list[str]:
        raise NotOffered

    def describe_topic(self, topic: str) -> list[dict[str, Any]]:
        """Of each partition in order: leader, replicas, isr."""
        raise NotOffered

    def describe_config(self, kind: str, name: str) -> dict[str, str | None]:
        """All settings of a topic or broker (kind)."""
        raise NotOffered

    def alter_config(self, kind: str, name: str, changes: dict[str, str | None]) -> None:
        """Change these settings and no others; None: back to the default."""
        raise NotOffered

    def replace_config(self, kind: str, name: str, config: dict[str, str]) -> None:
        """The older way: all settings that are not named go back to their defaults."""
        raise NotOffered

    def delete_records(self, place: Place, before: int) -> None:
        raise NotOffered

    def list_offsets(self, place: Place, spec: str) -> int:
        """Spec: earliest, latest or max-timestamp."""
        raise NotOffered

    def list_groups(self) -> list[str]:
        raise NotOffered

    def describe_group(self, group: str) -> dict[str, Any]:
        """state (lower case letters only), members (how many)."""
        raise NotOffered

    def delete_group(self, group: str) -> None:
        raise NotOffered

    def group_offsets(self, group: str) -> dict[Place, int]:
        """All that is committed, as an administrator asks for it."""
        raise NotOffered

    def alter_offset(self, group: str, place: Place, offset: int) -> None:
        raise NotOffered

    def delete_offset(self, group: str, place: Place) -> None:
        raise NotOffered

    def describe_cluster(self) -> dict[str, Any]:
        """id, controller and brokers (sorted ids)."""
        raise NotOffered

    def elect_leader(self, place: Place, kind: str) -> None:
        """Kind: preferred or unclean."""
        raise NotOffered

    def reassign(self, place: Place, replicas: Sequence[int] | None) -> None:
        """Begin it; None cancels one that is under way."""
        raise NotOffered

    def reassignments(self) -> list[Place]:
        """Those under way."""
        raise NotOffered

    def log_dirs(self, broker: int) -> dict[Place, int]:
        """Size in bytes of each replica of a broker."""
        raise NotOffered


def wait_for_members(condition: Any, what: str, *members: Member, timeout_s: float = WAIT_S) -> None:
    """As wait_for, but ends when a member has ended by itself."""

    def reached() -> bool:
        for member in members:
            if problem := member.problem():
                raise Failure(f"a member ended while waiting for {what}: {problem}")
        return bool(condition())

    try:
        wait_for(reached, what, timeout_s)
    except Failure as failure:
        held = [(sorted(member.partitions), len(member.values)) for member in members]
        raise Failure(f"{failure}; partitions and number of records of each member: {held}") from None
