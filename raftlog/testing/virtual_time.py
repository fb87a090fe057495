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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

SIMULATION_EPOCH_MS: Final = 1_700_000_000_000  # What the wall clock shows when a simulation starts.

# Whose code runs: set in the context of a node's first task, inherited by every task and timer that comes of it.
OWNER: Final[contextvars.ContextVar[int | str | None]] = contextvars.ContextVar("owner", default=None)


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: what is awaited can never happen."""


class _Selector(selectors.BaseSelector):
    """Never finds a ready file: asyncio wants one for its own wake-up pipe."""

    def __init__(self) -> None:
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = selectors.SelectorKey(fileobj, descriptor, events, data)
        self._keys[descriptor] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class _Handle(asyncio.TimerHandle):
    """As asyncio's, but for what only debugging needs: a simulated life makes hundreds of thousands of them."""

    __slots__ = ()

    def __init__(
        self,
        when_s: float,
        callback: Callable[..., object],
        args: Sequence[Any],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._when = when_s
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = contextvars.copy_context() if context is None else context
        self._cancelled = False
        self._scheduled = False
        self._repr = None
        self._source_traceback = None

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = _nothing, ()  # What they hold is free before the timer's time comes.


def _nothing() -> None:
    return


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """asyncio's loop with a virtual `time()`, in seconds from 0. What is due at the same moment runs in the order it was asked for.

    Scheduling and turns are its own, not asyncio's: timers are compared as plain tuples, and turns follow each other
    without a call. Half of what asyncio's loop took of a simulation's time was spent there.
    """

    _ready: deque[Any]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__(_Selector())
        self._now_s = 0.0
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timer_count = 0
        self._paused: dict[int | str, list[asyncio.Handle]] = {}

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(self._now_s, callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = _Handle(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

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
        """Turns until the loop is to stop. As asyncio's own, but for what belongs to who is paused."""
        timers, ready, paused = self._timers, self._ready, self._paused
        while True:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not ready and not self._stopping:
                if not timers:
                    raise Deadlock("the simulation waits for something that can never happen")
                self._now_s = max(self._now_s, timers[0][0])
            while timers and timers[0][0] <= self._now_s:
                ready.append(heapq.heappop(timers)[2])
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                owner = handle._context.get(OWNER) if paused else None
                if owner is not None and owner in paused:
                    paused[owner].append(handle)
                    continue
                try:
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"exception in callback {handle._callback!r}", "exception": error})
            if self._stopping:
                return


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
