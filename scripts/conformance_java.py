"""Apache Kafka's own command-line tools, each asked for what it is there for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conformance_clients import Command, Java

if TYPE_CHECKING:
    from conformance import Bench

RECORDS: Final = 20_000


def _java(bench: Bench) -> Java:
    assert isinstance(bench.client, Java)
    return bench.client


def _ask(bench: Bench, command: Command, *expected: str) -> str:
    """Run it; its output must match each of `expected`."""
    out = bench._run(command)
    for pattern in expected:
        found = re.search(pattern, out, re.MULTILINE) is not None
        bench._expect(pattern if found else out.strip()[-200:], pattern)
    return out


def topics(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic()
    _ask(bench, java.at("TopicCommand", "--list"), f"^{topic}$")
    _ask(bench, java.at("TopicCommand", "--alter", "--topic", topic, "--partitions", "6"))
    _ask(bench, java.at("TopicCommand", "--describe", "--topic", topic), "PartitionCount: 6", r"Isr: \d,\d,\d")
    _ask(bench, java.at("TopicCommand", "--describe", "--under-replicated-partitions"))


def configs(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic()
    entity = ["--entity-type", "topics", "--entity-name", topic]
    tool = "kafka.admin.ConfigCommand"
    _ask(bench, java.at(tool, "--alter", *entity, "--add-config", "retention.ms=7200000,max.message.bytes=2000000"), "Completed updating config")
    _ask(bench, java.at(tool, "--describe", *entity), "retention.ms=7200000")
    _ask(bench, java.at(tool, "--alter", *entity, "--delete-config", "retention.ms"), "Completed updating config")
    _ask(bench, java.at(tool, "--describe", *entity, "--all"), "retention.ms=604800000")
    _ask(bench, java.at(tool, "--describe", "--entity-type", "brokers", "--entity-name", "1", "--all"), "log.retention|min.insync.replicas")


def cleanup_policy(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic()
    entity = ["--entity-type", "topics", "--entity-name", topic]
    _ask(bench, java.at("kafka.admin.ConfigCommand", "--alter", *entity, "--add-config", "cleanup.policy=delete"), "Completed updating config")


def groups(bench: Bench) -> None:
    java, topic, group = _java(bench), bench._topic(), "described"
    bench._send(topic, range(40))
    with bench._member(topic, group) as member:
        member.wait(lambda: len(member.records) >= 40, "all records")
        named = ["--group", group]
        tool = "consumer.group.ConsumerGroupCommand"
        _ask(bench, java.at(tool, "--list"), f"^{group}$")
        _ask(bench, java.at(tool, "--describe", *named), rf"^{group}\s+{topic}")
        _ask(bench, java.at(tool, "--describe", *named, "--state"), "Stable")
        _ask(bench, java.at(tool, "--describe", *named, "--members"), r"\s4\s*$")
    _ask(bench, java.at(tool, "--reset-offsets", *named, "--topic", topic, "--to-earliest", "--execute"), rf"{topic}\s+\d\s+0")
    _ask(bench, java.at(tool, "--delete-offsets", *named, "--topic", topic), "Successful")
    _ask(bench, java.at(tool, "--delete", *named), "successful")


def metadata_quorum(bench: Bench) -> None:
    java = _java(bench)
    _ask(bench, java.at("MetadataQuorumCommand", "describe", "--status"), r"LeaderId:\s+\d", r"HighWatermark:\s+\d+", r"CurrentVoters:.*1.*2.*3")
    _ask(bench, java.at("MetadataQuorumCommand", "describe", "--replication"), "Leader", "Follower")


def leader_election(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic()
    _ask(bench, java.at("LeaderElectionCommand", "--election-type", "preferred", "--topic", topic, "--partition", "0"))
    _ask(bench, java.at("LeaderElectionCommand", "--election-type", "preferred", "--all-topic-partitions"))


def cluster(bench: Bench) -> None:
    java = _java(bench)
    _ask(bench, java.tool("ClusterTool", "cluster-id", "--bootstrap-server", java.bootstrap_servers), "Cluster ID")
    _ask(bench, java.at("BrokerApiVersionsCommand"), r"Produce\(0\)")
    _ask(bench, java.at("FeatureCommand", "describe"), "metadata.version")


def perf(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic()
    size = ["--num-records", str(RECORDS), "--record-size", "100", "--throughput", "-1"]
    properties = ["--producer-props", f"bootstrap.servers={java.bootstrap_servers}"]
    _ask(bench, java.tool("ProducerPerformance", "--topic", topic, *size, *properties), rf"^{RECORDS} records sent")
    _ask(bench, java.at("ConsumerPerformance", "--topic", topic, "--messages", str(RECORDS), "--timeout", "30000"), rf", {RECORDS}, ")


def verifiable(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic()
    _ask(bench, java.at("VerifiableProducer", "--topic", topic, "--max-messages", "500", "--acks", "-1"), '"sent":500.*"acked":500|"acked":500')
    options = ["--group-id", f"verify-{topic}", "--max-messages", "500", "--reset-policy", "earliest"]
    _ask(bench, java.at("VerifiableConsumer", "--topic", topic, *options), "records_consumed", "offsets_committed", "shutdown_complete")


def delete_records(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic(1)
    bench._send(topic, range(20))
    path = bench.cluster.directory / "delete-records.json"
    path.write_text(f'{{"version":1,"partitions":[{{"topic":"{topic}","partition":0,"offset":5}}]}}', encoding="utf-8")
    _ask(bench, java.at("DeleteRecordsCommand", "--offset-json-file", str(path)), "low_watermark: 5")
    _ask(bench, java.at("GetOffsetShell", "--topic", topic, "--time", "-2"), f"{topic}:0:5")


def log_dirs(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic(1)
    _ask(bench, java.at("LogDirsCommand", "--describe", "--topic-list", topic), f'"partition":"{topic}-0"')


def reassign(bench: Bench) -> None:
    java, topic = _java(bench), bench._topic(1)
    path = bench.cluster.directory / "reassignment.json"
    path.write_text(f'{{"version":1,"partitions":[{{"topic":"{topic}","partition":0,"replicas":[2,1]}}]}}', encoding="utf-8")
    tool = "reassign.ReassignPartitionsCommand"
    _ask(bench, java.at(tool, "--execute", "--reassignment-json-file", str(path)), "Successfully started")
    _ask(bench, java.at(tool, "--verify", "--reassignment-json-file", str(path)), "complet")


def dump_log(bench: Bench) -> None:
    """Its own reader over our partition's log and indexes: every batch valid, the indexes in agreement."""
    # Indexes are written when a segment is full: the first of several is looked at.
    java, topic = _java(bench), bench._topic(1, **{"segment.bytes": str(2**20), "index.interval.bytes": "500"})
    for start in range(0, 60_000, 2000):
        bench._send(topic, range(start, start + 2000))
    segment = _segment(bench, f"{topic}-0")
    reader = "kafka.tools.DumpLogSegments"
    out = _ask(bench, java.tool(reader, "--files", str(segment), "--deep-iteration", "--print-data-log"), "isvalid: true", "payload: v99$")
    bench._expect("isvalid: false" in out, False)
    for suffix in (".index", ".timeindex"):
        index = segment.with_suffix(suffix)
        bench._expect(index.exists() and index.stat().st_size > 0, True)
        said = bench._run(java.tool(reader, "--files", str(index), "--verify-index-only"))
        bench._expect(re.findall("(?i)mismatch.*|out of order.*", said), [])
        _ask(bench, java.tool(reader, "--files", str(index), "--index-sanity-check"), "passed sanity check")


