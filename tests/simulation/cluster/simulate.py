"""One simulated life of a cluster from one seed: workload, faults, healing, final reads, verdict."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from raftlog.ids import TopicPartition
from raftlog.testing import virtual_time
from raftlog.testing.histories import Verdict, check
from tests.simulation.cluster.checkers import Watch
from tests.simulation.cluster.clients import Admin, Consumer, Producer
from tests.simulation.cluster.groups import Auditor, LoneConsumer, Member
from tests.simulation.cluster.harness import SimulatedCluster
from tests.simulation.cluster.history import Recorder
from tests.simulation.cluster.nemesis import Nemesis
from tests.simulation.cluster.probes import AlterPartitionProbe
from tests.simulation.cluster.schedule import FAULTS_UNTIL_S, Plan, Tempo, plan
from tests.simulation.cluster.topics import TOPIC as CHURN
from tests.simulation.cluster.topics import TopicChurn

TOPIC: Final = "events"
PARTITIONS: Final = 3
MEMBERS: Final = 2
RECOVERY_S_MAX: Final = 90.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one life; `problems` is empty when all is well, each begins with the name of what found it."""

    plan: Plan
    problems: tuple[str, ...]
    verdict: Verdict
    trace: tuple[str, ...]
    virtual_s: float
    kinds: Counter[str]

    @property
    def trace_hash(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def simulate(seed: int, *, faults_until_s: float = FAULTS_UNTIL_S) -> Outcome:
    return live(plan(seed, until_s=faults_until_s))


def live(life: Plan) -> Outcome:
    """Live the life that a plan describes."""
    return virtual_time.run(_Life(life).run())


class _Life:
    def __init__(self, life: Plan) -> None:
        self._plan = life
        self._tempo = Tempo(life.faults)
        self._client_count = 0

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        self._cluster = SimulatedCluster(nodes=self._plan.nodes, voters=self._plan.voters, seed=self._plan.seed, drifts=self._plan.drifts)
        self._recorder = Recorder(loop)
        self._nemesis = Nemesis(self._cluster, self._plan)
        watch = Watch(self._cluster)
        problems: list[str] = []
        try:
            async with asyncio.timeout(self._plan.until_s + 3 * RECOVERY_S_MAX):
                await self._live(watch)
        except TimeoutError:
            problems.append(f"no recovery: still busy at {loop.time():.1f} s")
        verdict = check(self._recorder.operations)
        problems += watch.problems + self._recorder.problems + self._cluster.failures
        problems += [f"{anomaly.kind}: {anomaly.message}" for anomaly in verdict.anomalies]
        return Outcome(self._plan, tuple(problems), verdict, self._trace(), loop.time(), self._nemesis.kinds)

    def _trace(self) -> tuple[str, ...]:
        operations = [(operation.start_ns / 1e9, operation.describe()) for operation in self._recorder.operations]
        return tuple(f"{time_s:9.3f} {text}" for time_s, text in sorted(self._cluster.events + operations, key=lambda entry: entry[0]))

    async def _live(self, watch: Watch) -> None:
        loop, cluster = asyncio.get_running_loop(), self._cluster
        for node_id in cluster.node_ids:
            cluster.start(node_id)
        await cluster.wait_until_ready()
        await Admin(*self._client("admin")).create_topic(TOPIC, partitions=PARTITIONS, replicas=3, configs={"min.insync.replicas": "2"})
        until_s = loop.time() + self._plan.until_s
        self._tempo.begin(loop.time())
        churn = TopicChurn(*self._client("churn"))
        watching = loop.create_task(watch.run())
        await asyncio.gather(self._nemesis.run(), churn.run(until_s=until_s), *self._workload(until_s))
        finals = [Consumer(*self._client("final"), topic=TOPIC, partition=partition) for partition in range(PARTITIONS)]
        async with asyncio.timeout(RECOVERY_S_MAX):
            await cluster.wait_until_whole()
            await watch.wait_for_metadata()  # From here on nobody holds itself for a leader that was deposed meanwhile.
            await asyncio.gather(*(final.read_to_end() for final in finals), churn.read_to_end())
        watching.cancel()
        if bool(churn.name) != (CHURN in cluster.newest.topics):
            watch.problems.append(f"topic lost: {CHURN} should {'' if churn.name else 'not '}exist")
        await watch.check_end()

    def _workload(self, until_s: float) -> list[Coroutine[Any, Any, None]]:
        work: list[Coroutine[Any, Any, None]] = []
        for partition in range(PARTITIONS):
            # Everywhere an idempotent producer and a plain one; on two partitions one that waits for the leader or for nobody.
            for acks, idempotent in ((-1, True), (-1, False), *(((1, False), (0, False), (-1, True))[partition : partition + 1])):
                producer = Producer(*self._client("producer"), topic=TOPIC, partition=partition, acks=acks, idempotent=idempotent)
                work.append(producer.run(until_s=until_s))
            consumer = LoneConsumer(*self._client("consumer"), topic=TOPIC, partition=partition, group=f"group-{partition}")
            work.append(consumer.run(until_s=until_s))
        members = [Member(*self._client("member"), group="members", topic=TOPIC, partitions=PARTITIONS) for _ in range(MEMBERS)]
        groups = [(f"group-{partition}", [(TOPIC, partition)]) for partition in range(PARTITIONS)]
        groups.append(("members", [(TOPIC, partition) for partition in range(PARTITIONS)]))
        others = (
            Auditor(*self._client("auditor"), groups=groups),
            AlterPartitionProbe(self._cluster, self._recorder, random.Random(f"{self._plan.seed} probe")),
        )
        return work + [member.run(until_s=until_s) for member in (*members, *others)]

    def _client(self, kind: str) -> tuple[str, Any, Any, Recorder, random.Random, _Oracle, Tempo]:
        self._client_count += 1
        name = f"{kind}{self._client_count}"
        chance = random.Random(f"{self._plan.seed} {name}")
        return name, self._cluster.network.view(name), self._cluster.bootstrap_ports, self._recorder, chance, _Oracle(self._cluster), self._tempo


class _Oracle:
    """See `clients.Oracle`."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster

    def epoch_at(self, port: int, topic: str, partition: int) -> int:
        node = self._cluster.nodes.get(self._cluster.node_at(port))
        known = None if node is None else node.image.partition(TopicPartition(topic, partition))
        return -1 if known is None else known.leader_epoch

    def is_deposed(self, port: int, topic: str, partition: int) -> bool:
        newest = self._cluster.newest.partition(TopicPartition(topic, partition))
        return newest is not None and self.epoch_at(port, topic, partition) < newest.leader_epoch
