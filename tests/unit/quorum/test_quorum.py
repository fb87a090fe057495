"""The quorum on the event loop: voters over real sockets on loopback, with real files."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from voter_bench import Values

from raftlog.config import load
from raftlog.environment import Environment, SystemClock
from raftlog.errors import NotController, OffsetOutOfRange, RecordListTooLarge, StorageError
from raftlog.ids import NO_NODE
from raftlog.network.listener import Listener, OsNetwork
from raftlog.network.peers import PeerConnection
from raftlog.protocol.apis import API_VERSIONS_CONTROLLER
from raftlog.protocol.batches import decode_records, iterate_headers
from raftlog.quorum.quorum import RAFT_API_KEY, Quorum
from raftlog.server.router import Router
from raftlog.storage.files import OsFiles

WAIT_S_MAX = 10


class Voting:
    """One voter with its listener."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.listener: Listener
        self.port = 0
        self.quorum: Quorum
        self.values = Values()
        self.fatal: list[BaseException] = []


class Voters:
    def __init__(self, count: int, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.settings = settings
        self.nodes = {node_id: Voting(node_id) for node_id in range(1, count + 1)}
        self.network = OsNetwork()
        self.starts = 0  # The seed of each voter's chance.

    async def start(self) -> Voters:
        for node in self.nodes.values():
            await self.listen(node)
        for node in self.nodes.values():
            await self.start_quorum(node)
        return self

    async def listen(self, node: Voting) -> None:
        settings = load("controller.quorum.voters=1@h:1\nnode.id=1\nlisteners=CONTROLLER://h:1\nprocess.roles=controller")
        router = Router({}, {RAFT_API_KEY: lambda context, body: node.quorum.raft_handler(context, body)}, API_VERSIONS_CONTROLLER)
        node.listener = Listener(self.network, "127.0.0.1", node.port, router.dispatch, listener_name="CONTROLLER", settings=settings)
        await node.listener.start()
        node.port = node.listener.port

    async def start_quorum(self, node: Voting, *, cluster_id: str = "cluster", files: Any = None) -> Quorum:
        voters = ",".join(f"{other.node_id}@127.0.0.1:{other.port}" for other in self.nodes.values())
        texts = {
            "controller.quorum.voters": voters,
            "controller.quorum.election.timeout.ms": "200",
            "node.id": str(node.node_id),
            "listeners": f"CONTROLLER://127.0.0.1:{node.port}",
            "process.roles": "controller",
            "log.dirs": str(self.directory / str(node.node_id)),
            **self.settings,
        }
        self.starts += 1
        environment = Environment(SystemClock(), random.Random(self.starts), files or OsFiles(), self.network)
        node.values = Values()
        node.quorum = Quorum(
            settings=load(overrides=texts),
            environment=environment,
            cluster_id=cluster_id,
            state_machine=node.values,
            on_fatal=node.fatal.append,
        )
        await node.quorum.start()
        return node.quorum

    async def stop(self, node: Voting) -> None:
        await node.quorum.close()
        await node.listener.close()

    async def restart(self, node: Voting) -> None:
        await self.listen(node)
        await self.start_quorum(node)

    async def close(self) -> None:
        for node in self.nodes.values():
            await self.stop(node)

    async def leader(self) -> Voting:
        return await until(lambda: next((node for node in self.nodes.values() if node.quorum.leadership.active), None))

    async def commit(self, *values: bytes) -> int:
        """Propose to whoever leads until it is committed, as a client would."""
        while True:
            quorum = (await self.leader()).quorum
            try:
                return await quorum.propose(values, epoch=quorum.leadership.epoch)
            except NotController:
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], Any]) -> Any:
    deadline_s = asyncio.get_running_loop().time() + WAIT_S_MAX
    while not (found := condition()):
        assert asyncio.get_running_loop().time() < deadline_s, "waited in vain"
        await asyncio.sleep(0.002)
    return found


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


def run(count: int, directory: Path, test: Callable[[Voters], Awaitable[None]], **settings: str) -> None:
    async def main() -> None:
        voters = await Voters(count, directory, **settings).start()
        try:
            await test(voters)
        finally:
            await voters.close()

    asyncio.run(main())


