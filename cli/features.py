"""`raftlog cluster features`: the levels of the cluster's features, and changes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from .brokers import Brokers
from .cluster import app as cluster_app
from .completion import offered
from .configs import ValidateOption
from .errors import UsageProblem
from .outcomes import Outcome, report
from .output import print_json, print_rows
from .session import BootstrapOption, Defaults, JsonOption, Session, TimeoutOption, command, make_session
from .wire import API_VERSIONS, CLIENT_SOFTWARE, refusal

UPDATE_FEATURES: Final = 57
UPGRADE_TYPES_VERSION: Final = 1  # UpdateFeatures before knows neither unsafe downgrades nor trying without doing.
UPGRADE: Final = 1
SAFE_DOWNGRADE: Final = 2
UNSAFE_DOWNGRADE: Final = 3
LEVEL_MAX: Final = 2**15 - 1

app = typer.Typer(help="Show and change the levels of the cluster's features.")
cluster_app.add_typer(app, name="features")


def complete_feature(context: typer.Context, incomplete: str) -> list[str]:
    return offered(context, incomplete, lambda brokers: (f"{row['feature']}=" for row in feature_rows(brokers)))


FeatureOption = Annotated[
    list[str],
    typer.Option(
        "--feature", "-f", metavar="NAME=LEVEL", help="Which feature, and its new level. May be given again.", autocompletion=complete_feature
    ),
]


@app.callback(invoke_without_command=True)
def family(
    context: typer.Context, bootstrap_server: BootstrapOption = None, as_json: JsonOption = False, timeout_s: TimeoutOption = None
) -> int | None:
    """Show and change the levels of the cluster's features; without a command, show them."""
    session = make_session(context.obj, bootstrap_server, as_json, timeout_s)
    if context.invoked_subcommand is None:
        return describe(session)
    context.obj = Defaults(session.bootstrap_servers, session.as_json, session.timeout_s)
    return None


@command(app, "describe")
def describe(session: Session) -> int:
    """Show the levels of the cluster's features, and those that the broker asked could run at."""
    with Brokers(session) as brokers:
        rows = brokers.patiently(lambda: feature_rows(brokers))
    if session.as_json:
        print_json(rows)
    else:
        print_rows(["feature", "level", "lowest", "highest"], rows, right=["level", "lowest", "highest"])
    return 0


@command(app, "upgrade")
def upgrade(session: Session, wanted: FeatureOption, validate_only: ValidateOption = False) -> int:
    """Raise features to other levels, all of them or none. Nodes of a release that does not know a level can't join any more."""
    return update(session, wanted, UPGRADE, validate_only=validate_only)


@command(app, "downgrade")
def downgrade(
    session: Session,
    wanted: FeatureOption,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Even where metadata would be lost.")] = False,
    validate_only: ValidateOption = False,
) -> int:
    """Lower features to other levels, all of them or none."""
    return update(session, wanted, UNSAFE_DOWNGRADE if unsafe else SAFE_DOWNGRADE, validate_only=validate_only)


def update(session: Session, wanted: Sequence[str], upgrade_type: int, *, validate_only: bool) -> int:
    """Ask for the levels and report what became of each."""
    levels = parse_levels(wanted)
    updates = [{"feature": name, "max_version_level": level, "upgrade_type": upgrade_type} for name, level in levels.items()]
    with Brokers(session) as brokers:
        fields = {"timeout": brokers.timeout_ms, "feature_updates": updates, "validate_only": validate_only}
        answer = brokers.ask_controller(UPDATE_FEATURES, fields, version_min=UPGRADE_TYPES_VERSION)
    results = {result.feature: result for result in answer.results}
    outcomes = []
    for name, level in levels.items():
        result = answer if answer.error_code else results.get(name, answer)
        outcomes.append(Outcome(name, {"feature": name, "level": level}, refusal(result.error_code, result.error_message)))
    verb = "would set" if validate_only else "set"
    return report(
        session,
        outcomes,
        done="updated",
        line=lambda outcome: f"{verb} {outcome.subject} to {outcome.fields['level']}",
        summary={"validate_only": validate_only},
    )


def feature_rows(brokers: Brokers) -> list[dict[str, Any]]:
    """What is finalized, and what the broker asked could run at. Raises CliError."""
    answer = brokers.ask(API_VERSIONS, CLIENT_SOFTWARE)
    finalized = {feature.name: feature.max_version_level for feature in answer.finalized_features}
    supported = {feature.name: (feature.min_version, feature.max_version) for feature in answer.supported_features}
    return [
        {
            "feature": name,
            "level": finalized.get(name),
            "lowest": supported[name][0] if name in supported else None,
            "highest": supported[name][1] if name in supported else None,
        }
        for name in sorted(finalized.keys() | supported.keys())
    ]


def parse_levels(wanted: Sequence[str]) -> dict[str, int]:
    """`name=level` by name. Raises UsageProblem."""
    levels: dict[str, int] = {}
    for text in wanted:
        name, separator, level = text.partition("=")
        if not (name and separator and level.isascii() and level.isdigit() and int(level) <= LEVEL_MAX):
            raise UsageProblem(f"{text!r} is not name=level")
        if name in levels:
            raise UsageProblem(f"{name} is named twice")
        levels[name] = int(level)
    return levels
