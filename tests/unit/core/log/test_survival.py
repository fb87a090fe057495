"""Which records survive compaction, against a simple model: a list of records, and of each key the last one."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from raftlog.core.log.compaction import ENTRY_BYTES, KeyOffsets, Survival
from raftlog.protocol.batches import BatchHeader, Record, decode_batch, encode_batch, parse_header, verify
from raftlog.protocol.compression import Compression

RETENTION_MS = 1000


def run(slices: Generator[None, None, Any]) -> Any:
    try:
        while True:
            next(slices)
    except StopIteration as stop:
        return stop.value


def batch_of(base_offset: int, *pairs: tuple[bytes | None, bytes | None], **fields: Any) -> bytes:
    return encode_batch([Record(0, 1000 + place, key, value) for place, (key, value) in enumerate(pairs)], base_offset=base_offset, **fields)


def learn(batches: Iterable[bytes], *, start_offset: int = 0, end_offset: int, size_bytes_max: int = 1 << 20) -> KeyOffsets:
    """As the cleaner does: the batches from `start_offset` to `end_offset`."""
    keys = KeyOffsets(start_offset=start_offset, size_bytes_max=size_bytes_max)
    for batch in batches:
        if parse_header(batch).base_offset >= end_offset:
            break
        run(keys.learn(parse_header(batch), batch))
        if keys.is_full:
            return keys
    keys.reach(end_offset)
    return keys


def clean(batches: list[bytes], keys: KeyOffsets, *, now_ms: int = 0, last_offsets: dict[int, int] | None = None) -> list[bytes]:
    survival = Survival(keys, last_offsets=last_offsets or {}, now_ms=now_ms, delete_retention_ms=RETENTION_MS)
    left = [run(survival.filter(parse_header(batch), batch, is_last=batch is batches[-1])) for batch in batches]
    return [batch for batch in left if batch is not None]


def records_of(batches: Iterable[bytes]) -> list[Record]:
    return [record for batch in batches for record in decode_batch(batch)]


def table_of(records: Iterable[Record]) -> dict[bytes | None, bytes]:
    table: dict[bytes | None, bytes] = {}
    for record in records:
        if record.value is None:
            table.pop(record.key, None)
        else:
            table[record.key] = record.value
    return table


KEYS = st.sampled_from([b"a", b"b", b"c", b"k" * 40, b"k" * 41])
PAIRS = st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=5)))
LOGS = st.lists(st.tuples(st.lists(PAIRS, min_size=1, max_size=5), st.sampled_from(list(Compression)), st.integers(0, 2)), min_size=1, max_size=15)


@settings(max_examples=300, deadline=None)
@given(LOGS, st.data())
def test_rounds_of_cleaning(log: Any, data: st.DataObject) -> None:
    batches: list[bytes] = []
    epoch, offset = 0, 0
    for pairs, compression, step in log:
        epoch += step
        batches.append(batch_of(offset, *pairs, compression=compression, leader_epoch=epoch))
        offset += len(pairs)
    original = records_of(batches)
    by_offset = {record.offset: record for record in original}
    ends = [parse_header(batch).end_offset for batch in batches]
    start_offset, now_ms = 0, 0
    known: set[int] = set()  # Offsets of tombstones that a round has seen, and kept.
    for _ in range(data.draw(st.integers(1, 3))):
        now_ms += data.draw(st.sampled_from((1, RETENTION_MS)))
        end_offset = data.draw(st.sampled_from([end for end in ends if end >= start_offset]))
        keys_max = data.draw(st.sampled_from((1, 2, 100)))
        keys = learn(batches, start_offset=start_offset, end_offset=end_offset, size_bytes_max=keys_max * ENTRY_BYTES)
        before = records_of(batches)
        batches = clean(batches, keys, now_ms=now_ms)
        left = records_of(batches)
        assert start_offset <= keys.end_offset <= end_offset
        assert [record for record in left if record.offset >= keys.end_offset] == [record for record in original if record.offset >= keys.end_offset]
        assert [record.offset for record in left] == sorted({record.offset for record in left})  # Order kept, nothing twice.
        assert all(by_offset[record.offset] == record for record in left)
        below = [record for record in before if record.offset < keys.end_offset]
        last = {record.key: record.offset for record in below}
        for record in below:
            if record.offset != last[record.key]:
                assert record not in left
            elif record.value is not None or record.offset not in known:
                assert record in left
        known |= {record.offset for record in left if record.value is None}
        assert table_of(left) == table_of(original)
        assert parse_header(batches[-1]).end_offset == offset
        for batch in batches:
            verify(batch)
        firsts = {parse_header(batch).leader_epoch: parse_header(batch).base_offset for batch in reversed(batches)}
        assert firsts == first_offsets(log)
        start_offset = keys.end_offset


def first_offsets(log: Any) -> dict[int, int]:
    firsts: dict[int, int] = {}
    epoch = offset = 0
    for pairs, _, step in log:
        epoch += step
        firsts.setdefault(epoch, offset)
        offset += len(pairs)
    return firsts


def test_a_tombstone_goes_after_its_retention() -> None:
    batches = [batch_of(0, (b"a", b"1"), (b"b", b"1")), batch_of(2, (b"a", None)), batch_of(3, (b"c", b"1"))]
    batches = clean(batches, learn(batches, end_offset=4), now_ms=5000)
    assert [record.offset for record in records_of(batches)] == [1, 2, 3]
    horizons = [parse_header(batch).delete_horizon_ms for batch in batches]
    assert horizons == [None, 5000 + RETENTION_MS, None]
    for now_ms, offsets in ((5000 + RETENTION_MS - 1, [1, 2, 3]), (5000 + RETENTION_MS, [1, 3])):
        again = clean(batches, learn(batches, start_offset=4, end_offset=4), now_ms=now_ms)
        assert [record.offset for record in records_of(again)] == offsets
    # One that the map has not reached is not given a horizon: the value it deletes may be there still.
    batches = [batch_of(0, (b"a", b"1")), batch_of(1, (b"b", b"1"), (b"a", None))]
    batches = clean(batches, learn(batches, end_offset=3, size_bytes_max=ENTRY_BYTES), now_ms=5000)
    assert [record.offset for record in records_of(batches)] == [0, 1, 2]
    assert [parse_header(batch).delete_horizon_ms for batch in batches] == [None, None]


def test_the_last_batch_of_a_producer_and_of_a_segment_stay_empty() -> None:
    fields: dict[str, Any] = {"producer_id": 5, "producer_epoch": 0, "leader_epoch": 1}
    batches = [
        batch_of(0, (b"z", b"0"), leader_epoch=1),
        batch_of(1, (b"a", b"1"), base_sequence=0, **fields),
        batch_of(2, (b"a", b"2"), (b"a", b"3"), base_sequence=1, **fields),
        batch_of(4, (b"a", b"4"), leader_epoch=1),
        batch_of(5, (b"z", b"5"), (b"z", b"6"), leader_epoch=1),
        batch_of(7, (b"z", b"7"), leader_epoch=1),
    ]
    keys = learn(batches, end_offset=8)
    left = [parse_header(batch) for batch in clean(batches[:5], keys, last_offsets={5: 3})]
    assert [(header.base_offset, header.end_offset, header.record_count) for header in left] == [(0, 1, 0), (2, 4, 0), (4, 5, 1), (5, 7, 0)]
    assert (left[1].producer_id, left[1].last_sequence) == (5, 2)
    # Once the producer is forgotten, its batch goes; an empty batch that must stay is left as it is.
    again = clean([*clean(batches[:5], keys, last_offsets={5: 3})], keys)
    assert [parse_header(batch).base_offset for batch in again] == [0, 4, 5]


def test_what_is_not_touched() -> None:
    whole = batch_of(0, (b"a", b"1"), (b"b", b"1"))
    damaged = bytearray(batch_of(2, (b"a", b"2"), compression=Compression.ZSTD))
    damaged[70] ^= 0xFF
    unknown = batch_of(3, (b"c", b"1"), (b"a", b"3"))
    control = batch_of(5, (b"\0\0\0\1", b"\0\0\0\0\0\0"), control=True, producer_id=3, producer_epoch=0)
    batches = [whole, bytes(damaged), unknown, control, batch_of(6, (b"a", b"4"))]
    keys = learn(batches, end_offset=7)
    assert (keys.unreadable_count, keys.is_full, keys.end_offset) == (1, True, 5)  # Nothing of a transaction is compacted.
    left = clean(batches, keys)
    assert left[1] is batches[1] and left[2] is unknown and left[3] is control and left[4] is batches[4]
    assert [record.offset for record in decode_batch(left[0])] == [1]


def test_records_without_a_key_do_not_survive() -> None:
    batches = [batch_of(0, (None, b"1"), (b"a", b"1")), batch_of(2, (None, b"2"))]
    left = clean(batches, learn(batches, end_offset=3))
    assert [record.offset for record in records_of(left)] == [1]


def test_slices_are_short() -> None:
    batch = batch_of(0, *[(b"%d" % number, b"") for number in range(2000)])
    header: BatchHeader = parse_header(batch)
    keys = KeyOffsets(start_offset=0, size_bytes_max=1 << 20)
    assert len(list(keys.learn(header, batch))) == 3
    survival = Survival(keys, last_offsets={}, now_ms=0, delete_retention_ms=0)
    assert len(list(survival.filter(header, batch, is_last=True))) == 3
    assert (survival.records_seen, survival.records_kept) == (2000, 2000)


def test_long_keys_are_told_apart() -> None:
    chance = random.Random(4)
    keys = [chance.randbytes(chance.choice((16, 17, 40))) for _ in range(50)]
    batches = [batch_of(place, (key, b"v")) for place, key in enumerate(keys)]
    found = learn(batches, end_offset=50)
    assert [found.last_of(key) for key in keys] == list(range(50))
    assert found.last_of(b"other") == -1
