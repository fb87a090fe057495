"""Which replicas shall lie on which brokers: plans in kafka-reassign-partitions' format, and plans that move little.

Nothing here talks to a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from raftlog.ids import TopicPartition

from .errors import CliError, UsageProblem

Assignment: TypeAlias = Mapping[TopicPartition, tuple[int, ...]]

ANY_DIRECTORY: Final = "any"


def plan_moves(
    current: Assignment, racks: Mapping[int, str | None], *, replication_factor: int | None = None
) -> dict[TopicPartition, tuple[int, ...]]:
    """Where replicas shall lie: all on the brokers in `racks`, evenly, each partition over as many racks as can be, the preferred leaders evenly.

    A replica that can stay does. None for `replication_factor` keeps each partition's. Raises UsageProblem for too few brokers.
    """
    sizes = {key: replication_factor or len(replicas) for key, replicas in current.items()}
    if max(sizes.values(), default=0) > len(racks):
        raise UsageProblem(f"{max(sizes.values())} replicas need as many brokers, and there are {len(racks)} to choose from: {_listed(racks)}")
    placement = _Placement(racks)
    for key in sorted(current):
        placement.keep(key, current[key], sizes[key])
    for key in sorted(current):
        placement.fill(key, sizes[key])
    placement.level()
    placement.level_leaders()
    return {key: tuple(placement.replicas[key]) for key in sorted(current)}


class _Placement:
    """A plan in the making."""

    def __init__(self, racks: Mapping[int, str | None]) -> None:
        # A broker without a rack is one of its own, so that all of them spread alike.
        self._racks = {node: (f"rack {rack}" if rack is not None else f"broker {node}") for node, rack in racks.items()}
        self._racks_count = len(set(self._racks.values()))
        self._load = Counter(dict.fromkeys(racks, 0))
        self._hosted: dict[int, dict[TopicPartition, None]] = {node: {} for node in racks}  # In an order of its own, so that a plan can be repeated.
        self.replicas: dict[TopicPartition, list[int]] = {}

    def keep(self, key: TopicPartition, before: Sequence[int], size: int) -> None:
        """Start with those replicas that can stay: up to `size`, and not two in a rack while others have none."""
        stays: list[int] = []
        spread = min(size, self._racks_count)
        for node in before:
            if node not in self._racks or len(stays) == size:
                continue
            doubled = len(stays) + 1 - len({self._racks[each] for each in (*stays, node)})
            if doubled <= size - spread:
                stays.append(node)
        self.replicas[key] = []
        for node in stays:
            self._add(key, node)

    def fill(self, key: TopicPartition, size: int) -> None:
        """Add replicas, each on the broker with the fewest, in a rack of its own if there is one."""
        while len(self.replicas[key]) < size:
            used = {self._racks[node] for node in self.replicas[key]}
            free = [node for node in self._racks if node not in self.replicas[key]]
            self._add(key, min(free, key=lambda node: (self._racks[node] in used, self._load[node], node)))

    def level(self) -> None:
        """Move replicas from the fullest brokers to the emptiest until no move makes it more even."""
        while self._level_once():
            pass  # Ends: each move makes the sum of the squared loads smaller.

    def _level_once(self) -> bool:
        by_load = sorted(self._load, key=lambda node: (self._load[node], node))
        for full in reversed(by_load):
            for empty in by_load:
                if self._load[full] - self._load[empty] <= 1:
                    break
                movable = (key for key in self._hosted[full] if key not in self._hosted[empty] and self._may_replace(key, full, empty))
                key = next(movable, None)
                if key is not None:
                    self._replace(key, full, empty)
                    return True
        return False

    def level_leaders(self) -> None:
        """Change the order of replicas until no broker is the preferred leader of two partitions more than another that could be."""
        leads = Counter(dict.fromkeys(self._racks, 0))
        leads.update(replicas[0] for replicas in self.replicas.values() if replicas)
        changed = True
        while changed:
            changed = False
            for key in sorted(self.replicas):
                replicas = self.replicas[key]
                least = min(replicas, key=lambda node: (leads[node], replicas.index(node)), default=None)
                if least is not None and leads[replicas[0]] - leads[least] > 1:
                    leads[replicas[0]] -= 1
                    leads[least] += 1
                    place = replicas.index(least)
                    replicas[0], replicas[place] = least, replicas[0]
                    changed = True

    def _may_replace(self, key: TopicPartition, old: int, new: int) -> bool:
        """Whether the partition is spread over no fewer racks then."""
        racks = [self._racks[node] for node in self.replicas[key]]
        after = [self._racks[new if node == old else node] for node in self.replicas[key]]
        return len(set(after)) >= len(set(racks))

    def _add(self, key: TopicPartition, node: int) -> None:
        self.replicas[key].append(node)
        self._load[node] += 1
        self._hosted[node][key] = None

    def _replace(self, key: TopicPartition, old: int, new: int) -> None:
        self.replicas[key][self.replicas[key].index(old)] = new
        self._load[old] -= 1
        self._load[new] += 1
        del self._hosted[old][key]
        self._hosted[new][key] = None


def plan_document(assignment: Assignment) -> dict[str, Any]:
    """A plan as kafka-reassign-partitions writes and reads it."""
    partitions = [
        {"topic": key.topic, "partition": key.partition, "replicas": list(replicas), "log_dirs": [ANY_DIRECTORY] * len(replicas)}
        for key, replicas in sorted(assignment.items())
    ]
    return {"version": 1, "partitions": partitions}


def plan_of_items(items: Sequence[Any], source: str) -> dict[TopicPartition, tuple[int, ...]]:
    """The partitions of such a document. Raises CliError, which names `source`, for what is not like it."""
    plan: dict[TopicPartition, tuple[int, ...]] = {}
    for item in items:
        try:
            key, replicas = TopicPartition(str(item["topic"]), int(item["partition"])), tuple(int(node) for node in item["replicas"])
            directories = item.get("log_dirs") or []
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CliError(f'{source}: {item} is not like {{"topic": "orders", "partition": 0, "replicas": [1, 2]}}') from None
        if key in plan:
            raise CliError(f"{source}: {key} is there twice")
        if not replicas or len(set(replicas)) != len(replicas) or min(replicas) < 0:
            raise CliError(f"{source}: the replicas of {key} are {list(replicas)}: they must be brokers, each once")
        if any(directory != ANY_DIRECTORY for directory in directories):
            raise CliError(f"{source}: {key} names log directories, and only {ANY_DIRECTORY!r} can be chosen here")
        plan[key] = replicas
    if not plan:
        raise CliError(f"{source} names no partitions")
    return plan


def _listed(nodes: Mapping[int, object]) -> str:
    return ", ".join(map(str, sorted(nodes))) or "none"
