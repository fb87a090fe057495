"""A bound on how many bytes per second are replicated to replicas that are not in sync. Source: KIP-73.

The balance fills with the rate, up to what a second brings, and each response takes its size from it. Below zero nothing
more is sent until it is even again: a response may be larger than what is left, but on average the rate is kept. Kafka
measures over eleven seconds instead, so it lets more through at first, and stops for longer after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from raftlog.ids import NodeId

UNBOUNDED_BYTES_PER_S: Final = 2**63 - 1  # Kafka's default rate.
BURST_MS: Final = 1000
PAUSE_MS_MAX: Final = 1000  # A rate that is raised meanwhile has its effect so soon.
ALL_REPLICAS: Final = "*"


class Throttle:
    """Times are monotonic ms; `rate_bytes_per_s` UNBOUNDED_BYTES_PER_S is no bound, 0 lets nothing through."""

    def __init__(self, rate_bytes_per_s: int, *, now_ms: int) -> None:
        self._rate = rate_bytes_per_s
        self._balance = self._burst
        self._filled_ms = now_ms

    @property
    def _burst(self) -> float:
        return self._rate * BURST_MS / 1000

    def set_rate(self, rate_bytes_per_s: int, *, now_ms: int) -> None:
        """The new rate begins with a full balance: what an unbounded one owed says nothing."""
        if rate_bytes_per_s != self._rate:
            self._rate = rate_bytes_per_s
            self._balance = self._burst
            self._filled_ms = now_ms

    def record(self, size_bytes: int, *, now_ms: int) -> None:
        """So many bytes were sent, or received."""
        if self._rate != UNBOUNDED_BYTES_PER_S:
            self._fill(now_ms)
            self._balance -= size_bytes

    def pause_ms(self, *, now_ms: int) -> int:
        """How long nothing more may be sent, at most PAUSE_MS_MAX; then ask again. 0: it may now."""
        if self._rate == UNBOUNDED_BYTES_PER_S:
            return 0
        if self._rate == 0:
            return PAUSE_MS_MAX
        self._fill(now_ms)
        if self._balance >= 0:
            return 0
        return min(int(-self._balance * 1000 / self._rate) + 1, PAUSE_MS_MAX)

    def _fill(self, now_ms: int) -> None:
        passed_ms = max(now_ms - self._filled_ms, 0)
        self._filled_ms = now_ms
        self._balance = min(self._balance + self._rate * passed_ms / 1000, self._burst)


def is_throttled(replicas: Sequence[str], partition: int, node_id: NodeId) -> bool:
    """Whether a topic's config, a list of `partition:broker` or `*` alone, names this replica."""
    return ALL_REPLICAS in replicas or f"{partition}:{node_id}" in replicas
