"""The client instances that a broker knows: which subscription each has, and whether it may ask or push now.

Pure: the time is an argument, in ms of a clock that does not jump. Source: KIP-714; Kafka's ClientMetricsManager.
"""

from __future__ import annotations

import uuid
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from raftlog.client_metrics_config import ALL_METRICS, INTERVAL_MS_DEFAULT, ClientMetricsConfig
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.records import RESOURCE_CLIENT_METRICS
from raftlog.core.telemetry.points import Point
from raftlog.errors import (
    ApiError,
    ErrorCode,
    InvalidConfig,
    InvalidRequest,
    TelemetryTooLarge,
    ThrottlingQuotaExceeded,
    UnknownSubscriptionId,
    UnsupportedCompressionType,
)
from raftlog.protocol.checksum import crc32c
from raftlog.protocol.compression import Compression

INSTANCES_MAX: Final = 16_384  # Kafka's bound; beyond it whoever was silent for longest is forgotten.
POINTS_MAX: Final = 10_000  # Of all clients together: a scrape of so many takes the event loop about 0.1 s.
EXPIRY_MS_MIN: Final = 60_000  # A client that is silent for so long, and for three intervals, is forgotten.
INTERVALS_UNTIL_EXPIRY: Final = 3
RESERVED_IDS: Final = frozenset({uuid.UUID(int=0), uuid.UUID(int=1)})
ACCEPTED_COMPRESSIONS: Final = (Compression.ZSTD, Compression.LZ4, Compression.GZIP, Compression.SNAPPY)

# After these the client asks for its subscription at once, and may.
_ASKS_AGAIN: Final = frozenset({ErrorCode.unknown_subscription_id, ErrorCode.unsupported_compression_type})


class Push(Protocol):
    """What is needed of a PushTelemetry request."""

    client_instance_id: uuid.UUID
    subscription_id: int
    terminating: bool
    compression_type: int
    metrics: bytes


class Grant(NamedTuple):
    """What a client is told to push; `metrics` are prefixes, sorted."""

    subscription_id: int
    metrics: tuple[str, ...]
    interval_ms: int


@dataclass(slots=True)
class Instance:
    """One client: what it calls itself, its grant by the subscriptions of `version`, and what it did last (-1: never)."""

    attributes: Mapping[str, str]
    grant: Grant
    version: int
    asked_ms: int = -1
    pushed_ms: int = -1
    contact_ms: int = 0
    is_terminating: bool = False
    last_error: ErrorCode = ErrorCode.none
    points: Sequence[Point] = ()


