"""Checks of what administrators do: the reference client, or the records themselves, show what came of it."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from confluent_kafka.admin import ConfigResource

from .bench import Bench
from .client import Place, Record, Refused, Shape
from .outcome import WAIT_S, Failure, expect, expect_error, wait_for
from .reference import some_records


def settings(bench: Bench, kind: str, name: str) -> dict[str, str]:
    """As the reference client sees them."""
    resource = ConfigResource(kind, name)
    return {key: entry.value for key, entry in bench.admin.describe_configs([resource])[resource].result(WAIT_S).items()}


def refusal(verb: Any, *arguments: Any, **options: Any) -> str | None:
    """Why it was refused; None when it was not."""
    try:
        verb(*arguments, **options)
    except Refused as error:
        return str(error) or "without a reason"
    return None


def creates(bench: Bench) -> None:
    topic = bench.name()
    bench.client.create_topic(topic, Shape(3, config={"retention.ms": "3600000", "cleanup.policy": "delete"}))
    wait_for(lambda: bench.exists(topic), "the topic to be seen")
    expect([len(part.replicas) for part in bench.partitions(topic)], [3, 3, 3], "replicas")
    expect(settings(bench, "topic", topic)["retention.ms"], "3600000", "retention.ms")


def creates_as_assigned(bench: Bench) -> None:
    topic = bench.name()
    bench.client.create_topic(topic, Shape(assignment=[[2, 3], [3, 1]]))
    wait_for(lambda: bench.exists(topic), "the topic to be seen")
    expect([part.replicas for part in bench.partitions(topic)], [[2, 3], [3, 1]], "replicas")


def only_validates(bench: Bench) -> None:
    """validate_only creates nothing, and refuses what a creation would refuse."""
    topic = bench.name()
    bench.client.create_topic(topic, Shape(3), validate_only=True)
    expect(bench.exists(topic), False, "created")
    wrong = Shape(3, config={"retention.ms": "soon"})
    expect_error(refusal(bench.client.create_topic, topic, wrong, validate_only=True), "config|retention")


def refuses(bench: Bench) -> None:
    """Twice the same topic, a wrong name, and a setting that does not exist: each with its reason."""
    topic = bench.topic(1)
    expect_error(refusal(bench.client.create_topic, topic, Shape()), "exist")
    expect_error(refusal(bench.client.create_topic, "no spaces", Shape()), "invalid|illegal|topic")
    expect(bench.exists("no spaces"), False, "created")
    unknown = bench.name()
    expect_error(refusal(bench.client.create_topic, unknown, Shape(config={"no.such.setting": "1"})), "config|setting")
    expect(bench.exists(unknown), False, "created")


def lists_and_describes(bench: Bench) -> None:
    topic = bench.topic()
    if topic not in bench.client.list_topics():
        raise Failure("not listed")
    wanted = [{"leader": part.leader, "replicas": part.replicas, "isr": sorted(part.isrs)} for part in bench.partitions(topic)]
    found = [{"leader": each["leader"], "replicas": each["replicas"], "isr": sorted(each["isr"])} for each in bench.client.describe_topic(topic)]
    expect(found, wanted)


def deletes(bench: Bench) -> None:
    topic = bench.topic()
    bench.client.delete_topic(topic)
    wait_for(lambda: bench.is_gone(topic), "the topic to be gone")


def adds_partitions(bench: Bench) -> None:
    topic = bench.topic(2)
    bench.client.add_partitions(topic, 5)
    wait_for(lambda: len(bench.partitions(topic)) == 5, "five partitions")
    expect_error(refusal(bench.client.add_partitions, topic, 3), "partition")


def topic_settings(bench: Bench) -> None:
    """Described, altered and reset without touching others."""
    topic = bench.topic(1, retention_ms="7200000")
    expect(bench.client.describe_config("topic", topic)["retention.ms"], "7200000", "described")
    bench.client.alter_config("topic", topic, {"max.message.bytes": "2000"})
    wait_for(lambda: settings(bench, "topic", topic)["max.message.bytes"] == "2000", "the altered setting")
    expect(settings(bench, "topic", topic)["retention.ms"], "7200000", "left alone")
    bench.client.alter_config("topic", topic, {"retention.ms": None})
    wait_for(lambda: settings(bench, "topic", topic)["retention.ms"] == "604800000", "the default again")
    expect_error(refusal(bench.client.alter_config, "topic", topic, {"retention.ms": "soon"}), "config|retention|invalid|value")


def replaced_settings(bench: Bench) -> None:
    """AlterConfigs, the older API: what is not named goes back to its default."""
    topic = bench.topic(1, retention_ms="7200000")
    bench.client.replace_config("topic", topic, {"max.message.bytes": "2000"})
    wait_for(lambda: settings(bench, "topic", topic)["max.message.bytes"] == "2000", "the new setting")
    expect(settings(bench, "topic", topic)["retention.ms"], "604800000", "what was not named")


def broker_settings(bench: Bench) -> None:
    """A broker's, and the cluster's default for all brokers, changed while they run."""
    expect(bench.client.describe_config("broker", "2")["node.id"], "2", "described")
    bench.client.alter_config("broker", "2", {"log.retention.ms": "7200000"})
    try:
        wait_for(lambda: settings(bench, "broker", "2")["log.retention.ms"] == "7200000", "the altered setting")
        if settings(bench, "broker", "1")["log.retention.ms"] == "7200000":
            raise Failure("another broker's setting changed as well")
    finally:
        bench.client.alter_config("broker", "2", {"log.retention.ms": None})
    wait_for(lambda: settings(bench, "broker", "2")["log.retention.ms"] != "7200000", "the default again")


def deletes_records(bench: Bench) -> None:
    topic = bench.topic(1)
    bench.send(topic, some_records(10))
    bench.client.delete_records(Place(topic, 0), 4)
    expect([each.offset for each in bench.stored(topic)], list(range(4, 10)), "offsets left")
    expect_error(refusal(bench.client.delete_records, Place(topic, 0), 99), "offset|range|deleting records")


def lists_offsets(bench: Bench) -> None:
    topic = bench.topic(1)
    bench.send(topic, some_records(10))
    expect([bench.client.list_offsets(Place(topic, 0), spec) for spec in ("earliest", "latest")], [0, 10])


def offset_of_the_newest(bench: Bench) -> None:
    """The offset with the largest timestamp (KIP-734), which need not be the last."""
    topic = bench.topic(1)
    bench.send(topic, [Record("k", "v", timestamp_ms=1_700_000_000_000 + each) for each in (1, 5, 3)])
    expect(bench.client.list_offsets(Place(topic, 0), "max-timestamp"), 1)


def groups(bench: Bench) -> None:
    """Listed and described: a group with a member, and one that has only offsets."""
    topic, group, idle = bench.topic(), bench.name("g"), bench.name("g")
    bench.set_offset(idle, Place(topic, 0), 7)
    from .confluent import Confluent

    reference = Confluent()
    reference.start(bench.cluster.bootstrap_servers)
    with bench.member(topic, group, of=reference) as member:
        wait_for(lambda: member.assigned, "the member's partitions")
        missing = {group, idle} - set(bench.client.list_groups())
        if missing:
            raise Failure(f"not listed: {missing}")
        expect(bench.client.describe_group(group), {"state": "stable", "members": 1})
        expect(bench.client.describe_group(idle), {"state": "empty", "members": 0})


def deletes_a_group(bench: Bench) -> None:
    topic, group = bench.topic(), bench.name("g")
    bench.set_offset(group, Place(topic, 0), 7)
    bench.client.delete_group(group)
    expect(bench.offsets_of(group), {}, "offsets left")
    expect(group in bench.groups(), False, "still listed")


def lists_group_offsets(bench: Bench) -> None:
    topic, group = bench.topic(), bench.name("g")
    bench.set_offset(group, Place(topic, 0), 7)
    bench.set_offset(group, Place(topic, 3), 9)
    expect(bench.client.group_offsets(group), {Place(topic, 0): 7, Place(topic, 3): 9})


def alters_group_offsets(bench: Bench) -> None:
    topic, group = bench.topic(), bench.name("g")
    bench.set_offset(group, Place(topic, 0), 7)
    bench.client.alter_offset(group, Place(topic, 0), 3)
    expect(bench.offsets_of(group), {Place(topic, 0): 3})


def deletes_group_offsets(bench: Bench) -> None:
    topic, group = bench.topic(), bench.name("g")
    bench.set_offset(group, Place(topic, 0), 7)
    bench.set_offset(group, Place(topic, 1), 8)
    bench.client.delete_offset(group, Place(topic, 0))
    expect(bench.offsets_of(group), {Place(topic, 1): 8})


def cluster(bench: Bench) -> None:
    found = bench.client.describe_cluster()
    expect(found["brokers"], [1, 2, 3], "brokers")
    if found["controller"] not in (1, 2, 3):
        raise Failure(f"controller {found['controller']}")
    if not re.fullmatch(r"[\w-]{22}", str(found["id"])):
        raise Failure(f"cluster id {found['id']}")


def elects_preferred(bench: Bench) -> None:
    """After its preferred leader was away, an election brings the leadership back."""
    topic = bench.topic(assignment=[[3, 1, 2]])
    bench.client.elect_leader(Place(topic, 0), "preferred")  # Needs no change; whoever lacks the verb says so before a node dies.
    with bench.killed(3):
        wait_for(lambda: bench.partitions(topic)[0].leader in (1, 2), "another leader")
    elect(bench, Place(topic, 0), "preferred")
    wait_for(lambda: bench.partitions(topic)[0].leader == 3, "the preferred leader")


def elect(bench: Bench, place: Place, kind: str) -> None:
    """Ask until it is done: the client's first request may go to a node that died."""
    problems: list[str | None] = []

    def is_done() -> bool:
        problems.append(refusal(bench.client.elect_leader, place, kind))
        return problems[-1] is None

    try:
        wait_for(is_done, f"the {kind} election")
    except Failure as failure:
        raise Failure(f"{failure}: {problems[-1]}") from None


