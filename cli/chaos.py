"""`raftlog chaos`: faults on a real cluster under real clients, and the judging of what the clients saw.

Exit status of `run` and `check`: 0 only when nothing is wrong.
"""

from __future__ import annotations

import json
import random
import secrets
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .errors import EXIT_FAILED, EXIT_OK, CliError, UsageProblem
from .output import print_json, print_table
from .session import Defaults, JsonOption, parse_servers

if TYPE_CHECKING:
    from raftlog.testing.histories import Anomaly, Verdict

    from .chaos_run import Options, Outcome

ANOMALIES_PRINTED_MAX: Final = 20
SECONDS_PER_MINUTE: Final = 60.0
NODE_COUNTS: Final = (3, 5)
NETWORKS: Final = ("proxies", "namespaces")

app = typer.Typer(help="Faults on a real cluster under real clients, and the checking of histories.", no_args_is_help=True)


@app.command("list")
def list_scenarios(context: typer.Context, as_json: JsonOption = False) -> int:
    """The scenarios that come with raftlog."""
    from .chaos_scenario import load_all

    found = load_all()
    if wants_json(context, as_json):
        print_json(
            [
                {
                    "name": item.name,
                    "title": item.title,
                    "about": item.about,
                    "limit_s": item.writes_resume_within_s,
                    "needs_namespaces": item.needs_namespaces,
                }
                for item in found.values()
            ]
        )
    else:
        rows = [[item.name, item.title, f"{item.writes_resume_within_s:g} s {measured(item.measure)}"] for item in found.values()]
        print_table(["scenario", "what happens", "no writes for at most"], rows)
    return EXIT_OK


def measured(measure: str) -> str:
    return "after the cure" if measure == "cure" else "at a time"


@app.command()
def check(
    context: typer.Context,
    history: Annotated[Path, typer.Argument(metavar="HISTORY", help="A file of JSON lines; `raftlog chaos format` describes them.")],
    as_json: JsonOption = False,
) -> int:
    """Hold a recorded history of client operations against what a log promises; exit status 1 when anything is wrong."""
    from raftlog.testing import histories

    try:
        with history.open(encoding="utf-8") as file:
            operations = histories.parse(file)
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{history}: {getattr(error, 'strerror', None) or error}") from None
    verdict = histories.check(operations)
    if wants_json(context, as_json):
        print_json(verdict_fields(verdict))
    else:
        print_verdict(verdict)
    return EXIT_OK if verdict.is_clean else EXIT_FAILED


@app.command("format")
def describe_format() -> int:
    """The form of a history that `chaos check` reads, and what it finds."""
    from raftlog.testing import histories

    assert histories.__doc__ is not None
    print(histories.__doc__.strip())
    return EXIT_OK


