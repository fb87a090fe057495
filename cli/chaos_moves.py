"""Moves the partitions of a chaos run's topic to other nodes, and takes moves back: asked for over the wire, as any client may."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .errors import CliError, Unreachable
from .wire import METADATA, check

if TYPE_CHECKING:
    from raftlog.protocol.messages import Fields

ALTER_PARTITION_REASSIGNMENTS: Final = 45
LIST_PARTITION_REASSIGNMENTS: Final = 46
INCREMENTAL_ALTER_CONFIGS: Final = 44
NO_REASSIGNMENT_IN_PROGRESS: Final = 85
TOPIC_RESOURCE: Final = 2
BROKER_RESOURCE: Final = 4
SET: Final = 0
DELETE: Final = 1
REQUEST_TIMEOUT_MS: Final = 10_000
TRIES_S_MAX: Final = 30.0  # For a request to be answered: nodes may be down, and the active controller among them.
PAUSE_S: Final = 0.2
RATES: Final = ("leader.replication.throttled.rate", "follower.replication.throttled.rate")
THROTTLED: Final = ("leader.replication.throttled.replicas", "follower.replication.throttled.replicas")

Ask = Callable[[int, Mapping[str, Any]], "Fields"]


class Moves:
    """`ask` puts a request to a running node, and raises CliError when that fails. `pump` is called while waiting."""

    def __init__(self, topic: str, *, nodes: Sequence[int], ask: Ask, pump: Callable[[float], None], chance: random.Random) -> None:
        self._topic = topic
        self._nodes = nodes
        self._ask = ask
        self._pump = pump
        self._chance = chance
        self._targets: dict[int, tuple[int, ...]] = {}
        self._throttled = False

    def begin(self, *, throttle_bytes_per_s: int | None) -> dict[int, tuple[int, ...]]:
        """Ask for other replicas of every partition, as many as there are; the replicas asked for."""
        if throttle_bytes_per_s is not None:
            self._throttle(str(throttle_bytes_per_s))
        targets = {index: tuple(self._chance.sample(self._nodes, len(replicas))) for index, replicas in self._replicas().items()}
        self._alter(dict(targets))
        self._targets = targets
        return targets

    def take_back(self) -> int:
        """Take back what is still under way; of how many partitions."""
        ongoing = [part.partition_index for topic in self._ongoing() if topic.name == self._topic for part in topic.partitions]
        self._alter(dict.fromkeys(ongoing))
        for index in ongoing:
            self._targets.pop(index, None)  # It may have been finished before: either is right.
        return len(ongoing)

    def wait_until_done(self, *, timeout_s: float) -> None:
        """Until nothing moves any more. Raises CliError after the time-out, and where replicas are not those asked for."""
        deadline_s = time.monotonic() + timeout_s
        while self._ongoing():
            if time.monotonic() > deadline_s:
                raise CliError(f"partitions were still moving after {timeout_s:.0f} s")
            self._pump(PAUSE_S)
        while wrong := self._misplaced():
            if time.monotonic() > deadline_s:  # The node that was asked may have been behind.
                raise CliError(f"nothing moves any more, and these are not where they should be: {wrong}")
            self._pump(PAUSE_S)
        if self._throttled:
            self._throttle(None)

    def _misplaced(self) -> str:
        found = self._replicas()
        return ", ".join(f"partition {index} on {found[index]}, not {to}" for index, to in self._targets.items() if found[index] != to)

    def _replicas(self) -> dict[int, tuple[int, ...]]:
        answer = self._insist(METADATA, {"topics": [{"name": self._topic}], "allow_auto_topic_creation": False})
        return {found.partition_index: tuple(found.replica_nodes) for found in answer.topics[0].partitions}

    def _ongoing(self) -> Sequence[Fields]:
        answer = self._insist(LIST_PARTITION_REASSIGNMENTS, {"topics": None, "timeout": REQUEST_TIMEOUT_MS})
        return tuple(answer.topics)

    def _alter(self, targets: Mapping[int, tuple[int, ...] | None]) -> None:
        partitions = [{"partition_index": index, "replicas": replicas} for index, replicas in targets.items()]
        request = {"topics": [{"name": self._topic, "partitions": partitions}], "timeout": REQUEST_TIMEOUT_MS}
        answer = self._insist(ALTER_PARTITION_REASSIGNMENTS, request)
        for topic in answer.responses:
            for part in topic.partitions:
                if part.error_code != NO_REASSIGNMENT_IN_PROGRESS:  # It ended just before it was to be taken back.
                    check(part.error_code, part.error_message)

    def _throttle(self, rate: str | None) -> None:
        operation = DELETE if rate is None else SET
        replicas = [{"name": name, "config_operation": operation, "value": None if rate is None else "*"} for name in THROTTLED]
        rates = [{"name": name, "config_operation": operation, "value": rate} for name in RATES]
        resources = [
            {"resource_type": TOPIC_RESOURCE, "resource_name": self._topic, "configs": replicas},
            {"resource_type": BROKER_RESOURCE, "resource_name": "", "configs": rates},
        ]
        answer = self._insist(INCREMENTAL_ALTER_CONFIGS, {"resources": resources, "validate_only": False})
        for item in answer.responses:
            check(item.error_code, item.error_message)
        self._throttled = rate is not None

    def _insist(self, api_key: int, request: Mapping[str, Any]) -> Fields:
        """All that is asked here may be asked twice. Raises CliError for a refusal of the whole, and when nobody answers in time."""
        deadline_s = time.monotonic() + TRIES_S_MAX
        while True:
            try:
                answer = self._ask(api_key, request)
                check(getattr(answer, "error_code", 0), getattr(answer, "error_message", None))
                return answer
            except Unreachable:
                if time.monotonic() > deadline_s:
                    raise
                self._pump(PAUSE_S)
