"""Chaos scenarios as data: what a scenario file may say, and the drawing of random ones from a seed.

A scenario is a round of steps that is repeated until the time is up. Each step waits, does one thing to some nodes, and
names them by what they are at that moment: `leader` (of most partitions), `leader:N` (of one), `controller`, `follower`
(neither, where there is one), `read-follower` (from which consumers read most partitions that others lead), `random`,
`majority`, `majority-with-controller`, `all`, `chosen` (those of the round's last choice) or a number.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

from .errors import CliError, UsageProblem

SCENARIO_SUFFIX: Final = ".toml"
RANDOM: Final = "random"
OVERLAY_SHARE: Final = 0.3  # Of random rounds, those that also have slow links.
LINK_KINDS: Final = ("all", "controller", "replication", "clients")
DIRECTIONS: Final = ("both", "out", "in")
MEASURES: Final = ("fault", "cure")

# What a step may do, with the arguments it takes besides `after_s` and `do`.
ACTIONS: Final[Mapping[str, frozenset[str]]] = {
    "kill": frozenset({"nodes"}),
    "stop": frozenset({"nodes"}),
    "start": frozenset(),
    "pause": frozenset({"nodes"}),
    "resume": frozenset(),
    "cut": frozenset({"nodes", "to", "links", "direction"}),
    "slow": frozenset({"nodes", "delay_ms", "jitter_ms", "loss_percent", "clients"}),
    "heal": frozenset(),
    "fill_disk": frozenset({"nodes", "spare_bytes"}),
    "damage": frozenset({"nodes"}),
    "rolling_restart": frozenset(),
    "elect": frozenset(),
    "reassign": frozenset({"throttle_bytes_per_s"}),
    "take_back": frozenset(),
    "wait_moved": frozenset({"timeout_s"}),
    "kill_clients": frozenset(),
    "wait": frozenset({"timeout_s"}),
}
CURES: Final = frozenset({"start", "resume", "heal", "elect", "wait", "wait_moved"})
NEEDS_NODES: Final = frozenset({"kill", "stop", "pause", "cut", "fill_disk", "damage"})
ISOLATING: Final = frozenset({"pause", "cut", "slow"})


@dataclass(frozen=True, slots=True)
class Step:
    """One thing done `after_s` seconds after the one before."""

    after_s: float
    do: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_cure(self) -> bool:
        return self.do in CURES


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario file.

    `measure` says what `writes_resume_within_s` limits. `cure`, for what no cluster can survive: the time from the round's last
    cure until every partition has acknowledged a write begun after it. `fault`: the longest time from the round's first fault
    to its end in which some partition acknowledged nothing.

    `reads_resume_within_s`: the nodes and a consumer for each are in racks, which read from the replicas there. It limits the
    longest time from the round's first fault to its end in which one of them read nothing of some partition, and the time
    from the moment when all replicas are in sync until every follower is read from again.
    """

    name: str
    title: str
    about: str
    steps: tuple[Step, ...]
    writes_resume_within_s: float
    measure: str = "fault"
    nodes_min: int = 3
    minutes: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)
    reads_resume_within_s: float | None = None

    @property
    def in_racks(self) -> bool:
        return self.reads_resume_within_s is not None

    @property
    def needs_namespaces(self) -> bool:
        """Whether clients' links are struck, which proxies leave alone."""
        return any(step.arguments.get("clients") or step.arguments.get("links") == "clients" for step in self.steps)

    @property
    def isolates(self) -> bool:
        """Whether a node may go on in the belief that nothing has changed: what it is asked may then be answered from the past."""
        return any(step.do in ISOLATING for step in self.steps)


def load_all() -> dict[str, Scenario]:
    """The scenarios that come with raftlog, by name."""
    folder = resources.files("raftlog_cli") / "scenarios"
    found = sorted((item for item in folder.iterdir() if item.name.endswith(SCENARIO_SUFFIX)), key=lambda item: item.name)
    return {item.name.removesuffix(SCENARIO_SUFFIX): parse(item.read_text(encoding="utf-8"), item.name) for item in found}


def load(name: str) -> Scenario:
    """A scenario by its name, or by the path of a file. Raises UsageProblem."""
    if name.endswith(SCENARIO_SUFFIX):
        try:
            return parse(Path(name).read_text(encoding="utf-8"), Path(name).name)
        except OSError as error:
            raise UsageProblem(f"{name}: {(error.strerror or str(error)).lower()}") from None
    scenarios = load_all()
    if name not in scenarios:
        raise UsageProblem(f"no scenario {name!r}; there are {', '.join(scenarios)}")
    return scenarios[name]


def parse(text: str, file_name: str) -> Scenario:
    """A scenario from the text of its file. Raises CliError naming what is wrong."""
    try:
        raw = tomllib.loads(text)
        steps = tuple(_step(dict(item)) for item in raw.pop("steps"))
        settings = {name: str(value) for name, value in raw.pop("settings", {}).items()}
        scenario = Scenario(name=file_name.removesuffix(SCENARIO_SUFFIX), steps=steps, settings=settings, **raw)
        if not steps:
            raise ValueError("it has no steps")
        if scenario.measure not in MEASURES:
            raise ValueError(f"measure is one of {', '.join(MEASURES)}, not {scenario.measure!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise CliError(f"scenario {file_name}: {error}") from None
    return scenario


def _step(raw: dict[str, Any]) -> Step:
    after_s, do = float(raw.pop("after_s", 0)), raw.pop("do")
    if do not in ACTIONS:
        raise ValueError(f"unknown action {do!r}; there are {', '.join(ACTIONS)}")
    if unknown := set(raw) - ACTIONS[do]:
        raise ValueError(f"action {do!r} takes no {', '.join(sorted(unknown))}")
    if do in NEEDS_NODES and "nodes" not in raw:
        raise ValueError(f"action {do!r} needs 'nodes'")
    if raw.get("links", "all") not in LINK_KINDS or raw.get("direction", "both") not in DIRECTIONS:
        raise ValueError(f"links are {', '.join(LINK_KINDS)} and direction {', '.join(DIRECTIONS)}, not {raw}")
    return Step(after_s, do, raw)


def random_rounds(scenarios: Sequence[Scenario], chance: random.Random, *, nodes: int, in_namespaces: bool = False) -> Iterator[Scenario]:
    """Rounds for ever, some over slow links: any scenario without racks that suits the number of nodes and the network.

    Its pauses are stretched or shortened.
    """
    able = (scenario for scenario in scenarios if scenario.nodes_min <= nodes and not scenario.in_racks)
    suitable = [scenario for scenario in able if in_namespaces or not scenario.needs_namespaces]
    while True:
        scenario = chance.choice(suitable)
        steps = [Step(round(step.after_s * chance.uniform(0.5, 1.5), 2), step.do, step.arguments) for step in scenario.steps]
        limit_s = scenario.writes_resume_within_s
        if chance.random() < OVERLAY_SHARE:
            steps.insert(0, Step(0.0, "slow", {"delay_ms": chance.randint(5, 60), "jitter_ms": chance.randint(0, 40)}))
            steps.append(Step(1.0, "heal"))
            limit_s *= 2
        yield Scenario(scenario.name, scenario.title, scenario.about, tuple(steps), limit_s, scenario.measure, scenario.nodes_min, scenario.minutes)
