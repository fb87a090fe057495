"""The client's end against a real server connection and router, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from raftlog import config
from raftlog.errors import UnsupportedVersion
from raftlog.network.listener import Listener, OsNetwork
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.messages import API_VERSIONS_CONTROLLER, ApiKey, Fields, encode_response_header
from raftlog.server.router import Router

uvloop = pytest.importorskip("uvloop")
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
TIMEOUT_MS = 5000


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run_in(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(main, 20))

    return run_in


def settings() -> config.Settings:
    text = "node.id=1\ncontroller.quorum.voters=1@127.0.0.1:1\nlisteners=PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:0\n"
    return dataclasses.replace(config.load(text), socket_request_max_bytes=1_000_000)


@asynccontextmanager
async def serving(router: Router) -> AsyncIterator[Listener]:
    listener = Listener(OsNetwork(), "127.0.0.1", 0, router.dispatch, listener_name="CONTROLLER", settings=settings())
    await listener.start()
    try:
        yield listener
    finally:
        await listener.close()


async def connect(port: int, timeout_ms: int = TIMEOUT_MS) -> PeerConnection:
    return await PeerConnection.open(OsNetwork(), "127.0.0.1", port, client_id="node-2", timeout_ms=timeout_ms)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(TIMEOUT_MS / 1000):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def misbehaving(answer: Callable[[asyncio.StreamWriter, bytes], None]) -> AsyncIterator[int]:
    """A server that gives each request frame to `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = struct.unpack(">i", await reader.readexactly(4))[0]
                answer(writer, await reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def heartbeat(context: Any, request: Fields) -> Mapping[str, Any]:
    return {"is_fenced": request.broker_id == 7}


def test_versions_are_negotiated_and_requests_answered(run: Any) -> None:
    async def main() -> None:
        router = Router({ApiKey.BROKER_HEARTBEAT: heartbeat}, {}, API_VERSIONS_CONTROLLER)
        async with serving(router) as listener:
            peer = await connect(listener.port)
            assert dict(peer.versions) == {ApiKey.API_VERSIONS: (0, 4), ApiKey.BROKER_HEARTBEAT: (0, 1)}
            assert peer.version_of(ApiKey.BROKER_HEARTBEAT) == 1
            answers = await asyncio.gather(
                *(peer.request(ApiKey.BROKER_HEARTBEAT, {"broker_id": number}, timeout_ms=TIMEOUT_MS) for number in range(100))
            )
            assert [answer.is_fenced for answer in answers] == [number == 7 for number in range(100)]
            with pytest.raises(UnsupportedVersion, match="no version of Envelope in common"):
                await peer.request(ApiKey.ENVELOPE, {}, timeout_ms=TIMEOUT_MS)
            assert not peer.closed
            peer.close()
            assert peer.closed
            with pytest.raises(PeerUnreachable, match="is closed"):
                await peer.request(ApiKey.BROKER_HEARTBEAT, {}, timeout_ms=TIMEOUT_MS)

    run(main())


def test_a_node_with_older_api_versions(run: Any) -> None:
    """It answers v4 with UNSUPPORTED_VERSION in version 0, and v3 as it should be."""
    asked: list[int] = []

    def answer(writer: asyncio.StreamWriter, frame: bytes) -> None:
        version, correlation_id = struct.unpack_from(">hi", frame, 2)
        asked.append(version)
        table = struct.pack(">hhh", ApiKey.API_VERSIONS, 0, 3)
        if version > 3:
            content = struct.pack(">ihi", correlation_id, 35, 1) + table
        else:
            content = struct.pack(">ih", correlation_id, 0) + b"\x02" + table + b"\0" + struct.pack(">i", 0) + b"\0"
        writer.write(struct.pack(">i", len(content)) + content)

    async def main() -> None:
        async with misbehaving(answer) as port:
            peer = await connect(port)
            assert dict(peer.versions) == {ApiKey.API_VERSIONS: (0, 3)}
            peer.close()

    run(main())
    assert asked == [4, 3]


def test_nobody_there_and_nobody_answering(run: Any) -> None:
    async def main() -> None:
        async with misbehaving(lambda writer, frame: None) as port:
            with pytest.raises(PeerUnreachable, match=f"127.0.0.1:{port} did not answer in 50 ms"):
                await connect(port, timeout_ms=50)
        with pytest.raises(PeerUnreachable, match=f"can't connect to 127.0.0.1:{port}"):
            await connect(port)

    run(main())


@pytest.mark.parametrize(
    "content",
    [
        b"",  # Too short for a correlation id.
        struct.pack(">i", 12345),  # Nobody's.
        struct.pack(">ih", 0, 0) + b"garbage",  # Ours, but not a response.
    ],
)
def test_a_response_that_makes_no_sense_closes_the_connection(run: Any, content: bytes) -> None:
    def answer(writer: asyncio.StreamWriter, frame: bytes) -> None:
        writer.write(struct.pack(">i", len(content)) + content)

    async def main() -> None:
        async with misbehaving(answer) as port:
            with pytest.raises(PeerUnreachable):
                await connect(port)

    run(main())


def test_a_lost_connection_fails_what_waits_and_is_reported_once(run: Any) -> None:
    async def main() -> None:
        events: list[str] = []

        async def never(context: Any, request: Fields) -> Mapping[str, Any]:
            events.append("asked")
            await asyncio.Event().wait()
            raise AssertionError

        router = Router({ApiKey.BROKER_HEARTBEAT: never}, {}, API_VERSIONS_CONTROLLER)
        async with serving(router) as listener:
            peer = await connect(listener.port)
            peer.on_close(lambda: events.append("closed"))
            waiting = [asyncio.ensure_future(peer.request(ApiKey.BROKER_HEARTBEAT, {}, timeout_ms=TIMEOUT_MS)) for _ in range(3)]
            await until(lambda: len(events) == 3)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, PeerUnreachable) for result in results)
        await asyncio.sleep(0)
        assert events == ["asked"] * 3 + ["closed"]
        assert peer.closed

    run(main())


def test_an_answer_that_does_not_come_in_time_closes_the_connection(run: Any) -> None:
    async def main() -> None:
        release = asyncio.Event()
        asked: list[Fields] = []

        async def slow(context: Any, request: Fields) -> Mapping[str, Any]:
            asked.append(request)
            await release.wait()
            return {}

        async with serving(Router({ApiKey.BROKER_HEARTBEAT: slow}, {}, API_VERSIONS_CONTROLLER)) as listener:
            peer = await connect(listener.port)
            other = asyncio.ensure_future(peer.request(ApiKey.BROKER_HEARTBEAT, {}, timeout_ms=TIMEOUT_MS))
            with pytest.raises(PeerUnreachable, match="BrokerHeartbeat was not answered in 30 ms"):
                await peer.request(ApiKey.BROKER_HEARTBEAT, {}, timeout_ms=30)
            with pytest.raises(PeerUnreachable):
                await other
            assert peer.closed
            release.set()

    run(main())


def test_a_caller_that_gave_up_disturbs_nobody(run: Any) -> None:
    async def main() -> None:
        release = asyncio.Event()
        asked: list[Fields] = []

        async def slow(context: Any, request: Fields) -> Mapping[str, Any]:
            asked.append(request)
            await release.wait()
            return {}

        async with serving(Router({ApiKey.BROKER_HEARTBEAT: slow}, {}, API_VERSIONS_CONTROLLER)) as listener:
            peer = await connect(listener.port)
            first = asyncio.ensure_future(peer.request(ApiKey.BROKER_HEARTBEAT, {}, timeout_ms=TIMEOUT_MS))
            second = asyncio.ensure_future(peer.request(ApiKey.BROKER_HEARTBEAT, {}, timeout_ms=TIMEOUT_MS))
            await until(lambda: len(asked) == 2)
            first.cancel()
            release.set()
            assert (await second).error_code == 0
            assert not peer.closed
            peer.close()

    run(main())


def test_upgrade_on_both_sides_keeps_frames_that_come_early(run: Any) -> None:
    async def main() -> None:
        server_events: list[bytes] = []
        client_events: list[bytes | str] = []

        def raft(context: Any, body: memoryview) -> Any:
            assert bytes(body) == b"hello"
            send = context.connection.upgrade(server_events.append, lambda: server_events.append(b"closed"))
            asyncio.get_running_loop().call_soon(send, [b"early ", b"frame"])
            return [encode_response_header(context.api_key, 0, context.correlation_id), b"welcome"]

        async with serving(Router({}, {ApiKey.RAFTLOG_RAFT: raft}, API_VERSIONS_CONTROLLER)) as listener:
            peer = await connect(listener.port)
            assert ApiKey.RAFTLOG_RAFT not in peer.versions
            assert bytes(await peer.request_raw(ApiKey.RAFTLOG_RAFT, 0, [b"hel", b"lo"], timeout_ms=TIMEOUT_MS)) == b"welcome"
            await until(lambda: peer._protocol._frames.pending_bytes > 0)  # The early frame is there before anybody wants it.
            send = peer.upgrade(client_events.append, lambda: client_events.append("closed"))
            send([b"to the ", b"server"])
            await until(lambda: bool(client_events and server_events))
            assert (client_events, server_events) == ([b"early frame"], [b"to the server"])
            peer.close()
            await until(lambda: len(server_events) == len(client_events) == 2)
            assert (client_events[1], server_events[1]) == ("closed", b"closed")

    run(main())
