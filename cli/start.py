"""`raftlog start`: one node in this process, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageProblem

SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting; repeatable.")]


def register(app: typer.Typer) -> None:
    app.command("start")(start)


def start(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The node's .properties file.")],
    overrides: SetOption = None,
) -> int:
    """Run one node from its .properties file until it is told to stop (Ctrl-C or SIGTERM)."""
    settings = parse_settings(overrides)
    from raftlog.server import run

    return run.main(config, overrides=settings)


def parse_settings(pairs: list[str] | None) -> dict[str, str]:
    """`name=value` texts of --set. Raises UsageProblem; whether the settings exist is for raftlog.config to say."""
    settings = {}
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not (separator and name.strip()):
            raise UsageProblem(f"--set {pair!r} is not name=value")
        settings[name.strip()] = value.strip()
    return settings
