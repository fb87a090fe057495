"""What a request to alter configs asks for, resource by resource, and what is wrong with it whatever the state is.

The broker that a client asks looks first, then the controller, which decides (`core.controller.configs`).
Source: Kafka's ConfigAdminManager, DynamicBrokerConfig and ConfigurationControlManager, with their messages; KIP-339, KIP-226.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from raftlog.config import KEYS as SETTING_KEYS
from raftlog.config import UpdateMode
from raftlog.config_types import ConfigKey, ConfigType, text_of
from raftlog.errors import ApiError, InvalidConfig, InvalidRequest

Changes: TypeAlias = Mapping[str, str | None]
"""New values by config name, None where the config goes."""

NODE_ID_DIGITS_MAX: Final = 10


class Operation(enum.IntEnum):
    """What to do with one config; APPEND and SUBTRACT are for lists."""

    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


def misshapen(resources: Sequence[Any], *, incremental: bool) -> list[ApiError | None]:
    """For each resource what is wrong with how it is asked, None for nothing. A resource named twice is refused twice."""
    counts = Counter((resource.resource_type, resource.resource_name) for resource in resources)
    problems: list[ApiError | None] = []
    for resource in resources:
        names = [config.name for config in resource.configs]
        valued = [config for config in resource.configs if not (incremental and config.config_operation == Operation.DELETE)]
        nulls = [config.name for config in valued if config.value is None]
        if counts[resource.resource_type, resource.resource_name] > 1:
            problems.append(InvalidRequest("Each resource must appear at most once."))
        elif len(set(names)) != len(names):
            problems.append(InvalidRequest("Error due to duplicate config keys"))
        elif nulls:
            problems.append(InvalidRequest(f"Null value not supported for : {', '.join(nulls)}"))
        else:
            problems.append(None)
    return problems


def changes_of(resource: Any, present: Mapping[str, str], keys: Mapping[str, ConfigKey], *, incremental: bool) -> dict[str, str | None]:
    """What becomes of each config that the resource names, and, where it replaces all, of those it does not name.

    Raises InvalidRequest for an unknown operation, InvalidConfig for a list's operation on what is none.
    """
    if not incremental:
        return {**dict.fromkeys(present), **{config.name: config.value for config in resource.configs}}
    return {config.name: _changed(config, present.get(config.name), keys) for config in resource.configs}


def _changed(config: Any, present: str | None, keys: Mapping[str, ConfigKey]) -> str | None:
    try:
        operation = Operation(config.config_operation)
    except ValueError:
        raise InvalidRequest(f"Unknown operations type {config.config_operation}") from None
    if operation is Operation.DELETE:
        return None
    value: str = config.value
    if operation is Operation.SET:
        return value
    key = keys.get(config.name)
    if key is None or key.type is not ConfigType.LIST:
        raise InvalidConfig(f"Can't {operation.name} to key {config.name} because its type is not LIST.")
    parts = _parts(text_of(key.default) if present is None else present)
    if operation is Operation.APPEND:
        parts += [part for part in dict.fromkeys(_parts(value)) if part not in parts]
    else:
        gone = _parts(value)
        parts = [part for part in parts if part not in gone]
    return ",".join(parts)


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def check_broker_changes(changes: Changes, *, per_broker: bool) -> None:
    """Whether a broker takes these values at run time; `per_broker`: they are one broker's, not all brokers'.

    Raises InvalidRequest, as Kafka does here, for a setting that needs a restart and for a wrong value; InvalidConfig for an
    unknown name, which Kafka would store without an effect.
    """
    given = {name: text for name, text in changes.items() if text is not None}
    unknown = [name for name in given if name not in SETTING_KEYS]
    if unknown:
        raise InvalidConfig(f"Unknown broker config name: {unknown[0]}")
    check_known_broker_changes(given, per_broker=per_broker)


def check_known_broker_changes(changes: Changes, *, per_broker: bool) -> None:
    """As `check_broker_changes`, but unknown names pass: a JVM's broker that forwards them knows more settings."""
    known = {name: text for name, text in changes.items() if text is not None and name in SETTING_KEYS}
    _refuse(_of_mode(known, UpdateMode.READ_ONLY), "Cannot update these configs dynamically")
    for name, text in known.items():
        try:
            SETTING_KEYS[name].parse(text)
        except InvalidConfig as error:
            raise InvalidRequest(str(error)) from None
    if not per_broker:
        _refuse(_of_mode(known, UpdateMode.PER_BROKER), "Cannot update these configs at default cluster level, broker id must be specified")


def _of_mode(names: Iterable[str], mode: UpdateMode) -> list[str]:
    return [name for name in names if SETTING_KEYS[name].mode is mode]


def _refuse(names: Sequence[str], problem: str) -> None:
    if names:
        raise InvalidRequest(f"{problem}: [{', '.join(names)}]")


def node_id_of(resource_name: str) -> int:
    """The node that the resource of a broker names. Raises InvalidRequest."""
    digits = resource_name.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= NODE_ID_DIGITS_MAX and str(int(resource_name)) == resource_name):
        raise InvalidRequest(f"Node id must be an integer, but it is: {resource_name}")
    return int(resource_name)
