"""The clients of scripts/conformance: how each is fetched, and how each is asked for what the features need.

A client offers verbs; what it prints is brought into one form here: records as key TAB value TAB header, deliveries as
values, a group member's life as what it was assigned and what it read. None is a verb that a client does not have.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAMS: Final = Path(__file__).resolve().parent.parent / "tests" / "conformance" / "clients"
PREPARE_TIMEOUT_S: Final = 900
NOT_OFFERED: Final = 64  # A program's exit status for what its client has no way to do.

# Pinned, so that a table says of what it is.
KAFKA: Final = "4.1.0"
KAFKAJS: Final = "2.2.4"
GO_MODULES: Final[Mapping[str, str]] = {
    "github.com/twmb/franz-go": "v1.22.2",
    "github.com/twmb/franz-go/pkg/kadm": "v1.19.0",
    "github.com/IBM/sarama": "v1.61.1",
}


class Skipped(Exception):
    """This client can't be had here; says why."""


@dataclass(frozen=True)
class Command:
    """What to run. `lines` are written to its standard input."""

    argv: list[str]
    lines: tuple[str, ...] = ()


class Client:
    """One client. `bootstrap_servers` is set before any verb is used."""

    name = ""
    version = ""
    is_fetched = True
    bootstrap_servers = ""

    def prepare(self, directory: Path) -> None:
        """Fetch and build what is needed in `directory`. Raises Skipped."""

    def produce(self, topic: str, lines: tuple[str, ...], *, compression: str = "none", idempotent: bool = False) -> Command | None:
        """Send key TAB value TAB header lines with acks=all."""
        raise NotImplementedError

    def acknowledged(self, out: str, sent: list[str], *, succeeded: bool) -> set[str]:
        """The values whose delivery it confirmed."""
        return set(re.findall(r"^acked (.*)$", out, re.MULTILINE))

    def failover(self, topic: str, lines: tuple[str, ...]) -> Command | None:
        """As `produce`, by a program that says what was acknowledged."""
        return self.produce(topic, lines, idempotent=True)

    def consume(self, topic: str, count: int) -> Command | None:
        """Print `count` records from the beginning."""
        raise NotImplementedError

    def records(self, out: str) -> list[str]:
        return [line for line in out.splitlines() if line.count("\t") == 2]

    def group(self, topic: str, group: str) -> Command | None:
        """A member that commits what it reads, until SIGTERM."""
        raise NotImplementedError

    def assigned(self, line: str) -> set[int] | None:
        """The partitions that it says to have now; None for another line."""
        if line.startswith("assigned"):
            return {int(number) for number in line.removeprefix("assigned").strip().split(",") if number}
        return None

    def record(self, line: str) -> str | None:
        """The value that this line says was read by the group's member."""
        return line.removeprefix("record ") if line.startswith("record ") else None

    def offset(self, topic: str, timestamp_ms: int) -> Command | None:
        """Print the offset of a timestamp in partition 0."""
        raise NotImplementedError

    def offset_of(self, out: str) -> int:
        return int(out.split()[-1])

    def admin(self, topic: str) -> list[tuple[Command, str]] | None:
        """Commands that create, describe and delete a topic of 3 x 3, each with what its output must match."""
        raise NotImplementedError


class Kcat(Client):
    """librdkafka from the command line."""

    name = "kcat"
    is_fetched = False

    def prepare(self, directory: Path) -> None:
        if shutil.which("kcat") is None:
            raise Skipped("kcat is not installed")
        shown = subprocess.run(["kcat", "-V"], capture_output=True, text=True, check=False).stdout
        self.version = " / librdkafka ".join(re.findall(r"(?:Version |librdkafka )([\d.]+)", shown)[:2])

    def _kcat(self, *arguments: str) -> list[str]:
        return ["kcat", "-b", self.bootstrap_servers, *arguments]

    def produce(self, topic: str, lines: tuple[str, ...], *, compression: str = "none", idempotent: bool = False) -> Command | None:
        options = ["-X", "acks=all", "-X", f"enable.idempotence={str(idempotent).lower()}", "-z", compression]
        # kcat takes headers for all its records at once, so the header of each is the first's.
        return Command(self._kcat("-P", "-t", topic, "-K", "\t", "-H", "n=header", *options), tuple(line.rpartition("\t")[0] for line in lines))

    def acknowledged(self, out: str, sent: list[str], *, succeeded: bool) -> set[str]:
        # It ends with an error when any delivery failed, and does not say which.
        return set(sent) if succeeded else set()

    def consume(self, topic: str, count: int) -> Command | None:
        return Command(self._kcat("-C", "-t", topic, "-o", "beginning", "-c", str(count), "-q", "-f", "%k\t%s\t%h\n"))

    def records(self, out: str) -> list[str]:
        return [line.replace("\tn=", "\t") for line in super().records(out)]

    def group(self, topic: str, group: str) -> Command | None:
        options = ["-X", "auto.offset.reset=earliest", "-X", "auto.commit.interval.ms=100"]
        return Command(self._kcat("-G", group, "-u", *options, "-f", "record %s\n", topic))

    def assigned(self, line: str) -> set[int] | None:
        found = re.search(r"rebalanced .*: (assigned|revoked): (.*)", line)
        if found is None:
            return None
        return {int(number) for number in re.findall(r"\[(\d+)\]", found[2])} if found[1] == "assigned" else set()

    def offset(self, topic: str, timestamp_ms: int) -> Command | None:
        return Command(self._kcat("-Q", "-t", f"{topic}:0:{timestamp_ms}"))

    def admin(self, topic: str) -> list[tuple[Command, str]] | None:
        return None


