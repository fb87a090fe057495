"""Times and durations as people write them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from .errors import UsageProblem

UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SHORT: Final = re.compile(r"(?:\d+(?:ms|[smhd]))+")
_SHORT_PART: Final = re.compile(r"(\d+)(ms|[smhd])")
_ISO: Final = re.compile(r"P(?=.)(?:(?P<d>\d+)D)?(?:T(?=.)(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+(?:\.\d{1,3})?)S)?)?", re.IGNORECASE)


def parse_timestamp(text: str, option: str) -> int:
    """Milliseconds since the epoch, from digits or ISO 8601 (local time where it names no zone). Raises UsageProblem."""
    if text.isdecimal():
        return int(text)
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise UsageProblem(f"{option} {text!r} is neither milliseconds nor like 2026-01-31T12:00:00") from None


def parse_duration(text: str, option: str) -> int:
    """Milliseconds, from `90s`, `1h30m`, `2d` or ISO 8601's `P1DT2H`. Raises UsageProblem."""
    if _SHORT.fullmatch(text):
        return sum(int(number) * UNIT_MS[unit] for number, unit in _SHORT_PART.findall(text))
    iso = _ISO.fullmatch(text)
    if iso is None:
        raise UsageProblem(f"{option} {text!r} is not like 90s, 1h30m, 2d or P1DT2H")
    return sum(round(float(number) * UNIT_MS[unit]) for unit, number in iso.groupdict().items() if number is not None)
