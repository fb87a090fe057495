"""The two bounds on a broker's replication: on what it sends as a leader, and on what it fetches as a follower (KIP-73)."""

from __future__ import annotations

from raftlog.config import Settings
from raftlog.core.replication.throttle import Throttle
from raftlog.environment import Clock


class ReplicationThrottles:
    """Both are kept for all throttled replicas of the broker together; which those are, each topic's config says."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        now_ms = clock.monotonic_ms()
        self.leading = Throttle(settings.leader_replication_throttled_rate, now_ms=now_ms)
        self.following = Throttle(settings.follower_replication_throttled_rate, now_ms=now_ms)

    def reconfigure(self, settings: Settings) -> None:
        """Take other rates from now on."""
        now_ms = self._clock.monotonic_ms()
        self.leading.set_rate(settings.leader_replication_throttled_rate, now_ms=now_ms)
        self.following.set_rate(settings.follower_replication_throttled_rate, now_ms=now_ms)
