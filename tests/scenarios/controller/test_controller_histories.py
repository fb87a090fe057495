"""Random histories of a controller: whatever comes, and in whatever order it is committed, the state stays sound."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

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
        assert new.replicas == old.replicas

    @staticmethod
    def check_delta(before, image, delta) -> None:
        whole = difference(before, image)
        assert whole.changed_topics <= delta.changed_topics
        assert whole.deleted_topics.items() <= delta.deleted_topics.items()
        assert whole.changed_brokers <= delta.changed_brokers
        assert whole.changed_configs <= delta.changed_configs

    @staticmethod
    def check_loads(image) -> None:
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
    return world


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
