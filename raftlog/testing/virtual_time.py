"""An event loop whose clock is virtual: hours of a cluster's life pass in seconds, and a seed repeats them exactly.

Where asyncio would wait for the next timer, time jumps to it. Nothing under this loop may wait for a thread or a real
socket: files and network are the simulated ones.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

SIMULATION_EPOCH_MS: Final = 1_700_000_000_000  # What the wall clock shows when a simulation starts.

# Whose code runs: set in the context of a node's first task, inherited by every task and timer that comes of it.
OWNER: Final[contextvars.ContextVar[int | str | None]] = contextvars.ContextVar("owner", default=None)


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: what is awaited can never happen."""


class _Selector(selectors.BaseSelector):
    """Never finds a ready file; waiting moves the virtual clock instead."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = selectors.SelectorKey(fileobj, descriptor, events, data)
        self._keys[descriptor] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("the simulation waits for something that can never happen")
        self.now_s += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """asyncio's loop with a virtual `time()`, in seconds from 0."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[Any]
    _stopping: bool
    _timer_cancelled_count: int

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-9
        self._paused: dict[int | str, list[asyncio.Handle]] = {}

    def time(self) -> float:
        return self._virtual.now_s

    def pause(self, owner: int | str) -> None:
        """Run nothing of `owner` until `resume`, as SIGSTOP does: what is due for it waits, while time goes on."""
        self._paused.setdefault(owner, [])

    def resume(self, owner: int | str) -> None:
        """What has become due since `pause` runs now, in the order in which it became due."""
        self._ready.extend(self._paused.pop(owner, []))

    def is_paused(self, owner: int | str) -> bool:
        return owner in self._paused

    def run_in_executor(self, executor: Any, func: Callable[..., Result], *args: Any) -> asyncio.Future[Result]:  # type: ignore[override]
        """No threads here: `func` runs in a later turn, in one go."""
        future: asyncio.Future[Result] = self.create_future()

        def work() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_soon(work)
        return future

    def _run_once(self) -> None:
        """One turn: as asyncio's own, but for what belongs to who is paused."""
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:
            self._virtual.select(None if not scheduled else scheduled[0]._when - self._virtual.now_s)
        end_s = self._virtual.now_s + self._clock_resolution
        while scheduled and scheduled[0]._when < end_s:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            owner = handle._context.get(OWNER) if self._paused else None  # type: ignore[attr-defined]
            if owner is not None and owner in self._paused:
                self._paused[owner].append(handle)
            else:
                handle._run()


class VirtualClock:
    """A node's `Clock` under a virtual loop; `skew_ms` and `drift` set its clocks apart from the other nodes'.

    `drift` is a rate: 0.01 runs one per cent fast. The wall clock may be moved either way; the monotonic one only drifts.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, skew_ms: int = 0, drift: float = 0.0) -> None:
        self._loop = loop
        self.skew_ms = skew_ms
        self.drift = drift

    def wall_ms(self) -> int:
        return SIMULATION_EPOCH_MS + self.skew_ms + self.monotonic_ms()

    def monotonic_ms(self) -> int:
        return int(self._loop.time() * 1000 * (1 + self.drift))


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` to its end under a fresh virtual loop. Raises Deadlock when it waits for what can't happen."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        _cancel_rest(loop)
        loop.close()


def _cancel_rest(loop: VirtualTimeLoop) -> None:
    rest = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
