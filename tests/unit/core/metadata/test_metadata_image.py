"""The image: what each record changes, what a batch's difference says, and that nothing of an older image changes with it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftlog.core.metadata import records as r
from raftlog.core.metadata.features import bootstrap_records
from raftlog.core.metadata.image import BrokerEndpoint, FeatureRange, MetadataDelta, MetadataImage, difference
from raftlog.core.metadata.persistent import PersistentMap
from raftlog.core.metadata.records import MetadataRecordError

T = uuid.UUID(int=1000)
U = uuid.UUID(int=2000)
DIRECTORY = uuid.UUID(int=500)


def after(image: MetadataImage, *records: r.MetadataRecord) -> tuple[MetadataImage, MetadataDelta]:
    return image.apply_batch(records, offset=image.offset + len(records), epoch=1)


def partition(topic_id: uuid.UUID = T, partition_id: int = 0, **changes: Any) -> r.PartitionRecord:
    values: dict[str, Any] = {
        "partition_id": partition_id,
        "topic_id": topic_id,
        "replicas": (1, 2, 3),
        "isr": (1, 2, 3),
        "leader": 1,
        "leader_epoch": 0,
        "partition_epoch": 0,
        "directories": (DIRECTORY,) * 3,
    }
    return r.PartitionRecord(**{**values, **changes})


def broker(node_id: int = 1, **changes: Any) -> r.RegisterBrokerRecord:
    values: dict[str, Any] = {
        "broker_id": node_id,
        "incarnation_id": uuid.UUID(int=7),
        "broker_epoch": 5,
        "end_points": (r.RecordEndpoint(name="P", host="h", port=9, security_protocol=0),),
        "features": (r.RecordFeature(name="f", min_supported_version=0, max_supported_version=2),),
        "rack": "a",
        "log_dirs": (DIRECTORY,),
    }
    return r.RegisterBrokerRecord(**{**values, **changes})


@pytest.fixture
def image() -> MetadataImage:
    """A topic `t` with two partitions, and broker 1."""
    full, _ = after(MetadataImage(), *bootstrap_records(), broker(), r.TopicRecord(name="t", topic_id=T), partition(), partition(partition_id=1))
    return full


def test_topics_and_partitions(image: MetadataImage) -> None:
    assert image.topics["t"].topic_id == T and image.topic_names[T] == "t"
    assert image.topic_by_id(T) is image.topics["t"] and image.topic_by_id(U) is None
    assert image.partition(("t", 1)).replicas == (1, 2, 3)
    assert image.partition(("t", 2)) is None and image.partition(("no", 0)) is None
    assert tuple(image.load(1)) == (2, 2, 2) and tuple(image.load(3)) == (0, 0, 2) and tuple(image.load(9)) == (0, 0, 0)


def test_a_change_adds_one_to_the_partition_epoch_and_a_leader_to_the_leader_epoch(image: MetadataImage) -> None:
    shrunk, delta = after(image, r.PartitionChangeRecord(partition_id=0, topic_id=T, isr=(1, 2)))
    now = shrunk.partition(("t", 0))
    assert (now.isr, now.leader_epoch, now.partition_epoch) == ((1, 2), 0, 1)
    assert delta.changed_topics == {"t"} and delta.changed_partitions == {"t": {0}}
    led, _ = after(
        shrunk, r.PartitionChangeRecord(partition_id=0, topic_id=T, leader=2), r.PartitionChangeRecord(partition_id=0, topic_id=T, leader=2)
    )
    now = led.partition(("t", 0))
    assert (now.leader, now.leader_epoch, now.partition_epoch) == (2, 2, 3)
    assert tuple(led.load(1)) == (1, 2, 2) and tuple(led.load(2)) == (1, 0, 2)
    # The older images are what they were.
    assert image.partition(("t", 0)).isr == (1, 2, 3) and shrunk.partition(("t", 0)).leader == 1
    assert led.topics["t"].partitions[1] is image.topics["t"].partitions[1]


def test_a_topic_deleted_and_created_anew(image: MetadataImage) -> None:
    image, _ = after(image, r.ConfigRecord(resource_type=2, resource_name="t", name="retention.ms", value="1"))
    new, delta = after(image, r.RemoveTopicRecord(topic_id=T), r.TopicRecord(name="t", topic_id=U), partition(U))
    assert new.topics["t"].topic_id == U and list(new.topics["t"].partitions) == [0]
    assert dict(new.topic_names) == {U: "t"} and not new.topic_configs("t")
    assert delta.deleted_topics == {T: "t"} and delta.changed_topics == {"t"} and delta.changed_configs == {(2, "t")}
    gone, delta = after(new, r.RemoveTopicRecord(topic_id=U))
    assert not gone.topics and not gone.loads and delta.deleted_topics == {U: "t"} and not delta.changed_topics


def test_brokers(image: MetadataImage) -> None:
    one = image.brokers[1]
    assert one.endpoints == {"P": BrokerEndpoint("h", 9, 0)} and one.features == {"f": FeatureRange(0, 2)}
    assert one.fenced and not one.active and one.rack == "a" and one.directories == (DIRECTORY,)
    unfenced, delta = after(image, r.BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=5, fenced=-1))
    assert unfenced.brokers[1].active and delta.changed_brokers == {1}
    leaving, _ = after(unfenced, r.BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=5, in_controlled_shutdown=1))
    assert not leaving.brokers[1].fenced and not leaving.brokers[1].active
    old_form, _ = after(leaving, r.FenceBrokerRecord(id=1, epoch=5))
    assert old_form.brokers[1].fenced
    gone, delta = after(old_form, r.UnregisterBrokerRecord(broker_id=1, broker_epoch=5))
    assert not gone.brokers and delta.changed_brokers == {1}


def test_configs_of_all_brokers_and_of_one() -> None:
    def config(name: str, value: str | None, resource: str) -> r.ConfigRecord:
        return r.ConfigRecord(resource_type=4, resource_name=resource, name=name, value=value)

    image, _ = after(MetadataImage(), config("a", "1", ""), config("b", "1", ""), config("b", "2", "7"))
    assert image.broker_configs(7) == {"a": "1", "b": "2"} and image.broker_configs(8) == {"a": "1", "b": "1"}
    image, _ = after(image, config("b", None, "7"))
    assert image.broker_configs(7) == {"a": "1", "b": "1"} and (4, "7") not in image.configs


def test_features_and_producer_ids(image: MetadataImage) -> None:
    bootstrapped = {"metadata.version": 25, "group.version": 1}
    assert image.features == bootstrapped and image.metadata_version == 25
    image, delta = after(image, r.FeatureLevelRecord(name="a.feature", feature_level=1))
    assert delta.changed_features == {"a.feature"}
    image, _ = after(image, r.FeatureLevelRecord(name="a.feature", feature_level=0))
    assert image.features == bootstrapped
    assert image.next_producer_id == 0
    image, _ = after(image, r.ProducerIdsRecord(broker_id=1, broker_epoch=5, next_producer_id=1000))
    assert image.next_producer_id == 1000


def test_a_transaction_takes_effect_at_its_end_or_not_at_all(image: MetadataImage) -> None:
    begun, delta = after(image, r.BeginTransactionRecord(), r.TopicRecord(name="u", topic_id=U))
    assert "u" not in begun.topics and delta.empty and begun.offset == image.offset + 2
    ended, delta = after(begun, partition(U), r.EndTransactionRecord())
    assert list(ended.topics["u"].partitions) == [0] and delta.changed_topics == {"u"} and ended.transaction is None
    aborted, delta = after(begun, partition(U), r.AbortTransactionRecord(reason="no"))
    assert "u" not in aborted.topics and aborted.transaction is None and delta.empty
    # A snapshot taken in the midst of it carries what is held back.
    copy, _ = MetadataImage().apply_batch(begun.snapshot_records(), offset=begun.offset, epoch=1)
    assert copy == begun
    with pytest.raises(MetadataRecordError, match="inside another"):
        after(begun, r.BeginTransactionRecord())
    with pytest.raises(MetadataRecordError, match="never began"):
        after(image, r.EndTransactionRecord())


def test_a_record_that_contradicts_the_state_is_refused(image: MetadataImage) -> None:
    for record in (
        r.TopicRecord(name="t", topic_id=U),
        partition(U),
        r.PartitionChangeRecord(partition_id=9, topic_id=T, leader=1),
        r.RemoveTopicRecord(topic_id=U),
        r.BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=4, fenced=-1),
        r.UnregisterBrokerRecord(broker_id=2, broker_epoch=5),
        r.FeatureLevelRecord(name="metadata.version", feature_level=26),
    ):
        with pytest.raises(MetadataRecordError):
            after(image, record)


def test_records_of_later_features_are_kept(image: MetadataImage) -> None:
    acl = r.AccessControlEntryRecord(
        id=U, resource_type=2, resource_name="t", pattern_type=3, principal="User:a", host="*", operation=2, permission_type=3
    )
    scram = r.UserScramCredentialRecord(name="a", mechanism=1, salt=b"s", stored_key=b"k", server_key=b"v", iterations=4096)
    token = r.DelegationTokenRecord(
        owner="o", requester="q", renewers=("n",), issue_timestamp=1, max_timestamp=2, expiration_timestamp=3, token_id="i"
    )
    user = (r.QuotaEntity(entity_type="user", entity_name=None),)
    controller = r.RegisterControllerRecord(controller_id=3, incarnation_id=U, end_points=(), features=())
    rate = r.ClientQuotaRecord(entity=user, key="rate", value=1.5, remove=False)
    full, _ = after(image, acl, scram, token, rate, controller, r.ZkMigrationStateRecord(zk_migration_state=0), r.NoOpRecord())
    assert full.quotas == {(("user", None),): {"rate": 1.5}} and full.controllers[3].incarnation_id == U
    copy, _ = MetadataImage().apply_batch(full.snapshot_records(), offset=full.offset, epoch=1)
    assert copy == full
    bare, _ = after(
        full,
        r.RemoveAccessControlEntryRecord(id=U),
        r.RemoveUserScramCredentialRecord(name="a", mechanism=1),
        r.RemoveDelegationTokenRecord(token_id="i"),
        r.ClientQuotaRecord(entity=user, key="rate", value=0.0, remove=True),
        r.UnregisterControllerRecord(controller_id=3),
    )
    assert not (bare.acls or bare.scram or bare.tokens or bare.quotas or bare.controllers)


def test_eligible_leader_replicas_can_be_cleared(image: MetadataImage) -> None:
    image, _ = after(image, r.PartitionChangeRecord(partition_id=0, topic_id=T, eligible_leader_replicas=(3,), last_known_elr=(2,)))
    assert image.partition(("t", 0)).elr == (3,)
    cleared, delta = after(image, r.ClearElrRecord(topic_name=""))
    assert cleared.partition(("t", 0)).elr == () and delta.changed_partitions == {"t": {0}}


def test_difference_between_distant_images(image: MetadataImage) -> None:
    other, _ = after(image, r.RemoveTopicRecord(topic_id=T), r.TopicRecord(name="u", topic_id=U), partition(U))
    delta = difference(image, other)
    assert delta.changed_topics == {"u"} and delta.deleted_topics == {T: "t"} and not delta.changed_brokers
    assert difference(image, image).empty
    assert difference(MetadataImage(), image).changed_partitions == {"t": {0, 1}}


def test_a_snapshot_begins_with_the_metadata_version(image: MetadataImage) -> None:
    image, _ = after(image, r.FeatureLevelRecord(name="a.feature", feature_level=3))
    names = [record.name for record in image.snapshot_records() if isinstance(record, r.FeatureLevelRecord)]
    assert names == ["metadata.version", "a.feature", "group.version"]


@given(st.lists(st.tuples(st.dictionaries(st.text(max_size=3), st.integers(), max_size=9), st.sets(st.text(max_size=3), max_size=5)), max_size=9))
def test_persistent_map_is_a_dict_that_does_not_change(steps: list[tuple[dict[str, int], set[str]]]) -> None:
    history: list[tuple[PersistentMap[str, int], dict[str, int]]] = [(PersistentMap(), {})]
    for updates, removals in steps:
        mapping, model = history[-1]
        model = {key: value for key, value in model.items() if key not in removals} | updates
        history.append((mapping.changed(updates, removals), model))
    for mapping, model in history:
        assert dict(mapping) == model == mapping and len(mapping) == len(model) and set(mapping) == model.keys()
        assert all(key in mapping and mapping[key] == mapping.get(key) == value for key, value in model.items())
        assert "long" not in mapping and mapping.get("long", 5) == 5
