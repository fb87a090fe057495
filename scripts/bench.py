"""Measure a cluster of real processes on this machine and print a table of medians. Reported, never asserted."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench_client import create_topic, first_write, pipelined_writes, write_to_leader
from confluent_kafka import KafkaException, Message, Producer
from local_cluster import LocalCluster, cpu_s, free_ports, memory_bytes, running_cluster, wait_until
from raftlog_cli.errors import CliError
from raftlog_cli.output import print_table

IDLE_S: Final = 5.0
PIPELINED_REQUESTS: Final = 30_000
THROUGHPUT_RECORDS: Final = 1_500_000
RECORD_BYTES: Final = 100
BATCH_BYTES: Final = 16 * 1024
WARM_UP_S: Final = 1.0
WRITES_PER_S: Final = 200
FAILOVER_TIMEOUT_S: Final = 60.0
MANY_PARTITIONS: Final = 1000
MANY_TIMEOUT_S: Final = 300.0
MEBIBYTE: Final = 1024 * 1024


@dataclass(slots=True)
class Measure:
    """One line of the table: what was measured, in which unit, what it ought to reach, and every sample."""

    what: str
    unit: str
    target: str = ""
    samples: list[float] = field(default_factory=list)

    def row(self) -> list[str]:
        if not self.samples:
            return [self.what, "-", "-", "-", "0", self.target]
        shown = [number(value) for value in (statistics.median(self.samples), min(self.samples), max(self.samples))]
        return [self.what, f"{shown[0]} {self.unit}", *shown[1:], str(len(self.samples)), self.target]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def start_one(runs: int) -> Iterator[Measure]:
    """A fresh node, from its process's start to its first acknowledged write."""
    measure = Measure("one fresh node: process start to first acknowledged write", "s", "< 1 s")
    for _ in range(runs):
        with LocalCluster(1) as cluster:
            started_s = time.monotonic()
            cluster.start()
            first_write(cluster, "first", acks=1)
            measure.samples.append(time.monotonic() - started_s)
    yield measure


def up_three(runs: int) -> Iterator[Measure]:
    """Three fresh nodes by `raftlog up`; then their memory and CPU while nobody uses them."""
    ready = Measure("three nodes by `raftlog up`: command to all ready", "s", "< 3 s")
    memory = Measure("  idle memory (RSS) per node", "MiB", "< 80 MiB")
    cpu = Measure("  idle CPU per node", "% core")
    stop = Measure("  Ctrl-C to all stopped", "s")
    again = Measure("  the same directory again: command to all ready", "s")
    for _ in range(runs):
        directory = Path(tempfile.mkdtemp(prefix="raftlog-"))
        arguments = ["--nodes", "3", "--dir", str(directory), "--base-port", str(free_ports(6)[0])]
        with raftlog_up(arguments) as (process, event, seconds):
            ready.samples.append(seconds)
            time.sleep(IDLE_S)
            pids = list(event["pids"].values())
            before = [cpu_s(pid) for pid in pids]
            time.sleep(IDLE_S)
            cpu.samples += [100 * (cpu_s(pid) - used) / IDLE_S for pid, used in zip(pids, before, strict=True)]
            memory.samples += [memory_bytes(pid) / MEBIBYTE for pid in pids]
            stopping_s = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.wait(60)
            stop.samples.append(time.monotonic() - stopping_s)
        with raftlog_up(["--dir", str(directory)]) as (_, _, seconds):
            again.samples.append(seconds)
        shutil.rmtree(directory, ignore_errors=True)
    yield from (ready, again, stop, memory, cpu)


@contextmanager
def raftlog_up(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any], float]]:
    """`raftlog up --json`: its process, its ready event, and the seconds from the command to that event."""
    command = [sys.executable, "-P", "-m", "raftlog_cli", "up", "--json", *arguments]
    started_s = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                yield process, event, time.monotonic() - started_s
                return
        raise CliError(f"`raftlog up` ended: {process.stderr.read().strip()}")
    finally:
        process.terminate()
        process.wait(60)


