"""A node's settings: Kafka's names and meanings, read from a .properties file and overridden, validated once, frozen.

Order, later wins: defaults, the file, `RAFTLOG_…` environment variables (`RAFTLOG_LOG_DIRS` sets `log.dirs`), `--set`.
What the metadata log says of a broker is above them all (KIP-226), for settings whose `mode` allows it.
A field's name is the setting's name with `_` for `.`; its annotation is its type, INT where it is `int` and `type` says
nothing else. A setting that has no effect is not here, and one that has none before a restart is READ_ONLY.
Source: https://kafka.apache.org/documentation/#brokerconfigs
"""

from __future__ import annotations

import dataclasses
import enum
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from raftlog.config_types import REQUIRED, ConfigKey, ConfigType
from raftlog.errors import ConfigError, InvalidConfig
from raftlog.ids import NodeId

ENVIRONMENT_PREFIX: Final = "RAFTLOG_"
PLAINTEXT: Final = "PLAINTEXT"
# The values of `replica.selector.class` are those that Kafka's users set.
RACK_AWARE_SELECTOR: Final = "org.apache.kafka.common.replica.RackAwareReplicaSelector"
LEADER_SELECTOR: Final = "org.apache.kafka.common.replica.LeaderSelector"
ASSIGNOR_NAMES: Final = ("uniform", "range")  # Those of `core.coordinators.assignors`.


class Endpoint(NamedTuple):
    """One entry of `listeners` or `advertised.listeners`."""

    listener: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.listener}://{self.host}:{self.port}"


class Voter(NamedTuple):
    """One entry of `controller.quorum.voters`: `id@host:port`."""

    node_id: NodeId
    host: str
    port: int


class UpdateMode(enum.Enum):
    """Where a setting may be given besides the file: nowhere, for one broker only, or for one and for all. Source: KIP-226."""

    READ_ONLY = "read-only"
    PER_BROKER = "per-broker"
    CLUSTER_WIDE = "cluster-wide"


READ_ONLY: Final = UpdateMode.READ_ONLY
PER_BROKER: Final = UpdateMode.PER_BROKER
CLUSTER_WIDE: Final = UpdateMode.CLUSTER_WIDE
LONG: Final = ConfigType.LONG
SHORT: Final = ConfigType.SHORT


def setting(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    type: ConfigType | None = None,
    mode: UpdateMode = UpdateMode.READ_ONLY,
    minimum: float | None = None,
    maximum: float | None = None,
    one_of: tuple[str, ...] | None = None,
    check: Callable[[Any], str | None] | None = None,
) -> Any:
    """A field of Settings; `mode` is not READ_ONLY only where every part that uses the setting hears of its change."""
    validation = {"minimum": minimum, "maximum": maximum, "one_of": one_of, "check": check}
    return dataclasses.field(default=default, metadata={"doc": doc, "type": type, "mode": mode, **validation})


