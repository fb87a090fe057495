"""One seeded history of a quorum: virtual clock, adversarial network, crashes that lose what was not synced.

The code under test is `Voter` with everything below it; `MemoryFiles` is its disk. Invariants are checked after every step by
`Checker`, which knows nothing of how the voters work. A failing history raises `Broken`, and its seed repeats it.
"""

from __future__ import annotations

import heapq
import logging
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from raftlog.errors import ApiError, StorageError
from raftlog.quorum.guards import Guards
from raftlog.quorum.journal import Journal
from raftlog.quorum.messages import FrameReceiver, FrameSender, MalformedMessage, Message, Sizes
from raftlog.quorum.raft import Timing
from raftlog.quorum.states import CommittedBatch, Leadership
from raftlog.quorum.voter import Voter
from raftlog.testing.memory_files import MemoryFiles

DIRECTORY: Final = "/data/__cluster_metadata-0"
FAULTS_S: Final = 4.0
HEALING_S_MAX: Final = 5.0
ELECTION_MS: Final = 300
STEPS_MAX: Final = 200_000
INJECTED: Final = "injected"  # What tells a disk error of the simulation from one that the voter found.


class Broken(AssertionError):
    """An invariant does not hold, or the quorum made no progress after all faults were healed."""


class PowerLoss(Exception):
    """The machine stops in the middle of an operation on its disk."""


@dataclass(frozen=True)
class Weather:
    """How bad it gets; rates per second of virtual time, chances per event."""

    voters: int
    crashes_per_s: float
    partitions_per_s: float
    disconnects_per_s: float
    loss: float
    duplication: float
    reordering: float
    disk_crash: float  # Chance that a sync, rename or removal is where the power fails.
    disk_error: float
    latency_ms_max: float
    proposals_per_s: float
    sizes: Sizes


def weather_of(chance: random.Random, voters: int | None) -> Weather:
    voters = voters or chance.choice((1, 3, 3, 3, 5))
    sizes = Sizes(
        snapshot_bytes=chance.choice((600, 1500, 4000, 100_000)),
        segment_bytes=chance.choice((200, 700, 2000)),
        append_bytes=chance.choice((1, 400, 100_000)),
        chunk_bytes=chance.choice((1500, 100_000)),
    )
    calm = chance.random() < 0.15
    return Weather(
        voters=voters,
        crashes_per_s=0 if calm else chance.choice((0.3, 1, 2)),
        partitions_per_s=0 if calm else chance.choice((0.3, 1, 3)),
        disconnects_per_s=chance.choice((0.0, 1, 5)),
        loss=chance.choice((0.0, 0.002, 0.02)),
        duplication=chance.choice((0.0, 0.02, 0.3)),
        reordering=chance.choice((0.0, 0.01, 0.05)),
        disk_crash=chance.choice((0.0, 0.002, 0.01)),
        disk_error=chance.choice((0.0, 0.0, 0.001)),
        latency_ms_max=chance.choice((2, 10, 40)),
        proposals_per_s=chance.choice((20, 60, 150)),
        sizes=sizes,
    )


class Replica:
    """A state machine that remembers everything and a digest of how it came about."""

    def __init__(self, checker: Checker, node_id: int) -> None:
        self._checker = checker
        self._node_id = node_id
        self.values: list[bytes] = []
        self.digest = 0
        self.end_offset = 0
        self.leadership = Leadership()

    def apply(self, batch: CommittedBatch) -> None:
        if batch.base_offset != self.end_offset:
            raise Broken(f"node {self._node_id} applied offset {batch.base_offset} after {self.end_offset}")
        for record in batch.records:
            if int(record.split(b":")[1]) != batch.epoch:
                raise Broken(f"a record decided under another epoch took effect in epoch {batch.epoch}: {record!r}")
        self.values.extend(batch.records)
        content = b"|".join([b"%d,%d,%d" % (batch.base_offset, batch.end_offset, batch.epoch), *batch.records])
        self.digest = zlib.crc32(content, self.digest)
        self.end_offset = batch.end_offset
        self._checker.applied(self._node_id, self.end_offset, self.digest)

    def load_snapshot(self, records: Iterable[bytes], *, end_offset: int, epoch: int) -> None:
        self._checker.loaded(self._node_id, self.end_offset, end_offset)
        content = list(records)
        self.digest = int(content[0])
        self.values = content[1:]
        self.end_offset = end_offset
        self._checker.applied(self._node_id, end_offset, self.digest)

    def take_snapshot(self) -> Iterable[bytes]:
        return [b"%010d" % self.digest, *self.values]

    def leadership_changed(self, leadership: Leadership) -> None:
        self.leadership = leadership
        if leadership.active:
            self._checker.led(self._node_id, leadership.epoch, self.values)


