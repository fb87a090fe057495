"""How `raftlog up` shows itself: live on a terminal, lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from .output import print_json

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType

    from .supervisor import Supervisor
    from .watch import ClusterView

EVENTS_SHOWN: Final = 8
REFRESH_S: Final = 0.25


class View(Protocol):
    """What `up` tells about itself. Used as a context manager around the whole run."""

    def __enter__(self) -> View: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def ready(self, servers: str, *, seconds: float) -> None:
        """All nodes are there for the first time, so long after the command began."""

    def event(self, kind: str, text: str, *, node: int | None = None) -> None:
        """Something happened, to one node or to all."""

    def show(self, view: ClusterView | None) -> None:
        """The cluster's present state; called often."""


class PlainView:
    """One line for each thing that happens or changes."""

    def __init__(self, supervisor: Supervisor, *, where: str) -> None:
        self.supervisor = supervisor
        self.where = where
        self._before: tuple[int | None, int, int] | None = None
        self._ready = False

    def __enter__(self) -> PlainView:
        self.event("starting", f"starting {len(self.supervisor.nodes)} nodes in {self.where}")
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ready(self, servers: str, *, seconds: float) -> None:
        self._ready = True
        self.event("ready", f"{len(self.supervisor.nodes)} nodes ready in {seconds:.1f} s; bootstrap servers: {servers}")

    def event(self, kind: str, text: str, *, node: int | None = None) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def show(self, view: ClusterView | None) -> None:
        if view is None or not self._ready:
            return
        now = (view.controller, view.under_replicated, view.leaderless)
        before, self._before = self._before, now
        if before is None or now[0] != before[0]:
            self.event("controller", f"active controller: {'none' if now[0] is None else f'node {now[0]}'}")
        if before is not None and now[1:] != before[1:]:
            self.event("partitions", f"under-replicated partitions: {now[1]}, without a leader: {now[2]}")


class JsonView(PlainView):
    """The same things as JSON lines."""

    def ready(self, servers: str, *, seconds: float) -> None:
        self._ready = True
        pids = {str(node.node_id): node.pid for node in self.supervisor.nodes}
        self._line("ready", bootstrap_servers=servers, seconds=round(seconds, 3), pids=pids)

    def event(self, kind: str, text: str, *, node: int | None = None) -> None:
        self._line(kind, text=text, **({} if node is None else {"node": node, "pid": self._pid(node)}))

    def _pid(self, node_id: int) -> int | None:
        return next((node.pid for node in self.supervisor.nodes if node.node_id == node_id), None)

    def _line(self, kind: str, **fields: Any) -> None:
        import sys

        print_json({"event": kind, "time_ms": time.time_ns() // 1_000_000, **fields})
        sys.stdout.flush()


class LiveView:
    """A table that keeps itself up to date, with the last events below."""

    def __init__(self, supervisor: Supervisor, *, where: str) -> None:
        self.supervisor = supervisor
        self.where = where
        self._headline = f"starting {len(supervisor.nodes)} nodes in {where} …"
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._view: ClusterView | None = None
        self._drawn_s = 0.0
        self._live: Any = None

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
            self._live.stop()

    def ready(self, servers: str, *, seconds: float) -> None:
        self._headline = f"ready in {seconds:.1f} s · bootstrap servers: {servers} · data in {self.where} · Ctrl-C stops"
        self._draw()

    def event(self, kind: str, text: str, *, node: int | None = None) -> None:
        self._events.append(f"{time.strftime('%H:%M:%S')} {text}")
        self._draw()

    def show(self, view: ClusterView | None) -> None:
        self._view = view
        if time.monotonic() - self._drawn_s >= REFRESH_S:
            self._draw()

    def _draw(self) -> None:
        from rich.live import Live

        self._drawn_s = time.monotonic()
        if self._live is None:  # rich is imported only now, when the nodes are already starting.
            self._live = Live(self._render(), auto_refresh=False)
            self._live.start()
        self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        view = self._view
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("node", "address", "state", "quorum", "leads", "in sync", "died", "pid"):
            table.add_column(name, justify="right" if name in ("leads", "in sync", "died", "pid") else "left", no_wrap=True)
        for node in self.supervisor.nodes:
            known = view is not None and node.node_id in view.brokers
            role = "active" if view is not None and view.controller == node.node_id else "voter"
            state = "ready" if known and node.state.value == "running" else "starting" if node.state.value == "running" else node.state.value
            leads = str(view.leads.get(node.node_id, 0)) if view is not None else "-"
            in_sync = str(view.in_sync.get(node.node_id, 0)) if view is not None else "-"
            style = "" if state == "ready" else "yellow" if state == "starting" else "red"
            table.add_row(str(node.node_id), node.address, Text(state, style), role, leads, in_sync, str(node.restarts), str(node.pid or "-"))
        return Group(Text(self._headline, "bold"), table, Text(summary_line(view)), *(Text(line, "dim") for line in self._events))


def summary_line(view: ClusterView | None) -> str:
    """One line on all partitions."""
    if view is None:
        return "no node answers yet"
    line = f"{view.topics} topics · {view.partitions} partitions · {view.under_replicated} under-replicated · {view.leaderless} without a leader"
    return line if view.messages_per_s is None else f"{line} · {view.messages_per_s:,.0f} messages/s"
