"""Apache Kafka's own command-line tools, each asked for what it is there for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .bench import Bench
from .client import wait_for_members
from .outcome import Failure, expect, wait_for
from .programs import JVM, Java, innermost
from .reference import some_records

RECORDS: Final = 20_000
TIMEOUT_S: Final = 90.0
SLF4J: Final = "SLF4J"


class Tools:
    """Runs them against the bench's cluster."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.client, Java)
        self._jars = bench.client.jars
        self._servers = bench.cluster.bootstrap_servers
        self._directory = Path(bench.cluster.directory)

    def run(self, name: str, *arguments: str, expected: tuple[str, ...] = (), succeeds: bool = True) -> str:
        """What the tool of this class said. Raises Failure unless it ends as it should, and says each of `expected` (regular expressions)."""
        main = name if name.startswith("kafka.") else f"org.apache.kafka.tools.{name}"
        done = subprocess.run([*JVM, "-cp", self._jars, main, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        said = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if SLF4J not in line)
        if (done.returncode == 0) != succeeds:
            raise Failure(f"status {done.returncode}: {innermost(said.splitlines())}")
        for pattern in expected:
            if re.search(pattern, said, re.MULTILINE) is None:
                raise Failure(f"it did not say {pattern!r} but {said.strip()[-200:]!r}")
        return said

    def at(self, name: str, *arguments: str, expected: tuple[str, ...] = (), succeeds: bool = True) -> str:
        """As `run`, of a tool that is told of the cluster."""
        return self.run(name, "--bootstrap-server", self._servers, *arguments, expected=expected, succeeds=succeeds)

    def file(self, name: str, content: Any) -> str:
        """A file with this as JSON."""
        path = self._directory / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)


def topics(bench: Bench) -> None:
    tools, topic = Tools(bench), bench.name()
    named = ["--topic", topic]
    tools.at(
        "TopicCommand",
        "--create",
        *named,
        "--partitions",
        "3",
        "--replication-factor",
        "3",
        "--config",
        "retention.ms=3600000",
        expected=("Created topic",),
    )
    tools.at("TopicCommand", "--list", expected=(f"^{topic}$",))
    tools.at(
        "TopicCommand",
        "--describe",
        *named,
        expected=(r"PartitionCount: 3\s+ReplicationFactor: 3\s+Configs: .*retention.ms=3600000", r"Isr: \d,\d,\d"),
    )
    tools.at("TopicCommand", "--alter", *named, "--partitions", "6")
    tools.at("TopicCommand", "--describe", *named, expected=("PartitionCount: 6",))
    tools.at("TopicCommand", "--describe", "--under-replicated-partitions")
    tools.at("TopicCommand", "--delete", *named)
    wait_for(lambda: bench.is_gone(topic), "the topic to be gone")


def topic_configs(bench: Bench) -> None:
    tools, topic = Tools(bench), bench.topic()
    entity = ["--entity-type", "topics", "--entity-name", topic]
    tools.at(CONFIGS, "--alter", *entity, "--add-config", "retention.ms=7200000,max.message.bytes=2000000", expected=("Completed updating config",))
    tools.at(CONFIGS, "--describe", *entity, expected=("retention.ms=7200000",))
    tools.at(CONFIGS, "--alter", *entity, "--delete-config", "retention.ms", expected=("Completed updating config",))
    tools.at(CONFIGS, "--describe", *entity, "--all", expected=("retention.ms=604800000",))


def compaction(bench: Bench) -> None:
    tools, topic = Tools(bench), bench.topic(1)
    entity = ["--entity-type", "topics", "--entity-name", topic]
    for policy in ("compact", "[compact,delete]", "delete"):
        tools.at(CONFIGS, "--alter", *entity, "--add-config", f"cleanup.policy={policy}", expected=("Completed updating config",))
        tools.at(CONFIGS, "--describe", *entity, expected=(f"cleanup.policy={policy.strip('[]')}",))


