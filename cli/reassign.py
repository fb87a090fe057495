"""`raftlog topics reassign`: move partitions to other brokers, watch them move, stop them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from raftlog.ids import TopicPartition

from .brokers import Brokers
from .completion import complete_topic
from .errors import CliError, UsageProblem
from .files import read_plan, write_plan
from .outcomes import Outcome, of_partition, report
from .output import YesOption, confirm, counted, print_json, print_rows
from .partitions import PARTITIONS_HELP, PARTITIONS_METAVAR, Choice, choose, find, parse_choices, parse_numbers
from .reassign_plan import Assignment, plan_document, plan_moves, plan_of_items
from .reassign_queries import Ongoing, alter_reassignments, assignment_of, list_ongoing, remove_throttles, throttle
from .reassign_watch import watch_moves
from .session import Session, command
from .topics import app

NO_REASSIGNMENT_IN_PROGRESS: Final = 85
NOTHING_MOVES: Final = "no partition is moving"
COMPLETE: Final = "complete"
MOVING: Final = "moving"
ELSEWHERE: Final = "elsewhere"
MISSING: Final = "missing"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be moved where, as the command line says it: a file's plan, or brokers to choose from for some partitions."""

    file: Path | None
    chosen: tuple[Choice, ...]
    nodes: tuple[int, ...]
    replication_factor: int | None

    @property
    def is_given(self) -> bool:
        return self.file is not None or bool(self.nodes) or self.replication_factor is not None


@dataclass(frozen=True, slots=True)
class State:
    """Where replicas lie or are going to, and where they shall lie."""

    current: Assignment
    ongoing: Mapping[TopicPartition, Ongoing]
    plan: Assignment

    @property
    def changed(self) -> dict[TopicPartition, tuple[int, ...]]:
        """Those of the plan that are not so yet and not on their way."""
        return {key: replicas for key, replicas in self.plan.items() if self.heading(key) != replicas}

    def heading(self, key: TopicPartition) -> tuple[int, ...] | None:
        """Where a partition's replicas will be when nothing more is done; None where there is no such partition."""
        return self.ongoing[key].target if key in self.ongoing else self.current.get(key)


@command(app, "reassign")
def reassign(
    session: Session,
    chosen: Annotated[
        list[str] | None, typer.Argument(metavar=f"[{PARTITIONS_METAVAR}]", help=PARTITIONS_HELP, autocompletion=complete_topic)
    ] = None,
    to_brokers: Annotated[
        str | None, typer.Option("--to-brokers", metavar="1,2,…", help="Spread the topics evenly over these, moving little.")
    ] = None,
    replication_factor: Annotated[int | None, typer.Option("--replication-factor", "-r", min=1, help="Have so many replicas of each.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", "-f", help="A plan in JSON, as kafka-reassign-partitions has it.")] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Only show the plan; with --json it is a file for --plan.")] = False,
    execute: Annotated[bool, typer.Option("--execute", help="Start moving.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Say how far the plan is; at its end remove the throttle.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop the moves under way, of the topics or plan named or all, and go back.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Wait until all is moved, then as --verify. Ctrl-C stops only the waiting.")] = False,
    throttle_bytes: Annotated[int | None, typer.Option("--throttle", min=1, metavar="BYTES", help="Bytes per second and broker at most.")] = None,
    save_current: Annotated[Path | None, typer.Option("--save-current", metavar="FILE", help="Write the way back here before moving.")] = None,
    yes: YesOption = False,
) -> int:
    """Move partitions to other brokers. Without a plan: list the moves under way."""
    wish = Wish(plan, tuple(parse_choices(chosen)), parse_numbers(to_brokers) if to_brokers is not None else (), replication_factor)
    check_options(wish, generate=generate, execute=execute, verify=verify, cancel=cancel, throttle_bytes=throttle_bytes)
    with Brokers(session) as brokers:
        if cancel:
            return cancel_moves(session, brokers, wish, yes=yes)
        if not wish.is_given and not watch:
            return show_ongoing(session, brokers, wish)
        state = find_state(brokers, wish)
        if execute:
            status = start_moves(session, brokers, state, throttle_bytes=throttle_bytes, save_current=save_current, watched=watch, yes=yes)
            if status or not watch:
                return status
        elif not (verify or watch):
            return show_plan(session, state)
        if watch:
            watch_moves(brokers, state.plan)
        return report_progress(session, brokers, state.plan)


