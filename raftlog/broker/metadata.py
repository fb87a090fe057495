"""The cluster's metadata as a broker sees it: one image after the other, in commit order, published to the broker's parts.

On a combined node the local controller hands over each image as it commits. On a broker-only node `MetadataFetcher`
(`broker.metadata_fetcher`) reads the metadata log from the active controller as an observer does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.errors import RequestTimedOut

logger = logging.getLogger(__name__)

Subscriber: TypeAlias = Callable[[MetadataImage, MetadataDelta], None]


class MetadataFollower:
    """Holds the newest image and publishes it. Runs on the event loop; `publish` never waits."""

    def __init__(self, image: MetadataImage) -> None:
        self.image = image
        self._subscribers: list[Subscriber] = []
        self._waiting: list[tuple[Callable[[MetadataImage], bool], asyncio.Future[MetadataImage]]] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Hear of every image after the present one, in order. What a subscriber raises is logged and costs no other anything."""
        self._subscribers.append(subscriber)

    def publish(self, image: MetadataImage, delta: MetadataDelta) -> None:
        """Make `image` the newest one. `delta` is what changed since the one before."""
        self.image = image
        for subscriber in self._subscribers:
            try:
                subscriber(image, delta)
            except Exception:
                logger.exception("a part of this broker failed on the metadata at offset %d", image.offset)
        still_waiting = []
        for condition, future in self._waiting:
            if future.done():
                continue
            if condition(image):
                future.set_result(image)
            else:
                still_waiting.append((condition, future))
        self._waiting = still_waiting

    async def wait_for(self, condition: Callable[[MetadataImage], bool], *, timeout_ms: int) -> MetadataImage:
        """The present or first later image on which `condition` holds. Raises RequestTimedOut after `timeout_ms`."""
        if condition(self.image):
            return self.image
        future: asyncio.Future[MetadataImage] = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError:
            raise RequestTimedOut(f"the metadata did not change as awaited within {timeout_ms} ms") from None
