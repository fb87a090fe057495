"""`raftlog cluster log-dirs`: what lies in the brokers' log directories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from .brokers import Brokers
from .cluster import app
from .completion import complete_broker, complete_topic
from .errors import EXIT_FAILED, CliError, complain
from .output import print_json, print_rows, size_text
from .partitions import find, grouped, parse_choices
from .session import Session, command
from .wire import check, refusal

DESCRIBE_LOG_DIRS: Final = 35


@command(app, "log-dirs")
def log_dirs(
    session: Session,
    node_ids: Annotated[
        list[int] | None, typer.Option("--broker", min=0, help="Only of this one; repeatable.", autocompletion=complete_broker)
    ] = None,
    topics: Annotated[
        list[str] | None,
        typer.Option("--topic", "-t", metavar="TOPIC[:PARTITIONS]", help="Only of these; repeatable.", autocompletion=complete_topic),
    ] = None,
    replicas: Annotated[bool, typer.Option("--replicas", "-r", help="A row per replica, with its size and lag.")] = False,
) -> int:
    """Show the log directories of brokers: how much lies in each, and how much is free."""
    choices = parse_choices(topics)
    with Brokers(session) as brokers:
        partitions = find(brokers, choices) if choices else None
        chosen = sorted(set(node_ids)) if node_ids else brokers.patiently(brokers.node_ids)
        rows: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        for node_id in chosen:
            try:
                rows += directories_of(brokers, node_id, None if partitions is None else grouped(partitions))
            except CliError as problem:
                failures.append({"broker": node_id, "error": str(problem)})
    if session.as_json:
        print_json({"directories": rows, "failed": failures})
    elif replicas:
        columns = ["broker", "topic", "partition", "size", "lag", "future", "directory"]
        shown = [item | {"broker": row["broker"], "directory": row["directory"]} for row in rows for item in row["replicas"]]
        print_rows(columns, [item | {"size": size_text(item["size_bytes"])} for item in shown], right=["broker", "partition", "size", "lag"])
    else:
        print_rows(
            ["broker", "directory", "replicas", "size", "free", "error"],
            [summary_row(row) for row in rows],
            right=["broker", "replicas", "size", "free"],
        )
    for failure in failures:
        complain(f"broker {failure['broker']}: {failure['error']}")
    return EXIT_FAILED if failures or any(row["error"] for row in rows) else 0


def directories_of(brokers: Brokers, node_id: int, topics: dict[str, list[int]] | None) -> list[dict[str, Any]]:
    """One broker's directories and the replicas in them, of these partitions or of all. Raises CliError."""
    asked = None if topics is None else [{"topic": name, "partitions": numbers} for name, numbers in topics.items()]
    answer = brokers.patiently(lambda: brokers.ask(DESCRIBE_LOG_DIRS, {"topics": asked}, node_id=node_id))
    check(answer.error_code)
    return [directory_row(node_id, directory) for directory in answer.results]


def directory_row(node_id: int, directory: Any) -> dict[str, Any]:
    """One directory for JSON; sizes are None where the broker does not say them."""
    problem = refusal(directory.error_code)
    return {
        "broker": node_id,
        "directory": directory.log_dir,
        "error": None if problem is None else str(problem),
        "total_bytes": known(directory.total_bytes),
        "free_bytes": known(directory.usable_bytes),
        "size_bytes": sum(item.partition_size for topic in directory.topics for item in topic.partitions),
        "replicas": [
            {
                "topic": topic.name,
                "partition": item.partition_index,
                "size_bytes": item.partition_size,
                "lag": item.offset_lag,
                "future": item.is_future_key,
            }
            for topic in sorted(directory.topics, key=lambda topic: topic.name)
            for item in sorted(topic.partitions, key=lambda item: item.partition_index)
        ],
    }


def summary_row(row: dict[str, Any]) -> dict[str, Any]:
    free = row["free_bytes"]
    return row | {"replicas": len(row["replicas"]), "size": size_text(row["size_bytes"]), "free": None if free is None else size_text(free)}


def known(size_bytes: int) -> int | None:
    return size_bytes if size_bytes >= 0 else None


def replica_sizes(brokers: Brokers, node_ids: Sequence[int], topics: dict[str, list[int]]) -> dict[tuple[int, str, int], int]:
    """Size in bytes by (broker, topic, partition). Raises CliError where a broker does not tell."""
    return {
        (node_id, item["topic"], item["partition"]): item["size_bytes"]
        for node_id in node_ids
        for row in directories_of(brokers, node_id, topics)
        for item in row["replicas"]
    }
