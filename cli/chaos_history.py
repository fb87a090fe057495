"""The history of a chaos run while it grows: written by many client processes, followed by the run itself.

The format is that of `raftlog.testing.histories`. Each line is one write to a file opened for appending, so that the lines of
many processes never mix; all take their times from the machine's monotonic clock.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

IDS_PER_PROCESS: Final = 10**9  # Operations and values of process number N begin at N times this.
READ_BYTES_MAX: Final = 1 << 20


class Recorder:
    """Writes one process's operations."""

    def __init__(self, path: str, *, process: str, number: int) -> None:
        self.process = process
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._next_id = number * IDS_PER_PROCESS

    def invoke(self, f: str, **fields: Any) -> int:
        """Write that an operation begins; returns its id."""
        identity = self._take_id()
        self._write([self._invocation(identity, f, time.monotonic_ns(), fields)])
        return identity

    def end(self, identity: int, kind: str, **fields: Any) -> None:
        """Write its end: ok, fail (surely did not happen) or info (may have)."""
        self._write([{"id": identity, "type": kind, "time_ns": time.monotonic_ns(), **fields}])

    def whole(self, f: str, *, began_ns: int, kind: str = "ok", fields: dict[str, Any] | None = None, **result: Any) -> None:
        """Write an operation that has already ended."""
        identity = self._take_id()
        ended = {"id": identity, "type": kind, "time_ns": time.monotonic_ns(), **result}
        self._write([self._invocation(identity, f, began_ns, fields or {}), ended])

    def reposition(self) -> None:
        self.whole("reposition", began_ns=time.monotonic_ns())

    def _take_id(self) -> int:
        identity, self._next_id = self._next_id, self._next_id + 1
        return identity

    def _invocation(self, identity: int, f: str, time_ns: int, fields: dict[str, Any]) -> dict[str, Any]:
        return {"id": identity, "type": "invoke", "f": f, "process": self.process, "time_ns": time_ns, **fields}

    def _write(self, events: Sequence[dict[str, Any]]) -> None:
        os.write(self._file, "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events).encode())


class RackReads:
    """What the consumers in racks have read, and from whom. Times are those of the history, in ns."""

    def __init__(self) -> None:
        self.from_followers = 0  # Records.
        self._read_ns: dict[tuple[str, str], list[int]] = defaultdict(list)  # By rack and partition: when records came.
        self._followed: dict[tuple[str, str], tuple[int, int]] = {}  # The follower that it was last read from, and when.

    def take(self, event: dict[str, Any]) -> None:
        """The end of a poll."""
        rack, time_ns = event["rack"], event["time_ns"]
        for partition in {partition for partition, _, _ in event["records"]}:
            self._read_ns[rack, partition].append(time_ns)
        for partition, (node_id, count) in event["from_followers"].items():
            self.from_followers += count
            self._followed[rack, partition] = (node_id, time_ns)

    def followers(self, *, since_ns: int) -> Counter[int]:
        """Nodes from which consumers read what others lead, and how many partitions each."""
        return Counter(node_id for node_id, time_ns in self._followed.values() if time_ns >= since_ns)

    def have_all_read(self, racks: Sequence[str], partitions: Sequence[str], *, since_ns: int) -> bool:
        """Whether every rack has read every partition since a moment."""
        return all(max(self._read_ns[rack, partition], default=0) >= since_ns for rack in racks for partition in partitions)

    def longest_silence_s(self, racks: Sequence[str], partitions: Sequence[str], *, since_ns: int) -> float:
        """The longest time since a moment in which one of the racks read nothing of one of the partitions."""
        end_ns = time.monotonic_ns()
        return max(_longest_gap_s(self._read_ns[rack, partition], since_ns=since_ns, end_ns=end_ns) for rack in racks for partition in partitions)


class Tail:
    """Follows a growing history: acknowledged writes per second, and when each partition last had one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""
        self._sends: dict[int, tuple[str, int, bool]] = {}
        self.acknowledged = 0
        self.unsure = 0
        self.records_polled = 0
        self.rack_reads = RackReads()
        self.per_second: dict[int, int] = defaultdict(int)  # Acknowledged writes by whole second of the monotonic clock.
        self._of_all: dict[str, list[tuple[int, int]]] = defaultdict(list)  # Partition: began and ended (ns) of each with acks=all.

    def follow(self) -> None:
        """Take in what was written since the last time."""
        for event in self._events():
            kind, f = event["type"], event.get("f")
            if kind == "invoke" and f == "send":
                self._sends[event["id"]] = (event["partition"], event["time_ns"], event.get("acks", "all") == "all")
            elif kind != "invoke" and (send := self._sends.pop(event["id"], None)) is not None:
                if kind == "ok":
                    self.acknowledged += 1
                    self.per_second[event["time_ns"] // 10**9] += 1
                    if send[2]:
                        self._of_all[send[0]].append((send[1], event["time_ns"]))
                elif kind == "info":
                    self.unsure += 1
            elif "records" in event:
                self.records_polled += len(event["records"])
                if "rack" in event:
                    self.rack_reads.take(event)

    def resumed_ns(self, partition: str, *, after_ns: int) -> int | None:
        """When the first write with acks=all that began after a moment was acknowledged; None as long as there is none."""
        # Acknowledgements come almost in the order of time: those before the moment need not be looked at again.
        times = [ended for began, ended in reversed(self._of_all[partition][-5000:]) if began >= after_ns]
        return min(times, default=None)

    def longest_silence_s(self, partitions: Sequence[str], *, since_ns: int) -> float:
        """The longest time since a moment in which one of the partitions acknowledged no write with acks=all."""
        end_ns = time.monotonic_ns()
        return max(_longest_gap_s((ended for _, ended in self._of_all[partition]), since_ns=since_ns, end_ns=end_ns) for partition in partitions)

    def _events(self) -> Iterator[dict[str, Any]]:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._position)
            while block := file.read(READ_BYTES_MAX):
                self._position += len(block)
                *lines, self._rest = (self._rest + block).split(b"\n")
                yield from map(json.loads, lines)


def _longest_gap_s(times_ns: Iterable[int], *, since_ns: int, end_ns: int) -> float:
    times = [since_ns, *sorted(time_ns for time_ns in times_ns if since_ns <= time_ns <= end_ns), end_ns]
    return max(after - before for before, after in pairwise(times)) / 10**9
