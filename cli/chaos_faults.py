"""Carries out the steps of a scenario on a cluster of real processes, and notes them on the timeline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .chaos_cluster import ChaosCluster
from .chaos_links import CONTROLLER, KINDS, REPLICATION, Slowness
from .chaos_moves import Moves
from .chaos_namespaces import CLIENTS, CLIENTS_NODE, Namespaces
from .chaos_scenario import Step
from .chaos_timeline import Timeline
from .chaos_watch import TopicView, TopicWatch
from .errors import CliError

IN_SYNC_TIMEOUT_S: Final = 60.0
MOVED_TIMEOUT_S: Final = 90.0
KNOWN_TIMEOUT_S: Final = 20.0  # How long to wait for a leader or a controller to choose.
NETWORK_LANE: Final = "network"
MOVES_LANE: Final = "partitions"


class Faults:
    """The steps' meaning. `pump` is called while waiting; `replace_clients` kills the clients and starts others; `read_followers`
    tells from which nodes consumers read partitions that others lead, and how many each."""

    def __init__(
        self,
        cluster: ChaosCluster,
        watch: TopicWatch,
        timeline: Timeline,
        *,
        chance: random.Random,
        say: Callable[[str], None],
        pump: Callable[[float], None],
        replace_clients: Callable[[], None],
        elect: Callable[[], None],
        read_followers: Callable[[], Mapping[int, int]],
        moves: Moves,
    ) -> None:
        self.cluster, self.watch, self.timeline = cluster, watch, timeline
        self._chance, self._say, self._pump = chance, say, pump
        self._replace_clients, self._elect, self._moves = replace_clients, elect, moves
        self._read_followers = read_followers
        self._chosen: list[int] = []
        self._actions: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "kill": self._kill,
            "stop": self._stop,
            "start": lambda _: self.start_all(),
            "pause": self._pause,
            "resume": lambda _: self.resume_all(),
            "cut": self._cut,
            "slow": self._slow,
            "heal": lambda _: self.heal_links(),
            "fill_disk": self._fill_disk,
            "damage": self._damage,
            "rolling_restart": lambda _: self._rolling_restart(),
            "elect": lambda _: self._elect_preferred(),
            "reassign": self._reassign,
            "take_back": lambda _: self._take_back(),
            "wait_moved": lambda arguments: self._wait_moved(float(arguments.get("timeout_s", MOVED_TIMEOUT_S))),
            "kill_clients": lambda _: self._kill_clients(),
            "wait": lambda arguments: self.wait_in_sync(float(arguments.get("timeout_s", IN_SYNC_TIMEOUT_S))),
        }

    def do(self, step: Step) -> None:
        """Raises CliError when the step can't be done."""
        self._actions[step.do](step.arguments)

    def cure_all(self) -> None:
        """Heal, resume and start whatever is not well."""
        self.heal_links()
        self.resume_all()
        self.start_all()
        self.timeline.finish()

    def notice_deaths(self) -> list[str]:
        """Note nodes that ended without being told to. Returns a line for each whose disk had not been filled."""
        unexpected = []
        for node_id in sorted(self.cluster.down):
            lane = f"node {node_id}"
            open_kinds = {band.kind for band in self.timeline.bands if band.lane == lane and band.end_s is None}
            if open_kinds & {"down", "died"}:
                continue
            node = self.cluster.nodes[node_id]
            code = node.process.returncode if node.process is not None else None
            self.timeline.finish(lane=lane)
            self.timeline.begin(lane, "died", "ended by itself")
            text = f"node {node_id} ended by itself with status {code}: {node.last_log_line()}"
            if "disk full" in open_kinds:
                self._say(text)
            else:
                unexpected.append(text)
        return unexpected

    # --- choosing ---

    def choose(self, wanted: str | int) -> list[int]:
        """The nodes that a step names. Raises CliError when there is none such in time."""
        deadline_s = time.monotonic() + KNOWN_TIMEOUT_S
        while True:
            found = self._choose(wanted, self.watch.newest())
            if found or time.monotonic() > deadline_s:
                break
            self._pump(0.1)
        if not found:
            raise CliError(f"no node to choose as {wanted!r}")
        self._chosen = found
        return found

    def _choose(self, wanted: str | int, view: TopicView) -> list[int]:
        running = [node_id for node_id in self.cluster.nodes if self.cluster.is_running(node_id) and node_id not in self.cluster.paused]
        majority = len(self.cluster.nodes) // 2 + 1
        known_controller = [view.controller] if view.controller in running else []
        match wanted:
            case int():
                return [wanted] if wanted in self.cluster.nodes else []
            case "all":
                return list(self.cluster.nodes)
            case "chosen":
                return self._chosen
            case "controller":
                return known_controller
            case "leader":
                led = [node_id for node_id in running if view.leads(node_id)]
                return [max(led, key=view.leads)] if led else []
            case "follower":
                others = [node_id for node_id in running if node_id != view.controller]
                return [min(others, key=view.leads)] if others else []
            case "read-follower":
                read = {node_id: count for node_id, count in self._read_followers().items() if node_id in running}
                return [max(sorted(read), key=lambda node_id: read[node_id])] if read else []
            case "random":
                return [self._chance.choice(running)] if running else []
            case "majority":
                return sorted(self._chance.sample(running, majority)) if len(running) >= majority else []
            case "majority-with-controller":
                others = [node_id for node_id in running if node_id not in known_controller]
                return (
                    sorted(known_controller + self._chance.sample(others, majority - 1)) if known_controller and len(others) >= majority - 1 else []
                )
        kind, _, number = str(wanted).partition(":")
        if kind == "leader" and number.isdigit() and int(number) < len(view.partitions):
            leader = view.partitions[int(number)].leader
            return [leader] if leader in running else []
        return []

    # --- processes ---

    def _kill(self, arguments: Mapping[str, Any]) -> None:
        chosen = self.choose(arguments["nodes"])
        self.cluster.kill(chosen)
        self._went_down(chosen, "killed")
        self._say(f"killed {named(chosen)} ({arguments['nodes']})")

    def _stop(self, arguments: Mapping[str, Any]) -> None:
        chosen = self.choose(arguments["nodes"])
        self.cluster.stop(chosen)
        self._went_down(chosen, "stopped")
        self._say(f"stopped {named(chosen)} in an orderly way ({arguments['nodes']})")

    def _went_down(self, chosen: Sequence[int], label: str) -> None:
        for node_id in chosen:
            self.timeline.finish(lane=f"node {node_id}")
            self.timeline.begin(f"node {node_id}", "down", label)

    def start_all(self) -> None:
        if down := sorted(self.cluster.down):
            self.cluster.start(down)
            for node_id in down:
                self.timeline.finish(lane=f"node {node_id}")
            self._say(f"started {named(down)}")

    def _pause(self, arguments: Mapping[str, Any]) -> None:
        chosen = self.choose(arguments["nodes"])
        self.cluster.pause(chosen)
        for node_id in chosen:
            self.timeline.begin(f"node {node_id}", "paused", "paused")
        self._say(f"paused {named(chosen)} ({arguments['nodes']})")

    def resume_all(self) -> None:
        if paused := sorted(self.cluster.paused):
            self.cluster.resume(paused)
            for node_id in paused:
                self.timeline.finish(lane=f"node {node_id}", kind="paused")
            self._say(f"resumed {named(paused)}")

    def _rolling_restart(self) -> None:
        for node_id in self.cluster.nodes:
            self.wait_in_sync()
            self.cluster.stop([node_id])
            self._went_down([node_id], "restarted")
            self._say(f"stopped node {node_id} in an orderly way")
            self._pump(0.5)
            self.start_all()
        self.wait_in_sync()

    # --- network ---

    def _cut(self, arguments: Mapping[str, Any]) -> None:
        chosen = self.choose(arguments["nodes"])
        others = [node_id for node_id in self.cluster.nodes if node_id not in chosen]
        if "to" in arguments:
            before = self._chosen
            others = [node_id for node_id in self.choose(arguments["to"]) if node_id not in chosen]
            self._chosen = before
        direction, links = arguments.get("direction", "both"), arguments.get("links", "all")
        if links == CLIENTS:
            others = [self._clients_node()]
        outward = [(source, target) for source in chosen for target in others]
        pairs = (outward if direction != "in" else []) + ([(target, source) for source, target in outward] if direction != "out" else [])
        kinds = {"all": KINDS, "controller": (CONTROLLER,), "replication": (REPLICATION,), CLIENTS: (CLIENTS,)}[links]
        self.cluster.links.cut(pairs, kinds=kinds)
        ways = {"both": "both ways", "out": "only what it says", "in": "only what it is told"}[direction]
        what = {
            "all": "all links",
            "controller": "its links to and from controllers",
            "replication": "its replication links",
            CLIENTS: "its links to them",
        }
        whom = "all clients" if links == CLIENTS else named(others)
        text = f"{named(chosen)} cut off from {whom}: {what[links]}, {ways}"
        self.timeline.begin(NETWORK_LANE, "cut", text)
        self._say(text)

    def _slow(self, arguments: Mapping[str, Any]) -> None:
        every = list(self.cluster.nodes)
        chosen = self.choose(arguments["nodes"]) if "nodes" in arguments else every
        ends = [*every, self._clients_node()] if arguments.get("clients") else every
        pairs = [(i, j) for i in ends for j in ends if i != j and (i in chosen or j in chosen)]
        delay_ms, jitter_ms, loss = (float(arguments.get(name, 0)) for name in ("delay_ms", "jitter_ms", "loss_percent"))
        self.cluster.links.slow(pairs, Slowness(delay_ms / 1000, jitter_ms / 1000, loss / 100), kinds=(*KINDS, CLIENTS))
        whose = " and clients" if arguments.get("clients") else ""
        text = f"links of {named(chosen)}{whose} slowed by {delay_ms:.0f} ms +- {jitter_ms:.0f} ms, {loss:.0f} % lost and repeated"
        self.timeline.begin(NETWORK_LANE, "slow", text)
        self._say(text)

    def _clients_node(self) -> int:
        """Raises CliError where clients' links are out of reach."""
        if not isinstance(self.cluster.links, Namespaces):
            raise CliError("the links of clients are reached with --network namespaces only")
        return CLIENTS_NODE

    def heal_links(self) -> None:
        self.cluster.links.heal()
        if any(band.lane == NETWORK_LANE and band.end_s is None for band in self.timeline.bands):
            self.timeline.finish(lane=NETWORK_LANE)
            self._say("healed all links")

    # --- disks, leaders, clients ---

    def _fill_disk(self, arguments: Mapping[str, Any]) -> None:
        for node_id in self.choose(arguments["nodes"]):
            limit = self.cluster.fill_disk(node_id, spare_bytes=int(arguments.get("spare_bytes", 0)))
            self.timeline.begin(f"node {node_id}", "disk full", f"no file beyond {limit} bytes")
            self._say(f"node {node_id}: no file may grow beyond {limit} bytes")

    def _damage(self, arguments: Mapping[str, Any]) -> None:
        for node_id in self.choose(arguments["nodes"]):
            for line in self.cluster.damage(node_id):
                self._say(f"node {node_id}: damaged {line}")

    def _elect_preferred(self) -> None:
        self._elect()
        self._say("asked for the election of all preferred leaders")

    def _reassign(self, arguments: Mapping[str, Any]) -> None:
        throttle = arguments.get("throttle_bytes_per_s")
        targets = self._moves.begin(throttle_bytes_per_s=throttle)
        self.timeline.finish(lane=MOVES_LANE)
        self.timeline.begin(MOVES_LANE, "reassign", "partitions move")
        bound = "" if throttle is None else f", at {throttle} bytes/s at most"
        self._say(f"all partitions are to move{bound}: " + ", ".join(f"{index} to {to}" for index, to in targets.items()))

    def _take_back(self) -> None:
        self._say(f"took back the moves of {self._moves.take_back()} partitions")

    def _wait_moved(self, timeout_s: float) -> None:
        self._moves.wait_until_done(timeout_s=timeout_s)
        self.timeline.finish(lane=MOVES_LANE)
        self._say("no partition moves any more, and all are where they should be")

    def _kill_clients(self) -> None:
        self._replace_clients()
        self._say("killed all clients and started others")

    def wait_in_sync(self, timeout_s: float = IN_SYNC_TIMEOUT_S) -> None:
        """Wait until every node sees all replicas in sync. Raises CliError after the time-out."""
        began_s = time.monotonic()
        while not self.watch.agree_since(began_s):
            if time.monotonic() > began_s + timeout_s:
                raise CliError(f"the replicas were not all in sync after {timeout_s:.0f} s")
            self._pump(0.1)


def named(node_ids: Sequence[int]) -> str:
    return f"node {node_ids[0]}" if len(node_ids) == 1 else "nodes " + ", ".join(map(str, node_ids))
