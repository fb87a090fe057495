"""`raftlog cluster`: the cluster as a client sees it, its brokers and what they offer."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from .brokers import NO_LEADER, Brokers
from .completion import complete_broker
from .errors import CliError
from .output import YesOption, confirm, print_json, print_pairs, print_rows
from .session import Session, command
from .wire import check, describe_quorum

app = typer.Typer(help="Show the cluster and its brokers.", no_args_is_help=True)

DESCRIBE_CLUSTER: Final = 60
UNREGISTER_BROKER: Final = 64
FENCED_VERSION_MIN: Final = 2  # Before, brokers that are down are not told of.


@command(app, "describe")
def describe(session: Session) -> int:
    """Show the cluster's id, its active controller, its brokers and how the partitions lie on them."""
    with Brokers(session) as brokers:
        metadata = brokers.patiently(brokers.metadata)
        controller = active_controller(brokers)
    partitions = [partition for topic in metadata.topics for partition in topic.partitions]
    rows = [
        {
            "broker": broker.node_id,
            "address": f"{broker.host}:{broker.port}",
            "rack": broker.rack,
            "leads": sum(partition.leader_id == broker.node_id for partition in partitions),
            "replicas": sum(broker.node_id in partition.replica_nodes for partition in partitions),
            "in-sync": sum(broker.node_id in partition.isr_nodes for partition in partitions),
        }
        for broker in sorted(metadata.brokers, key=lambda broker: broker.node_id)
    ]
    summary = {
        "cluster": metadata.cluster_id,
        "controller": controller,
        "topics": len(metadata.topics),
        "partitions": len(partitions),
        "under-replicated": sum(len(partition.isr_nodes) < len(partition.replica_nodes) for partition in partitions),
        "leaderless": sum(partition.leader_id < 0 for partition in partitions),
    }
    if session.as_json:
        print_json(summary | {"brokers": rows})
        return 0
    print_pairs(list(summary.items()))
    print()
    numbers = ["leads", "replicas", "in-sync"]
    racks = ["rack"] if any(row["rack"] for row in rows) else []
    print_rows(["broker", "address", *racks, *numbers], rows, right=["broker", *numbers])
    return 0


@command(app, "brokers")
def list_brokers(session: Session) -> int:
    """List the registered brokers, also those that are down."""
    with Brokers(session) as brokers:
        rows = [broker_row(broker) for broker in sorted(registered_brokers(brokers), key=lambda broker: broker.broker_id)]
    if session.as_json:
        print_json(rows)
    else:
        print_rows(["broker", "address", "rack", "state"], rows, right=["broker"])
    return 0


@command(app, "apis")
def apis(
    session: Session,
    node_id: Annotated[int | None, typer.Option("--broker", min=0, help="Of this one; of any when left out.", autocompletion=complete_broker)] = None,
) -> int:
    """List the APIs that a broker offers, with their versions."""
    from raftlog.protocol.messages import api_name

    with Brokers(session) as brokers:
        offered = brokers.patiently(lambda: brokers.client(node_id).offered())
    rows = [{"key": key, "api": api_name(key), "lowest": offered[key][0], "highest": offered[key][1]} for key in sorted(offered)]
    if session.as_json:
        print_json(rows)
    else:
        print_rows(["key", "api", "lowest", "highest"], rows, right=["key", "lowest", "highest"])
    return 0


@command(app, "unregister")
def unregister(
    session: Session,
    node_id: Annotated[int, typer.Argument(metavar="BROKER", min=0, help="Its id.", autocompletion=complete_broker)],
    yes: YesOption = False,
) -> int:
    """Have the cluster forget a broker that is down and will not come back. Its replicas stay assigned to it."""
    with Brokers(session) as brokers:
        if any(broker.broker_id == node_id and not broker.is_fenced for broker in registered_brokers(brokers)):
            raise CliError(f"broker {node_id} is alive, and would register again: stop it first")
        confirm(f"Unregister broker {node_id}?", yes=yes)
        answer = brokers.ask_controller(UNREGISTER_BROKER, {"broker_id": node_id})
        check(answer.error_code, answer.error_message)
    if session.as_json:
        print_json({"unregistered": node_id})
    else:
        print(f"unregistered broker {node_id}")
    return 0


def registered_brokers(brokers: Brokers) -> list[Any]:
    """Brokers as DescribeCluster (key 60) gives them, also the fenced ones where the cluster tells of them."""

    def ask() -> list[Any]:
        answer = brokers.ask(DESCRIBE_CLUSTER, {"include_fenced_brokers": True})
        check(answer.error_code, answer.error_message)
        return list(answer.brokers)

    return brokers.patiently(ask)


def broker_row(broker: Any) -> dict[str, Any]:
    return {
        "broker": broker.broker_id,
        "address": f"{broker.host}:{broker.port}",
        "rack": broker.rack,
        "state": "fenced" if broker.is_fenced else "active",
    }


def active_controller(brokers: Brokers) -> int | None:
    """The metadata quorum's leader, waited for while one is being elected; None where the cluster does not say, as one of an older Kafka."""

    def ask() -> int:
        leader: int = describe_quorum(brokers.client()).leader_id
        if leader < 0:
            raise NO_LEADER
        return leader

    try:
        return brokers.patiently(ask)
    except CliError:
        return None
