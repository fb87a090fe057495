"""The rows of the matrix: groups of features, each with its check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from . import administering, consuming, grouping, producing
from .bench import Bench

Check = Callable[[Bench], None]

PRODUCING: Final[Mapping[str, Check]] = {
    "acks=all": producing.sends,
    "acks=1": partial(producing.sends, acks="1"),
    "acks=0": producing.without_acknowledgement,
    "idempotent": partial(producing.sends, idempotent=True),
    **{f"compressed: {codec}": partial(producing.sends, codec=codec) for codec in ("gzip", "snappy", "lz4", "zstd")},
    "to a given partition": producing.to_a_partition,
    "keys partitioned as by Java": producing.same_partition_as_java,
    "headers": producing.with_headers,
    "null and empty keys and values": producing.null_and_empty,
    "timestamps: create time": producing.create_time,
    "timestamps: log append time": producing.append_time,
    "refused: above max.message.bytes": producing.too_large,
    "refused: too few replicas in sync": producing.too_few_replicas,
    "kill -9 of the leader, idempotent": producing.survives_the_leader,
}
CONSUMING: Final[Mapping[str, Check]] = {
    "from the beginning": consuming.from_the_beginning,
    "from an offset": consuming.from_an_offset,
    "offset of a timestamp": consuming.at_a_timestamp,
    "seek": consuming.seeks,
    "pause and resume": consuming.pauses,
    "long poll": consuming.polls_long,
    "batches of the codecs it knows": consuming.compressed,
    "after DeleteRecords": consuming.after_deletion,
    "from a follower in its rack": consuming.from_a_follower,
}
GROUPS: Final[Mapping[str, Check]] = {
    **{strategy: partial(grouping.with_strategy, strategy=strategy) for strategy in ("range", "roundrobin", "sticky")},
    "cooperative-sticky": grouping.cooperative,
    "two assignors side by side": grouping.mixed_strategies,
    "one group with librdkafka": grouping.with_librdkafka,
    "commit and resume": grouping.resumes,
    "commit with metadata": grouping.commits_with_metadata,
    "static membership": grouping.static_member,
    "subscription by pattern": grouping.by_pattern,
    "kill -9 of the coordinator": grouping.survives_the_coordinator,
    "consumer protocol (KIP-848)": grouping.consumer_protocol,
    "consumer protocol, pattern": partial(grouping.by_pattern, protocol="consumer"),
}
TOPICS: Final[Mapping[str, Check]] = {
    "create": administering.creates,
    "create with an assignment": administering.creates_as_assigned,
    "create, validate only": administering.only_validates,
    "create: refused with a reason": administering.refuses,
    "list and describe": administering.lists_and_describes,
    "delete": administering.deletes,
    "add partitions": administering.adds_partitions,
    "settings: describe, alter, reset": administering.topic_settings,
    "settings: replace (AlterConfigs)": administering.replaced_settings,
    "delete records": administering.deletes_records,
    "list offsets": administering.lists_offsets,
    "offset of the newest timestamp": administering.offset_of_the_newest,
}
GROUP_ADMIN: Final[Mapping[str, Check]] = {
    "list and describe": administering.groups,
    "delete": administering.deletes_a_group,
    "list offsets": administering.lists_group_offsets,
    "alter offsets": administering.alters_group_offsets,
    "delete offsets": administering.deletes_group_offsets,
}
CLUSTER: Final[Mapping[str, Check]] = {
    "describe": administering.cluster,
    "broker settings at run time": administering.broker_settings,
    "elect leaders: preferred": administering.elects_preferred,
    "elect leaders: unclean": administering.elects_unclean,
    "reassign partitions": administering.reassigns,
    "describe log dirs": administering.describes_log_dirs,
}
FEATURES: Final[Mapping[str, Mapping[str, Check]]] = {
    "producing": PRODUCING,
    "consuming": CONSUMING,
    "groups": GROUPS,
    "topics": TOPICS,
    "administering groups": GROUP_ADMIN,
    "cluster": CLUSTER,
}
