"""A node as a process: event loop, signals, limits, logging, and an exit status that scripts can use."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from raftlog.config import Settings
    from raftlog.server.node import Node

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1  # The node could not start, or could not go on.
EXIT_USAGE: Final = 2  # The configuration is wrong.

# Young collections are cheap only where they find garbage; a broker's short-lived objects go by reference counts.
GC_THRESHOLDS: Final = (50_000, 20, 100)

# When `raftlog up` is killed, the kernel tells its nodes once for each of its threads: no second wish of anybody.
SIGNAL_ECHO_S: Final = 0.5

# Nobody waits any more for what still runs in threads when a node has stopped, such as the look-up of a name: it is left alone then.
ENDING_TIMEOUT_S: Final = 3.0

logger = logging.getLogger("raftlog")


def main(config: Path | str, *, overrides: Mapping[str, str] | None = None, cluster_id: str | None = None) -> int:
    """Run the node of a .properties file, overridden by RAFTLOG_… variables and `overrides`; the exit status.

    Everything that keeps it from running is one line on stderr.
    """
    try:
        text = Path(config).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return _complain(f"{config}: {getattr(error, 'strerror', None) or error}", EXIT_USAGE)
    _import_kio()
    from raftlog.config import load
    from raftlog.errors import ConfigError

    try:
        settings = load(text, environ=os.environ, overrides=overrides)
    except ConfigError as error:
        return _complain(f"{config}: {error}", EXIT_USAGE)
    return run(settings, cluster_id)


def run(settings: Settings, cluster_id: str | None = None) -> int:
    """Run one node until SIGTERM or SIGINT, which stop it cleanly (a second one at once); the exit status."""
    from raftlog.errors import RaftlogError

    set_up_logging(settings.node_id)
    _raise_file_limit()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(settings, cluster_id))
    except RaftlogError as error:
        return _complain(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_OK
    except Exception as error:
        logger.debug("the traceback of it", exc_info=error)
        return _complain(f"{type(error).__name__}: {error}", EXIT_FAILED)


async def _serve(settings: Settings, cluster_id: str | None) -> int:
    # Imported here, after the configuration was found good: the node's modules take most of the start.
    from raftlog.environment import Environment, SystemClock
    from raftlog.network.listener import OsNetwork
    from raftlog.server.node import Node
    from raftlog.storage.files import OsFiles

    loop = asyncio.get_running_loop()
    asked_to_stop: asyncio.Future[signal.Signals] = loop.create_future()
    asked_s: list[float] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, asked_to_stop, number, asked_s)
    environment = Environment(clock=SystemClock(), random=random.Random(), files=OsFiles(), network=OsNetwork())
    node = Node(settings, environment, cluster_id=cluster_id)
    if not await _start(node, asked_to_stop):
        return EXIT_OK
    ready = asyncio.ensure_future(node.wait_until_ready())
    ready.add_done_callback(_settle_memory)
    ends: set[asyncio.Future[Any]] = {asked_to_stop, node.failed}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if asked_to_stop.done():
        logger.info("stopping on %s", asked_to_stop.result().name)
    await node.stop()
    if node.failed.done():
        return _end_soon(_complain(node.failed.result(), EXIT_FAILED))
    logger.info("stopped")
    return _end_soon(EXIT_OK)


async def _start(node: Node, asked_to_stop: asyncio.Future[signal.Signals]) -> bool:
    """Start it; False when it was told to stop before that was done, and nothing of it runs. Raises RaftlogError."""
    starting = asyncio.ensure_future(node.start())
    first: set[asyncio.Future[Any]] = {starting, asked_to_stop}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        return True
    logger.info("stopping on %s, before it was started", asked_to_stop.result().name)
    starting.cancel()
    await asyncio.wait([starting])
    if not starting.cancelled():
        starting.result()
        await node.stop()
    _end_soon(EXIT_OK)
    return False


def _end_soon(status: int) -> int:
    """The node has stopped: see to it that the process ends, whatever its threads wait for."""
    ending = threading.Timer(ENDING_TIMEOUT_S, os._exit, (status,))
    ending.daemon = True
    ending.start()
    return status


def _on_signal(asked_to_stop: asyncio.Future[signal.Signals], number: signal.Signals, asked_s: list[float]) -> None:
    now_s = time.monotonic()
    if asked_to_stop.done():
        if now_s - asked_s[0] < SIGNAL_ECHO_S:
            return
        logger.warning("stopping at once on a second %s", number.name)
        os._exit(128 + number)
    asked_s.append(now_s)
    asked_to_stop.set_result(number)


def _settle_memory(ready: asyncio.Future[None]) -> None:
    """What is there after the start stays: the collector need not look at it again."""
    if not ready.cancelled() and ready.exception() is None:
        gc.collect()
        gc.freeze()


def _import_kio() -> None:
    """Import kio without hypothesis, which it imports wherever that is installed, for tests: 0.15 s of a node's start."""
    if "hypothesis" in sys.modules or "kio" in sys.modules:
        return
    sys.modules["hypothesis"] = None  # type: ignore[assignment]  # An import of it fails, and kio goes on without.
    try:
        import kio.schema.errors  # noqa: F401
    finally:
        del sys.modules["hypothesis"]


def _raise_file_limit() -> None:
    """Each partition and connection has descriptors; the default soft limit of 1024 is far below what is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def set_up_logging(node_id: int) -> None:
    """One line per event on stderr; RAFTLOG's level by the variable LOG_LEVEL."""
    level = os.environ.get("LOG_LEVEL", "INFO").upper()
    pattern = f"%(asctime)s.%(msecs)03d %(levelname)-7s [{node_id}] %(name)s: %(message)s"
    logging.basicConfig(level=level, format=pattern, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)


def _complain(problem: str, status: int) -> int:
    print(f"raftlog: {problem}", file=sys.stderr)
    return status
