"""The controller half of a node: a voter of the quorum, the controller on top of it, and the controllers' listener."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from raftlog.broker.dynamic_settings import DynamicSettings
from raftlog.config import Settings
from raftlog.core.metadata import records as r
from raftlog.core.metadata.features import KRAFT_VERSION_FEATURE, SUPPORTED_FEATURES, bootstrap_records
from raftlog.environment import Environment
from raftlog.errors import StorageError
from raftlog.ids import LeaderEpoch, NodeId, Offset
from raftlog.network.listener import Listener
from raftlog.protocol.messages import API_VERSIONS_CONTROLLER, ApiKey
from raftlog.quorum.controller import Controller
from raftlog.quorum.quorum import RAFT_API_KEY, CommittedBatch, Leadership, Quorum
from raftlog.quorum.snapshots import BOOTSTRAP_FILE, read_bootstrap_checkpoint, write_bootstrap_checkpoint
from raftlog.server.closing import Closing
from raftlog.server.features import describe_features
from raftlog.server.handlers.configs import ConfigHandlers
from raftlog.server.handlers.controller import ControllerHandlers
from raftlog.server.handlers.metadata_log import MetadataLogHandlers
from raftlog.server.router import Router

CONTROLLER_FEATURES: Final[Mapping[str, tuple[int, int]]] = {**SUPPORTED_FEATURES, KRAFT_VERSION_FEATURE: (0, 1)}


logger = logging.getLogger(__name__)


class ControllerRole:
    """Everything of a node that takes part in the quorum."""

    def __init__(
        self,
        settings: Settings,
        environment: Environment,
        *,
        cluster_id: str,
        dynamic: DynamicSettings,
        on_fatal: Callable[[str], None],
        on_leader: Callable[[NodeId], None],
    ) -> None:
        """`dynamic`: the node's settings in force. `on_leader` hears who leads the quorum, NO_NODE while nobody does."""
        self._settings = settings
        self._environment = environment
        self._on_leader = on_leader
        self.controller = Controller(settings, environment, cluster_id=cluster_id)
        self.quorum = Quorum(
            settings=settings,
            environment=environment,
            cluster_id=cluster_id,
            state_machine=_Watched(self.controller, self._leadership_changed),
            on_fatal=lambda error: on_fatal(f"the metadata quorum stopped on this node: {error}"),
        )
        self.controller.attach(self.quorum)
        self._log_handlers = MetadataLogHandlers(settings, quorum=self.quorum, cluster_id=cluster_id, clock=environment.clock)
        configs = ConfigHandlers(dynamic, metadata=self.controller)
        own = ControllerHandlers(self.controller, settings=settings, cluster_id=cluster_id)
        self.router = Router(
            {**own.handlers(), **self._log_handlers.handlers(), ApiKey.DESCRIBE_CONFIGS: configs.describe_configs},
            {**own.raw_handlers(), **self._log_handlers.raw_handlers(), RAFT_API_KEY: self.quorum.raft_handler},
            API_VERSIONS_CONTROLLER,
            features=lambda: describe_features(self.controller.image, CONTROLLER_FEATURES),
        )
        own.route(self.router)
        self.listeners: dict[str, Listener] = {
            endpoint.listener: Listener(
                environment.network, endpoint.host, endpoint.port, self.router.dispatch, listener_name=endpoint.listener, settings=settings
            )
            for endpoint in settings.endpoints
            if endpoint.listener in settings.controller_listener_names
        }
        for listener in self.listeners.values():
            dynamic.subscribe(listener.reconfigure)

    @property
    def is_active(self) -> bool:
        return self.controller.is_active

    async def start(self) -> None:
        """Listen, recover the metadata log, and take part. Raises RaftlogError."""
        self.controller.bootstrap = _bootstrap(self._settings, self._environment)
        for listener in self.listeners.values():
            await listener.start()
        await self.quorum.start()

    async def close(self, closing: Closing) -> None:
        """Stop deciding, leave the quorum, close the listener."""
        await closing.take(
            ("controller", self.controller.close),
            ("quorum", self.quorum.close),
            *((f"listener {name}", listener.close) for name, listener in self.listeners.items()),
        )

    def _leadership_changed(self, leadership: Leadership) -> None:
        self._log_handlers.leadership_changed()
        self._on_leader(leadership.leader_id)


def _bootstrap(settings: Settings, environment: Environment) -> list[r.MetadataRecord]:
    """What the metadata log begins with: the records of `bootstrap.checkpoint`, which is written where it is missing.

    Raises StorageError when it is damaged, or wants a metadata.version that this release does not have.
    """
    files, directory = environment.files, settings.metadata_directory
    values = read_bootstrap_checkpoint(files, directory)
    if not values:
        begin, *records, end = bootstrap_records()
        write_bootstrap_checkpoint(files, directory, [r.encode(record) for record in records], now_ms=environment.clock.wall_ms())
        return [begin, *records, end]
    begin, *_, end = bootstrap_records()
    return [begin, *filter(_is_supported, map(r.decode, values)), end]


def _is_supported(record: r.MetadataRecord) -> bool:
    if not isinstance(record, r.FeatureLevelRecord):
        return True
    low, high = SUPPORTED_FEATURES.get(record.name, (0, 0))
    if low <= record.feature_level <= high:
        return True
    problem = f"{BOOTSTRAP_FILE} asks for {record.name} {record.feature_level}, and this release has {low} to {high}"
    if record.name == r.METADATA_VERSION_FEATURE:
        raise StorageError(problem)
    logger.warning("%s: left out", problem)
    return False


class _Watched:
    """The controller as the quorum's state machine, with somebody else to hear of leadership as well."""

    def __init__(self, controller: Controller, leadership_changed: Callable[[Leadership], None]) -> None:
        self._controller = controller
        self._also = leadership_changed
        self.apply: Callable[[CommittedBatch], None] = controller.apply
        self.take_snapshot: Callable[[], Iterable[bytes]] = controller.take_snapshot

    def load_snapshot(self, records: Iterable[bytes], *, end_offset: Offset, epoch: LeaderEpoch) -> None:
        self._controller.load_snapshot(records, end_offset=end_offset, epoch=epoch)

    def leadership_changed(self, leadership: Leadership) -> None:
        self._controller.leadership_changed(leadership)
        self._also(leadership)