def elects_unclean(bench: Bench) -> None:
    """A partition whose only in-sync replica is gone is led again, by one that was not in sync."""
    topic = bench.topic(assignment=[[2, 3]])
    bench.client.elect_leader(Place(topic, 0), "unclean")
    with contextlib.ExitStack() as back:
        back.enter_context(bench.killed(3))
        wait_for(lambda: bench.partitions(topic)[0].isrs == [2], "the ISR without the dead node")
        bench.send(topic, some_records(5))
        back.enter_context(bench.killed(2))
        # The two that are left have no majority among the controllers; with the other one back, they have.
        bench.cluster.start(3)
        wait_for(lambda: bench.knows(3) and not bench.knows(2), "node 3 to be back and node 2 to be missed")
        expect(bench.partitions(topic)[0].leader, -1, "leader while the only one in sync is away")
        elect(bench, Place(topic, 0), "unclean")
        wait_for(lambda: bench.partitions(topic)[0].leader == 3, "the leader that was out of sync")
    expect(bench.ends(topic), [0], "end offset after the loss")


def reassigns(bench: Bench) -> None:
    """The replicas move with their records; what is done is listed no more."""
    topic = bench.topic(assignment=[[1, 2]])
    bench.send(topic, some_records(20))
    bench.client.reassign(Place(topic, 0), [3, 2])
    wait_for(lambda: bench.partitions(topic)[0].replicas == [3, 2] and sorted(bench.partitions(topic)[0].isrs) == [2, 3], "the new replicas")
    expect(Place(topic, 0) in bench.client.reassignments(), False, "still under way")
    expect(len(bench.stored(topic)), 20, "records")


def describes_log_dirs(bench: Bench) -> None:
    bench.client.log_dirs(2)
    topic = bench.topic(assignment=[[2]])
    bench.send(topic, [Record("k", "x" * 5000)])
    size = bench.client.log_dirs(2).get(Place(topic, 0), -1)
    if not 5000 <= size <= 6000:
        raise Failure(f"size of a replica with one record of 5,000 bytes: {size}")
    expect(Place(topic, 0) in bench.client.log_dirs(1), False, "at another broker")
