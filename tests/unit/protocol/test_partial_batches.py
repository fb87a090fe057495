"""Batches with some of their records, against records decoded the ordinary way."""

from __future__ import annotations

import random

import pytest

from raftlog.errors import CorruptMessage, MessageTooLarge
from raftlog.protocol.batches import HEADER_BYTES, Record, decode_batch, encode_batch, parse_header, verify
from raftlog.protocol.compression import Compression
from raftlog.protocol.partial_batches import content_of, place_records, with_records, without_records

SIZE_BYTES_MAX = 1 << 20


def random_records(chance: random.Random, count: int) -> list[Record]:
    return [
        Record(
            index,
            1_700_000_000_000 + chance.randint(-(10**9), 10**9),
            None if chance.random() < 0.1 else chance.randbytes(chance.choice((0, 1, 8, 70, 200))),
            None if chance.random() < 0.3 else chance.randbytes(chance.choice((0, 1, 100, 9000))),
            tuple((f"h{number}", chance.randbytes(3)) for number in range(chance.randint(0, 2))),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("stamped", [False, True])
def test_kept_records_are_what_they_were(compression: Compression, stamped: bool) -> None:
    chance = random.Random(f"{compression} {stamped}")
    for _ in range(30):
        records = random_records(chance, chance.randint(1, 12))
        batch = encode_batch(
            records,
            base_offset=chance.randint(0, 2**40),
            leader_epoch=7,
            producer_id=9,
            producer_epoch=2,
            base_sequence=2**31 - 3,
            compression=compression,
            log_append_time_ms=1_800_000_000_000 if stamped else None,
        )
        header = parse_header(batch)
        content = content_of(header, batch, size_bytes_max=SIZE_BYTES_MAX)
        placed = list(place_records(header, content))
        whole = decode_batch(batch)
        assert [(record.offset, record.key, record.has_value) for record in placed] == [
            (record.offset, record.key, record.value is not None) for record in whole
        ]
        places = sorted(chance.sample(range(len(placed)), chance.randint(1, len(placed))))
        for horizon_ms in (None, 1_900_000_000_000):
            left = with_records(header, content, [placed[place] for place in places], delete_horizon_ms=horizon_ms)
            assert decode_batch(left) == [whole[place] for place in places]
            left_header = verify(left)
            same = ("base_offset", "last_offset", "leader_epoch", "producer_id", "producer_epoch", "base_sequence", "last_sequence", "compression")
            assert [getattr(left_header, name) for name in same] == [getattr(header, name) for name in same]
            assert left_header.delete_horizon_ms == horizon_ms
            assert left_header.max_timestamp_ms == (header.max_timestamp_ms if stamped else max(whole[place].timestamp_ms for place in places))
            again = list(place_records(left_header, content_of(left_header, left, size_bytes_max=SIZE_BYTES_MAX)))
            assert [record.offset for record in again] == [whole[place].offset for place in places]


def test_an_empty_batch_keeps_all_but_its_records() -> None:
    batch = encode_batch(random_records(random.Random(1), 5), base_offset=40, leader_epoch=3, producer_id=8, producer_epoch=1, base_sequence=10,
                         compression=Compression.ZSTD)  # fmt: skip
    header, empty = parse_header(batch), without_records(parse_header(batch))
    left = verify(empty)
    assert len(empty) == HEADER_BYTES
    assert decode_batch(empty) == []
    assert (left.base_offset, left.end_offset, left.leader_epoch, left.last_sequence) == (40, 45, 3, 14)
    assert (left.max_timestamp_ms, left.record_count, left.compression, left.base_timestamp_ms) == (header.max_timestamp_ms, 0, 0, -1)


def test_what_can_not_be_read_is_refused() -> None:
    batch = encode_batch(random_records(random.Random(2), 3))
    header = parse_header(batch)
    content = content_of(header, batch, size_bytes_max=SIZE_BYTES_MAX)
    for damaged in (content[:-1], b"\x7f" + content[1:], b"", content[:1] + b"\xff" * (len(content) - 1)):
        with pytest.raises(CorruptMessage):
            list(place_records(header, damaged))
    with pytest.raises(CorruptMessage):  # An offset beyond the batch's last.
        list(place_records(header._replace(last_offset_delta=1), content))
    bomb = encode_batch([Record(0, 1, b"k", bytes(1 << 16))], compression=Compression.ZSTD)
    with pytest.raises(MessageTooLarge):
        content_of(parse_header(bomb), bomb, size_bytes_max=1 << 10)
