"""Stream the flights of New York 2013 through three nodes, kill two of them on the way, and account for every event.

Three real node processes; an idempotent producer with acks=all; kill -9 of the node that leads most partitions and,
later, of the active controller; both restarted. Then a group of two members reads everything, and a stream consumer
writes the mean delay per carrier and hour to a second topic. Exit status 0 only when every event was acknowledged and
none was lost, duplicated, altered or out of order for its key.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import statistics
import sys
import threading
import time
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import delays
import flights
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from local_cluster import LocalCluster, wait_until
from raftlog_cli.errors import CliError
from raftlog_cli.output import print_table

QUIET: Final = logging.getLogger("librdkafka")  # A lost connection is what this is about: not worth a log line each.
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False
TOPIC: Final = "flights"
PARTITIONS: Final = 6
GROUP: Final = "flight-readers"
MEMBERS: Final = 2
STREAM_S: Final = 40.0  # The stream is paced so that both kills, both restarts and the catching up lie within it.
STREAM_S_MIN: Final = 15.0
PACE_EVERY: Final = 50  # Events between two looks at the clock.
RECOVERY_TIMEOUT_S: Final = 60.0
FLUSH_TIMEOUT_S: Final = 120.0
READ_SILENCE_S_MAX: Final = 60.0
STEADY_S: Final = 0.25  # A partition that got an event so soon after a kill counts for the time without acknowledged writes.
KILL_LEADER_AT, RESTART_LEADER_AT, KILL_CONTROLLER_AT, RESTART_CONTROLLER_AT = 0.20, 0.35, 0.55, 0.70  # parts of the stream


@dataclass(slots=True)
class Kill:
    """One kill -9, and per partition the node led when its next write was sent and acknowledged (monotonic s)."""

    why: str
    node_id: int
    partitions: frozenset[int]
    killed_s: float
    sent_before: int
    next_write: dict[int, tuple[float, float]] = field(default_factory=dict)

    def gaps_ms(self) -> list[float]:
        """Time without an acknowledged write, per partition that was written to all the time."""
        writes = [(sent, acked) for sent, acked in self.next_write.values() if sent - self.killed_s < STEADY_S]
        return [1000 * (acked - self.killed_s) for _, acked in writes]


class Stream:
    """The producing side: paces the events, and notes what was acknowledged and when."""

    def __init__(self, servers: str, count: int, *, seconds: float) -> None:
        self.count = count
        self.rate = count / seconds
        self.sent = 0
        self.failed: list[str] = []
        self.acknowledged = bytearray(count)
        self.checksums = array("L", bytes(count * array("L").itemsize))
        self.kills: list[Kill] = []
        self.hold_at: int | None = None  # Not beyond this event until the director says so.
        self.started_s = 0.0
        self.finished_s = 0.0
        settings = {"bootstrap.servers": servers, "enable.idempotence": True, "acks": "all", "linger.ms": 5, "compression.type": "lz4"}
        self._producer = Producer(settings, logger=QUIET)

    def run(self) -> None:
        """Send everything and wait until all of it is acknowledged or has failed."""
        self.started_s = time.monotonic()
        for event in flights.events(self.count):
            if event.number % PACE_EVERY == 0:
                self._pace()
            self.checksums[event.number] = zlib.crc32(event.value)
            while True:
                try:
                    self._producer.produce(TOPIC, event.value, event.key, on_delivery=self._delivered(event.number))
                    break
                except BufferError:
                    self._producer.poll(0.05)
            self.sent += 1
        left = self._producer.flush(FLUSH_TIMEOUT_S)
        self.finished_s = time.monotonic()
        if left:
            self.failed.append(f"{left} events still without an answer after {FLUSH_TIMEOUT_S:.0f} s")

    def _pace(self) -> None:
        self._producer.poll(0)
        deadline_s = time.monotonic() + RECOVERY_TIMEOUT_S
        while self.hold_at is not None and self.sent >= self.hold_at and time.monotonic() < deadline_s:
            self._producer.poll(0.02)
        while (left_s := self.started_s + self.sent / self.rate - time.monotonic()) > 0:
            self._producer.poll(min(left_s, 0.05))

    def _delivered(self, number: int) -> Callable[[Any, Message], None]:
        def note(error: Any, message: Message) -> None:
            if error is not None:
                self.failed.append(error.str())
                return
            self.acknowledged[number] = 1
            if self.kills and message.partition() in self.kills[-1].partitions:
                self._note_first(self.kills[-1], message)

        return note

    def _note_first(self, kill: Kill, message: Message) -> None:
        """The first write sent after a kill that is acknowledged: the dead leader can't have been the one to do it."""
        if message.partition() in kill.next_write:
            return
        acked_s = time.monotonic()
        sent_s = acked_s - message.latency()
        if sent_s > kill.killed_s:
            kill.next_write[message.partition()] = (sent_s, acked_s)


