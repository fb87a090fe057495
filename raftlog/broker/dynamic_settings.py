"""A node's settings in force: those it was started with, under what the metadata log says of this node and of all (KIP-226).

Each part that uses settings which may change has a method `reconfigure(settings)`, which takes all settings anew and makes
the changed ones true at once. It is subscribed here, and called on the event loop whenever any of them has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from raftlog.config import KEYS, Settings
from raftlog.config_types import text_of
from raftlog.core.metadata.configs import BrokerConfigs
from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.core.metadata.records import RESOURCE_BROKER

Reconfigure: TypeAlias = Callable[[Settings], None]

logger = logging.getLogger(__name__)


class DynamicSettings:
    """Follows the metadata by `apply_metadata`; `current` is what is in force by the image applied last."""

    def __init__(self, settings: Settings) -> None:
        self.static = settings
        self.current = settings
        self._resources = {(RESOURCE_BROKER, ""), (RESOURCE_BROKER, str(settings.node_id))}
        self._parts: list[Reconfigure] = []

    def subscribe(self, reconfigure: Reconfigure) -> None:
        """Hear of every change after this call; of what already differs from the static settings at once."""
        self._parts.append(reconfigure)
        if self.current != self.static:
            reconfigure(self.current)

    def configs(self, image: MetadataImage) -> BrokerConfigs:
        """What is configured of this node by `image`."""
        return BrokerConfigs.of(self.static, image, self.static.node_id)

    def apply_metadata(self, image: MetadataImage, delta: MetadataDelta) -> None:
        if self._resources.isdisjoint(delta.changed_configs):
            return
        before, self.current = self.current, self.configs(image).in_force()
        if self.current == before:
            return
        for name, key in KEYS.items():
            old, new = getattr(before, key.field), getattr(self.current, key.field)
            if old != new:
                logger.info("%s is now %s, before %s", name, *(("[hidden]",) * 2 if key.is_sensitive else (text_of(new), text_of(old))))
        for reconfigure in self._parts:
            try:
                reconfigure(self.current)
            except Exception as error:  # What a part can't take costs no other anything.
                logger.error("a part of this node does not follow the settings: %s: %s", type(error).__name__, error)
                logger.debug("the traceback of it", exc_info=error)
