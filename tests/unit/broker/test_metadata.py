"""Publishing images to a broker's parts."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from raftlog.broker.metadata import MetadataFollower
from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.errors import RequestTimedOut
from raftlog.testing.virtual_time import run


def image(offset: int) -> MetadataImage:
    return dataclasses.replace(MetadataImage(), offset=offset)


def test_subscribers_hear_of_images_in_order_and_one_that_fails_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    follower = MetadataFollower(MetadataImage())
    heard: list[int] = []

    def failing(image: MetadataImage, delta: MetadataDelta) -> None:
        raise ValueError("no")

    follower.subscribe(failing)
    follower.subscribe(lambda image, delta: heard.append(image.offset))
    for offset in (3, 5, 9):
        follower.publish(image(offset), MetadataDelta())
    assert heard == [3, 5, 9]
    assert follower.image.offset == 9
    assert "failed on the metadata at offset 3" in caplog.text


def test_wait_for_a_condition_on_the_image() -> None:
    async def main() -> None:
        follower = MetadataFollower(image(1))
        assert (await follower.wait_for(lambda now: now.offset == 1, timeout_ms=1)).offset == 1
        waiting = asyncio.ensure_future(follower.wait_for(lambda now: now.offset > 4, timeout_ms=1000))
        await asyncio.sleep(0)
        follower.publish(image(4), MetadataDelta())
        await asyncio.sleep(0)
        assert not waiting.done()
        follower.publish(image(5), MetadataDelta())
        assert (await waiting).offset == 5
        with pytest.raises(RequestTimedOut):
            await follower.wait_for(lambda now: now.offset > 5, timeout_ms=1000)

    run(main())