class Checker:
    """What must hold whatever happens."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.digests: dict[int, int] = {}
        self.acknowledged: dict[bytes, int] = {}
        self.spoken_term: Counter[int] = Counter()

    def applied(self, node_id: int, end_offset: int, digest: int) -> None:
        known = self.digests.setdefault(end_offset, digest)
        if known != digest:
            raise Broken(f"the state of node {node_id} at offset {end_offset} differs from another's")

    def loaded(self, node_id: int, old: int, new: int) -> None:
        if new < old:
            raise Broken(f"the state of node {node_id} went back from offset {old} to {new}")

    def led(self, node_id: int, epoch: int, values: list[bytes]) -> None:
        lost = self.acknowledged.keys() - set(values)
        if lost:
            raise Broken(f"node {node_id} leads epoch {epoch} without {len(lost)} acknowledged records, as {min(lost)!r}")

    def acknowledge(self, value: bytes, end_offset: int) -> None:
        """An acknowledged record must be on the disks of a majority."""
        self.acknowledged[value] = end_offset
        copies = 0
        for node in self._history.nodes.values():
            journal = node.journal
            if journal is None or journal.end_offset < end_offset:
                continue
            synced_end = journal.bounds(journal.synced_index)[1]
            copies += synced_end >= end_offset
        if 2 * copies <= len(self._history.nodes):
            raise Broken(f"a record at offset {end_offset - 1} was acknowledged with {copies} durable copies")

    def sent(self, node_id: int, peer: int, message: Message) -> None:
        self.spoken_term[node_id] = max(self.spoken_term[node_id], message.get("term", 0))
        if message["type"] == "response_vote":
            term = message["term"]
            if self.votes.setdefault((node_id, term), peer) != peer:
                raise Broken(f"node {node_id} voted twice in term {term}")
        elif message["type"] == "append_entries" and self.leaders.setdefault(message["term"], node_id) != node_id:
            raise Broken(f"nodes {self.leaders[message['term']]} and {node_id} lead term {message['term']}")

    def stepped(self, node: Node) -> None:
        voter = node.voter
        if voter is None:
            return
        engine = voter.engine
        if engine.is_leader and self.leaders.setdefault(engine.term, node.node_id) != node.node_id:
            raise Broken(f"nodes {self.leaders[engine.term]} and {node.node_id} lead term {engine.term}")
        if engine.term < node.term or voter.high_watermark < node.high_watermark:
            raise Broken(f"node {node.node_id}: term {node.term} -> {engine.term}, commit {node.high_watermark} -> {voter.high_watermark}")
        node.term, node.high_watermark = engine.term, voter.high_watermark
        if engine.commit_index > voter.journal.last_index:
            raise Broken(f"node {node.node_id} commits entry {engine.commit_index}, beyond its log")

    def restarted(self, node: Node) -> None:
        assert node.voter is not None
        term = node.voter.engine.term
        if term < self.spoken_term[node.node_id]:
            raise Broken(f"node {node.node_id} spoke in term {self.spoken_term[node.node_id]} and restarted in term {term}")

    def logs_match(self) -> None:
        """An index and a term name one entry, and it is the same everywhere."""
        entries: dict[tuple[int, int], int] = {}
        for node in self._history.nodes.values():
            for command, index, term in node.voter.journal.entries if node.voter else ():
                if command and entries.setdefault((index, term), zlib.crc32(command)) != zlib.crc32(command):
                    raise Broken(f"entry {index} of term {term} differs on node {node.node_id}")


@dataclass
class Node:
    node_id: int
    files: MemoryFiles
    voter: Voter | None = None
    journal: Journal | None = None  # The last life's, also while the node is down.
    replica: Replica | None = None
    life: int = 0
    term: int = 0
    high_watermark: int = 0
    timer: int = 0
    peers: dict[int, Side] = field(default_factory=dict)


@dataclass
class Side:
    """One end of a connection."""

    generation: int
    sender: FrameSender
    receiver: FrameReceiver
    arrives_s: float = 0.0  # When the last frame sent on it arrives: those after it arrive later.


class History:
    """Run it with `run`; raises Broken."""

    def __init__(self, seed: int, *, guards: Guards | None = None, voters: int | None = None) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.guards = guards or Guards()
        self.weather = weather_of(self.chance, voters)
        self.now_s = 0.0
        self.steps = 0
        self.is_healing = False
        self.checker = Checker(self)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = 0
        self._blocked: set[tuple[int, int]] = set()
        self._values = 0
        self._epochs_seen: list[int] = [0]
        self.nodes = {node_id: Node(node_id, MemoryFiles()) for node_id in range(1, self.weather.voters + 1)}
        for node in self.nodes.values():
            node.files.on_operation = lambda operation, path, node=node: self._disk(node, operation, path)

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self) -> History:
        for node in self.nodes.values():
            self._start(node)
        pairs = [(a, b) for a in self.nodes for b in self.nodes if a < b]
        for a, b in pairs:
            self._later(self.chance.uniform(0, 0.05), lambda a=a, b=b: self._connect(a, b))
        self._every(self.weather.proposals_per_s, lambda: None if self.is_healing else self._propose(self.chance.choice(list(self.nodes.values()))))
        self._every(self.weather.crashes_per_s, self._crash_some)
        self._every(self.weather.partitions_per_s, self._partition)
        self._every(self.weather.disconnects_per_s if pairs else 0, self._disconnect_some)
        self._every(3, self.checker.logs_match)
        self._run_until(FAULTS_S)
        self._heal()
        return self

    def _run_until(self, end_s: float, done: Callable[[], bool] = lambda: False) -> None:
        while self._events and not done():
            at_s, _, action = self._events[0]
            if at_s > end_s:
                break
            heapq.heappop(self._events)
            self.now_s = max(self.now_s, at_s)
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise Broken("the history does not come to rest")
            action()
        if not done():
            self.now_s = end_s

    def _heal(self) -> None:
        self.is_healing = True
        self._blocked.clear()
        for node in self.nodes.values():
            if node.voter is None:
                self._start(node)
        acknowledged = len(self.checker.acknowledged)

        def propose_again() -> None:
            for node in self.nodes.values():
                self._propose(node)
            self._later(0.1, propose_again)

        propose_again()

        def converged() -> bool:
            if len(self.checker.acknowledged) == acknowledged:
                return False
            newest = max(self.checker.acknowledged.values())
            return all(node.voter is not None and node.voter.high_watermark >= newest for node in self.nodes.values())

        self._run_until(self.now_s + HEALING_S_MAX, converged)
        if not converged():
            raise Broken(f"no progress in {HEALING_S_MAX} s after all faults were healed")
        self.checker.logs_match()
        for node in self.nodes.values():
            assert node.replica is not None
            counts = Counter(node.replica.values)
            wrong = [value for value in self.checker.acknowledged if counts[value] != 1]
            if wrong:
                raise Broken(f"node {node.node_id} has {len(wrong)} acknowledged records not exactly once")

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._counter += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._counter, action))

    def _every(self, rate_per_s: float, action: Callable[[], None]) -> None:
        if rate_per_s <= 0:
            return

        def again() -> None:
            action()
            self._later(self.chance.expovariate(rate_per_s), again)

        self._later(self.chance.expovariate(rate_per_s), again)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _start(self, node: Node) -> None:
        node.life += 1
        node.replica = Replica(self.checker, node.node_id)
        node.term = node.high_watermark = 0
        life = node.life
        voter = Voter(
            node_id=node.node_id,
            voters=sorted(self.nodes),
            files=node.files,
            directory=DIRECTORY,
            state_machine=node.replica,
            send=lambda peer, message: self._send(node, life, peer, message),
            now_s=lambda: self.now_s,
            wall_ms=lambda: int(self.now_s * 1000),
            chance=random.Random(self.chance.getrandbits(32)),
            timing=Timing.of(ELECTION_MS),
            sizes=self.weather.sizes,
            guards=self.guards,
        )

        def opened() -> None:
            voter.open()
            node.voter, node.journal = voter, voter.journal
            self.checker.restarted(node)

        self._guarded(node, opened)
        if node.voter is not None:
            self._turn(node)
            for peer in self.nodes:
                if peer != node.node_id:
                    self._later(self.chance.uniform(0, 0.1), lambda peer=peer: self._connect(node.node_id, peer))

    def _guarded(self, node: Node, action: Callable[[], None]) -> None:
        """Run code of a node; what ends its process or its machine ends it here."""
        try:
            action()
        except PowerLoss:
            self._crash(node)
        except StorageError as error:
            if INJECTED not in str(error):
                raise
            self._crash(node)
        else:
            self.checker.stepped(node)

    def _disk(self, node: Node, operation: str, path: str) -> None:
        if self.is_healing or operation in ("read", "open"):
            return
        if self.chance.random() < self.weather.disk_crash:
            raise PowerLoss
        if operation in ("sync", "write") and self.chance.random() < self.weather.disk_error:
            raise StorageError(f"can't {operation} {path}: {INJECTED}")

    def _turn(self, node: Node) -> None:
        if node.voter is None:
            return
        self._guarded(node, node.voter.turn)
        if node.voter is None:
            return
        node.timer += 1
        timer = node.timer
        due_s = node.voter.next_turn_s()
        if node.voter.has_more_to_do:
            due_s = self.now_s
        if due_s is not None:
            self._later(max(due_s - self.now_s, 0) + 0.001, lambda: self._turn(node) if node.timer == timer else None)

    def _turn_soon(self, node: Node) -> None:
        if self.chance.random() < 0.7:
            self._turn(node)
        else:
            node.timer += 1
            timer = node.timer
            self._later(self.chance.uniform(0, 0.002), lambda: self._turn(node) if node.timer == timer else None)

    def _crash(self, node: Node) -> None:
        """Power loss: what was not synced goes, in part."""
        node.voter = None
        node.files.crash(self.chance)
        for peer in list(node.peers):
            self._lose(node.node_id, peer)
        if self.is_healing:
            self._start(node)
        else:
            life = node.life
            self._later(self.chance.uniform(0.05, 1.0), lambda: self._start(node) if node.life == life and node.voter is None else None)

    def _crash_some(self) -> None:
        if not self.is_healing:
            node = self.chance.choice(list(self.nodes.values()))
            if node.voter is not None:
                self._crash(node)

    # --- network ------------------------------------------------------------------------------------------------------

    def _connect(self, a: int, b: int) -> None:
        """Open a connection if there is none; try again later where there can be none."""
        first, second = self.nodes[a], self.nodes[b]
        if first.voter is None or second.voter is None or (b in first.peers and a in second.peers):
            return
        if (a, b) in self._blocked or (b, a) in self._blocked:
            self._later(self.chance.uniform(0.02, 0.1), lambda: self._connect(a, b))
            return
        generation = self.chance.getrandbits(62)
        for node, peer in ((first, b), (second, a)):
            if peer in node.peers:
                self._closed(node, peer)
            if node.voter is None:
                return
            in_order = self.guards.fifo
            node.peers[peer] = Side(generation, FrameSender(generation), FrameReceiver(generation, in_order=in_order))
            hasten_s = self.chance.choice((None, 0.05))
            voter = node.voter
            self._guarded(node, lambda voter=voter, peer=peer, hasten_s=hasten_s: voter.connected(peer, hasten_s=hasten_s))
            self._turn_soon(node)

    def _lose(self, a: int, b: int) -> None:
        """A connection ends: each side notices when it does, and a new one follows."""
        side = self.nodes[a].peers.get(b) or self.nodes[b].peers.get(a)
        if side is None:
            return
        generation = side.generation
        for node_id, peer in ((a, b), (b, a)):
            delay_s = 0.0 if self.nodes[node_id].voter is None else self.chance.uniform(0, 0.05)
            self._later(delay_s, lambda node_id=node_id, peer=peer: self._notice(node_id, peer, generation))
        self._later(self.chance.uniform(0.005, 0.1), lambda: self._connect(a, b))

    def _notice(self, node_id: int, peer: int, generation: int) -> None:
        node = self.nodes[node_id]
        side = node.peers.get(peer)
        if side is not None and side.generation == generation:
            self._closed(node, peer)
            self._later(self.chance.uniform(0.005, 0.1), lambda: self._connect(node_id, peer))

    def _closed(self, node: Node, peer: int) -> None:
        node.peers.pop(peer, None)
        if node.voter is not None:
            voter = node.voter
            hasten_s = self.chance.choice((None, self.chance.uniform(0.01, 0.08)))
            self._guarded(node, lambda: voter.disconnected(peer, hasten_s=hasten_s))
            self._turn_soon(node)

    def _send(self, node: Node, life: int, peer: int, message: Message) -> None:
        self.checker.sent(node.node_id, peer, message)
        side = node.peers.get(peer)
        if side is None or node.life != life:
            return
        frame = side.sender.encode(message)
        weather = self.weather
        if (node.node_id, peer) in self._blocked or (not self.is_healing and self.chance.random() < weather.loss):
            return
        latency_s = self.chance.uniform(0.0002, weather.latency_ms_max / 1000)
        arrives_s = max(self.now_s + latency_s, side.arrives_s)
        if not self.is_healing and self.chance.random() < weather.reordering:
            arrives_s = self.now_s + latency_s * self.chance.uniform(0, 20)
        else:
            side.arrives_s = arrives_s
        self._later(arrives_s - self.now_s, lambda: self._deliver(node.node_id, peer, frame))
        if not self.is_healing and self.chance.random() < weather.duplication:
            self._later(arrives_s - self.now_s + latency_s * self.chance.uniform(0, 20), lambda: self._deliver(node.node_id, peer, frame))

    def _deliver(self, sender: int, receiver: int, frame: bytes) -> None:
        node = self.nodes[receiver]
        side = node.peers.get(sender)
        if node.voter is None or side is None:
            return
        try:
            message = side.receiver.decode(frame)
            if message is None:
                return
            voter = node.voter
            self._guarded(node, lambda: voter.receive(sender, message))
        except MalformedMessage:
            self._lose(sender, receiver)
            return
        self._turn_soon(node)

    def _disconnect_some(self) -> None:
        if not self.is_healing:
            a, b = self.chance.sample(sorted(self.nodes), 2)
            self._lose(a, b)

    def _partition(self) -> None:
        """Cut some links, in one direction or both, for a while."""
        if self.is_healing:
            return
        group = {node_id for node_id in self.nodes if self.chance.random() < 0.5}
        one_way = self.chance.random() < 0.4
        cut = {(a, b) for a in self.nodes for b in self.nodes if a in group and b not in group}
        if not one_way:
            cut |= {(b, a) for a, b in cut}
        self._blocked |= cut
        self._later(self.chance.uniform(0.1, 1.5), lambda: self._blocked.difference_update(cut))

    # --- clients ------------------------------------------------------------------------------------------------------

    def _propose(self, node: Node) -> None:
        if node.voter is None or node.replica is None or not node.replica.leadership.active:
            return
        epoch = node.replica.leadership.epoch
        for _ in range(self.chance.choice((1, 1, 3))):
            self._values += 1
            value = b"%06d:%d:" % (self._values, epoch) + b"x" * self.chance.choice((0, 20, 150))
            voter = node.voter

            def answer(result: int | ApiError, value: bytes = value) -> None:
                if not isinstance(result, ApiError):
                    self.checker.acknowledge(value, result)

            try:
                voter.propose([value], epoch=epoch, answer=answer)
            except ApiError:
                return
        self._turn_soon(node)


def run_history(seed: int, *, guards: Guards | None = None, voters: int | None = None) -> History:
    """Raises Broken with the seed in its message; any other exception of the code under test is one too."""
    loggers = [logging.getLogger(name) for name in ("raftlog.quorum", "pysyncobj")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)  # Cut tails and truncations are what a history is made of.
    try:
        return History(seed, guards=guards, voters=voters).run()
    except Broken as error:
        raise Broken(f"seed {seed}: {error}") from error
    except Exception as error:
        raise Broken(f"seed {seed}: {type(error).__name__}: {error}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
