"""Tab completion from the cluster: names of topics, groups and brokers. Whatever goes wrong, there is just nothing to offer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from .brokers import Brokers

TIMEOUT_S: Final = 1.0  # A person who pressed Tab is waiting.
OFFERED_MAX: Final = 1000
GROUP: Final = "group"


def offered(context: typer.Context, incomplete: str, names: Callable[[Brokers], Iterable[str]]) -> list[str]:
    """The names that begin like `incomplete`, asked of the cluster that the command line means, within TIMEOUT_S.

    A shell takes what is printed for an offer, and a traceback spoils its line: so every failure is an empty offer.
    """
    found: list[str] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            from .brokers import Brokers

            with Brokers(_session(context)) as brokers:
                found.extend(sorted(name for name in names(brokers) if name.startswith(incomplete))[:OFFERED_MAX])

    asking = threading.Thread(target=ask, daemon=True)  # A thread, because no time-out of sockets bounds the whole.
    asking.start()
    asking.join(TIMEOUT_S)
    return list(found)


def _session(context: Any) -> Any:
    """By the options in the command line so far, those of the command before those before it, else as any command does."""
    from .session import make_session

    servers = None
    while context is not None and servers is None:
        servers = context.params.get("bootstrap_server")
        context = context.parent
    return make_session(None, servers, as_json=False, timeout_s=TIMEOUT_S)


def complete_topic(context: typer.Context, incomplete: str) -> list[str]:
    return offered(context, incomplete, _topics)


def complete_group(context: typer.Context, incomplete: str) -> list[str]:
    from .group_queries import list_groups

    return offered(context, incomplete, lambda brokers: (group.group_id for group in list_groups(brokers)))


def complete_broker(context: typer.Context, incomplete: str) -> list[str]:
    return offered(context, incomplete, lambda brokers: map(str, brokers.node_ids()))


def complete_resource_kind(incomplete: str) -> list[str]:
    from .config_queries import RESOURCE_TYPES

    return [kind for kind in RESOURCE_TYPES if kind.startswith(incomplete)]


def complete_resource_name(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the kind that stands before."""
    from .config_queries import ALL_BROKERS, BROKER, RESOURCE_TYPES, TOPIC, list_resources

    kind = next((kind for kind in RESOURCE_TYPES if context.params.get("kind") in (kind, f"{kind}s")), None)
    if kind == TOPIC:
        return complete_topic(context, incomplete)
    if kind == GROUP:
        return complete_group(context, incomplete)
    if kind == BROKER:
        return [*complete_broker(context, incomplete), *(name for name in (ALL_BROKERS,) if name.startswith(incomplete))]
    return offered(context, incomplete, lambda brokers: (resource.name for resource in list_resources(brokers, kind)))


def _topics(brokers: Brokers) -> Iterable[str]:
    return (topic.name for topic in brokers.metadata().topics)
