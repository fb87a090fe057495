"""A log against a simple model of it: appends, truncations, restarts, kills and power losses in any order.

The model is the list of batches as they should be read. After a power loss all below the recovery point must be there;
what is above may be lost, and the model goes on with what was found.
"""

from __future__ import annotations

import contextlib
import logging
import random
import struct
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from storage_helpers import T0, ManualClock, batch, config_of, last_end_offset, new_log, open_log, read_all, run

from raftlog.protocol.batches import BatchHeader, iterate_batches, verify
from raftlog.storage.log import Log
from raftlog.testing.memory_files import MemoryFiles

SEGMENT_BYTES = 1500
PRODUCER = 9


class LogMachine(RuleBasedStateMachine):
    @initialize(index_interval_bytes=st.sampled_from([0, 200, 4096]), preallocate=st.booleans())
    def begin(self, index_interval_bytes: int, preallocate: bool) -> None:
        self.files = MemoryFiles()
        self.clock = ManualClock()
        self.config = config_of(segment_bytes=SEGMENT_BYTES, index_interval_bytes=index_interval_bytes, preallocate=preallocate)
        self.log: Log = new_log(self.files, clock=self.clock, segment_bytes=SEGMENT_BYTES, preallocate=preallocate)
        self.log.reconfigure(self.config)
        self.batches: list[tuple[BatchHeader, bytes]] = []
        self.start = 0
        self.end = 0
        self.epoch = 0
        self.sequence = 0
        self.time_ms = T0

    # --- what happens to it -------------------------------------------------------------------------------------------

    @rule(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), width=st.integers(0, 60), idempotent=st.booleans(), step=st.integers(-50, 200))
    def append(self, sizes: list[int], width: int, idempotent: bool, step: int) -> None:
        records = b""
        for size in sizes:
            self.time_ms += step
            producer = {}
            if idempotent:
                producer = {"producer_id": PRODUCER, "producer_epoch": 0, "base_sequence": self.sequence}
                self.sequence += size
            records += batch(*[bytes([width % 256]) * width] * size, timestamp_ms=self.time_ms, **producer)
        appended = self.log.append_as_leader(records, leader_epoch=self.epoch, now_ms=T0)
        assert (appended.first_offset, appended.last_offset) == (self.end, self.end + sum(sizes) - 1)
        for header, data in iterate_batches(records):
            whole = struct.pack(">qii", self.end, header.length, self.epoch) + bytes(data[16:])
            self._remember(whole)

    @rule(count=st.integers(1, 6), cut=st.integers(0, 20))
    def replicate(self, count: int, cut: int) -> None:
        chunk = b""
        offset = self.end
        for _ in range(count):
            one = batch(b"x" * 150, b"y", timestamp_ms=self.time_ms, base_offset=offset, leader_epoch=self.epoch)
            chunk += one
            offset += 2
            self._remember(one)
        self.log.append_as_follower(chunk + batch(base_offset=offset, leader_epoch=self.epoch)[: -1 - cut])

    def _remember(self, whole: bytes) -> None:
        header = verify(whole)
        self.batches.append((header, whole))
        self.end = header.end_offset

    @rule()
    def new_epoch(self) -> None:
        self.epoch += 1

    @rule()
    def roll(self) -> None:
        self.log.roll()

    @rule()
    def flush(self) -> None:
        run(self.log.flush())
        assert self.log.recovery_point == self.end

    @precondition(lambda self: self.end > 0)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(max(0, self.end - 12), self.end))
        if offset < self.log.first_base_offset:
            self.log.truncate_to(offset)
            self.start = self.end = offset
            self.batches = []
            self._follow_producer()
            return
        self.log.truncate_to(offset)
        if offset < self.end:
            self.batches = [(header, whole) for header, whole in self.batches if header.end_offset <= offset]
            self.end = self.log.log_end_offset
            assert self.end <= offset
            assert not self.batches or self.end == self.batches[-1][0].end_offset
            self.start = min(self.start, self.end)
        self._follow_producer()

    @rule(ahead=st.integers(0, 30))
    def truncate_fully(self, ahead: int) -> None:
        self.start = self.end = self.end + ahead
        self.batches = []
        self.log.truncate_fully_and_start_at(self.start)
        self._follow_producer()

    @rule(data=st.data())
    def advance_start(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.start, self.end))
        self.log.advance_log_start(offset)
        self.start = max(self.start, offset)

    @rule()
    def retain(self) -> None:
        self.log.delete_old_segments(T0, self.end)

    # --- how it ends and begins again ---------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        run(self.log.close())
        with self._no_recovery():
            self._reopen(recovery_point=self.log.recovery_point, clean_shutdown=True)
        assert self.log.recovery_point == self.end

    @rule(behind=st.integers(0, 100))
    def kill(self, behind: int) -> None:
        recovery_point = max(self.log.recovery_point - behind, 0)
        self.log.abandon()
        self._reopen(recovery_point=recovery_point, clean_shutdown=False)
        assert self.log.log_end_offset == self.end

    @rule(seed=st.integers(0, 2**32))
    def lose_power(self, seed: int) -> None:
        recovery_point = self.log.recovery_point
        durable = [whole for header, whole in self.batches if header.end_offset <= recovery_point and header.end_offset > self.start]
        self.log.abandon()
        self.files.crash(random.Random(seed))
        self._reopen(recovery_point=recovery_point, clean_shutdown=False)
        found = read_all(self.log)
        kept = b"".join(durable)
        assert found[: len(kept)] == kept or self.log.log_start_offset > self.start
        self.batches = [(header, bytes(data)) for header, data in iterate_batches(found)]
        self.end = self.log.log_end_offset
        self.start = self.log.log_start_offset
        assert self.end >= recovery_point
        self.epoch = max(self.epoch, self.log.epochs.latest_epoch)
        self._follow_producer()

    def _reopen(self, *, recovery_point: int, clean_shutdown: bool) -> None:
        self.log = open_log(
            self.files,
            config=self.config,
            clock=self.clock,
            recovery_point=recovery_point,
            log_start_offset=self.start,
            clean_shutdown=clean_shutdown,
        )

    @contextlib.contextmanager
    def _no_recovery(self) -> Iterator[None]:
        """What was closed cleanly is trusted, and rightly so: nothing is repaired on the way."""
        complaints: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("raftlog.storage")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
        assert not complaints

    def _follow_producer(self) -> None:
        """The producer goes on where the log says, as one does that begins anew."""
        state = self.log.producers.get(PRODUCER)
        self.sequence = 0 if state is None else state.last_sequence + 1

    # --- what must be true --------------------------------------------------------------------------------------------

    @invariant()
    def reads_as_the_model(self) -> None:
        if not hasattr(self, "log"):
            return
        assert (self.log.log_start_offset, self.log.log_end_offset) == (self.start, self.end)
        expected = b"".join(whole for header, whole in self.batches if header.end_offset > self.start)
        assert read_all(self.log, size_bytes_max=700) == read_all(self.log) == expected

    @invariant()
    def only_the_active_segment_keeps_room(self) -> None:
        if hasattr(self, "log"):
            kept = [self.files.reserved_bytes(segment.path()) > 0 for segment in self.log._segments[:-1]]
            assert not any(kept) and (self.config.preallocate or not self.files.reserved_bytes(self.log._active.path()))

    @invariant()
    def producer_as_the_model(self) -> None:
        if not hasattr(self, "log"):
            return
        ours = [header for header, _ in self.batches if header.producer_id == PRODUCER and header.base_offset >= self.log.first_base_offset]
        state = self.log.producers.get(PRODUCER)
        if ours:
            assert state is not None
            assert state.last_sequence == ours[-1].last_sequence
            assert state.batches[-1].last_offset == ours[-1].last_offset

    @invariant()
    def epochs_as_the_model(self) -> None:
        if not hasattr(self, "log") or self.start == self.end:
            return
        entries: list[tuple[int, int]] = []
        for header, _ in self.batches:
            if header.end_offset > self.start and (not entries or entries[-1][0] != header.leader_epoch):
                entries.append((header.leader_epoch, max(header.base_offset, self.start)))
        assert self.log.epochs.entries() == entries

    @precondition(lambda self: self.end > self.start)
    @rule(data=st.data(), size=st.integers(1, 1000))
    def read_part(self, data: st.DataObject, size: int) -> None:
        start = data.draw(st.integers(self.start, self.end - 1))
        end = data.draw(st.integers(start, self.end))
        got = self.log.read(start, size_bytes_max=size, end_offset=end, minimum_one_batch=True)
        if got is None:
            got = run(self.log.read_cold(start, size_bytes_max=size, end_offset=end, minimum_one_batch=True))
        wanted = [(header, whole) for header, whole in self.batches if header.last_offset >= start and header.end_offset <= end]
        if not wanted:
            assert bytes(got) == b""
            return
        expected = b"".join(whole for _, whole in wanted)
        assert len(got) and expected.startswith(bytes(got))
        assert len(got) <= max(size, len(wanted[0][1]))
        last_end_offset(got)
        more = expected[len(got) :]
        if more and len(got) + verify(more).size_bytes <= size:  # Stopped early: only at the end of a segment.
            assert verify(more).base_offset in {segment.base_offset for segment in self.log._segments}

    @precondition(lambda self: self.end > self.start)
    @rule(ahead=st.integers(-500, 500))
    def look_up_time(self, ahead: int) -> None:
        asked = self.time_ms + ahead
        found = run(self.log.offset_for_timestamp(asked))
        times = [
            (header.base_offset + delta, header.max_timestamp_ms)
            for header, _ in self.batches
            for delta in range(header.record_count)
            if header.base_offset + delta >= self.start
        ]
        expected = next((offset for offset, timestamp_ms in times if timestamp_ms >= asked), None)
        assert (None if found is None else found.offset) == expected
        newest = run(self.log.offset_of_max_timestamp())
        largest_ms = max((header.max_timestamp_ms for header, _ in self.batches if header.end_offset > self.start), default=-1)
        if newest is not None:
            assert newest.timestamp_ms == largest_ms


TestLogAgainstModel = LogMachine.TestCase
TestLogAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