def produce_cpu(runs: int) -> Iterator[Measure]:
    """Broker CPU per produce request: one partition, acks=1, one record of 100 bytes, pipelined on one connection."""
    measure = Measure("broker CPU per produce request (acks=1, one small record)", "µs", "< 40 µs")
    rate = Measure("  requests per second, one connection", "/s")
    with running_cluster(1) as cluster:
        node = cluster.nodes[1]
        first_write(cluster, "small", acks=1)
        pipelined_writes(node, "small", PIPELINED_REQUESTS // 10)
        for _ in range(runs):
            assert node.process is not None
            before, started_s = cpu_s(node.process.pid), time.monotonic()
            pipelined_writes(node, "small", PIPELINED_REQUESTS)
            rate.samples.append(PIPELINED_REQUESTS / (time.monotonic() - started_s))
            measure.samples.append(1e6 * (cpu_s(node.process.pid) - before) / PIPELINED_REQUESTS)
    yield from (measure, rate)


def throughput(runs: int) -> Iterator[Measure]:
    """One librdkafka producer, 16 KiB batches of 100-byte records, one partition, one replica; the CPU of both sides."""
    rate = Measure("one librdkafka producer, 16 KiB batches, 100-byte records", "records/s", "client-bound")
    volume = Measure("  payload", "MiB/s")
    client = Measure("  CPU of the producing client", "% core")
    broker = Measure("  CPU of the broker", "% core", "below the client's")
    with running_cluster(1) as cluster:
        node = cluster.nodes[1]
        assert node.process is not None
        first_write(cluster, "bulk", acks=1)
        settings = {
            "bootstrap.servers": node.address,
            "acks": 1,
            "batch.size": BATCH_BYTES,
            "linger.ms": 5,
            "queue.buffering.max.messages": 200_000,
            "log_level": 2,
        }
        value = b"v" * RECORD_BYTES
        for _ in range(runs):
            producer = Producer(settings)
            producer.list_topics("bulk", timeout=30)
            before_broker, before_client, started_s = cpu_s(node.process.pid), time.process_time(), time.monotonic()
            for _ in range(THROUGHPUT_RECORDS):
                while True:
                    try:
                        producer.produce("bulk", value, partition=0)
                        break
                    except BufferError:
                        producer.poll(0.01)
            if producer.flush(60):
                raise CliError("records were left without an answer")
            seconds = time.monotonic() - started_s
            rate.samples.append(THROUGHPUT_RECORDS / seconds)
            volume.samples.append(THROUGHPUT_RECORDS * RECORD_BYTES / seconds / MEBIBYTE)
            client.samples.append(100 * (time.process_time() - before_client) / seconds)
            broker.samples.append(100 * (cpu_s(node.process.pid) - before_broker) / seconds)
    yield from (rate, volume, client, broker)


class SteadyWriter(threading.Thread):
    """Writes one record after the other to a topic's partition 0, acks=all, and notes when each was sent and acknowledged."""

    def __init__(self, servers: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self._stop_writing = threading.Event()
        self._topic = topic
        self._producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "linger.ms": 0, "log_level": 2})

    def run(self) -> None:
        while not self._stop_writing.is_set():
            self._producer.produce(self._topic, b"x", on_delivery=self._delivered)
            self._producer.poll(1 / WRITES_PER_S)
        self._producer.flush(FAILOVER_TIMEOUT_S)

    def finish(self) -> None:
        self._stop_writing.set()
        self.join()

    def first_after(self, moment_s: float) -> float | None:
        """When the first write that was sent after this moment was acknowledged."""
        return next((acked for sent, acked in list(self.acknowledged) if sent > moment_s), None)

    def _delivered(self, error: Any, message: Message) -> None:
        acked_s = time.monotonic()
        if error is not None:
            self.failed.append(error.str())
        else:
            self.acknowledged.append((acked_s - (message.latency() or 0.0), acked_s))


