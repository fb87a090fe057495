"""The installed pysyncobj is refused unless it is the one that the engine was written against."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raftlog.quorum import syncobj


def test_the_installed_one_is_accepted() -> None:
    syncobj.check(syncobj.own_copy())


def test_copies_share_no_globals() -> None:
    one, other = syncobj.own_copy(), syncobj.own_copy()
    one.monotonicTime = lambda: 0.0
    assert other.monotonicTime is not one.monotonicTime


def test_another_version_is_refused() -> None:
    module = syncobj.own_copy()
    module.VERSION = "0.3.18"
    with pytest.raises(syncobj.EngineMismatch, match=r"0\.3\.17 is needed, 0\.3\.18 is installed"):
        syncobj.check(module)


def test_missing_names_are_told() -> None:
    module = syncobj.own_copy()
    del module.createPoller
    del module.SyncObj.doTick
    with pytest.raises(syncobj.EngineMismatch, match=r"lacks createPoller, doTick$"):
        syncobj.check(module)
    with pytest.raises(syncobj.EngineMismatch, match="lacks _SyncObj__commandsQueue"):
        syncobj.check_attributes(SimpleNamespace())
