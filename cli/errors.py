"""What the command line says when something is wrong: one clear line on stderr and an exit status that scripts can use."""

from __future__ import annotations

import sys
from typing import ClassVar, Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_INTERRUPTED: Final = 130


class CliError(Exception):
    """Ends the command; `str()` is the one line that is shown."""

    exit_code: ClassVar[int] = EXIT_FAILED


class UsageProblem(CliError):
    """Options or arguments that contradict each other or make no sense."""

    exit_code = EXIT_USAGE


class Interrupted(CliError):
    """Ctrl-C, after which there is something left to say."""

    exit_code = EXIT_INTERRUPTED


class Unreachable(CliError):
    """No server of the cluster answered in time; the line says where and how long it was tried."""

    exit_code = EXIT_UNREACHABLE


class Refused(CliError):
    """A server's answer to a request, or to one item of it, was an error; `code` is Kafka's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def complain(message: str) -> None:
    """The one line on stderr."""
    print("raftlog: " + " ".join(message.split()), file=sys.stderr)
