"""Entry point of the `raftlog` command."""

import typer

app = typer.Typer()


def main() -> None:
    app()
