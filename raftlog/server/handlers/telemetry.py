"""Client telemetry (KIP-714): clients ask what they are to push, and push it; the newest of it is in this broker's metrics.

Served only where there is a `metrics.listener`: elsewhere nobody could see what clients pushed, and they are not bothered.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raftlog.broker.metadata import MetadataFollower
from raftlog.config import Settings
from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.core.metadata.records import RESOURCE_CLIENT_METRICS
from raftlog.core.telemetry.instances import ACCEPTED_COMPRESSIONS, RESERVED_IDS, ClientInstances
from raftlog.core.telemetry.points import Point
from raftlog.environment import Clock
from raftlog.errors import CorruptMessage, InvalidRecord, MessageTooLarge
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.compression import decompress_bounded
from raftlog.protocol.messages import Fields
from raftlog.server import otlp
from raftlog.server.router import Handler

EXPANSION_MAX: Final = 8  # A push may hold so many times telemetry.max.bytes when it is decompressed.


class TelemetryHandlers:
    """The clients that this broker knows, and what they pushed."""

    def __init__(self, settings: Settings, *, metadata: MetadataFollower, clock: Clock, chance: random.Random) -> None:
        self._is_served = settings.metrics_listener is not None
        self._instances = ClientInstances(size_bytes_max=settings.telemetry_max_bytes)
        self._clock = clock
        self._chance = chance
        metadata.subscribe(self._follow)

    def _follow(self, image: MetadataImage, delta: MetadataDelta) -> None:
        if any(kind == RESOURCE_CLIENT_METRICS for kind, _ in delta.changed_configs):
            self._instances.follow(image)

    def points(self) -> list[tuple[Mapping[str, str], Sequence[Point]]]:
        """What each client pushed last, with what it calls itself."""
        return self._instances.all_points(now_ms=self._clock.monotonic_ms())

    def handlers(self) -> Mapping[int, Handler]:
        if not self._is_served:
            return {}
        return {ApiKey.GET_TELEMETRY_SUBSCRIPTIONS: self.get_subscriptions, ApiKey.PUSH_TELEMETRY: self.push}

    def get_subscriptions(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer GetTelemetrySubscriptions v0 (key 71): a new id for a client without one, and what it is to push.

        Raises ThrottlingQuotaExceeded. Counters are asked for as totals, which is what Prometheus reads.
        """
        instance_id = request.client_instance_id
        while instance_id in RESERVED_IDS:
            instance_id = uuid.UUID(int=self._chance.getrandbits(128), version=4)
        grant = self._instances.ask(instance_id, attributes_of(context), now_ms=self._clock.monotonic_ms())
        return {
            "client_instance_id": instance_id,
            "subscription_id": grant.subscription_id,
            "accepted_compression_types": [int(compression) for compression in ACCEPTED_COMPRESSIONS],
            "push_interval": grant.interval_ms,
            "telemetry_max_bytes": self._instances.size_bytes_max,
            "delta_temporality": False,
            "requested_metrics": grant.metrics,
        }

    async def push(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer PushTelemetry v0 (key 72). Raises what `ClientInstances.check_push` raises, and InvalidRecord."""
        self._instances.check_push(request, attributes_of(context), now_ms=self._clock.monotonic_ms())
        if request.metrics:
            await asyncio.get_running_loop().run_in_executor(None, otlp.load)
            limit_bytes = EXPANSION_MAX * self._instances.size_bytes_max
            try:
                data = decompress_bounded(request.metrics, request.compression_type, size_bytes_max=limit_bytes)
            except (CorruptMessage, MessageTooLarge) as error:
                raise InvalidRecord(str(error)) from None
            self._instances.pushed(request.client_instance_id, otlp.decode(data))
        return {}


def attributes_of(context: RequestContext) -> dict[str, str]:
    """What subscriptions may match, but for the instance id."""
    address, _, port = context.connection.peer.rpartition(":")
    name, version = context.connection.software
    given = {
        "client_id": context.client_id,
        "client_software_name": name,
        "client_software_version": version,
        "client_source_address": address.strip("[]"),
        "client_source_port": port,
    }
    return {attribute: value for attribute, value in given.items() if value}
