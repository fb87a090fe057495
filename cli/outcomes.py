"""What became of each of several things that a command was asked to do: those that failed are named, the others are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from raftlog.ids import TopicPartition

from .errors import CliError, complain
from .output import print_json
from .session import Session


class Outcome(NamedTuple):
    """One thing: how people call it, what JSON says of it, and why it failed, if it did."""

    subject: str
    fields: Mapping[str, Any]
    problem: CliError | None = None


def report(
    session: Session,
    outcomes: Sequence[Outcome],
    *,
    done: str,
    line: Callable[[Outcome], str] | None = None,
    show: Callable[[Sequence[Outcome]], None] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> int:
    """Print what was done, `line` by line or as `show` does, and one complaint for each that failed; returns the exit status.

    In JSON: `summary`, the list of those done under `done`, and `failed`, which adds `error` to each one's fields.
    """
    succeeded = [outcome for outcome in outcomes if outcome.problem is None]
    failed = [outcome for outcome in outcomes if outcome.problem is not None]
    if session.as_json:
        problems = [dict(outcome.fields) | {"error": str(outcome.problem)} for outcome in failed]
        print_json({**(summary or {}), done: [dict(outcome.fields) for outcome in succeeded], "failed": problems})
    elif show is not None:
        if succeeded or not failed:
            show(succeeded)
    else:
        for outcome in succeeded:
            print(line(outcome) if line is not None else f"{done} {outcome.subject}")
    for outcome in failed:
        complain(f"{outcome.subject}: {outcome.problem}")
    return failed[0].problem.exit_code if failed and failed[0].problem is not None else 0


def of_partition(partition: TopicPartition, result: CliError | object, **fields: Any) -> Outcome:
    """What became of one partition; `fields` join its topic and number where it went well."""
    identity = {"topic": partition.topic, "partition": partition.partition}
    if isinstance(result, CliError):
        return Outcome(str(partition), identity, result)
    return Outcome(str(partition), identity | fields)
