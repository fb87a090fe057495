"""How a broker finds the active controller, on a simulated network under virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import pytest

from raftlog.broker.channel import ANONYMOUS, ControllerChannel, host_address
from raftlog.config import load
from raftlog.environment import Environment
from raftlog.errors import ErrorCode, RequestTimedOut
from raftlog.network.listener import Listener
from raftlog.protocol.messages import API_VERSIONS_CONTROLLER, ApiKey, decode_response, encode_response, parse_request_header
from raftlog.server.router import Router
from raftlog.testing.simulated_network import SimulatedNetwork
from raftlog.testing.virtual_time import VirtualClock, run

SETTINGS = load(
    overrides={
        "node.id": "4",
        "process.roles": "broker",
        "controller.quorum.voters": "1@c1:7001,2@c2:7002,3@c3:7003",
    }
)


class Controllers:
    """Three controllers, of which `active` answers heartbeats and the others refuse them."""

    def __init__(self) -> None:
        self.network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(1))
        self.active = 3
        self.asked: list[int] = []
        self.listeners: dict[int, Listener] = {}
        self.hanging: set[int] = set()
        self.envelopes: list[Any] = []

    async def start(self) -> None:
        for node_id in (1, 2, 3):
            await self.listen(node_id)

    async def listen(self, node_id: int) -> None:
        router = Router(
            {
                ApiKey.BROKER_HEARTBEAT: lambda context, request: self.answer(node_id, {"is_fenced": False}),
                ApiKey.ENVELOPE: lambda context, request: self.envelope(node_id, request),
            },
            {},
            API_VERSIONS_CONTROLLER,
        )
        listener = Listener(self.network.view(node_id), "", 7000 + node_id, router.dispatch, listener_name="CONTROLLER", settings=SETTINGS)
        self.listeners[node_id] = listener
        await listener.start()

    async def answer(self, node_id: int, reply: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(node_id)
        if node_id in self.hanging:
            await asyncio.sleep(3600)
        return reply if node_id == self.active else {"error_code": ErrorCode.not_controller}

    async def envelope(self, node_id: int, request: Any) -> Mapping[str, Any]:
        self.envelopes.append(request)
        header = parse_request_header(request.request_data)
        response = encode_response(header.api_key, header.api_version, header.correlation_id, {"topics": []})
        return await self.answer(node_id, {"response_data": response})

    def channel(self) -> ControllerChannel:
        loop = asyncio.get_running_loop()
        environment = Environment(clock=VirtualClock(loop), random=random.Random(2), files=None, network=self.network.view(4))  # type: ignore[arg-type]
        return ControllerChannel(SETTINGS, environment, client_id="broker-4")


HEARTBEAT = {"broker_id": 4, "broker_epoch": 1, "current_metadata_offset": 1, "want_fence": False, "want_shut_down": False}


async def heartbeat(channel: ControllerChannel, timeout_ms: int = 5000) -> Any:
    return await channel.request(ApiKey.BROKER_HEARTBEAT, HEARTBEAT, timeout_ms=timeout_ms)


class Connection:
    peer = "10.1.2.3:5555"


class Context:
    """A client's request."""

    api_key, api_version, correlation_id, client_id, connection = ApiKey.CREATE_TOPICS, 7, 77, "me", Connection()


def test_asks_the_voters_in_turn_while_nobody_knows_who_leads() -> None:
    async def main() -> None:
        controllers = Controllers()
        await controllers.start()
        channel = controllers.channel()
        assert (await heartbeat(channel)).is_fenced is False
        assert controllers.asked == [1, 2, 3]
        await heartbeat(channel)
        assert controllers.asked == [1, 2, 3, 3]  # It stays with the one that answered.
        await channel.close()

    run(main())


def test_goes_straight_to_the_controller_it_was_told_of() -> None:
    async def main() -> None:
        controllers = Controllers()
        await controllers.start()
        channel = controllers.channel()
        channel.controller_is(3)
        await heartbeat(channel)
        assert controllers.asked == [3]
        await channel.close()

    run(main())


