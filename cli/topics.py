"""`raftlog topics`: create, list, describe, delete."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import CliError, UsageProblem
from .output import print_json, print_pairs, print_table
from .session import Session, command

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient, TopicMetadata

app = typer.Typer(help="Create, list, describe and delete topics.", no_args_is_help=True)


@command(app, "create")
def create(
    session: Session,
    names: Annotated[list[str], typer.Argument(metavar="TOPIC...")],
    partitions: Annotated[int | None, typer.Option("--partitions", "-p", min=1, help="Partitions; the broker's num.partitions by default.")] = None,
    replication_factor: Annotated[
        int | None, typer.Option("--replication-factor", "-r", min=1, help="Replicas; the broker's default.replication.factor by default.")
    ] = None,
    config: Annotated[list[str] | None, typer.Option("--config", "-c", metavar="NAME=VALUE", help="A topic config; repeatable.")] = None,
    replica_assignment: Annotated[
        str | None, typer.Option("--replica-assignment", metavar="1:2:3,2:3:1,…", help="Replicas of each partition, the preferred leader first.")
    ] = None,
    if_not_exists: Annotated[bool, typer.Option("--if-not-exists", help="An existing topic is fine.")] = False,
) -> int:
    """Create topics."""
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import NewTopic

    options: dict[str, Any] = {"config": parse_pairs(config, "--config")}
    if replica_assignment is not None:
        if partitions is not None or replication_factor is not None:
            raise UsageProblem("--replica-assignment already says the partitions and replicas: leave --partitions and --replication-factor out")
        options["replica_assignment"] = parse_assignment(replica_assignment)
        options["num_partitions"] = len(options["replica_assignment"])
    else:
        options["num_partitions"] = partitions if partitions is not None else -1
        options["replication_factor"] = replication_factor if replication_factor is not None else -1
    admin = session.admin()
    started_s = time.monotonic()
    futures = admin.create_topics(
        [NewTopic(name, **options) for name in names], request_timeout=session.timeout_s, operation_timeout=session.timeout_s
    )
    created = []
    problem: CliError | None = None
    for name, outcome in settle(futures).items():
        if outcome is None:
            created.append(name)
        elif not (if_not_exists and outcome.code() == KafkaError.TOPIC_ALREADY_EXISTS):
            problem = problem or session.problem(outcome, f"topic {name!r}", elapsed_s=time.monotonic() - started_s)
    if session.as_json:
        print_json({"created": created})
    else:
        for name in created:
            print(f"created topic {name}")
    if problem is not None:
        raise problem
    return 0


@command(app, "list")
def list_topics(
    session: Session,
    internal: Annotated[bool, typer.Option("--internal", help="Also Kafka's own topics, such as __consumer_offsets.")] = False,
) -> int:
    """List topics."""
    admin = session.admin()
    with session.translated():
        found = admin.list_topics(timeout=session.timeout_s).topics
    rows = [summarise(topic) for name, topic in sorted(found.items()) if internal or not name.startswith("__")]
    if session.as_json:
        print_json(rows)
    else:
        columns = ["topic", "partitions", "replicas", "under-replicated", "leaderless"]
        print_table(columns, [[row[column] for column in columns] for row in rows], right=columns[1:])
    return 0


@command(app, "describe")
def describe(session: Session, name: Annotated[str, typer.Argument(metavar="TOPIC")]) -> int:
    """Show a topic's partitions, leaders, replicas, ISRs, offsets and its own configs."""
    admin = session.admin()
    topic = find_topic(session, admin, name)
    ends = partition_offsets(session, admin, topic)
    configs = topic_configs(session, admin, name)
    partitions = [
        {
            "partition": partition.id,
            "leader": partition.leader if partition.leader >= 0 else None,
            "replicas": list(partition.replicas),
            "isr": list(partition.isrs),
            "start": ends.get(partition.id, (None, None))[0],
            "end": ends.get(partition.id, (None, None))[1],
        }
        for partition in sorted(topic.partitions.values(), key=lambda partition: partition.id)
    ]
    if session.as_json:
        print_json(summarise(topic) | {"configs": configs, "partitions": partitions})
        return 0
    summary = summarise(topic)
    pairs: list[tuple[str, object]] = [(key, summary[key]) for key in ("topic", "partitions", "replicas")]
    pairs.append(("configs", ", ".join(f"{key}={value}" for key, value in sorted(configs.items())) or "(defaults)"))
    print_pairs(pairs)
    print()
    columns = ["partition", "leader", "replicas", "isr", "start", "end"]
    print_table(columns, [[row[column] for column in columns] for row in partitions], right=["partition", "leader", "start", "end"])
    return 0


