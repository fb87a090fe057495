"""Which leader epoch begins at which offset: what followers are told to truncate by.

Source: KIP-101, KIP-279, KIP-320.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from raftlog.ids import NO_LEADER_EPOCH, LeaderEpoch, Offset

NO_OFFSET: Final[Offset] = -1


class EpochCache:
    """Epochs with their first offsets, both strictly growing. Pure: whoever owns it writes the checkpoint file."""

    __slots__ = ("_epochs", "_starts")

    def __init__(self) -> None:
        self._epochs: list[LeaderEpoch] = []
        self._starts: list[Offset] = []

    def __len__(self) -> int:
        return len(self._epochs)

    def entries(self) -> list[tuple[LeaderEpoch, Offset]]:
        return list(zip(self._epochs, self._starts, strict=True))

    @property
    def latest_epoch(self) -> LeaderEpoch:
        """NO_LEADER_EPOCH when there is none."""
        return self._epochs[-1] if self._epochs else NO_LEADER_EPOCH

    @property
    def earliest_epoch(self) -> LeaderEpoch:
        return self._epochs[0] if self._epochs else NO_LEADER_EPOCH

    def assign(self, epoch: LeaderEpoch, start_offset: Offset) -> bool:
        """`epoch` begins at `start_offset`; entries that contradict it go. True when anything changed.

        The latest epoch again, at its start or later, changes nothing.
        """
        assert epoch >= 0 and start_offset >= 0
        if self._epochs and self._epochs[-1] == epoch and self._starts[-1] <= start_offset:
            return False
        while self._epochs and (self._epochs[-1] >= epoch or self._starts[-1] >= start_offset):
            self._epochs.pop()
            self._starts.pop()
        self._epochs.append(epoch)
        self._starts.append(start_offset)
        return True

    def end_offset_for(self, epoch: LeaderEpoch, log_end_offset: Offset) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch at or below `epoch` and its exclusive end; (-1, -1) for one that isn't known yet.

        Below the first known epoch it answers the asked epoch with the first known start: data before it is gone.
        """
        if epoch == NO_LEADER_EPOCH or not self._epochs:
            return NO_LEADER_EPOCH, NO_OFFSET
        if epoch == self._epochs[-1]:
            return epoch, log_end_offset
        after = bisect_right(self._epochs, epoch)
        if after == len(self._epochs):
            return NO_LEADER_EPOCH, NO_OFFSET
        if after == 0:
            return epoch, self._starts[0]
        return self._epochs[after - 1], self._starts[after]

    def epoch_at(self, offset: Offset) -> LeaderEpoch:
        """The epoch of the record at `offset`; NO_LEADER_EPOCH before the first known one."""
        after = bisect_right(self._starts, offset)
        return self._epochs[after - 1] if after else NO_LEADER_EPOCH

    def truncate_from_end(self, end_offset: Offset) -> bool:
        """Forget epochs that begin at or after `end_offset`. True when anything changed."""
        keep = bisect_left(self._starts, end_offset)
        changed = keep < len(self._starts)
        del self._epochs[keep:]
        del self._starts[keep:]
        return changed

    def truncate_from_start(self, start_offset: Offset) -> bool:
        """Forget epochs that end at or before `start_offset`; the one that holds it begins there now. True when anything changed."""
        after = bisect_right(self._starts, start_offset)
        if after == 0 or (after == 1 and self._starts[0] == start_offset):
            return False
        del self._epochs[: after - 1]
        del self._starts[: after - 1]
        self._starts[0] = start_offset
        return True

    def clear(self) -> None:
        self._epochs.clear()
        self._starts.clear()

    def to_text(self) -> str:
        """The content of `leader-epoch-checkpoint`."""
        lines = [f"{epoch} {start}\n" for epoch, start in zip(self._epochs, self._starts, strict=True)]
        return f"0\n{len(lines)}\n{''.join(lines)}"

    @classmethod
    def from_text(cls, text: str) -> EpochCache:
        """Raises ValueError when `text` is not a leader epoch checkpoint of version 0."""
        lines = text.splitlines()
        if len(lines) < 2 or lines[0] != "0" or int(lines[1]) != len(lines) - 2:
            raise ValueError("not a leader epoch checkpoint of version 0")
        cache = cls()
        for line in lines[2:]:
            epoch, start = line.split()
            cache.assign(int(epoch), int(start))
        return cache
