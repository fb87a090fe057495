"""Transcripts of classic groups: commands, a line of dashes, what happens. REWRITE_TRANSCRIPTS=1 writes what happened into them."""

from __future__ import annotations

import os
import pathlib

import pytest
from group_world import GROUP, World, subscription

from raftlog.core.coordinators.events import JoinReply, LeavingMember, Limits
from raftlog.errors import ErrorCode

TRANSCRIPTS = sorted(pathlib.Path(__file__).parent.glob("*.txt"))


class Transcript:
    """One world, and one method per command."""

    def __init__(self) -> None:
        self.world = World()

    def execute(self, line: str) -> list[str]:
        command, *words = line.split()
        names = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        said = getattr(self, f"do_{command}")(names, options) or []
        answers, self.world.answers = self.world.answers, []
        return [*said, *(self._answer(name, reply) for name, reply in answers)]

    def _answer(self, name: str, reply: object) -> str:
        if isinstance(reply, JoinReply):
            if reply.error is not ErrorCode.none:
                return f"{name}: join {reply.error.name} {reply.member_id}".rstrip()
            members = ",".join(member.member_id for member in reply.members)
            skip = " skip" if reply.skip_assignment else ""
            told = f"generation={reply.generation} protocol={reply.protocol} leader={reply.leader} members={members}{skip}"
            return f"{name}: joined {reply.member_id} {told}"
        if reply.error is not ErrorCode.none:
            return f"{name}: sync {reply.error.name}"
        return f"{name}: assigned {reply.assignment.decode()!r}"

    def do_limits(self, names, options):
        self.world = World(
            Limits(
                group_size_max=int(options.get("size", 1000)),
                initial_rebalance_delay_ms=int(options.get("delay", 0)),
                session_timeout_ms_min=1,
                session_timeout_ms_max=10**9,
            ),
            retention_ms=int(options.get("retention", 600_000)),
        )

    def do_join(self, names, options):
        topics = options.get("topics", "t").split(",")
        protocols = tuple((name, subscription(*topics)) for name in options.get("protocols", "range").split(","))
        for name in names:
            self.world.join(
                name,
                protocols=protocols,
                instance=options.get("instance"),
                session_ms=int(options.get("session", 10_000)),
                rebalance_ms=int(options.get("rebalance", 60_000)),
                version=int(options.get("version", 9)),
                protocol_type=options.get("type", "consumer"),
            )

    def do_restart(self, names, options):
        """The process starts anew and knows no member id."""
        for name in names:
            self.world.client(name).restart()

    def do_sync(self, names, options):
        generation = options.pop("generation", None)
        instance = options.pop("instance", None)
        assignments = {name: text.encode() for name, text in options.items()}
        for name in names:
            number = None if generation is None else int(generation)
            self.world.sync(name, instance=instance, assignments=assignments, generation=number)

    def do_heartbeat(self, names, options):
        generation = int(options["generation"]) if "generation" in options else None
        return [f"{name}: heartbeat {self.world.heartbeat(name, instance=options.get('instance'), generation=generation).name}" for name in names]

    def do_leave(self, names, options):
        leaving = [LeavingMember(self.world.client(name).member_id, None) for name in names]
        leaving += [LeavingMember("", instance) for instance in options.get("instances", "").split(",") if instance]
        return ["left " + " ".join(code.name for code in self.world.leave(*leaving))]

    def do_commit(self, names, options):
        name = names[0] if names else None
        generation = int(options["generation"]) if "generation" in options else None
        code = self.world.commit(
            name, int(options["offset"]), topic=options.get("topic", "t"), metadata=options.get("metadata", ""), generation=generation
        )
        return [f"commit {code.name}"]

    def do_offset(self, names, options):
        return [f"offset {self.world.committed(options.get('topic', 't'))}"]

    def do_wait(self, names, options):
        self.world.wait(int(names[0]))

    def do_hold(self, names, options):
        self.world.hold = True

    def do_settle(self, names, options):
        self.world.hold = False
        self.world.settle(ErrorCode[names[0]] if names else ErrorCode.none)

    def do_failover(self, names, options):
        self.world.failover()

    def do_delete(self, names, options):
        return [f"delete {self.world.delete().name}"]

    def do_delete_offset(self, names, options):
        planned = self.world.shard.delete_offsets(GROUP, [(options.get("topic", "t"), 0)])
        self.world.append(planned.records)
        return [planned.codes[0].name]

    def do_expire(self, names, options):
        for records in self.world.shard.expire(self.world.now):
            self.world.append(records)

    def do_group(self, names, options):
        if GROUP not in self.world.shard.groups:
            return ["no group"]
        group = self.world.shard.described(GROUP)
        return [f"{group.state} {group.protocol_type or '-'} {' '.join(member.member_id for member in group.members)}".rstrip()]


def play(text: str) -> str:
    """The transcript with what happens under each block of commands."""
    transcript = Transcript()
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        commands = block.split("\n----")[0]
        said = [line for command in commands.splitlines() if not command.startswith("#") for line in transcript.execute(command)]
        blocks.append("\n".join([commands, "----", *said]))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: pathlib.Path) -> None:
    text = path.read_text()
    played = play(text)
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(played)
    assert played == text