def broker_configs(bench: Bench) -> None:
    """One broker's, and the default of all."""
    tools = Tools(bench)
    for entity, value in ((["--entity-name", "2"], "7200000"), (["--entity-default"], "7300000")):
        where = ["--entity-type", "brokers", *entity]
        tools.at(CONFIGS, "--alter", *where, "--add-config", f"log.retention.ms={value}", expected=("Completed updating",))
        try:
            tools.at(CONFIGS, "--describe", *where, expected=(f"log.retention.ms={value}",))
        finally:
            tools.at(CONFIGS, "--alter", *where, "--delete-config", "log.retention.ms", expected=("Completed updating",))
    tools.at(CONFIGS, "--describe", "--entity-type", "brokers", "--entity-name", "1", "--all", expected=("min.insync.replicas", "node.id=1"))


def group_configs(bench: Bench) -> None:
    tools, group = Tools(bench), bench.name("g")
    entity = ["--entity-type", "groups", "--entity-name", group]
    name = "consumer.session.timeout.ms"
    tools.at(CONFIGS, "--describe", *entity, "--all", expected=(rf"{name}=45000", "consumer.heartbeat.interval.ms=5000"))
    tools.at(CONFIGS, "--alter", *entity, "--add-config", f"{name}=50000", expected=("Completed updating config",))
    tools.at(CONFIGS, "--describe", *entity, expected=(rf"{name}=50000 sensitive=false synonyms=\{{DYNAMIC_GROUP_CONFIG:{name}=50000",))
    tools.at(CONFIGS, "--alter", *entity, "--add-config", f"{name}=1", succeeds=False, expected=("must be greater than or equal to",))
    tools.at(CONFIGS, "--alter", *entity, "--delete-config", name, expected=("Completed updating config",))
    tools.at(CONFIGS, "--describe", *entity, "--all", expected=(rf"{name}=45000",))


def group_views(bench: Bench, protocol: str = "") -> None:
    tools, topic, group = Tools(bench), bench.topic(), bench.name("g")
    bench.send(topic, some_records(40))
    with bench.member(topic, group, protocol=protocol) as member:
        wait_for_members(lambda: len(member.values) >= 40, "all records", member)
        tools.at(GROUPS, "--list", "--type", protocol or "classic", expected=(rf"^{group}\b",))
        tools.at(GROUPS, "--describe", "--group", group, expected=(rf"^{group}\s+{topic}",))
        tools.at(GROUPS, "--describe", "--group", group, "--state", expected=("Stable",))
        tools.at(GROUPS, "--describe", "--group", group, "--members", "--verbose", expected=(rf"{topic}:?\(?\d?",))
    tools.at(GROUPS, "--delete-offsets", "--group", group, "--topic", f"{topic}:0", expected=("Successful",))
    tools.at(GROUPS, "--delete", "--group", group, expected=("successful",))
    expect(group in bench.groups(), False, "still listed")


def resets(bench: Bench) -> None:
    """Every way to reset, in one group; what each should give is known."""
    tools, topic, group = Tools(bench), bench.topic(1), bench.name("g")
    base_ms = 1_700_000_000_000
    bench.send(topic, [record._replace(timestamp_ms=base_ms + 60_000 * number) for number, record in enumerate(some_records(20))])
    asked = (
        (["--to-latest"], 20),
        (["--to-offset", "5"], 5),
        (["--shift-by", "3"], 8),
        (["--shift-by", "-2"], 6),
        (["--to-current"], 6),
        (["--to-datetime", "2023-11-14T22:23:20.000"], 10),
        (["--by-duration", "PT1S"], 20),
        (["--to-earliest"], 0),
    )
    for way, offset in asked:
        tools.at(GROUPS, "--reset-offsets", "--group", group, "--topic", topic, *way, "--dry-run")
        tools.at(GROUPS, "--reset-offsets", "--group", group, "--topic", topic, *way, "--execute", expected=(rf"{topic}\s+0\s+{offset}\b",))
        expect(list(bench.offsets_of(group).values()), [offset], way[0])
    exported = tools.at(GROUPS, "--reset-offsets", "--group", group, "--topic", topic, "--to-offset", "7", "--dry-run", "--export")
    path = bench.cluster.directory / "offsets.csv"
    path.write_text(next(line for line in exported.splitlines() if topic in line) + "\n", encoding="utf-8")
    tools.at(GROUPS, "--reset-offsets", "--group", group, "--from-file", str(path), "--execute")
    expect(list(bench.offsets_of(group).values()), [7], "from a file")


