"""Judges a recorded history of client operations: what was promised, what was read, and where the two disagree.

A history is a file of JSON lines, one event each, written as it happens, so that it can be recorded from any Kafka cluster:

    {"id": 7, "type": "invoke", "f": "send", "process": "p1", "time_ns": 10, "partition": "orders-0", "value": 42,
     "acks": "all", "ordered": true, "idempotent": true}
    {"id": 7, "type": "ok", "time_ns": 25, "offset": 3}

`id` pairs an operation's `invoke` with its end: `ok`, `fail` (surely did not happen) or `info` (may have happened: a
time-out, a lost connection). An operation without an end counts as `info`. `time_ns` is monotonic over the whole history.
The operations `f`:

    send       value to a partition; values are unique in a history: strings or numbers. `ok` carries the offset (none
               with acks=0). `acks`: "all" (the default), "1" or "0". `ordered`: this process's sends to one partition must
               keep their order; `idempotent`: no duplicates.
    poll       `ok` carries "records": [[partition, offset, value], ...]. Somebody polls each partition from its beginning.
    reposition a consumer assigned, sought or was rebalanced: polls after it start anew.
    commit     "group", "offsets": {partition: offset}.
    committed  reads a group's offsets back: `ok` carries "group" and "offsets", -1 where there is none.
    final_read "partition"; `ok` carries "records": all from its beginning to its end, after all faults were healed.

What is found, each with the operations that prove it:

    lost_write              acknowledged with acks=all, or read once, and not there any more
    unwritten_read          nobody sent it there, or its send was refused
    duplicate               an idempotent send that stands at two offsets
    inconsistent_offset     two values at one offset, or an acknowledged one elsewhere than it was said to be
    misordered              one ordered process's sends stand in another order than they were sent
    nonmonotonic_send       a later send of an ordered process was told an earlier offset
    nonmonotonic_poll       a consumer went back, or read an offset again, without a reposition
    poll_skip               a consumer passed over an offset that others read
    group_offset_lost       a group's offset is none that it can be
    group_offset_moved_back a group's offset is one of before

Histories of compacted topics and of transactions can't be judged. Where records were deleted at a partition's beginning,
what lies before the final read's first record is not missed.

Source: the anomalies are those of Jepsen's Kafka workload, without transactions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from raftlog.errors import RaftlogError

ANOMALIES: Final = (
    "lost_write",
    "unwritten_read",
    "duplicate",
    "inconsistent_offset",
    "misordered",
    "nonmonotonic_send",
    "nonmonotonic_poll",
    "poll_skip",
    "group_offset_lost",
    "group_offset_moved_back",
)
OPERATIONS: Final = ("send", "poll", "reposition", "commit", "committed", "final_read")
_FOREVER: Final = float("inf")


class MalformedHistory(RaftlogError):
    """A line is not an event of this format; says which line and why."""


@dataclass(slots=True)
class Operation:
    """One operation with its beginning and its end; `end_ns` is infinite while it may still happen."""

    id: int
    f: str
    process: str
    start_ns: int
    outcome: str = "info"
    end_ns: float = _FOREVER
    fields: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        detail = ", ".join(f"{name}={value}" for name, value in self.fields.items() if name != "records")
        return f"#{self.id} {self.process} {self.f} {self.outcome} [{detail}]"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One contradiction and the operations that prove it."""

    kind: str
    message: str
    proof: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    anomalies: tuple[Anomaly, ...]
    operations: int
    sends_acknowledged: int
    records_read: int

    @property
    def is_clean(self) -> bool:
        return not self.anomalies


def parse(lines: Iterable[str]) -> list[Operation]:
    """Operations in the order of their invocation. Raises MalformedHistory."""
    operations: dict[int, Operation] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            _take_event(operations, event)
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedHistory(f"line {number} is not an event of a history: {error!r}") from None
    return list(operations.values())


def _take_event(operations: dict[int, Operation], event: dict[str, Any]) -> None:
    identity, kind, time_ns = int(event.pop("id")), event.pop("type"), int(event.pop("time_ns"))
    if kind == "invoke":
        if identity in operations:
            raise ValueError(f"operation {identity} is invoked twice")
        operation = operations[identity] = Operation(identity, event.pop("f"), str(event.pop("process")), time_ns, fields=event)
        if operation.f not in OPERATIONS:
            raise ValueError(f"there is no operation {operation.f!r}")
        _validate(operation)
        return
    if kind not in ("ok", "fail", "info"):
        raise ValueError(f"unknown type {kind!r}")
    operation = operations[identity]
    operation.outcome = kind
    operation.end_ns = _FOREVER if kind == "info" else time_ns
    operation.fields.update({name: value for name, value in event.items() if name not in ("f", "process")})
    _validate(operation)


