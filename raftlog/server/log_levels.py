"""The levels of this process's loggers as the configs of resource type BROKER_LOGGER (KIP-412): they end with the process.

Kafka's levels are Python's under other names; TRACE is below DEBUG.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raftlog.core.controller.config_changes import Operation, node_id_of
from raftlog.errors import InvalidConfig, InvalidRequest
from raftlog.ids import NodeId

ROOT: Final = "root"
LEVELS: Final[Mapping[str, int]] = {
    "TRACE": logging.DEBUG // 2,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
}


def check_node(name: str, node_id: NodeId) -> None:
    """Raises InvalidRequest unless the resource of that name is this node."""
    if node_id_of(name) != node_id:
        raise InvalidRequest(f"Unexpected node id. Expected {node_id}, but received {name}")


def described() -> dict[str, str]:
    """The level in force of each logger, and of each package that has some, by name, the root's first."""
    return {ROOT: _name_of(logging.root), **{name: _name_of(logging.getLogger(name)) for name in sorted(logging.root.manager.loggerDict)}}


def _name_of(each: logging.Logger) -> str:
    """Of the highest level that the logger's own is not below."""
    level = each.getEffectiveLevel()
    return max((value, name) for name, value in LEVELS.items() if value <= max(level, LEVELS["TRACE"]))[1]


def alter(changes: Sequence[Any], *, validate_only: bool) -> None:
    """Set levels, or delete them, so that the logger above counts. All or nothing.

    Raises InvalidConfig for an unknown logger or level, InvalidRequest for what can't be done to one.
    """
    known = described()
    for change in changes:
        _check(change, known)
    for change in () if validate_only else changes:
        level = LEVELS[change.value] if change.config_operation == Operation.SET else logging.NOTSET
        (logging.root if change.name == ROOT else logging.getLogger(change.name)).setLevel(level)


def _check(change: Any, known: Mapping[str, str]) -> None:
    if change.config_operation not in (Operation.SET, Operation.DELETE):
        raise InvalidRequest(f"{_operation(change.config_operation)} is not allowed for the BROKER_LOGGER resource")
    if change.name not in known:
        raise InvalidConfig(f"Logger {change.name} does not exist!")
    if change.config_operation == Operation.DELETE:
        if change.name == ROOT:
            raise InvalidRequest("Removing the log level of the root logger is not allowed")
    elif change.value not in LEVELS:
        raise InvalidConfig(
            f"Cannot set the log level of {change.name} to {change.value} as it is not a supported log level. "
            f"Valid log levels are {', '.join(sorted(LEVELS))}"
        )


def _operation(code: int) -> str:
    try:
        return f"{Operation(code).name} operation"
    except ValueError:
        return f"Unknown operation type {code}"
