"""The operating system's files, indexes' file formats, and the bound on open files."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from raftlog.errors import StorageError
from raftlog.storage.files import OsFiles
from raftlog.storage.handles import OpenFiles
from raftlog.storage.indexes import OffsetIndex, TimeIndex


def test_reading_and_writing(tmp_path: Path) -> None:
    file = OsFiles().open(str(tmp_path / "a"), create=True)
    file.write_at(0, (b"abc", memoryview(b"defg"), bytearray(b"h")))
    file.write_at(2, (b"XY",))
    assert file.size() == 8
    assert file.read_at(1, 4) == b"bXYe"
    assert file.read_at(6, 100) == b"gh"
    assert file.read_at(100, 1) == b""
    file.truncate(3)
    file.sync()
    cached = file.read_at_cached(0, 10)
    assert cached is None or bytes(cached) == b"abX"
    assert asyncio.run(file.read_at_cold(0, 2)) == b"ab"
    asyncio.run(file.sync_later())
    file.close()
    file.close()


def test_reserved_room_is_on_the_disk_and_not_in_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    file = OsFiles().open(str(path), create=True)
    file.reserve(1 << 20)
    file.write_at(0, (b"abc",))
    assert file.size() == 3 and file.read_at(0, 10) == b"abc"
    assert path.stat().st_blocks * 512 >= 1 << 20
    file.truncate(3)
    assert file.size() == 3 and path.stat().st_blocks * 512 <= 1 << 16
    file.close()


def test_a_disk_that_has_no_such_room_takes_what_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = OsFiles().open(str(tmp_path / "a"), create=True)
    for _ in range(2):
        file.reserve(1 << 62)
    file.write_at(0, (b"abc",))
    assert file.read_at(0, 10) == b"abc"
    assert len([record for record in caplog.records if "preallocate" in record.getMessage()]) == 1, "said once"
    file.close()


def test_a_read_goes_on_after_its_file_was_closed(tmp_path: Path) -> None:
    async def read_and_close() -> bytes:
        file = OsFiles().open(str(tmp_path / "a"), create=True)
        file.write_at(0, (b"abc",))
        reading = asyncio.ensure_future(file.read_at_cold(0, 3))
        await asyncio.sleep(0)
        file.close()
        return await reading

    assert asyncio.run(read_and_close()) == b"abc"


def test_failures_name_the_path(tmp_path: Path) -> None:
    files = OsFiles()
    missing = str(tmp_path / "missing")
    for call in (lambda: files.open(missing), lambda: files.read(missing), lambda: files.rename(missing, missing + "2")):
        with pytest.raises(StorageError, match="missing"):
            call()
    with pytest.raises(StorageError, match=r"File too large|Invalid argument"):
        files.open(str(tmp_path / "a"), create=True).write_at(2**63 - 10, (b"x" * 100,))


def test_names(tmp_path: Path) -> None:
    files = OsFiles()
    directory = str(tmp_path / "d" / "e")
    files.make_directory(directory)
    files.make_directory(directory)
    files.replace(f"{directory}/b", b"1")
    files.replace(f"{directory}/b", b"2")
    asyncio.run(files.replace_later(f"{directory}/a", b"3"))
    assert files.list(directory) == ["a", "b"]
    assert files.read(f"{directory}/b") == b"2"
    files.rename(f"{directory}/a", f"{directory}/b")
    files.sync_directory(directory)
    assert files.read(f"{directory}/b") == b"3"
    files.remove(f"{directory}/b")
    files.remove(f"{directory}/b")
    files.remove_tree(directory)
    files.remove_tree(directory)
    assert not files.exists(directory)
    assert files.list(directory) == []


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = str(tmp_path / ".lock")
    release = OsFiles().lock(path)
    with pytest.raises(StorageError, match="is locked"):
        OsFiles().lock(path)
    release()
    OsFiles().lock(path)()


class Slot:
    def __init__(self, handles: OpenFiles, path: str) -> None:
        self.used = True
        self.file = handles.open(path, self, create=True)
        self.released = False

    def release(self) -> None:
        self.file.close()
        self.released = True


def test_no_more_files_are_open_than_allowed(tmp_path: Path) -> None:
    handles = OpenFiles(OsFiles(), files_max=4)
    before = len(os.listdir("/proc/self/fd"))
    slots = [Slot(handles, str(tmp_path / str(number))) for number in range(4)]
    for slot in slots[:2]:
        slot.used = False
    slots += [Slot(handles, str(tmp_path / str(number))) for number in range(4, 6)]
    assert [slot.released for slot in slots] == [True, True, False, False, False, False]
    assert len(os.listdir("/proc/self/fd")) == before + 4


def test_offset_index() -> None:
    index = OffsetIndex(1000)
    for last_offset, position in ((1010, 500), (1020, 900), (1030, 1400)):
        index.append(last_offset, position)
    assert [index.position_for(offset) for offset in (1000, 1009, 1010, 1025, 1030, 5000)] == [0, 0, 500, 900, 1400, 1400]
    assert [index.boundary_before(position) for position in (0, 499, 500, 1399, 9999)] == [0, 0, 500, 900, 1400]
    content = index.unwritten()
    assert content == struct.pack(">6i", 10, 500, 20, 900, 30, 1400)
    again = OffsetIndex.parse(1000, content + bytes(80))
    assert (len(again), again.written_count, again.is_file_longer, again.last_position) == (3, 3, True, 1400)
    again.truncate(900)
    assert (len(again), again.written_count, again.last_position) == (1, 1, 500)
    assert again.unwritten() == b""


def test_time_index() -> None:
    index = TimeIndex(1000)
    for timestamp_ms, offset in ((50, 1001), (50, 1005), (40, 1006), (70, 1009)):
        index.append(timestamp_ms, offset)
    assert len(index) == 2
    assert [index.offset_for(timestamp_ms) for timestamp_ms in (0, 50, 51, 70, 71)] == [1000, 1000, 1001, 1001, 1009]
    assert index.unwritten() == struct.pack(">qiqi", 50, 1, 70, 9)
    again = TimeIndex.parse(1000, index.unwritten() + bytes(24))
    assert again.last_entry == (70, 1009)
    again.truncate(1009)
    assert again.last_entry == (50, 1001)
