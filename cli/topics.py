"""`raftlog topics`: create, list, describe, delete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raftlog.ids import TopicPartition

from .brokers import Brokers
from .completion import complete_topic
from .config_queries import SOURCES, TOPIC, TOPIC_SOURCE, Resource, describe_configs
from .errors import CliError, UsageProblem
from .offset_queries import EARLIEST, LATEST, known_offsets
from .outcomes import Outcome, report
from .output import YesOption, confirm, print_json, print_pairs, print_rows
from .session import Session, command
from .topic_queries import describe_topic, topic_id_text

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient, TopicMetadata

app = typer.Typer(help="Create, list, describe, change, move and delete topics.", no_args_is_help=True)

TopicArgument = Annotated[str, typer.Argument(metavar="TOPIC", autocompletion=complete_topic)]
TopicArguments = Annotated[list[str], typer.Argument(metavar="TOPIC...", autocompletion=complete_topic)]


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
    futures = admin.create_topics(
        [NewTopic(name, **options) for name in names], request_timeout=session.timeout_s, operation_timeout=session.timeout_s
    )
    outcomes = settle(session, futures, is_fine=lambda code: if_not_exists and code == KafkaError.TOPIC_ALREADY_EXISTS)
    return report(session, outcomes, done="created")


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
        print_rows(columns, rows, right=columns[1:])
    return 0


@command(app, "describe")
def describe(session: Session, name: TopicArgument) -> int:
    """Show a topic's partitions, leaders, replicas, ISRs, offsets and its own configs."""
    with Brokers(session) as brokers:
        topic = describe_topic(brokers, name)
        led = [TopicPartition(name, partition.partition_index) for partition in topic.partitions if partition.leader_id >= 0]
        starts, ends = (known_offsets(brokers, led, when) for when in (EARLIEST, LATEST))
        configs = {
            config.name: config.value
            for config in describe_configs(brokers, Resource(TOPIC, name))
            if SOURCES.get(config.config_source) == TOPIC_SOURCE
        }
    rows = [partition_row(partition, name, starts, ends) for partition in sorted(topic.partitions, key=lambda partition: partition.partition_index)]
    summary: dict[str, Any] = {
        "topic": name,
        "topic_id": topic_id_text(topic.topic_id),
        "internal": topic.is_internal,
        "replicas": max((len(row["replicas"]) for row in rows), default=0),
        "under-replicated": sum(len(row["isr"]) < len(row["replicas"]) for row in rows),
        "leaderless": sum(row["leader"] is None for row in rows),
        "configs": configs,
    }
    if session.as_json:
        print_json(summary | {"partitions": rows})
        return 0
    shown = [("topic", name), ("id", summary["topic_id"]), ("partitions", len(rows)), ("replicas", summary["replicas"])]
    print_pairs([*shown, ("configs", ", ".join(f"{key}={value}" for key, value in sorted(configs.items())) or "(defaults)")])
    print()
    seldom = [column for column in ("offline", "elr", "last_known_elr") if any(row[column] for row in rows)]
    print_rows(["partition", "leader", "replicas", "isr", *seldom, "start", "end"], rows, right=["partition", "leader", "start", "end"])
    return 0


@command(app, "delete")
def delete(session: Session, names: TopicArguments, yes: YesOption = False) -> int:
    """Delete topics and all their records."""
    confirm(f"Delete {', '.join(names)} and all their records?", yes=yes)
    admin = session.admin()
    outcomes = settle(session, admin.delete_topics(names, request_timeout=session.timeout_s, operation_timeout=session.timeout_s))
    return report(session, outcomes, done="deleted")


def partition_row(partition: Any, topic: str, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]) -> dict[str, Any]:
    """One row of a topic's description; an offset is None where its leader does not tell it."""
    key = TopicPartition(topic, partition.partition_index)
    return {
        "partition": key.partition,
        "leader": partition.leader_id if partition.leader_id >= 0 else None,
        "leader_epoch": partition.leader_epoch,
        "replicas": list(partition.replica_nodes),
        "isr": list(partition.isr_nodes),
        "offline": list(partition.offline_replicas),
        "elr": list(getattr(partition, "eligible_leader_replicas", None) or ()),
        "last_known_elr": list(getattr(partition, "last_known_elr", None) or ()),
        "start": starts.get(key),
        "end": ends.get(key),
    }


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


def find_topic(session: Session, client: AdminClient | Producer | Consumer, name: str) -> TopicMetadata:
    """A topic's metadata, asked for without naming it, so that asking never creates it. Raises CliError when there is none."""
    with session.translated(repr(name)):
        topic = client.list_topics(timeout=session.timeout_s).topics.get(name)
    if topic is None or not topic.partitions:
        raise CliError(f"no such topic: {name!r}")
    return topic


def settle(session: Session, futures: Mapping[str, Any], *, is_fine: Callable[[int], bool] = lambda _code: False) -> list[Outcome]:
    """What became of each topic; one whose error code `is_fine` is left out, for nothing was done to it."""
    from confluent_kafka import KafkaError, KafkaException

    started_s = time.monotonic()
    outcomes = []
    for name, future in futures.items():
        problem = None
        try:
            future.result()
        except KafkaException as error:
            code = error.args[0].code()
            if is_fine(code):
                continue
            unknown = code == KafkaError.UNKNOWN_TOPIC_OR_PART
            problem = CliError("no such topic") if unknown else session.problem(error.args[0], elapsed_s=time.monotonic() - started_s)
        outcomes.append(Outcome(f"topic {name}", {"topic": name}, problem))
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