def _gzip_level_problem(level: int) -> str | None:
    """Kafka's rule and words: 0, no compression at all, is no level."""
    return None if level == -1 or 1 <= level <= 9 else "Value must be between 1 and 9 or equal to -1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one node; build it with `load`, which validates, or `dataclasses.replace`."""

    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)  # Names that the file or a later source named.

    # Identity and roles
    process_roles: tuple[str, ...] = setting(("broker", "controller"), doc="Roles of this process: broker, controller or both.")
    node_id: int = setting(doc="This node's id, unique in the cluster.", minimum=0)
    broker_rack: str | None = setting(None, doc="Rack of this broker, for replica placement.")
    controller_quorum_voters: tuple[str, ...] = setting(doc="The voters of the quorum: id@host:port, comma-separated.")
    controller_listener_names: tuple[str, ...] = setting(("CONTROLLER",), doc="Names of the listeners that controllers use.")

    # Sockets
    listeners: tuple[str, ...] = setting(("PLAINTEXT://127.0.0.1:9092",), doc="Where this node listens: NAME://host:port, comma-separated.")
    advertised_listeners: tuple[str, ...] = setting((), doc="What clients are told to connect to; the listeners when empty.")
    listener_security_protocol_map: tuple[str, ...] = setting((), doc="NAME:PROTOCOL per listener; only PLAINTEXT so far.")
    inter_broker_listener_name: str = setting(PLAINTEXT, doc="The listener that brokers use among themselves.")
    socket_request_max_bytes: int = setting(104857600, doc="Largest request that is accepted, in bytes.", minimum=1024)
    socket_send_buffer_bytes: int = setting(102400, doc="SO_SNDBUF of a connection; -1 for the system's.", minimum=-1)
    socket_receive_buffer_bytes: int = setting(102400, doc="SO_RCVBUF of a connection; -1 for the system's.", minimum=-1)
    max_connections: int = setting(2147483647, mode=CLUSTER_WIDE, doc="Most connections to a listener at once.", minimum=1)
    max_connections_per_ip: int = setting(2147483647, mode=CLUSTER_WIDE, doc="Most connections from one address to a listener at once.", minimum=0)
    connections_max_idle_ms: int = setting(600000, type=LONG, doc="A connection without a request for so long is closed.", minimum=1000)

    # Quorum
    controller_quorum_election_timeout_ms: int = setting(
        1000, doc="Longest wait without a leader before a voter stands for election; at random from half of it.", minimum=50
    )
    controller_quorum_append_linger_ms: int = setting(2, doc="How long the active controller gathers decisions into one entry.", minimum=0)
    metadata_log_max_record_bytes_between_snapshots: int = setting(
        20971520, type=LONG, doc="A snapshot is taken after so many bytes of metadata records.", minimum=1024
    )

    # Brokers and the controller
    broker_heartbeat_interval_ms: int = setting(2000, doc="Pause between a broker's heartbeats.", minimum=10)
    broker_session_timeout_ms: int = setting(9000, doc="A broker without a heartbeat for so long is fenced.", minimum=100)
    initial_broker_registration_timeout_ms: int = setting(60000, doc="A broker that can't register for so long gives up.", minimum=1000)
    controlled_shutdown_enable: bool = setting(True, doc="Hand leadership over before stopping.")
    auto_leader_rebalance_enable: bool = setting(True, doc="Give leadership back to preferred leaders from time to time.")
    leader_imbalance_check_interval_seconds: int = setting(
        300, type=LONG, doc="Pause between looks for leaders that are not the preferred ones.", minimum=1
    )
    leader_imbalance_per_broker_percentage: int = setting(
        10, doc="Share of a broker's preferred leaderships that others may hold before it gets them back.", minimum=0, maximum=100
    )
    auto_create_topics_enable: bool = setting(True, doc="Create a topic that a client asks for.")
    num_partitions: int = setting(1, doc="Partitions of a topic that names no number.", minimum=1)
    default_replication_factor: int = setting(1, doc="Replicas of a topic that names no number.", minimum=1, maximum=32767)
    delete_topic_enable: bool = setting(True, doc="Allow topics to be deleted.")
    unclean_leader_election_enable: bool = setting(
        False, mode=CLUSTER_WIDE, doc="Let a replica outside the ISR lead when none in it is left; loses data."
    )
    min_insync_replicas: int = setting(1, mode=CLUSTER_WIDE, doc="Members the ISR must have for acks=all to be accepted.", minimum=1)

    # Log
    log_dir: str | None = setting(None, doc="Directory of this node's logs, where log.dirs is unset.")
    log_dirs: tuple[str, ...] = setting(("raftlog-data",), doc="Directory of this node's logs.")
    metadata_log_dir: str | None = setting(None, doc="Directory of the metadata log; the first of log.dirs when unset.")
    log_segment_bytes: int = setting(1073741824, mode=CLUSTER_WIDE, doc="A segment is rolled at this size.", minimum=1024)
    log_preallocate: bool = setting(False, mode=CLUSTER_WIDE, doc="Keep room on the disk for a new segment's log.segment.bytes at once (Linux).")
    log_roll_ms: int | None = setting(
        None, mode=CLUSTER_WIDE, type=LONG, doc="A segment is rolled at this age of its first record; log.roll.hours when unset.", minimum=1
    )
    log_roll_hours: int = setting(168, doc="A segment is rolled at this age of its first record, where log.roll.ms is unset.", minimum=1)
    log_roll_jitter_ms: int | None = setting(
        None, mode=CLUSTER_WIDE, type=LONG, doc="Up to so much earlier is a segment rolled; log.roll.jitter.hours when unset.", minimum=0
    )
    log_roll_jitter_hours: int = setting(0, doc="Up to so much earlier is a segment rolled, where log.roll.jitter.ms is unset.", minimum=0)
    log_retention_ms: int | None = setting(
        None,
        mode=CLUSTER_WIDE,
        type=LONG,
        doc="Segments whose newest record is older are deleted; -1: never. log.retention.minutes when unset.",
        minimum=-1,
    )
    log_retention_minutes: int | None = setting(None, doc="As log.retention.ms, where that is unset; log.retention.hours when unset.", minimum=-1)
    log_retention_hours: int = setting(168, doc="As log.retention.ms, where neither that nor log.retention.minutes is set.", minimum=-1)
    log_retention_bytes: int = setting(
        -1, mode=CLUSTER_WIDE, type=LONG, doc="Oldest segments beyond this size of a partition are deleted; -1: never.", minimum=-1
    )
    num_recovery_threads_per_data_dir: int = setting(8, doc="Logs that are opened, or flushed and closed, at a time.", minimum=1)
    log_cleanup_policy: tuple[str, ...] = setting(
        ("delete",),
        mode=CLUSTER_WIDE,
        doc="What becomes of old segments: they are deleted, compacted to the last record of each key, or both.",
        one_of=("compact", "delete"),
    )
    log_retention_check_interval_ms: int = setting(300000, type=LONG, doc="Pause between looks for segments to delete.", minimum=10)
    log_cleaner_enable: bool = setting(True, doc="Compact the logs whose policy says so; without it they only grow.")
    log_cleaner_backoff_ms: int = setting(15000, mode=CLUSTER_WIDE, type=LONG, doc="Pause of the cleaner when no log is dirty enough.", minimum=0)
    log_cleaner_dedupe_buffer_size: int = setting(
        134217728,
        mode=CLUSTER_WIDE,
        type=LONG,
        doc="Most memory the cleaner uses for keys, in bytes; what does not fit waits for the next round.",
        minimum=1,
    )
    log_cleaner_io_max_bytes_per_second: float = setting(
        1.7976931348623157e308, mode=CLUSTER_WIDE, doc="Most bytes per second that the cleaner reads and writes.", minimum=1
    )
    log_cleaner_min_cleanable_ratio: float = setting(
        0.5, mode=CLUSTER_WIDE, doc="Share of a log that must be dirty before it is compacted.", minimum=0, maximum=1
    )
    log_cleaner_delete_retention_ms: int = setting(
        86400000, mode=CLUSTER_WIDE, type=LONG, doc="How long a tombstone stays after it was first compacted.", minimum=0
    )
    log_cleaner_min_compaction_lag_ms: int = setting(
        0, mode=CLUSTER_WIDE, type=LONG, doc="A record is not compacted before it has this age.", minimum=0
    )
    log_cleaner_max_compaction_lag_ms: int = setting(
        9223372036854775807, mode=CLUSTER_WIDE, type=LONG, doc="A log is compacted when its oldest dirty record has this age.", minimum=1
    )
    log_index_interval_bytes: int = setting(4096, mode=CLUSTER_WIDE, doc="Bytes of log between two index entries.", minimum=0)
    log_index_size_max_bytes: int = setting(10485760, mode=CLUSTER_WIDE, doc="Largest index file.", minimum=96)
    log_message_timestamp_type: str = setting(
        "CreateTime", mode=CLUSTER_WIDE, doc="Whose clock stamps records.", one_of=("CreateTime", "LogAppendTime")
    )
    log_message_timestamp_before_max_ms: int = setting(
        9223372036854775807, mode=CLUSTER_WIDE, type=LONG, doc="How far a record's timestamp may lie before the broker's time.", minimum=0
    )
    log_message_timestamp_after_max_ms: int = setting(
        3600000, mode=CLUSTER_WIDE, type=LONG, doc="How far a record's timestamp may lie after the broker's time.", minimum=0
    )
    compression_type: str = setting(
        "producer",
        mode=CLUSTER_WIDE,
        doc="The codec in which records are stored; producer: the one they come in.",
        one_of=("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
    )
    compression_gzip_level: int = setting(
        -1, mode=CLUSTER_WIDE, doc="The level of compression.type gzip; -1: the codec's own default.", check=_gzip_level_problem
    )
    compression_lz4_level: int = setting(9, mode=CLUSTER_WIDE, doc="The level of compression.type lz4.", minimum=1, maximum=17)
    compression_zstd_level: int = setting(3, mode=CLUSTER_WIDE, doc="The level of compression.type zstd.", minimum=-131072, maximum=22)
    log_flush_interval_messages: int = setting(
        9223372036854775807, mode=CLUSTER_WIDE, type=LONG, doc="Records after which a partition is fsynced.", minimum=1
    )
    log_segment_delete_delay_ms: int = setting(
        60000, mode=CLUSTER_WIDE, type=LONG, doc="How long the files of a segment that was deleted stay on the disk.", minimum=0
    )
    log_flush_interval_ms: int | None = setting(
        None, mode=CLUSTER_WIDE, type=LONG, doc="Longest that records wait to be fsynced; log.flush.scheduler.interval.ms when unset.", minimum=0
    )
    log_flush_scheduler_interval_ms: int = setting(
        9223372036854775807, type=LONG, doc="Longest that records wait to be fsynced, where log.flush.interval.ms is unset.", minimum=1
    )
    log_flush_offset_checkpoint_interval_ms: int = setting(60000, doc="Pause between writes of the recovery-point checkpoint.", minimum=10)
    message_max_bytes: int = setting(1048588, mode=CLUSTER_WIDE, doc="Largest batch that is accepted, in bytes.", minimum=0)
    producer_id_expiration_ms: int = setting(
        86400000, mode=CLUSTER_WIDE, doc="A producer's sequence state is forgotten after so long without a record.", minimum=1
    )

    # Replication
    replica_lag_time_max_ms: int = setting(30000, type=LONG, doc="A follower that has not caught up for so long leaves the ISR.", minimum=10)
    max_request_partition_size_limit: int = setting(2000, doc="Most partitions in one response to DescribeTopicPartitions.", minimum=1)
    fetch_max_bytes: int = setting(57671680, doc="Most bytes of records in one response to a consumer's fetch.", minimum=1024)
    max_incremental_fetch_session_cache_slots: int = setting(1000, doc="Fetch sessions remembered at a time.", minimum=0)
    replica_selector_class: str | None = setting(
        None,
        type=ConfigType.CLASS,
        doc="Which replica consumers are sent to: the leader (also when unset), or one in their own rack.",
        one_of=(RACK_AWARE_SELECTOR, LEADER_SELECTOR),
    )
    replica_fetch_max_bytes: int = setting(1048576, doc="Bytes a follower asks for per partition.", minimum=1)
    replica_fetch_response_max_bytes: int = setting(10485760, doc="Bytes a follower asks for per request.", minimum=1)
    replica_fetch_wait_max_ms: int = setting(500, doc="Longest a follower's fetch waits at the leader.", minimum=1)
    replica_fetch_backoff_ms: int = setting(1000, doc="Longest pause of a follower after a failed fetch.", minimum=1)
    leader_replication_throttled_rate: int = setting(
        2**63 - 1, mode=CLUSTER_WIDE, type=LONG, doc="Bytes per second at most that throttled leaders send to followers out of sync.", minimum=0
    )
    follower_replication_throttled_rate: int = setting(
        2**63 - 1, mode=CLUSTER_WIDE, type=LONG, doc="Bytes per second at most that throttled followers out of sync fetch.", minimum=0
    )
    replica_high_watermark_checkpoint_interval_ms: int = setting(
        5000, type=LONG, doc="Pause between writes of the high-watermark checkpoint.", minimum=10
    )

    # Groups
    offsets_topic_num_partitions: int = setting(50, doc="Partitions of __consumer_offsets.", minimum=1)
    offsets_topic_replication_factor: int = setting(3, type=SHORT, doc="Replicas of __consumer_offsets.", minimum=1)
    offsets_topic_segment_bytes: int = setting(104857600, doc="Segment size of __consumer_offsets.", minimum=1024)
    offsets_retention_minutes: int = setting(
        10080, doc="A committed offset is forgotten so long after its group became empty, or its consumer committed it.", minimum=1
    )
    offsets_retention_check_interval_ms: int = setting(600000, type=LONG, doc="Pause between looks for offsets to forget.", minimum=1)
    offset_metadata_max_bytes: int = setting(4096, doc="Longest metadata string of a committed offset.", minimum=0)
    group_initial_rebalance_delay_ms: int = setting(0, doc="Wait for more members at the first rebalance of an empty group.", minimum=0)
    group_min_session_timeout_ms: int = setting(6000, doc="Shortest session timeout a member may ask for.", minimum=1)
    group_max_session_timeout_ms: int = setting(1800000, doc="Longest session timeout a member may ask for.", minimum=1)
    group_max_size: int = setting(2147483647, doc="Most members of a classic group.", minimum=1)
    group_consumer_session_timeout_ms: int = setting(
        45000, doc="A member of the consumer protocol without a heartbeat for so long is out of its group.", minimum=1
    )
    group_consumer_min_session_timeout_ms: int = setting(45000, doc="Least that group.consumer.session.timeout.ms may be.", minimum=1)
    group_consumer_max_session_timeout_ms: int = setting(60000, doc="Most that group.consumer.session.timeout.ms may be.", minimum=1)
    group_consumer_heartbeat_interval_ms: int = setting(
        5000, doc="Pause between heartbeats that members of the consumer protocol are told.", minimum=1
    )
    group_consumer_min_heartbeat_interval_ms: int = setting(5000, doc="Least that group.consumer.heartbeat.interval.ms may be.", minimum=1)
    group_consumer_max_heartbeat_interval_ms: int = setting(15000, doc="Most that group.consumer.heartbeat.interval.ms may be.", minimum=1)
    group_consumer_max_size: int = setting(2147483647, doc="Most members of a group of the consumer protocol.", minimum=1)
    group_consumer_assignors: tuple[str, ...] = setting(
        ASSIGNOR_NAMES, doc="Assignors that members of the consumer protocol may ask for; the first is the default."
    )
    group_consumer_migration_policy: str = setting(
        "bidirectional",
        doc="Which groups with members may change between the classic and the consumer protocol; empty ones always may.",
        one_of=("bidirectional", "upgrade", "downgrade", "disabled"),
    )
    group_consumer_regex_refresh_interval_ms: int = setting(
        600000, doc="Regular expressions that members are subscribed to are matched anew after so long at the latest.", minimum=10000
    )

    # Observation
    telemetry_max_bytes: int = setting(
        1048576, doc="Largest push of metrics that is accepted from a client; none is without a metrics.listener.", minimum=1
    )
    metrics_listener: str | None = setting(None, doc="host:port where metrics are served in Prometheus' format; none when unset.")

    @property
    def is_broker(self) -> bool:
        return "broker" in self.process_roles

    @property
    def is_controller(self) -> bool:
        return "controller" in self.process_roles

    @property
    def voters(self) -> tuple[Voter, ...]:
        return tuple(_parse_voter(text) for text in self.controller_quorum_voters)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(parse_endpoint(text) for text in self.listeners)

    @property
    def advertised_endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints clients and brokers are told of: never those of the controller listeners."""
        named = tuple(parse_endpoint(text) for text in self.advertised_listeners) or self.endpoints
        return tuple(endpoint for endpoint in named if endpoint.listener not in self.controller_listener_names)

    @property
    def data_directory(self) -> str:
        return self.log_dirs[0]

    @property
    def metadata_directory(self) -> str:
        return self.metadata_log_dir or self.data_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingKey(ConfigKey):
    """One setting: its key, the field of Settings that holds it, and where it may be changed at run time."""

    field: str
    mode: UpdateMode


def _keys() -> dict[str, SettingKey]:
    hints = typing.get_type_hints(Settings)
    by_hint = {bool: ConfigType.BOOLEAN, int: ConfigType.INT, float: ConfigType.DOUBLE, tuple[str, ...]: ConfigType.LIST}
    keys = {}
    for field in dataclasses.fields(Settings):
        if not field.metadata:
            continue
        hint = next((part for part in typing.get_args(hints[field.name]) if part in by_hint), hints[field.name])
        properties = dict(field.metadata)
        properties["type"] = properties["type"] or by_hint.get(hint, ConfigType.STRING)
        properties["default"] = REQUIRED if field.default is dataclasses.MISSING else field.default
        name = field.name.replace("_", ".")
        keys[name] = SettingKey(name=name, field=field.name, **properties)
    return keys


KEYS: Final[Mapping[str, SettingKey]] = _keys()


def load(
    file_text: str = "",
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from the text of a .properties file, the process's environment and `--set` pairs.

    Raises ConfigError, one line, for a setting that is unknown, ill-typed, missing, out of range or contradictory.
    """
    texts: dict[str, str] = parse_properties(file_text)
    texts.update(_from_environ(environ or {}))
    texts.update(overrides or {})
    unknown = [repr(name) for name in texts if name not in KEYS]
    if unknown:
        raise ConfigError(f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}")
    values = {}
    for name, text in texts.items():
        try:
            values[KEYS[name].field] = KEYS[name].parse(text)
        except InvalidConfig as error:
            raise ConfigError(str(error)) from None
    if values.get("log_dir") is not None and "log_dirs" not in values:
        values["log_dirs"] = (values["log_dir"],)
    for name, key in KEYS.items():
        if key.default is REQUIRED and key.field not in values:
            raise ConfigError(f"setting {name!r} is missing")
    settings = Settings(given=frozenset(texts), **values)
    _check_together(settings)
    return settings


def parse_properties(text: str) -> dict[str, str]:
    r"""The settings of a .properties file, in Java's syntax; of a name that comes twice the last. Raises ConfigError.

    `name=value`, `name: value` or `name value`; `#` and `!` begin comments, `\` at the end of a line continues it, and
    elsewhere takes the next character as it is (`\t`, `\n`, `\r`, `\f` and `\uXXXX` as in Java).
    """
    pairs: dict[str, str] = {}
    pending = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = pending + raw.strip(" \t\f")
        if not pending and (not line or line[0] in "#!"):
            continue
        pending = ""
        if _CONTINUED.search(line):
            pending = line[:-1]
            continue
        pair = _PAIR.fullmatch(line)
        if pair is None:
            raise ConfigError(f"line {number} is not name=value: {line!r}")
        pairs[_unescaped(pair[1])] = _unescaped(pair[2]).strip()
    return pairs


_CONTINUED: Final = re.compile(r"(?<!\\)(?:\\\\)*\\$")  # An odd number of backslashes at the end.
_PAIR: Final = re.compile(r"((?:\\.|[^\\=:\s])+)(?:\s*[=:]\s*|\s+)(.*)")
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1][1:], 16)) if len(found[1]) > 1 else _CONTROLS.get(found[1], found[1]), text)


