"""Transcripts of classic groups: commands, a line of dashes, what happens. REWRITE_TRANSCRIPTS=1 writes what happened into them."""

from __future__ import annotations

import os
import pathlib
from collections import Counter

import pytest
from group_world import GROUP, World, subscription

from raftlog.core.coordinators.consumer_events import MigrationPolicy
from raftlog.core.coordinators.events import JoinReply, LeavingMember, Limits
from raftlog.core.coordinators.offsets import CommitRequest, TopicOffset
from raftlog.core.coordinators.records import decode
from raftlog.core.coordinators.subscriptions import encode_assignment, read_assignment
from raftlog.errors import ApiError, ErrorCode

TRANSCRIPTS = sorted(pathlib.Path(__file__).parent.glob("*.txt"))


class Transcript:
    """One world, and one method per command."""

    def __init__(self) -> None:
        self.world = World()
        self._read = 0

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
        if consumers := _read_consumers(reply.assignment):
            return f"{name}: assigned {consumers}"
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
        owned = _partitions(options["owned"]) if "owned" in options else None
        protocols = tuple((name, subscription(*topics, owned=owned)) for name in options.get("protocols", "range").split(","))
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

    # -- the consumer protocol

    def do_consumer_limits(self, names, options):
        known = self.world.consumer_limits
        self.world.consumer_limits = known._replace(
            group_size_max=int(options.get("size", known.group_size_max)),
            session_timeout_ms=int(options.get("session", known.session_timeout_ms)),
            migration_policy=MigrationPolicy(options.get("policy", known.migration_policy.value)),
        )

    def do_topics(self, names, options):
        """The topics that there are, by their numbers of partitions."""
        self.world.set_topics({name: int(count) for name, count in options.items()})

    def do_beat(self, names, options):
        """Heartbeats of the consumer protocol: `full` says all there is to say, `owned=keep` holds on to what is to be given up."""
        sent = {}
        if "rebalance" in options:
            sent["rebalance_timeout_ms"] = int(options["rebalance"])
        for option, field in (("assignor", "server_assignor"), ("rack", "rack_id")):
            if option in options:
                sent[field] = options[option]
        if "version" in options:
            sent["version"] = int(options["version"])
        is_full = True if "full" in names else None
        return [self._beat(name, options, dict(sent), is_full) for name in names if name != "full"]

    def _beat(self, name, options, sent, is_full):
        one = self.world.consumer(name)
        one.member_id = options.get("id", one.member_id)
        one.instance = options.get("instance", one.instance)
        if "topics" in options:
            one.topics = sent["topics"] = tuple(sorted(filter(None, options["topics"].split(","))))
        if "regex" in options:
            one.regex = sent["regex"] = options["regex"]
        epoch = int(options["epoch"]) if "epoch" in options else None
        reply = self.world.beat(name, is_full=is_full, epoch=epoch, is_slow=options.get("owned") == "keep", **sent)
        if isinstance(reply, ApiError):
            return f"{name}: {reply.code.name}: {reply}"
        given = "" if reply.assignment is None else f" assigned={self._names(reply.assignment)}"
        return f"{name}: epoch={reply.member_epoch}{given}"

    def _names(self, partitions):
        names = self.world.image.topic_names
        return ",".join(sorted(f"{names.get(topic_id, '?')}-{number}" for topic_id, numbers in partitions.items() for number in numbers)) or "-"

    def do_quit(self, names, options):
        """Consumers leave; `static`: for a while."""
        epoch = -2 if "static" in names else -1
        return [line for name in names if name != "static" for line in self.do_beat([name], {"epoch": str(epoch)})]

    def do_crash(self, names, options):
        """A consumer starts anew, under another member id where one is given, and knows nothing."""
        for name in names:
            one = self.world.consumer(name)
            one.epoch, one.owned, one.told, one.member_id = 0, {}, None, options.get("id", one.member_id)

    def do_resolve(self, names, options):
        return ["resolved " + " ".join(self.world.resolve())]

    def do_members(self, names, options):
        """Each member of a consumer group: its epoch and state, what it owns, what it must give up, what is meant for it."""
        group = self.world.shard.consumers.require(GROUP)
        said = [f"{group.state.value} epoch={group.epoch} target={group.target_epoch}"]
        for member_id, member in group.members.items():
            current = member.current
            revoking = f" revoking={self._names(current.revoking)}" if current.revoking else ""
            kind = " classic" if member.is_classic else ""
            target = self._names(group.targets.get(member_id, {}))
            state = current.state.name.lower()
            said.append(f"{member_id}{kind}: epoch={current.epoch} {state} owns={self._names(current.assigned)}{revoking} target={target}")
        return said

    def do_list(self, names, options):
        states = frozenset(options.get("states", "").split(",")) - {""}
        types = frozenset(options.get("types", "").split(",")) - {""}
        return [" ".join(listed) for listed in self.world.shard.listed(states=states, types=types)] or ["none"]

    def do_fetch(self, names, options):
        """Offsets, asked for as a member."""
        try:
            self.world.shard.fetch(GROUP, member_id=options.get("member"), epoch=int(options.get("epoch", -1)))
        except ApiError as error:
            return [f"fetch {error.code.name}"]
        return ["fetch none"]

    def do_commit_as(self, names, options):
        request = CommitRequest(
            member_id=names[0],
            group_instance_id=None,
            generation=int(options["epoch"]),
            offsets=(TopicOffset(options.get("topic", "t"), 0, int(options["offset"]), -1, ""),),
            version=int(options.get("version", 9)),
        )
        try:
            planned = self.world.shard.commit(GROUP, request, self.world.now)
        except ApiError as error:
            return [f"commit {error.code.name}"]
        self.world.append(planned.records)
        return [f"commit {planned.codes[0].name}"]

    def do_log(self, names, options):
        """Kinds of the records written since this was asked last."""
        written = [decode(key, value) for key, value in self.world.log[self._read :]]
        self._read = len(self.world.log)
        kinds = [type(record.key).__name__.removesuffix("Key") + ("" if record.value is not None else " deleted") for record in written if record]
        return [f"{count} {kind}" for kind, count in Counter(kinds).items()]

    def do_restart(self, names, options):
        """The process starts anew and knows no member id."""
        for name in names:
            self.world.client(name).restart()

    def do_sync(self, names, options, assignments=None, instance=None):
        generation = options.pop("generation", None)
        instance = options.pop("instance", instance)
        assignments = assignments or {name: text.encode() for name, text in options.items()}
        for name in names:
            number = None if generation is None else int(generation)
            self.world.sync(name, instance=instance, assignments=assignments, generation=number)

    def do_assign(self, names, options):
        """The leader brings assignments in the form of consumers."""
        instance = options.pop("instance", None)
        self.do_sync(names, {}, {name: _encoded(text) for name, text in options.items()}, instance)

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
        for group_id in list(self.world.shard.groups):
            self.world.append(self.world.shard.expire(group_id, self.world.now).records)

    def do_group(self, names, options):
        if GROUP not in self.world.shard.groups:
            return ["no group"]
        if self.world.shard.consumers.get(GROUP) is not None:
            return self.do_members(names, options)
        group = self.world.shard.described(GROUP)
        return [f"{group.state} {group.protocol_type or '-'} {' '.join(member.member_id for member in group.members)}".rstrip()]


def _partitions(text: str) -> dict[str, list[int]]:
    """`t-0,t-1` by topic."""
    found: dict[str, list[int]] = {}
    for name in text.split(","):
        topic, _, number = name.rpartition("-")
        found.setdefault(topic, []).append(int(number))
    return found


def _encoded(text: str) -> bytes:
    return encode_assignment(_partitions(text), version=0)


def _read_consumers(assignment: bytes) -> str:
    """An assignment that the coordinator made itself, in the form of consumers; empty for one that a leader made."""
    if not assignment.startswith(b"\0") or len(assignment) < 6:
        return ""
    partitions = read_assignment(assignment)
    return ",".join(sorted(f"{topic}-{number}" for topic, numbers in partitions.items() for number in numbers)) or "-"


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
