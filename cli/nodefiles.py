"""The files a node needs before its first start: its .properties and its `meta.properties`.

Source: KIP-631 (meta.properties version 1), KIP-858 (directory.id).
"""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .errors import CliError

META_PROPERTIES: Final = "meta.properties"
CONFIG_FILE: Final = "server.properties"
DATA_DIRECTORY: Final = "data"


def new_kafka_id() -> str:
    """A random id as Kafka writes them: 22 characters of URL-safe base64, never starting with `-`."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):  # Would look like an option on a command line.
            return text


def check_cluster_id(text: str) -> str:
    """The id itself. Raises CliError unless it is 22 characters of URL-safe base64."""
    try:
        if len(text) == 22 and len(base64.b64decode(text + "==", altchars=b"-_", validate=True)) == 16:
            return text
    except ValueError:
        pass
    raise CliError(f"cluster id {text!r} is not 22 characters of URL-safe base64, as this command makes them when --cluster-id is left out")


def read_properties(path: Path) -> dict[str, str]:
    """The `name=value` lines of a file that `write_properties` wrote or a person edited; none when it does not exist.

    Not raftlog.config's parser, which knows continued lines too: importing that costs `raftlog up` 0.15 s before the first
    node starts, and each node parses its own file with it anyway. Raises CliError when the file can't be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    pairs = (line.partition("=") for line in lines if line.strip() and line.lstrip()[0] not in "#!")
    return {name.strip(): value.strip() for name, _, value in pairs}


def write_properties(path: Path, pairs: Mapping[str, str], *, heading: str) -> None:
    """Replace the file whole, durably: a crash leaves the old one or the new one."""
    text = "".join(f"# {line}\n" for line in heading.splitlines()) + "".join(f"{name}={value}\n" for name, value in pairs.items())
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CliError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def node_settings(*, node_id: int, voters: str, listener: str, data: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The settings in which nodes differ, and `more`. A node among the voters is a controller too, listening where they say."""
    own = [address for voter, _, address in (part.strip().partition("@") for part in voters.split(",")) if voter == str(node_id)]
    return {
        "node.id": str(node_id),
        "process.roles": "broker,controller" if own else "broker",
        "controller.quorum.voters": voters,
        "listeners": f"PLAINTEXT://{listener}" + "".join(f",CONTROLLER://{address}" for address in own),
        "log.dirs": str(data),
        **more,
    }


def prepare_data_directory(directory: Path, *, cluster_id: str, node_id: int) -> None:
    """Write `meta.properties` unless it is there. Raises CliError when it names another cluster or node, or was lost.

    Logs belong to the directory id that the lost file named: under a new one the cluster would take them for another disk's.
    """
    path = directory / META_PROPERTIES
    found = read_properties(path)
    if found:
        if found.get("cluster.id") != cluster_id:
            raise CliError(f"wrong cluster id: {directory} belongs to cluster {found.get('cluster.id')}, not {cluster_id}")
        if found.get("node.id") != str(node_id):
            raise CliError(f"{directory} belongs to node {found.get('node.id')}, not {node_id}")
        return
    if any(entry.is_dir() and entry.name.rpartition("-")[2].isdigit() for entry in _entries(directory)):
        raise CliError(f"{path} is missing, but {directory} holds logs: restore that file, or move the logs away")
    pairs = {"version": "1", "cluster.id": cluster_id, "node.id": str(node_id), "directory.id": new_kafka_id()}
    write_properties(path, pairs, heading="")


def _entries(directory: Path) -> list[Path]:
    """What a directory holds; nothing when it does not exist. Raises CliError when it can't be read."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CliError(f"{directory}: {(error.strerror or str(error)).lower()}") from None


def found_cluster_id(directory: Path) -> str | None:
    """The cluster a data directory belongs to, None for an empty or missing one."""
    return read_properties(directory / META_PROPERTIES).get("cluster.id")
