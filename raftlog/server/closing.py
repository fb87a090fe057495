"""Stopping the parts of a node one after the other, whatever becomes of each, within a common time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

STEP_TIMEOUT_MS_MIN: Final = 100  # For each step that is left when the common time is up.

logger = logging.getLogger(__name__)


class Closing:
    """Takes steps, in order: an error or a time-out in one is logged, and the next one is taken all the same.

    All steps together have `timeout_ms`; each that is left then has STEP_TIMEOUT_MS_MIN, and one that is cancelled as much to
    heed it. `quietly`: the node is being killed, and that its parts can't reach disk or network any more is no news.
    """

    def __init__(self, *, timeout_ms: int, quietly: bool = False) -> None:
        self._deadline_s = asyncio.get_running_loop().time() + timeout_ms / 1000
        self._quietly = quietly

    async def take(self, *steps: tuple[str, Callable[[], Awaitable[object]]]) -> None:
        for name, step in steps:
            left_s = max(self._deadline_s - asyncio.get_running_loop().time(), STEP_TIMEOUT_MS_MIN / 1000)
            task = asyncio.ensure_future(_awaited(step))
            try:
                await asyncio.wait([task], timeout=left_s)
            finally:
                task.cancel()
            if not task.done():
                logger.warning("stopping: %s took more than %d ms", name, left_s * 1000)
                task.add_done_callback(_retrieve)
                await asyncio.wait([task], timeout=STEP_TIMEOUT_MS_MIN / 1000)  # One that does not heed it is left behind.
            elif not task.cancelled() and (error := task.exception()) is not None:
                logger.log(logging.DEBUG if self._quietly else logging.WARNING, "stopping: %s failed: %s: %s", name, type(error).__name__, error)
                logger.debug("the traceback of it", exc_info=error)


async def _awaited(step: Callable[[], Awaitable[object]]) -> None:
    await step()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """What becomes of a step that was given up is not reported once more."""
    if not task.cancelled():
        task.exception()