def metadata_quorum(bench: Bench) -> None:
    tools = Tools(bench)
    tools.at("MetadataQuorumCommand", "describe", "--status", expected=(r"LeaderId:\s+\d", r"HighWatermark:\s+\d+", r"CurrentVoters:.*1.*2.*3"))
    tools.at("MetadataQuorumCommand", "describe", "--replication", expected=("Leader", "Follower"))


def leader_election(bench: Bench) -> None:
    """The preferred leader comes back to lead; an unclean election where none is needed says so."""
    tools, topic = Tools(bench), bench.topic(assignment=[[3, 1, 2]])
    named = ["--topic", topic, "--partition", "0"]
    with bench.killed(3):
        wait_for(lambda: bench.partitions(topic)[0].leader in (1, 2), "another leader")
    tools.at("LeaderElectionCommand", "--election-type", "preferred", *named)
    wait_for(lambda: bench.partitions(topic)[0].leader == 3, "the preferred leader")
    tools.at("LeaderElectionCommand", "--election-type", "unclean", *named, expected=("already elected|Valid replica",))
    tools.at("LeaderElectionCommand", "--election-type", "preferred", "--all-topic-partitions")


def cluster(bench: Bench) -> None:
    tools = Tools(bench)
    tools.run("ClusterTool", "cluster-id", "--bootstrap-server", bench.cluster.bootstrap_servers, expected=("Cluster ID",))
    tools.at("BrokerApiVersionsCommand", expected=(r"Produce\(0\)",))
    tools.at("FeatureCommand", "describe", expected=("metadata.version",))


def features(bench: Bench) -> None:
    """A level lowered and raised again, tried before it is done; and what can't be is refused."""
    tools = Tools(bench)
    wanted = ["--feature", "group.version=0"]
    tools.at("FeatureCommand", "downgrade", *wanted, "--dry-run", expected=(r"group.version can be downgraded to 0\.",))
    tools.at("FeatureCommand", "describe", expected=(r"group.version\s+SupportedMinVersion: 0\s+SupportedMaxVersion: 1\s+FinalizedVersionLevel: 1",))
    tools.at("FeatureCommand", "upgrade", "--feature", "metadata.version=24", succeeds=False, expected=("without setting the upgrade type",))
    try:
        tools.at("FeatureCommand", "downgrade", *wanted, expected=(r"group.version was downgraded to 0\.",))
        tools.at("FeatureCommand", "describe", expected=(r"group.version.*FinalizedVersionLevel: 0",))
    finally:
        tools.at("FeatureCommand", "upgrade", "--feature", "group.version=1", expected=(r"group.version was upgraded to 1\.",))
    tools.at(
        "FeatureCommand", "downgrade", "--feature", "metadata.version=22", "--unsafe", succeeds=False, expected=("not supported in this version",)
    )
    tools.at("FeatureCommand", "upgrade", "--feature", "share.version=1", succeeds=False, expected=("does not support this feature",))


def perf(bench: Bench) -> None:
    tools, topic = Tools(bench), bench.topic()
    size = ["--num-records", str(RECORDS), "--record-size", "100", "--throughput", "-1"]
    properties = ["--producer-props", f"bootstrap.servers={bench.cluster.bootstrap_servers}"]
    tools.run("ProducerPerformance", "--topic", topic, *size, *properties, expected=(rf"^{RECORDS} records sent",))
    tools.at("ConsumerPerformance", "--topic", topic, "--messages", str(RECORDS), "--timeout", "30000", expected=(rf", {RECORDS}, ",))


