"""Clients that are programs of their own: asked by lines of JSON, as tests/conformance/clients/serve.go describes."""

from __future__ import annotations

import inspect
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

from .client import Client, Member, Membership, Place, Record, Refused
from .outcome import WAIT_S, Failure, NotOffered

SOURCES: Final = Path(__file__).resolve().parent.parent / "clients"
PREPARE_TIMEOUT_S: Final = 900
ANSWER_TIMEOUT_S: Final = 90.0

# Pinned, so that a table says of what it is.
KAFKA: Final = "4.1.0"
KAFKAJS: Final = "2.2.4"
GO_MODULES: Final[Mapping[str, Mapping[str, str]]] = {
    "franz": {"github.com/twmb/franz-go": "v1.22.2", "github.com/twmb/franz-go/pkg/kadm": "v1.19.0", "github.com/twmb/franz-go/pkg/kmsg": "v1.15.0"},
    "sarama": {"github.com/IBM/sarama": "v1.61.1"},
}


class Skipped(Exception):
    """This client can't be had here; says why."""


def plain(value: Any) -> Any:
    """As JSON has it: records as objects, places as lists."""
    if isinstance(value, Record):
        return value._asdict()
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        return value
    return [plain(each) for each in value]


def named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """An argument by its name; one of our dataclasses by the names of what it holds."""
    if is_dataclass(value):
        for each in fields(value):
            yield each.name, plain(getattr(value, each.name))
    else:
        yield name, plain(value)


def as_record(found: Mapping[str, Any]) -> Record:
    return Record(**{**found, "headers": tuple((key, value) for key, value in found["headers"] or ())})


def as_sizes(found: list[Any]) -> dict[Place, int]:
    return {Place(topic, partition): number for topic, partition, number in found}


DECODERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "read": lambda found: [as_record(each) for each in found],
    "committed": tuple,
    "group_offsets": as_sizes,
    "log_dirs": as_sizes,
    "reassignments": lambda found: [Place(*each) for each in found],
}


def asking(verb: str) -> Callable[..., Any]:
    """The method that asks the program for this verb, with the arguments of Client's method by their names."""
    declared = inspect.signature(getattr(Client, verb))

    @wraps(getattr(Client, verb))
    def ask(self: Program, *arguments: Any, **options: Any) -> Any:
        bound = declared.bind(self, *arguments, **options)
        bound.apply_defaults()
        result = self.ask(verb, {name: value for given in list(bound.arguments.items())[1:] for name, value in named(*given)})
        return DECODERS.get(verb, lambda found: found)(result)

    return ask


