"""Random histories of a controller: whatever comes, and in whatever order it is committed, the state stays sound."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
from controller_world import Broker, World, alter_partition, create_topics, fields, topic

from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataDelta, MetadataImage, difference
from raftlog.ids import NO_NODE
from raftlog.quorum.states import CommittedBatch, Leadership
from raftlog.testing.virtual_time import run

NODES = (1, 2, 3, 4)
STEPS = 250


class Checker:
    """Watches one controller's images; knows nothing of how they are decided."""

    def __init__(self, world: World) -> None:
        self.before = world.image
        self.epochs: set[int] = set()
        world.controllers[1].subscribe(self.check)

    def check(self, image: MetadataImage, delta: MetadataDelta) -> None:
        before, self.before = self.before, image
        assert image.offset > before.offset
        for name, item in image.topics.items():
            assert image.topic_names[item.topic_id] == name
            assert sorted(item.partitions) == list(range(len(item.partitions)))
            for partition_id, partition in item.partitions.items():
                self.check_partition(image, partition, name)
                old = before.topics.get(name)
                if old is not None and old.topic_id == item.topic_id and partition_id in old.partitions:
                    self.check_step(old.partitions[partition_id], partition)
                    if partition != old.partitions[partition_id]:
                        assert partition_id in delta.changed_partitions[name]
                else:
                    assert partition_id in delta.changed_partitions[name]
                    assert partition.leader_epoch == 0 or partition.partition_epoch > 0
        self.check_delta(before, image, delta)
        self.check_loads(image)
        for node_id, broker in image.brokers.items():
            old_broker = before.brokers.get(node_id)
            if old_broker is not None and old_broker.incarnation_id != broker.incarnation_id:
                assert broker.epoch > old_broker.epoch

    @staticmethod
    def check_partition(image, partition, name) -> None:
        assert partition.isr, name
        assert set(partition.isr) <= set(partition.replicas)
        assert len(set(partition.isr)) == len(partition.isr) and len(set(partition.replicas)) == len(partition.replicas)
        assert partition.leader == NO_NODE or partition.leader in partition.isr
        assert len(partition.directories) == len(partition.replicas)
        assert set(partition.adding) <= set(partition.replicas) and set(partition.removing) <= set(partition.replicas)
        assert partition.original_replicas and partition.target_replicas
        if partition.leader != NO_NODE:
            broker = image.brokers.get(partition.leader)
            assert broker is not None and not broker.fenced
        for node_id in partition.isr:
            broker = image.brokers.get(node_id)
            assert len(partition.isr) == 1 or (broker is not None and not broker.fenced), "only the last member may be down"

    @staticmethod
    def check_step(old, new) -> None:
        assert new.leader_epoch >= old.leader_epoch and new.partition_epoch >= old.partition_epoch
        if new.leader != old.leader:
            assert new.leader_epoch > old.leader_epoch
        if new != old:
            assert new.partition_epoch > old.partition_epoch
        if not set(old.replicas) <= set(new.replicas):
            assert new.leader_epoch > old.leader_epoch, "whoever goes is told by a new leader epoch"

    @staticmethod
    def check_delta(before, image, delta) -> None:
        whole = difference(before, image)
        assert whole.changed_topics <= delta.changed_topics
        assert whole.deleted_topics.items() <= delta.deleted_topics.items()
        assert whole.changed_brokers <= delta.changed_brokers
        assert whole.changed_configs <= delta.changed_configs

    @staticmethod
    def check_loads(image) -> None:
        ongoing = {name: {p for p, partition in item.partitions.items() if partition.reassigning} for name, item in image.topics.items()}
        assert image.reassigning == {name: partitions for name, partitions in ongoing.items() if partitions}
        leading, preferred, replicas = Counter(), Counter(), Counter()
        for item in image.topics.values():
            for partition in item.partitions.values():
                leading[partition.leader] += 1
                preferred[partition.replicas[0]] += 1
                replicas.update(partition.replicas)
        del leading[NO_NODE]
        for node_id in leading.keys() | replicas.keys() | image.loads.keys():
            assert tuple(image.load(node_id)) == (leading[node_id], preferred[node_id], replicas[node_id])