def verifiable(bench: Bench) -> None:
    tools, topic = Tools(bench), bench.topic()
    tools.at("VerifiableProducer", "--topic", topic, "--max-messages", "500", "--acks", "-1", expected=('"acked":500',))
    options = ["--group-id", f"verify-{topic}", "--max-messages", "500", "--reset-policy", "earliest"]
    tools.at("VerifiableConsumer", "--topic", topic, *options, expected=("records_consumed", "offsets_committed", "shutdown_complete"))


def delete_records(bench: Bench) -> None:
    tools, topic = Tools(bench), bench.topic(1)
    bench.send(topic, some_records(20))
    path = tools.file("delete-records.json", {"version": 1, "partitions": [{"topic": topic, "partition": 0, "offset": 5}]})
    tools.at("DeleteRecordsCommand", "--offset-json-file", path, expected=("low_watermark: 5",))
    tools.at("GetOffsetShell", "--topic", topic, "--time", "-2", expected=(f"{topic}:0:5",))
    tools.at("GetOffsetShell", "--topic", topic, "--time", "-1", expected=(f"{topic}:0:20",))


def log_dirs(bench: Bench) -> None:
    tools, topic = Tools(bench), bench.topic(1)
    tools.at("LogDirsCommand", "--describe", "--topic-list", topic, expected=(f'"partition":"{topic}-0"',))


def reassign(bench: Bench) -> None:
    """Generate a plan, execute it throttled, list, verify (which takes the throttle away); and cancel another one."""
    tools, topic = Tools(bench), bench.topic(assignment=[[1, 2]])
    bench.send(topic, [record._replace(value="x" * 10_000) for record in some_records(300)])
    asked = tools.file("topics.json", {"version": 1, "topics": [{"topic": topic}]})
    tools.at(REASSIGN, "--generate", "--topics-to-move-json-file", asked, "--broker-list", "2,3", expected=("Proposed partition reassignment",))
    plan = tools.file("plan.json", {"version": 1, "partitions": [{"topic": topic, "partition": 0, "replicas": [3, 2]}]})
    tools.at(REASSIGN, "--execute", "--reassignment-json-file", plan, "--throttle", "100000000", expected=("Successfully started",))
    wait_for(lambda: bench.partitions(topic)[0].replicas == [3, 2], "the new replicas")
    tools.at(REASSIGN, "--verify", "--reassignment-json-file", plan, expected=("is completed", "Clearing"))
    tools.at(CONFIGS, "--describe", "--entity-type", "topics", "--entity-name", topic)
    back = tools.file("back.json", {"version": 1, "partitions": [{"topic": topic, "partition": 0, "replicas": [1, 2]}]})
    tools.at(REASSIGN, "--execute", "--reassignment-json-file", back, "--throttle", "1000", expected=("Successfully started",))
    tools.at(REASSIGN, "--list", expected=(rf"{topic}-0: replicas: ",))
    tools.at(REASSIGN, "--cancel", "--reassignment-json-file", back, expected=("Successfully cancelled",))
    wait_for(lambda: sorted(bench.partitions(topic)[0].replicas) == [2, 3], "the replicas of before")
    expect(len(bench.stored(topic)), 300, "records")


def not_there(bench: Bench, tool: str, *arguments: str) -> None:
    """What the cluster does not have is refused with one clear message."""
    tools = Tools(bench)
    said = tools.at(tool, *arguments, succeeds=False)
    if not re.search("UnsupportedVersion|SecurityDisabled|does not support|not support", said):
        raise Failure(f"it said {innermost(said.splitlines())!r}")


