"""kcat: librdkafka from the command line. It produces and consumes; it administers nothing."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .client import Client, Member, Membership, Place, Record, Refused, Sending
from .outcome import NotOffered
from .programs import ProgramMember, Skipped, run

TIMEOUT_S: Final = 60.0
PACKAGES: Final = ("kcat", "librdkafka1", "libyajl2")


class Kcat(Client):
    name = "kcat"

    def __init__(self) -> None:
        self.argv = ["kcat"]

    def prepare(self, directory: Path) -> None:
        """Uses the installed one; else unpacks Debian's packages in `directory`, which needs no root."""
        if shutil.which("kcat") is None:
            if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
                raise Skipped("kcat is not installed")
            place = directory / self.name
            place.mkdir(parents=True)
            run(["apt-get", "download", *PACKAGES], place)
            for package in sorted(place.glob("*.deb")):
                run(["dpkg", "-x", str(package), "."], place)
            libraries = {str(library.parent) for library in place.rglob("*.so*")}
            self.argv = ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}", str(place / "usr" / "bin" / "kcat")]
        shown = subprocess.run([*self.argv, "-V"], capture_output=True, text=True, check=False).stdout
        self.version = " / librdkafka ".join(re.findall(r"(?:Version |librdkafka )([\d.]+)", shown)[:2])

    def _run(self, *arguments: str, lines: Sequence[str] = (), pause_ms: int = 0) -> str:
        """What it printed, given these lines with a pause after each. Raises Refused with what it complained of."""
        pipe = subprocess.PIPE
        with subprocess.Popen([*self.argv, "-b", self.bootstrap_servers, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as kcat:
            assert kcat.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                for line in lines:
                    kcat.stdin.write(line)
                    if pause_ms:
                        kcat.stdin.flush()
                        time.sleep(pause_ms / 1000)
            out, complaint = kcat.communicate(timeout=TIMEOUT_S)
        if kcat.returncode:
            raise Refused((complaint.strip().splitlines() or [f"status {kcat.returncode}"])[-1])
        return out

    def produce(self, topic: str, records: Sequence[Record], sending: Sending) -> list[str | None]:
        headers, partitions = {record.headers for record in records}, {record.partition for record in records}
        if len(headers) > 1 or len(partitions) > 1 or any(record.timestamp_ms for record in records):
            raise NotOffered  # It takes headers and a partition for all of its records at once, and no timestamp.
        if any(part == "" for record in records for part in record[:2]):
            raise NotOffered  # With -Z what is empty is null, so that nothing can be empty.
        settings = {
            "acks": sending.acks,
            "compression.type": sending.codec,
            "enable.idempotence": str(sending.idempotent).lower(),
            "linger.ms": sending.linger_ms,
            "message.timeout.ms": sending.timeout_ms,
            "partitioner": "murmur2_random",
        }
        options = [part for name, value in settings.items() for part in ("-X", f"{name}={value}")]
        options += [part for name, value in headers.pop() for part in ("-H", f"{name}={value}")]
        options += [] if (partition := partitions.pop()) is None else ["-p", str(partition)]
        lines = [f"{record.key or ''}\t{record.value or ''}\n" for record in records]
        try:
            self._run("-P", "-t", topic, "-K", "\t", "-Z", *options, lines=lines, pause_ms=sending.pause_ms)
        except Refused as error:
            return [str(error)] * len(records)
        return [None] * len(records)

    def read(self, topic: str, *, partitions: Sequence[int], start: int, count: int, rack: str = "", wait_ms: int = 500) -> list[Record]:
        found: list[Record] = []
        settings = ["-X", f"client.rack={rack}", "-X", f"fetch.wait.max.ms={wait_ms}", "-X", f"socket.timeout.ms={wait_ms + 30_000}"]
        where = ["-p", str(partitions[0])] if len(partitions) == 1 else []
        offset = "beginning" if start == -2 else str(start)
        out = self._run("-C", "-t", topic, *where, "-o", offset, "-c", str(count), "-q", "-u", "-J", *settings)
        for line in out.splitlines():
            message = json.loads(line)
            flat = message.get("headers", [])
            headers = tuple(zip(flat[::2], flat[1::2], strict=True))
            found.append(Record(message["key"], message["payload"], headers, message["partition"], message["ts"], message["offset"]))
        return found

    def offset_for(self, topic: str, partition: int, timestamp_ms: int) -> int:
        return int(self._run("-Q", "-t", f"{topic}:{partition}:{timestamp_ms}").split()[-1])

    def member(self, wanted: Membership) -> Member:
        # Its librdkafka is older than KIP-848, and its way to take partitions older than incremental rebalances.
        if wanted.protocol == "consumer" or {"sticky", "cooperative-sticky"} & set(wanted.strategies):
            raise NotOffered
        settings = {
            "auto.offset.reset": "earliest",
            "auto.commit.interval.ms": 100,
            "partition.assignment.strategy": ",".join(wanted.strategies or ["range"]),
            "session.timeout.ms": wanted.session_ms,
            "heartbeat.interval.ms": 300,
            "topic.metadata.refresh.interval.ms": 1000,
            **({"group.instance.id": wanted.instance} if wanted.instance else {}),
        }
        options = [part for name, value in settings.items() for part in ("-X", f"{name}={value}")]
        return KcatMember([*self.argv, "-b", self.bootstrap_servers, "-G", wanted.group, "-u", *options, "-f", '{"value": "%s"}\n', *wanted.topics])

    def list_topics(self) -> list[str]:
        return [topic["topic"] for topic in json.loads(self._run("-L", "-J"))["topics"]]

    def describe_topic(self, topic: str) -> list[dict[str, Any]]:
        (found,) = json.loads(self._run("-L", "-J", "-t", topic))["topics"]
        return [
            {"leader": part["leader"], "replicas": [each["id"] for each in part["replicas"]], "isr": [each["id"] for each in part["isrs"]]}
            for part in sorted(found["partitions"], key=lambda part: part["partition"])
        ]


class KcatMember(ProgramMember):
    """kcat tells of rebalances in its own words."""

    def told(self, line: str) -> bool:
        rebalanced = re.search(r"rebalanced .*: (assigned|revoked): (.*)", line)
        if rebalanced is None:
            return super().told(line)
        places = {Place(topic, int(number)) for topic, number in re.findall(r"([\w.-]+) \[(\d+)\]", rebalanced[2])}
        self.holds(self.assigned | places if rebalanced[1] == "assigned" else self.assigned - places)
        return True