def test_a_sole_voter_leads_at_once_and_finds_its_log_again(directory: Path) -> None:
    async def test(voters: Voters) -> None:
        (node,) = voters.nodes.values()
        assert node.quorum.leadership.active, "when start returns"
        assert await voters.commit(b"a", b"b") == 3
        assert await voters.commit(b"c") == 4
        await voters.stop(node)
        assert node.quorum.leadership.leader_id == NO_NODE
        await voters.restart(node)
        assert node.values.records == [b"a", b"b", b"c"]
        assert node.quorum.leadership.epoch == 2

    run(1, directory, test)


@pytest.mark.parametrize("count", [3, 5])
def test_voters_agree_and_outlive_their_leader(directory: Path, count: int) -> None:
    async def test(voters: Voters) -> None:
        for number in range(5):
            await voters.commit(b"%d" % number)
        dead = await voters.leader()
        lost: list[int] = []
        for node in voters.nodes.values():
            node.quorum.on_peer_closed(lost.append)
        await voters.stop(dead)
        end_offset = await voters.commit(b"after")
        assert dead.node_id in lost
        await voters.restart(dead)
        await until(lambda: all(node.quorum.high_watermark >= end_offset for node in voters.nodes.values()))
        assert {tuple(node.values.records) for node in voters.nodes.values()} == {(b"0", b"1", b"2", b"3", b"4", b"after")}
        progress = {voter.node_id: voter for voter in (await voters.leader()).quorum.describe()}
        assert set(progress) == set(voters.nodes)

    run(count, directory, test)


def test_reading_for_observers(directory: Path) -> None:
    async def test(voters: Voters) -> None:
        quorum = voters.nodes[1].quorum
        start = quorum.high_watermark
        waiting = asyncio.ensure_future(quorum.committed_beyond(start, timeout_ms=5000))
        await voters.commit(b"a")
        await waiting
        await voters.commit(b"b")
        content = quorum.read(0, size_bytes_max=10**6)
        assert [header.base_offset for _, header in iterate_headers(content)] == [0, 1, 2]
        assert [record.value for record in decode_records(quorum.read(1, size_bytes_max=1))] == [b"a"]
        assert quorum.read(3, size_bytes_max=10) == b""
        with pytest.raises(OffsetOutOfRange):
            quorum.read(4, size_bytes_max=10)
        assert quorum.end_offset_for_epoch(1) == (1, 3)
        await quorum.committed_beyond(3, timeout_ms=1)

    run(1, directory, test)


def test_proposals_that_are_refused(directory: Path) -> None:
    async def test(voters: Voters) -> None:
        leader = await voters.leader()
        epoch = leader.quorum.leadership.epoch
        follower = next(node for node in voters.nodes.values() if node is not leader)
        with pytest.raises(NotController):
            await leader.quorum.propose([b"a"], epoch=epoch - 1)
        with pytest.raises(NotController):
            await follower.quorum.propose([b"a"], epoch=epoch)
        with pytest.raises(RecordListTooLarge):
            await leader.quorum.propose([b"x" * 9_000_000], epoch=epoch)

    run(3, directory, test)


def test_a_leader_without_a_majority_steps_down_and_answers(directory: Path) -> None:
    async def test(voters: Voters) -> None:
        leader = await voters.leader()
        for node in voters.nodes.values():
            if node is not leader:
                await voters.stop(node)
        with pytest.raises(NotController):
            await leader.quorum.propose([b"a"], epoch=leader.quorum.leadership.epoch)
        assert not leader.quorum.leadership.active
        for node in voters.nodes.values():
            if node is not leader:
                await voters.restart(node)
        await voters.commit(b"b")

    run(3, directory, test)


def test_a_voter_that_missed_much_gets_a_snapshot(directory: Path) -> None:
    async def test(voters: Voters) -> None:
        await voters.commit(b"first")
        behind = next(node for node in voters.nodes.values() if node is not voters.nodes[1] and not node.quorum.leadership.active)
        await voters.stop(behind)
        for number in range(30):
            await voters.commit(b"%d" % number + b"x" * 200)
        leader = await voters.leader()
        assert leader.quorum.latest_snapshot() is not None and leader.quorum.log_start_offset > 2
        end_offset = await voters.commit(b"last")
        await voters.restart(behind)
        await until(lambda: behind.quorum.high_watermark >= end_offset)
        assert behind.values.loaded and behind.values.records == leader.values.records
        snapshot = leader.quorum.latest_snapshot()
        assert snapshot is not None
        data, total_bytes = leader.quorum.read_snapshot(snapshot, position=0, size_bytes_max=10**6)
        assert len(data) == total_bytes

    run(3, directory, test, **{"metadata.log.max.record.bytes.between.snapshots": "2048"})