def test_a_request_under_way_moves_to_the_new_controller() -> None:
    async def main() -> None:
        controllers = Controllers()
        await controllers.start()
        controllers.active, controllers.hanging = 1, {1}
        channel = controllers.channel()
        channel.controller_is(1)
        request = asyncio.ensure_future(heartbeat(channel, timeout_ms=60_000))
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        controllers.active = 2
        channel.controller_is(2)
        assert (await request).error_code == ErrorCode.none
        assert controllers.asked == [1, 2]
        assert asyncio.get_running_loop().time() - began < 0.1
        await channel.close()

    run(main())


def test_tries_again_when_the_controller_is_gone_and_comes_back() -> None:
    async def main() -> None:
        controllers = Controllers()
        await controllers.listen(3)
        channel = controllers.channel()
        channel.controller_is(3)
        await heartbeat(channel)
        await controllers.listeners[3].close()
        request = asyncio.ensure_future(heartbeat(channel))
        await asyncio.sleep(0.5)
        assert not request.done()
        await controllers.listen(3)
        assert (await request).error_code == ErrorCode.none
        await channel.close()

    run(main())


def test_a_connection_that_breaks_is_reported_one_that_is_left_is_not() -> None:
    async def main() -> None:
        controllers = Controllers()
        await controllers.start()
        channel = controllers.channel()
        lost: list[float] = []
        channel.on_lost(lambda: lost.append(asyncio.get_running_loop().time()))
        await heartbeat(channel)
        controllers.network.break_connections(3, 4)
        await asyncio.sleep(0.1)
        assert len(lost) == 1
        await heartbeat(channel)
        channel.controller_is(1)
        await channel.close()
        await asyncio.sleep(0.1)
        assert len(lost) == 1

    run(main())


def test_gives_up_with_a_reason_when_its_time_is_over() -> None:
    async def main() -> None:
        controllers = Controllers()
        await controllers.start()
        controllers.active = 0
        channel = controllers.channel()
        began = asyncio.get_running_loop().time()
        with pytest.raises(RequestTimedOut, match=r"within 2000 ms: node \d is not the active controller"):
            await heartbeat(channel, timeout_ms=2000)
        assert 1.9 < asyncio.get_running_loop().time() - began < 2.2
        await channel.close()

    run(main())


def test_forwards_a_clients_request_and_gives_back_its_response_frame() -> None:
    async def main() -> None:
        controllers = Controllers()
        await controllers.start()
        channel = controllers.channel()
        channel.controller_is(3)
        frame, is_repeat = await channel.forward(Context(), b"body", timeout_ms=5000)
        assert not is_repeat
        correlation_id, answer = decode_response(ApiKey.CREATE_TOPICS, 7, frame)
        assert (correlation_id, answer.topics) == (77, ())
        envelope = controllers.envelopes[-1]
        header = parse_request_header(envelope.request_data)
        assert header[:4] == (ApiKey.CREATE_TOPICS, 7, 77, "me")
        assert envelope.request_data[header.body_offset :] == b"body"
        assert envelope.request_principal == ANONYMOUS == b"\0\0\x05User\x0aANONYMOUS\0\0"
        assert envelope.client_host_address == bytes([10, 1, 2, 3])
        await channel.close()

    run(main())


def test_a_request_that_was_sent_before_says_so() -> None:
    async def main() -> None:
        controllers = Controllers()
        await controllers.start()
        controllers.hanging = {3}
        channel = controllers.channel()
        channel.controller_is(3)
        forwarding = asyncio.ensure_future(channel.forward(Context(), b"body", timeout_ms=5000))
        await asyncio.sleep(1)  # Of virtual time: it has been sent, and nobody answers.
        controllers.active = 2
        channel.controller_is(2)
        assert (await forwarding).is_repeat
        assert controllers.asked == [3, 2]
        await channel.close()

    run(main())


def test_host_addresses() -> None:
    assert host_address("[::1]:9092") == bytes(15) + b"\x01"
    assert host_address("simulated") == bytes(4)
