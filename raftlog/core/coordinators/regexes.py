"""Regular expressions that consumers subscribe with, matched in linear time whatever the expression.

The engine is RE2, of which Kafka uses the Java form, so the syntax is the same. Expressions are bounded: a long one costs time to
compile, a large one memory. Matching a million names takes a while all the same: `matches` is to be called in slices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final

import re2

from raftlog.errors import InvalidRegularExpression

LENGTH_MAX: Final = 4096
MEMORY_BYTES_MAX: Final = 1 << 20  # For the compiled form; RE2 refuses what needs more.
CACHED_MAX: Final = 256


class TopicRegex:
    """A compiled expression; a topic matches when all of its name does."""

    def __init__(self, text: str) -> None:
        """Raises InvalidRegularExpression."""
        if len(text) > LENGTH_MAX:
            raise InvalidRegularExpression(f"SubscribedTopicRegex of {len(text)} characters is longer than {LENGTH_MAX}.")
        options = re2.Options()
        options.max_mem = MEMORY_BYTES_MAX
        options.log_errors = False
        try:
            self._compiled: Any = re2.compile(text, options)
        except re2.error as error:
            reason = error.args[0] if error.args else "malformed"
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
            raise InvalidRegularExpression(f"SubscribedTopicRegex `{text}` is not a valid regular expression: {reason}.") from error

    def matches(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._compiled.fullmatch(name) is not None]


@functools.lru_cache(CACHED_MAX)
def compile_regex(text: str) -> TopicRegex:
    """Raises InvalidRegularExpression."""
    return TopicRegex(text)
