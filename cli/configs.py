"""`raftlog configs`: read and change the configs of topics, brokers, groups and client metrics."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from .brokers import Brokers
from .completion import complete_resource_kind, complete_resource_name
from .config_queries import (
    ALL_BROKERS,
    DEFAULT_SOURCE,
    RESOURCE_TYPES,
    Change,
    Resource,
    alter_configs,
    config_row,
    describe_configs,
    list_resources,
    parse_changes,
    parse_resource,
)
from .errors import CliError, UsageProblem
from .outcomes import Outcome, report
from .output import print_json, print_rows
from .session import Session, command

app = typer.Typer(help="Read and change the configs of topics, brokers, groups and client metrics.", no_args_is_help=True)

DOCUMENTATION_WIDTH: Final = 100
MARKUP: Final = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
OPERATION_NAMES: Final = ("set", "unset", "append", "subtract")

KindArgument = Annotated[str, typer.Argument(metavar="TYPE", help=f"Of what: {', '.join(RESOURCE_TYPES)}.", autocompletion=complete_resource_kind)]
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help=f"Its name; a broker's id, or {ALL_BROKERS} for all brokers together.", autocompletion=complete_resource_name
    ),
]
ValidateOption = Annotated[bool, typer.Option("--validate-only", help="Only say whether the cluster would accept it.")]


@command(app, "get")
def get(
    session: Session,
    kind: KindArgument,
    name: NameArgument,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG]...", help="Only these.")] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that have their default.")] = False,
    docs: Annotated[bool, typer.Option("--docs", help="What each one is for.")] = False,
) -> int:
    """Show configs with where each value comes from: those that are set, or the named ones, or --all."""
    resource = parse_resource(kind, name)
    with Brokers(session) as brokers:
        found = [config_row(config) for config in describe_configs(brokers, resource, keys, with_docs=docs)]
    missing = [key for key in keys or () if key not in {row["name"] for row in found}]
    if missing:
        raise CliError(f"{resource} has no config {missing[0]!r}")
    rows = found if everything or keys else [row for row in found if row["source"] != DEFAULT_SOURCE]
    if session.as_json:
        print_json({"resource": resource.fields, "configs": rows})
        return 0
    if not rows:
        print(f"{resource} has its defaults only; --all shows them")
        return 0
    print_rows(["name", "value", "source", "type"], [row | {"value": shown_value(row), "source": shown_source(row)} for row in rows])
    for row in rows if docs else ():
        print(f"\n{row['name']}\n{documentation_text(row['documentation'])}")
    return 0


@command(app, "set")
def set_configs(
    session: Session,
    kind: KindArgument,
    name: NameArgument,
    settings: Annotated[list[str], typer.Argument(metavar="CONFIG=VALUE...", help="name=value; name+=item and name-=item for lists.")],
    validate_only: ValidateOption = False,
) -> int:
    """Set configs, or add to and take from those that are lists."""
    return change(session, [parse_resource(kind, name)], parse_changes(settings), validate_only=validate_only)


@command(app, "unset")
def unset(
    session: Session,
    kind: KindArgument,
    name: NameArgument,
    keys: Annotated[list[str], typer.Argument(metavar="CONFIG...")],
    validate_only: ValidateOption = False,
) -> int:
    """Give configs their default again."""
    return change(session, [parse_resource(kind, name)], parse_changes((), keys), validate_only=validate_only)


@command(app, "list")
def list_all(
    session: Session,
    kind: Annotated[
        str | None, typer.Argument(metavar="[TYPE]", help=f"Only of {', '.join(RESOURCE_TYPES)}.", autocompletion=complete_resource_kind)
    ] = None,
) -> int:
    """List what may have configs: topics, brokers, and the groups and client metrics that have some."""
    if kind is not None and kind not in RESOURCE_TYPES:
        raise UsageProblem(f"there are no configs of {kind!r}, only of {', '.join(RESOURCE_TYPES)}")
    with Brokers(session) as brokers:
        rows = [resource.fields for resource in list_resources(brokers, kind)]
    if session.as_json:
        print_json(rows)
    else:
        print_rows(["type", "name"], rows)
    return 0


def change(session: Session, resources: Sequence[Resource], changes: Sequence[Change], *, validate_only: bool) -> int:
    """Make the same changes to each resource and report what became of each."""
    with Brokers(session) as brokers:
        outcomes = alter_configs(brokers, dict.fromkeys(resources, changes), validate_only=validate_only)
    made = [{"name": each.name, "operation": OPERATION_NAMES[each.operation], "value": each.value} for each in changes]
    verb = "would alter" if validate_only else "altered"
    return report(
        session,
        [Outcome(str(resource), resource.fields, outcomes.get(resource)) for resource in resources],
        done="altered",
        line=lambda outcome: f"{verb} {outcome.subject}: {', '.join(each.name for each in changes)}",
        summary={"changes": made, "validate_only": validate_only},
    )


def documentation_text(documentation: str | None) -> str:
    """Indented, without the HTML that Kafka's has."""
    text = html.unescape(MARKUP.sub("", documentation or "(undocumented)"))
    return textwrap.indent(textwrap.fill(text, DOCUMENTATION_WIDTH), "    ")


def shown_value(row: dict[str, Any]) -> str:
    if row["sensitive"]:
        return "(hidden)"
    return "-" if row["value"] is None else row["value"]


def shown_source(row: dict[str, Any]) -> str:
    return f"{row['source']}, read-only" if row["read_only"] else row["source"]
