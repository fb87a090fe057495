"""Entry point of the `raftlog` command: puts the families together and keeps every failure to one line.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 cluster unreachable, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Annotated, Final

import typer

from .errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CliError, complain
from .session import BootstrapOption, Defaults, JsonOption, TimeoutOption

# Each command or family in the order of the help: the module that has it, then those that add theirs to it.
COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "up": ("up",),
    "start": ("start",),
    "quorum": ("quorum",),
    "topics": ("topics", "topic_changes", "reassign"),
    "produce": ("produce",),
    "consume": ("consume",),
    "offsets": ("offsets",),
    "groups": ("groups", "group_offsets"),
    "configs": ("configs",),
    "cluster": ("cluster", "logdirs", "features"),
    "log": ("log",),
    "chaos": ("chaos",),
}


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands only: to import them all takes as long as the rest of a command's start."""
    app = typer.Typer(
        name="raftlog",
        help="A Kafka cluster that pip install brings: start one, and talk to it or to any other Kafka cluster.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(common)
    for name in names:
        module, *_ = [import_module(f".{module}", __package__) for module in COMMANDS[name]]
        if hasattr(module, "register"):
            module.register(app)
        else:
            app.add_typer(module.app, name=name)
    return app


def common(
    context: typer.Context,
    bootstrap_server: BootstrapOption = None,
    as_json: JsonOption = False,
    timeout_s: TimeoutOption = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.", hidden=True)] = False,
) -> None:
    context.obj = Defaults(bootstrap_server, as_json, timeout_s)


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit status. Whatever goes wrong is one line on stderr, unless --traceback is given."""
    try:
        app = make_app(arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS)
        status = app(args=arguments, prog_name="raftlog", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as ended:  # What click makes of a BrokenPipeError, even where it is not to end the process itself.
        if isinstance(ended.__context__, BrokenPipeError):
            return _reader_gone()
        raise
    except Exception as error:
        if "--traceback" in arguments:
            raise
        return _report(error)


def _reader_gone() -> int:
    """The reader of a pipe went away, as `head` does: nothing is wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _report(error: Exception) -> int:
    """Print the line for an error; returns the exit status."""
    if isinstance(error, CliError):
        complain(str(error))
        return error.exit_code
    format_message = getattr(error, "format_message", None)  # Typer's own usage errors, whichever click is behind them.
    if format_message is not None:
        context = getattr(error, "ctx", None)
        message = format_message()
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message, file=sys.stderr)
        else:
            complain(message.rstrip(".") + (f" (see {context.command_path} --help)" if context is not None else ""))
        return EXIT_USAGE
    if type(error).__name__ == "Abort":
        return EXIT_INTERRUPTED
    from raftlog.errors import RaftlogError

    if isinstance(error, (RaftlogError, OSError)):
        complain(str(error))
    else:
        complain(f"unexpected {type(error).__name__}: {error} (--traceback before the command shows where)")
    return EXIT_FAILED