def failover(runs: int) -> Iterator[Measure]:
    """kill -9 of a leader to the next acknowledged write (acks=all, three replicas, min.insync.replicas 2) on its partition."""
    name = "kill -9 of a leader to its next acked write"
    # Two clients see each kill: librdkafka, with its own timers, and a plain one that asks for the leader all the time.
    kinds = ("not the active controller", "also the active controller")
    by_librdkafka = [Measure(f"{name}: {kind}", "s", "< 1.5 s") for kind in kinds]
    by_plain_client = [Measure("  for a client that keeps asking for the leader", "s") for _ in kinds]
    with running_cluster(3, settings={"min.insync.replicas": "2"}) as cluster:
        for run in range(2 * max(5, runs)):
            controller = cluster.controller()
            kind = run % 2
            victim = controller if kind else next(node_id for node_id in cluster.nodes if node_id != controller)
            plain_s, librdkafka_s = one_failover(cluster, f"failover-{run}", victim)
            by_plain_client[kind].samples.append(plain_s)
            by_librdkafka[kind].samples.append(librdkafka_s)
            cluster.start(victim)
            cluster.wait_ready()
            for before in range(run + 1):
                topic = f"failover-{before}"
                wait_until(lambda topic=topic: cluster.under_replicated(topic) == 0, what="all replicas to be in sync", timeout_s=FAILOVER_TIMEOUT_S)
    for kind in range(len(kinds)):
        yield from (by_librdkafka[kind], by_plain_client[kind])


def one_failover(cluster: LocalCluster, topic: str, victim: int) -> tuple[float, float]:
    """Kill a topic's leader under steady writes; the seconds to the next acknowledged one of a plain client and of librdkafka.

    Raises CliError.
    """
    followers = [node_id for node_id in cluster.nodes if node_id != victim]
    with cluster.client() as client:
        create_topic(client, topic, assignment=[[victim, *followers]])
    wait_until(lambda: write_to_leader(cluster, topic) is None, what="a write to be acknowledged", timeout_s=FAILOVER_TIMEOUT_S)
    writer = SteadyWriter(cluster.bootstrap_servers, topic)
    writer.start()
    time.sleep(WARM_UP_S)
    killed_s = cluster.kill(victim)
    wait_until(lambda: write_to_leader(cluster, topic) is None, what="a write to be acknowledged again", timeout_s=FAILOVER_TIMEOUT_S)
    plain_s = time.monotonic() - killed_s
    acked_s = wait_until(lambda: writer.first_after(killed_s), what="a write to be acknowledged again", timeout_s=FAILOVER_TIMEOUT_S)
    writer.finish()
    if writer.failed:
        raise CliError(f"a write failed for good: {writer.failed[0]}")
    return plain_s, acked_s - killed_s