def check_options(wish: Wish, *, generate: bool, execute: bool, verify: bool, cancel: bool, throttle_bytes: int | None) -> None:
    """Raises UsageProblem for options that contradict each other."""
    if sum((generate, execute, verify, cancel)) > 1:
        raise UsageProblem("--generate, --execute, --verify and --cancel exclude each other")
    if wish.file is not None and (wish.chosen or wish.nodes or wish.replication_factor is not None):
        raise UsageProblem("--plan already says what goes where")
    if (wish.nodes or wish.replication_factor is not None) and not wish.chosen:
        raise UsageProblem("name the topics to move")
    if cancel and (wish.nodes or wish.replication_factor is not None):
        raise UsageProblem("--cancel needs no brokers: what is moving goes back to where it was")
    if (generate or execute or verify) and not wish.is_given:
        raise UsageProblem("say what goes where: TOPIC... with --to-brokers or --replication-factor, or --plan")
    if throttle_bytes is not None and not execute:
        raise UsageProblem("--throttle goes with --execute")


def find_state(brokers: Brokers, wish: Wish) -> State:
    """What is there, what is moving, and what the wish comes to. Raises CliError."""
    ongoing = list_ongoing(brokers)  # First, so that a move that ends in between still counts with where it goes.
    metadata = brokers.patiently(brokers.metadata)
    current = assignment_of(metadata)
    if wish.file is not None:
        return State(current, ongoing, plan_of_items(read_plan(wish.file), str(wish.file)))
    partitions = choose(metadata, wish.chosen) if wish.chosen else sorted(ongoing)
    heading = {key: ongoing[key].target if key in ongoing else current[key] for key in partitions if key in current}
    if not wish.is_given:
        return State(current, ongoing, {key: target for key, target in heading.items() if key in ongoing})
    racks = {broker.node_id: broker.rack for broker in metadata.brokers}
    missing = [node for node in wish.nodes if node not in racks]
    if missing:
        raise CliError(f"no broker {missing[0]} at the moment; there are {', '.join(map(str, sorted(racks)))}")
    targets = {node: racks[node] for node in wish.nodes or sorted(racks)}
    return State(current, ongoing, plan_moves(heading, targets, replication_factor=wish.replication_factor))


def show_ongoing(session: Session, brokers: Brokers, wish: Wish) -> int:
    chosen = set(find(brokers, wish.chosen)) if wish.chosen else None
    rows = [
        {"topic": key.topic, "partition": key.partition, "replicas": move.target, "adding": move.adding, "removing": move.removing}
        for key, move in sorted(list_ongoing(brokers).items())
        if chosen is None or key in chosen
    ]
    if session.as_json:
        print_json(rows)
    elif rows:
        print_rows(["topic", "partition", "replicas", "adding", "removing"], rows, right=["partition"])
    else:
        print(NOTHING_MOVES)
    return 0


def show_plan(session: Session, state: State) -> int:
    if session.as_json:
        print_json(plan_document(state.plan))
        return 0
    rows = [
        {"topic": key.topic, "partition": key.partition, "replicas": state.heading(key), "planned": replicas, "adding": added(state, key)}
        for key, replicas in sorted(state.plan.items())
    ]
    print_rows(["topic", "partition", "replicas", "planned", "adding"], rows, right=["partition"])
    print(f"\n{counted(len(state.changed), 'partition')} of {len(state.plan)} would change, {counted(copies(state), 'replica')} would be copied")
    return 0


def added(state: State, key: TopicPartition) -> tuple[int, ...]:
    return tuple(node for node in state.plan[key] if node not in (state.heading(key) or ()))


def copies(state: State) -> int:
    return sum(len(added(state, key)) for key in state.plan)


