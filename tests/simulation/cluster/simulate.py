"""One simulated life of a cluster from one seed: workload, faults, healing, final reads, verdict."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass

from raftlog.testing import virtual_time
from raftlog.testing.histories import Verdict, check
from tests.simulation.cluster.checkers import Watch
from tests.simulation.cluster.clients import Admin, Consumer, Producer
from tests.simulation.cluster.harness import SimulatedCluster
from tests.simulation.cluster.history import Recorder
from tests.simulation.cluster.nemesis import Nemesis

TOPIC = "events"
PARTITIONS = 3
FAULTS_UNTIL_S = 60.0
RECOVERY_S_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed; `problems` is empty when all is well."""

    seed: int
    problems: tuple[str, ...]
    verdict: Verdict
    trace: tuple[str, ...]
    virtual_s: float

    @property
    def trace_hash(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def simulate(seed: int, *, faults_until_s: float = FAULTS_UNTIL_S) -> Outcome:
    return virtual_time.run(_simulate(seed, faults_until_s))


async def _simulate(seed: int, faults_until_s: float) -> Outcome:
    loop = asyncio.get_running_loop()
    chance = random.Random(seed * 7919 + 17)
    cluster = SimulatedCluster(nodes=3, seed=seed)
    recorder = Recorder(loop)
    problems: list[str] = []
    watch = Watch(cluster)
    try:
        async with asyncio.timeout(faults_until_s + 4 * RECOVERY_S_MAX):
            await _live(cluster, recorder, chance, watch, faults_until_s)
    except TimeoutError:
        problems.append(f"no recovery: still busy at {loop.time():.1f} s")
    verdict = check(recorder.operations)
    problems += watch.problems + cluster.failures
    problems += [f"{anomaly.kind}: {anomaly.message}" for anomaly in verdict.anomalies]
    operations = [(operation.start_ns / 1e9, operation.describe()) for operation in recorder.operations]
    trace = tuple(f"{time_s:9.3f} {text}" for time_s, text in sorted(cluster.events + operations, key=lambda entry: entry[0]))
    return Outcome(seed, tuple(problems), verdict, trace, loop.time())


async def _live(cluster: SimulatedCluster, recorder: Recorder, chance: random.Random, watch: Watch, faults_until_s: float) -> None:
    loop = asyncio.get_running_loop()
    for node_id in cluster.node_ids:
        cluster.start(node_id)
    await cluster.wait_until_ready()
    client_number = 0

    def client_of(kind: str) -> tuple[str, object, object, Recorder, random.Random]:
        nonlocal client_number
        client_number += 1
        name = f"{kind}{client_number}"
        return name, cluster.network.view(name), cluster.bootstrap_ports, recorder, random.Random(chance.getrandbits(64))

    await Admin(*client_of("admin")).create_topic(TOPIC, partitions=PARTITIONS, replicas=3, configs={"min.insync.replicas": "2"})
    until_s = loop.time() + faults_until_s
    work = [Nemesis(cluster, random.Random(chance.getrandbits(64))).run(until_s=until_s)]
    for partition in range(PARTITIONS):
        for acks, idempotent in ((-1, True), (-1, False), (1, False)):
            producer = Producer(*client_of("producer"), topic=TOPIC, partition=partition, acks=acks, idempotent=idempotent)
            work.append(producer.run(until_s=until_s))
        consumer = Consumer(*client_of("consumer"), topic=TOPIC, partition=partition, group=f"group-{partition}")
        work.append(consumer.run(until_s=until_s))
    watching = loop.create_task(watch.run())
    await asyncio.gather(*work)
    finals = [Consumer(*client_of("final"), topic=TOPIC, partition=partition) for partition in range(PARTITIONS)]
    async with asyncio.timeout(RECOVERY_S_MAX):
        await cluster.wait_until_ready()
        await asyncio.gather(*(final.read_to_end() for final in finals))
    watching.cancel()
    await watch.check_end()
