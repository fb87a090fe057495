"""Deciders on their own: what the transcripts of the whole controller do not reach."""

from __future__ import annotations

import random
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from raftlog.config import Settings
from raftlog.core.controller.brokers import decide_fence, decide_heartbeat, decide_register, decide_register_controller
from raftlog.core.controller.elections import Election, change_partition, decide_elect_leaders, decide_rebalance
from raftlog.core.controller.partitions import decide_alter_partition
from raftlog.core.controller.producers import decide_allocate_producer_ids
from raftlog.core.controller.sessions import Sessions
from raftlog.core.controller.topics import check_topic_name, decide_create_topics, decide_delete_topics, new_uuid
from raftlog.core.metadata import records as r
from raftlog.core.metadata.features import bootstrap_records
from raftlog.core.metadata.image import MetadataImage, Partition
from raftlog.errors import ApiError, ErrorCode, InvalidRegistration, InvalidRequest, InvalidTopic, UnsupportedVersion

SETTINGS = Settings(node_id=1, controller_quorum_voters=("1@h:1",))
NO_ID = uuid.UUID(int=0)


def fields(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def applied(image: MetadataImage, records: Any) -> MetadataImage:
    records = list(records)
    return image.apply_batch(records, offset=image.offset + len(records), epoch=1)[0]


def directory(node_id: int, index: int = 0) -> uuid.UUID:
    return uuid.UUID(int=1000 + 10 * node_id + index)


def registration(node_id: int, **changes: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "broker_id": node_id,
        "cluster_id": "c",
        "incarnation_id": uuid.UUID(int=100 + node_id),
        "listeners": (),
        "features": (
            fields(name="metadata.version", min_supported_version=7, max_supported_version=25),
            fields(name="group.version", min_supported_version=0, max_supported_version=1),
        ),
        "rack": None,
        "is_migrating_zk_broker": False,
        "log_dirs": (directory(node_id),),
    }
    return fields(**{**values, **changes})


def register(image: MetadataImage, request: Any, *, alive: bool = False) -> Any:
    return decide_register(image, request, settings=SETTINGS, cluster_id="c", next_offset=image.offset, session_alive=alive)


def heartbeat(image: MetadataImage, node_id: int, **changes: Any) -> Any:
    values = {
        "broker_id": node_id,
        "broker_epoch": image.brokers[node_id].epoch,
        "current_metadata_offset": image.offset,
        "want_fence": False,
        "want_shut_down": False,
        "offline_log_dirs": (),
    }
    return decide_heartbeat(image, fields(**{**values, **changes}), settings=SETTINGS, registration_offset=0)


def partition(replicas: tuple[int, ...], **changes: Any) -> Partition:
    values: dict[str, Any] = {
        "replicas": replicas,
        "isr": replicas,
        "leader": replicas[0],
        "leader_epoch": 0,
        "partition_epoch": 0,
        "directories": tuple(directory(node_id) for node_id in replicas),
    }
    return Partition(**{**values, **changes})


@pytest.fixture
def image() -> MetadataImage:
    """Brokers 1 to 3, unfenced; topic `t` with one partition for each of them to lead."""
    image = applied(MetadataImage(), bootstrap_records())
    for node_id in (1, 2, 3):
        image = applied(image, register(image, registration(node_id)).records)
        image = applied(image, heartbeat(image, node_id).records)
    assignments = tuple(fields(partition_index=index, broker_ids=ids) for index, ids in enumerate([(1, 2, 3), (2, 3, 1), (3, 1, 2)]))
    return applied(image, create(image, "t", assignments=assignments).records)


def create(image: MetadataImage, name: str, *, partitions: int = -1, factor: int = -1, assignments: Any = (), configs: Any = ()) -> Any:
    asked = fields(name=name, num_partitions=partitions, replication_factor=factor, assignments=assignments, configs=configs)
    request = fields(topics=(asked,), timeout=1, validate_only=False)
    return decide_create_topics(image, request, settings=SETTINGS, chance=random.Random(1))


class TestElections:
    def change(self, before: Partition, up: set[int], election: Election = Election.ONLINE, **wanted: Any) -> Any:
        return change_partition(before, topic_id=NO_ID, partition_id=0, acceptable=up.__contains__, election=election, **wanted)

    def test_a_leader_that_can_stay_stays(self) -> None:
        assert self.change(partition((1, 2), leader=2), {1, 2}) is None

    def test_preferred(self) -> None:
        assert self.change(partition((1, 2), leader=2), {1, 2}, Election.PREFERRED).leader == 1
        assert self.change(partition((1, 2), leader=2, isr=(2,)), {1, 2}, Election.PREFERRED) is None

    def test_the_first_live_member_of_the_isr_in_replica_order(self) -> None:
        assert self.change(partition((1, 2, 3), isr=(3, 2)), {2, 3}, isr=(3, 2)).leader == 2

    def test_the_last_member_stays_in_the_isr(self) -> None:
        change = self.change(partition((1, 2), isr=(1,)), {2}, isr=())
        assert change.leader == -1 and change.isr is None
        assert self.change(partition((1, 2), isr=(1,), leader=-1), {2}, isr=()) is None

    def test_unclean(self) -> None:
        change = self.change(partition((1, 2), isr=(1,)), {2}, Election.UNCLEAN, isr=())
        assert (change.leader, change.isr, change.leader_recovery_state) == (2, (2,), 1)
        still = self.change(partition((1, 2), isr=(1,), recovery_state=1), {2}, Election.UNCLEAN, isr=())
        assert still.leader_recovery_state == -1

    def test_recovered(self) -> None:
        assert self.change(partition((1, 2), isr=(1,), recovery_state=1), {1}, recovery_state=0).leader_recovery_state == 0

    def test_an_elr_of_another_release_is_cleared_by_any_change(self) -> None:
        change = self.change(partition((1, 2), elr=(2,), last_known_elr=(2,)), {2})
        assert change.eligible_leader_replicas == () and change.last_known_elr == ()

    def test_rebalance_respects_the_percentage(self, image: MetadataImage) -> None:
        moved = applied(image, [r.PartitionChangeRecord(partition_id=0, topic_id=image.topics["t"].topic_id, leader=2)])
        assert decide_rebalance(image, imbalance_percentage_max=0).records == []
        back = decide_rebalance(moved, imbalance_percentage_max=10).records
        assert [(record.partition_id, record.leader) for record in back] == [(0, 1)]
        assert decide_rebalance(moved, imbalance_percentage_max=100).records == []

    def test_elect_leaders_names_its_errors(self, image: MetadataImage) -> None:
        asked = (fields(topic="t", partitions=(0, 9)), fields(topic="no", partitions=(0,)))
        reply = decide_elect_leaders(image, fields(election_type=0, topic_partitions=asked)).reply
        codes = [part["error_code"] for item in reply["replica_election_results"] for part in item["partition_result"]]
        assert codes == [ErrorCode.election_not_needed, ErrorCode.unknown_topic_or_partition, ErrorCode.unknown_topic_or_partition]
        down = applied(image, decide_fence(image, 1, settings=SETTINGS).records)
        reply = decide_elect_leaders(down, fields(election_type=0, topic_partitions=(fields(topic="t", partitions=(0,)),))).reply
        assert reply["replica_election_results"][0]["partition_result"][0]["error_code"] == ErrorCode.preferred_leader_not_available
        with pytest.raises(InvalidRequest):
            decide_elect_leaders(image, fields(election_type=2, topic_partitions=None))


class TestBrokers:
    def test_features_must_cover_what_is_finalized(self, image: MetadataImage) -> None:
        with pytest.raises(UnsupportedVersion, match=r"finalized version 1 of group\.version"):
            register(image, registration(4, features=registration(4).features[:1]))
        with pytest.raises(UnsupportedVersion, match=r"metadata\.version"):
            register(image, registration(4, features=()))
        new = (*registration(4).features, fields(name="new", min_supported_version=1, max_supported_version=2))
        with pytest.raises(UnsupportedVersion, match="version 0 of new"):
            register(image, registration(4, features=new))
        kraft = (*registration(4).features, fields(name="kraft.version", min_supported_version=0, max_supported_version=1))
        assert len(register(image, registration(4, features=kraft)).records) == 1

    def test_directories_of_another_broker(self, image: MetadataImage) -> None:
        with pytest.raises(InvalidRegistration, match="Broker 1 is already registered"):
            register(image, registration(4, log_dirs=(directory(1),)))
        with pytest.raises(InvalidRegistration, match="Reserved"):
            register(image, registration(4, log_dirs=(uuid.UUID(int=5),)))

    def test_a_new_incarnation_leaves_the_isrs_of_the_old_one(self, image: MetadataImage) -> None:
        decision = register(image, registration(2, incarnation_id=uuid.UUID(int=999)))
        after = applied(image, decision.records)
        assert all(2 not in each.isr and each.leader != 2 for each in after.topics["t"].partitions.values())
        assert after.brokers[2].fenced and after.brokers[2].epoch == image.offset == decision.reply["broker_epoch"]

    def test_the_epoch_grows_even_if_the_offset_did_not(self, image: MetadataImage) -> None:
        request = registration(2, incarnation_id=uuid.UUID(int=999))
        decision = decide_register(image, request, settings=SETTINGS, cluster_id="c", next_offset=0, session_alive=False)
        assert decision.reply["broker_epoch"] == image.brokers[2].epoch + 1

    def test_an_offline_directory_takes_its_replicas_offline(self, image: MetadataImage) -> None:
        four = applied(image, register(image, registration(4, log_dirs=(directory(4), directory(4, 1)))).records)
        four = applied(four, heartbeat(four, 4).records)
        four = applied(four, create(four, "u", assignments=(fields(partition_index=0, broker_ids=(4, 1)),)).records)
        topic_id = four.topics["u"].topic_id
        assert four.topics["u"].partitions[0].directories == (uuid.UUID(int=1), directory(1))
        where = (directory(4, 1), directory(1))
        four = applied(four, [r.PartitionChangeRecord(partition_id=0, topic_id=topic_id, directories=where)])
        decision = heartbeat(four, 4, offline_log_dirs=(directory(4, 1),))
        after = applied(four, decision.records)
        assert after.brokers[4].directories == (directory(4),) and not after.brokers[4].fenced
        assert after.topics["u"].partitions[0].leader == 1 and after.topics["u"].partitions[0].isr == (1,)
        assert heartbeat(after, 4, offline_log_dirs=(directory(4, 1),)).records == []

    def test_fencing_twice_is_nothing(self, image: MetadataImage) -> None:
        down = applied(image, decide_fence(image, 1, settings=SETTINGS).records)
        assert not decide_fence(down, 1, settings=SETTINGS).records and not decide_fence(down, 77, settings=SETTINGS).records

    def test_controllers_register(self, image: MetadataImage) -> None:
        listener = fields(name="CONTROLLER", host="h", port=9093, security_protocol=0)
        feature = fields(name="metadata.version", min_supported_version=7, max_supported_version=25)
        request = fields(controller_id=9, incarnation_id=NO_ID, zk_migration_ready=False, listeners=(listener,), features=(feature,))
        after = applied(image, decide_register_controller(image, request).records)
        assert after.controllers[9].endpoints["CONTROLLER"].port == 9093

    def test_sessions(self) -> None:
        sessions = Sessions(timeout_ms=100)
        sessions.restart([(1, 5)], now_ms=0)
        assert sessions.is_alive(1, now_ms=99) and not sessions.is_held(1, now_ms=99), "nothing was heard of it yet"
        assert sessions.expired([1, 2], now_ms=99) == [2] and sessions.expired([1], now_ms=100) == [1]
        session = sessions.touch(1, 5, now_ms=50)
        assert sessions.is_held(1, now_ms=149) and not sessions.is_held(1, now_ms=150)
        session.gone = True
        assert sessions.is_alive(1, now_ms=60) and not sessions.is_held(1, now_ms=60)
        assert sessions.touch(1, 6, now_ms=70) is not session


class TestAlterPartition:
    def test_version_2_names_members_without_epochs(self, image: MetadataImage) -> None:
        topic = image.topics["t"]
        asked = fields(partition_index=0, leader_epoch=0, new_isr=(1, 2), new_isr_with_epochs=(), leader_recovery_state=0, partition_epoch=0)
        unknown = fields(topic_id=uuid.UUID(int=9), partitions=(asked,))
        missing = fields(**{**vars(asked), "partition_index": 9})
        request = fields(
            broker_id=1,
            broker_epoch=image.brokers[1].epoch,
            topics=(fields(topic_id=topic.topic_id, partitions=(asked, missing)), unknown),
        )
        reply = decide_alter_partition(image, request, settings=SETTINGS).reply
        codes = [part["error_code"] for item in reply["topics"] for part in item["partitions"]]
        assert codes == [ErrorCode.none, ErrorCode.unknown_topic_or_partition, ErrorCode.unknown_topic_id]
        assert reply["topics"][0]["partitions"][0]["isr"] == (1, 2)

    def test_a_stale_broker_epoch_refuses_the_request(self, image: MetadataImage) -> None:
        for node_id, epoch in ((1, 0), (77, 0)):
            with pytest.raises(ApiError) as refused:
                decide_alter_partition(image, fields(broker_id=node_id, broker_epoch=epoch, topics=()), settings=SETTINGS)
            assert refused.value.code is ErrorCode.stale_broker_epoch

    def test_a_member_of_another_epoch_is_ineligible(self, image: MetadataImage) -> None:
        members = (fields(broker_id=1, broker_epoch=-1), fields(broker_id=2, broker_epoch=0))
        asked = fields(partition_index=0, leader_epoch=0, new_isr=(), new_isr_with_epochs=members, leader_recovery_state=0, partition_epoch=0)
        topics = (fields(topic_id=image.topics["t"].topic_id, partitions=(asked,)),)
        request = fields(broker_id=1, broker_epoch=image.brokers[1].epoch, topics=topics)
        reply = decide_alter_partition(image, request, settings=SETTINGS).reply
        assert reply["topics"][0]["partitions"][0]["error_code"] is ErrorCode.ineligible_replica


class TestTopics:
    @pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * 249, "...", "__x"])
    def test_legal_names(self, name: str) -> None:
        check_topic_name(name)

    @pytest.mark.parametrize("name", ["", ".", "..", "x" * 250, "a b", "a/b", "ä", "a\n", "a\0"])
    def test_illegal_names(self, name: str) -> None:
        with pytest.raises(InvalidTopic):
            check_topic_name(name)

    def test_the_records_of_a_topic(self, image: MetadataImage) -> None:
        decision = create(image, "new", partitions=2, factor=2, configs=(fields(name="retention.ms", value="5"),))
        kinds = [type(record).__name__ for record in decision.records]
        assert kinds == ["TopicRecord", "ConfigRecord", "PartitionRecord", "PartitionRecord"]
        result = decision.reply["topics"][0]
        assert (result["num_partitions"], result["replication_factor"]) == (2, 2)
        assert {entry["name"]: entry["config_source"] for entry in result["configs"]}["retention.ms"] == 1

    def test_a_null_config(self, image: MetadataImage) -> None:
        result = create(image, "new", partitions=1, factor=1, configs=(fields(name="retention.ms", value=None),)).reply["topics"][0]
        assert result["error_code"] is ErrorCode.invalid_config and "Null value not supported" in result["error_message"]

    def test_too_many_partitions(self, image: MetadataImage) -> None:
        assert create(image, "new", partitions=10_001, factor=1).reply["topics"][0]["error_code"] is ErrorCode.policy_violation

    def test_a_fenced_replica_is_not_in_the_first_isr(self, image: MetadataImage) -> None:
        down = applied(image, decide_fence(image, 1, settings=SETTINGS).records)
        after = applied(down, create(down, "new", assignments=(fields(partition_index=0, broker_ids=(1, 2)),)).records)
        assert after.partition(("new", 0)).isr == (2,) and after.partition(("new", 0)).leader == 2
        lone = create(down, "lone", assignments=(fields(partition_index=0, broker_ids=(1,)),)).reply["topics"][0]
        assert lone["error_code"] is ErrorCode.invalid_replica_assignment

    def test_collisions_with_many_separators(self, image: MetadataImage) -> None:
        long = ".".join("a" * 12)
        after = applied(image, create(image, long, partitions=1, factor=1).records)
        result = create(after, long.replace(".", "_"), partitions=1, factor=1).reply["topics"][0]
        assert result["error_code"] is ErrorCode.invalid_topic_exception

    def test_delete_by_id_and_by_name(self, image: MetadataImage) -> None:
        topic_id = image.topics["t"].topic_id

        def codes(*topics: tuple[str | None, uuid.UUID]) -> list[ErrorCode]:
            request = fields(topics=tuple(fields(name=name, topic_id=each) for name, each in topics), topic_names=())
            reply = decide_delete_topics(image, request, settings=SETTINGS).reply
            return [item["error_code"] for item in reply["responses"]]

        assert codes((None, topic_id)) == [ErrorCode.none]
        assert codes(("t", NO_ID)) == [ErrorCode.none]
        assert codes(("t", NO_ID), (None, topic_id)) == [ErrorCode.invalid_request], "by name and by id: once refused, and it stays"
        assert codes((None, uuid.UUID(int=9)), (None, NO_ID), ("t", topic_id)) == [
            ErrorCode.unknown_topic_id,
            ErrorCode.invalid_request,
            ErrorCode.invalid_request,
        ]

    def test_deletion_can_be_disabled(self, image: MetadataImage) -> None:
        settings = Settings(node_id=1, controller_quorum_voters=("1@h:1",), delete_topic_enable=False)
        with pytest.raises(ApiError) as refused:
            decide_delete_topics(image, fields(topics=(), topic_names=("t",)), settings=settings)
        assert refused.value.code is ErrorCode.topic_deletion_disabled

    def test_ids_are_no_options_of_command_lines(self) -> None:
        class Chance:
            def __init__(self) -> None:
                self.values = [62 << 122 | 1 << 64, 5 << 122 | 1 << 64]

            def random(self) -> float:
                return 0.0

            def getrandbits(self, k: int, /) -> int:
                return self.values.pop(0)

        assert new_uuid(Chance()).int >> 122 == 5


def test_producer_ids_run_out(image: MetadataImage) -> None:
    request = fields(broker_id=1, broker_epoch=image.brokers[1].epoch)
    spent = applied(image, [r.ProducerIdsRecord(broker_id=1, broker_epoch=1, next_producer_id=2**63 - 500)])
    with pytest.raises(ApiError) as refused:
        decide_allocate_producer_ids(spent, request)
    assert refused.value.code is ErrorCode.unknown_server_error
