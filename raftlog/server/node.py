"""One node: a controller, a broker or both, from its settings and an environment to a running whole and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from raftlog.broker.dynamic_settings import DynamicSettings
from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.metadata_fetcher import MetadataFetcher
from raftlog.config import Settings
from raftlog.core.metadata.image import MetadataImage
from raftlog.environment import Environment
from raftlog.errors import RaftlogError, StorageError
from raftlog.ids import NO_NODE, NodeId
from raftlog.server.broker_role import LEAVE_TIMEOUT_MS, BrokerRole
from raftlog.server.closing import Closing
from raftlog.server.controller_role import ControllerRole
from raftlog.server.metrics import MetricsServer
from raftlog.storage import checkpoints
from raftlog.storage.manager import LogManager

PARTS_CLOSE_TIMEOUT_MS: Final = 3_000  # All parts but the logs; with LEAVE_TIMEOUT_MS before it all that a stop may take besides flushing.
LOGS_CLOSE_TIMEOUT_MS: Final = 600_000  # Thousands of logs may have to reach a slow disk; cut short, all are checked at the next start.

logger = logging.getLogger(__name__)


class NodeFailed(RaftlogError):
    """The node can't go on; one line says why."""


class Node:
    """One node on the running event loop. `start`, `wait_until_ready`, then `stop` or `kill`, once each.

    The data directory is locked, and bound to one cluster and node id for ever. Without a `cluster_id` it must have been
    prepared; with one, an empty directory is prepared for that cluster.
    """

    def __init__(self, settings: Settings, environment: Environment, *, cluster_id: str | None = None) -> None:
        self.settings = settings
        self._environment = environment
        self._wanted_cluster_id = cluster_id
        self.cluster_id = ""
        self.logs: LogManager | None = None
        self.controller: ControllerRole | None = None
        self.broker: BrokerRole | None = None
        self.fetcher: MetadataFetcher | None = None
        self._metrics: MetricsServer | None = None
        self.metadata = MetadataFollower(MetadataImage())
        self.dynamic = DynamicSettings(settings)
        self.metadata.subscribe(self.dynamic.apply_metadata)  # The first to hear: the others then meet the settings in force.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stopping = False

    @property
    def node_id(self) -> NodeId:
        return self.settings.node_id

    @property
    def image(self) -> MetadataImage:
        """The newest metadata this node has."""
        return self.metadata.image

    @property
    def is_active_controller(self) -> bool:
        return self.controller is not None and self.controller.is_active

    @property
    def is_ready(self) -> bool:
        return self._ready.done() and not self._ready.cancelled() and self._ready.exception() is None

    @property
    def ports(self) -> Mapping[str, int]:
        """The actual port of each listener, by its name."""
        roles = [role for role in (self.controller, self.broker) if role is not None]
        return {name: listener.port for role in roles for name, listener in role.listeners.items()}

    async def start(self) -> None:
        """Open the data, take the ports, join the quorum; joining the cluster goes on in the background.

        Raises RaftlogError, one line, for what this node alone can't get over: its directory, its ports. Nothing of it is
        left running then.
        """
        try:
            await self._start()
        except BaseException:
            await self.kill()
            raise

    async def _start(self) -> None:
        settings, environment = self.settings, self._environment
        self.cluster_id = self._identify()
        self.logs = LogManager(environment, settings)
        await self.logs.open(self.cluster_id, settings.node_id)
        if settings.is_broker:
            self.broker = BrokerRole(
                settings,
                environment,
                cluster_id=self.cluster_id,
                logs=self.logs,
                metadata=self.metadata,
                dynamic=self.dynamic,
                on_fatal=self.fail,
            )
            await self.broker.open()
        if settings.is_controller:
            self.controller = ControllerRole(
                settings, environment, cluster_id=self.cluster_id, dynamic=self.dynamic, on_fatal=self.fail, on_leader=self._leader_is
            )
            self.controller.controller.subscribe(self.metadata.publish)
            if self.broker is not None:
                self.controller.quorum.on_peer_closed(self.broker.cluster.suspect)
            await self.controller.start()
        else:
            self.fetcher = MetadataFetcher(
                settings,
                environment,
                cluster_id=self.cluster_id,
                follower=self.metadata,
                on_leader=self._leader_is,
                broker_epoch=self._broker_epoch,
            )
            self._watch(self.fetcher.start())
        if settings.metrics_listener is not None:
            self._metrics = MetricsServer(self, environment.network, settings.metrics_listener)
            await self._metrics.start()
        self._spawn(self._join())

    async def wait_until_ready(self) -> None:
        """Until this node serves: a broker is unfenced, a mere controller knows a leader. Raises NodeFailed."""
        waiting: set[asyncio.Future[Any]] = {self._ready, self.failed}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done() and not self.failed.cancelled():
            raise NodeFailed(self.failed.result())
        await self._ready

    def fail(self, reason: str) -> None:
        """Something that this node can't go on without is lost; whoever runs it is to stop it. The first reason counts."""
        if not self._stopping and not self.failed.done():
            logger.error("%s", reason)
            self.failed.set_result(reason)

    async def stop(self) -> None:
        """A clean shutdown: leadership is handed over, logs are flushed and marked clean. Bounded in time."""
        self._stopping = True
        if self.broker is not None and not self.failed.done():
            await Closing(timeout_ms=LEAVE_TIMEOUT_MS).take(("handing leadership over", self.broker.leave))
        await self._close_parts(Closing(timeout_ms=PARTS_CLOSE_TIMEOUT_MS))
        if self.logs is not None:
            await Closing(timeout_ms=LOGS_CLOSE_TIMEOUT_MS).take(("logs", self.logs.close))
            self.logs.abandon()  # Of what could not be closed.

    async def kill(self) -> None:
        """Drop everything without handing over or marking the logs clean, as a crash does."""
        self._stopping = True
        await self._close_parts(Closing(timeout_ms=PARTS_CLOSE_TIMEOUT_MS, quietly=True))
        if self.logs is not None:
            self.logs.abandon()

    async def _close_parts(self, closing: Closing) -> None:
        await closing.take(("joining", self._stop_tasks))
        if self._metrics is not None:
            await closing.take(("metrics", self._metrics.close))
        if self.broker is not None:
            await self.broker.close(closing)
        if self.fetcher is not None:
            await closing.take(("metadata fetcher", self.fetcher.close))
        if self.controller is not None:
            await self.controller.close(closing)
        if not self._ready.done():
            self._ready.cancel()

    async def _stop_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _join(self) -> None:
        if self.broker is not None:
            await self.broker.join()
        else:
            await self.metadata.wait_for(lambda image: image.offset > 0, timeout_ms=2**31)
        if not self._ready.done():
            self._ready.set_result(None)

    def _identify(self) -> str:
        """The cluster id: that of meta.properties, which must be the wanted one. Raises StorageError."""
        files, wanted = self._environment.files, self._wanted_cluster_id
        path = f"{self.settings.data_directory}/{checkpoints.META_PROPERTIES}"
        if not files.exists(path):
            if wanted is None:
                raise StorageError(f"{self.settings.data_directory} is not prepared: run `raftlog quorum init` first")
            return wanted
        found = checkpoints.read(files, path, checkpoints.MetaProperties.parse)
        if wanted is not None and found.cluster_id != wanted:
            raise StorageError(f"wrong cluster id: {self.settings.data_directory} belongs to cluster {found.cluster_id}, not {wanted}")
        return found.cluster_id

    def _leader_is(self, node_id: NodeId) -> None:
        if self.broker is not None:
            self.broker.controller_is(node_id)

    def _broker_epoch(self) -> int:
        if self.broker is None or self.broker.lifecycle is None:
            return NO_NODE
        return self.broker.lifecycle.broker_epoch

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        self._watch(asyncio.get_running_loop().create_task(work))

    def _watch(self, task: asyncio.Task[Any]) -> None:
        """A task that the node can't do without: an error in it is the node's end."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.fail(str(error) if isinstance(error, RaftlogError) else f"{type(error).__name__}: {error}")
            logger.debug("the traceback of it", exc_info=error)
