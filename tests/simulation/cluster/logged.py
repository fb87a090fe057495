"""What nodes log as errors while a life lasts: of a disk that fails or is gone that is right, all else is a fault of the product."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

CHECKER: Final = "error logged"
DEAD_DISK: Final = ("this node was killed", "opened before the crash")  # What is left of a dead node runs into it.
FULL: Final = "no space left on device"
BROKEN: Final = "input/output error"
EXPECTED: Final = (*DEAD_DISK, FULL, BROKEN)


class _Errors(logging.Handler):
    def __init__(self, complain: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._complain = complain

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        said = record.getMessage() + (f": {type(error).__name__}: {error}" if error is not None else "")
        if not any(expected in said for expected in EXPECTED):
            self._complain(f"{CHECKER}: at {asyncio.get_running_loop().time():.3f} s: {said}")


@contextlib.contextmanager
def watching(complain: Callable[[str], None]) -> Iterator[None]:
    """Complain of each error that is logged meanwhile; nothing of what nodes log is shown."""
    logger, disabled = logging.getLogger("raftlog"), logging.root.manager.disable
    handler, propagates = _Errors(complain), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        logger.propagate = propagates
        logger.removeHandler(handler)