def dump_metadata(bench: Bench) -> None:
    java = _java(bench)
    segment = _segment(bench, "__cluster_metadata-0")
    decoded = java.tool("kafka.tools.DumpLogSegments", "--files", str(segment), "--cluster-metadata-decoder")
    out = _ask(bench, decoded, '"type":"TOPIC_RECORD"', '"type":"PARTITION_RECORD"', '"type":"REGISTER_BROKER_RECORD"')
    bench._expect("Could not decode" in out or "isvalid: false" in out, False)


def dump_offsets(bench: Bench) -> None:
    java = _java(bench)
    found: list[Any] = []
    for directory in Path(bench.cluster.directory).glob("node-1/*/__consumer_offsets-*"):
        out = bench._run(java.tool("kafka.tools.DumpLogSegments", "--files", str(next(directory.glob("*.log"))), "--offsets-decoder"))
        found += re.findall(r"offset_commit|group_metadata|payload: \{", out)
        bench._expect("Could not decode" in out, False)
    bench._expect(bool(found), True)


def _segment(bench: Bench, partition: str) -> Path:
    """The first one on node 1, which all nodes' replicas equal."""
    return min(Path(bench.cluster.directory).glob(f"node-1/*/{partition}/*.log"))


JAVA_TOOLS: Final[dict[str, Callable[[Bench], None]]] = {
    "kafka-topics: list, alter, describe": topics,
    "kafka-configs: topics, brokers": configs,
    "kafka-configs: cleanup.policy=delete": cleanup_policy,
    "kafka-consumer-groups: list, describe, reset, delete": groups,
    "kafka-metadata-quorum: status, replication": metadata_quorum,
    "kafka-leader-election: preferred": leader_election,
    "kafka-cluster, kafka-broker-api-versions, kafka-features": cluster,
    "kafka-producer-perf-test, kafka-consumer-perf-test": perf,
    "kafka-verifiable-producer, -consumer": verifiable,
    "kafka-delete-records, kafka-get-offsets": delete_records,
    "kafka-log-dirs": log_dirs,
    "kafka-reassign-partitions": reassign,
    "kafka-dump-log on our segments and indexes": dump_log,
    "kafka-dump-log --cluster-metadata-decoder": dump_metadata,
    "kafka-dump-log --offsets-decoder": dump_offsets,
}
