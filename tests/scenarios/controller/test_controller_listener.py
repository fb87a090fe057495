"""The controller listener's APIs as they come over the wire: encoded, decoded, and in envelopes."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from controller_world import CLUSTER_ID, World

from raftlog.errors import ErrorCode
from raftlog.network.connection import RequestContext
from raftlog.protocol.messages import (
    API_VERSIONS_CONTROLLER,
    ApiKey,
    Fields,
    decode_response,
    encode_request,
    parse_request_header,
)
from raftlog.server.handlers.controller import ControllerHandlers
from raftlog.server.router import Router
from raftlog.testing.virtual_time import run


class Client:
    """Speaks to one controller's router in whole frames."""

    def __init__(self, world: World, node_id: int) -> None:
        handlers = ControllerHandlers(world.controllers[node_id], settings=world.settings, cluster_id=CLUSTER_ID)
        self.router = Router(handlers.handlers(), handlers.raw_handlers(), API_VERSIONS_CONTROLLER)
        handlers.route(self.router)
        self.connection: Any = _Connection()

    async def ask(self, api_key: int, version: int, **fields: Any) -> Fields:
        frame = encode_request(api_key, version, 7, "c", fields)
        header = parse_request_header(frame)
        context = RequestContext(self.connection, api_key, version, header.correlation_id, header.client_id, "CONTROLLER")
        response = self.router.dispatch(context, memoryview(frame)[header.body_offset :])
        if inspect.isawaitable(response):
            response = await response
        assert response is not None
        correlation_id, answer = decode_response(api_key, version, b"".join(response))
        assert correlation_id == 7
        return answer

    async def ask_enveloped(self, api_key: int, version: int, *, address: bytes = b"\x7f\0\0\1", **fields: Any) -> tuple[int, Fields | None]:
        inner = encode_request(api_key, version, 9, "inner", fields)
        answer = await self.ask(ApiKey.ENVELOPE, 0, request_data=inner, request_principal=b"\0\0junk", client_host_address=address)
        if answer.response_data is None:
            return answer.error_code, None
        correlation_id, reply = decode_response(api_key, version, answer.response_data)
        assert correlation_id == 9
        return answer.error_code, reply


class _Connection:
    peer = "127.0.0.1:1"

    def __init__(self) -> None:
        self.callbacks: list[Any] = []

    def on_close(self, callback: Any) -> None:
        self.callbacks.append(callback)


def topic(name: str) -> dict[str, Any]:
    return {"name": name, "num_partitions": 2, "replication_factor": 1, "assignments": [], "configs": []}


async def three_brokers() -> World:
    world = World()
    world.log.elect(world.controllers[1])
    await world.up(1, 2, 3)
    return world


def test_clients_requests_come_in_envelopes() -> None:
    async def main() -> None:
        world = await three_brokers()
        client = Client(world, 1)
        for version in (2, 7):
            code, reply = await client.ask_enveloped(ApiKey.CREATE_TOPICS, version, topics=[topic(f"t{version}")], timeout=1000)
            assert code == ErrorCode.none and reply is not None
            assert reply.topics[0].error_code == ErrorCode.none
        assert len(world.image.topics["t7"].partitions) == 2
        code, reply = await client.ask_enveloped(ApiKey.DELETE_TOPICS, 6, topics=[{"name": "t7", "topic_id": None}], timeout=1000)
        assert reply is not None and reply.responses[0].error_code == ErrorCode.none
        code, reply = await client.ask_enveloped(
            ApiKey.CREATE_PARTITIONS, 3, topics=[{"name": "t2", "count": 4, "assignments": None}], timeout=1000, validate_only=False
        )
        assert reply is not None and reply.results[0].error_code == ErrorCode.none
        assert len(world.image.topics["t2"].partitions) == 4
        # What no broker forwards, what has no address, what can't be read.
        assert (await client.ask_enveloped(ApiKey.BROKER_HEARTBEAT, 1, broker_id=1))[0] == ErrorCode.invalid_request
        code, _ = await client.ask_enveloped(ApiKey.CREATE_TOPICS, 7, address=b"", topics=[topic("u")])
        assert code == ErrorCode.invalid_request
        for junk in (b"", b"\0\x13\0\7\0\0\0\1\xff\xff\0junk"):
            answer = await client.ask(ApiKey.ENVELOPE, 0, request_data=junk, request_principal=None, client_host_address=b"\x7f\0\0\1")
            assert answer.error_code == ErrorCode.unsupported_version

    run(main())


