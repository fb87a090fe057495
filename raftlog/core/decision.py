"""What a handler of the controller hands back: the records to commit and the reply to give once they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Record = TypeVar("Record", covariant=True)
Reply = TypeVar("Reply", covariant=True)


@dataclass(frozen=True, slots=True)
class Decision(Generic[Record, Reply]):
    """Made from one committed image and valid on that image only; `reply` may leave only after `records` are committed."""

    records: Sequence[Record]
    reply: Reply
