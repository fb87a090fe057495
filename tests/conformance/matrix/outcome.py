"""What becomes of a check: it works, it fails with a reason, or the client has no way to do it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final, NamedTuple

WORKS: Final = "works"
FAILS: Final = "FAILS"
MISSING: Final = "not offered"
WAIT_S: Final = 30.0
POLL_S: Final = 0.02


class NotOffered(Exception):
    """The client has no way to do this."""


class Failure(Exception):
    """The client did it, and the outcome is wrong; says what."""


class Cell(NamedTuple):
    """One cell of the table; `why` only of what fails."""

    shown: str
    why: str = ""
    took_s: float = 0.0


def attempt(check: Callable[[], None]) -> Cell:
    started_s = time.monotonic()
    shown, why = WORKS, ""
    try:
        check()
    except NotOffered:
        shown = MISSING
    except Failure as failure:
        shown, why = FAILS, str(failure)
    except Exception as error:  # Ours or the client's: the table must say it, and the rest go on.
        shown, why = FAILS, f"{type(error).__name__}: {error}"
    return Cell(shown, " ".join(why.split())[:300], time.monotonic() - started_s)


def expect(found: object, wanted: object, what: str = "found") -> None:
    """Raises Failure unless they are equal."""
    if found != wanted:
        raise Failure(f"{what}: {found!r:.120} instead of {wanted!r:.120}")


def expect_error(error: str | None, pattern: str) -> None:
    """Raises Failure unless there is an error of which the regular expression (in any case) finds something."""
    if error is None:
        raise Failure(f"it was accepted instead of refused with {pattern}")
    if not re.search(pattern, error, re.IGNORECASE):
        raise Failure(f"refused with {error!r:.150} instead of {pattern}")


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Raises Failure when the condition does not come true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise Failure(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(POLL_S)