def test_only_the_active_controller_answers() -> None:
    async def main() -> None:
        world = await three_brokers()
        client = Client(world, 2)
        assert (await client.ask_enveloped(ApiKey.CREATE_TOPICS, 7, topics=[topic("t")]))[0] == ErrorCode.not_controller
        assert (await client.ask(ApiKey.ALLOCATE_PRODUCER_IDS, 0, broker_id=1, broker_epoch=4)).error_code == ErrorCode.not_controller
        assert (await client.ask(ApiKey.BROKER_HEARTBEAT, 1, broker_id=1, broker_epoch=4)).error_code == ErrorCode.not_controller
        # A request under way when leadership is lost is answered too.
        world.log.hold = True
        active = Client(world, 1)
        asked = asyncio.get_running_loop().create_task(active.ask_enveloped(ApiKey.CREATE_TOPICS, 7, topics=[topic("t")]))
        await asyncio.sleep(0.01)
        world.log.elect(world.controllers[2])
        assert (await asked)[0] == ErrorCode.not_controller

    run(main())


def test_brokers_requests() -> None:
    async def main() -> None:
        world = await three_brokers()
        client = Client(world, 1)
        broker = world.process(4)
        answer = await client.ask(
            ApiKey.BROKER_REGISTRATION,
            4,
            broker_id=4,
            cluster_id=CLUSTER_ID,
            incarnation_id=broker.incarnation,
            listeners=[{"name": "PLAINTEXT", "host": "h", "port": 1, "security_protocol": 0}],
            features=[
                {"name": "metadata.version", "min_supported_version": 1, "max_supported_version": 25},
                {"name": "group.version", "min_supported_version": 0, "max_supported_version": 1},
            ],
            rack=None,
            log_dirs=[broker.directory],
        )
        assert answer.error_code == ErrorCode.none
        epoch = answer.broker_epoch
        heartbeat = {"broker_id": 4, "broker_epoch": epoch, "want_fence": False, "want_shut_down": False}
        answer = await client.ask(ApiKey.BROKER_HEARTBEAT, 1, current_metadata_offset=epoch - 1, **heartbeat)
        assert answer.is_fenced and not answer.is_caught_up
        answer = await client.ask(ApiKey.BROKER_HEARTBEAT, 1, current_metadata_offset=epoch, **heartbeat)
        assert not answer.is_fenced and answer.is_caught_up
        assert (await client.ask(ApiKey.BROKER_HEARTBEAT, 1, current_metadata_offset=0, **{**heartbeat, "broker_epoch": 1})).error_code == (
            ErrorCode.stale_broker_epoch
        )
        answer = await client.ask(ApiKey.ALLOCATE_PRODUCER_IDS, 0, broker_id=4, broker_epoch=epoch)
        assert (answer.producer_id_start, answer.producer_id_len) == (0, 1000)
        # Its connection is what tells of its death.
        for callback in client.connection.callbacks:
            callback()
        await asyncio.sleep(0.25)
        assert world.image.brokers[4].fenced

    run(main())


def test_describe_cluster_lists_the_controllers() -> None:
    async def main() -> None:
        world = await three_brokers()
        for node_id in (1, 2):
            answer = await Client(world, node_id).ask(ApiKey.DESCRIBE_CLUSTER, 1, endpoint_type=2)
            assert [broker.broker_id for broker in answer.brokers] == [1, 2, 3] and answer.controller_id == 1
            assert answer.cluster_id == CLUSTER_ID
        assert (await Client(world, 1).ask(ApiKey.DESCRIBE_CLUSTER, 0)).error_code == ErrorCode.mismatched_endpoint_type

    run(main())
