"""The broker half of a node: its logs, replicas and coordinators, its standing with the controller, its client listeners.

`open` does what needs nobody else; `join` goes through the gates that a broker passes before it serves.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from raftlog.broker.auto_topics import AutoTopics
from raftlog.broker.channel import ControllerChannel
from raftlog.broker.coordinators import GroupCoordinators
from raftlog.broker.dynamic_settings import DynamicSettings
from raftlog.broker.lifecycle import BrokerLifecycle
from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.offsets_topic import OffsetsTopic
from raftlog.broker.replicas import ReplicaManager
from raftlog.config import Endpoint, Settings
from raftlog.core.metadata.features import KRAFT_VERSION_FEATURE, SUPPORTED_FEATURES
from raftlog.core.metadata.image import MetadataImage
from raftlog.environment import Environment
from raftlog.ids import NodeId
from raftlog.network.connection import RequestContext, Response
from raftlog.network.listener import Listener
from raftlog.protocol.messages import API_VERSIONS_BROKER
from raftlog.server.closing import Closing
from raftlog.server.features import describe_features
from raftlog.server.handlers.alter_configs import AlterConfigHandlers
from raftlog.server.handlers.cluster import ClusterHandlers
from raftlog.server.handlers.configs import ConfigHandlers
from raftlog.server.handlers.consumer_groups import ConsumerGroupHandlers
from raftlog.server.handlers.data import DataHandlers
from raftlog.server.handlers.groups import GroupHandlers
from raftlog.server.handlers.log_admin import LogAdminHandlers
from raftlog.server.handlers.log_queries import LogQueryHandlers
from raftlog.server.handlers.telemetry import TelemetryHandlers
from raftlog.server.handlers.topics import ForwardingHandlers
from raftlog.server.router import Router
from raftlog.storage.manager import LogManager

LEAVE_TIMEOUT_MS: Final = 5_000  # How long a clean stop waits for the controller to move leadership away.
METADATA_TIMEOUT_MS: Final = 2**31  # Without a quorum a broker waits: it can do nothing else.

# kraft.version is the quorum's own; a broker names its range, and no record ever finalizes it.
BROKER_FEATURES: Final[Mapping[str, tuple[int, int]]] = {**SUPPORTED_FEATURES, KRAFT_VERSION_FEATURE: (0, 1)}

logger = logging.getLogger(__name__)


class BrokerRole:
    """Everything of a node that serves clients. `metadata` is published to by whoever follows the metadata log.

    `dynamic` are the node's settings in force; what here uses those that change at run time hears of them.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Environment,
        *,
        cluster_id: str,
        logs: LogManager,
        metadata: MetadataFollower,
        dynamic: DynamicSettings,
        on_fatal: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._dynamic = dynamic
        self._environment = environment
        self._cluster_id = cluster_id
        self._logs = logs
        self._serving = asyncio.Event()
        self.metadata = metadata
        node_id = settings.node_id
        self.channel = ControllerChannel(settings, environment, client_id=f"raftlog-broker-{node_id}")
        self._lifecycle_channel = ControllerChannel(settings, environment, client_id=f"raftlog-lifecycle-{node_id}")
        self.lifecycle: BrokerLifecycle | None = None
        self.replicas = ReplicaManager(environment, settings, logs, self.channel, node_id, on_disk_failure=on_fatal)
        self.auto_topics = AutoTopics(settings, self.channel)
        offsets_topic = OffsetsTopic(settings, metadata=metadata, channel=self.channel, clock=environment.clock)
        self.coordinators = GroupCoordinators(environment, settings, replicas=self.replicas, metadata=metadata, offsets_topic=offsets_topic)
        self.router = self._router()
        self.listeners: dict[str, Listener] = {
            endpoint.listener: Listener(
                environment.network, endpoint.host, endpoint.port, self._dispatch, listener_name=endpoint.listener, settings=settings
            )
            for endpoint in settings.endpoints
            if endpoint.listener not in settings.controller_listener_names
        }
        for reconfigure in (logs.reconfigure, self.replicas.reconfigure, *(listener.reconfigure for listener in self.listeners.values())):
            dynamic.subscribe(reconfigure)

    def _router(self) -> Router:
        settings, environment, metadata = self._settings, self._environment, self.metadata
        self.data = data = DataHandlers(settings=settings, environment=environment, replicas=self.replicas, channel=self.channel, metadata=metadata)
        queries = LogQueryHandlers(replicas=self.replicas)
        self.cluster = ClusterHandlers(
            settings, cluster_id=self._cluster_id, metadata=metadata, auto_topics=self.auto_topics, chance=environment.random, clock=environment.clock
        )
        configs = ConfigHandlers(self._dynamic, metadata=metadata)
        groups = GroupHandlers(coordinators=self.coordinators, metadata=metadata)
        consumers = ConsumerGroupHandlers(coordinators=self.coordinators, metadata=metadata)
        forwarding = ForwardingHandlers(settings, channel=self.channel, metadata=metadata)
        alterations = AlterConfigHandlers(self._dynamic, forwarding=forwarding, metadata=metadata)
        log_admin = LogAdminHandlers(replicas=self.replicas, logs=self._logs, files=environment.files)
        self.telemetry = TelemetryHandlers(settings, metadata=metadata, clock=environment.clock, chance=environment.random)
        families = (self.cluster, configs, groups, consumers, data, queries, log_admin, self.telemetry)
        handlers = {key: handler for family in families for key, handler in family.handlers().items()}
        raw = {**data.raw_handlers(), **forwarding.raw_handlers(), **alterations.raw_handlers()}
        return Router(handlers, raw, API_VERSIONS_BROKER, features=lambda: describe_features(metadata.image, BROKER_FEATURES))

    async def open(self) -> None:
        """Take the ports and start what needs no controller. The logs are open already. Raises RaftlogError.

        Clients that connect before this broker serves are answered once it does.
        """
        for listener in self.listeners.values():
            await listener.start()
        self.lifecycle = BrokerLifecycle(
            self._settings,
            self._environment,
            channel=self._lifecycle_channel,
            metadata=self.metadata,
            cluster_id=self._cluster_id,
            directory_id=self._logs.directory_id,
            endpoints=self._advertised(),
            features=BROKER_FEATURES,
        )
        self.replicas.doubt_when(self.lifecycle.is_cut_off)

    async def join(self) -> None:
        """Pass the gates in their order: metadata, registration, catching up to it, replicas, being unfenced; then serve.

        Raises RegistrationRefused; RequestTimedOut when no controller registers this broker in time.
        """
        lifecycle = self._started_lifecycle()
        await self.metadata.wait_for(lambda image: image.offset > 0 and bool(image.features), timeout_ms=METADATA_TIMEOUT_MS)
        lifecycle.start()
        await lifecycle.wait_until_registered()
        await self.metadata.wait_for(self._shows_registration, timeout_ms=METADATA_TIMEOUT_MS)
        self.replicas.apply_metadata(self.metadata.image, None)  # The newest: there may be a later one than was waited for.
        self.metadata.subscribe(self.replicas.apply_metadata)
        await self.replicas.wait_until_created()
        self.replicas.start()
        self.coordinators.start()
        lifecycle.ready_to_serve()
        await lifecycle.wait_until_unfenced()
        self._serving.set()
        logger.info("broker %d serves on %s", self._settings.node_id, ", ".join(map(str, self._advertised())))

    def controller_is(self, node_id: NodeId) -> None:
        """The quorum has another leader, or none (NO_NODE)."""
        self.channel.controller_is(node_id)
        if self.lifecycle is not None:
            self.lifecycle.controller_is(node_id)

    @property
    def is_serving(self) -> bool:
        return self._serving.is_set()

    async def leave(self) -> None:
        """Hand leadership over before stopping, where controlled.shutdown.enable says so; bounded."""
        if self.lifecycle is not None and self.is_serving and self._settings.controlled_shutdown_enable:
            await self.lifecycle.leave(timeout_ms=LEAVE_TIMEOUT_MS)

    async def close(self, closing: Closing) -> None:
        """Stop serving and stop every part; the logs stay open, for whoever opened them to close."""
        steps: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            *((f"listener {name}", listener.close) for name, listener in self.listeners.items()),
            ("topics on demand", self.auto_topics.close),
            ("group coordinators", self.coordinators.close),
            ("replicas", self.replicas.close),
        ]
        if self.lifecycle is not None:
            steps.append(("heartbeats", self.lifecycle.close))
        await closing.take(
            *steps,
            ("heartbeat connection", self._lifecycle_channel.close),
            ("controller connection", self.channel.close),
        )

    def _started_lifecycle(self) -> BrokerLifecycle:
        assert self.lifecycle is not None, "join before open"
        return self.lifecycle

    def _shows_registration(self, image: MetadataImage) -> bool:
        broker = image.brokers.get(self._settings.node_id)
        return broker is not None and broker.epoch == self._started_lifecycle().broker_epoch

    def _advertised(self) -> list[Endpoint]:
        """What clients are told: this machine's name where no host is given, the listener's real port where 0 was asked for."""
        return [
            endpoint._replace(host=endpoint.host or socket.getfqdn(), port=endpoint.port or self.listeners[endpoint.listener].port)
            for endpoint in self._settings.advertised_endpoints
        ]

    def _dispatch(self, context: RequestContext, body: memoryview) -> Any:
        if self._serving.is_set():
            return self.router.dispatch(context, body)
        return self._dispatch_later(context, bytes(body))

    async def _dispatch_later(self, context: RequestContext, body: bytes) -> Response:
        context.cancel_on_close = True  # Nothing has begun yet: of a client that goes away nothing may stay behind.
        await self._serving.wait()
        context.cancel_on_close = False
        response = self.router.dispatch(context, memoryview(body))
        if response is None or isinstance(response, list | tuple):
            return response
        answer: Response = await response  # type: ignore[misc]
        return answer
