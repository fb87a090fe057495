"""One chaos run from an empty directory to a verdict: cluster, clients, rounds of faults, healing, final reads, check."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .chaos_cluster import ChaosCluster, rack_of
from .chaos_faults import Faults, named
from .chaos_fleet import Fleet
from .chaos_history import Tail
from .chaos_moves import Moves
from .chaos_scenario import Scenario
from .chaos_timeline import NS_PER_S, Resumption, Timeline
from .chaos_watch import TopicWatch
from .errors import CliError, Unreachable
from .session import Session, parse_servers

if TYPE_CHECKING:
    from raftlog.protocol.messages import Fields
    from raftlog.testing.histories import Verdict

    from .chaos_view import ChaosView

TOPIC: Final = "chaos"
PARTITIONS: Final = 6
RATE_PER_S: Final = 200.0
REPLICATION_MAX: Final = 3
TICK_S: Final = 0.05
READY_TIMEOUT_S: Final = 90.0
WARM_UP_TIMEOUT_S: Final = 60.0
PATIENCE_S: Final = 30.0  # Beyond a scenario's limit: to say how long it really took.
IN_SYNC_WITHIN_S: Final = 60.0
CALM_S: Final = 2.0
READ_LATELY_S: Final = 2.0
ELECT_LEADERS: Final = 43
PREFERRED: Final = 0
ADMIN_TIMEOUT_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be run. `bootstrap_servers` names somebody else's cluster, which gets no faults."""

    title: str
    rounds: Iterator[Scenario]
    seconds: float
    seed: int
    nodes: int = 3
    rate_per_s: float = RATE_PER_S
    settings: Mapping[str, str] = field(default_factory=dict)
    isolates: bool = True
    bootstrap_servers: str | None = None
    in_namespaces: bool = False
    in_racks: bool = False
    history: Path | None = None
    keep: Path | None = None


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    verdict: Verdict
    timeline: Timeline
    problems: list[str]
    libraries: tuple[str, ...]
    history: Path
    unsure: int
    from_followers: int | None = None  # Records that consumers in racks read from followers; None where nobody is in one.

    @property
    def passed(self) -> bool:
        return self.verdict.is_clean and not self.problems


