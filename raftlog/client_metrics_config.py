"""The configuration of one client-metrics subscription (KIP-714): what is asked for, how often, and of which clients.

Messages and codes are those of Kafka's ClientMetricsConfigs. Patterns are RE2's, of which Java's syntax is nearly the same:
they match in linear time, whatever an administrator writes and a client calls itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import re2

from raftlog.config_types import ConfigKey, ConfigType
from raftlog.errors import InvalidConfig, InvalidRequest

ALL_METRICS: Final = "*"
INTERVAL_MS_DEFAULT: Final = 300_000
INTERVAL_MS_MIN: Final = 100
INTERVAL_MS_MAX: Final = 3_600_000
PATTERN_CHARACTERS_MAX: Final = 1024
PATTERN_MEMORY_BYTES_MAX: Final = 1 << 20  # Of one compiled pattern.

MATCHED_ATTRIBUTES: Final = frozenset(
    {"client_instance_id", "client_id", "client_software_name", "client_software_version", "client_source_address", "client_source_port"}
)

KEYS: Final[Mapping[str, ConfigKey]] = {
    key.name: key
    for key in (
        ConfigKey(name="metrics", type=ConfigType.LIST, default=(), doc="Prefixes of the metrics that clients push; * for all."),
        ConfigKey(name="interval.ms", type=ConfigType.INT, default=INTERVAL_MS_DEFAULT, doc="Pause between a client's pushes."),
        ConfigKey(name="match", type=ConfigType.LIST, default=(), doc="Of which clients: attribute=pattern each; all of them must match."),
    )
}


@dataclass(frozen=True, slots=True)
class ClientMetricsConfig:
    """One subscription: metrics by prefix, the interval in ms, and the compiled pattern of each attribute that counts."""

    metrics: tuple[str, ...]
    interval_ms: int
    patterns: tuple[tuple[str, Any], ...]

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> ClientMetricsConfig:
        """Raises InvalidRequest for an unknown name or an interval out of range, InvalidConfig for any other bad value."""
        for name in values:
            if name not in KEYS:
                raise InvalidRequest(f"Unknown client metrics configuration: {name}")
        parsed = {name: key.parse(values[name]) if name in values else key.default for name, key in KEYS.items()}
        interval_ms = parsed["interval.ms"]
        if not INTERVAL_MS_MIN <= interval_ms <= INTERVAL_MS_MAX:
            limits = f"between {INTERVAL_MS_MIN} and {INTERVAL_MS_MAX} (1 hour)"
            raise InvalidRequest(f"Invalid value {interval_ms} for interval.ms, interval must be {limits}")
        return cls(parsed["metrics"], interval_ms, tuple(dict(map(_pattern, parsed["match"])).items()))

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether the subscription is of the client that calls itself so."""
        return all(name in attributes and pattern.fullmatch(attributes[name]) is not None for name, pattern in self.patterns)


def _pattern(text: str) -> tuple[str, Any]:
    name, separator, expression = text.partition("=")
    name, expression = name.strip(), expression.strip()
    if not separator or not expression or "=" in expression or name not in MATCHED_ATTRIBUTES or len(text) > PATTERN_CHARACTERS_MAX:
        raise InvalidConfig(f"Illegal client matching pattern: {text}")
    options = re2.Options()
    options.max_mem = PATTERN_MEMORY_BYTES_MAX
    options.log_errors = False
    try:
        return name, re2.compile(expression, options)
    except re2.error:
        raise InvalidConfig(f"Illegal client matching pattern: {text}") from None
