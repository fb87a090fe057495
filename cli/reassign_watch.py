"""Waiting for moves: how far they are, by the partitions that have arrived and the bytes that have been copied."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from raftlog.ids import TopicPartition

from .brokers import Brokers
from .errors import CliError
from .logdirs import replica_sizes
from .output import progress_bar, size_text
from .partitions import grouped
from .reassign_plan import Assignment
from .reassign_queries import Ongoing, assignment_of, list_ongoing
from .session import RETRY_PAUSE_S

WATCH_PAUSE_S: Final = 0.5
SIZES_EVERY_S: Final = 2.0  # Brokers look through their directories for them.


def watch_moves(brokers: Brokers, plan: Assignment) -> None:
    """Wait until none of the plan's partitions is moving, with a bar on a terminal."""
    meter = Meter(brokers)
    total = len(plan)
    with progress_bar(total=1.0) as move:
        while True:
            ongoing = {key: found for key, found in list_ongoing(brokers).items() if key in plan}
            if not ongoing:
                break
            fraction = meter.fraction(ongoing)
            done = (total - len(ongoing) + fraction * len(ongoing)) / total
            move(done, f"{total - len(ongoing):,} of {total:,} partitions{meter.text}")
            time.sleep(WATCH_PAUSE_S)
    wait_for_metadata(brokers, plan)


def wait_for_metadata(brokers: Brokers, plan: Assignment) -> None:
    """Give the broker that tells where replicas lie the time to hear of what the controller has just completed."""
    deadline_s = time.monotonic() + brokers.timeout_s
    while time.monotonic() < deadline_s:
        current = assignment_of(brokers.patiently(brokers.metadata))
        if all(current.get(key) == replicas for key, replicas in plan.items()):
            return
        time.sleep(RETRY_PAUSE_S)


class Meter:
    """How much of what is moving has been copied, by the sizes that the brokers tell; nothing where they do not."""

    def __init__(self, brokers: Brokers) -> None:
        self.text = ""
        self._brokers = brokers
        self._fraction = 0.0
        self._asked_s = float("-inf")

    def fraction(self, ongoing: Mapping[TopicPartition, Ongoing]) -> float:
        """From 0 to 1."""
        if time.monotonic() - self._asked_s < SIZES_EVERY_S:
            return self._fraction
        self._asked_s = time.monotonic()
        nodes = sorted({node for move in ongoing.values() for node in move.replicas})
        try:
            sizes = replica_sizes(self._brokers, nodes, grouped(sorted(ongoing)))
        except CliError:
            return self._fraction
        copied, total = copied_bytes(ongoing, sizes)
        self._fraction = copied / total if total else 0.0
        self.text = f", {size_text(copied)} of {size_text(total)}" if total else ""
        return self._fraction


def copied_bytes(ongoing: Mapping[TopicPartition, Ongoing], sizes: Mapping[tuple[int, str, int], int]) -> tuple[int, int]:
    """What the added replicas have, and what they will have when they are as large as the largest of the others."""
    copied = total = 0
    for key, move in ongoing.items():
        whole = max((sizes.get((node, *key), 0) for node in move.origin), default=0)
        for node in move.adding:
            copied += min(whole, sizes.get((node, *key), 0))
            total += whole
    return copied, total