class History:
    """What brokers, clients and the quorum may do, at random."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world = world
        self.chance = chance
        self.tasks: list[asyncio.Task] = []
        self.asked: dict[tuple[uuid.UUID, int], set[frozenset[int]]] = {}  # The replicas that reassignments asked for.

    def later(self, coroutine) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine))

    def broker(self) -> Broker:
        node_id = self.chance.choice(NODES)
        if node_id not in self.world.brokers:
            return self.world.process(node_id, rack=self.chance.choice(["a", "b"]))
        return self.world.brokers[node_id]

    def some_partition(self) -> tuple[str, int] | None:
        image = self.world.active.image
        names = sorted(name for name in image.topics if image.topics[name].partitions)
        if not names:
            return None
        name = self.chance.choice(names)
        return name, self.chance.choice(sorted(image.topics[name].partitions))

    async def step(self) -> None:
        actions = {
            self.restart: 1,
            self.register: 1,
            self.heartbeat: 20,
            self.disconnect: 2,
            self.create: 4,
            self.delete: 1,
            self.add_partitions: 2,
            self.alter: 12,
            self.reassign: 4,
            self.admit: 4,
            self.list_reassignments: 1,
            self.elect: 2,
            self.config: 2,
            self.wait: 6,
            self.hold: 1,
            self.release: 4,
            self.fail_over: 1,
            self.unregister: 0.2,
        }
        action = self.chance.choices(list(actions), list(actions.values()))[0]
        await action()

    async def restart(self) -> None:
        broker = self.broker()
        broker.connection.close()
        self.world.process(broker.node_id)

    async def register(self) -> None:
        self.later(self.world.register(self.broker()))

    async def heartbeat(self) -> None:
        flags = {"shut_down": self.chance.random() < 0.05, "fence": self.chance.random() < 0.05, "behind": self.chance.random() < 0.1}
        broker = self.broker()
        self.later(self.world.register(broker) if broker.epoch == -1 else self.world.heartbeat(broker, **flags))

    async def disconnect(self) -> None:
        broker = self.broker()
        broker.connection.close()
        broker.connection = type(broker.connection)()

    async def create(self) -> None:
        name = self.chance.choice("tuvw.x_y") + self.chance.choice("abc")
        asked = topic(name, partitions=self.chance.randint(1, 4), factor=self.chance.randint(1, 4))
        self.later(self.world.ask(19, create_topics(asked)))

    async def delete(self) -> None:
        found = self.some_partition()
        if found is not None:
            self.later(self.world.ask(20, fields(topic_names=(found[0],), topics=(), timeout=1)))

    async def add_partitions(self) -> None:
        found = self.some_partition()
        if found is not None:
            asked = fields(name=found[0], count=self.chance.randint(1, 6), assignments=None)
            self.later(self.world.ask(37, fields(topics=(asked,), timeout=1, validate_only=False)))

    async def alter(self) -> None:
        found = self.some_partition()
        if found is None:
            return
        partition = self.world.active.image.partition(found)
        isr = [node_id for node_id in partition.replicas if node_id == partition.leader or self.chance.random() < 0.6]
        leader = self.world.brokers.get(partition.leader)
        if leader is None or self.chance.random() < 0.05:
            leader = self.broker()
        self.later(self.world.ask(56, alter_partition(leader, self.world.active.image, *found, tuple(isr))))

    async def reassign(self) -> None:
        found = self.some_partition()
        if found is None:
            return
        replicas = None
        if self.chance.random() < 0.7:
            replicas = tuple(self.chance.sample(NODES, self.chance.randint(1, 3)))
            self.asked.setdefault((self.world.active.image.topics[found[0]].topic_id, found[1]), set()).add(frozenset(replicas))
        asked = fields(partition_index=found[1], replicas=replicas)
        request = fields(topics=(fields(name=found[0], partitions=(asked,)),), allow_replication_factor_change=True, timeout=1)
        self.later(self.world.ask(45, request))

    async def admit(self) -> None:
        """The leader of a partition that moves has all in sync that can be."""
        image = self.world.active.image
        moving = [(name, index) for name, indexes in sorted(image.reassigning.items()) for index in sorted(indexes)]
        if moving:
            name, index = self.chance.choice(moving)
            partition = image.partition((name, index))
            isr = tuple(n for n in partition.replicas if n == partition.leader or (n in image.brokers and image.brokers[n].active))
            if partition.leader in self.world.brokers:
                self.later(self.world.ask(56, alter_partition(self.world.brokers[partition.leader], image, name, index, isr)))

    async def list_reassignments(self) -> None:
        async def asked() -> None:
            code, reply = await self.world.ask(46, fields(topics=None, timeout=1))
            if code.name == "none":
                assert all(part["adding_replicas"] or part["removing_replicas"] for item in reply["topics"] for part in item["partitions"])

        self.later(asked())

    async def elect(self) -> None:
        self.later(self.world.ask(43, fields(election_type=self.chance.choice((0, 0, 1)), topic_partitions=None, timeout=1)))

    async def config(self) -> None:
        found = self.some_partition()
        if found is not None:
            value = self.chance.choice(("true", "false"))
            change = fields(name="unclean.leader.election.enable", value=value, config_operation=self.chance.choice((0, 1)))
            resource = fields(resource_type=2, resource_name=found[0], configs=(change,))
            self.later(self.world.ask(44, fields(resources=(resource,), validate_only=False)))

    async def unregister(self) -> None:
        self.later(self.world.ask(64, fields(broker_id=self.broker().node_id)))

    async def wait(self) -> None:
        await asyncio.sleep(self.chance.choice((0.001, 0.01, 0.1, 0.1, 0.3, 0.3, 3.0)))

    async def hold(self) -> None:
        self.world.log.hold = True
        self.world.log.timed_out = self.chance.random() < 0.3

    async def release(self) -> None:
        self.world.log.hold = self.world.log.timed_out = False
        self.world.log.release()

    async def fail_over(self) -> None:
        survivors = self.chance.randint(0, len(self.world.log.open))
        self.world.log.elect(self.world.controllers[self.chance.choice((1, 2))], survivors=survivors)

    async def settle(self) -> None:
        await self.release()
        await asyncio.sleep(0.02)


async def live(seed: int) -> World:
    world = World(leader_imbalance_check_interval_seconds=1, broker_session_timeout_ms=2000)
    chance = random.Random(seed)
    checker = Checker(world)
    history = History(world, chance)
    world.log.elect(world.controllers[1])
    await world.up(*NODES)
    for _ in range(STEPS):
        await history.step()
        if chance.random() < 0.8:
            await asyncio.sleep(0)  # Else the next event comes in the same instant.
    await history.settle()
    assert all(task.done() for task in history.tasks), "every request is answered"
    for task in history.tasks:
        task.result()
    assert world.active._working is world.active.image
    first, second = (controller.image for controller in world.controllers.values())
    assert first == second and checker.before is first
    check_replay(world, chance)
    check_reassignments(world, history.asked)
    return world


def check_reassignments(world: World, asked: dict[tuple[uuid.UUID, int], set[frozenset[int]]]) -> None:
    """Record by record: replica sets end as asked or as they began, with all of them in sync unless it was taken back."""
    image = MetadataImage()
    for record in committed(world):
        before, (image, _) = image, image.apply_batch([record], offset=image.offset + 1, epoch=1)
        if not isinstance(record, r.PartitionChangeRecord):
            continue
        key = (record.topic_id, record.partition_id)
        old, new = (each.topic_by_id(record.topic_id).partitions[record.partition_id] for each in (before, image))
        targets = asked.get(key, set())
        was, now = frozenset(old.original_replicas), frozenset(new.original_replicas)
        if set(old.replicas) != set(new.replicas):
            assert set(old.isr) - set(new.isr) <= set(old.replicas) - set(new.replicas), "only who goes leaves the ISR with it"
        if new.reassigning:
            assert now == was, "what was there before stays known"
            assert frozenset(new.target_replicas) in targets
        elif now != was:
            assert now in targets and set(new.isr) == now, "it ends with all that were asked for, in sync"
        elif old.reassigning and old.target_replicas != new.replicas:
            assert frozenset(new.replicas) == was


def committed(world: World) -> Iterator[r.MetadataRecord]:
    """The records that took effect, in their order, one by one."""
    held: list[r.MetadataRecord] | None = None
    for value in (value for batch in world.log.batches for value in batch.records):
        record = r.decode(value)
        if isinstance(record, r.BeginTransactionRecord):
            held = []
        elif isinstance(record, r.EndTransactionRecord | r.AbortTransactionRecord):
            yield from (held or ()) if isinstance(record, r.EndTransactionRecord) else ()
            held = None
        elif held is not None:
            held.append(record)
        else:
            yield record


def check_replay(world: World, chance: random.Random) -> None:
    """The image from the whole log equals the one from a snapshot at any batch and the log behind it."""
    cut = chance.randrange(len(world.log.batches) + 1)
    image = MetadataImage()
    for batch in world.log.batches[:cut]:
        image, _ = applied(image, batch)
    snapshot = [r.encode(record) for record in image.snapshot_records()]
    follower = world.new_controller(9)
    world.log.controllers.remove(follower)
    follower.leadership_changed(Leadership())
    other, _ = MetadataImage().apply_batch(map(r.decode, snapshot), offset=image.offset, epoch=image.epoch)
    assert other == image
    for batch in world.log.batches[cut:]:
        other, _ = applied(other, batch)
    assert other == world.image == follower.image
    assert list(other.snapshot_records()) == list(world.image.snapshot_records())


def applied(image: MetadataImage, batch: CommittedBatch) -> tuple[MetadataImage, MetadataDelta]:
    return image.apply_batch(map(r.decode, batch.records), offset=batch.end_offset, epoch=batch.epoch)


@pytest.mark.parametrize("seed", range(40))
def test_random_history(seed: int) -> None:
    world = run(live(seed))
    assert world.image.offset > 50, f"seed {seed}"


@pytest.mark.parametrize("seed", range(100, 110))
def test_random_history_in_small_entries(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions larger than an entry go through metadata transactions; one that lost its controller half-way is aborted."""
    monkeypatch.setattr("raftlog.quorum.controller.ENTRY_RECORDS_MAX", 3)
    world = run(live(seed))
    kinds = {r.decode(value).__class__ for batch in world.log.batches for value in batch.records}
    assert r.EndTransactionRecord in kinds, f"seed {seed}"


def test_half_a_transaction_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftlog.quorum.controller.ENTRY_RECORDS_MAX", 3)

    async def main() -> None:
        world = World()
        world.log.elect(world.controllers[1])
        await world.up(1, 2)
        world.log.hold = True
        asked = asyncio.get_running_loop().create_task(world.ask(19, create_topics(topic("half", partitions=8, factor=1))))
        await asyncio.sleep(0.01)
        assert [len(batch.records) for batch, _ in world.log.open] == [3, 3, 3, 2]
        world.log.elect(world.controllers[2], survivors=2)
        assert (await asked)[0].name == "not_controller"
        world.log.hold = False
        await asyncio.sleep(0.01)
        assert "half" not in world.image.topics and world.image.transaction is None
        code, _ = await world.ask(19, create_topics(topic("half", partitions=8, factor=1)))
        await asyncio.sleep(0.01)
        assert code.name == "none" and len(world.image.topics["half"].partitions) == 8

    run(main())
