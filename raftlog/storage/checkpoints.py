"""The small text files of a data directory, in Kafka's formats.

Each `parse` raises ValueError; `read` names the path in a StorageError.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeVar

from raftlog.environment import Files
from raftlog.errors import StorageError
from raftlog.ids import NodeId, Offset, TopicId, TopicPartition

RECOVERY_POINTS: Final = "recovery-point-offset-checkpoint"
HIGH_WATERMARKS: Final = "replication-offset-checkpoint"
LOG_STARTS: Final = "log-start-offset-checkpoint"
CLEANED_OFFSETS: Final = "cleaner-offset-checkpoint"
LEADER_EPOCHS: Final = "leader-epoch-checkpoint"
PARTITION_METADATA: Final = "partition.metadata"
META_PROPERTIES: Final = "meta.properties"
CLEAN_SHUTDOWN: Final = ".kafka_cleanshutdown"
LOCK: Final = ".lock"

Content = TypeVar("Content")


def read(files: Files, path: str, parse: Callable[[str], Content]) -> Content:
    """The parsed content of a file that exists. Raises StorageError naming it."""
    try:
        return parse(files.read(path).decode())
    except ValueError as error:
        raise StorageError(f"{path} can't be read: {error}") from None


def replace_unsynced(files: Files, path: str, content: bytes) -> None:
    """Set a small file's content, atomically for a crash of the process, not of the machine: what is lost can be rebuilt."""
    temporary = path + ".tmp"
    file = files.open(temporary, create=True)
    try:
        file.truncate(0)
        file.write_at(0, (content,))
    finally:
        file.close()
    files.rename(temporary, path)


def format_offsets(offsets: Mapping[TopicPartition, Offset]) -> bytes:
    lines = [f"{topic} {partition} {offset}\n" for (topic, partition), offset in sorted(offsets.items())]
    return f"0\n{len(lines)}\n{''.join(lines)}".encode()


def parse_offsets(text: str) -> dict[TopicPartition, Offset]:
    lines = text.splitlines()
    if len(lines) < 2 or lines[0] != "0" or int(lines[1]) != len(lines) - 2:
        raise ValueError("not an offset checkpoint of version 0")
    offsets = {}
    for line in lines[2:]:
        topic, partition, offset = line.split()
        offsets[TopicPartition(topic, int(partition))] = int(offset)
    return offsets


def format_uuid(value: uuid.UUID) -> str:
    """Kafka's way to write a uuid: base64-url without padding, 22 characters."""
    return base64.urlsafe_b64encode(value.bytes).rstrip(b"=").decode()


def parse_uuid(text: str) -> uuid.UUID:
    raw = base64.urlsafe_b64decode(text + "==")
    if len(raw) != 16:
        raise ValueError(f"{text!r} is not a base64 uuid")
    return uuid.UUID(bytes=raw)


def format_partition_metadata(topic_id: TopicId) -> bytes:
    return f"version: 0\ntopic_id: {format_uuid(topic_id)}".encode()


def parse_partition_metadata(text: str) -> TopicId:
    pairs = dict(line.split(": ", 1) for line in text.splitlines())
    if pairs.get("version") != "0" or "topic_id" not in pairs:
        raise ValueError("not partition metadata of version 0")
    return parse_uuid(pairs["topic_id"])


class MetaProperties(NamedTuple):
    """Whose directory this is: `meta.properties`, version 1."""

    cluster_id: str
    node_id: NodeId
    directory_id: uuid.UUID

    def format(self) -> bytes:
        lines = (f"cluster.id={self.cluster_id}", f"directory.id={format_uuid(self.directory_id)}", f"node.id={self.node_id}", "version=1")
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def parse(cls, text: str) -> MetaProperties:
        pairs = dict(line.strip().split("=", 1) for line in text.splitlines() if line.strip() and line.strip()[0] not in "#!")
        if pairs.get("version") != "1":
            raise ValueError(f"version {pairs.get('version')} is not supported; 1 is needed")
        try:
            directory_id = parse_uuid(pairs["directory.id"].replace("\\", "")) if "directory.id" in pairs else uuid.UUID(int=0)
            return cls(pairs["cluster.id"].replace("\\", ""), int(pairs["node.id"]), directory_id)
        except KeyError as missing:
            raise ValueError(f"{missing.args[0]} is missing") from None
