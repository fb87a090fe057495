"""The history of a chaos run while it grows: written by many client processes, followed by the run itself.

The format is that of `raftlog.testing.histories`. Each line is one write to a file opened for appending, so that the lines of
many processes never mix; all take their times from the machine's monotonic clock.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
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

    def resumed_ns(self, partition: str, *, after_ns: int) -> int | None:
        """When the first write with acks=all that began after a moment was acknowledged; None as long as there is none."""
        # Acknowledgements come almost in the order of time: those before the moment need not be looked at again.
        times = [ended for began, ended in reversed(self._of_all[partition][-5000:]) if began >= after_ns]
        return min(times, default=None)

    def longest_silence_s(self, partitions: Sequence[str], *, since_ns: int) -> float:
        """The longest time since a moment in which one of the partitions acknowledged no write with acks=all."""
        longest_ns = 0
        for partition in partitions:
            times = [since_ns, *sorted(ended for _, ended in self._of_all[partition] if ended >= since_ns)]
            longest_ns = max(longest_ns, *(after - before for before, after in pairwise([*times, time.monotonic_ns()])))
        return longest_ns / 10**9

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
