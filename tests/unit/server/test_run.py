"""A node as a process: what it says and how it exits."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"
TIMEOUT_S = 20.0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Process:
    """A node; `before` is Python that its process runs first."""

    def __init__(self, directory: Path, *arguments: str, more: str = "", prepare: bool = True, before: str = "") -> None:
        self.port, controller_port = free_port(), free_port()
        directory.mkdir(exist_ok=True)
        config = directory / "server.properties"
        config.write_text(
            f"node.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller_port}\nlog.dirs={directory}/data\n"
            f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller_port}\n{more}\n"
        )
        run_after = f"{before}\nimport sys\nfrom raftlog.server import __main__\nsys.exit(__main__.main())"
        program = ["-c", run_after] if before else ["-m", "raftlog.server"]
        command = [sys.executable, *program, "-c", str(config), *arguments]
        self.process = subprocess.Popen(
            [*command, "--cluster-id", CLUSTER_ID] if prepare else command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait_until_serving(self) -> None:
        self.wait_for("broker 1 serves on")

    def wait_for(self, said: str) -> None:
        assert self.process.stderr is not None
        deadline = time.monotonic() + TIMEOUT_S
        for line in self.process.stderr:
            if said in line:
                return
            assert time.monotonic() < deadline
        raise AssertionError("the process ended")

    def end(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        assert out == ""
        return self.process.returncode, err


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "node"


def test_a_signal_that_comes_twice_at_once_stops_it_cleanly(directory: Path) -> None:
    process = Process(directory)
    process.wait_until_serving()
    process.process.send_signal(signal.SIGTERM)
    process.process.send_signal(signal.SIGINT)
    status, err = process.end()
    assert status == 0 and err.rstrip().endswith("stopped")
    assert (directory / "data" / ".kafka_cleanshutdown").exists()


def test_it_serves_until_it_is_told_to_stop(directory: Path) -> None:
    node = Process(directory)
    node.wait_until_serving()
    node.process.send_signal(signal.SIGTERM)
    status, err = node.end()
    assert status == 0, err
    assert "stopping on SIGTERM" in err
    assert (directory / "data" / ".kafka_cleanshutdown").exists()


HANGING_START = """
import asyncio, sys
from raftlog.storage.manager import LogManager

async def recover(self, *_):
    self._files.make_directory(self.directory)
    self._unlock = self._files.lock(self._path(".lock"))
    print("recovering", file=sys.stderr, flush=True)
    await asyncio.Event().wait()

LogManager.open = recover
"""


def test_it_need_not_have_started_to_be_told_to_stop(directory: Path) -> None:
    node = Process(directory, before=HANGING_START)
    node.wait_for("recovering")
    node.process.send_signal(signal.SIGTERM)
    status, err = node.end()
    assert status == 0 and "stopping on SIGTERM, before it was started" in err
    assert not (directory / "data" / ".kafka_cleanshutdown").exists()


BUSY_THREAD = """
import threading
threading.Thread(target=threading.Event().wait).start()
"""


def test_no_thread_keeps_it_from_ending(directory: Path) -> None:
    node = Process(directory, before=BUSY_THREAD)
    node.wait_until_serving()
    node.process.send_signal(signal.SIGTERM)
    status, err = node.end()
    assert status == 0 and err.rstrip().endswith("stopped")
    assert (directory / "data" / ".kafka_cleanshutdown").exists()


@pytest.mark.parametrize(
    ("arguments", "more", "prepare", "status", "line"),
    [
        ((), "no.such.setting=1", True, 2, "unknown setting 'no.such.setting'"),
        (("--set", "num.partitions=many"), "", True, 2, "Invalid value many for configuration num.partitions: Not a number of type INT"),
        ((), "", False, 1, "is not prepared: run `raftlog quorum init` first"),
        ((), "advertised.listeners=PLAINTEXT://0.0.0.0:1", True, 2, "clients can't be told to connect to 0.0.0.0"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    directory: Path, arguments: tuple[str, ...], more: str, prepare: bool, status: int, line: str
) -> None:
    found, err = Process(directory, *arguments, more=more, prepare=prepare).end()
    assert found == status, err
    assert len(err.splitlines()) == 1
    assert err.startswith("raftlog: ")
    assert line in err


def test_a_port_that_is_taken(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, err = Process(directory, "--set", f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{free_port()}").end()
    assert status == 1
    assert err.splitlines()[-1].startswith(f"raftlog: listener PLAINTEXT: can't listen on 127.0.0.1:{port}")
    assert "Traceback" not in err
