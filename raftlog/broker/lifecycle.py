"""A broker's standing with the controller: registration, heartbeats, fencing, controlled shutdown.

One task talks to the active controller on a connection of its own: that the connection closes tells the controller of
this process's death at once, long before the session times out.
Source: KIP-631.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raftlog.broker.channel import ControllerChannel
from raftlog.broker.metadata import MetadataFollower
from raftlog.config import Endpoint, Settings
from raftlog.environment import Environment
from raftlog.errors import ApiError, ErrorCode, RaftlogError, RequestTimedOut, error_for
from raftlog.ids import BrokerEpoch

BROKER_REGISTRATION: Final = 62
BROKER_HEARTBEAT: Final = 63
PLAINTEXT_PROTOCOL: Final = 0  # SecurityProtocol's number.
NO_BROKER_EPOCH: Final[BrokerEpoch] = -1

FENCED_PAUSE_MS: Final = 20  # Between heartbeats while this broker waits to be unfenced or to be let go.
LEAVING_SILENCE_MS_MAX: Final = 2000  # No active controller for so long: it is not worth waiting for one. Above an election's time.
CUT_OFF_HEARTBEATS: Final = 2  # A heartbeat is answered at once; one that is late may be the network's fault.
RETRY_PAUSE_MS_MIN: Final = 50  # After a refused registration or heartbeat; doubles up to the maximum.
RETRY_PAUSE_MS_MAX: Final = 1000

# A cluster's id is fixed at formatting: no further try can succeed.
FATAL_AT_REGISTRATION: Final = frozenset({ErrorCode.inconsistent_cluster_id, ErrorCode.unsupported_version})
# The controller no longer knows this registration.
LOST_REGISTRATION: Final = frozenset({ErrorCode.stale_broker_epoch, ErrorCode.broker_id_not_registered})

logger = logging.getLogger(__name__)


class RegistrationRefused(RaftlogError):
    """The controller will never accept this broker: the node does not start."""


class State(enum.Enum):
    """Where a broker stands; only the task of BrokerLifecycle moves it."""

    REGISTERING = "registering"
    FENCED = "fenced"
    RUNNING = "running"
    LEAVING = "leaving"
    STOPPED = "stopped"


NEXT: Final[Mapping[State, frozenset[State]]] = {
    State.REGISTERING: frozenset({State.FENCED, State.STOPPED}),
    State.FENCED: frozenset({State.REGISTERING, State.RUNNING, State.LEAVING, State.STOPPED}),
    State.RUNNING: frozenset({State.REGISTERING, State.FENCED, State.LEAVING, State.STOPPED}),
    State.LEAVING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}


class BrokerLifecycle:
    """Keeps this broker registered. `start`, then `ready_to_serve` once its replicas are up, then `wait_until_unfenced`."""

    def __init__(
        self,
        settings: Settings,
        environment: Environment,
        *,
        channel: ControllerChannel,
        metadata: MetadataFollower,
        cluster_id: str,
        directory_id: uuid.UUID,
        endpoints: Sequence[Endpoint],
        features: Mapping[str, tuple[int, int]],
    ) -> None:
        """`channel` is this object's own: it is closed with it. `endpoints` are the advertised ones, with real ports."""
        self._settings = settings
        self._environment = environment
        self._channel = channel
        self._metadata = metadata
        self._cluster_id = cluster_id
        self._directory_id = directory_id
        self._endpoints = endpoints
        self._features = features
        self.incarnation_id = uuid.UUID(int=environment.random.getrandbits(128), version=4)
        self.broker_epoch: BrokerEpoch = NO_BROKER_EPOCH
        self.state = State.REGISTERING
        self._ready = False
        self._answered_ms = 0  # When the controller answered a heartbeat last.
        self._registered: asyncio.Future[BrokerEpoch] = asyncio.get_running_loop().create_future()
        self._unfenced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._channel.on_lost(self._wake.set)  # The controller counts a broker without a connection as dead: be heard at once.
        self._task = asyncio.get_running_loop().create_task(self._run(), name="broker-lifecycle")

    async def wait_until_registered(self) -> BrokerEpoch:
        """The epoch of this registration. Raises RegistrationRefused; RequestTimedOut after initial.broker.registration.timeout.ms."""
        timeout_ms = self._settings.initial_broker_registration_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await asyncio.shield(self._registered)
        except TimeoutError:
            raise RequestTimedOut(f"no controller registered this broker within {timeout_ms} ms") from None

    def ready_to_serve(self) -> None:
        """This broker's replicas are up: ask to be unfenced."""
        self._ready = True
        self._wake.set()

    async def wait_until_unfenced(self) -> None:
        """Until the controller has unfenced this broker for the first time: clients may come now."""
        await asyncio.shield(self._unfenced)

    def controller_is(self, node_id: int) -> None:
        """The active controller changed: the new one gets a heartbeat at once, so that it too sees this connection close."""
        self._channel.controller_is(node_id)
        self._wake.set()

    def is_cut_off(self) -> bool:
        """Whether no controller has answered for CUT_OFF_HEARTBEATS intervals: others may have been elected in this broker's place."""
        silence_ms = self._environment.clock.monotonic_ms() - self._answered_ms
        return self.state in (State.RUNNING, State.FENCED) and silence_ms > CUT_OFF_HEARTBEATS * self._settings.broker_heartbeat_interval_ms

    async def leave(self, *, timeout_ms: int) -> bool:
        """Controlled shutdown: the controller moves leadership away. Whether it let this broker go within `timeout_ms`.

        Where no controller answers, as when the whole cluster stops, it is not waited for that long.
        """
        if self.state not in (State.RUNNING, State.FENCED):
            return False
        self._move(State.LEAVING)
        self._wake.set()
        clock = self._environment.clock
        began_ms = self._answered_ms = clock.monotonic_ms()
        while not self._released.done():
            now_ms = clock.monotonic_ms()
            left_ms = min(began_ms + timeout_ms, self._answered_ms + LEAVING_SILENCE_MS_MAX) - now_ms
            if left_ms <= 0:
                logger.warning("controlled shutdown: not let go within %d ms", now_ms - began_ms)
                return False
            await asyncio.wait([self._released], timeout=left_ms / 1000)
        return True

    async def close(self) -> None:
        """Stop the heartbeats and close their connection."""
        if self.state is not State.STOPPED:
            self._move(State.STOPPED)
        for future in (self._registered, self._unfenced, self._released):
            future.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._channel.close()

    def _move(self, state: State) -> None:
        assert state in NEXT[self.state], (self.state, state)
        self.state = state

    async def _run(self) -> None:
        pause_ms = RETRY_PAUSE_MS_MIN
        while self.state is not State.STOPPED:
            try:
                self._wake.clear()
                wait_ms = await (self._register() if self.state is State.REGISTERING else self._heartbeat())
                pause_ms = RETRY_PAUSE_MS_MIN
            except RegistrationRefused as error:
                if not self._registered.done():
                    self._registered.set_exception(error)
                    return
                raise
            except ApiError as error:
                logger.info("controller did not accept this broker's %s: %s", self.state.value, error)
                wait_ms = pause_ms
                pause_ms = min(2 * pause_ms, RETRY_PAUSE_MS_MAX)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1000):
                    await self._wake.wait()

    async def _register(self) -> int:
        """Register this incarnation; the pause until the first heartbeat, in ms."""
        fields: dict[str, Any] = {
            "broker_id": self._settings.node_id,
            "cluster_id": self._cluster_id,
            "incarnation_id": self.incarnation_id,
            "listeners": [
                {"name": end.listener, "host": end.host, "port": end.port, "security_protocol": PLAINTEXT_PROTOCOL} for end in self._endpoints
            ],
            "features": [{"name": name, "min_supported_version": low, "max_supported_version": high} for name, (low, high) in self._features.items()],
            "rack": self._settings.broker_rack,
            "is_migrating_zk_broker": False,
            "log_dirs": [self._directory_id],
            "previous_broker_epoch": self.broker_epoch,
        }
        answer = await self._channel.request(BROKER_REGISTRATION, fields, timeout_ms=self._settings.broker_session_timeout_ms)
        code = ErrorCode(answer.error_code)
        if code in FATAL_AT_REGISTRATION:
            raise RegistrationRefused(f"the controller refused broker {self._settings.node_id} of cluster {self._cluster_id}: {code.name}")
        if code is not ErrorCode.none:
            raise error_for(code)
        self.broker_epoch = answer.broker_epoch
        self._move(State.FENCED)
        logger.info("registered as broker %d with epoch %d", self._settings.node_id, self.broker_epoch)
        if not self._registered.done():
            self._registered.set_result(self.broker_epoch)
        return 0

    async def _heartbeat(self) -> int:
        """One heartbeat; the pause until the next, in ms."""
        leaving = self.state is State.LEAVING
        fields = {
            "broker_id": self._settings.node_id,
            "broker_epoch": self.broker_epoch,
            "current_metadata_offset": self._metadata.image.offset - 1,
            "want_fence": not self._ready,
            "want_shut_down": leaving,
            "offline_log_dirs": [],
        }
        timeout_ms = max(self._settings.broker_session_timeout_ms // 3, 1)
        answer = await self._channel.request(BROKER_HEARTBEAT, fields, timeout_ms=timeout_ms)
        code = ErrorCode(answer.error_code)
        if code in LOST_REGISTRATION and not leaving:
            logger.warning("the controller no longer knows this broker's epoch %d (%s): registering again", self.broker_epoch, code.name)
            self._move(State.REGISTERING)
            return 0
        if code is not ErrorCode.none:
            raise error_for(code)
        self._answered_ms = self._environment.clock.monotonic_ms()
        if self.state is State.LEAVING:
            if answer.should_shut_down and leaving and not self._released.done():
                self._released.set_result(None)
            return self._settings.broker_heartbeat_interval_ms if answer.should_shut_down else FENCED_PAUSE_MS
        return self._fenced(answer.is_fenced)

    def _fenced(self, is_fenced: bool) -> int:
        """Follow what a heartbeat's answer says of this broker; the pause until the next, in ms."""
        if is_fenced and self.state is State.RUNNING:
            logger.warning("fenced by the controller")
            self._move(State.FENCED)
        elif not is_fenced and self.state is State.FENCED:
            logger.info("unfenced")
            self._move(State.RUNNING)
            if not self._unfenced.done():
                self._unfenced.set_result(None)
        if is_fenced and self._ready:
            return FENCED_PAUSE_MS
        return self._settings.broker_heartbeat_interval_ms
