"""Idempotent producers: what is accepted, what is a duplicate, what truncation and snapshots remember."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftlog.core.log.producers import EndMarker, ProducerStates
from raftlog.errors import InvalidProducerEpoch, OutOfOrderSequenceNumber
from raftlog.protocol.batches import BatchHeader, Record, encode_batch, parse_header
from raftlog.protocol.checksum import portable_crc32c

PRODUCER = 77
T0 = 1_700_000_000_000
SEQUENCE_MAX = 2**31 - 1


def header(
    sequence: int, *, count: int = 1, epoch: int = 0, producer: int = PRODUCER, transactional: bool = False, control: bool = False
) -> BatchHeader:
    return parse_header(
        encode_batch(
            [Record(0, T0, None, b"v")] * count,
            producer_id=producer,
            producer_epoch=epoch,
            base_sequence=sequence,
            transactional=transactional,
            control=control,
        )
    )


def appended(states: ProducerStates, batch: BatchHeader, offset: int) -> None:
    assert states.check(batch) is None
    states.update(batch, base_offset=offset, now_ms=0)


def test_sequences_follow_each_other() -> None:
    states = ProducerStates()
    appended(states, header(0, count=3), 10)
    appended(states, header(3), 13)
    with pytest.raises(OutOfOrderSequenceNumber):
        states.check(header(5))


def test_sequences_wrap_around() -> None:
    states = ProducerStates()
    appended(states, header(SEQUENCE_MAX - 1, count=2), 0)
    appended(states, header(0, count=2), 2)
    other = ProducerStates()
    appended(other, header(SEQUENCE_MAX, count=3), 0)  # SEQUENCE_MAX, 0, 1.
    appended(other, header(2), 3)
    duplicate = other.check(header(SEQUENCE_MAX, count=3))
    assert duplicate is not None and duplicate.first_offset == 0


def test_an_unknown_producer_may_begin_anywhere() -> None:
    appended(ProducerStates(), header(1000), 0)


def test_the_last_five_batches_are_known_as_duplicates() -> None:
    states = ProducerStates()
    for sequence in range(7):
        appended(states, header(sequence), 100 + sequence)
    for sequence in range(2, 7):
        duplicate = states.check(header(sequence))
        assert duplicate is not None
        assert (duplicate.first_offset, duplicate.last_offset) == (100 + sequence, 100 + sequence)
    with pytest.raises(OutOfOrderSequenceNumber):
        states.check(header(1))


def test_part_of_a_batch_is_no_duplicate() -> None:
    states = ProducerStates()
    appended(states, header(0, count=5), 0)
    with pytest.raises(OutOfOrderSequenceNumber):
        states.check(header(0, count=4))


def test_epochs() -> None:
    states = ProducerStates()
    appended(states, header(0, epoch=3), 0)
    with pytest.raises(InvalidProducerEpoch):
        states.check(header(1, epoch=2))
    with pytest.raises(OutOfOrderSequenceNumber):
        states.check(header(1, epoch=4))
    appended(states, header(0, epoch=4), 1)
    with pytest.raises(InvalidProducerEpoch):
        states.check(header(0, epoch=3))


def test_coordinators_are_checked_by_epoch_only() -> None:
    states = ProducerStates()
    appended(states, header(0, epoch=3), 0)
    assert states.check(header(500, epoch=3), sequences=False) is None
    with pytest.raises(InvalidProducerEpoch):
        states.check(header(0, epoch=2), sequences=False)


def test_several_batches_are_checked_one_after_the_other() -> None:
    states = ProducerStates()
    appended(states, header(0), 0)
    assert states.check_all([header(1), header(2, count=2), header(4)]) is None
    assert states.get(PRODUCER).last_sequence == 0  # type: ignore[union-attr]  # Nothing was changed.
    with pytest.raises(OutOfOrderSequenceNumber):
        states.check_all([header(1), header(3)])
    assert states.check_all([header(0), header(1)]) is not None


def test_transactions_hold_the_stable_offset() -> None:
    states = ProducerStates()
    states.update(header(0, transactional=True), base_offset=5, now_ms=0)
    states.update(header(0, transactional=True, producer=78), base_offset=6, now_ms=0)
    assert states.first_unstable_offset == 5
    marker = header(-1, transactional=True, control=True)
    states.update(marker, base_offset=7, now_ms=0, marker=EndMarker(committed=True, coordinator_epoch=2))
    assert states.first_unstable_offset == 6
    assert states.get(PRODUCER).coordinator_epoch == 2  # type: ignore[union-attr]


def test_idle_producers_are_forgotten() -> None:
    states = ProducerStates()
    states.update(header(0), base_offset=0, now_ms=0)
    states.update(header(0, producer=78), base_offset=1, now_ms=500)
    states.update(header(0, producer=79, transactional=True), base_offset=2, now_ms=0)
    assert states.expire(1000, expiration_ms=1000) == 1
    assert states.get(PRODUCER) is None and len(states) == 2


def test_truncation_returns_to_the_batch_before() -> None:
    states = ProducerStates()
    for sequence in range(4):
        appended(states, header(sequence), sequence)
    assert states.truncate(2)
    assert states.get(PRODUCER).last_sequence == 1  # type: ignore[union-attr]
    appended(states, header(2), 2)
    assert states.truncate(0)
    assert states.get(PRODUCER) is None


def test_truncation_that_needs_the_log_says_so() -> None:
    states = ProducerStates()
    for sequence in range(7):
        appended(states, header(sequence), sequence)
    assert not states.truncate(1)  # Batch 0 is remembered no more.
    assert states.get(PRODUCER).last_sequence == 6  # type: ignore[union-attr]
    assert states.truncate(4)


def test_snapshot_layout() -> None:
    states = ProducerStates()
    appended(states, header(10, count=3, epoch=2), 100)
    content = states.to_snapshot()
    version, crc, count = struct.unpack_from(">hIi", content)
    assert (version, count) == (1, 1)
    assert crc == portable_crc32c(content[6:])
    assert struct.unpack_from(">qhiqiqiq", content, 10) == (PRODUCER, 2, 12, 102, 2, T0, -1, -1)
    assert len(ProducerStates().to_snapshot()) == 10


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: b"", lambda c: b"\x00\x02" + c[2:], lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_damaged_snapshot_is_refused(damage: object) -> None:
    states = ProducerStates()
    appended(states, header(0), 0)
    with pytest.raises(ValueError):
        ProducerStates.from_snapshot(damage(states.to_snapshot()), now_ms=0)  # type: ignore[operator]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=20))
def test_snapshots_remember_the_last_batch_of_each(appends: list[tuple[int, int]]) -> None:
    states = ProducerStates()
    offset = 0
    next_sequence = {1: 0, 2: SEQUENCE_MAX - 3, 3: 7}
    last: dict[int, BatchHeader] = {}
    for producer, count in appends:
        batch = header(next_sequence[producer], count=count, producer=producer)
        appended(states, batch, offset)
        offset += count
        next_sequence[producer] = (next_sequence[producer] + count) % (SEQUENCE_MAX + 1)
        last[producer] = batch
    again = ProducerStates.from_snapshot(states.to_snapshot(), now_ms=0)
    assert len(again) == len(last)
    for producer, batch in last.items():
        assert again.check(batch) == states.check(batch) is not None
        assert again.check(header(next_sequence[producer], producer=producer)) is None