@app.command()
def run(
    context: typer.Context,
    scenario: Annotated[str | None, typer.Option("--scenario", "-s", metavar="NAME", help="One of `chaos list`, or a scenario's .toml file.")] = None,
    at_random: Annotated[bool, typer.Option("--random", help="Rounds of all scenarios as the seed has them.")] = False,
    minutes: Annotated[float, typer.Option("--minutes", "-m", min=0, help="Rounds are begun for so long; a begun one is finished.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="For what is left to chance; another one each time when left out.")] = None,
    nodes: Annotated[int, typer.Option("--nodes", "-n", help="3 or 5.")] = 3,
    rate: Annotated[float, typer.Option("--rate", min=1, max=5000, help="Writes per second of all producers together.")] = 200.0,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="Write the timeline and the verdict there.")] = None,
    network: Annotated[
        str, typer.Option("--network", metavar="proxies|namespaces", help="What cuts and slows links; namespaces need root and reach clients, too.")
    ] = NETWORKS[0],
    history: Annotated[Path | None, typer.Option("--history", metavar="FILE", help="Record the clients' operations there.")] = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="Keep the nodes' data and logs there.")] = None,
    bootstrap: Annotated[
        str | None, typer.Option("--bootstrap", "--bootstrap-server", "-b", metavar="HOST:PORT,…", help="Use this cluster, without faults.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Run faults against a cluster of processes under real clients; exit status 0 only when the checker is satisfied and writes resumed in time."""
    from .chaos_run import ChaosRun
    from .chaos_view import JsonView, LiveView, PlainView

    if nodes not in NODE_COUNTS:
        raise UsageProblem(f"--nodes is 3 or 5, not {nodes}")
    if network not in NETWORKS:
        raise UsageProblem(f"--network is {' or '.join(NETWORKS)}, not {network}")
    as_json = wants_json(context, as_json)
    # A run that is told to stop must still stop its nodes, wake paused ones and all.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options = make_options(
        scenario,
        at_random,
        bootstrap=bootstrap,
        minutes=minutes,
        seed=seed,
        nodes=nodes,
        rate=rate,
        in_namespaces=network == "namespaces",
        history=history,
        keep=directory,
    )
    view: Any = JsonView() if as_json else LiveView() if sys.stdout.isatty() else PlainView()
    chaos = ChaosRun(options, view)
    view.timeline = chaos.timeline
    try:
        with view:
            outcome = chaos.run()
    except (CliError, KeyboardInterrupt):  # The run was not finished: what there is of it may tell why.
        say_kept(chaos.directory)
        raise
    if report is not None:
        from .chaos_report import write

        write(report, outcome, title=options.title, seed=options.seed)
    show(outcome, options, as_json=as_json)
    if outcome.passed:
        chaos.clean_up()
    else:
        say_kept(chaos.directory)
    return EXIT_OK if outcome.passed else EXIT_FAILED


def say_kept(directory: Path) -> None:
    print(f"raftlog: data, logs and history are kept in {directory}", file=sys.stderr)


@app.command(hidden=True)
def client(spec: Annotated[str, typer.Argument()]) -> int:
    """One client of a run, in a process of its own."""
    from .chaos_clients import run_client

    return run_client(json.loads(spec))


def make_options(
    name: str | None,
    at_random: bool,
    *,
    bootstrap: str | None,
    minutes: float,
    seed: int | None,
    nodes: int,
    rate: float,
    in_namespaces: bool = False,
    history: Path | None,
    keep: Path | None,
) -> Options:
    """Raises UsageProblem for options that contradict each other."""
    from .chaos_run import Options, rounds_of
    from .chaos_scenario import load, load_all, random_rounds

    chosen = secrets.randbelow(10**6) if seed is None else seed
    common: dict[str, Any] = {"seconds": minutes * SECONDS_PER_MINUTE, "seed": chosen, "nodes": nodes, "rate_per_s": rate, "history": history}
    common["keep"] = keep
    if bootstrap is not None:
        if name is not None or at_random or in_namespaces:
            raise UsageProblem("a cluster given by --bootstrap gets no faults: leave out --scenario, --random and --network")
        parse_servers(bootstrap)
        return Options(title=f"{bootstrap}, no faults", rounds=iter(()), bootstrap_servers=bootstrap, **common)
    if at_random == (name is not None):
        raise UsageProblem("either --scenario NAME or --random is needed; `raftlog chaos list` shows the scenarios")
    if name is None:
        rounds = random_rounds(list(load_all().values()), random.Random(chosen), nodes=nodes, in_namespaces=in_namespaces)
        common["in_namespaces"] = in_namespaces
        return Options(title=f"Random faults, {nodes} nodes", rounds=rounds, **common)
    scenario = load(name)
    if nodes < scenario.nodes_min:
        raise UsageProblem(f"scenario {scenario.name} needs {scenario.nodes_min} nodes")
    if scenario.needs_namespaces and not in_namespaces:
        raise UsageProblem(f"scenario {scenario.name} needs --network namespaces")
    common["in_namespaces"] = in_namespaces
    return Options(
        title=f"{scenario.title}, {nodes} nodes",
        rounds=rounds_of(scenario),
        settings=scenario.settings,
        isolates=scenario.isolates,
        in_racks=scenario.in_racks,
        **common,
    )


def wants_json(context: typer.Context, as_json: bool) -> bool:
    return as_json or (isinstance(context.obj, Defaults) and context.obj.as_json)


def show(outcome: Outcome, options: Options, *, as_json: bool) -> None:
    """The end of a run, for people or machines."""
    if as_json:
        resumptions = [
            {"scenario": one.scenario, "at_s": round(one.at_s, 2), "took_s": one.took_s, "limit_s": one.limit_s}
            for one in outcome.timeline.resumptions
        ]
        fields = {"event": "verdict", "passed": outcome.passed, "seed": options.seed, "problems": outcome.problems, "resumptions": resumptions}
        if outcome.from_followers is not None:
            fields["records_from_followers"] = outcome.from_followers
        print_json({**fields, **verdict_fields(outcome.verdict)})
        return
    print_verdict(outcome.verdict, unsure=outcome.unsure)
    if outcome.from_followers is not None:
        print(f"{outcome.from_followers:,} records came from followers")
    if outcome.timeline.resumptions:
        print_table(
            ["scenario", "at s", "no writes for s", "limit s", "in sync after s"],
            [
                [one.scenario, f"{one.at_s:.0f}", _seconds(one.took_s), f"{one.limit_s:.0f}", _seconds(one.in_sync_s)]
                for one in outcome.timeline.resumptions
            ],
            right=["at s", "no writes for s", "limit s", "in sync after s"],
        )
    for problem in outcome.problems:
        print(f"problem: {problem}")
    print(f"{'passed' if outcome.passed else 'FAILED'}: {options.title}, seed {options.seed}")


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    return {
        "clean": verdict.is_clean,
        "operations": verdict.operations,
        "sends_acknowledged": verdict.sends_acknowledged,
        "records_read": verdict.records_read,
        "anomalies": [
            {"kind": anomaly.kind, "message": anomaly.message, "proof": [operation.describe() for operation in anomaly.proof]}
            for anomaly in verdict.anomalies
        ],
    }


def print_verdict(verdict: Verdict, *, unsure: int | None = None) -> None:
    counts = f"{verdict.operations:,} operations, {verdict.sends_acknowledged:,} writes acknowledged, {verdict.records_read:,} records read"
    print(counts if unsure is None else f"{counts}, {unsure:,} writes unsure")
    if verdict.is_clean:
        print("no anomalies")
        return
    kinds = Counter(anomaly.kind for anomaly in verdict.anomalies)
    rows = [_anomaly_row(anomaly) for anomaly in verdict.anomalies[:ANOMALIES_PRINTED_MAX]]
    print_table(["anomaly", "what", "proving operations"], rows)
    if len(verdict.anomalies) > ANOMALIES_PRINTED_MAX:
        print(f"and {len(verdict.anomalies) - ANOMALIES_PRINTED_MAX} more; --json prints all")
    print(", ".join(f"{count} x {kind}" for kind, count in kinds.items()))


def _anomaly_row(anomaly: Anomaly) -> list[str]:
    return [anomaly.kind, anomaly.message, "; ".join(operation.describe() for operation in anomaly.proof)]
