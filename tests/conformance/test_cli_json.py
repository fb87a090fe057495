"""What scripts read: with --json each command prints JSON of the same keys, a document or a line each, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import CommandLine, produce, unique
from raftlog_cli.main import make_app

# The keys of the document, or of each item of a list, or of each line. {t}: a topic, {g}: a group, {f}: a file that does not exist.
CONTRACT: dict[str, tuple[str, set[str]]] = {
    "produce": ("produce {t} --file {records}", {"sent", "acknowledged", "failed", "seconds", "error"}),
    "consume": ("consume {t} -n 1", {"topic", "partition", "offset", "timestamp", "key", "value"}),
    "offsets": ("offsets {t}", {"offsets", "failed"}),
    "quorum init": ("quorum init --node-id 1 --voters 1@127.0.0.1:1 --dir {f}", {"cluster_id", "node_id", "config", "data"}),
    "quorum status": ("quorum status", {"leader", "epoch", "high_watermark", "replicas"}),
    "topics create": ("topics create {t}-new", {"created", "failed"}),
    "topics list": ("topics list", {"topic", "partitions", "replicas", "under-replicated", "leaderless"}),
    "topics describe": (
        "topics describe {t}",
        {"topic", "topic_id", "internal", "replicas", "under-replicated", "leaderless", "configs", "partitions"},
    ),
    "topics alter": ("topics alter {t} -c retention.ms=3600000", {"altered", "failed", "changes", "validate_only"}),
    "topics add-partitions": ("topics add-partitions {t} --to 3", {"altered", "failed", "partitions", "validate_only"}),
    "topics delete-records": ("topics delete-records {t} --all", {"deleted", "failed"}),
    "topics elect-leaders": ("topics elect-leaders {t}", {"elected", "unchanged", "failed"}),
    "topics reassign": ("topics reassign {t} -r 2 --execute --watch", {"partitions", "moving", "throttle_removed", "failed"}),
    "groups list": ("groups list", {"group", "state", "type", "protocol", "coordinator"}),
    "groups describe": (
        "groups describe {g}",
        {"group", "state", "type", "assignor", "coordinator", "epoch", "assignment_epoch", "members", "lag", "partitions"},
    ),
    "groups reset-offsets": ("groups reset-offsets {g} --to-latest", {"group", "dry_run", "offsets", "failed"}),
    "groups delete-offsets": ("groups delete-offsets {g} -t {t}:0", {"group", "deleted", "failed"}),
    "groups remove-members": ("groups remove-members {g} --all", {"group", "removed", "failed"}),
    "groups delete": ("groups delete {g}", {"deleted", "failed"}),
    "configs get": ("configs get topic {t} --all", {"resource", "configs"}),
    "configs set": ("configs set topic {t} retention.ms=7200000", {"altered", "failed", "changes", "validate_only"}),
    "configs unset": ("configs unset topic {t} retention.ms", {"altered", "failed", "changes", "validate_only"}),
    "configs list": ("configs list topic", {"type", "name"}),
    "cluster describe": ("cluster describe", {"cluster", "controller", "topics", "partitions", "under-replicated", "leaderless", "brokers"}),
    "cluster brokers": ("cluster brokers", {"broker", "address", "rack", "state"}),
    "cluster apis": ("cluster apis --broker 1", {"key", "api", "lowest", "highest"}),
    "cluster features describe": ("cluster features", {"feature", "level", "lowest", "highest"}),
    "cluster features upgrade": ("cluster features upgrade -f group.version=1", {"updated", "failed", "validate_only"}),
    "cluster features downgrade": ("cluster features downgrade -f group.version=0 --validate-only", {"updated", "failed", "validate_only"}),
    "cluster log-dirs": ("cluster log-dirs -t {t}", {"directories", "failed"}),
    "chaos list": ("chaos list", {"name", "title", "about", "limit_s", "needs_namespaces"}),
    "topics delete": ("topics delete {t} {t}-new", {"deleted", "failed"}),
}
ELSEWHERE = {
    "up": "runs until it is stopped: test_cli.py reads its events",
    "start": "is one node, whose output is its log",
    "cluster unregister": "needs a broker that is down: test_cli_cluster.py",
    "log dump": "reads files, and its lines differ by what is in them: test_dump.py",
    "chaos run": "takes minutes: tests/chaos",
    "chaos check": "test_chaos_commands.py",
    "chaos client": "is a process of `chaos run`",
    "chaos format": "is a text for people",
}
WITHOUT_JSON = {"start", "chaos client", "chaos format"}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command with its name, families first."""
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, part in command.commands.items():
        yield from commands(part, (*path, name))


ALL = dict(commands(typer.main.get_command(make_app())))


def test_every_command_has_its_line_here() -> None:
    assert ALL.keys() == CONTRACT.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("name", sorted(ALL.keys() - WITHOUT_JSON))
def test_every_command_offers_json_and_says_what_it_does(name: str) -> None:
    assert "--json" in {option for parameter in ALL[name].params for option in parameter.opts}
    assert ALL[name].help
    undocumented = [parameter.name for parameter in ALL[name].params if parameter.param_type_name == "option" and not parameter.help]
    assert undocumented == []


def test_json_is_all_that_commands_print_and_its_keys_stay(cli: CommandLine, tmp_path: Path) -> None:
    topic, group = unique("json"), unique("json")
    cli("topics", "create", "--if-not-exists", topic, "-p", "2", "-r", "1")
    produce(cli.cluster, topic, {0: 2})
    cli("groups", "reset-offsets", group, "-t", topic, "--to-earliest")
    (tmp_path / "records").write_text("one\n")
    for name, (line, keys) in CONTRACT.items():
        arguments = line.format(t=topic, g=group, f=tmp_path / "new", records=tmp_path / "records").split()
        documents = [json.loads(each) for each in cli("--json", *arguments).splitlines()]
        assert documents, name
        for document in documents:
            items = document if isinstance(document, list) else [document]
            assert {frozenset(item) for item in items} <= {frozenset(keys)}, name


def test_what_fails_leaves_standard_output_empty_or_json(cli: CommandLine) -> None:
    assert cli("--json", "topics", "describe", "nowhere", status=1) == ""
    assert cli("--json", "groups", "describe", "nobody", status=1) == ""
    assert cli.json("topics", "delete", "nowhere", status=1) == {"deleted": [], "failed": [{"topic": "nowhere", "error": "no such topic"}]}