class Program(Client):
    """A client that a program of ours drives, with the verbs as its arguments."""

    argv: list[str]

    def _ask(self, verb: str, topic: str, *more: str, lines: tuple[str, ...] = ()) -> Command:
        return Command([*self.argv, self.bootstrap_servers, verb, topic, *more], lines)

    def produce(self, topic: str, lines: tuple[str, ...], *, compression: str = "none", idempotent: bool = False) -> Command | None:
        return self._ask("produce", topic, compression, str(idempotent).lower(), lines=lines)

    def consume(self, topic: str, count: int) -> Command | None:
        return self._ask("consume", topic, str(count))

    def group(self, topic: str, group: str) -> Command | None:
        return self._ask("group", topic, group)

    def offset(self, topic: str, timestamp_ms: int) -> Command | None:
        return self._ask("offset", topic, str(timestamp_ms))

    def admin(self, topic: str) -> list[tuple[Command, str]] | None:
        return [(self._ask("admin", topic), "")]


class GoProgram(Program):
    def __init__(self, name: str, source: str, module: str) -> None:
        self.name, self._source, self.version = name, source, GO_MODULES[module]

    def prepare(self, directory: Path) -> None:
        if shutil.which("go") is None:
            raise Skipped("go is not installed")
        place = directory / self._source
        place.mkdir(parents=True)
        shutil.copy(PROGRAMS / f"{self._source}.go", place / "main.go")
        fetch(["go", "mod", "init", "conformance"], place)
        wanted = [f"{module}@{version}" for module, version in GO_MODULES.items() if (self._source in module) or (self._source[:5] in module)]
        fetch(["go", "get", *wanted], place)
        fetch(["go", "mod", "tidy"], place)
        fetch(["go", "build", "-p", "1", "-o", "client", "."], place)
        self.argv = [str(place / "client")]