class Program(Client):
    """A process that answers one question after the other, started at the first."""

    is_fetched = True
    argv: list[str]

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def ask(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        """Raises Refused, NotOffered, and Failure for a program that ends or does not answer."""
        if self._process is None or self._process.poll() is not None:
            self._begin()
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb, "args": arguments}) + "\n")
        self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty:
            self.stop()
            raise Failure(f"{verb} did not end within {ANSWER_TIMEOUT_S:.0f} s") from None
        answer = json.loads(line)
        if "refused" in answer:
            raise Refused(answer["refused"])
        if "not_offered" in answer:
            raise NotOffered
        return answer["result"]

    def member(self, wanted: Membership) -> Member:
        return ProgramMember([*self.argv, self.bootstrap_servers, "member", json.dumps(dict(named("wanted", wanted)))])

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _begin(self) -> None:
        pipe = subprocess.PIPE
        process = subprocess.Popen([*self.argv, self.bootstrap_servers], stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)
        self._process, self._answers = process, queue.Queue()
        threading.Thread(target=self._listen, args=(process, self._answers), daemon=True).start()

    @staticmethod
    def _listen(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
        assert process.stdout is not None and process.stderr is not None
        complaints: list[str] = []
        reading = threading.Thread(target=lambda: complaints.extend(process.stderr or ()), daemon=True)
        reading.start()
        for line in process.stdout:
            if line.startswith("{"):
                answers.put(line)
        reading.join(1)
        answers.put(json.dumps({"refused": f"the program ended: {innermost(complaints)}"}))


for _verb in (
    "produce", "read", "seek", "pause", "offset_for", "commit", "committed",
    "create_topic", "delete_topic", "add_partitions", "list_topics", "describe_topic", "describe_config", "alter_config", "replace_config",
    "delete_records", "list_offsets", "list_groups", "describe_group", "delete_group", "group_offsets", "alter_offset", "delete_offset",
    "describe_cluster", "elect_leader", "reassign", "reassignments", "log_dirs",
):  # fmt: skip
    setattr(Program, _verb, asking(_verb))


def innermost(said: list[str]) -> str:
    """The last line that names an error, else the last."""
    lines = [line.strip() for line in said if line.strip() and "SLF4J" not in line]
    errors = [line for line in lines if "Exception" in line or "Error" in line or "error" in line]
    return (errors or lines or ["nothing was said"])[-1][:300]


class ProgramMember(Member):
    """A process that says what it holds and reads, until SIGTERM. Raises NotOffered when its client has no such members."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__()
        self._said: list[str] = []
        self._begun = threading.Event()
        self._not_offered = False
        self._closing = False
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._begun.wait(WAIT_S)
        if self._not_offered:
            self._process.wait(WAIT_S)
            raise NotOffered

    def problem(self) -> str:
        return "" if self._closing or self._process.poll() is None else innermost(self._said)

    def close(self) -> None:
        self._closing = True
        self._process.terminate()
        try:
            self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise Failure("the member does not end") from None
        finally:
            self._thread.join()

    def told(self, line: str) -> bool:
        """Take in what a line says of the member's life; whether it is such a line."""
        if not line.startswith("{"):
            return False
        event = json.loads(line)
        if "assigned" in event:
            self.holds(event["assigned"])
        elif "value" in event:
            self.values.append(event["value"])
        self._not_offered = "not_offered" in event
        return True

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if self.told(line):
                self._begun.set()
            else:
                self._said.append(line)
        self._begun.set()


class GoProgram(Program):
    def __init__(self, name: str, source: str) -> None:
        super().__init__()
        self.name, self._source = name, source
        self.version = next(iter(GO_MODULES[source].values()))
        self.hashes_like_java = source != "sarama"  # It has FNV.

    def prepare(self, directory: Path) -> None:
        if shutil.which("go") is None:
            raise Skipped("go is not installed")
        place = directory / self._source
        place.mkdir(parents=True)
        for source in (SOURCES / "serve.go", *(SOURCES / self._source).glob("*.go")):
            shutil.copy(source, place)
        run(["go", "mod", "init", "conformance"], place)
        run(["go", "get", *(f"{module}@{version}" for module, version in GO_MODULES[self._source].items())], place)
        run(["go", "mod", "tidy"], place)
        run(["go", "build", "-p", "1", "-o", "client", "."], place)
        self.argv = [str(place / "client")]


class KafkaJs(Program):
    name = "kafkajs"
    codecs = ("gzip",)  # It has the others only as plugins of other authors.
    version = KAFKAJS

    def prepare(self, directory: Path) -> None:
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise Skipped("node and npm are not installed")
        place = directory / self.name
        place.mkdir(parents=True)
        run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", f"kafkajs@{KAFKAJS}"], place)
        shutil.copy(SOURCES / "kafkajs.js", place / "client.js")
        self.argv = ["node", str(place / "client.js")]


class Java(Program):
    """Apache Kafka's own producer, consumer and admin client. Its jars bring the command-line tools and Kafka Streams, too."""

    name = "java"
    version = KAFKA

    def prepare(self, directory: Path) -> None:
        if any(shutil.which(tool) is None for tool in ("java", "javac", "mvn")):
            raise Skipped("a JDK and Maven are not installed")
        place = directory / self.name
        place.mkdir(parents=True)
        wanted = "".join(
            f"<dependency><groupId>org.apache.kafka</groupId><artifactId>{artifact}</artifactId><version>{KAFKA}</version></dependency>"
            for artifact in ("kafka_2.13", "kafka-tools", "kafka-streams")
        )
        head = "<project><modelVersion>4.0.0</modelVersion><groupId>conformance</groupId><artifactId>conformance</artifactId><version>1</version>"
        (place / "pom.xml").write_text(f"{head}<dependencies>{wanted}</dependencies></project>", encoding="utf-8")
        run(["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"], place)
        self.jars = str(place / "lib" / "*")
        run(["javac", "-cp", self.jars, "-d", "classes", *(str(source) for source in sorted(SOURCES.glob("*.java")))], place)
        self.class_path = f"{place / 'classes'}:{self.jars}"
        self.argv = [*JVM, "-cp", self.class_path, "Clients"]


JVM: Final = ("java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")


def run(argv: list[str], directory: Path) -> None:
    """Raises Skipped with the last line of what the command said."""
    try:
        done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=PREPARE_TIMEOUT_S, check=False, env={**os.environ})
    except subprocess.TimeoutExpired:
        raise Skipped(f"`{' '.join(argv[:3])}` took longer than {PREPARE_TIMEOUT_S} s") from None
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines()
        raise Skipped(f"`{' '.join(argv[:3])}` failed: {said[-1] if said else f'status {done.returncode}'}")