@pytest.mark.parametrize("node_id", [1, 3])
def test_an_emptied_voter_is_refused_and_told_so(directory: Path, caplog: pytest.LogCaptureFixture, node_id: int) -> None:
    """Whichever side dials: voter 3 dials the others, voter 1 is dialled."""

    async def test(voters: Voters) -> None:
        await voters.commit(b"a")
        await until(lambda: all(node.quorum.high_watermark >= 2 for node in voters.nodes.values()))
        wiped = voters.nodes[node_id]
        await voters.stop(wiped)
        shutil.rmtree(directory / str(wiped.node_id))
        with caplog.at_level(logging.WARNING, "raftlog.quorum"):
            await voters.restart(wiped)
            await until(lambda: any("lost its metadata log" in record.message for record in caplog.records))
        await voters.commit(b"b")
        assert wiped.quorum.leadership.leader_id == NO_NODE and wiped.quorum.high_watermark == 0

    run(3, directory, test)


def test_a_voter_of_another_cluster_is_refused(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(voters: Voters) -> None:
        stranger = next(node for node in voters.nodes.values() if not node.quorum.leadership.active)
        await stranger.quorum.close()
        with caplog.at_level(logging.WARNING, "raftlog.quorum"):
            await voters.start_quorum(stranger, cluster_id="other")
            await until(lambda: any("belongs to cluster" in record.message for record in caplog.records))
        await voters.commit(b"a")

    run(3, directory, test)


def test_a_disk_error_ends_the_voter_and_nobody_else(directory: Path) -> None:
    class FailingFiles(OsFiles):
        failing = False

        def replace(self, path: str, content: bytes) -> None:
            if self.failing:
                raise StorageError(f"can't write {path}: injected")
            super().replace(path, content)

    async def test(voters: Voters) -> None:
        leader = await voters.leader()
        node = next(node for node in voters.nodes.values() if node is not leader)
        await node.quorum.close()
        files = FailingFiles()
        await voters.start_quorum(node, files=files)
        await until(lambda: node.quorum.leadership.leader_id == leader.node_id)
        files.failing = True
        await voters.stop(leader)
        await until(lambda: node.fatal)
        files.failing = False
        assert isinstance(node.fatal[0], StorageError)
        with pytest.raises(NotController):
            await node.quorum.propose([b"a"], epoch=1)
        await voters.restart(leader)
        await voters.commit(b"b")

    run(3, directory, test)


def test_what_is_no_voter_is_refused(directory: Path) -> None:
    async def test(voters: Voters) -> None:
        await voters.commit(b"a")
        peer = await PeerConnection.open(voters.network, "127.0.0.1", voters.nodes[1].port, client_id="x", timeout_ms=1000)
        answer = await peer.request_raw(RAFT_API_KEY, 0, [b"hello?"], timeout_ms=1000)
        assert b"not a hello" in bytes(answer)
        peer.close()
        await voters.commit(b"b")

    run(3, directory, test)


def test_a_malformed_frame_closes_its_connection_and_a_new_one_follows(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(voters: Voters) -> None:
        await voters.commit(b"a")
        speaker = voters.nodes[3]
        link = speaker.quorum._links._links[1]
        with caplog.at_level(logging.WARNING, "raftlog.quorum"):
            frame = bytearray(link.sender.encode({"type": "response_vote", "term": 1}))
            link.send([frame[:-3]])
            await asyncio.wait_for(link.lost.wait(), WAIT_S_MAX)
        (line,) = [record.message for record in caplog.records if record.name == "raftlog.quorum.transport"]
        assert line.startswith("closing the connection to voter 3")
        await until(lambda: 1 in speaker.quorum._links._links)
        await voters.commit(b"b")

    run(3, directory, test)