def direct(cluster: LocalCluster, stream: Stream, problems: list[str]) -> None:
    """Kill and restart nodes at their parts of the stream; each kill only while all replicas are in sync, so that it can be survived."""
    try:
        for why, kill_at, restart_at in (
            ("leads most partitions", KILL_LEADER_AT, RESTART_LEADER_AT),
            ("active controller", KILL_CONTROLLER_AT, RESTART_CONTROLLER_AT),
        ):
            stream.hold_at = int(stream.count * (kill_at + 0.1))
            reach(stream, kill_at)
            wait_until(lambda: cluster.under_replicated(TOPIC) == 0, what="all replicas to be in sync", timeout_s=RECOVERY_TIMEOUT_S)
            leaders = cluster.leaders(TOPIC)
            controller = cluster.controller()
            victim = controller if why == "active controller" else leads_most(leaders, other_than=controller)
            led = frozenset(partition for partition, leader in leaders.items() if leader == victim)
            also = ", active controller" if victim == controller and why != "active controller" else ""
            kill = Kill(why + also, victim, led, time.monotonic(), stream.sent)
            stream.kills.append(kill)
            cluster.kill(victim)
            say(f"kill -9 node {victim} ({kill.why}; leader of {len(led)} of {len(leaders)} partitions) after {kill.sent_before:,} events")
            stream.hold_at = None
            reach(stream, restart_at)
            cluster.start(victim)
            say(f"node {victim} started again after {stream.sent:,} events")
        stream.hold_at = None
    except CliError as error:
        problems.append(str(error))
        stream.hold_at = None


def leads_most(leaders: dict[int, int], *, other_than: int) -> int:
    """The node that leads most partitions; of several, one that is not `other_than`, so that the two kills differ."""
    counts = Counter(leaders.values())
    return max(counts, key=lambda node_id: (counts[node_id], node_id != other_than))


def reach(stream: Stream, part: float) -> None:
    """Wait until this part of the stream is sent. Raises CliError when it ends before."""
    while stream.sent < stream.count * part:
        if stream.finished_s:
            raise CliError("the stream ended early")
        time.sleep(0.005)


