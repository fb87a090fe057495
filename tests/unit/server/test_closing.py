"""Parts of a node that fail, hang or will not end, under virtual time: the others are stopped all the same, and in time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from raftlog.server.closing import STEP_TIMEOUT_MS_MIN, Closing
from raftlog.testing.virtual_time import run

TIMEOUT_MS = 3_000


class Parts:
    """`stubborn` goes on until it is freed, however often it is cancelled."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.freed = asyncio.Event()

    async def sound(self) -> None:
        self.taken.append("sound")

    async def failing(self) -> None:
        self.taken.append("failing")
        raise OSError("the disk is gone")

    async def hanging(self) -> None:
        self.taken.append("hanging")
        await asyncio.Event().wait()

    async def stubborn(self) -> None:
        self.taken.append("stubborn")
        while not self.freed.is_set():
            try:
                await self.freed.wait()
            except asyncio.CancelledError:
                self.taken.append("not heeded")


def test_all_steps_are_taken_within_the_common_time(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        parts, loop = Parts(), asyncio.get_running_loop()
        began_s = loop.time()
        closing = Closing(timeout_ms=TIMEOUT_MS)
        await closing.take(("a", parts.failing), ("b", parts.stubborn), ("c", parts.hanging))
        await closing.take(("d", parts.sound))
        assert parts.taken == ["failing", "stubborn", "not heeded", "hanging", "sound"]
        assert loop.time() - began_s <= (TIMEOUT_MS + 3 * STEP_TIMEOUT_MS_MIN) / 1000
        parts.freed.set()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "stopping: a failed: OSError: the disk is gone",
        f"stopping: b took more than {TIMEOUT_MS} ms",
        f"stopping: c took more than {STEP_TIMEOUT_MS_MIN} ms",
    ]


def test_a_step_that_was_given_up_is_cancelled_and_its_error_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        ended: list[str] = []

        async def failing_late() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")
                raise OSError("too late")

        await Closing(timeout_ms=TIMEOUT_MS).take(("late", failing_late))
        assert ended == ["cancelled"]

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert [record.getMessage() for record in caplog.records] == [f"stopping: late took more than {TIMEOUT_MS} ms"]
