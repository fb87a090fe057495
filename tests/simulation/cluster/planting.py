"""How a known-wrong change of the product is planted: named, described, and there only while its context lasts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Final
from unittest import mock

Planted = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug: what it breaks, and the context in which it is there."""

    name: str
    breaks: str
    planted: Planted


MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(breaks: str) -> Callable[[Callable[[], contextlib.AbstractContextManager[Any]]], Planted]:
    def register(planted: Planted) -> Planted:
        name = planted.__name__.replace("_", "-")
        MUTANTS[name] = Mutant(name, breaks, planted)
        return planted

    return register


def around(owner: Any, name: str, wrong: Callable[..., Any]) -> contextlib.AbstractContextManager[Any]:
    """`wrong(right, *arguments)` in place of `owner.name`."""
    right = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return wrong(right, *args, **kwargs)

    return mock.patch.object(owner, name, replaced)
