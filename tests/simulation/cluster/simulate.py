"""One simulated life of a cluster from one seed: workload, faults, healing, final reads, verdict."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import uuid
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from raftlog.errors import ApiError, CorruptMessage
from raftlog.ids import TopicPartition
from raftlog.testing import virtual_time
from raftlog.testing.histories import Verdict, check
from tests.simulation.cluster import logged
from tests.simulation.cluster.checkers import Watch
from tests.simulation.cluster.clients import Admin, Consumer, Producer
from tests.simulation.cluster.configs import Configurer
from tests.simulation.cluster.consumers import ConsumerMember
from tests.simulation.cluster.deletions import CONFIGS as TRIMMED_CONFIGS
from tests.simulation.cluster.deletions import TOPIC as TRIMMED
from tests.simulation.cluster.deletions import Deleter, LogStarts, TrimmedReader
from tests.simulation.cluster.groups import Auditor, LoneConsumer, Member
from tests.simulation.cluster.harness import SimulatedCluster, rack_of
from tests.simulation.cluster.history import Recorder
from tests.simulation.cluster.nemesis import Nemesis
from tests.simulation.cluster.offset_deletes import OffsetEraser
from tests.simulation.cluster.probes import AlterPartitionProbe
from tests.simulation.cluster.readers import STAMPED, STAMPED_CONFIGS, NearConsumer, StampedConsumer
from tests.simulation.cluster.reassigner import Reassigner
from tests.simulation.cluster.schedule import FAULTS_UNTIL_S, Plan, Tempo, plan
from tests.simulation.cluster.tables import CONFIGS as TABLE_CONFIGS
from tests.simulation.cluster.tables import TOPIC as TABLE
from tests.simulation.cluster.tables import Ledger, TableNoise, TableReader, TableWriter
from tests.simulation.cluster.topics import TOPIC as CHURN
from tests.simulation.cluster.topics import TopicChurn

TOPIC: Final = "events"
PARTITIONS: Final = 3
MEMBERS: Final = 2
RECOVERY_S_MAX: Final = 90.0
TRIMMED_PAUSE_MS_MAX: Final = 800
PADDING_BYTES: Final = 40_000  # Enough for a batch to be converted off the event loop.


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one life; `problems` is empty when all is well, each begins with the name of what found it."""

    plan: Plan
    problems: tuple[str, ...]
    verdict: Verdict
    trace: tuple[str, ...]
    virtual_s: float
    kinds: Counter[str]
    read_from_followers: int = 0  # Fetches of consumers that a follower answered with records.

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
        self._near: list[NearConsumer] = []
        self._ledger = Ledger()

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        self._cluster = SimulatedCluster(nodes=self._plan.nodes, voters=self._plan.voters, seed=self._plan.seed, drifts=self._plan.drifts)
        self._recorder = Recorder(loop)
        self._oracle = _Oracle(self._cluster)
        self._nemesis = Nemesis(self._cluster, self._plan)
        self._starts = LogStarts(self._cluster, self._recorder)
        watch = Watch(self._cluster)
        problems: list[str] = []
        try:
            with logged.watching(self._cluster.failures.append):
                async with asyncio.timeout(self._plan.until_s + 3 * RECOVERY_S_MAX):
                    await self._live(watch)
        except TimeoutError:
            problems.append(f"no recovery: still busy at {loop.time():.1f} s")
        except CorruptMessage as error:
            problems.append(f"corrupt record: at {loop.time():.3f} s {error}")
        verdict = check(self._recorder.operations)
        problems += watch.problems + self._recorder.problems + self._cluster.failures
        problems += [f"{anomaly.kind}: {anomaly.message}" for anomaly in verdict.anomalies]
        from_followers = sum(consumer.read_from_followers for consumer in self._near)
        return Outcome(self._plan, tuple(problems), verdict, self._trace(), loop.time(), self._nemesis.kinds, from_followers)

    def _trace(self) -> tuple[str, ...]:
        operations = [(operation.start_ns / 1e9, operation.describe()) for operation in self._recorder.operations]
        return tuple(f"{time_s:9.3f} {text}" for time_s, text in sorted(self._cluster.events + operations, key=lambda entry: entry[0]))

    async def _live(self, watch: Watch) -> None:
        loop, cluster = asyncio.get_running_loop(), self._cluster
        for node_id in cluster.node_ids:
            cluster.start(node_id)
        await cluster.wait_until_ready()
        admin = Admin(*self._client("admin"))
        throttled = {"leader.replication.throttled.replicas": "*", "follower.replication.throttled.replicas": "*"} if self._plan.moves else {}
        await admin.create_topic(TOPIC, partitions=PARTITIONS, replicas=3, configs={"min.insync.replicas": "2", **throttled})
        await admin.create_topic(STAMPED, partitions=1, replicas=3, configs=STAMPED_CONFIGS)
        until_s = loop.time() + self._plan.until_s
        self._tempo.begin(loop.time())
        await admin.create_topic(TABLE, partitions=1, replicas=3, configs=TABLE_CONFIGS)
        churn = TopicChurn(*self._client("churn"))
        await admin.create_topic(TRIMMED, partitions=1, replicas=3, configs=TRIMMED_CONFIGS)
        deleter, eraser = Deleter(*self._client("deleter"), starts=self._starts), OffsetEraser(*self._client("eraser"), topic=TOPIC)
        watching = [loop.create_task(watch.run()), loop.create_task(self._starts.run())]
        configurer = Configurer(*self._client("configurer"), topic=TOPIC, node_id=1, port=cluster.bootstrap_ports()[0])
        movers = self._movers(watch)
        others = [one.run(until_s=until_s) for one in (churn, configurer, deleter, eraser, *movers)]
        await asyncio.gather(self._nemesis.run(), *others, *self._workload(until_s))
        finals = [Consumer(*self._client("final"), topic=TOPIC, partition=partition) for partition in range(PARTITIONS)]
        finals += [self._near_consumer(partition) for partition in range(PARTITIONS)]
        finals.append(StampedConsumer(*self._client("final"), topic=STAMPED, partition=0))
        finals.append(TrimmedReader(*self._client("final"), starts=self._starts))
        table = TableReader(*self._client("final"), ledger=self._ledger)
        async with asyncio.timeout(RECOVERY_S_MAX):
            await cluster.wait_until_whole()
            for mover in movers:
                await mover.finish()
            await asyncio.gather(*(self._write_once(TOPIC, partition) for partition in range(PARTITIONS)), self._write_once(TRIMMED, 0))
            await watch.wait_for_metadata()  # From here on nobody holds itself for a leader that was deposed meanwhile.
            await asyncio.gather(*(final.read_to_end() for final in finals), churn.read_to_end(), table.read_to_end(), eraser.read_to_end())
            deleted_offset = await deleter.finish()
        await self._starts.check_end(deleted_offset)
        for task in watching:
            task.cancel()
        exists = CHURN in cluster.newest.topics
        if (churn.name and not exists) or (exists and not churn.name and churn.is_settled):
            watch.problems.append(f"topic lost: {CHURN} should {'' if churn.name else 'not '}exist")
        await watch.check_end()
        watch.problems += configurer.check_end(cluster)

    def _workload(self, until_s: float) -> list[Coroutine[Any, Any, None]]:
        work: list[Coroutine[Any, Any, None]] = []
        for partition in range(PARTITIONS):
            # Everywhere an idempotent producer and a plain one; on two partitions one that waits for the leader or for nobody.
            for acks, idempotent in ((-1, True), (-1, False), *(((1, False), (0, False), (-1, True))[partition : partition + 1])):
                producer = Producer(*self._client("producer"), topic=TOPIC, partition=partition, acks=acks, idempotent=idempotent)
                work.append(producer.run(until_s=until_s))
            consumer = LoneConsumer(*self._client("consumer"), topic=TOPIC, partition=partition, group=f"group-{partition}")
            work.append(consumer.run(until_s=until_s))
        members: list[Member | ConsumerMember] = [
            Member(*self._client("member"), group="members", topic=TOPIC, partitions=PARTITIONS) for _ in range(MEMBERS)
        ]
        members += (ConsumerMember(*self._client("consumer"), group="consumers", topic=TOPIC, by_regex=one == 0) for one in range(MEMBERS))
        groups = [(f"group-{partition}", [(TOPIC, partition)]) for partition in range(PARTITIONS)]
        groups += ((group, [(TOPIC, partition) for partition in range(PARTITIONS)]) for group in ("members", "consumers"))
        others = (
            Auditor(*self._client("auditor"), groups=groups),
            AlterPartitionProbe(self._cluster, self._recorder, random.Random(f"{self._plan.seed} probe")),
        )
        work += self._data_path(until_s)
        work += self._trimmed(until_s)
        work.append(TableWriter(*self._client("table"), ledger=self._ledger).run(until_s=until_s))
        work.append(TableReader(*self._client("table"), ledger=self._ledger).run(until_s=until_s))
        work.append(TableNoise(*self._client("noise")).run(until_s=until_s))
        return work + [member.run(until_s=until_s) for member in (*members, *others)]

    def _data_path(self, until_s: float) -> list[Coroutine[Any, Any, None]]:
        """Consumers that read from followers, and a topic with its own codec and the broker's time."""
        work = [self._near_consumer(partition).run(until_s=until_s) for partition in range(PARTITIONS)]
        for acks, idempotent in ((-1, True), (1, False)):
            producer = Producer(*self._client("producer"), topic=STAMPED, partition=0, acks=acks, idempotent=idempotent)
            producer.padding_bytes = PADDING_BYTES
            work.append(producer.run(until_s=until_s))
        consumer = StampedConsumer(*self._client("consumer"), topic=STAMPED, partition=0)
        return [*work, consumer.run(until_s=until_s)]

    def _trimmed(self, until_s: float) -> list[Coroutine[Any, Any, None]]:
        """What is written to the topic whose beginning is deleted, and read of it."""
        work = [TrimmedReader(*self._client("trimmed"), starts=self._starts).run(until_s=until_s)]
        for acks, idempotent in ((-1, True), (1, False)):
            producer = Producer(*self._client("trimmed"), topic=TRIMMED, partition=0, acks=acks, idempotent=idempotent)
            producer.pause_ms_max = TRIMMED_PAUSE_MS_MAX
            work.append(producer.run(until_s=until_s))
        return work

    def _near_consumer(self, partition: int) -> NearConsumer:
        """In the rack of a node that may host a replica."""
        rack = rack_of(self._cluster.node_ids[partition % len(self._cluster.node_ids)])
        consumer = NearConsumer(*self._client("near"), topic=TOPIC, partition=partition, rack=rack)
        self._near.append(consumer)
        return consumer

    async def _write_once(self, topic: str, partition: int) -> None:
        await Producer(*self._client("last"), topic=topic, partition=partition, acks=-1, idempotent=True).send_until_acknowledged()

    def _movers(self, watch: Watch) -> list[Reassigner]:
        if not self._plan.moves:
            return []
        moved = [TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)] + [TopicPartition("__consumer_offsets", 0)]
        return [Reassigner(self._cluster, watch.moves, self._client("mover"), partitions=moved)]

    def _client(self, kind: str) -> tuple[str, Any, Any, Recorder, random.Random, _Oracle, Tempo]:
        self._client_count += 1
        name = f"{kind}{self._client_count}"
        chance = random.Random(f"{self._plan.seed} {name}")
        return name, self._cluster.network.view(name), self._cluster.bootstrap_ports, self._recorder, chance, self._oracle, self._tempo


class _Oracle:
    """See `clients.Oracle`."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self._marks: dict[TopicPartition, int] = {}

    def runs(self, port: int) -> bool:
        return self._cluster.is_ready(self._cluster.node_at(port))

    def mark(self, topic: str, partition: int) -> int:
        name = TopicPartition(topic, partition)
        highest = self._marks.get(name, 0)
        for node in self._cluster.nodes.values():
            if node.broker is not None:
                with contextlib.suppress(ApiError):
                    highest = max(highest, node.broker.replicas.high_watermark(name))
        self._marks[name] = highest
        return highest

    def topic_id(self, topic: str) -> uuid.UUID | None:
        known = self._cluster.newest.topics.get(topic)
        return None if known is None else known.topic_id

    def epoch_at(self, port: int, topic: str, partition: int) -> int:
        node = self._cluster.nodes.get(self._cluster.node_at(port))
        known = None if node is None else node.image.partition(TopicPartition(topic, partition))
        return -1 if known is None else known.leader_epoch

    def is_deposed(self, port: int, topic: str, partition: int) -> bool:
        newest = self._cluster.newest.partition(TopicPartition(topic, partition))
        return newest is not None and self.epoch_at(port, topic, partition) < newest.leader_epoch
