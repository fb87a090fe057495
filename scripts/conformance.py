"""Clients in other languages against three real nodes: what of Kafka's everyday work each can do, as a table."""

from __future__ import annotations

import argparse
import contextlib
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from conformance_clients import NOT_OFFERED, Client, Command, Java, Skipped, all_clients
from conformance_java import JAVA_TOOLS
from local_cluster import LocalCluster, running_cluster, wait_until

TABLE: Final = Path(__file__).resolve().parent.parent / "tests" / "conformance" / "CLIENTS.md"
COMMAND_TIMEOUT_S: Final = 90.0
RECORDS: Final = 200
PARTITIONS: Final = 4
FAILOVER_RECORDS: Final = 1500
FAILOVER_RECORDS_PER_S: Final = 250
KILL_AFTER_S: Final = 3.0
WORKS: Final = "works"
FAILS: Final = "FAILS"
MISSING: Final = "not offered"
SETTINGS: Final = {"min.insync.replicas": "2", "offsets.topic.num.partitions": "5", "broker.session.timeout.ms": "6000"}


class NotOffered(Exception):
    """The client has no way to do this."""


class Failure(Exception):
    """The client did it, and the outcome is wrong; says what."""


class Bench:
    """One client before one cluster. The features are its methods that FEATURES names."""

    def __init__(self, client: Client, cluster: LocalCluster) -> None:
        self.client = client
        self.cluster = cluster
        client.bootstrap_servers = cluster.bootstrap_servers
        self._admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})

    # Features.

    def produce(self) -> None:
        self._produce()

    def idempotent(self) -> None:
        self._produce(idempotent=True)

    def compressed(self, codec: str) -> None:
        self._produce(compression=codec)

    def consume(self) -> None:
        topic = self._topic()
        sent = self._send(topic, range(RECORDS))
        out = self._run(self.client.consume(topic, RECORDS))
        self._expect(sorted(line.rpartition("\t")[0] for line in self.client.records(out)), sorted(line.rpartition("\t")[0] for line in sent))

    def headers(self) -> None:
        """Its own come back to it, and others' reach it."""
        topic = self._topic()
        lines = tuple(f"k\tv{number}\theader" for number in range(RECORDS))
        self._run(self.client.produce(topic, lines))
        self._expect({(name, value) for _, _, _, found in self._read(topic, RECORDS) for name, value in found}, {("n", b"header")})
        out = self._run(self.client.consume(topic, RECORDS))
        self._expect({line.rpartition("\t")[2] for line in self.client.records(out)}, {"header"})

    def timestamp(self) -> None:
        topic = self._topic(1)
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap_servers})
        base_ms = int(time.time() * 1000) - 100_000
        for number in range(10):
            producer.produce(topic, value=b"v", timestamp=base_ms + 1000 * number)
        producer.flush()
        self._expect(self.client.offset_of(self._run(self.client.offset(topic, base_ms + 6500))), 7)

    def group(self) -> None:
        """Two members share the partitions; when one leaves, the other has all; what they read is everything, once."""
        topic, group = self._topic(), f"g-{uuid.uuid4().hex[:6]}"
        everything = set(range(PARTITIONS))
        with self._member(topic, group) as first:
            first.wait(lambda: first.assigned == everything, "all partitions for the only member")
            with self._member(topic, group) as second:
                both = [first, second]
                first.wait(lambda: all(m.assigned for m in both) and first.assigned | second.assigned == everything, "a share for each of two")
                if first.assigned & second.assigned:
                    raise Failure(f"both have {first.assigned & second.assigned}")
                sent = values(self._send(topic, range(RECORDS)))
                first.wait(lambda: set(first.records) | set(second.records) >= sent, "all records at two members")
                if not first.records or not second.records:
                    raise Failure("one member read nothing")
            first.wait(lambda: first.assigned == everything, "all partitions again after the other member's end")
            more = values(self._send(topic, range(RECORDS, 2 * RECORDS)))
            first.wait(lambda: set(first.records) >= more, "all later records at the remaining member")

    def resume(self) -> None:
        """A member that comes after another's end goes on where that one committed."""
        topic, group = self._topic(), f"g-{uuid.uuid4().hex[:6]}"
        with self._member(topic, group) as first:
            sent = values(self._send(topic, range(RECORDS)))
            first.wait(lambda: set(first.records) >= sent, "all records")
            time.sleep(0.5)  # For those that commit at intervals.
        later = values(self._send(topic, range(RECORDS, RECORDS + 20)))
        with self._member(topic, group) as second:
            second.wait(lambda: set(second.records) >= later, "the records after the commit")
            if set(second.records) != later:
                raise Failure(f"{len(set(second.records) - later)} records were read again")

    def failover(self) -> None:
        """kill -9 of the leader while it produces: nothing acknowledged is lost."""
        topic = self._topic(1)
        lines = tuple(f"k\t{number}\th" for number in range(FAILOVER_RECORDS))
        command = self._offered(self.client.failover(topic, lines))
        leader = self.cluster.leaders(topic)[0]
        timer = threading.Timer(KILL_AFTER_S, self.cluster.kill, [leader])
        timer.start()
        try:
            done = run(command, lines_per_s=FAILOVER_RECORDS_PER_S)
        finally:
            timer.join()
            self.cluster.start(leader)
            self.cluster.wait_ready()
            wait_until(lambda: not self.cluster.under_replicated(topic), what="the killed node to catch up", timeout_s=60)
        acknowledged = self.client.acknowledged(done.stdout, [line.split("\t")[1] for line in lines], succeeded=done.returncode == 0)
        if done.returncode and not acknowledged:
            raise Failure(last_line(done))
        if len(acknowledged) < FAILOVER_RECORDS:
            raise Failure(f"only {len(acknowledged)} of {FAILOVER_RECORDS} were acknowledged: {last_line(done)}")
        found = {value for _, _, value, _ in self._read(topic, len(acknowledged))}
        if lost := acknowledged - found:
            raise Failure(f"{len(lost)} acknowledged records are lost")

    def admin(self) -> None:
        topic = f"admin-{uuid.uuid4().hex[:8]}"
        for command, expected in self._offered(self.client.admin(topic)):
            out = self._run(command)
            if not re.search(expected, out):
                raise Failure(f"{command.argv[-8:]} printed {out!r:.200}")
        if topic in self._admin.list_topics(timeout=10).topics:
            raise Failure("the deleted topic is still there")

    # What they need.

    def _produce(self, **options: object) -> None:
        topic = self._topic()
        lines = tuple(f"k{number % 7}\tv{number}\theader" for number in range(RECORDS))
        self._run(self.client.produce(topic, lines, **options))  # type: ignore[arg-type]
        found = [(key, value) for key, _, value, _ in self._read(topic, RECORDS)]
        self._expect(sorted(found), sorted((f"k{number % 7}", f"v{number}") for number in range(RECORDS)))
        per_key = {key: [value for found_key, value in found if found_key == key] for key in {key for key, _ in found}}
        for key, ordered in per_key.items():
            if ordered != sorted(ordered, key=lambda value: int(value[1:])):
                raise Failure(f"the records of {key} changed their order")

    def _topic(self, partitions: int = PARTITIONS, **config: str) -> str:
        name = f"t-{uuid.uuid4().hex[:8]}"
        self._admin.create_topics([NewTopic(name, partitions, 3, config=config)])[name].result(COMMAND_TIMEOUT_S)
        wait_until(lambda: len([x for x in self.cluster.leaders(name).values() if x > 0]) == partitions, what=f"leaders of {name}", timeout_s=20)
        return name

    def _send(self, topic: str, numbers: range) -> list[str]:
        """By a client that is known to work; key TAB value TAB header of each."""
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap_servers})
        lines = [f"k{number % 17}\tv{number}\theader" for number in numbers]
        for line in lines:
            key, value, header = line.split("\t")
            producer.produce(topic, key=key, value=value, headers=[("n", header.encode())])
        if producer.flush(COMMAND_TIMEOUT_S):
            raise Failure("the reference producer could not send")
        return lines

    def _read(self, topic: str, count: int) -> list[tuple[str, int, str, list[tuple[str, bytes]]]]:
        """By a client that is known to work: key, partition, value and headers of all records, at least `count`."""
        consumer = Consumer({"bootstrap.servers": self.cluster.bootstrap_servers, "group.id": "reader", "enable.auto.commit": False})
        partitions = [TopicPartition(topic, number, 0) for number in self._admin.list_topics(topic, timeout=10).topics[topic].partitions]
        left = sum(consumer.get_watermark_offsets(each, timeout=10)[1] for each in partitions)
        consumer.assign(partitions)
        found = []
        deadline_s = time.monotonic() + COMMAND_TIMEOUT_S
        while len(found) < left and time.monotonic() < deadline_s:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                found.append(((message.key() or b"").decode(), message.partition(), message.value().decode(), message.headers() or []))
        consumer.close()
        if len(found) < count:
            raise Failure(f"{len(found)} of {count} records are there")
        return found

    def _offered(self, offered: object) -> object:
        if offered is None:
            raise NotOffered
        return offered

    def _run(self, command: Command | None) -> str:
        done = run(self._offered(command))
        if done.returncode == NOT_OFFERED:
            raise NotOffered
        if done.returncode:
            raise Failure(f"status {done.returncode}: {last_line(done)}")
        return done.stdout

    def _expect(self, found: object, wanted: object) -> None:
        if found != wanted:
            raise Failure(f"{found!r:.120} instead of {wanted!r:.120}")

    @contextlib.contextmanager
    def _member(self, topic: str, group: str) -> Iterator[Member]:
        member = Member(self.client, self._offered(self.client.group(topic, group)))
        try:
            yield member
        finally:
            member.close()