def _validate(operation: Operation) -> None:
    """Raises ValueError or KeyError for fields that the rules could not read."""
    fields = operation.fields
    if operation.f == "send":
        _require(fields["partition"], str)
        _require(fields["value"], str | int | float)
        _require(fields.get("offset", -1), int)
    elif operation.f == "commit" or (operation.f == "committed" and operation.outcome == "ok"):
        _require(fields["group"], str)
        for partition, offset in _require(fields["offsets"], dict).items():
            _require(partition, str)
            _require(offset, int)
    elif operation.f == "final_read":
        _require(fields["partition"], str)
    if operation.f in ("poll", "final_read") and operation.outcome == "ok":
        for partition, offset, value in _require(fields.get("records", []), list):
            _require(partition, str)
            _require(offset, int)
            _require(value, str | int | float)


def _require(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{value!r} is not {getattr(kind, '__name__', kind)}")
    return value


def check(operations: list[Operation]) -> Verdict:
    """Hold a history against every rule; anomalies come in the order of `ANOMALIES`."""
    view = _View(operations)
    found = [
        *_lost_writes(view),
        *_unwritten_reads(view),
        *_duplicates(view),
        *_inconsistent_offsets(view),
        *_misordered(view),
        *_nonmonotonic_sends(view),
        *_polls_out_of_step(view),
        *_group_offsets(view),
    ]
    rank = {kind: position for position, kind in enumerate(ANOMALIES)}
    found.sort(key=lambda anomaly: rank[anomaly.kind])
    acknowledged = sum(1 for operation in view.sends if operation.outcome == "ok")
    return Verdict(tuple(found), len(operations), acknowledged, sum(len(at) for at in view.read.values()))


@dataclass(frozen=True, slots=True)
class _FinalRead:
    """What a partition held in the end."""

    operation: Operation
    values: dict[int, Any]

    def lacks(self, offset: int, value: Any) -> bool:
        """Whether `value`, which stood at `offset` before this read began, is gone from there; not if the beginning was deleted."""
        return self.values.get(offset) != value and offset >= min(self.values, default=0)


class _View:
    """Indexes over the operations that several rules need."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.sends = [operation for operation in operations if operation.f == "send"]
        self.send_of = {(send.fields["partition"], send.fields["value"]): send for send in self.sends}
        self.read: dict[str, dict[int, dict[Any, Operation]]] = defaultdict(lambda: defaultdict(dict))  # partition, offset, value: reader
        self.position = {operation.id: number for number, operation in enumerate(operations)}
        self.finals: dict[str, list[_FinalRead]] = defaultdict(list)
        for operation in operations:
            if operation.f in ("poll", "final_read") and operation.outcome == "ok":
                for partition, offset, value in self.records_of(operation):
                    self.read[partition][offset].setdefault(value, operation)
            if operation.f == "final_read" and operation.outcome == "ok":
                self.finals[operation.fields["partition"]].append(
                    _FinalRead(operation, {offset: value for _, offset, value in self.records_of(operation)})
                )

    @staticmethod
    def records_of(operation: Operation) -> Iterator[tuple[str, int, Any]]:
        yield from operation.fields.get("records", ())

    def log(self, partition: str) -> Iterator[tuple[int, Any, Operation]]:
        """What was read of a partition in the order of offsets: (offset, value, a reader)."""
        for offset in sorted(self.read[partition]):
            for value, reader in self.read[partition][offset].items():
                yield offset, value, reader


def _lost_writes(view: _View) -> Iterator[Anomaly]:
    values_read = {partition: {value for at in offsets.values() for value in at} for partition, offsets in view.read.items()}
    reported: set[tuple[str, Any]] = set()
    for send in view.sends:
        partition, value = send.fields["partition"], send.fields["value"]
        if send.outcome != "ok" or send.fields.get("acks", "all") != "all":
            continue
        offset = send.fields.get("offset", -1)
        highest = max(view.read.get(partition, {}), default=-1)
        missing = _first_without(view.finals.get(partition, ()), value, offset, since_ns=send.end_ns)
        if missing is not None:
            reported.add((partition, value))
            message = f"{value} was acknowledged at {partition}@{offset}, and the final read did not find it"
            yield Anomaly("lost_write", message, (send, missing.operation))
        elif value not in values_read.get(partition, ()) and 0 <= offset <= highest and partition not in view.finals:
            passed = next(iter(view.read[partition][highest].values()))
            yield Anomaly("lost_write", f"{value} was acknowledged at {partition}@{offset}; {highest} was read, it was not", (send, passed))
    yield from _vanished(view, reported)


def _first_without(finals: Iterable[_FinalRead], value: Any, offset: int, *, since_ns: float) -> _FinalRead | None:
    """The first final read after `since_ns` that does not find the value anywhere; `offset` is -1 where it is not known."""
    for final in finals:
        if since_ns < final.operation.start_ns and value not in final.values.values() and (offset < 0 or final.lacks(offset, value)):
            return final
    return None


def _vanished(view: _View, reported: set[tuple[str, Any]]) -> Iterator[Anomaly]:
    """What a consumer was given is committed, however it was sent: it must still be there in the end."""
    for partition, finals in view.finals.items():
        for offset, value, reader in view.log(partition):
            if reader.f == "final_read" or (partition, value) in reported:
                continue
            for final in finals:
                if reader.end_ns < final.operation.start_ns and offset not in final.values and final.lacks(offset, value):
                    message = f"{value} was read at {partition}@{offset}, and the final read did not find it"
                    sends = [send] if (send := view.send_of.get((partition, value))) is not None else []
                    yield Anomaly("lost_write", message, (*sends, reader, final.operation))
                    break


def _unwritten_reads(view: _View) -> Iterator[Anomaly]:
    for partition in view.read:
        for offset, value, reader in view.log(partition):
            send = view.send_of.get((partition, value))
            if send is None:
                yield Anomaly("unwritten_read", f"{partition}@{offset} gave {value}, which nobody sent there", (reader,))
            elif send.outcome == "fail":
                yield Anomaly("unwritten_read", f"{partition}@{offset} gave {value}, whose send was refused", (send, reader))


def _duplicates(view: _View) -> Iterator[Anomaly]:
    for partition in view.read:
        first: dict[Any, tuple[int, Operation]] = {}
        for offset, value, reader in view.log(partition):
            send = view.send_of.get((partition, value))
            if value in first and first[value][0] != offset and send is not None and send.fields.get("idempotent"):
                earlier_offset, earlier = first[value]
                yield Anomaly("duplicate", f"{value} stands at {partition}@{earlier_offset} and @{offset}", (send, earlier, reader))
            first.setdefault(value, (offset, reader))


def _inconsistent_offsets(view: _View) -> Iterator[Anomaly]:
    for partition, offsets in view.read.items():
        for offset, readers in offsets.items():
            if len(readers) > 1:
                yield Anomaly("inconsistent_offset", f"{partition}@{offset} gave {sorted(map(str, readers))}", tuple(readers.values()))
    for send in view.sends:
        offset = send.fields.get("offset", -1)
        readers = view.read.get(send.fields["partition"], {}).get(offset, {}) if send.outcome == "ok" and offset >= 0 else {}
        if send.fields.get("acks", "all") != "all" or send.outcome != "ok" or offset < 0:
            continue
        if readers and send.fields["value"] not in readers:
            message = f"{send.fields['value']} was acknowledged at {send.fields['partition']}@{offset}, which gave {sorted(map(str, readers))}"
            yield Anomaly("inconsistent_offset", message, (send, *readers.values()))
        elif not readers:
            yield from _elsewhere(view, send, offset)


def _elsewhere(view: _View, send: Operation, offset: int) -> Iterator[Anomaly]:
    """The offset that was acknowledged holds nothing, and the value stands at another one."""
    partition, value = send.fields["partition"], send.fields["value"]
    for final in view.finals.get(partition, ()):
        if send.end_ns < final.operation.start_ns and final.lacks(offset, value) and value in final.values.values():
            found = next(at for at, other in final.values.items() if other == value)
            message = f"{value} was acknowledged at {partition}@{offset}, and stands at @{found}"
            yield Anomaly("inconsistent_offset", message, (send, final.operation))
            return


def _misordered(view: _View) -> Iterator[Anomaly]:
    """Reads of one partition against the order in which one process sent; duplicates of plain producers are passed over."""
    for partition in view.read:
        newest: dict[str, Operation] = {}
        seen: set[Any] = set()
        for offset, value, reader in view.log(partition):
            send = view.send_of.get((partition, value))
            if send is None or value in seen or not send.fields.get("ordered"):
                continue
            seen.add(value)
            before = newest.get(send.process)
            if before is not None and view.position[send.id] < view.position[before.id]:
                message = f"{send.process} sent {value} before {before.fields['value']}, but it stands behind it at {partition}@{offset}"
                yield Anomaly("misordered", message, (send, before, reader))
            newest[send.process] = send


def _nonmonotonic_sends(view: _View) -> Iterator[Anomaly]:
    newest: dict[tuple[str, str], Operation] = {}
    for send in view.sends:
        offset = send.fields.get("offset", -1)
        if send.outcome != "ok" or offset < 0 or not send.fields.get("ordered"):
            continue
        key = (send.process, send.fields["partition"])
        before = newest.get(key)
        if before is not None and offset <= before.fields["offset"]:
            message = f"{send.process} was told {key[1]}@{before.fields['offset']}, and then @{offset} for a later send"
            yield Anomaly("nonmonotonic_send", message, (before, send))
        newest[key] = send


def _polls_out_of_step(view: _View) -> Iterator[Anomaly]:
    position: dict[tuple[str, str], tuple[int, Operation]] = {}
    for operation in view.operations:
        if operation.f == "reposition":
            for key in [key for key in position if key[0] == operation.process]:
                del position[key]
        if operation.f != "poll" or operation.outcome != "ok":
            continue
        for partition, offset, _ in view.records_of(operation):
            key = (operation.process, partition)
            before = position.get(key)
            if before is not None:
                yield from _step(view, partition, before, (offset, operation))
            position[key] = (offset, operation)


def _step(view: _View, partition: str, before: tuple[int, Operation], now: tuple[int, Operation]) -> Iterator[Anomaly]:
    if now[0] <= before[0]:
        message = f"{now[1].process} read {partition}@{now[0]} after @{before[0]}"
        yield Anomaly("nonmonotonic_poll", message, (before[1], now[1]))
        return
    for skipped in range(before[0] + 1, now[0]):
        if skipped in view.read[partition]:
            other = next(iter(view.read[partition][skipped].values()))
            message = f"{now[1].process} went from {partition}@{before[0]} to @{now[0]}, but @{skipped} exists"
            yield Anomaly("poll_skip", message, (before[1], now[1], other))
            return


def _group_offsets(view: _View) -> Iterator[Anomaly]:
    """A group's offset of a partition is a register: a read gives the newest commit, or one that ran beside it."""
    commits: dict[tuple[str, str], list[tuple[Operation, int]]] = defaultdict(list)
    reads: dict[tuple[str, str], list[tuple[Operation, int]]] = defaultdict(list)
    for operation in view.operations:
        known = commits if operation.f == "commit" and operation.outcome != "fail" else reads
        if known is commits or (operation.f == "committed" and operation.outcome == "ok"):
            for partition, offset in operation.fields["offsets"].items():
                known[operation.fields["group"], partition].append((operation, offset))
    for key, told in reads.items():
        ends_ns = _ends_of(commits[key], told)
        for read, offset in told:
            anomaly = _judge_committed(read, key[1], offset, commits[key], ends_ns)
            if anomaly is not None:
                yield anomaly


def _ends_of(commits: list[tuple[Operation, int]], reads: list[tuple[Operation, int]]) -> dict[int, float]:
    """When each commit had happened at the latest, by its id: a commit of unknown outcome has, once a read gave its offset."""
    first_seen_ns: dict[int, float] = {}
    for read, offset in reads:
        first_seen_ns[offset] = min(read.end_ns, first_seen_ns.get(offset, _FOREVER))
    times = Counter(offset for _, offset in commits)
    return {commit.id: min(commit.end_ns, first_seen_ns.get(offset, _FOREVER)) if times[offset] == 1 else commit.end_ns for commit, offset in commits}


def _judge_committed(read: Operation, partition: str, offset: int, commits: list[tuple[Operation, int]], ends_ns: dict[int, float]) -> Anomaly | None:
    settled = [(commit, value) for commit, value in commits if ends_ns[commit.id] < read.start_ns]
    begun = {value for commit, value in commits if commit.start_ns < read.end_ns}
    if not settled:
        if offset == -1 or offset in begun:
            return None
        return Anomaly(
            "group_offset_lost", f"{read.process} was told {partition}@{offset} of group {read.fields['group']}, which nobody committed", (read,)
        )
    latest_start_ns = max(commit.start_ns for commit, _ in settled)
    allowed = {value for commit, value in commits if commit.start_ns < read.end_ns and ends_ns[commit.id] >= latest_start_ns}
    if offset in allowed:
        return None
    newest, value = max(settled, key=lambda pair: pair[0].start_ns)
    kind = "group_offset_moved_back" if 0 <= offset < value else "group_offset_lost"
    message = f"group {read.fields['group']} had committed {partition}@{value}, and {read.process} was told {offset}"
    return Anomaly(kind, message, (newest, read))