class KafkaJs(Program):
    name = "kafkajs"
    version = KAFKAJS

    def prepare(self, directory: Path) -> None:
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise Skipped("node and npm are not installed")
        place = directory / self.name
        place.mkdir(parents=True)
        fetch(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", f"kafkajs@{KAFKAJS}"], place)
        shutil.copy(PROGRAMS / "kafkajs.js", place / "client.js")
        self.argv = ["node", str(place / "client.js")]


class Java(Client):
    """Apache Kafka's own Java clients, by the tools that come with them."""

    name = "java"
    version = KAFKA

    def prepare(self, directory: Path) -> None:
        if shutil.which("java") is None or shutil.which("mvn") is None:
            raise Skipped("java and maven are not installed")
        place = directory / self.name
        place.mkdir(parents=True)
        wanted = "".join(
            f"<dependency><groupId>org.apache.kafka</groupId><artifactId>{artifact}</artifactId><version>{KAFKA}</version></dependency>"
            for artifact in ("kafka_2.13", "kafka-tools")
        )
        head = "<project><modelVersion>4.0.0</modelVersion><groupId>conformance</groupId><artifactId>conformance</artifactId><version>1</version>"
        (place / "pom.xml").write_text(f"{head}<dependencies>{wanted}</dependencies></project>", encoding="utf-8")
        fetch(["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"], place)
        self._classes = str(place / "lib" / "*")
        self._retrying = place / "retrying.properties"
        self._retrying.write_text("retries=2147483647\nenable.idempotence=true\n", encoding="utf-8")

    def tool(self, name: str, *arguments: str, lines: tuple[str, ...] = ()) -> Command:
        main = name if name.startswith("kafka.") else f"org.apache.kafka.tools.{name}"
        return Command(["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", self._classes, main, *arguments], lines)

    def at(self, name: str, *arguments: str, lines: tuple[str, ...] = ()) -> Command:
        """A tool that is told of the cluster."""
        return self.tool(name, "--bootstrap-server", self.bootstrap_servers, *arguments, lines=lines)

    def produce(self, topic: str, lines: tuple[str, ...], *, compression: str = "none", idempotent: bool = False) -> Command | None:
        properties = ["parse.key=true", "parse.headers=true", "key.separator=;", "headers.delimiter=|"]
        told = [part for each in properties for part in ("--property", each)]
        settings = ["--producer-property", f"enable.idempotence={str(idempotent).lower()}", "--producer-property", "acks=all"]
        settings += ["--producer-property", f"compression.type={compression}"]
        parts = (line.split("\t") for line in lines)
        return self.at("ConsoleProducer", "--topic", topic, *told, *settings, lines=tuple(f"n:{n}|{key};{value}" for key, value, n in parts))

    def failover(self, topic: str, lines: tuple[str, ...]) -> Command | None:
        # Of itself this program does not retry, which an ordinary producer does.
        count = ["--max-messages", str(len(lines)), "--throughput", "250", "--acks", "-1", "--producer.config", str(self._retrying)]
        return self.at("VerifiableProducer", "--topic", topic, *count)

    def acknowledged(self, out: str, sent: list[str], *, succeeded: bool) -> set[str]:
        events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return {event["value"] for event in events if event["name"] == "producer_send_success"}

    def consume(self, topic: str, count: int) -> Command | None:
        shown = [part for each in ("print.key=true", "print.headers=true") for part in ("--property", each)]
        return self.at("consumer.ConsoleConsumer", "--topic", topic, "--from-beginning", "--max-messages", str(count), *shown)

    def records(self, out: str) -> list[str]:
        parts = [line.split("\t") for line in super().records(out)]
        return [f"{key}\t{value}\t{header.removeprefix('n:')}" for header, key, value in parts]

    def group(self, topic: str, group: str) -> Command | None:
        return self.at("VerifiableConsumer", "--topic", topic, "--group-id", group, "--verbose", "--reset-policy", "earliest")

    def assigned(self, line: str) -> set[int] | None:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("name") == "partitions_revoked":
            return set()
        return {each["partition"] for each in event["partitions"]} if event.get("name") == "partitions_assigned" else None

    def record(self, line: str) -> str | None:
        event = json.loads(line) if line.startswith("{") else {}
        return event["value"] if event.get("name") == "record_data" else None

    def offset(self, topic: str, timestamp_ms: int) -> Command | None:
        return self.at("GetOffsetShell", "--topic-partitions", f"{topic}:0", "--time", str(timestamp_ms))

    def offset_of(self, out: str) -> int:
        return int(out.strip().rpartition(":")[2])

    def admin(self, topic: str) -> list[tuple[Command, str]] | None:
        named = ["--topic", topic]
        shape = ["--partitions", "3", "--replication-factor", "3", "--config", "retention.ms=3600000"]
        return [
            (self.at("TopicCommand", "--create", *named, *shape), "Created topic"),
            (self.at("TopicCommand", "--describe", *named), r"PartitionCount: 3\s+ReplicationFactor: 3\s+Configs: .*retention.ms=3600000"),
            (self.at("TopicCommand", "--delete", *named), ""),
        ]


def all_clients() -> list[Client]:
    go = [GoProgram("franz-go", "franz", "github.com/twmb/franz-go"), GoProgram("sarama", "sarama", "github.com/IBM/sarama")]
    return [Kcat(), Java(), *go, KafkaJs()]


def fetch(argv: list[str], directory: Path) -> None:
    """Raises Skipped with the last line of what the command said."""
    try:
        done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=PREPARE_TIMEOUT_S, check=False, env={**os.environ})
    except subprocess.TimeoutExpired:
        raise Skipped(f"`{' '.join(argv[:3])}` took longer than {PREPARE_TIMEOUT_S} s") from None
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines()
        raise Skipped(f"`{' '.join(argv[:3])}` failed: {said[-1] if said else f'status {done.returncode}'}")