def _from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    by_variable = {ENVIRONMENT_PREFIX + name.replace(".", "_").upper(): name for name in KEYS}
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable not in by_variable:
            raise ConfigError(f"environment variable {variable} names no setting")
        found[by_variable[variable]] = text
    return found


def parse_endpoint(text: str) -> Endpoint:
    """`NAME://host:port`, host in brackets where it is an IPv6 address. Raises ConfigError."""
    listener, separator, address = text.partition("://")
    host, colon, port = address.rpartition(":")
    if not (separator and colon and port.isdigit() and int(port) < 65536 and listener):
        raise ConfigError(f"listener {text!r} is not NAME://host:port")
    return Endpoint(listener, host.strip("[]"), int(port))


def _parse_voter(text: str) -> Voter:
    node_id, separator, address = text.partition("@")
    host, colon, port = address.rpartition(":")
    if not (separator and colon and node_id.isdigit() and port.isdigit() and int(port) < 65536 and host):
        raise ConfigError(f"voter {text!r} in 'controller.quorum.voters' is not id@host:port")
    return Voter(int(node_id), host.strip("[]"), int(port))


def _check_groups(settings: Settings) -> None:
    for name in ("session_timeout_ms", "heartbeat_interval_ms"):
        low, value, high = (getattr(settings, f"group_consumer_{kind}{name}") for kind in ("min_", "", "max_"))
        if not low <= value <= high:
            dotted = name.replace("_", ".")
            raise ConfigError(
                f"setting 'group.consumer.{dotted}' must be within 'group.consumer.min.{dotted}' {low} and its maximum {high}, not {value}"
            )
    if settings.group_consumer_heartbeat_interval_ms >= settings.group_consumer_session_timeout_ms:
        raise ConfigError("setting 'group.consumer.heartbeat.interval.ms' must be below 'group.consumer.session.timeout.ms'")
    unknown = set(settings.group_consumer_assignors) - set(ASSIGNOR_NAMES)
    if unknown or not settings.group_consumer_assignors:
        raise ConfigError(f"setting 'group.consumer.assignors' must name some of {', '.join(ASSIGNOR_NAMES)}")