def start_moves(
    session: Session,
    brokers: Brokers,
    state: State,
    *,
    throttle_bytes: int | None,
    save_current: Path | None,
    watched: bool,
    yes: bool,
) -> int:
    """Start what is not so yet; a throttle also holds for what is moving already. JSON is left to whoever watches."""
    changed = state.changed
    before = {key: state.current[key] for key in changed if key in state.current}
    under_way = {key: move.origin for key, move in state.ongoing.items() if key in state.plan}
    confirm(f"Move {counted(len(changed), 'partition')}, copying {counted(copies(state), 'replica')}?", yes=yes)
    if save_current is not None:
        write_plan(save_current, plan_document(before))
    throttled = {key: (origin, state.plan[key]) for key, origin in (before | under_way).items()}
    if throttle_bytes is not None and throttled:
        try:
            throttle(brokers, throttled, throttle_bytes)
        except CliError:
            with contextlib.suppress(CliError):  # What was set of it must not stay without the move.
                remove_throttles(brokers, {key.topic for key in throttled})
            raise
    problems = alter_reassignments(brokers, changed) if changed else {}
    outcomes = [
        of_partition(key, problems.get(key), replicas=list(state.plan[key]), before=list(state.current.get(key, ()))) for key in sorted(changed)
    ]
    failed = any(outcome.problem is not None for outcome in outcomes)
    if watched and not failed:
        return 0
    return report(
        session,
        outcomes,
        done="started",
        line=lambda outcome: f"moving {outcome.subject} from {_listed(outcome.fields['before'])} to {_listed(outcome.fields['replicas'])}",
        summary={"throttle": throttle_bytes},
    )


def cancel_moves(session: Session, brokers: Brokers, wish: Wish, *, yes: bool) -> int:
    """Take back the moves under way."""
    ongoing = list_ongoing(brokers)
    if wish.file is not None:
        wanted = sorted(plan_of_items(read_plan(wish.file), str(wish.file)))
    elif wish.chosen:
        wanted = find(brokers, wish.chosen)
    else:
        wanted = sorted(ongoing)
    moving = [key for key in wanted if key in ongoing]
    confirm(f"Cancel {counted(len(moving), 'move')}?", yes=yes)
    problems = alter_reassignments(brokers, dict.fromkeys(moving)) if moving else {}
    outcomes = [
        of_partition(key, problem, replicas=list(ongoing[key].origin))
        for key, problem in sorted(problems.items())
        if problem is None or getattr(problem, "code", None) != NO_REASSIGNMENT_IN_PROGRESS
    ]
    if moving and not set(ongoing) - set(moving):
        remove_throttles(brokers, {key.topic for key in moving})
    if not (outcomes or session.as_json):
        print(NOTHING_MOVES)
    return report(session, outcomes, done="cancelled", line=lambda each: f"cancelled {each.subject}: back to {_listed(each.fields['replicas'])}")


def report_progress(session: Session, brokers: Brokers, plan: Assignment) -> int:
    """How far each partition of the plan is; the throttle goes when nothing is moving any more. Status 1 if any is not complete."""
    ongoing = list_ongoing(brokers)  # First, so that what ends in between is not taken for lost.
    current = assignment_of(brokers.patiently(brokers.metadata))
    outcomes: list[Outcome] = []
    for key, replicas in sorted(plan.items()):
        state, problem = state_of(key, replicas, current, ongoing)
        fields = {"topic": key.topic, "partition": key.partition, "replicas": list(replicas), "state": state}
        outcomes.append(Outcome(str(key), fields, CliError(problem) if problem is not None else None))
    unthrottled = not ongoing and remove_throttles(brokers, {key.topic for key in plan if key in current})
    if not session.as_json and unthrottled:
        print("the throttle is removed")
    columns = ["topic", "partition", "replicas", "state"]
    return report(
        session,
        outcomes,
        done="partitions",
        show=lambda done: print_rows(columns, [each.fields for each in done], right=["partition"]) if plan else print(NOTHING_MOVES),
        summary={"moving": len(ongoing.keys() & plan.keys()), "throttle_removed": unthrottled},
    )


def state_of(
    key: TopicPartition, replicas: tuple[int, ...], current: Assignment, ongoing: Mapping[TopicPartition, Ongoing]
) -> tuple[str, str | None]:
    """A partition's state against its plan, and what is wrong with it, if anything."""
    if key not in current:
        return MISSING, "no such partition"
    if key in ongoing:
        target = ongoing[key].target
        return (MOVING, None) if target == replicas else (ELSEWHERE, f"moving to {_listed(target)} instead of {_listed(replicas)}")
    if current[key] == replicas:
        return COMPLETE, None
    return ELSEWHERE, f"on {_listed(current[key])} instead of {_listed(replicas)}, and not moving"


def _listed(nodes: Sequence[int]) -> str:
    return ",".join(map(str, nodes))
