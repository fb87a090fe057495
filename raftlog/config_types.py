"""What a config is, whatever it configures: its type, its default, and which texts are values of it.

Messages are those of Kafka's ConfigDef, since administrators' tools show them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from raftlog.errors import InvalidConfig

REQUIRED: Final = object()  # The default of a config that has none.

_WHOLE: Final = re.compile(r"[+-]?[0-9]+")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class ConfigType(enum.IntEnum):
    """Kafka's types, by the codes that DescribeConfigs tells them with (KIP-569)."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    SHORT = 4
    LONG = 5
    DOUBLE = 6
    LIST = 7
    CLASS = 8
    PASSWORD = 9


BITS: Final = {ConfigType.SHORT: 16, ConfigType.INT: 32, ConfigType.LONG: 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKey:
    """One config: `minimum` and `maximum` are inclusive; `check` says what is wrong with a value, None for nothing.

    `one_of` bounds a STRING, or each element of a LIST, which then may not repeat or be empty.
    """

    name: str
    type: ConfigType
    doc: str
    default: Any = REQUIRED
    minimum: float | None = None
    maximum: float | None = None
    one_of: tuple[str, ...] | None = None
    check: Callable[[Any], str | None] | None = None

    @property
    def is_sensitive(self) -> bool:
        return self.type is ConfigType.PASSWORD

    def parse(self, text: str) -> Any:
        """The typed value: bool, str, int, float or a tuple of str; None for an empty text where there is no default.

        Raises InvalidConfig.
        """
        value = self._typed(text)
        problem = None if value is None else self._problem(value)
        if problem is not None:
            raise self._invalid(text, problem)
        return value

    def _typed(self, text: str) -> Any:
        trimmed = text.strip()
        if self.type is ConfigType.BOOLEAN:
            if trimmed.lower() not in ("true", "false"):
                raise self._invalid(text, "Expected value to be either true or false")
            return trimmed.lower() == "true"
        if self.type is ConfigType.LIST:
            parts = tuple(part.strip() for part in trimmed.split(",")) if trimmed else ()
            return parts if self.one_of is not None else tuple(filter(None, parts))
        if self.type is ConfigType.DOUBLE:
            if not _DECIMAL.fullmatch(trimmed):
                raise self._invalid(text, "Not a number of type DOUBLE")
            return float(trimmed)
        if self.type in BITS:
            return self._whole(text, trimmed)
        return trimmed if trimmed or self.default is not None else None

    def _whole(self, text: str, trimmed: str) -> int:
        bound = 2 ** (BITS[self.type] - 1)
        # Bounded before it is converted: the digits of a hostile text cost quadratic time.
        if not _WHOLE.fullmatch(trimmed) or len(trimmed) > len(str(2**64)) or not -bound <= int(trimmed) < bound:
            raise self._invalid(text, f"Not a number of type {self.type.name}")
        return int(trimmed)

    def _problem(self, value: Any) -> str | None:
        if self.minimum is not None and value < self.minimum:
            return f"Value must be at least {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return f"Value must be no more than {self.maximum}"
        if self.one_of is not None:
            values = value if self.type is ConfigType.LIST else (value,)
            if any(each not in self.one_of for each in values):
                return f"String must be one of: {', '.join(self.one_of)}"
            if len(set(values)) != len(values):
                return "Values must not be duplicated"
        return None if self.check is None else self.check(value)

    def _invalid(self, text: str, problem: str) -> InvalidConfig:
        shown = "[hidden]" if self.is_sensitive else text
        return InvalidConfig(f"Invalid value {shown} for configuration {self.name}: {problem}")


def text_of(value: Any) -> str | None:
    """A typed value as Kafka writes it; None for one that is not set."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)