def _check_together(settings: Settings) -> None:
    _check_groups(settings)
    roles = set(settings.process_roles)
    if not roles or not roles <= {"broker", "controller"}:
        raise ConfigError(f"setting 'process.roles' must be broker, controller or both, not {','.join(settings.process_roles)!r}")
    voters = settings.voters
    if not voters:
        raise ConfigError("setting 'controller.quorum.voters' names no voter")
    if len({voter.node_id for voter in voters}) != len(voters):
        raise ConfigError("setting 'controller.quorum.voters' names a node id twice")
    if settings.is_controller != any(voter.node_id == settings.node_id for voter in voters):
        raise ConfigError(f"node.id {settings.node_id} must be among 'controller.quorum.voters' exactly when it is a controller")
    names = [endpoint.listener for endpoint in settings.endpoints]
    if len(set(names)) != len(names):
        raise ConfigError("setting 'listeners' names a listener twice")
    if settings.is_controller and not set(names) & set(settings.controller_listener_names):
        raise ConfigError("a controller needs a listener named in 'controller.listener.names'")
    if settings.is_broker and settings.inter_broker_listener_name not in names:
        raise ConfigError(f"'inter.broker.listener.name' {settings.inter_broker_listener_name!r} is not among 'listeners'")
    for endpoint in settings.advertised_endpoints if settings.is_broker else ():
        if endpoint.host in ("0.0.0.0", "::"):
            raise ConfigError(f"clients can't be told to connect to {endpoint.host}: set 'advertised.listeners'")
    for pair in settings.listener_security_protocol_map:
        if pair.partition(":")[2] != PLAINTEXT:
            raise ConfigError(f"listener.security.protocol.map: only PLAINTEXT is supported so far, not {pair!r}")
    if len(settings.log_dirs) != 1:
        raise ConfigError("setting 'log.dirs' must name exactly one directory so far")
