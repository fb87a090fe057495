"""`raftlog cluster`: the cluster as a client sees it."""

from __future__ import annotations

import typer

from .errors import CliError
from .output import print_json, print_pairs, print_table
from .session import Session, command

app = typer.Typer(help="Show the cluster.", no_args_is_help=True)


@command(app, "describe")
def describe(session: Session) -> int:
    """Show the cluster's id, its active controller, its brokers and how the partitions lie on them."""
    admin = session.admin()
    with session.translated():
        metadata = admin.list_topics(timeout=session.timeout_s)
    partitions = [partition for topic in metadata.topics.values() for partition in topic.partitions.values()]
    rows = [
        {
            "broker": broker.id,
            "address": f"{broker.host}:{broker.port}",
            "leads": sum(partition.leader == broker.id for partition in partitions),
            "replicas": sum(broker.id in partition.replicas for partition in partitions),
            "in-sync": sum(broker.id in partition.isrs for partition in partitions),
        }
        for broker in sorted(metadata.brokers.values(), key=lambda broker: broker.id)
    ]
    summary = {
        "cluster": metadata.cluster_id,
        "controller": active_controller(session),
        "topics": len(metadata.topics),
        "partitions": len(partitions),
        "under-replicated": sum(len(partition.isrs) < len(partition.replicas) for partition in partitions),
        "leaderless": sum(partition.leader < 0 for partition in partitions),
    }
    if session.as_json:
        print_json(summary | {"brokers": rows})
        return 0
    print_pairs(list(summary.items()))
    print()
    columns = ["broker", "address", "leads", "replicas", "in-sync"]
    print_table(columns, [[row[column] for column in columns] for row in rows], right=["broker", "leads", "replicas", "in-sync"])
    return 0


def active_controller(session: Session) -> int | None:
    """The metadata quorum's leader; None where the cluster does not say, as one of an older Kafka."""
    from .wire import WireClient, describe_quorum

    try:
        with WireClient(*session.reach(), timeout_s=session.timeout_s) as client:
            leader: int = describe_quorum(client).leader_id
            return leader if leader >= 0 else None
    except CliError:
        return None
