"""Transcripts of the controller: commands, a line of dashes, what happens. REWRITE_TRANSCRIPTS=1 writes what happened into them."""

from __future__ import annotations

import asyncio
import os
import pathlib

import pytest
from controller_world import World, alter_partition, create_topics, fields, topic

from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.errors import ApiError, ErrorCode
from raftlog.quorum.states import VoterProgress
from raftlog.testing.virtual_time import run

TRANSCRIPTS = sorted(pathlib.Path(__file__).parent.glob("*.txt"))
SETTLE_MS = 20  # Virtual: longer than any linger, shorter than any grace.


def ids(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


class Transcript:
    """One world, and one method per command. `said` gathers what is answered, when it is."""

    def __init__(self) -> None:
        self.world = World()
        self.said: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._shown: dict[tuple[str, int], object] = {}

    async def execute(self, line: str) -> None:
        command, *words = line.split()
        names = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        await getattr(self, f"do_{command}")(names, options)
        await asyncio.sleep(SETTLE_MS / 1000)

    def _say_later(self, label, asked, show) -> None:
        async def later() -> None:
            code, reply = await asked
            self.said.append(f"{label}: {show(reply)}" if code is ErrorCode.none else f"{label}: {code.name}")

        task = asyncio.get_running_loop().create_task(later())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _changes(self) -> list[str]:
        """The partitions that differ from what was shown last."""
        now = {(name, p): partition for name, item in self.world.image.topics.items() for p, partition in item.partitions.items()}
        lines = []
        for key, partition in sorted(now.items()):
            if self._shown.get(key) != partition:
                state = " recovering" if partition.recovery_state else ""
                state += f" adding={','.join(map(str, partition.adding))}" if partition.adding else ""
                state += f" removing={','.join(map(str, partition.removing))}" if partition.removing else ""
                isr, replicas = ",".join(map(str, partition.isr)), ",".join(map(str, partition.replicas))
                lines.append(
                    f"{key[0]}-{key[1]} leader={partition.leader} isr={isr} replicas={replicas} "
                    f"epochs={partition.leader_epoch}/{partition.partition_epoch}{state}"
                )
        lines += [f"{name}-{p} gone" for name, p in sorted(self._shown.keys() - now.keys())]
        self._shown = dict(now)
        return lines

    async def do_settings(self, names, options):
        self.world = World(**{name: int(value) if value.isdigit() else value == "true" for name, value in options.items()})

    async def do_elect_controller(self, names, options):
        self.world.log.elect(self.world.controllers[int(names[0])] if names else None)

    async def do_up(self, names, options):
        await self.world.up(*map(int, names), rack=options.get("rack"))

    async def do_start(self, names, options):
        """A new process of a broker."""
        for name in names:
            self.world.process(int(name), options.get("rack"))

    async def do_register(self, names, options):
        changes = dict(options)
        for name in names:
            broker = self.world.brokers[int(name)]
            if "directories" in changes:
                changes["log_dirs"] = (broker.directory,) * int(changes.pop("directories"))
            if "metadata_version" in changes:
                level = int(changes.pop("metadata_version"))
                groups = fields(name="group.version", min_supported_version=0, max_supported_version=1)
                changes["features"] = (fields(name="metadata.version", min_supported_version=level, max_supported_version=level), groups)
            self._say_later(f"register {name}", self.world.register(broker, **changes), lambda reply: f"epoch={reply['broker_epoch']}")

    async def do_heartbeat(self, names, options):
        flags = {name: True for name in ("fence", "shut_down", "behind") if options.get(name) == "yes"}

        def show(reply):
            told = [name for name in ("is_caught_up", "is_fenced", "should_shut_down") if reply[name]]
            return " ".join(told) or "-"

        for name in names:
            broker = self.world.brokers[int(name)]
            if "offline" in options:
                flags["offline"] = (broker.directory,)
            self._say_later(f"heartbeat {name}", self.world.heartbeat(broker, **flags), show)

    async def do_disconnect(self, names, options):
        for name in names:
            self.world.brokers[int(name)].connection.close()

    async def do_reconnect(self, names, options):
        for name in names:
            self.world.brokers[int(name)].connection = type(self.world.brokers[int(name)].connection)()

    async def do_peer_closed(self, names, options):
        for callback in self.world.log.peer_callbacks:
            callback(int(names[0]))

    async def do_raft_hears(self, names, options):
        """The voters answer the active controller's raft messages from now on."""
        for name in names:
            now_ms = self.world.clock.wall_ms()
            self.world.log.voters[int(name)] = VoterProgress(int(name), 0, now_ms, now_ms)

    async def do_wait(self, names, options):
        await asyncio.sleep((int(names[0]) - SETTLE_MS) / 1000)

    async def do_create(self, names, options):
        assign = options.pop("assign", None)
        validate_only = options.pop("validate_only", "no") == "yes"
        partitions, factor = int(options.pop("partitions", -1)), int(options.pop("factor", -1))
        assignments = None if assign is None else [ids(part) for part in assign.split(";")]
        asked = [topic(name, partitions=partitions, factor=factor, assignments=assignments, configs=options) for name in names]
        self._say_later("create", self.world.ask(19, create_topics(*asked, validate_only=validate_only)), self._results("topics"))

    @staticmethod
    def _results(key):
        def show(reply):
            return "; ".join(f"{item['name']} {ErrorCode(item['error_code']).name} {item.get('error_message') or ''}".strip() for item in reply[key])

        return show

    async def do_delete(self, names, options):
        request = fields(topic_names=tuple(names), topics=(), timeout=1000)
        self._say_later("delete", self.world.ask(20, request), self._results("responses"))

    async def do_add_partitions(self, names, options):
        assign = options.get("assign")
        assignments = None if assign is None else tuple(fields(broker_ids=ids(part)) for part in assign.split(";"))
        asked = fields(name=names[0], count=int(options["count"]), assignments=assignments)
        request = fields(topics=(asked,), timeout=1000, validate_only=options.get("validate_only") == "yes")
        self._say_later("add partitions", self.world.ask(37, request), self._results("results"))

    async def do_alter(self, names, options):
        broker, (name, partition) = self.world.brokers[int(names[0])], names[1].rsplit("-", 1)
        isr = ids(options.pop("isr"))
        changes = {key: int(value) for key, value in options.items()}
        request = alter_partition(broker, self.world.active.image, name, int(partition), isr, **changes)

        def show(reply):
            item = reply["topics"][0]["partitions"][0]
            if item["error_code"] != 0:
                return ErrorCode(item["error_code"]).name
            epochs = f"{item['leader_epoch']}/{item['partition_epoch']}"
            return f"leader={item['leader_id']} isr={','.join(map(str, item['isr']))} epochs={epochs}"

        self._say_later(f"alter {names[1]}", self.world.ask(56, request), show)

    async def do_reassign(self, names, options):
        """`t-0=4,5 t-1=` ...: the replicas each shall have; none takes the reassignment back. `factor=fixed`: as many as there are."""
        fixed = options.pop("factor", None) == "fixed"
        topics: dict[str, list[object]] = {}
        for name, replicas in options.items():
            asked = fields(partition_index=int(name.rsplit("-", 1)[1]), replicas=None if replicas == "" else ids(replicas.replace("-", "")))
            topics.setdefault(name.rsplit("-", 1)[0], []).append(asked)
        request = fields(
            topics=tuple(fields(name=name, partitions=tuple(partitions)) for name, partitions in topics.items()),
            allow_replication_factor_change=not fixed,
            timeout=1000,
        )

        def show(reply):
            return "; ".join(
                f"{item['name']}-{part['partition_index']} {ErrorCode(part['error_code']).name} {part['error_message'] or ''}".strip()
                for item in reply["responses"]
                for part in item["partitions"]
            )

        self._say_later("reassign", self.world.ask(45, request), show)

    async def do_reassignments(self, names, options):
        """All that are under way, or those of the partitions named."""
        wanted = tuple(fields(name=name.rsplit("-", 1)[0], partition_indexes=(int(name.rsplit("-", 1)[1]),)) for name in names)

        def show(reply):
            return "; ".join(
                f"{item['name']}-{part['partition_index']} replicas={','.join(map(str, part['replicas']))} "
                f"adding={','.join(map(str, part['adding_replicas']))} removing={','.join(map(str, part['removing_replicas']))}"
                for item in reply["topics"]
                for part in item["partitions"]
            )

        self._say_later("reassignments", self.world.ask(46, fields(topics=wanted or None, timeout=1000)), show)

    async def do_elect_leaders(self, names, options):
        wanted = tuple(fields(topic=name.rsplit("-", 1)[0], partitions=(int(name.rsplit("-", 1)[1]),)) for name in names[1:])
        request = fields(election_type={"preferred": 0, "unclean": 1}[names[0]], topic_partitions=wanted or None, timeout=1000)

        def show(reply):
            return "; ".join(
                f"{item['topic']}-{part['partition_id']} {ErrorCode(part['error_code']).name}"
                for item in sorted(reply["replica_election_results"], key=lambda item: item["topic"])
                for part in item["partition_result"]
            )

        self._say_later("elect", self.world.ask(43, request), show)

    async def do_config(self, names, options):
        configs = tuple(fields(name=name, value=value or None, config_operation=0 if value else 1) for name, value in options.items())
        resource = fields(resource_type=2, resource_name=names[0], configs=configs)
        request = fields(resources=(resource,), validate_only=False)

        def show(reply):
            item = reply["responses"][0]
            return f"{ErrorCode(item['error_code']).name} {item['error_message'] or ''}".strip()

        self._say_later("config", self.world.ask(44, request), show)

    async def do_configs(self, names, options):
        self.said.append(f"{names[0]} {dict(self.world.image.topic_configs(names[0]))}")

    async def do_producer_ids(self, names, options):
        broker = self.world.brokers[int(names[0])]
        request = fields(broker_id=broker.node_id, broker_epoch=broker.epoch)
        self._say_later("producer ids", self.world.ask(67, request), lambda reply: f"{reply['producer_id_start']}+{reply['producer_id_len']}")

    async def do_unregister(self, names, options):
        self._say_later(f"unregister {names[0]}", self.world.ask(64, fields(broker_id=int(names[0]))), lambda reply: "done")

    async def do_hold(self, names, options):
        """From here on entries stay uncommitted."""
        self.world.log.hold = True

    async def do_release(self, names, options):
        self.world.log.hold = False
        self.world.log.timed_out = False
        self.world.log.release()

    async def do_time_out(self, names, options):
        self.world.log.hold = self.world.log.timed_out = True

    async def do_entries(self, names, options):
        """How many records each entry of this epoch has, the bootstrap aside."""
        counts = [len(batch.records) for batch in self.world.log.batches if batch.epoch == self.world.log.epoch and batch.records]
        self.said.append("entries " + " ".join(map(str, counts[1:])))

    async def do_brokers(self, names, options):
        for node_id, broker in sorted(self.world.image.brokers.items()):
            state = "fenced" if broker.fenced else "unfenced"
            leaving = " leaving" if broker.in_controlled_shutdown else ""
            self.said.append(f"broker {node_id} epoch={broker.epoch} {state}{leaving}")


def check_equal_images(world: World) -> None:
    """All controllers' images are equal, and equal to one rebuilt from a snapshot."""
    first, second = (controller.image for controller in world.controllers.values())
    assert first == second
    copy, _ = MetadataImage().apply_batch(first.snapshot_records(), offset=first.offset, epoch=first.epoch)
    assert copy == first
    assert not world.log.open or world.log.hold
    if not world.log.hold and world.log.active is not None:
        assert world.active._working is world.active.image


async def play(text: str) -> str:
    """The transcript with what happens under each block of commands: the answers, then the partitions that changed."""
    transcript = Transcript()
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        commands = block.split("\n----")[0]
        transcript.said.clear()
        for command in commands.splitlines():
            if not command.startswith("#"):
                await transcript.execute(command)
        blocks.append("\n".join([commands, "----", *transcript.said, *transcript._changes()]))
        check_equal_images(transcript.world)
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: pathlib.Path) -> None:
    text = path.read_text()
    played = run(play(text))
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(played)
    assert played == text


def test_world_refuses_what_no_controller_decides() -> None:
    async def main() -> None:
        world = World()
        with pytest.raises(ApiError):
            world.controllers[1].handle(19, create_topics(topic("t", partitions=1, factor=1)))
        delta = MetadataDelta()
        assert delta.empty

    run(main())