@command(app, "delete")
def delete(session: Session, names: Annotated[list[str], typer.Argument(metavar="TOPIC...")]) -> int:
    """Delete topics and all their records."""
    admin = session.admin()
    started_s = time.monotonic()
    outcomes = settle(admin.delete_topics(names, request_timeout=session.timeout_s, operation_timeout=session.timeout_s))
    deleted = [name for name, outcome in outcomes.items() if outcome is None]
    if session.as_json:
        print_json({"deleted": deleted})
    else:
        for name in deleted:
            print(f"deleted topic {name}")
    for name, outcome in outcomes.items():
        if outcome is not None:
            raise session.problem(outcome, repr(name), elapsed_s=time.monotonic() - started_s)
    return 0


def summarise(topic: TopicMetadata) -> dict[str, Any]:
    """One row of the list. `replicas` is the largest replication factor of its partitions."""
    partitions = topic.partitions.values()
    return {
        "topic": topic.topic,
        "partitions": len(partitions),
        "replicas": max((len(partition.replicas) for partition in partitions), default=0),
        "under-replicated": sum(len(partition.isrs) < len(partition.replicas) for partition in partitions),
        "leaderless": sum(partition.leader < 0 for partition in partitions),
    }


def find_topic(session: Session, client: AdminClient, name: str) -> TopicMetadata:
    """A topic's metadata, asked for without naming it, so that asking never creates it. Raises CliError when there is none."""
    with session.translated(repr(name)):
        topic = client.list_topics(timeout=session.timeout_s).topics.get(name)
    if topic is None or not topic.partitions:
        raise CliError(f"no such topic: {name!r}")
    return topic


def partition_offsets(session: Session, admin: AdminClient, topic: TopicMetadata) -> dict[int, tuple[int, int]]:
    """Start and end offset of each partition that has a leader."""
    from confluent_kafka import KafkaException, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    led = [partition.id for partition in topic.partitions.values() if partition.leader >= 0]
    found: list[dict[int, int]] = []
    for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):
        futures = admin.list_offsets({TopicPartition(topic.topic, number): spec for number in led}, request_timeout=session.timeout_s) if led else {}
        offsets = {}
        for partition, future in futures.items():
            try:
                offsets[partition.partition] = future.result().offset
            except KafkaException:
                continue  # A partition that is just changing its leader: shown without offsets.
        found.append(offsets)
    return {number: (found[0][number], found[1][number]) for number in led if number in found[0] and number in found[1]}


def topic_configs(session: Session, admin: AdminClient, name: str) -> dict[str, str]:
    """The configs set on the topic itself."""
    from confluent_kafka.admin import ConfigResource, ConfigSource

    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    with session.translated(repr(name)):
        (future,) = admin.describe_configs([resource], request_timeout=session.timeout_s).values()
        entries = future.result()
    return {entry.name: entry.value for entry in entries.values() if entry.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value}


def settle(futures: dict[str, Any]) -> dict[str, Any]:
    """What became of each: None for done, else its KafkaError."""
    from confluent_kafka import KafkaException

    outcomes = {}
    for name, future in futures.items():
        try:
            future.result()
            outcomes[name] = None
        except KafkaException as error:
            outcomes[name] = error.args[0]
    return outcomes


def parse_pairs(pairs: list[str] | None, option: str) -> dict[str, str]:
    """`name=value` texts. Raises UsageProblem."""
    parsed = {}
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not (separator and name.strip()):
            raise UsageProblem(f"{option} {pair!r} is not name=value")
        parsed[name.strip()] = value.strip()
    return parsed


def parse_assignment(text: str) -> list[list[int]]:
    """`1:2:3,2:3:1`: one list of node ids per partition. Raises UsageProblem."""
    try:
        return [[int(node) for node in part.split(":")] for part in text.split(",")]
    except ValueError:
        raise UsageProblem(f"--replica-assignment {text!r} is not like 1:2:3,2:3:1") from None