class ChaosRun:
    """One run; `run` once."""

    def __init__(self, options: Options, view: ChaosView) -> None:
        self.options, self.view = options, view
        self.timeline = Timeline()
        self.problems: list[str] = []
        self.topic = TOPIC if options.bootstrap_servers is None else f"{TOPIC}-{time.time_ns() // 10**6}"
        self.partitions = [f"{self.topic}-{number}" for number in range(PARTITIONS)]
        self.directory = options.keep or Path(tempfile.mkdtemp(prefix="raftlog-chaos-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.history = options.history or self.directory / "history.jsonl"
        if self.history.exists() and self.history.stat().st_size:
            raise CliError(f"{self.history} holds a history already")
        self.tail = Tail(self.history)
        self.cluster: ChaosCluster | None = None
        self.fleet: Fleet | None = None
        self.watch: TopicWatch | None = None
        self.faults: Faults | None = None

    def run(self) -> Outcome:
        """Raises CliError when the run itself can't be made; what the cluster does wrong is in the outcome."""
        try:
            self._set_up()
            self._rounds()
            return self._conclude()
        finally:
            if self.watch is not None:
                self.watch.close()
            if self.fleet is not None:
                self.fleet.kill()
            if self.cluster is not None:
                self.cluster.close()

    def clean_up(self) -> None:
        """Forget the nodes' data and logs; the history too unless its place was chosen."""
        if self.options.keep is None:
            shutil.rmtree(self.directory, ignore_errors=True)

    # --- before ---

    def _set_up(self) -> None:
        options = self.options
        if options.bootstrap_servers is None:
            self.say(f"starting {options.nodes} nodes in {self.directory}; seed {options.seed}")
            self.cluster = ChaosCluster(
                options.nodes,
                directory=self.directory,
                settings=options.settings,
                seed=options.seed,
                in_namespaces=options.in_namespaces,
                in_racks=options.in_racks,
            )
            self.cluster.start(self.cluster.nodes)
            servers, addresses = self.cluster.bootstrap_servers, self.cluster.addresses
        else:
            servers = options.bootstrap_servers
            addresses = dict(enumerate(parse_servers(servers), 1))
            self.say(f"on the cluster at {servers}: no faults of processes, disks or links")
        self.session = Session(servers, timeout_s=READY_TIMEOUT_S)
        self.watch = TopicWatch(addresses, self.topic)
        self.watch.start()
        if self.cluster is not None:
            self._until(self._all_brokers_known, what="all nodes to be ready", timeout_s=READY_TIMEOUT_S)
        self._create_topic()
        self.fleet = Fleet(
            bootstrap_servers=servers,
            topic=self.topic,
            partitions=PARTITIONS,
            history=self.history,
            log=self.directory / "clients.log",
            rate_per_s=options.rate_per_s,
            observes=not options.isolates,
            racks=self._racks(),
        )
        missing = "" if len(self.fleet.libraries) > 1 else " (aiokafka is not installed: its clients are left out)"
        self.say(f"starting clients of {' and '.join(self.fleet.libraries)}{missing}: {options.rate_per_s:.0f} writes/s")
        self.fleet.start()
        began_ns = time.monotonic_ns()
        self._until(lambda: self._resumed_s(began_ns) is not None, what="a first write to each partition", timeout_s=WARM_UP_TIMEOUT_S)
        if self.cluster is not None:
            self.faults = Faults(
                self.cluster,
                self.watch,
                self.timeline,
                chance=random.Random(options.seed),
                say=self.say,
                pump=self.pump,
                replace_clients=self.fleet.replace_all,
                elect=self._elect_preferred,
                read_followers=lambda: self.tail.rack_reads.followers(since_ns=time.monotonic_ns() - int(READ_LATELY_S * NS_PER_S)),
                moves=Moves(self.topic, nodes=list(self.cluster.nodes), ask=self._ask, pump=self.pump, chance=random.Random(options.seed)),
            )

    def _racks(self) -> list[str]:
        return [rack_of(node_id) for node_id in self.cluster.nodes] if self.cluster is not None and self.options.in_racks else []

    def _all_brokers_known(self) -> bool:
        assert self.watch is not None and self.cluster is not None
        return self.watch.newest().brokers >= set(self.cluster.nodes)

    def _create_topic(self) -> None:
        from confluent_kafka.admin import NewTopic

        admin = self.session.admin()
        with self.session.translated(self.topic):
            replicas = min(REPLICATION_MAX, len(admin.list_topics(timeout=READY_TIMEOUT_S).brokers))
            config = {"min.insync.replicas": str(max(1, replicas - 1))}
            topic = NewTopic(self.topic, num_partitions=PARTITIONS, replication_factor=replicas, config=config)
            admin.create_topics([topic])[self.topic].result(READY_TIMEOUT_S)

    def _elect_preferred(self) -> None:
        # Asked over the wire: confluent-kafka 2.16's elect_leaders raises a SystemError.
        self._ask(ELECT_LEADERS, {"election_type": PREFERRED, "topic_partitions": None, "timeout": ADMIN_TIMEOUT_MS})

    def _ask(self, api_key: int, request: Mapping[str, Any]) -> Fields:
        """Put a request to a node that runs. Raises CliError."""
        from .wire import WireClient

        assert self.cluster is not None
        able = (node_id for node_id in self.cluster.nodes if self.cluster.is_running(node_id) and node_id not in self.cluster.paused)
        node_id = next(able, None)
        if node_id is None:
            raise Unreachable("no node runs")
        with WireClient(*self.cluster.addresses[node_id], timeout_s=2 * ADMIN_TIMEOUT_MS / 1000) as client:
            return client.request(api_key, request)

    # --- during ---

    def say(self, text: str) -> None:
        self.view.event(self.timeline.event(text))

    def pump(self, seconds: float) -> None:
        """Let time pass: follow the history and the cluster, draw, and notice who ended without being told to."""
        until_s = time.monotonic() + seconds
        while True:
            self.tail.follow()
            self.timeline.acknowledged = self.tail.per_second
            if self.watch is not None:
                self.timeline.sample(self.watch.newest())
            if self.faults is not None:
                self._found(self.faults.notice_deaths())
            if self.fleet is not None:
                self._found(self.fleet.revive())
            self.view.draw()
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(left_s, TICK_S))

    def _found(self, problems: list[str]) -> None:
        for problem in problems:
            self.problems.append(problem)
            self.say(problem)

    def _until(self, condition: Callable[[], bool], *, what: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise CliError(f"waited {timeout_s:.0f} s in vain for {what}; logs are in {self.directory}")
            self.pump(TICK_S)

    def _rounds(self) -> None:
        end_s = time.monotonic() + self.options.seconds
        if self.faults is None:
            self.pump(self.options.seconds)
            return
        for number, scenario in enumerate(self.options.rounds, 1):
            self.say(f"round {number}: {scenario.name} - {scenario.title}")
            self._round(scenario, self.faults)
            if time.monotonic() >= end_s:
                return

    def _round(self, scenario: Scenario, faults: Faults) -> None:
        began_ns = time.monotonic_ns()
        moments: dict[str, int] = {}  # Of the first fault and of the last cure.
        for step in scenario.steps:
            self.pump(step.after_s)
            if not step.is_cure:
                moments.setdefault("fault", time.monotonic_ns())
            try:
                faults.do(step)
            except CliError as error:
                self._found([f"{scenario.name}: {step.do} was not possible: {error}"])
                break
            if step.is_cure:
                moments["cure"] = time.monotonic_ns()
        measured_ns = moments.get(scenario.measure, began_ns)
        faults.cure_all()
        cured_s = time.monotonic()
        took_s = self._wait_resumed(measured_ns, limit_s=scenario.writes_resume_within_s)
        in_sync_s = self._wait_in_sync(cured_s)
        if scenario.measure == "fault" and took_s is not None:
            took_s = self.tail.longest_silence_s(self.partitions, since_ns=measured_ns)
        self._note_resumption(scenario, measured_ns, took_s, in_sync_s)
        if scenario.reads_resume_within_s is not None:
            self._check_reads(scenario.name, measured_ns=measured_ns, cured_ns=int(cured_s * NS_PER_S), limit_s=scenario.reads_resume_within_s)

    def _check_reads(self, name: str, *, measured_ns: int, cured_ns: int, limit_s: float) -> None:
        """Of the consumers in racks, at the end of a round, with all replicas in sync: see Scenario."""
        reads, racks, in_sync_ns = self.tail.rack_reads, self._racks(), time.monotonic_ns()
        deadline_s = time.monotonic() + limit_s
        while (unread := self._unread(in_sync_ns)) or not reads.have_all_read(racks, self.partitions, since_ns=cured_ns):
            if time.monotonic() > deadline_s:
                break
            self.pump(TICK_S)
        if unread:
            self._found([f"{name}: {limit_s:.0f} s after all replicas were in sync nobody reads from {named(unread)}"])
        silence_s = reads.longest_silence_s(racks, self.partitions, since_ns=measured_ns)
        text = f"longest time without a read of some partition in some rack: {silence_s:.1f} s"
        self.say(f"{text} (limit {limit_s:.0f} s)")
        if silence_s > limit_s:
            self.problems.append(f"{name}: {text}, allowed are {limit_s:.0f} s")

    def _unread(self, since_ns: int) -> list[int]:
        """The nodes that follow partitions and from which nobody has read since a moment."""
        assert self.watch is not None
        partitions = self.watch.newest().partitions
        following = {node_id for partition in partitions for node_id in partition.isr if node_id != partition.leader}
        return sorted(following - self.tail.rack_reads.followers(since_ns=since_ns).keys())

    def _note_resumption(self, scenario: Scenario, measured_ns: int, took_s: float | None, in_sync_s: float | None) -> None:
        at_s = measured_ns / NS_PER_S - self.timeline.began_s
        resumption = Resumption(scenario.name, at_s, scenario.writes_resume_within_s, took_s, in_sync_s)
        self.timeline.resumptions.append(resumption)
        what = "longest time without a write to some partition" if scenario.measure == "fault" else "time from the cure to a write to every partition"
        taken = "not in time" if took_s is None else f"{took_s:.1f} s"
        self.say(f"{what}: {taken} (limit {scenario.writes_resume_within_s:.0f} s)")
        if not resumption.in_time:
            self.problems.append(f"{scenario.name} at {at_s:.0f} s: {what}: {taken}, allowed are {scenario.writes_resume_within_s:.0f} s")
        if in_sync_s is None:
            self.problems.append(f"{scenario.name} at {at_s:.0f} s: not all replicas were in sync {IN_SYNC_WITHIN_S:.0f} s after the cure")

    def _resumed_s(self, after_ns: int) -> float | None:
        times = [self.tail.resumed_ns(partition, after_ns=after_ns) for partition in self.partitions]
        known = [time_ns for time_ns in times if time_ns is not None]
        return (max(known) - after_ns) / NS_PER_S if len(known) == len(times) else None

    def _wait_resumed(self, after_ns: int, *, limit_s: float) -> float | None:
        deadline_s = time.monotonic() + limit_s + PATIENCE_S
        while (took_s := self._resumed_s(after_ns)) is None and time.monotonic() < deadline_s:
            self.pump(TICK_S)
        return took_s

    def _wait_in_sync(self, cured_s: float) -> float | None:
        assert self.watch is not None
        while not self.watch.agree_since(cured_s):
            if time.monotonic() > cured_s + IN_SYNC_WITHIN_S:
                return None
            self.pump(TICK_S)
        return time.monotonic() - cured_s

    # --- after ---

    def _conclude(self) -> Outcome:
        from raftlog.testing import histories

        assert self.fleet is not None
        self.pump(CALM_S)
        self.say("the time is up; stopping the clients")
        self._found(self.fleet.stop(self.pump))
        self.say("reading everything once more")
        self._found([f"final reads are incomplete: {line}" for line in self.fleet.read_finally(self.pump)])
        self.say("checking the history")
        with self.history.open(encoding="utf-8") as file:
            operations = histories.parse(file)
        verdict = histories.check(operations)
        self.tail.follow()
        from_followers = self.tail.rack_reads.from_followers if self.options.in_racks else None
        if from_followers == 0:
            self._found(["no record came from a follower: nothing of such reads was tested"])
        return Outcome(verdict, self.timeline, self.problems, self.fleet.libraries, self.history, self.tail.unsure, from_followers)


def rounds_of(scenario: Scenario) -> Iterator[Scenario]:
    return repeat(scenario)
