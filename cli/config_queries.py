"""DescribeConfigs, IncrementalAlterConfigs and ListConfigResources (keys 32, 44, 74) for any resource that has configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .brokers import Brokers
from .errors import CliError, UsageProblem
from .wire import check, refusal

if TYPE_CHECKING:
    from raftlog.protocol.messages import Fields

DESCRIBE_CONFIGS: Final = 32
INCREMENTAL_ALTER_CONFIGS: Final = 44
LIST_CONFIG_RESOURCES: Final = 74

TOPIC: Final = "topic"
BROKER: Final = "broker"
CLIENT_METRICS: Final = "client-metrics"
RESOURCE_TYPES: Final[Mapping[str, int]] = {TOPIC: 2, BROKER: 4, "broker-logger": 8, CLIENT_METRICS: 16, "group": 32}
TYPE_NAMES: Final[Mapping[int, str]] = {code: name for name, code in RESOURCE_TYPES.items()}
ALL_TYPES_VERSION: Final = 1  # ListConfigResources before only lists client metrics.
OF_ONE_BROKER: Final = frozenset({BROKER, "broker-logger"})  # Only that broker answers for them.
ALL_BROKERS: Final = "default"  # How people call the configs of all brokers together; Kafka names them by "".

# Where a value comes from, and which type it has, by Kafka's numbers.
DEFAULT_SOURCE: Final = "default"
TOPIC_SOURCE: Final = "topic"
SOURCES: Final[Mapping[int, str]] = {
    1: TOPIC_SOURCE,
    2: "broker",
    3: "all brokers",
    4: "file",
    5: DEFAULT_SOURCE,
    6: "broker logger",
    7: "client metrics",
    8: "group",
}
VALUE_TYPES: Final[Mapping[int, str]] = {
    1: "boolean",
    2: "string",
    3: "int",
    4: "short",
    5: "long",
    6: "double",
    7: "list",
    8: "class",
    9: "password",
}

SET: Final = 0
DELETE: Final = 1
APPEND: Final = 2
SUBTRACT: Final = 3


class Resource(NamedTuple):
    """What configs belong to. `name` is the topic, group or subscription, a broker's id, or "" for all brokers."""

    kind: str
    name: str

    def __str__(self) -> str:
        return "all brokers" if self == (BROKER, "") else f"{self.kind} {self.name}"

    @property
    def node_id(self) -> int | None:
        """The broker that answers for it, None for any."""
        return int(self.name) if self.kind in OF_ONE_BROKER and self.name else None

    @property
    def fields(self) -> dict[str, str]:
        """For JSON."""
        return {"type": self.kind, "name": ALL_BROKERS if self == (BROKER, "") else self.name}


class Change(NamedTuple):
    """One change of one config; `operation` is SET, DELETE, APPEND or SUBTRACT."""

    name: str
    operation: int
    value: str | None


def parse_resource(kind: str, name: str) -> Resource:
    """As people name it, plurals too. Raises UsageProblem."""
    singular = kind if kind in RESOURCE_TYPES else kind.removesuffix("s")
    if singular not in RESOURCE_TYPES:
        raise UsageProblem(f"there are no configs of {kind!r}, only of {', '.join(RESOURCE_TYPES)}")
    if singular == BROKER and name == ALL_BROKERS:
        return Resource(BROKER, "")
    if singular in OF_ONE_BROKER and not name.isdecimal():
        raise UsageProblem(f"{name!r} is no broker's id" + (f", nor {ALL_BROKERS}" if singular == BROKER else ""))
    if not name:
        raise UsageProblem(f"the {singular}'s name is empty")
    return Resource(singular, name)


def parse_change(text: str) -> Change:
    """`name=value`, `name+=value` and `name-=value` for a list's items. Raises UsageProblem."""
    name, separator, value = text.partition("=")
    operation = {"+": APPEND, "-": SUBTRACT}.get(name[-1:], SET)
    name = (name if operation == SET else name[:-1]).strip()
    if not (separator and name):
        raise UsageProblem(f"{text!r} is not name=value, name+=item or name-=item")
    return Change(name, operation, value.strip())


