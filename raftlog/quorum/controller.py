"""The controller on one voter: every voter applies what is committed, and the active one decides.

A decision is made at once, on the working image: the committed one plus all that was proposed in this epoch. The decisions
of a short while go into one entry of the log, and each reply leaves when the entry that holds its records is applied here.
With leadership the working image is lost, and with it whatever was decided on it: their askers hear NOT_CONTROLLER.

The active controller also looks after the brokers: one whose heartbeat connection closed and does not come back within
RECONNECT_GRACE_MS is fenced at once, one that is silent for `broker.session.timeout.ms` then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from raftlog.config import Settings
from raftlog.core.controller import brokers, configs, elections, features, partitions, producers, reassignments, topics
from raftlog.core.controller.sessions import Sessions
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.features import bootstrap_records
from raftlog.core.metadata.image import MetadataDelta, MetadataImage, difference
from raftlog.environment import Environment
from raftlog.errors import ApiError, NotController, RecordListTooLarge, RequestTimedOut
from raftlog.ids import BrokerEpoch, ControllerEpoch, NodeId, Offset
from raftlog.protocol.apis import ApiKey
from raftlog.quorum.states import CommittedBatch, Leadership, VoterProgress

RECONNECT_GRACE_MS: Final = 200  # A broker whose heartbeat connection closed may come back on another for so long.
ACTIVATION_GRACE_MS: Final = 100  # Brokers have at least so long to find a new active controller before one may be fenced.
UNHEARD_GRACE_MS: Final = 400  # A voter's broker that neither raft nor a heartbeat has told of is fenced so long after activation.
SESSION_CHECKS_PER_TIMEOUT: Final = 20

ENTRY_RECORDS_MAX: Final = 10_000  # Per entry of the log; a larger decision becomes a metadata transaction over several.
ENTRY_BYTES_MAX: Final = 2 * 1024 * 1024
RECORD_BYTES_MAX: Final = 1024 * 1024
REPLIES_WAITING_MAX: Final = 20_000  # Requests decided but not committed; beyond it, brokers and clients must wait and retry.

Listener: TypeAlias = Callable[[MetadataImage, MetadataDelta], None]
Reply: TypeAlias = Mapping[str, Any]
Decide: TypeAlias = Callable[[MetadataImage], Decision[r.MetadataRecord, Any]]

logger = logging.getLogger(__name__)


class Log(Protocol):
    """What the controller needs of the quorum: `quorum.Quorum`, or an imitation in tests."""

    def propose(self, records: Sequence[bytes], *, epoch: ControllerEpoch) -> asyncio.Future[Offset]: ...

    def describe(self) -> Sequence[VoterProgress]: ...

    def on_peer_closed(self, callback: Callable[[NodeId], None]) -> None: ...


class Connection(Protocol):
    """What the controller needs of a connection on which heartbeats come."""

    def on_close(self, callback: Callable[[], None]) -> None: ...


@dataclass(slots=True)
class _Waiting:
    """One decision on its way to the log, or a reply without records that must not overtake those before it."""

    records: Sequence[bytes]
    reply: Any
    future: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class _Entry:
    """One proposed entry and the replies that leave with its commit; `error`: nobody waits for it any more, yet it may come."""

    records: list[bytes] = field(default_factory=list)
    replies: list[_Waiting] = field(default_factory=list)
    error: BaseException | None = None


class Controller:
    """The state machine of the quorum. Everything runs on the event loop; nothing here blocks.

    Build it, give it to the Quorum as its state machine, then call `attach`.
    """

    def __init__(self, settings: Settings, environment: Environment, *, cluster_id: str) -> None:
        self.image = MetadataImage()
        self.leadership = Leadership()
        self.bootstrap: Sequence[r.MetadataRecord] = bootstrap_records()  # What an empty log begins with.
        self._settings = settings
        self._environment = environment
        self._cluster_id = cluster_id
        self._log: Log | None = None
        self._listeners: list[Listener] = []
        self._registration_offsets: dict[NodeId, Offset] = {}
        # From here on: of the active controller only.
        self._working: MetadataImage | None = None
        self._pending: deque[_Waiting] = deque()
        self._pending_records = 0
        self._in_flight: deque[_Entry] = deque()  # Proposed in this epoch and not applied here, in the order of the log.
        self._linger: asyncio.TimerHandle | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._sessions = Sessions(timeout_ms=settings.broker_session_timeout_ms)
        self._connections: dict[Connection, tuple[NodeId, BrokerEpoch]] = {}
        self._peers_closed_ms: dict[NodeId, tuple[int, int]] = {}  # (monotonic, wall)
        chance = environment.random
        self._deciders: Mapping[int, Callable[[MetadataImage, Any], Decision[r.MetadataRecord, Any]]] = {
            ApiKey.CREATE_TOPICS: partial(topics.decide_create_topics, settings=settings, chance=chance),
            ApiKey.DELETE_TOPICS: partial(topics.decide_delete_topics, settings=settings),
            ApiKey.CREATE_PARTITIONS: partial(topics.decide_create_partitions, chance=chance),
            ApiKey.ALTER_CONFIGS: partial(configs.decide_alter_configs, settings=settings),
            ApiKey.INCREMENTAL_ALTER_CONFIGS: partial(configs.decide_incremental_alter_configs, settings=settings),
            ApiKey.ELECT_LEADERS: elections.decide_elect_leaders,
            ApiKey.ALTER_PARTITION_REASSIGNMENTS: partial(reassignments.decide_alter_partition_reassignments, settings=settings),
            ApiKey.LIST_PARTITION_REASSIGNMENTS: reassignments.decide_list_partition_reassignments,
            ApiKey.ALTER_PARTITION: partial(partitions.decide_alter_partition, settings=settings),
            ApiKey.BROKER_REGISTRATION: self._register,
            ApiKey.BROKER_HEARTBEAT: self._heartbeat,
            ApiKey.UNREGISTER_BROKER: partial(brokers.decide_unregister, settings=settings),
            ApiKey.UPDATE_FEATURES: partial(features.decide_update_features, settings=settings),
            ApiKey.ALLOCATE_PRODUCER_IDS: producers.decide_allocate_producer_ids,
            ApiKey.CONTROLLER_REGISTRATION: brokers.decide_register_controller,
        }

    # What the rest of the node calls.

    def attach(self, log: Log) -> None:
        """Decide through `log`, whose state machine this is. Before the quorum is started."""
        self._log = log
        log.on_peer_closed(self._peer_closed)

    def subscribe(self, listener: Listener) -> None:
        """Hear of every image in commit order, right after it becomes `image`; must not raise and must not take long."""
        self._listeners.append(listener)

    @property
    def is_active(self) -> bool:
        return self._working is not None

    @property
    def served_apis(self) -> frozenset[int]:
        """The API keys that `handle` knows."""
        return frozenset(self._deciders)

    def handle(self, api_key: int, request: Any, connection: Connection | None = None) -> asyncio.Future[Reply]:
        """Decide a request; the reply comes once what it says is committed and applied here.

        `connection`: where a heartbeat came from, None for one from this process. Raises, here or by the future, NotController
        (not active, or no longer: the decision may or may not take effect), RequestTimedOut, and what the decider raises.
        """
        decide = self._deciders[api_key]
        future = self.submit(lambda image: decide(image, request))
        if api_key == ApiKey.BROKER_HEARTBEAT and connection is not None:
            self._track(connection, request.broker_id, request.broker_epoch)
        if api_key in (ApiKey.ALTER_CONFIGS, ApiKey.INCREMENTAL_ALTER_CONFIGS):
            # A topic that now allows unclean elections gets its leaders without waiting for the next look.
            self._submit_own(lambda image: elections.decide_unclean_elections(image, self._settings), at_once=False)
        return future

    def submit(self, decide: Decide, *, at_once: bool = False) -> asyncio.Future[Any]:
        """As `handle`, for a decider. `at_once`: propose without waiting for others to share the entry."""
        if self._working is None:
            raise NotController(f"node {self._settings.node_id} is not the active controller")
        if len(self._pending) + sum(len(entry.replies) for entry in self._in_flight) >= REPLIES_WAITING_MAX:
            raise RequestTimedOut("too many requests are waiting for the metadata log")
        decision = decide(self._working)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not decision.records:
            # What it is based on may not be committed yet: it must not be told before that is.
            self._reply_in_order(_Waiting((), decision.reply, future))
            return future
        encoded = self._encode(decision.records)
        offset = self._working.offset + len(encoded)
        self._working, _ = self._working.apply_batch(decision.records, offset=offset, epoch=self.leadership.epoch)
        self._pending.append(_Waiting(encoded, decision.reply, future))
        self._pending_records += len(encoded)
        if at_once or self._pending_records >= ENTRY_RECORDS_MAX:
            self._propose_pending()
        elif self._linger is None:
            delay_s = self._settings.controller_quorum_append_linger_ms / 1000
            self._linger = asyncio.get_running_loop().call_later(delay_s, self._propose_pending)
        return future

    async def close(self) -> None:
        """Stop deciding; requests without a reply fail with NotController."""
        self._deactivate("the node is shutting down")

    # The state machine: what the quorum calls.

    def apply(self, batch: CommittedBatch) -> None:
        """Take the next committed batch. Raises MetadataRecordError for one this release can't read: the voter must end."""
        records = [r.decode(value) for value in batch.records]
        for index, record in enumerate(records):
            if isinstance(record, r.RegisterBrokerRecord):
                self._registration_offsets[record.broker_id] = batch.base_offset + index
        self.image, delta = self.image.apply_batch(records, offset=batch.end_offset, epoch=batch.epoch)
        if self.is_active and records:
            # In its epoch, only the active controller itself proposes: this is its oldest entry under way.
            entry = self._in_flight.popleft()
            assert batch.epoch == self.leadership.epoch and len(entry.records) == len(records)
            if not self._pending and not self._in_flight:
                self._working = self.image  # Equal by now: hold the state once.
        self._publish(delta)

    def load_snapshot(self, records: Iterable[bytes], *, end_offset: Offset, epoch: int) -> None:
        before = self.image
        self.image, _ = MetadataImage().apply_batch((r.decode(value) for value in records), offset=end_offset, epoch=epoch)
        self._registration_offsets = dict.fromkeys(self.image.brokers, end_offset - 1)
        self._publish(difference(before, self.image))

    def take_snapshot(self) -> Iterable[bytes]:
        image = self.image  # Immutable: it stays what it is while later batches are applied.
        version = image.metadata_version
        return (r.encode(record, metadata_version=version) for record in image.snapshot_records())

    def leadership_changed(self, leadership: Leadership) -> None:
        before, self.leadership = self.leadership, leadership
        if before.active and (not leadership.active or leadership.epoch != before.epoch):
            self._deactivate("leadership was lost")
        if leadership.active and not self.is_active:
            self._activate()

    def _publish(self, delta: MetadataDelta) -> None:
        for listener in self._listeners:
            listener(self.image, delta)

    # From decisions to entries.

    def _encode(self, records: Sequence[r.MetadataRecord]) -> list[bytes]:
        """The records' bytes, as a metadata transaction where they are too many for one entry. Raises RecordListTooLarge."""
        assert self._working is not None
        version = self._working.metadata_version
        encoded = [r.encode(record, metadata_version=version) for record in records]
        if max(map(len, encoded)) > RECORD_BYTES_MAX:
            raise RecordListTooLarge(f"a metadata record would have more than {RECORD_BYTES_MAX} bytes")
        is_transaction = isinstance(records[0], r.BeginTransactionRecord)  # What a log begins with is one already.
        if not is_transaction and (len(encoded) > ENTRY_RECORDS_MAX or sum(map(len, encoded)) > ENTRY_BYTES_MAX):
            begin, end = r.BeginTransactionRecord(), r.EndTransactionRecord()
            encoded = [r.encode(begin), *encoded, r.encode(end)]
        return encoded

    def _reply_in_order(self, waiting: _Waiting) -> None:
        if self._pending:
            self._pending.append(waiting)
        elif not self._in_flight:
            waiting.future.set_result(waiting.reply)
        elif self._in_flight[-1].error is not None:
            waiting.future.set_exception(self._in_flight[-1].error)
        else:
            self._in_flight[-1].replies.append(waiting)

    def _propose_pending(self) -> None:
        """Propose all that is pending, in order; each decision lies in one entry, or in a transaction over several."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        pending, self._pending, self._pending_records = self._pending, deque(), 0
        entry, size_bytes = _Entry(), 0
        for waiting in pending:
            decision_bytes = sum(map(len, waiting.records))
            full = len(entry.records) + len(waiting.records) > ENTRY_RECORDS_MAX or size_bytes + decision_bytes > ENTRY_BYTES_MAX
            if entry.records and full:
                self._propose(entry)
                entry, size_bytes = _Entry(), 0
            for record in waiting.records:
                if len(entry.records) >= ENTRY_RECORDS_MAX or size_bytes + len(record) > ENTRY_BYTES_MAX:
                    self._propose(entry)
                    entry, size_bytes = _Entry(), 0
                entry.records.append(record)
                size_bytes += len(record)
            entry.replies.append(waiting)
        if entry.records:
            self._propose(entry)

    def _propose(self, entry: _Entry) -> None:
        assert self._log is not None
        self._in_flight.append(entry)
        try:
            proposal = self._log.propose(entry.records, epoch=self.leadership.epoch)
        except ApiError as error:
            self._proposed(entry, error)
            return
        proposal.add_done_callback(
            lambda done: self._proposed(entry, NotController("the metadata log was closed") if done.cancelled() else done.exception())
        )

    def _proposed(self, entry: _Entry, error: BaseException | None) -> None:
        """An entry was applied here, or has failed. One that timed out may yet be committed: the working image keeps it."""
        entry.error = error
        for waiting in entry.replies:
            if waiting.future.done():
                continue
            if error is None:
                waiting.future.set_result(waiting.reply)
            else:
                waiting.future.set_exception(error)
        if error is not None and not isinstance(error, NotController | RequestTimedOut):
            # It is not in the log, so all that was decided after it is void. Another controller has to be elected.
            logger.error("the metadata log refused an entry: %s", error)
            self._deactivate("the metadata log refused an entry")

    # Activation

    def _activate(self) -> None:
        logger.info("active controller of epoch %d", self.leadership.epoch)
        self._working = self.image
        now_ms = self._environment.clock.monotonic_ms()
        self._sessions.restart(((broker.node_id, broker.epoch) for broker in self.image.brokers.values()), now_ms=now_ms)
        if self.image.transaction is not None:
            abort = r.AbortTransactionRecord(reason="Its controller is no longer active")
            self._submit_own(lambda image: Decision([abort], None), at_once=False)
        if not self.image.features:
            self._submit_own(lambda image: Decision(self.bootstrap, None), at_once=False)
        self._every(self._settings.broker_session_timeout_ms / SESSION_CHECKS_PER_TIMEOUT, self._fence_silent)
        self._every(self._settings.leader_imbalance_check_interval_seconds * 1000, self._improve_leaders)
        for voter in self._settings.voters:
            self._watch_voter(voter.node_id, now_ms)

    def _deactivate(self, reason: str) -> None:
        self._working = None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        waiting = [*(reply for entry in self._in_flight for reply in entry.replies), *self._pending]
        self._in_flight.clear()
        self._pending.clear()
        self._pending_records = 0
        self._connections.clear()
        for each in waiting:
            if not each.future.done():
                each.future.set_exception(NotController(reason))

    def _after(self, delay_ms: float, callback: Callable[[], None]) -> None:
        """Call back unless leadership is lost before."""

        def due() -> None:
            self._timers.discard(timer)
            callback()

        timer = asyncio.get_running_loop().call_later(delay_ms / 1000, due)
        self._timers.add(timer)

    def _every(self, interval_ms: float, callback: Callable[[], None]) -> None:
        def due() -> None:
            self._after(interval_ms, due)
            callback()

        self._after(interval_ms, due)

    def _submit_own(self, decide: Decide, *, at_once: bool = True) -> None:
        """Submit a decision of the controller's own; that it fails is nobody's to hear.

        `at_once` only from timers: the quorum, which calls in for leadership and commits, is not to be called back from there.
        """
        future = self.submit(decide, at_once=at_once)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    # Looking after brokers

    def _register(self, image: MetadataImage, request: Any) -> Decision[r.MetadataRecord, Any]:
        now_ms = self._environment.clock.monotonic_ms()
        decision = brokers.decide_register(
            image,
            request,
            settings=self._settings,
            cluster_id=self._cluster_id,
            next_offset=image.offset,
            session_alive=self._sessions.is_held(request.broker_id, now_ms=now_ms),
        )
        self._sessions.touch(request.broker_id, decision.reply["broker_epoch"], now_ms=now_ms)
        logger.info("broker %d registers with epoch %d", request.broker_id, decision.reply["broker_epoch"])
        return decision

    def _heartbeat(self, image: MetadataImage, request: Any) -> Decision[r.MetadataRecord, Any]:
        node_id, epoch = request.broker_id, request.broker_epoch
        offset = self._registration_offsets.get(node_id, epoch)
        decision = brokers.decide_heartbeat(image, request, settings=self._settings, registration_offset=offset)
        self._sessions.touch(node_id, epoch, now_ms=self._environment.clock.monotonic_ms())
        was_fenced = image.brokers[node_id].fenced
        if was_fenced != decision.reply["is_fenced"]:
            logger.info("broker %d is %s", node_id, "unfenced" if was_fenced else "fenced at its own wish")
        return decision

    def _track(self, connection: Connection, node_id: NodeId, epoch: BrokerEpoch) -> None:
        """Heartbeats of this registration come on this connection from now on."""
        before = self._connections.get(connection)
        if before == (node_id, epoch):
            return
        self._connections[connection] = (node_id, epoch)
        session = self._sessions.get(node_id)
        assert session is not None
        session.connected += 1
        if before is None:
            connection.on_close(lambda: self._connection_closed(connection))

    def _connection_closed(self, connection: Connection) -> None:
        tracked = self._connections.pop(connection, None)
        if tracked is None:
            return
        session = self._sessions.get(tracked[0])
        if session is not None and session.epoch == tracked[1]:
            session.connected -= 1
            if session.connected == 0:
                session.gone = True
                self.broker_connection_closed(*tracked)

    def broker_connection_closed(self, node_id: NodeId, broker_epoch: BrokerEpoch) -> None:
        """The last connection with this broker's heartbeats is gone: fence it unless it comes back within the grace."""
        if not self.is_active:
            return
        closed_ms = self._environment.clock.monotonic_ms()
        self._after(RECONNECT_GRACE_MS, lambda: self._fence_unless_back(node_id, broker_epoch, since_ms=closed_ms))

    def _fence_unless_back(self, node_id: NodeId, epoch: BrokerEpoch, *, since_ms: int) -> None:
        session = self._sessions.get(node_id)
        if session is None or session.epoch != epoch or session.connected > 0 or session.contact_ms > since_ms:
            return
        session.lost = True
        self._fence(node_id, f"its connection closed and it did not come back within {RECONNECT_GRACE_MS} ms")

    def _fence(self, node_id: NodeId, reason: str) -> None:
        assert self._working is not None
        broker = self._working.brokers.get(node_id)
        if broker is None or broker.fenced:
            return
        logger.warning("fencing broker %d: %s", node_id, reason)
        self._submit_own(lambda image: brokers.decide_fence(image, node_id, settings=self._settings))

    def _fence_silent(self) -> None:
        """Fence the brokers whose session is over, one decision each: each sees the one before."""
        assert self._working is not None
        unfenced = [broker.node_id for broker in self._working.brokers.values() if not broker.fenced]
        for node_id in self._sessions.expired(unfenced, now_ms=self._environment.clock.monotonic_ms()):
            self._fence(node_id, f"silent for {self._settings.broker_session_timeout_ms} ms")

    def _peer_closed(self, node_id: NodeId) -> None:
        """The raft connection to a voter is gone; its process may have died, and with it the broker of the same id."""
        clock = self._environment.clock
        self._peers_closed_ms[node_id] = (clock.monotonic_ms(), clock.wall_ms())
        if self.is_active:
            self._watch_voter(node_id, clock.monotonic_ms())

    def _watch_voter(self, node_id: NodeId, since_ms: int) -> None:
        """Fence the voter's broker soon, unless something is heard of either of them from `since_ms` on."""
        if node_id == self._settings.node_id:
            return
        closed = self._peers_closed_ms.get(node_id)
        if closed is None:
            self._after(UNHEARD_GRACE_MS, lambda: self._fence_unless_heard(node_id, since_ms=since_ms))
            return
        delay_ms = max(ACTIVATION_GRACE_MS, closed[0] + RECONNECT_GRACE_MS - since_ms)
        self._after(delay_ms, lambda: self._fence_unless_heard(node_id, since_ms=since_ms))

    def _fence_unless_heard(self, node_id: NodeId, *, since_ms: int) -> None:
        assert self._log is not None
        session = self._sessions.get(node_id)
        if session is None or session.connected > 0 or (session.heard and session.contact_ms > since_ms):
            return
        closed = self._peers_closed_ms.get(node_id)
        heard_ms = next((voter.last_fetch_ms for voter in self._log.describe() if voter.node_id == node_id), -1)
        if heard_ms >= 0 and (closed is None or heard_ms > closed[1]):
            return
        session.lost = True
        self._fence(node_id, "its node's raft connection is gone, and it has not been heard of")

    def _improve_leaders(self) -> None:
        """Unclean elections where they are allowed and needed, and preferred leaders where too many have strayed."""
        self._submit_own(lambda image: elections.decide_unclean_elections(image, self._settings))
        if self._settings.auto_leader_rebalance_enable:
            percentage = self._settings.leader_imbalance_per_broker_percentage
            self._submit_own(lambda image: elections.decide_rebalance(image, imbalance_percentage_max=percentage))
