"""`raftlog quorum`: prepare the nodes of a real cluster, and look at its metadata quorum."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .brokers import Brokers
from .errors import CliError
from .nodefiles import (
    CONFIG_FILE,
    DATA_DIRECTORY,
    check_cluster_id,
    found_cluster_id,
    new_kafka_id,
    node_settings,
    prepare_data_directory,
    write_properties,
)
from .output import print_json, print_pairs, print_table
from .session import Session, command
from .start import SetOption, parse_settings
from .wire import describe_quorum

app = typer.Typer(help="Prepare the nodes of a cluster; show its metadata quorum.", no_args_is_help=True)


@command(app, "init")
def init(
    session: Session,
    node_id: Annotated[int, typer.Option("--node-id", min=0, help="This node's id, unique in the cluster.")],
    voters: Annotated[str, typer.Option("--voters", metavar="ID@HOST:PORT,…", help="All controllers, the same list on every node.")],
    directory: Annotated[Path, typer.Option("--dir", "-d", help="Where this node's configuration and data go.")],
    cluster_id: Annotated[str | None, typer.Option("--cluster-id", help="The id the other nodes have; a new one when left out.")] = None,
    listener: Annotated[str, typer.Option("--listener", metavar="HOST:PORT", help="Where clients reach this node.")] = "127.0.0.1:9092",
    overrides: SetOption = None,
) -> int:
    """Write one node's configuration and identity: run it once per node, then start each.

    A node among the voters is a controller and a broker; one that is not is a broker only.
    """
    from raftlog.config import load

    directory = directory.absolute()
    data = directory / DATA_DIRECTORY
    cluster_id = check_cluster_id(cluster_id) if cluster_id is not None else found_cluster_id(data) or new_kafka_id()
    pairs = node_settings(node_id=node_id, voters=voters, listener=listener, data=data, more=parse_settings(overrides))
    settings = load("", overrides=pairs)
    path = directory / CONFIG_FILE
    if path.exists():
        raise CliError(f"{path} exists already: this node is prepared; start it with: raftlog start -c {shlex.quote(str(path))}")
    prepare_data_directory(Path(settings.data_directory), cluster_id=cluster_id, node_id=node_id)
    write_properties(path, pairs, heading=f"Node {node_id} of the raftlog cluster {cluster_id}.")
    if session.as_json:
        print_json({"cluster_id": cluster_id, "node_id": node_id, "config": str(path), "data": settings.data_directory})
        return 0
    print(f"node {node_id} of cluster {cluster_id} is prepared in {directory}")
    others = [voter.node_id for voter in settings.voters if voter.node_id != node_id]
    if others:
        print(f"prepare the others ({', '.join(map(str, others))}) with: raftlog quorum init --cluster-id {cluster_id} --voters {voters} --node-id …")
    print(f"start this one with: raftlog start -c {shlex.quote(str(path))}")
    return 0


@command(app, "status")
def status(session: Session) -> int:
    """Show the metadata quorum: who leads, how far each voter and each following broker has got."""
    with Brokers(session) as brokers:
        partition = brokers.patiently(lambda: describe_quorum(brokers.client()))
    now_ms = time.time_ns() // 1_000_000
    rows = [
        replica_row(replica, role, partition=partition, now_ms=now_ms)
        for role, replicas in (("voter", partition.current_voters), ("observer", partition.observers))
        for replica in replicas
    ]
    if session.as_json:
        print_json({"leader": partition.leader_id, "epoch": partition.leader_epoch, "high_watermark": partition.high_watermark, "replicas": rows})
        return 0
    print_pairs([("leader", partition.leader_id), ("epoch", partition.leader_epoch), ("high watermark", partition.high_watermark)])
    print()
    columns = ["node", "role", "log_end", "lag", "last_fetch_ms", "last_caught_up_ms"]
    print_table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])
    return 0


def replica_row(replica: Any, role: str, *, partition: Any, now_ms: int) -> dict[str, Any]:
    """One replica; times are ms ago, None where the leader knows none."""
    leads = replica.replica_id == partition.leader_id
    return {
        "node": replica.replica_id,
        "role": "leader" if leads else role,
        "log_end": replica.log_end_offset,
        "lag": max(0, partition.high_watermark - replica.log_end_offset),
        "last_fetch_ms": 0 if leads else _ago(getattr(replica, "last_fetch_timestamp", None), now_ms),
        "last_caught_up_ms": 0 if leads else _ago(getattr(replica, "last_caught_up_timestamp", None), now_ms),
    }


def _ago(timestamp_ms: int | None, now_ms: int) -> int | None:
    return None if timestamp_ms is None or timestamp_ms < 0 else max(0, now_ms - timestamp_ms)
