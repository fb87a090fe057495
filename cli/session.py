"""How every command that talks to a cluster gets there: the common options, and clients built from them.

confluent-kafka is imported only when a client is made: `raftlog start` and `raftlog up` must not pay for it.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .errors import CliError, Unreachable, UsageProblem

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Producer
    from confluent_kafka.admin import AdminClient

BOOTSTRAP_VARIABLE: Final = "KAFKA_BOOTSTRAP_SERVERS"
BOOTSTRAP_DEFAULT: Final = "127.0.0.1:9092"
TIMEOUT_S_DEFAULT: Final = 5.0
CONNECT_TIMEOUT_S_MAX: Final = 2.0  # One server that swallows packets must not use up the time for the others.
RETRY_PAUSE_S: Final = 0.1
CLIENT_ID: Final = "raftlog-cli"

BootstrapOption = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-server", "-b", metavar="HOST:PORT,…", help=f"Where to find the cluster; else ${BOOTSTRAP_VARIABLE}, {BOOTSTRAP_DEFAULT}."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TimeoutOption = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="How long to try before giving up.")]


@dataclass(frozen=True, slots=True)
class Defaults:
    """Common options as given before the command's name."""

    bootstrap_servers: str | None = None
    as_json: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """Where the cluster is, how long to try, and whether a person or a machine reads the output."""

    bootstrap_servers: str
    as_json: bool = False
    timeout_s: float = TIMEOUT_S_DEFAULT

    def reach(self) -> tuple[str, int]:
        """The first bootstrap server that accepts a connection, tried until `timeout_s`. Raises Unreachable, UsageProblem."""
        servers = parse_servers(self.bootstrap_servers)
        started = time.monotonic()
        reasons: dict[tuple[str, int], str] = {}
        while True:
            for server in servers:
                left_s = started + self.timeout_s - time.monotonic()
                try:
                    socket.create_connection(server, timeout=max(0.05, min(left_s, CONNECT_TIMEOUT_S_MAX))).close()
                    return server
                except OSError as error:
                    reasons[server] = _reason(error)
            elapsed_s = time.monotonic() - started
            if elapsed_s + RETRY_PAUSE_S >= self.timeout_s:
                tried = ", ".join(f"{host}:{port} ({reason})" for (host, port), reason in reasons.items())
                raise Unreachable(f"cluster unreachable after {elapsed_s:.1f} s; tried {tried}")
            time.sleep(RETRY_PAUSE_S)

    def admin(self) -> AdminClient:
        from confluent_kafka.admin import AdminClient

        self.reach()
        return AdminClient(self._client_settings(), logger=_silent_logger())

    def producer(self, **settings: Any) -> Producer:
        from confluent_kafka import Producer

        self.reach()
        return Producer(self._client_settings() | settings, logger=_silent_logger())

    def consumer(self, **settings: Any) -> Consumer:
        from confluent_kafka import Consumer

        self.reach()
        return Consumer(self._client_settings() | settings, logger=_silent_logger())

    def _client_settings(self) -> dict[str, Any]:
        # librdkafka prints errors on stderr where it has no callback, and each connection loss is one: commands report themselves.
        return {"bootstrap.servers": self.bootstrap_servers, "client.id": CLIENT_ID, "error_cb": _ignore}

    @contextmanager
    def translated(self, subject: str = "") -> Iterator[None]:
        """Turn a client's exception into one clear line; `subject` names what was asked for, such as a topic."""
        from confluent_kafka import KafkaException

        started = time.monotonic()
        try:
            with _interruptible():
                yield
        except KafkaException as error:
            raise self.problem(error.args[0], subject, elapsed_s=time.monotonic() - started) from None

    def problem(self, error: KafkaError, subject: str = "", *, elapsed_s: float | None = None) -> CliError:
        """The line for an error that a client reported."""
        from confluent_kafka import KafkaError as Codes

        if error.code() in (Codes._TRANSPORT, Codes._ALL_BROKERS_DOWN, Codes._TIMED_OUT, Codes._TIMED_OUT_QUEUE, Codes._RESOLVE):
            after = "" if elapsed_s is None else f" after {elapsed_s:.1f} s"
            return Unreachable(f"no answer from the cluster{after}; asked {self.bootstrap_servers} ({error.str()})")
        if error.code() in (Codes.UNKNOWN_TOPIC_OR_PART, Codes._UNKNOWN_TOPIC):
            return CliError(f"no such topic: {subject}" if subject else f"no such topic ({error.str()})")
        return CliError(f"{subject}: {error.str()}" if subject else error.str())


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once: librdkafka's blocking calls come back to Python only when their time is over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def command(app: typer.Typer, name: str, **settings: Any) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Register a function whose first argument is a Session: the command gets the common options besides its own.

    They may also stand before the command's name; those after it win. What the function returns is the exit status.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(function)
        def run(
            context: typer.Context, *args: Any, bootstrap_server: str | None, as_json: bool, timeout_s: float | None, **options: Any
        ) -> int | None:
            return function(make_session(context.obj, bootstrap_server, as_json, timeout_s), *args, **options)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        kind = inspect.Parameter.KEYWORD_ONLY
        own = [parameter.replace(kind=kind) for parameter in own]
        common = [
            inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            *own,
            inspect.Parameter("bootstrap_server", kind, default=None, annotation=BootstrapOption),
            inspect.Parameter("as_json", kind, default=False, annotation=JsonOption),
            inspect.Parameter("timeout_s", kind, default=None, annotation=TimeoutOption),
        ]
        run.__signature__ = inspect.Signature(common)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in common}
        del run.__wrapped__
        app.command(name, **settings)(run)
        return function

    return register


def make_session(defaults: Defaults | None, bootstrap_server: str | None, as_json: bool, timeout_s: float | None) -> Session:
    """The options given after the command, else those before it, else the environment's, else the defaults."""
    defaults = defaults or Defaults()
    choices = (bootstrap_server, defaults.bootstrap_servers, os.environ.get(BOOTSTRAP_VARIABLE), BOOTSTRAP_DEFAULT)
    servers = next(choice for choice in choices if choice is not None)
    seconds = timeout_s if timeout_s is not None else defaults.timeout_s
    parse_servers(servers)
    return Session(servers, as_json or defaults.as_json, TIMEOUT_S_DEFAULT if seconds is None else seconds)


def parse_servers(text: str) -> list[tuple[str, int]]:
    """`host:port,host:port`, IPv6 hosts in brackets. Raises UsageProblem."""
    servers = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        host, colon, port = part.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            raise UsageProblem(f"bootstrap server {part!r} is not host:port")
        servers.append((host.strip("[]"), int(port)))
    if not servers:
        raise UsageProblem("no bootstrap server is given")
    return servers


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, socket.gaierror):
        return "unknown host"
    return (error.strerror or str(error)).lower()


def _silent_logger() -> logging.Logger:
    logger = logging.getLogger("raftlog_cli.librdkafka")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger


def _ignore(_error: KafkaError) -> None:
    return None