class Member:
    """A running member of a group, and what it has said so far."""

    def __init__(self, client: Client, command: Command) -> None:
        self.assigned: set[int] = set()
        self.records: list[str] = []
        self._client = client
        self._said: list[str] = []
        self._process = subprocess.Popen(command.argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + COMMAND_TIMEOUT_S
        while not condition():
            if self._process.poll() is not None:
                raise Failure(f"a member ended while waiting for {what}: {self._said[-1:]}")
            if time.monotonic() > deadline_s:
                raise Failure(f"waited in vain for {what}; it has {sorted(self.assigned)} and {len(self.records)} records; {self._said[-2:]}")
            time.sleep(0.02)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.rstrip("\n")
            assigned = self._client.assigned(text)
            record = self._client.record(text)
            if assigned is not None:
                self.assigned = assigned
            elif record is not None:
                self.records.append(record)
            else:
                self._said.append(text)


FEATURES: Final[dict[str, Callable[[Bench], None]]] = {
    "produce, acks=all": Bench.produce,
    "produce, idempotent": Bench.idempotent,
    **{f"produce, {codec}": (lambda bench, codec=codec: bench.compressed(codec)) for codec in ("gzip", "snappy", "lz4", "zstd")},
    "consume from the beginning": Bench.consume,
    "headers": Bench.headers,
    "offset of a timestamp": Bench.timestamp,
    "group of two, rebalance": Bench.group,
    "commit and resume": Bench.resume,
    "topics: create, describe, delete": Bench.admin,
    "kill -9 of the leader": Bench.failover,
}


def values(lines: list[str]) -> set[str]:
    return {line.split("\t")[1] for line in lines}


def run(command: Command, *, lines_per_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end, feeding its lines at a rate. A command that does not end in time is a Failure."""
    process = subprocess.Popen(command.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)

    def feed() -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            for line in command.lines:
                process.stdin.write(line + "\n")
                if lines_per_s is not None:
                    time.sleep(1 / lines_per_s)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    outputs = ["", ""]

    def gather(index: int, stream: object) -> None:
        outputs[index] = stream.read()  # type: ignore[attr-defined]

    threads = [threading.Thread(target=feed), *(threading.Thread(target=gather, args=(i, s)) for i, s in enumerate((process.stdout, process.stderr)))]
    for thread in threads:
        thread.start()
    try:
        process.wait(COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Failure(f"it did not end within {COMMAND_TIMEOUT_S:.0f} s") from None
    finally:
        for thread in threads:
            thread.join()
    return subprocess.CompletedProcess(command.argv, process.returncode, *outputs)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Why a command failed: the innermost error that it names, else the first line of what it said."""
    said = done.stderr + "\n" + done.stdout
    errors = re.findall(r"(\w*(?:Exception|Error): (?!\S+(?:Exception|Error):).+)", said)
    lines = [line.strip() for line in said.splitlines() if line.strip() and "SLF4J" not in line]
    return (errors or lines or ["nothing was said"])[0][:300]


def try_feature(feature: Callable[[], None]) -> tuple[str, str]:
    """(the table's cell, why it failed)."""
    try:
        feature()
    except NotOffered:
        return MISSING, ""
    except Failure as failure:
        return FAILS, str(failure)
    except Exception as error:  # Ours or the client's: the table must say it, and the rest go on.
        return FAILS, f"{type(error).__name__}: {error}"
    return WORKS, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the clients too that Maven, Go and npm fetch")
    parser.add_argument("--write", action="store_true", help=f"put the table into {TABLE.name}")
    parser.add_argument("clients", nargs="*", help="only these")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # So that the nodes are stopped, too.
    known = {client.name: client for client in all_clients()}
    if unknown := set(asked.clients) - known.keys():
        parser.error(f"no such client: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [client for client in known.values() if (client.name in asked.clients if asked.clients else asked.all or not client.is_fetched)]
    cells: dict[str, dict[str, str]] = {}
    failures: list[str] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="raftlog-clients-") as directory:
        ready = []
        for client in chosen:
            print(f"{client.name}: preparing", flush=True)
            try:
                client.prepare(Path(directory))
                ready.append(client)
            except Skipped as reason:
                skipped.append(f"{client.name}: {reason}")
                print(f"SKIPPED {skipped[-1]}", flush=True)
        with running_cluster(3, settings=SETTINGS) as cluster:
            for client in ready:
                bench = Bench(client, cluster)
                rows = cells.setdefault(f"{client.name} {client.version}", {})
                for name, feature in FEATURES.items():
                    rows[name] = report(client.name, name, partial(feature, bench), failures)
                if isinstance(client, Java):
                    tools = cells.setdefault("", {})
                    for name, tool in JAVA_TOOLS.items():
                        tools[name] = report("java", name, partial(tool, bench), failures)
    table = as_table(cells, failures, skipped)
    print(table)
    if asked.write:
        TABLE.write_text(table, encoding="utf-8")
    works = sum(cell == WORKS for rows in cells.values() for cell in rows.values())
    print(f"conformance: {works} passed, {len(failures)} failed, {len(skipped)} skipped")
    return 1 if failures or not works else 0


def report(client: str, name: str, feature: Callable[[], None], failures: list[str]) -> str:
    started_s = time.monotonic()
    cell, why = try_feature(feature)
    if why:
        failures.append(f"{client}, {name}: {why}")
    print(f"{client:10} {name:34} {cell:12} {time.monotonic() - started_s:5.1f} s  {why}", flush=True)
    return cell


def as_table(cells: dict[str, dict[str, str]], failures: list[str], skipped: list[str]) -> str:
    tools = cells.pop("", {})
    lines = ["# Clients of other languages", ""]
    lines += [
        f"`scripts/conformance --all --write` made this, with three nodes on one machine ({platform.system()}, Python {platform.python_version()}).",
        "",
    ]
    lines += ["| feature | " + " | ".join(cells) + " |", "|---|" + "---|" * len(cells)]
    lines += [f"| {name} | " + " | ".join(rows[name] for rows in cells.values()) + " |" for name in FEATURES]
    if tools:
        lines += ["", "| Kafka's own tool | |", "|---|---|", *(f"| {name} | {cell} |" for name, cell in tools.items())]
    if failures:
        lines += ["", "What fails:", "", *(f"- {failure}" for failure in failures)]
    if skipped:
        lines += ["", "Skipped:", "", *(f"- {reason}" for reason in skipped)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
