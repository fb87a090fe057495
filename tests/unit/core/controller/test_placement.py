"""Where new replicas go: over racks, over brokers, by load, and where the leaders land when a broker fails."""

from __future__ import annotations

import random
import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftlog.core.controller.placement import place
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import InvalidReplicationFactor


def cluster(racks: dict[int, str | None], *, fenced: tuple[int, ...] = (), leaving: tuple[int, ...] = ()) -> MetadataImage:
    records = [
        r.RegisterBrokerRecord(
            broker_id=node_id,
            incarnation_id=uuid.UUID(int=node_id),
            broker_epoch=node_id,
            end_points=(),
            features=(),
            rack=rack,
            fenced=node_id in fenced,
            in_controlled_shutdown=node_id in leaving,
            log_dirs=(uuid.UUID(int=1000 + node_id),),
        )
        for node_id, rack in racks.items()
    ]
    image, _ = MetadataImage().apply_batch(records, offset=len(records), epoch=1)
    return image


def with_topic(image: MetadataImage, placements: list[tuple[int, ...]]) -> MetadataImage:
    topic_id = uuid.UUID(int=5000 + image.offset)
    records: list[r.MetadataRecord] = [r.TopicRecord(name=f"t{image.offset}", topic_id=topic_id)]
    for partition_id, replicas in enumerate(placements):
        records.append(
            r.PartitionRecord(
                partition_id=partition_id,
                topic_id=topic_id,
                replicas=replicas,
                isr=replicas,
                leader=replicas[0],
                leader_epoch=0,
                partition_epoch=0,
                directories=(uuid.UUID(int=1),) * len(replicas),
            )
        )
    return image.apply_batch(records, offset=image.offset + len(records), epoch=1)[0]


@given(
    st.dictionaries(st.integers(0, 30), st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=9),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 2**32),
    st.data(),
)
def test_placements_are_sound(racks: dict[int, str | None], factor: int, partitions: int, seed: int, data: st.DataObject) -> None:
    fenced = tuple(data.draw(st.sets(st.sampled_from(sorted(racks)))))
    image = cluster(racks, fenced=fenced)
    if factor > len(racks) or len(fenced) == len(racks):
        with pytest.raises(InvalidReplicationFactor):
            place(image, partitions=partitions, replication_factor=factor, chance=random.Random(seed))
        return
    placements = place(image, partitions=partitions, replication_factor=factor, chance=random.Random(seed))
    assert len(placements) == partitions
    for replicas in placements:
        assert len(replicas) == len(set(replicas)) == factor
        assert replicas[0] not in fenced
        spread = {racks[node_id] for node_id in replicas}
        assert len(spread) == min(factor, len(set(racks.values()))), "every rack that can have a replica has one"


@pytest.mark.parametrize("seed", range(20))
def test_leaders_and_replicas_are_even(seed: int) -> None:
    chance = random.Random(seed)
    image = cluster({1: "a", 2: "a", 3: "b", 4: "b", 5: "c", 6: "c"})
    placements = place(image, partitions=60, replication_factor=3, chance=chance)
    assert set(Counter(replicas[0] for replicas in placements).values()) == {10}
    assert set(Counter(node_id for replicas in placements for node_id in replicas).values()) == {30}


@pytest.mark.parametrize("seed", range(20))
def test_the_leaders_of_a_dead_broker_spread(seed: int) -> None:
    image = cluster(dict.fromkeys((1, 2, 3)))
    placements = place(image, partitions=60, replication_factor=3, chance=random.Random(seed))
    for dead in (1, 2, 3):
        heirs = Counter(replicas[1] for replicas in placements if replicas[0] == dead)
        assert set(heirs.values()) == {10}, heirs


def test_one_partition_at_a_time_goes_to_the_least_loaded() -> None:
    image = cluster({1: "a", 2: "b", 3: "c"})
    chance = random.Random(3)
    for _ in range(9):
        image = with_topic(image, place(image, partitions=1, replication_factor=2, chance=chance))
    assert {node_id: image.load(node_id).preferred for node_id in (1, 2, 3)} == {1: 3, 2: 3, 3: 3}
    replicas = [image.load(node_id).replicas for node_id in (1, 2, 3)]
    assert max(replicas) - min(replicas) <= 2, replicas


def test_a_new_broker_is_filled_first() -> None:
    image = with_topic(cluster(dict.fromkeys((1, 2, 3, 4))), [(1, 2), (2, 3), (3, 1)] * 4)
    placements = place(image, partitions=4, replication_factor=1, chance=random.Random(0))
    assert placements[0] == (4,)


def test_brokers_that_leave_get_nothing() -> None:
    image = cluster(dict.fromkeys((1, 2, 3)), leaving=(2,))
    placements = place(image, partitions=6, replication_factor=2, chance=random.Random(0))
    assert {node_id for replicas in placements for node_id in replicas} == {1, 3}
    with pytest.raises(InvalidReplicationFactor, match="only 2 broker"):
        place(image, partitions=1, replication_factor=3, chance=random.Random(0))


def test_all_fenced() -> None:
    with pytest.raises(InvalidReplicationFactor, match="All brokers are currently fenced"):
        place(cluster({1: None}, fenced=(1,)), partitions=1, replication_factor=1, chance=random.Random(0))