def parse_changes(settings: Sequence[str], unset: Sequence[str] = ()) -> list[Change]:
    """All changes of one command. Raises UsageProblem for none, and for a config that is named twice."""
    changes = [*map(parse_change, settings), *(Change(name, DELETE, None) for name in unset)]
    if not changes:
        raise UsageProblem("nothing to change")
    names = [change.name for change in changes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageProblem(f"{twice} is named twice")
    return changes


def describe_configs(brokers: Brokers, resource: Resource, names: Sequence[str] | None = None, *, with_docs: bool = False) -> list[Fields]:
    """The configs of a resource, sorted by name, only those in `names` if given. Raises CliError."""
    request = {
        "resources": [{"resource_type": RESOURCE_TYPES[resource.kind], "resource_name": resource.name, "configuration_keys": names}],
        "include_synonyms": True,
        "include_documentation": with_docs,
    }

    def ask() -> list[Fields]:
        (result,) = brokers.ask(DESCRIBE_CONFIGS, request, node_id=resource.node_id).results
        check(result.error_code, result.error_message)
        return sorted(result.configs, key=lambda config: config.name)

    return brokers.patiently(ask)


def alter_configs(brokers: Brokers, changes: Mapping[Resource, Sequence[Change]], *, validate_only: bool = False) -> dict[Resource, CliError | None]:
    """Change configs; what became of each resource, None where all went well."""
    outcomes: dict[Resource, CliError | None] = {}
    for node_id in dict.fromkeys(resource.node_id for resource in changes):
        chosen = [resource for resource in changes if resource.node_id == node_id]
        try:
            outcomes |= _alter_at(brokers, node_id, {resource: changes[resource] for resource in chosen}, validate_only=validate_only)
        except CliError as error:
            outcomes |= dict.fromkeys(chosen, error)
    return outcomes


def _alter_at(
    brokers: Brokers, node_id: int | None, changes: Mapping[Resource, Sequence[Change]], *, validate_only: bool
) -> dict[Resource, CliError | None]:
    resources = [
        {
            "resource_type": RESOURCE_TYPES[resource.kind],
            "resource_name": resource.name,
            "configs": [{"name": change.name, "config_operation": change.operation, "value": change.value} for change in wanted],
        }
        for resource, wanted in changes.items()
    ]
    fields = {"resources": resources, "validate_only": validate_only}
    if node_id is None:
        answer = brokers.ask_controller(INCREMENTAL_ALTER_CONFIGS, fields)
    else:
        answer = brokers.patiently(lambda: brokers.ask(INCREMENTAL_ALTER_CONFIGS, fields, node_id=node_id))
    return {Resource(TYPE_NAMES[item.resource_type], item.resource_name): refusal(item.error_code, item.error_message) for item in answer.responses}


def list_resources(brokers: Brokers, kind: str | None) -> list[Resource]:
    """The resources that have configs of their own, and all topics and brokers. Raises CliError."""
    version_max = brokers.patiently(lambda: brokers.client().offered()).get(LIST_CONFIG_RESOURCES, (0, 0))[1]
    if version_max < ALL_TYPES_VERSION and kind in (None, TOPIC, BROKER):
        return [resource for resource in _listed_by_metadata(brokers) if kind in (None, resource.kind)]
    wanted = [] if kind is None else [RESOURCE_TYPES[kind]]
    version_min = 0 if kind == CLIENT_METRICS else ALL_TYPES_VERSION
    answer = brokers.patiently(lambda: brokers.ask(LIST_CONFIG_RESOURCES, {"resource_types": wanted}, version_min=version_min))
    check(answer.error_code)
    return sorted(Resource(TYPE_NAMES.get(item.resource_type, str(item.resource_type)), item.resource_name) for item in answer.config_resources)


def _listed_by_metadata(brokers: Brokers) -> list[Resource]:
    """Brokers and topics, for clusters that list no other resources."""
    metadata = brokers.patiently(brokers.metadata)
    nodes = sorted(broker.node_id for broker in metadata.brokers)
    return [*(Resource(BROKER, str(node)) for node in nodes), *(Resource(TOPIC, name) for name in sorted(topic.name for topic in metadata.topics))]


def config_row(config: Any) -> dict[str, Any]:
    """One config as JSON shows it."""
    return {
        "name": config.name,
        "value": config.value,
        "source": SOURCES.get(config.config_source, "unknown"),
        "type": VALUE_TYPES.get(config.config_type, "unknown"),
        "read_only": config.read_only,
        "sensitive": config.is_sensitive,
        "synonyms": [{"name": synonym.name, "value": synonym.value, "source": SOURCES.get(synonym.source, "unknown")} for synonym in config.synonyms],
        "documentation": config.documentation or None,
    }
