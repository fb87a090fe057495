"""The `raftlog` command."""
