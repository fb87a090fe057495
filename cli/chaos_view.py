"""How a chaos run shows itself: a live timeline on a terminal, lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from .chaos_timeline import Band, Event, Timeline
from .output import print_json

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType
    from rich.text import Text

REFRESH_S: Final = 0.5
LINE_PAUSE_S: Final = 5.0
EVENTS_SHOWN: Final = 6
WIDTH_MIN: Final = 40
LABEL_WIDTH: Final = 12
BLOCKS: Final = " ▁▂▃▄▅▆▇█"
STYLES: Final = {"down": "on red", "died": "on magenta", "paused": "on yellow", "cut": "on blue", "slow": "on cyan", "disk full": "on dark_orange"}
NODE_COLOURS: Final = ("cyan", "green", "yellow", "magenta", "blue")


class ChaosView(Protocol):
    """What a run tells about itself. Used as a context manager around it; `timeline` is set before anything is told."""

    timeline: Timeline

    def __enter__(self) -> ChaosView: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def event(self, event: Event) -> None: ...

    def draw(self) -> None:
        """Called often; the view decides when it is worth drawing."""


class PlainView:
    """One line per event, and one on the state every few seconds."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._drawn_s = 0.0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def event(self, event: Event) -> None:
        print(f"{event.at_s:7.1f}  {event.text}", flush=True)

    def draw(self) -> None:
        if time.monotonic() - self._drawn_s < LINE_PAUSE_S or not self.timeline.samples:
            return
        self._drawn_s = time.monotonic()
        self.state(state(self.timeline))

    def state(self, now: dict[str, Any]) -> None:
        leaders = " ".join(f"{leader}{'' if full else '*'}" for leader, full in zip(now["leaders"], now["in_sync"], strict=True))
        print(f"{now['at_s']:7.1f}    {now['writes_per_s']} writes/s, controller {now['controller']}, leaders {leaders}", flush=True)


class JsonView(PlainView):
    """The same as JSON lines."""

    def event(self, event: Event) -> None:
        print_json({"event": "event", "at_s": round(event.at_s, 3), "text": event.text})
        sys.stdout.flush()

    def state(self, now: dict[str, Any]) -> None:
        print_json({"event": "state", **now})
        sys.stdout.flush()


def state(timeline: Timeline) -> dict[str, Any]:
    """The present in a few numbers; `in_sync` tells per partition whether its ISR is whole."""
    view = timeline.samples[-1].view
    return {
        "at_s": round(timeline.now_s(), 1),
        "writes_per_s": (timeline.rates() or [0])[-1],
        "controller": view.controller,
        "leaders": [partition.leader for partition in view.partitions],
        "in_sync": [len(partition.isr) == partition.replicas for partition in view.partitions],
    }


class LiveView:
    """The timeline of the last minutes: faults above, acknowledged writes per second, leaders and ISR below."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._live: Any = None
        self._drawn_s = 0.0

    def __enter__(self) -> LiveView:
        from rich.live import Live

        self._live = Live(self._render(), auto_refresh=False)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(self._render(), refresh=True)
        self._live.stop()

    def event(self, event: Event) -> None:
        self._refresh()

    def draw(self) -> None:
        if time.monotonic() - self._drawn_s >= REFRESH_S:
            self._refresh()

    def _refresh(self) -> None:
        self._drawn_s = time.monotonic()
        self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        width = max(WIDTH_MIN, (self._live.console.width if self._live is not None else 80) - LABEL_WIDTH - 10)
        timeline = self.timeline
        now_s = int(timeline.now_s())
        first = max(0, now_s - width)
        lanes = {lane: [band for band in timeline.bands if band.lane == lane] for lane in sorted({band.lane for band in timeline.bands})}
        rows: list[RenderableType] = [Text(f"seconds {first} to {now_s}", "dim")]
        rows += [_labelled(lane, band_row(bands, first, now_s)) for lane, bands in lanes.items()]
        rates = timeline.rates()
        shown = rates[first:]
        rows.append(_labelled("writes/s", Text(sparkline(shown), "green")).append(f" {rates[-1] if rates else 0}", "bold"))
        rows += [_labelled(f"partition {i}", row) for i, row in enumerate(leader_rows(timeline, first, now_s))]
        rows += [Text(f"{event.at_s:7.1f}  {event.text}", "dim") for event in timeline.events[-EVENTS_SHOWN:]]
        return Group(*rows)


def _labelled(label: str, row: Text) -> Text:
    from rich.text import Text

    return Text(label.ljust(LABEL_WIDTH)).append_text(row)


def band_row(bands: list[Band], first_s: int, end_s: int) -> Text:
    """One cell per second, coloured by the fault that held then."""
    from rich.text import Text

    row = Text()
    for second in range(first_s, end_s):
        held = [band for band in bands if band.start_s < second + 1 and (band.end_s is None or band.end_s > second)]
        row.append(" ", STYLES.get(held[-1].kind, "on white") if held else "")
    return row


def sparkline(values: list[int]) -> str:
    """One character per value, the highest filling its cell."""
    top = max(values, default=0) or 1
    return "".join(BLOCKS[0 if value == 0 else 1 + value * (len(BLOCKS) - 2) // top] for value in values)


def leader_rows(timeline: Timeline, first_s: int, end_s: int) -> list[Text]:
    """Per partition one cell per second: the leader's number, `-` without one; reversed while the ISR lacks a replica."""
    from rich.text import Text

    samples = timeline.samples
    count = max((len(sample.view.partitions) for sample in samples), default=0)
    rows = [Text() for _ in range(count)]
    place = -1
    for second in range(first_s, end_s):
        while place + 1 < len(samples) and samples[place + 1].at_s < second + 1:
            place += 1
        partitions = samples[place].view.partitions if place >= 0 else ()
        for number, row in enumerate(rows):
            if number >= len(partitions):
                row.append(" ")
                continue
            partition = partitions[number]
            colour = NODE_COLOURS[(partition.leader - 1) % len(NODE_COLOURS)] if partition.leader >= 0 else "red"
            whole = len(partition.isr) == partition.replicas
            row.append(str(partition.leader) if partition.leader >= 0 else "-", colour if whole else f"reverse {colour}")
    return rows
