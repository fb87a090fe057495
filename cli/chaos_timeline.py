"""What happened when in a chaos run: faults as bands, acknowledged writes per second, leaders and ISR. Views and report draw it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from .chaos_watch import TopicView

NS_PER_S: Final = 10**9


@dataclass(slots=True)
class Band:
    """A fault from its beginning to its cure, in seconds of the run; `end_s` None while it lasts."""

    lane: str  # What it is about: a node, the network, the clients.
    kind: str
    label: str
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    view: TopicView


@dataclass(frozen=True, slots=True)
class Resumption:
    """How long some partition took no writes in one round, as its scenario measures it; None: to its end, and beyond patience."""

    scenario: str
    at_s: float
    limit_s: float
    took_s: float | None
    in_sync_s: float | None = None

    @property
    def in_time(self) -> bool:
        return self.took_s is not None and self.took_s <= self.limit_s


@dataclass(slots=True)
class Timeline:
    """Everything that is drawn, in seconds since the run began."""

    began_s: float = field(default_factory=time.monotonic)
    bands: list[Band] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    resumptions: list[Resumption] = field(default_factory=list)
    acknowledged: dict[int, int] = field(default_factory=dict)  # By whole second of the monotonic clock.

    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def event(self, text: str) -> Event:
        event = Event(self.now_s(), text)
        self.events.append(event)
        return event

    def begin(self, lane: str, kind: str, label: str) -> None:
        self.bands.append(Band(lane, kind, label, self.now_s()))

    def finish(self, *, lane: str | None = None, kind: str | None = None) -> None:
        """The open bands of a lane, of a kind, or all, end now."""
        for band in self.bands:
            if band.end_s is None and lane in (None, band.lane) and kind in (None, band.kind):
                band.end_s = self.now_s()

    def sample(self, view: TopicView) -> None:
        """Keep a view when it differs from the one before."""
        if not self.samples or _shown(self.samples[-1].view) != _shown(view):
            self.samples.append(Sample(self.now_s(), view))

    def rates(self) -> list[int]:
        """Acknowledged writes of each second of the run, the present one left out."""
        first = int(self.began_s)
        return [self.acknowledged.get(first + second, 0) for second in range(int(self.now_s()))]


def _shown(view: TopicView) -> object:
    return (view.controller, view.brokers, [(partition.leader, partition.isr) for partition in view.partitions])
