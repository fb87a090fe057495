"""Registration, fencing and controlled shutdown against a scripted controller, under virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from raftlog.broker.lifecycle import BROKER_HEARTBEAT, BROKER_REGISTRATION, BrokerLifecycle, RegistrationRefused, State
from raftlog.broker.metadata import MetadataFollower
from raftlog.config import Endpoint, load
from raftlog.core.metadata.image import MetadataImage
from raftlog.environment import Environment
from raftlog.errors import ErrorCode, RequestTimedOut
from raftlog.protocol.messages import Fields
from raftlog.testing.virtual_time import VirtualClock, run

SETTINGS = load(
    overrides={
        "node.id": "4",
        "process.roles": "broker",
        "controller.quorum.voters": "1@c:7001",
        "initial.broker.registration.timeout.ms": "5000",
    }
)


class Controller:
    """What the lifecycle asks, with what it is answered, and when (seconds)."""

    def __init__(self) -> None:
        self.requests: list[tuple[float, int, Mapping[str, Any]]] = []
        self.codes: list[ErrorCode] = []  # Errors of the next answers; none when used up.
        self.epoch = 10
        self.fenced = True
        self.may_leave = False
        self.closed = False
        self.lose: Callable[[], None] = lambda: None

    def on_lost(self, callback: Callable[[], None]) -> None:
        self.lose = callback

    async def request(self, api_key: int, fields: Mapping[str, Any], *, timeout_ms: int, version: int | None = None) -> Fields:
        self.requests.append((asyncio.get_running_loop().time(), api_key, fields))
        code = self.codes.pop(0) if self.codes else ErrorCode.none
        if api_key == BROKER_REGISTRATION:
            self.epoch += 1
            return Fields(error_code=code, broker_epoch=self.epoch)
        self.fenced = self.fenced and fields["want_fence"]
        return Fields(error_code=code, is_fenced=self.fenced, should_shut_down=fields["want_shut_down"] and self.may_leave)

    def controller_is(self, node_id: int) -> None:
        return

    async def close(self) -> None:
        self.closed = True

    def keys(self) -> list[int]:
        return [key for _, key, _ in self.requests]


def lifecycle(controller: Controller) -> BrokerLifecycle:
    clock = VirtualClock(asyncio.get_running_loop())
    return BrokerLifecycle(
        SETTINGS,
        Environment(clock=clock, random=random.Random(7), files=None, network=None),  # type: ignore[arg-type]
        channel=controller,  # type: ignore[arg-type]
        metadata=MetadataFollower(dataclasses.replace(MetadataImage(), offset=21)),
        cluster_id="abc",
        directory_id=uuid.UUID(int=777),
        endpoints=[Endpoint("PLAINTEXT", "here", 9092)],
        features={"metadata.version": (19, 25)},
    )


def test_registers_then_is_unfenced_once_it_is_ready() -> None:
    async def main() -> None:
        controller = Controller()
        broker = lifecycle(controller)
        broker.start()
        assert await broker.wait_until_registered() == 11
        fields = controller.requests[0][2]
        assert fields["listeners"] == [{"name": "PLAINTEXT", "host": "here", "port": 9092, "security_protocol": 0}]
        assert fields["log_dirs"] == [uuid.UUID(int=777)]
        assert fields["incarnation_id"] == broker.incarnation_id
        await asyncio.sleep(1)
        _, key, heartbeat = controller.requests[1]
        assert key == BROKER_HEARTBEAT
        assert heartbeat["want_fence"] is True
        assert heartbeat["current_metadata_offset"] == 20  # The last offset that is in the image, not the one after it.
        assert broker.state is State.FENCED
        broker.ready_to_serve()
        await broker.wait_until_unfenced()
        assert asyncio.get_running_loop().time() < 1.1  # Not only with the next heartbeat that was due.
        assert broker.state is State.RUNNING
        before = len(controller.requests)
        await asyncio.sleep(10.5)
        assert len(controller.requests) - before == 5  # broker.heartbeat.interval.ms is 2000.
        await broker.close()
        assert controller.closed

    run(main())


def test_a_broker_without_an_answer_for_two_heartbeats_holds_itself_for_cut_off() -> None:
    async def main() -> None:
        controller = Controller()
        broker = lifecycle(controller)
        broker.start()
        await broker.wait_until_registered()
        broker.ready_to_serve()
        await broker.wait_until_unfenced()
        await asyncio.sleep(9)
        assert not broker.is_cut_off()
        controller.codes = [ErrorCode.not_controller] * 1000
        await asyncio.sleep(2.5)
        assert not broker.is_cut_off()
        await asyncio.sleep(2.5)
        assert broker.is_cut_off() and broker.state is State.RUNNING
        controller.codes.clear()
        await asyncio.sleep(2)
        assert not broker.is_cut_off()
        await broker.close()

    run(main())


def test_a_lost_connection_is_answered_with_a_heartbeat_at_once() -> None:
    async def main() -> None:
        controller = Controller()
        broker = lifecycle(controller)
        broker.start()
        broker.ready_to_serve()
        await broker.wait_until_unfenced()
        await asyncio.sleep(0.5)  # Well before the next heartbeat is due.
        before = len(controller.requests)
        controller.lose()
        await asyncio.sleep(0.01)
        assert controller.keys()[before:] == [BROKER_HEARTBEAT]
        await broker.close()

    run(main())


def test_tries_again_while_its_former_self_is_still_registered() -> None:
    async def main() -> None:
        controller = Controller()
        controller.codes = [ErrorCode.duplicate_broker_registration] * 3
        broker = lifecycle(controller)
        broker.start()
        await broker.wait_until_registered()
        assert controller.keys()[:4] == [BROKER_REGISTRATION] * 4
        await broker.close()

    run(main())


def test_another_clusters_controller_ends_it_at_once() -> None:
    async def main() -> None:
        controller = Controller()
        controller.codes = [ErrorCode.inconsistent_cluster_id]
        broker = lifecycle(controller)
        broker.start()
        with pytest.raises(RegistrationRefused, match="broker 4 of cluster abc: inconsistent_cluster_id"):
            await broker.wait_until_registered()
        await broker.close()

    run(main())


def test_registration_has_a_time_limit() -> None:
    async def main() -> None:
        controller = Controller()
        controller.codes = [ErrorCode.invalid_registration] * 1000
        broker = lifecycle(controller)
        broker.start()
        with pytest.raises(RequestTimedOut, match="within 5000 ms"):
            await broker.wait_until_registered()
        await broker.close()

    run(main())


def test_registers_again_when_the_controller_lost_it() -> None:
    async def main() -> None:
        controller = Controller()
        broker = lifecycle(controller)
        broker.start()
        await broker.wait_until_registered()
        broker.ready_to_serve()
        await broker.wait_until_unfenced()
        controller.codes = [ErrorCode.stale_broker_epoch]
        controller.fenced = True
        await asyncio.sleep(2.5)
        assert controller.keys()[-3:-1] == [BROKER_HEARTBEAT, BROKER_REGISTRATION] or controller.keys().count(BROKER_REGISTRATION) == 2
        assert broker.broker_epoch == 12
        assert broker.state is State.RUNNING
        await broker.close()

    run(main())


def test_a_new_controller_gets_a_heartbeat_at_once() -> None:
    async def main() -> None:
        controller = Controller()
        broker = lifecycle(controller)
        broker.start()
        await broker.wait_until_registered()
        broker.ready_to_serve()
        await broker.wait_until_unfenced()
        await asyncio.sleep(0.5)
        before = len(controller.requests)
        broker.controller_is(2)
        await asyncio.sleep(0.01)
        assert len(controller.requests) == before + 1
        await broker.close()

    run(main())


def test_leaves_when_the_controller_lets_it_go() -> None:
    async def main() -> None:
        controller = Controller()
        broker = lifecycle(controller)
        broker.start()
        await broker.wait_until_registered()
        broker.ready_to_serve()
        await broker.wait_until_unfenced()
        leaving = asyncio.ensure_future(broker.leave(timeout_ms=5000))
        await asyncio.sleep(0.2)
        assert not leaving.done()
        assert controller.requests[-1][2]["want_shut_down"] is True
        controller.may_leave = True
        assert await leaving is True
        await broker.close()

    run(main())


def test_leaving_is_bounded() -> None:
    async def main() -> None:
        controller = Controller()
        broker = lifecycle(controller)
        broker.start()
        await broker.wait_until_registered()
        assert await broker.leave(timeout_ms=300) is False
        await broker.close()
        assert broker.state is State.STOPPED

    run(main())