class Member(threading.Thread):
    """One member of the reading group: notes partition, offset, event and checksum of all it gets.

    It reads nothing before every member has its share: a single fast one would have read all before the other has joined.
    """

    def __init__(self, name: str, servers: str, group: ReadingGroup) -> None:
        super().__init__(name=name, daemon=True)
        self.read: list[tuple[int, int, int, int]] = []
        self.assigned: set[int] = set()
        self.problem: str | None = None
        self._group = group
        settings = {"bootstrap.servers": servers, "group.id": GROUP, "client.id": name, "auto.offset.reset": "earliest"}
        self._consumer = Consumer(settings, logger=QUIET)

    def run(self) -> None:
        self._consumer.subscribe([TOPIC], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)
        heard_s, before, paused = time.monotonic(), 0, True
        try:
            while not self._group.done:
                if paused and self._group.complete:
                    self._consumer.resume(self._consumer.assignment())
                    paused = False
                for message in self._consumer.consume(2000, 0.1):
                    if message.error() is not None:
                        raise KafkaException(message.error())
                    value = message.value()
                    self.read.append((message.partition(), message.offset(), json.loads(value)["event"], zlib.crc32(value)))
                if len(self.read) > before or self._group.has_read_all(self):
                    heard_s, before = time.monotonic(), len(self.read)
                elif time.monotonic() - heard_s > READ_SILENCE_S_MAX:
                    raise CliError(f"{self.name} got nothing for {READ_SILENCE_S_MAX:.0f} s")
        except (KafkaException, CliError) as error:
            self.problem = str(error)
        finally:
            self._consumer.close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.assigned = {partition.partition for partition in partitions}
        consumer.assign(partitions)
        if not self._group.complete:
            consumer.pause(partitions)

    def _on_revoke(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self.assigned = set()


class ReadingGroup:
    """The members together: whether each has a share, and whether everything is read."""

    def __init__(self, servers: str, *, members: int) -> None:
        probe = Consumer({"bootstrap.servers": servers, "group.id": "unused"}, logger=QUIET)
        offsets = [probe.get_watermark_offsets(TopicPartition(TOPIC, number), timeout=30) for number in range(PARTITIONS)]
        probe.close()
        self.ends = [end for _, end in offsets]
        self.members = [Member(f"member-{i + 1}", servers, self) for i in range(members)]
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether every member has had a share at the same moment."""
        self._complete = self._complete or all(member.assigned for member in self.members)
        return self._complete

    @property
    def done(self) -> bool:
        return sum(len(member.read) for member in self.members) >= sum(self.ends) or any(member.problem for member in self.members)

    def has_read_all(self, member: Member) -> bool:
        """Whether a member has read its whole share, and only waits for the others."""
        return self.complete and len(member.read) >= sum(self.ends[number] for number in member.assigned)

    def read_all(self) -> list[Member]:
        """Read the whole topic. Returns the members with what they read."""
        for member in self.members:
            member.start()
        for member in self.members:
            member.join()
        return self.members


@dataclass(slots=True)
class Account:
    """What became of the events."""

    sent: int
    acknowledged: int
    read: int
    lost: int = 0
    duplicated: int = 0
    altered: int = 0
    out_of_order: int = 0

    @property
    def clean(self) -> bool:
        return self.acknowledged == self.sent and not (self.lost or self.duplicated or self.altered or self.out_of_order)


def judge(stream: Stream, members: list[Member]) -> Account:
    """Compare what was acknowledged with what was read."""
    read = sorted(record for member in members for record in member.read)
    account = Account(stream.sent, sum(stream.acknowledged), len(read))
    times = Counter(event for _, _, event, _ in read)
    account.lost = sum(1 for event in range(stream.count) if stream.acknowledged[event] and event not in times)
    account.duplicated = sum(count - 1 for count in times.values())
    account.altered = sum(stream.checksums[event] != checksum for _, _, event, checksum in read)
    keys = [event.key for event in flights.events(stream.count)]
    last: dict[bytes, int] = defaultdict(lambda: -1)
    for _, _, event, _ in read:  # By partition and offset: a key has one partition.
        key = keys[event]
        account.out_of_order += event < last[key]
        last[key] = max(last[key], event)
    return account


def show(account: Account, stream: Stream, members: list[Member]) -> None:
    print()
    columns = ["sent", "acknowledged", "read", "lost", "duplicated", "altered", "out of order per key"]
    row = [account.sent, account.acknowledged, account.read, account.lost, account.duplicated, account.altered, account.out_of_order]
    print_table(columns, [[f"{value:,}" for value in row]], title="Every event accounted for", right=columns)
    print()
    rows = []
    for kill in stream.kills:
        gaps = kill.gaps_ms()
        shown = [f"{statistics.median(gaps):,.0f}", f"{max(gaps):,.0f}"] if gaps else ["-", "-"]
        rows.append([kill.node_id, kill.why, len(kill.partitions), f"{kill.sent_before:,}", *shown])
    columns = ["node", "killed because", "partitions led", "events before", "median ms", "longest ms"]
    print_table(columns, rows, title="Time without an acknowledged write on the partitions of the killed node", right=[columns[0], *columns[2:]])
    print()
    shares = ", ".join(f"{member.name} read {len(member.read):,}" for member in members)
    seconds = stream.finished_s - stream.started_s
    print(f"streamed in {seconds:.1f} s ({account.sent / seconds:,.0f} events/s, paced); {shares}")


def show_delays(servers: str, count: int) -> bool:
    """Run the transformation and show its topic. Returns whether it accounts for every flight."""
    say(f"transforming: mean departure delay per carrier and hour, from {TOPIC} to {delays.TARGET}")
    read = delays.transform(servers, source=TOPIC)
    values = list(delays.latest_values(servers).values())
    carriers = sorted({value["carrier"] for value in values})
    hours = sorted({value["hour"] for value in values})
    means = {(value["carrier"], value["hour"]): value["mean_delay_min"] for value in values}
    rows = [[carrier, *(cell(means.get((carrier, hour))) for hour in hours)] for carrier in carriers]
    columns = ["", *(str(hour) for hour in hours)]
    print()
    print_table(columns, rows, title=f"Topic {delays.TARGET}: mean departure delay in minutes, by carrier and scheduled hour", right=columns[1:])
    counted = sum(value["flights"] + value["cancelled"] for value in values)
    print(f"\n{len(values)} means over {counted:,} flights")
    return read == counted == count


def cell(mean: float | None) -> str:
    return "" if mean is None else str(round(mean))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def demo(cluster: LocalCluster, count: int) -> bool:
    """The whole of it. Returns whether all went as promised. Raises CliError, KafkaException."""
    began_s = time.monotonic()
    cluster.start()
    cluster.wait_ready()
    say(f"three nodes ready in {time.monotonic() - began_s:.1f} s: {cluster.bootstrap_servers}")
    topic = NewTopic(TOPIC, num_partitions=PARTITIONS, replication_factor=3, config={"min.insync.replicas": "2"})
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers}, logger=QUIET)
    admin.create_topics([topic])[TOPIC].result()
    stream = Stream(cluster.bootstrap_servers, count, seconds=max(STREAM_S_MIN, STREAM_S * count / flights.FLIGHTS))
    say(f"streaming {count:,} flights, keyed by carrier, into {TOPIC}: {PARTITIONS} partitions, 3 replicas, min.insync.replicas 2, acks=all")
    problems: list[str] = []
    director = threading.Thread(target=direct, args=(cluster, stream, problems), daemon=True)
    director.start()
    stream.run()
    director.join()
    wait_until(lambda: cluster.under_replicated(TOPIC) == 0, what="all replicas to be in sync again", timeout_s=RECOVERY_TIMEOUT_S)
    say(f"all sent, all replicas in sync; reading with group {GROUP} of {MEMBERS} members")
    members = ReadingGroup(cluster.bootstrap_servers, members=MEMBERS).read_all()
    account = judge(stream, members)
    show(account, stream, members)
    problems += [f"{len(stream.failed)} deliveries failed, the first: {stream.failed[0]}"] if stream.failed else []
    problems += [f"{member.name}: {member.problem}" for member in members if member.problem]
    problems += [f"{member.name} read nothing" for member in members if not member.read]
    if not show_delays(cluster.bootstrap_servers, count):
        problems.append("the transformation does not account for every flight")
    print()
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    clean = account.clean and not problems and len(stream.kills) == 2
    say(f"{'done' if clean else 'FAILED'} in {time.monotonic() - began_s:.0f} s")
    return clean


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.partition("\n")[0], epilog=__doc__.partition("\n\n")[2])
    parser.add_argument("--flights", type=int, default=flights.FLIGHTS, metavar="N", help="only the first N, for a quick look")
    parser.add_argument("--dir", type=Path, help="keep the nodes' data and logs here (must be empty)")
    options = parser.parse_args()
    count = max(1000, min(options.flights, flights.FLIGHTS))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LocalCluster(3, directory=options.dir) as cluster:
            if not demo(cluster, count):
                raise CliError("not every event is accounted for")
    except (CliError, KafkaException) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
