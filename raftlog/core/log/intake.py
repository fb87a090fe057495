"""What a topic's configuration asks of the batches that clients bring: their codec and their records' timestamps and keys.

The broker looks inside a batch only where it must: when its codec is not the topic's, when its newest timestamp is out of
bounds (to say which records are), and for each batch of a topic that bounds old timestamps or is compacted.
Source: KIP-280 (keys), KIP-32, KIP-937 (timestamps), KIP-390 (levels), KIP-467 (errors of single records).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from raftlog.environment import Buffer
from raftlog.errors import CorruptMessage, InvalidRecord, InvalidTimestamp, MessageTooLarge
from raftlog.ids import NO_TIMESTAMP
from raftlog.protocol.batches import COMPRESSION_MASK, HEADER_BYTES, LOG_APPEND_TIME, BatchHeader
from raftlog.protocol.compression import Compression, compress, decompress_bounded
from raftlog.protocol.contents import Glance, glance_at_records, with_content
from raftlog.topic_config import TopicConfig

DECOMPRESSED_TO_MESSAGE_MAX: Final = 32
"""A batch that is looked into may hold so many times `max.message.bytes` of records: a bomb is let go before it fills memory."""

INT64_MAX: Final = 2**63 - 1  # As a bound: none.
NOT_EVEN_NOW: Final = -(2**65)  # As a bound of how far ahead of now: every batch must be opened.
RECORD_ERRORS_MAX: Final = 1000  # Told of one batch: the response must not outgrow the request.

_LZ4_FASTEST_LEVEL: Final = 9  # Kafka's default level, which means the fast compressor; every other one the thorough.
_LZ4_THOROUGH_LEVELS: Final = (3, 12)  # Of the library.
_CODECS: Final[Mapping[str, Compression]] = {
    "uncompressed": Compression.NONE,
    "gzip": Compression.GZIP,
    "snappy": Compression.SNAPPY,
    "lz4": Compression.LZ4,
    "zstd": Compression.ZSTD,
}


class MustOpen(Exception):
    """A batch is more than may be opened on the event loop: call `open` elsewhere, then append what it returns."""

    def __init__(self, intake: Intake, batch: bytes, header: BatchHeader, now_ms: int) -> None:
        super().__init__(f"a batch of {len(batch)} bytes must be opened off the event loop")
        self._intake = intake
        self._batch = batch
        self._header = header
        self._now_ms = now_ms

    def open(self) -> Buffer:
        """As Intake.admit; touches nothing shared, so any thread may do it."""
        return self._intake.admit(self._batch, self._header, now_ms=self._now_ms)


class Intake:
    """The rules of one topic configuration. Immutable."""

    __slots__ = (
        "_after_ms_max",
        "_ahead_ms_max",
        "_attributes",
        "_attributes_mask",
        "_before_ms_max",
        "_codec",
        "_is_compacted",
        "_level",
        "content_bytes_max",
        "message_bytes_max",
    )

    def __init__(self, config: TopicConfig) -> None:
        stamps = config.message_timestamp_type == "LogAppendTime"
        self._before_ms_max = INT64_MAX if stamps else config.message_timestamp_before_max_ms
        self._after_ms_max = INT64_MAX if stamps else config.message_timestamp_after_max_ms
        self._codec: Compression | None = _CODECS.get(config.compression_type)  # None: as the producer sent it.
        self._level = _level(self._codec, config)
        self._is_compacted = "compact" in config.cleanup_policy
        # What a header must show, in the form that costs each append least: some attributes, and how far it is ahead of now.
        self._attributes_mask = LOG_APPEND_TIME if self._codec is None else LOG_APPEND_TIME | COMPRESSION_MASK
        self._attributes = 0 if self._codec is None else int(self._codec)
        self._ahead_ms_max = NOT_EVEN_NOW if self._is_compacted or self._before_ms_max != INT64_MAX else self._after_ms_max
        self.message_bytes_max = config.max_message_bytes
        self.content_bytes_max = config.max_message_bytes * DECOMPRESSED_TO_MESSAGE_MAX

    def must_open(self, header: BatchHeader, now_ms: int) -> bool:
        """Whether its header does not suffice: then `admit` must see it before it is appended."""
        return header.attributes & self._attributes_mask != self._attributes or header.max_timestamp_ms - now_ms > self._ahead_ms_max

    def admit(self, batch: Buffer, header: BatchHeader, *, now_ms: int, content_bytes_max: int | None = None) -> Buffer:
        """The batch as it is to be appended, in the topic's codec; offsets, producer and sequence stay.

        `content_bytes_max` bounds its records when decompressed. Raises InvalidTimestamp and InvalidRecord, both with the
        errors of single records where it is about those, and MessageTooLarge (also when it is too large only as converted).
        """
        if header.attributes & LOG_APPEND_TIME:
            raise InvalidTimestamp("Producer should not set timestamp type to LogAppendTime.")
        try:
            bound = self.content_bytes_max if content_bytes_max is None else content_bytes_max
            content = decompress_bounded(memoryview(batch)[HEADER_BYTES:], header.compression, size_bytes_max=bound)
            self._check_records(glance_at_records(content, header), now_ms)
        except CorruptMessage as error:  # The CRC was right: its producer wrote it so, and sending it again would not help.
            raise InvalidRecord(str(error)) from None
        if self._codec is None or header.compression == self._codec:
            return batch
        converted = with_content(header, compress(content, self._codec, level=self._level), compression=self._codec)
        if len(converted) > self.message_bytes_max:
            raise MessageTooLarge(
                f"the record batch takes {len(converted)} bytes as {self._codec.name.lower()}: more than max.message.bytes {self.message_bytes_max}"
            )
        return converted

    def _check_records(self, records: Sequence[Glance], now_ms: int) -> None:
        oldest_ms, newest_ms = now_ms - self._before_ms_max, now_ms + self._after_ms_max
        if self._is_compacted:
            keyless = [index for index, record in enumerate(records) if not record.has_key]
            if keyless:
                message = "Compacted topic cannot accept message without key"
                raise InvalidRecord(
                    f"{message} ({len(keyless)} of {len(records)} records)",
                    record_errors=[(index, message) for index in keyless[:RECORD_ERRORS_MAX]],
                )
        outside = [
            (index, record.timestamp_ms)
            for index, record in enumerate(records)
            if not oldest_ms <= record.timestamp_ms <= newest_ms and record.timestamp_ms != NO_TIMESTAMP
        ]
        if outside:
            bounds = f"The timestamp should be within [{oldest_ms}, {newest_ms}]"
            raise InvalidTimestamp(
                f"One or more records have been rejected due to invalid timestamp ({len(outside)} of {len(records)}). {bounds}",
                record_errors=[
                    (index, f"Timestamp {timestamp_ms} of message with offset {index} is out of range. {bounds}")
                    for index, timestamp_ms in outside[:RECORD_ERRORS_MAX]
                ],
            )


def _level(codec: Compression | None, config: TopicConfig) -> int | None:
    """The configured level of the codec, in its library's terms."""
    match codec:
        case Compression.GZIP:
            return config.compression_gzip_level
        case Compression.ZSTD:
            return config.compression_zstd_level
        case Compression.LZ4:
            level = config.compression_lz4_level
            lowest, highest = _LZ4_THOROUGH_LEVELS
            return 0 if level == _LZ4_FASTEST_LEVEL else min(max(level, lowest), highest)
    return None
