"""One turn at a time for each group: what is decided about a group is decided on what is committed, in the order of asking."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from raftlog.errors import ApiError, CoordinatorNotAvailable
from raftlog.ids import GroupId

WAITING_MAX: Final = 10_000  # Per group; as many members as that may ask at once.
WAIT_MS_MAX: Final = 5_000  # As long as a write may take.


class GroupGates:
    """`enter`, decide, write, and `leave` when the write has ended: between the two nobody else is inside for that group."""

    def __init__(self) -> None:
        self._waiting: dict[GroupId, deque[asyncio.Future[None]]] = {}

    def is_busy(self, group_id: GroupId) -> bool:
        return group_id in self._waiting

    def try_enter(self, group_id: GroupId) -> bool:
        """Enter if nobody is inside; whether that was so."""
        if group_id in self._waiting:
            return False
        self._waiting[group_id] = deque()
        return True

    async def enter(self, group_id: GroupId) -> None:
        """At once where nobody is inside. Raises CoordinatorNotAvailable when it takes too long; whatever `close` was given."""
        if self.try_enter(group_id):
            return
        waiting = self._waiting[group_id]
        if len(waiting) >= WAITING_MAX:
            raise CoordinatorNotAvailable(f"{len(waiting)} requests wait for group {group_id}")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            async with asyncio.timeout(WAIT_MS_MAX / 1000):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(group_id)  # Its turn had come just then.
            if isinstance(error, TimeoutError):
                raise CoordinatorNotAvailable(f"group {group_id} is being written") from None
            raise

    def leave(self, group_id: GroupId) -> None:
        """Let the next one in. Nothing happens after `close`."""
        waiting = self._waiting.get(group_id)
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._waiting.pop(group_id, None)

    def close(self, error: ApiError) -> None:
        """Whoever waits gets `error`."""
        queues, self._waiting = self._waiting, {}
        for turn in (turn for waiting in queues.values() for turn in waiting):
            if not turn.done():
                turn.set_exception(error)