def dump_log(bench: Bench) -> None:
    """Its own reader over our partition's log and indexes: every batch valid, the indexes in agreement."""
    # Indexes are written when a segment is full: the first of several is looked at.
    tools, topic = Tools(bench), bench.topic(1, segment_bytes=str(2**20), index_interval_bytes="500")
    for first in range(0, 60_000, 2000):
        bench.send(topic, [record._replace(headers=(("n", "header"),)) for record in some_records(2000, first=first)])
    segment = _segment(bench, f"{topic}-0")
    reader = "kafka.tools.DumpLogSegments"
    said = tools.run(reader, "--files", str(segment), "--deep-iteration", "--print-data-log", expected=("isvalid: true", "payload: v99$"))
    expect("isvalid: false" in said, False, "an invalid batch")
    for suffix in (".index", ".timeindex"):
        index = segment.with_suffix(suffix)
        expect(index.exists() and index.stat().st_size > 0, True, f"{suffix} has entries")
        said = tools.run(reader, "--files", str(index), "--verify-index-only")
        expect(re.findall("(?i)mismatch.*|out of order.*", said), [], suffix)
        tools.run(reader, "--files", str(index), "--index-sanity-check", expected=("passed sanity check",))


def dump_metadata(bench: Bench) -> None:
    tools, segment = Tools(bench), _segment(bench, "__cluster_metadata-0")
    kinds = tuple(f'"type":"{kind}"' for kind in ("TOPIC_RECORD", "PARTITION_RECORD", "REGISTER_BROKER_RECORD"))
    said = tools.run("kafka.tools.DumpLogSegments", "--files", str(segment), "--cluster-metadata-decoder", expected=kinds)
    expect("Could not decode" in said or "isvalid: false" in said, False, "an unreadable record")


def dump_offsets(bench: Bench) -> None:
    tools, found = Tools(bench), list[Any]()
    for directory in Path(bench.cluster.directory).glob("node-1/*/__consumer_offsets-*"):
        said = tools.run("kafka.tools.DumpLogSegments", "--files", str(min(directory.glob("*.log"))), "--offsets-decoder")
        found += re.findall(r"offset_commit|group_metadata|payload: \{", said)
        expect("Could not decode" in said, False, "an unreadable record")
    expect(bool(found), True, "records of groups")


def _segment(bench: Bench, partition: str) -> Path:
    """The first one on node 1, which all nodes' replicas equal."""
    return min(Path(bench.cluster.directory).glob(f"node-1/*/{partition}/*.log"))


CONFIGS: Final = "kafka.admin.ConfigCommand"
GROUPS: Final = "consumer.group.ConsumerGroupCommand"
REASSIGN: Final = "reassign.ReassignPartitionsCommand"
JAVA_TOOLS: Final[dict[str, Callable[[Bench], None]]] = {
    "kafka-topics: create, list, alter, describe, delete": topics,
    "kafka-configs: topics": topic_configs,
    "kafka-configs: cleanup.policy": compaction,
    "kafka-configs: brokers, one and all": broker_configs,
    "kafka-configs: groups": group_configs,
    "kafka-consumer-groups: list, describe, delete-offsets, delete": group_views,
    "kafka-consumer-groups: the same of a KIP-848 group": lambda bench: group_views(bench, "consumer"),
    "kafka-consumer-groups: all resets": resets,
    "kafka-metadata-quorum: status, replication": metadata_quorum,
    "kafka-leader-election: preferred, unclean": leader_election,
    "kafka-cluster, kafka-broker-api-versions, kafka-features": cluster,
    "kafka-features: upgrade, downgrade": features,
    "kafka-producer-perf-test, kafka-consumer-perf-test": perf,
    "kafka-verifiable-producer, -consumer": verifiable,
    "kafka-delete-records, kafka-get-offsets": delete_records,
    "kafka-log-dirs": log_dirs,
    "kafka-reassign-partitions: generate, execute, list, verify, cancel": reassign,
    "kafka-dump-log on our segments and indexes": dump_log,
    "kafka-dump-log --cluster-metadata-decoder": dump_metadata,
    "kafka-dump-log --offsets-decoder": dump_offsets,
    "kafka-acls: refused, for there are none": lambda bench: not_there(bench, "AclCommand", "--list"),
    "kafka-transactions list: refused, for there are none": lambda bench: not_there(bench, "TransactionsCommand", "list"),
}
