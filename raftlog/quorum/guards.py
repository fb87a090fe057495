"""What stands between pysyncobj and the ways in which it loses acknowledged entries; all on, always.

Each guard can be switched off, only to show in the simulation and in tests that without it something breaks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guards:
    """Every field is a rule that holds; `Guards(fifo=False)` is for tests that show what the rule is worth."""

    sync_first: bool = True  # Journal, term and vote are on disk before any message, reply or applied entry leaves.
    snapshot_commit_clamped: bool = True  # A snapshot message raises the commit index to its own index, no further.
    snapshot_durable_first: bool = True  # A snapshot is on disk, under its name, before the entries that it holds go.
    snapshot_newer_only: bool = True  # A snapshot of what the log holds already is never installed.
    reconciled_first: bool = True  # Snapshot and journal are made to agree before the engine sees either.
    append_sanitized: bool = True  # Entries are cut off only where they contradict the leader's.
    answers_carry_term: bool = True  # A follower's answer counts in the term in which it was given.
    conflict_backoff: bool = True  # A follower in conflict names its commit index; the leader bounds what it believes.
    commands_checked: bool = True  # Only records and no-ops are applied, nothing is unpickled, nothing forwarded.
    own_epoch_only: bool = True  # A command decided under another epoch than its entry's term has no effect.
    fifo: bool = True  # Per connection in order and once; nothing of an old connection after a new one.