class ClientInstances:
    """All instances, the one heard of last at the end. Nothing here waits."""

    def __init__(self, *, size_bytes_max: int) -> None:
        """`size_bytes_max`: the largest push, compressed."""
        self.size_bytes_max = size_bytes_max
        self._subscriptions: dict[str, ClientMetricsConfig] = {}
        self._version = 0
        self._instances: OrderedDict[uuid.UUID, Instance] = OrderedDict()
        self._point_count = 0

    def __len__(self) -> int:
        return len(self._instances)

    def follow(self, image: MetadataImage) -> None:
        """The subscriptions are those of `image` from now on; one that this release can't read does not count."""
        subscriptions = {}
        for (kind, name), values in image.configs.items():
            if kind == RESOURCE_CLIENT_METRICS:
                try:
                    subscriptions[name] = ClientMetricsConfig.parse(values)
                except (InvalidConfig, InvalidRequest):
                    continue
        self._subscriptions = subscriptions
        self._version += 1

    def ask(self, instance_id: uuid.UUID, attributes: Mapping[str, str], *, now_ms: int) -> Grant:
        """What the client is to push. Raises ThrottlingQuotaExceeded when it asks before its next push is due."""
        instance = self._instance(instance_id, attributes, now_ms)
        last_ms = max(instance.asked_ms, instance.pushed_ms)
        if last_ms >= 0 and now_ms - last_ms < instance.grant.interval_ms and instance.last_error not in _ASKS_AGAIN:
            raise _too_early(instance_id)
        instance.asked_ms = now_ms
        instance.last_error = ErrorCode.none
        return instance.grant

    def check_push(self, push: Push, attributes: Mapping[str, str], *, now_ms: int) -> None:
        """Whether the push may be read; then `pushed` tells what was in it.

        Raises InvalidRequest, ThrottlingQuotaExceeded, UnknownSubscriptionId, UnsupportedCompressionType, TelemetryTooLarge.
        """
        if push.client_instance_id in RESERVED_IDS:
            raise InvalidRequest(f"Invalid request from the client [{id_text(push.client_instance_id)}], invalid client instance id")
        instance = self._instance(push.client_instance_id, attributes, now_ms)
        try:
            self._check(instance, push, now_ms)
            instance.last_error = ErrorCode.none
        except ApiError as error:
            instance.last_error = error.code
            raise
        finally:
            instance.is_terminating = push.terminating

    def _check(self, instance: Instance, push: Push, now_ms: int) -> None:
        if instance.is_terminating:
            problem = "sent the previous request with state terminating to TRUE, can not accept any requests after that"
            raise InvalidRequest(f"Client [{id_text(push.client_instance_id)}] {problem}")
        # The first push after asking may come at any time: clients spread theirs.
        is_due = instance.asked_ms > instance.pushed_ms or instance.pushed_ms < 0 or now_ms - instance.pushed_ms >= instance.grant.interval_ms
        if is_due:
            instance.pushed_ms = now_ms
        elif not push.terminating:
            raise _too_early(push.client_instance_id)
        if push.subscription_id != instance.grant.subscription_id:
            raise UnknownSubscriptionId(f"Unknown client subscription id for the client [{id_text(push.client_instance_id)}]")
        if push.compression_type not in set(Compression):
            problem = f"Unknown compression type [{push.compression_type}] is received in telemetry request"
            raise UnsupportedCompressionType(f"{problem} from [{id_text(push.client_instance_id)}]")
        if len(push.metrics) > self.size_bytes_max:
            problem = f"is larger than the maximum allowed size [{self.size_bytes_max}]"
            raise TelemetryTooLarge(f"Telemetry request from [{id_text(push.client_instance_id)}] {problem}")

    def pushed(self, instance_id: uuid.UUID, points: Sequence[Point]) -> None:
        """What the client's last push held: it takes the place of the one before."""
        instance = self._instances.get(instance_id)
        if instance is None or not points:
            return
        self._point_count += len(points) - len(instance.points)
        instance.points = points
        for each in self._instances.values():  # Oldest first.
            if self._point_count <= POINTS_MAX:
                break
            self._point_count -= len(each.points)
            each.points = ()

    def all_points(self, *, now_ms: int) -> list[tuple[Mapping[str, str], Sequence[Point]]]:
        """Of each client that has some its attributes and its points."""
        self._expire(now_ms)
        return [(instance.attributes, instance.points) for instance in self._instances.values() if instance.points]

    def _instance(self, instance_id: uuid.UUID, attributes: Mapping[str, str], now_ms: int) -> Instance:
        """The instance by the subscriptions of now; one that these changed for begins anew."""
        instance = self._instances.get(instance_id)
        if instance is None and len(self._instances) >= INSTANCES_MAX:
            self._forget(next(iter(self._instances)))
        if instance is None or instance.version != self._version:
            points = () if instance is None else instance.points
            attributes = {**attributes, "client_instance_id": id_text(instance_id)}
            instance = Instance(attributes, self._grant(instance_id, attributes), self._version, points=points)
            self._instances[instance_id] = instance
        instance.contact_ms = now_ms
        self._instances.move_to_end(instance_id)
        return instance

    def _grant(self, instance_id: uuid.UUID, attributes: Mapping[str, str]) -> Grant:
        matching = [config for _, config in sorted(self._subscriptions.items()) if config.matches(attributes)]
        metrics = tuple(sorted({metric for config in matching for metric in config.metrics}))
        if ALL_METRICS in metrics:
            metrics = (ALL_METRICS,)
        interval_ms = min((config.interval_ms for config in matching), default=INTERVAL_MS_DEFAULT)
        digest = crc32c(f"{metrics}{interval_ms}".encode()) ^ (instance_id.int & 0xFFFFFFFF)
        return Grant(digest - 2**32 if digest >= 2**31 else digest, metrics, interval_ms)

    def _expire(self, now_ms: int) -> None:
        silent = [
            instance_id
            for instance_id, instance in self._instances.items()
            if now_ms - instance.contact_ms > max(EXPIRY_MS_MIN, INTERVALS_UNTIL_EXPIRY * instance.grant.interval_ms)
        ]
        for instance_id in silent:
            self._forget(instance_id)

    def _forget(self, instance_id: uuid.UUID) -> None:
        self._point_count -= len(self._instances.pop(instance_id).points)


def id_text(instance_id: uuid.UUID) -> str:
    """An id as Kafka writes it."""
    return urlsafe_b64encode(instance_id.bytes).decode().rstrip("=")


def _too_early(instance_id: uuid.UUID) -> ThrottlingQuotaExceeded:
    return ThrottlingQuotaExceeded(f"Request from the client [{id_text(instance_id)}] arrived before the next push interval time")
