"""pysyncobj as the engine has it: a copy of its own, checked at start-up, without what would touch disk, pickle or spin.

pysyncobj keeps its clock and factories in the globals of one module. Each engine has its own copy of that module, so that
several voters, each with its own clock, live in one process and nobody else's pysyncobj is touched.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Final, Protocol

from raftlog.errors import RaftlogError

PYSYNCOBJ_VERSION: Final = "0.3.17"

# What the engine touches inside SyncObj: checked at start-up, because no contract protects any of it.
_METHODS: Final = (
    "_SyncObj__onMessageReceived",
    "_SyncObj__doApplyCommand",
    "_SyncObj__loadDumpFile",
    "_SyncObj__tryLogCompaction",
    "_SyncObj__sendAppendEntries",
    "_SyncObj__generateRaftTimeout",
    "_checkCommandsToApply",
    "_applyCommand",
    "doTick",
)
_ATTRIBUTES: Final = (
    "_SyncObj__commandsQueue",
    "_SyncObj__commandsWaitingCommit",
    "_SyncObj__connectedNodes",
    "_SyncObj__needLoadDumpFile",
    "_SyncObj__newAppendEntriesTime",
    "_SyncObj__noopIDx",
    "_SyncObj__otherNodes",
    "_SyncObj__raftCommitIndex",
    "_SyncObj__raftCurrentTerm",
    "_SyncObj__raftElectionDeadline",
    "_SyncObj__raftLastApplied",
    "_SyncObj__raftLeader",
    "_SyncObj__raftMatchIndex",
    "_SyncObj__raftNextIndex",
    "_SyncObj__raftState",
)
_GLOBALS: Final = ("createJournal", "createPoller", "monotonicTime", "Serializer", "PIPE_NOTIFIER_ENABLED", "SyncObj", "SyncObjConf", "Node")


class EngineMismatch(RaftlogError):
    """The installed pysyncobj is not the one that the engine was written and simulated against."""


def own_copy() -> Any:
    """Raises EngineMismatch when there is none."""
    spec = importlib.util.find_spec("pysyncobj.syncobj")
    if spec is None or spec.loader is None:
        raise EngineMismatch("pysyncobj is not installed")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(module: Any) -> None:
    """Raises EngineMismatch unless pysyncobj has the version and the private names that the engine depends on."""
    if module.VERSION != PYSYNCOBJ_VERSION:
        raise EngineMismatch(f"pysyncobj {PYSYNCOBJ_VERSION} is needed, {module.VERSION} is installed")
    missing = [name for name in _GLOBALS if not hasattr(module, name)]
    missing += [name for name in _METHODS if not callable(getattr(module.SyncObj, name, None))]
    if missing:
        raise EngineMismatch(f"pysyncobj lacks {', '.join(missing)}")


def check_attributes(raft: Any) -> None:
    """As `check`, of what only an instance has."""
    missing = [name for name in _ATTRIBUTES if not hasattr(raft, name)]
    if missing:
        raise EngineMismatch(f"pysyncobj lacks {', '.join(missing)}")


class Hooks(Protocol):
    """What stands in place of SyncObj's own methods: `raft.RaftEngine`."""

    def apply_command(self, command: bytes, stock: Callable[[bytes], object]) -> object: ...

    def snapshot_installed(self) -> None: ...

    def send_appends(self) -> None: ...

    def election_timeout_s(self) -> float: ...

    def commands_allowed(self) -> bool: ...


def engine_class(module: Any, hooks: Hooks) -> Any:
    """SyncObj, from the engine's own copy of the module, with the methods replaced that would touch disk, pickle or spin."""

    class Engine(module.SyncObj):  # type: ignore[misc]
        def _SyncObj__doApplyCommand(self, command: bytes) -> object:
            return hooks.apply_command(command, super()._SyncObj__doApplyCommand)

        def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
            hooks.snapshot_installed()

        def _SyncObj__tryLogCompaction(self) -> None: ...

        def _SyncObj__sendAppendEntries(self) -> None:
            hooks.send_appends()

        def _SyncObj__generateRaftTimeout(self) -> float:
            return hooks.election_timeout_s()

        def _checkCommandsToApply(self) -> None:
            if hooks.commands_allowed():
                super()._checkCommandsToApply()

    return Engine
