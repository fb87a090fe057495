"""Files in memory: what is durable survives a crash, what is not survives by chance, and errors can be injected."""

from __future__ import annotations

import random

import pytest

from raftlog.errors import StorageError
from raftlog.testing.memory_files import MemoryFiles


def crashed(files: MemoryFiles, seed: int) -> MemoryFiles:
    files.crash(random.Random(seed))
    return files


def test_reads_back_what_was_written() -> None:
    files = MemoryFiles()
    files.make_directory("/d/e")
    file = files.open("/d/e/f", create=True)
    file.write_at(3, [b"abc", b"de"])
    assert file.read_at(0, 100) == b"\x00\x00\x00abcde" and file.size() == 8
    file.truncate(4)
    assert files.read("/d/e/f") == b"\x00\x00\x00a"
    assert files.list("/d") == ["e"] and files.exists("/d/e") and not files.exists("/d/x")
    files.rename("/d/e/f", "/d/e/g")
    assert files.list("/d/e") == ["g"]
    files.remove_tree("/d")
    assert files.list("/d") == []


def test_synced_content_under_a_synced_name_survives() -> None:
    for seed in range(50):
        files = MemoryFiles()
        file = files.open("/d/f", create=True)
        file.write_at(0, [b"durable"])
        file.sync()
        files.sync_directory("/d")
        file.write_at(7, [b"x" * 3000])
        assert crashed(files, seed).read("/d/f").startswith(b"durable"), f"seed {seed}"


def test_the_rest_survives_wholly_in_part_or_not_at_all() -> None:
    lengths = set()
    names = set()
    for seed in range(100):
        files = MemoryFiles()
        file = files.open("/d/f", create=True)
        files.sync_directory("/d")
        file.write_at(0, [b"x" * 2000])
        files.open("/d/new", create=True)
        crashed(files, seed)
        lengths.add(len(files.read("/d/f").strip(b"\x00")))
        names.add(files.exists("/d/new"))
    assert {0, 2000} < lengths and names == {True, False}


def test_replace_is_atomic_and_durable() -> None:
    for seed in range(50):
        files = MemoryFiles()
        files.replace("/d/f", b"old")
        files.replace("/d/f", b"new")
        assert crashed(files, seed).read("/d/f") == b"new"


def test_a_file_opened_before_the_crash_is_dead() -> None:
    files = MemoryFiles()
    file = files.open("/d/f", create=True)
    files.crash(random.Random(1))
    with pytest.raises(StorageError):
        file.write_at(0, [b"x"])


def test_errors_are_injected_before_the_operation() -> None:
    def refuse(operation: str, path: str) -> None:
        if operation == "write":
            raise StorageError(f"no space for {path}")

    files = MemoryFiles(refuse)
    file = files.open("/d/f", create=True)
    with pytest.raises(StorageError, match="no space"):
        file.write_at(0, [b"x"])
    assert file.size() == 0


def test_a_lock_is_exclusive_until_released_or_crashed() -> None:
    files = MemoryFiles()
    release = files.lock("/d/.lock")
    with pytest.raises(StorageError):
        files.lock("/d/.lock")
    release()
    files.lock("/d/.lock")
    files.crash(random.Random(1))
    files.lock("/d/.lock")


def test_a_crash_may_spare_a_disk() -> None:
    for seed in range(20):
        files = MemoryFiles()
        for path in ("/lost/f", "/kept/f"):
            file = files.open(path, create=True)
            file.write_at(0, [b"content"])
        files.crash(random.Random(seed), lost=lambda path: path.startswith("/lost"))
        assert files.read("/kept/f") == b"content", f"seed {seed}"