def many_partitions(runs: int) -> Iterator[Measure]:
    """A topic of 1,000 partitions on three nodes: created, restarted, and one node killed."""
    name = f"{MANY_PARTITIONS:,} partitions of 3 replicas"
    measures = {
        key: Measure(f"{name}: {text}", unit)
        for key, text, unit in (
            ("create", "created, each with an acked write", "s"),
            ("memory", "memory (RSS) per node", "MiB"),
            ("stop", "clean stop of all three nodes", "s"),
            ("start", "start of three nodes to all in sync", "s"),
            ("write", "kill -9 to the next acked write", "s"),
            ("failover", "kill -9 to all led by others", "s"),
            ("rejoin", "its restart to all in sync again", "s"),
        )
    }
    for _ in range(max(1, runs // 3)):
        with LocalCluster(3) as cluster:
            cluster.start()
            cluster.wait_ready()
            one_of_many(cluster, measures)
    yield from measures.values()


def write_to_all(bootstrap_servers: str, topic: str) -> None:
    """One record to every partition, acks=all. Raises CliError unless all are acknowledged."""
    from confluent_kafka import Producer

    failed: list[str] = []
    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all", "log_level": 0})
    for partition in range(MANY_PARTITIONS):
        producer.produce(topic, b"one", partition=partition, on_delivery=lambda error, _: failed.append(str(error)) if error else None)
    if producer.flush(MANY_TIMEOUT_S) or failed:
        raise CliError(f"not every partition took a write: {failed[:1] or 'time is up'}")


def one_of_many(cluster: LocalCluster, measures: dict[str, Measure]) -> None:
    """One run of `many_partitions`."""
    topic = "many"

    def seconds(key: str, action: Callable[[], object], done: Callable[[], bool] | None = None) -> None:
        started_s = time.monotonic()
        action()
        if done is not None:
            wait_until(done, what=measures[key].what, timeout_s=MANY_TIMEOUT_S)
        measures[key].samples.append(time.monotonic() - started_s)

    def healthy() -> bool:
        leaders = cluster.leaders(topic)
        return len(leaders) == MANY_PARTITIONS and min(leaders.values()) >= 0 and cluster.under_replicated(topic) == 0

    def create() -> None:
        with cluster.client() as client:
            client.timeout_s = MANY_TIMEOUT_S
            create_topic(client, topic, partitions=MANY_PARTITIONS, replicas=3)
        write_to_all(cluster.bootstrap_servers, topic)  # In the metadata all is there at once; the logs follow.

    seconds("create", create, healthy)
    measures["memory"].samples += [memory_bytes(node.process.pid) / MEBIBYTE for node in cluster.nodes.values() if node.process is not None]
    seconds("stop", cluster.stop)
    seconds("start", cluster.start, healthy)
    controller = cluster.controller()
    counts = Counter(cluster.leaders(topic).values())
    victim = max(counts, key=lambda node_id: (node_id != controller, counts[node_id]))
    partition = next(number for number, leader in cluster.leaders(topic).items() if leader == victim)
    killed_s = cluster.kill(victim)

    def written() -> bool:
        if cluster.leaders(topic)[partition] == victim:
            return False
        write_to_leader(cluster, topic, partition=partition)
        return True

    wait_until(written, what="a write to be acknowledged again", timeout_s=MANY_TIMEOUT_S)
    measures["write"].samples.append(time.monotonic() - killed_s)
    wait_until(lambda: not {victim, -1} & set(cluster.leaders(topic).values()), what="other leaders", timeout_s=MANY_TIMEOUT_S)
    measures["failover"].samples.append(time.monotonic() - killed_s)
    seconds("rejoin", lambda: cluster.start(victim), healthy)


BENCHMARKS: Final[dict[str, Callable[[int], Iterator[Measure]]]] = {
    "start": start_one,
    "up": up_three,
    "produce-cpu": produce_cpu,
    "throughput": throughput,
    "failover": failover,
    "partitions": many_partitions,
}


def main() -> int:
    names = "\n".join(f"  {name:12} {function.__doc__}" for name, function in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, epilog=f"benchmarks:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help="only this benchmark; repeatable")
    parser.add_argument("--runs", type=int, default=5, help="samples of each (default 5; failover takes at least 5 kills of each kind)")
    parser.add_argument("--json", action="store_true", help="print all samples as JSON")
    options = parser.parse_args()
    measures: list[Measure] = []
    failed = False
    for name in options.only or BENCHMARKS:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            measures += BENCHMARKS[name](max(1, options.runs))
        except (CliError, KafkaException) as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            failed = True
    if options.json:
        print(json.dumps([{"what": item.what.strip(), "unit": item.unit, "target": item.target, "samples": item.samples} for item in measures]))
    else:
        print_table(
            ["what", "median", "min", "max", "samples", "target"], [item.row() for item in measures], right=["median", "min", "max", "samples"]
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
