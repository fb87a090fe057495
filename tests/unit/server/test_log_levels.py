"""The levels of loggers as configs of the node (KIP-412)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from raftlog.errors import InvalidConfig, InvalidRequest
from raftlog.server import log_levels

PARENT, CHILD = "raftlog_test_levels", "raftlog_test_levels.child"
SET, DELETE, APPEND = range(3)


def change(name: str, value: str | None, operation: int = SET) -> Any:
    return SimpleNamespace(name=name, value=value, config_operation=operation)


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    logging.getLogger(CHILD)  # Its parent is a package only.
    root = logging.root.level
    yield
    logging.root.setLevel(root)
    for name in (PARENT, CHILD):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_a_level_holds_for_what_is_below_until_it_is_deleted() -> None:
    log_levels.alter([change(log_levels.ROOT, "ERROR"), change(PARENT, "DEBUG")], validate_only=False)
    found = log_levels.described()
    assert (next(iter(found)), found["root"], found[PARENT], found[CHILD]) == ("root", "ERROR", "DEBUG", "DEBUG")
    assert logging.getLogger(CHILD).isEnabledFor(logging.DEBUG)
    log_levels.alter([change(CHILD, "FATAL"), change(PARENT, None, DELETE)], validate_only=False)
    assert (log_levels.described()[PARENT], log_levels.described()[CHILD]) == ("ERROR", "FATAL")
    log_levels.alter([change(CHILD, "TRACE")], validate_only=False)
    assert log_levels.described()[CHILD] == "TRACE"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (change(CHILD, "LOUD"), InvalidConfig),
        (change("no.such", "INFO"), InvalidConfig),
        (change(CHILD, "INFO", APPEND), InvalidRequest),
        (change(CHILD, "INFO", 9), InvalidRequest),
        (change(log_levels.ROOT, None, DELETE), InvalidRequest),
    ],
)
def test_all_or_nothing(wrong: Any, error: type[Exception]) -> None:
    before = log_levels.described()
    with pytest.raises(error):
        log_levels.alter([change(PARENT, "DEBUG"), wrong], validate_only=False)
    log_levels.alter([change(PARENT, "DEBUG")], validate_only=True)
    assert log_levels.described() == before
