"""Stopping the parts of a node one after the other, whatever becomes of each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

STEP_TIMEOUT_MS: Final = 15_000  # No part may keep a node from stopping for longer.

logger = logging.getLogger(__name__)


async def close_in_turn(*steps: tuple[str, Callable[[], Awaitable[object]]], quietly: bool = False, timeout_ms: int = STEP_TIMEOUT_MS) -> None:
    """Take every step, in order: an error or a time-out in one is logged, and the next one is taken all the same.

    `quietly`: the node is being killed, and that its parts can't reach disk or network any more is no news.
    """
    for name, step in steps:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await step()
        except TimeoutError:
            logger.warning("stopping: %s took more than %d ms", name, timeout_ms)
        except Exception as error:
            logger.log(logging.DEBUG if quietly else logging.WARNING, "stopping: %s failed: %s: %s", name, type(error).__name__, error)
            logger.debug("the traceback of it", exc_info=error)
